"""Where the pictures of COCO lie: several sets annotate them, and people keep them in several ways."""

from __future__ import annotations

import os
from pathlib import Path

from minigptv2.errors import UserError

# relative to the folder that the user names: flat, by year, and as the tools of RefCOCO unpack them
FOLDERS = (
    "", "train2014", "val2014", "train2017", "val2017", "trainval2017", "test2015", "images", "images/train2014",
    "images/val2014", "images/train2017", "images/val2017", "images/trainval2017", "images/mscoco/images/train2014",
)  # fmt: skip
NAMES = ("COCO_train2014_{:012d}.jpg", "COCO_val2014_{:012d}.jpg", "{:012d}.jpg")


class CocoPictures:
    """Finds pictures by their COCO number. The folders are listed once, when it is made; no picture is opened."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder} is no folder.", f"Pictures are looked for in it and in {', '.join(FOLDERS[1:5])}.",
                "Give the folder of the pictures as `images`.",
            )  # fmt: skip
        self._listed: list[tuple[str, set[str]]] = []
        for below in FOLDERS:
            place = os.path.join(folder, below) if below else os.fspath(folder)
            if os.path.isdir(place):
                self._listed.append((place, {entry.name for entry in os.scandir(place)}))

    def find(self, number: int) -> Path:
        """The picture's path; where it is not there, the path where it is expected."""
        for name in (pattern.format(number) for pattern in NAMES):
            for place, names in self._listed:
                if name in names:
                    return Path(place, name)
        return self.folder / "train2014" / NAMES[0].format(number)


def missing(paths) -> list[Path]:
    """The distinct paths at which no file lies, sorted."""
    return sorted(path for path in set(paths) if not path.is_file())
