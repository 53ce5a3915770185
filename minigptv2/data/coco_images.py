"""Finds COCO's images on the disk. Several data sets annotate them, and people keep them in several folders.

A COCO number identifies one image in the release of 2014 (`train2014/COCO_train2014_000000000009.jpg`) and in that of
2017 (`train2017/000000000009.jpg`), so either release serves any annotation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minigptv2.data.annotations import InvalidRecord, find_image
from minigptv2.errors import UserError, system_error
from minigptv2.files import is_dir, is_file

# below the folder that the user gives: flat, by year, and as the tools of RefCOCO unpack them
_YEARS = ("train2014", "val2014", "train2017", "val2017", "trainval2017", "test2014", "test2015", "test2017")
FOLDERS = (
    "",
    *_YEARS,
    "images",
    *(f"images/{year}" for year in _YEARS),
    *(f"coco/{year}" for year in _YEARS),
    *(f"coco/images/{year}" for year in _YEARS),
    "images/mscoco/images/train2014",
)
COCO_PAGE = "https://cocodataset.org/#download"
_NAME = re.compile(r"(COCO_\w+2\d{3}_)?(\d{12})\.jpg")
_NAME_IN_PATH = re.compile(r"(?:COCO_\w+2\d{3}_)?(\d{12})\.jpg$")
_MAX_LENGTH = 200  # characters of a name in a message
_TRIED = 20  # number of names, twice, by which the folder of a file's images is found


class CocoImages:
    """Finds images by their COCO number. The folders are listed once, on construction; no image is opened.

    Raises UserError if the folder does not exist or cannot be listed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not is_dir(self.folder):
            raise UserError(
                f"{self.folder} is not a folder.",
                f"COCO's images are looked for in it and in {', '.join(FOLDERS[1:5])}.",
                "Give the folder of the images as `images`.",
            )
        self._listed: list[tuple[str, np.ndarray]] = []  # path up to the number, and sorted numbers
        for below in FOLDERS:
            path = os.path.join(folder, below) if below else os.fspath(folder)
            if os.path.isdir(path):
                self._list(path)

    def _list(self, folder: str) -> None:
        found: dict[str, list[int]] = {}
        try:
            names = os.listdir(folder)
        except OSError as error:
            advice = "Check that you may read this folder of images."
            raise system_error(f"{folder} cannot be listed.", error, advice) from None
        for name in names:
            if match := _NAME.fullmatch(name):
                found.setdefault(match[1] or "", []).append(int(match[2]))
        self._listed += [(os.path.join(folder, prefix), np.sort(numbers)) for prefix, numbers in found.items()]

    def _found(self, number: int) -> Path | None:
        if not 0 <= number < 10**12:
            return None
        for prefix, numbers in self._listed:
            index = int(np.searchsorted(numbers, number))
            if index < len(numbers) and numbers[index] == number:
                return Path(f"{prefix}{number:012d}.jpg")
        return None

    def __contains__(self, number: int) -> bool:
        return self._found(number) is not None

    def find(self, number: int) -> Path:
        """The image's path; if there is none, the path where it is expected."""
        return self._found(number) or self.folder / "train2014" / f"COCO_train2014_{number:012d}.jpg"


class ImageFinder:
    """Finds the images that a COCO file names.

    file: the JSON. images: their folder, or the folder of `train2017` and `val2017`; "" for the usual folders near the
    file. root: the folder of COCO's own images, which are found by number; "" for images, or the file's folder. names:
    of the images in the file; the folder is the one that has most of them. required: at least one image must be found
    if `images` is not given. Raises UserError if that fails, or if `images` is not a folder.
    """

    def __init__(self, file: Path, images: str, root: str, names: Sequence[str], required: bool = True):
        if images and not is_dir(images):
            raise UserError(f"There is no folder {images}.", "`images` is the folder of the images.", "Check it.")
        part = file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
        if images:
            folders = tuple(Path(images, below) for below in ("", part, f"images/{part}"))
        else:
            near, above = file.absolute().parent, file.absolute().parent.parent
            folders = (
                near,
                near / "images",
                near / part,
                near / "data",
                above / "images" / part,
                above / part,
                above / "images",
                above / "data",
                above,
            )
        names = [name for name in names if isinstance(name, str)]
        tried = [*names[:_TRIED], *names[:: max(1, len(names) // _TRIED)][:_TRIED]]
        hits = {folder: sum(_exists(folder, name) for name in tried) for folder in folders}
        self.folder = max(folders, key=lambda folder: hits[folder])  # of equal ones the first
        self._root = Path(images or root or file.absolute().parent)
        self._numbered: CocoImages | None = None
        if required and not images and not hits[self.folder] and not any(self._by_number(name) for name in tried):
            raise _not_found(file, folders, tried)

    def find(self, name: str, number: int | str) -> tuple[Path, str]:
        """The image's path and "", or the path where it is expected and the problem.

        The name decides. If there is no such file, a name of COCO is looked for by its number, in the folders and under
        the names of all releases; without a name, the row's `id` is that number.
        """
        try:
            if not name:
                raise InvalidRecord("no 'file_name'")
            return find_image(self.folder, name), ""
        except InvalidRecord as error:
            path = self._by_number(name or (f"{number:012d}.jpg" if isinstance(number, int) else ""))
            return (path, "") if path else (self._expected(name, number), str(error))

    def _by_number(self, name: str) -> Path | None:
        found = _NAME_IN_PATH.search(name)
        if not found:
            return None
        if self._numbered is None:
            self._numbered = CocoImages(self._root)
        return self._numbered.find(int(found[1])) if int(found[1]) in self._numbered else None

    def _expected(self, name: str, number: int | str) -> Path:
        if name:
            return self.folder / name.replace("\0", "")[:_MAX_LENGTH]
        return self.folder / (f"{number:012d}.jpg" if isinstance(number, int) else f"{number}")


def _exists(folder: Path, name: str) -> bool:
    try:
        find_image(folder, name)
    except InvalidRecord:
        return False
    return True


def _not_found(file: Path, folders: Sequence[Path], names: Sequence[str]) -> UserError:
    advice = "Give their folder with the option images; for data check, with --images."
    shown = names[0][:_MAX_LENGTH] if names else ""
    searched = f"Searched {', '.join(map(str, folders))}" + (f" for {shown}, for example." if shown else ".")
    if shown and "\\" in shown:
        searched += " Its backslashes (\\), which tools on Windows write, were also read as slashes."
        advice = "Give the folder that holds the first part of that path: option images, or --images."
    return UserError(f"The images of {file} were not found.", searched, advice)


def missing(paths) -> list[Path]:
    """The paths that are not files, sorted, each once."""
    return sorted(path for path in set(paths) if not is_file(path))
