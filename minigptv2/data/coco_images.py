"""Where the images of COCO lie: several sets annotate them, and people keep them in several ways.

A COCO number names one image, in the release of 2014 (`train2014/COCO_train2014_000000000009.jpg`) as in that of 2017
(`train2017/000000000009.jpg`), so that the images of either serve any annotation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minigptv2.data.annotations import InvalidRecord, find_image
from minigptv2.errors import UserError
from minigptv2.files import is_dir, is_file

# relative to the folder that the user names: flat, by year, and as the tools of RefCOCO unpack them
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
_NAMED = re.compile(r"(?:COCO_\w+2\d{3}_)?(\d{12})\.jpg$")  # at the end of a path
_LONGEST = 200  # characters of a name that is shown
_TRIED = 20  # names by which the folder of a file's images is found


class CocoImages:
    """Finds images by their COCO number. The folders are listed once, when it is made; no image is opened."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not is_dir(self.folder):
            raise UserError(
                f"{self.folder} is no folder.",
                f"COCO's images are looked for in it and in {', '.join(FOLDERS[1:5])}.",
                "Give the folder of the images as `images`.",
            )
        self._listed: list[tuple[str, np.ndarray]] = []  # what precedes the number in a path; sorted numbers
        for below in FOLDERS:
            place = os.path.join(folder, below) if below else os.fspath(folder)
            if os.path.isdir(place):
                self._list(place)

    def _list(self, place: str) -> None:
        found: dict[str, list[int]] = {}
        try:
            names = os.listdir(place)
        except OSError as error:
            raise UserError(
                f"{place} cannot be listed.",
                f"The system says: {error.strerror}.",
                "Check that you may read this folder of images.",
            ) from None
        for name in names:
            if match := _NAME.fullmatch(name):
                found.setdefault(match[1] or "", []).append(int(match[2]))
        self._listed += [(os.path.join(place, before), np.sort(numbers)) for before, numbers in found.items()]

    def _found(self, number: int) -> Path | None:
        if not 0 <= number < 10**12:
            return None
        for before, numbers in self._listed:
            place = int(np.searchsorted(numbers, number))
            if place < len(numbers) and numbers[place] == number:
                return Path(f"{before}{number:012d}.jpg")
        return None

    def __contains__(self, number: int) -> bool:
        return self._found(number) is not None

    def find(self, number: int) -> Path:
        """The image's path; where it is not there, the path where it is expected."""
        return self._found(number) or self.folder / "train2014" / f"COCO_train2014_{number:012d}.jpg"


class ImageFinder:
    """Where the images lie that a COCO file names.

    file: the JSON. images: their folder, or that of `train2017` and `val2017`; "" where they lie at one of the usual
    places beside the file. root: where images with COCO's numbers are looked for, "" for images, or the file's folder.
    names: the file's own, by which the folder is found. Raises UserError where `images` is no folder, and, with
    required, where neither it is given nor one image is found.
    """

    def __init__(self, file: Path, images: str, root: str, names: Sequence[str], required: bool = True):
        if images and not is_dir(images):
            raise UserError(f"There is no folder {images}.", "`images` is the folder of the images.", "Check it.")
        part = file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
        if images:
            places = tuple(Path(images, below) for below in ("", part, f"images/{part}"))
        else:
            near, above = file.absolute().parent, file.absolute().parent.parent
            places = (
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
        hits = {place: sum(_there(place, name) for name in tried) for place in places}
        self.folder = max(places, key=lambda place: hits[place])  # of equal ones the first
        self._root = Path(images or root or file.absolute().parent)
        self._numbered: CocoImages | None = None
        if required and not images and not hits[self.folder] and not any(self._by_number(name) for name in tried):
            raise _not_found(file, places, tried)

    def find(self, name: str, number: int | str) -> tuple[Path, str]:
        """The image's path and "", or the path where it is expected and why it is not there.

        The name decides. Where no such file is there, a name of COCO is looked for by its number, in all the folders
        and under all the names of its releases; without a name, the number of the row.
        """
        try:
            if not name:
                raise InvalidRecord("no 'file_name'")
            return find_image(self.folder, name), ""
        except InvalidRecord as error:
            path = self._by_number(name or (f"{number:012d}.jpg" if isinstance(number, int) else ""))
            return (path, "") if path else (self._expected(name, number), str(error))

    def _by_number(self, name: str) -> Path | None:
        found = _NAMED.search(name)
        if not found:
            return None
        if self._numbered is None:
            self._numbered = CocoImages(self._root)
        return self._numbered.find(int(found[1])) if int(found[1]) in self._numbered else None

    def _expected(self, name: str, number: int | str) -> Path:
        if name:
            return self.folder / name.replace("\0", "")[:_LONGEST]
        return self.folder / (f"{number:012d}.jpg" if isinstance(number, int) else f"{number}")


def _there(place: Path, name: str) -> bool:
    try:
        find_image(place, name)
    except InvalidRecord:
        return False
    return True


def _not_found(file: Path, places: Sequence[Path], names: Sequence[str]) -> UserError:
    advice = "Name their folder with the option images; for data check, with --images."
    shown = names[0][:_LONGEST] if names else ""
    looked = f"Looked in {', '.join(map(str, places))}" + (f" for {shown}, say." if shown else ".")
    if shown and "\\" in shown:
        looked += " Its backslashes (\\), as tools on Windows write them, were read as slashes, too."
        advice = "The folder that holds the first part of that path is to be named: option images, or --images."
    return UserError(f"The images of {file} were not found.", looked, advice)


def missing(paths) -> list[Path]:
    """The distinct paths at which no file lies, sorted."""
    return sorted(path for path in set(paths) if not is_file(path))
