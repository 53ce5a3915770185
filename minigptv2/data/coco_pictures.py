"""Where the pictures of COCO lie: several sets annotate them, and people keep them in several ways.

A COCO number names one picture, in the release of 2014 (`train2014/COCO_train2014_000000000009.jpg`) as in that of 2017
(`train2017/000000000009.jpg`), so that the pictures of either serve any annotation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from minigptv2.errors import UserError
from minigptv2.files import is_dir, is_file

# relative to the folder that the user names: flat, by year, and as the tools of RefCOCO unpack them
_YEARS = ("train2014", "val2014", "train2017", "val2017", "trainval2017", "test2014", "test2015", "test2017")
FOLDERS = (
    "", *_YEARS, "images", *(f"images/{year}" for year in _YEARS), *(f"coco/{year}" for year in _YEARS),
    *(f"coco/images/{year}" for year in _YEARS), "images/mscoco/images/train2014",
)  # fmt: skip
_NAME = re.compile(r"(COCO_\w+2\d{3}_)?(\d{12})\.jpg")


class CocoPictures:
    """Finds pictures by their COCO number. The folders are listed once, when it is made; no picture is opened."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not is_dir(self.folder):
            raise UserError(
                f"{self.folder} is no folder.",
                f"COCO's pictures are looked for in it and in {', '.join(FOLDERS[1:5])}.",
                "Give the folder of the pictures as `images`.",
            )  # fmt: skip
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
                f"{place} cannot be listed.", f"The system says: {error.strerror}.",
                "Check that you may read this folder of images.",
            ) from None  # fmt: skip
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
        """The picture's path; where it is not there, the path where it is expected."""
        return self._found(number) or self.folder / "train2014" / f"COCO_train2014_{number:012d}.jpg"


def missing(paths) -> list[Path]:
    """The distinct paths at which no file lies, sorted."""
    return sorted(path for path in set(paths) if not is_file(path))
