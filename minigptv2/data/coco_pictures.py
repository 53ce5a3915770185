"""Where the COCO pictures lie: by number, in any of the usual layouts.

A COCO number names one picture, in the release of 2014 (`train2014/COCO_train2014_000000000009.jpg`) as in that of 2017
(`train2017/000000000009.jpg`), so that any release serves any annotation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from minigptv2.errors import UserError

_YEARS = ("train2017", "val2017", "test2017", "train2014", "val2014", "test2014", "test2015")
_PLACES = ("", "images", "coco", "coco/images")  # below the given folder
FOLDERS = tuple(f"{place}/{year}/".lstrip("/") for place in _PLACES for year in _YEARS) + ("images/", "./")
_NAME = re.compile(r"(COCO_\w+_)?(\d{12})\.jpg")


class CocoPictures:
    """The pictures of a folder by their number. The folders are listed once; no picture is opened."""

    def __init__(self, root: str | os.PathLike):
        """root: holds `train2014/`, `val2017/`, ... or the pictures themselves; also below `images/` or `coco/`."""
        self.root = Path(root)
        self.folders: list[tuple[str, np.ndarray]] = []  # what precedes the number in a path, sorted numbers
        for name in FOLDERS:
            if (self.root / name).is_dir():
                self._list(self.root / name)
        if not self.folders:
            raise UserError(
                f"{root} holds no COCO pictures.",
                "They lie in train2014/, val2014/, train2017/, val2017/, ... of it, of its images/ or coco/, or in it.",
                "Name the folder that holds them with the option images.",
            )  # fmt: skip

    def _list(self, folder: Path) -> None:
        found: dict[str, list[int]] = {}
        for name in os.listdir(folder):
            if match := _NAME.fullmatch(name):
                found.setdefault(match[1] or "", []).append(int(match[2]))
        self.folders += [(os.path.join(folder, prefix), np.sort(numbers)) for prefix, numbers in found.items()]

    def __len__(self) -> int:
        return len(set().union(*(numbers.tolist() for _, numbers in self.folders)))

    def find(self, number: int) -> Path | None:
        """The picture of this number, None where it is not there."""
        for before, numbers in self.folders:
            place = int(np.searchsorted(numbers, number))
            if place < len(numbers) and numbers[place] == number:
                return Path(f"{before}{number:012d}.jpg")
        return None
