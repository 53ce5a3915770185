"""What of a data set must lie where on disk: for the reader, `datasets/prepare.py` and the tests of the cards.

A reader's module says it in plain constants:

    PAGE       where the files come from, the official page; of a reader of several sets, name of the set -> page
    LAYOUT     part of the set -> what must lie below `root`: a file, files ("*.tar": one or more), a folder (ends in
               "/"), or a tuple of places of which one must be there. Mostly, the parts are the reader's `split`s
    COUNTS     part -> how many records the published files give; what is not known is not in it
    DOWNLOADS  address -> folder below `root` into which its file is put, an archive unpacked; what has no fixed
               address, or asks for a licence to be signed, is not in it
    OPTIONS    part -> the reader's options for it, besides `root`; left out: {"split": part}. The value "{place}"
               stands for the part's first place as it lies on the disk, for readers that take a file or shards. Where
               `images` is among them, the set has images of its own, none of COCO
"""

from __future__ import annotations

import glob
import importlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minigptv2.data.annotations import check_choice, find_image
from minigptv2.data.dataset import DATASETS, ProblemCounter
from minigptv2.errors import UserError
from minigptv2.files import is_dir, is_file

Place = str | tuple[str, ...]
Layout = Mapping[str, tuple[Place, ...]]


class DatasetFiles(NamedTuple):
    """The constants of one set. takes: the names of its reader's options."""

    page: str
    layout: Layout
    counts: Mapping[str, int]
    downloads: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]]
    reader_options: tuple[str, ...]

    def options_of(self, part: str, root: str | os.PathLike) -> dict[str, Any]:
        """The reader's options for a part."""
        options = self.options.get(part, {"split": part})
        if "root" in self.reader_options:
            options = {"root": os.fspath(root), **options}
        place = _there(root, self.layout[part][0])
        return {option: place if value == "{place}" else value for option, value in options.items()}


def on_disk(name: str) -> DatasetFiles | None:
    """What the reader of this name says; None where its set needs no certain files."""
    file, _, reader = DATASETS[name].partition(":")
    module = importlib.import_module(file)
    if not hasattr(module, "LAYOUT"):
        return None
    page = module.PAGE if isinstance(module.PAGE, str) else module.PAGE[name]
    takes = tuple(inspect.signature(getattr(module, reader)).parameters)
    return DatasetFiles(page, module.LAYOUT, module.COUNTS, module.DOWNLOADS, getattr(module, "OPTIONS", {}), takes)


def find(root: str | os.PathLike, place: Place) -> Path | None:
    """The first of the alternatives that is there, below root, of several files the first; None where there is none."""
    for name in (place,) if isinstance(place, str) else place:
        path = Path(root) / name
        if "*" in name:
            if found := [file for file in Path(root).glob(name) if is_file(file)]:
                return min(found)
        elif is_dir(path) if name.endswith("/") else is_file(path):
            return path
    return None


def _there(root: str | os.PathLike, place: Place) -> str:
    """The first of the alternatives that is there, or else the first; several files as a pattern for `data.shards`."""
    names = (place,) if isinstance(place, str) else place
    name = next((name for name in names if find(root, name)), names[0])
    return os.path.join(glob.escape(os.fspath(root)) if "*" in name else root, name)


def missing(root: str | os.PathLike, places: tuple[Place, ...]) -> list[str]:
    """What of a layout is not there, in words."""
    return [place if isinstance(place, str) else " or ".join(place) for place in places if find(root, place) is None]


def require(root: str | os.PathLike, layout: Layout, split: str, page: str) -> list[Path]:
    """The paths of a split in the order of the layout. Raises UserError that names all that is not there."""
    check_choice("split", split, tuple(layout))
    if not is_dir(root):
        raise UserError(f"There is no folder {root}.", "`root` is the folder of the data set.", f"See {page}.")
    if lost := missing(root, layout[split]):
        raise UserError(
            f"{root} has no {', no '.join(lost)}.",
            f"The split {split!r} needs them.",
            f"Get them from {page}.",
        )
    return [path for place in layout[split] if (path := find(root, place)) is not None]


def names_in(folder: Path) -> set[str]:
    """The names of all that lies in a folder, read at once: quicker than asking for each file."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed: {error.strerror}.",
            "It is the folder of the images.",
            "Check that it exists and that you may read it.",
        ) from None


def image_in(folder: Path, there: set[str], name: str) -> str:
    """The image's path below the folder, whose names are `there`, so that mostly nothing is looked up. Raises
    InvalidRecord with the cause where it is not there."""
    return name if name in there else os.path.relpath(find_image(folder, name), folder)


def require_records(count: int, file: Path, problems: ProblemCounter) -> None:
    """Raises UserError where not one record of a file is left, and says why."""
    if not count:
        raise UserError(
            f"{file} gives no record.",
            "; ".join(problems.lines()) or "It is empty.",
            "Check that the annotations and the images lie where they are looked for.",
        )
