"""The files of a data set on the disk, for its reader, `datasets/prepare.py` and the tests of the data cards.

A reader's module describes them in constants:

    PAGE       the official page of the files; for a reader of several data sets, name of the data set -> page
    LAYOUT     part of the data set -> paths that must exist below `root`: a file, files ("*.tar": one or more), a
               folder (ends in "/"), or a tuple of alternatives. The parts are usually the reader's `split`s
    COUNTS     part -> number of records in the published files; unknown numbers are omitted
    DOWNLOADS  address -> folder below `root` for its file, or for the content of its archive. Files without a fixed
               address, or with a licence to be signed, are omitted
    OPTIONS    part -> the reader's options in addition to `root`; default: {"split": part}. The value "{place}" stands
               for the part's first path, for readers that take a file or shards. If `images` is among the options, the
               data set has its own images, not COCO's
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
from minigptv2.errors import UserError, as_user_error
from minigptv2.files import is_dir, is_file

FilePattern = str | tuple[str, ...]
Layout = Mapping[str, tuple[FilePattern, ...]]


class DatasetFiles(NamedTuple):
    """The constants of one data set. reader_options: the names of all options of its reader."""

    page: str
    layout: Layout
    counts: Mapping[str, int]
    downloads: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]]
    reader_options: tuple[str, ...]

    def options_of(self, part: str, root: str | os.PathLike) -> dict[str, Any]:
        """The reader's options for a part of the data set below `root`."""
        options = self.options.get(part, {"split": part})
        if "root" in self.reader_options:
            options = {"root": os.fspath(root), **options}
        path = _first_path(root, self.layout[part][0])
        return {option: path if value == "{place}" else value for option, value in options.items()}


def on_disk(name: str) -> DatasetFiles | None:
    """The constants of the reader of this name; None if its data set has no fixed files."""
    file, _, reader = DATASETS[name].partition(":")
    module = importlib.import_module(file)
    if not hasattr(module, "LAYOUT"):
        return None
    page = module.PAGE if isinstance(module.PAGE, str) else module.PAGE[name]
    known = tuple(inspect.signature(getattr(module, reader)).parameters)
    return DatasetFiles(page, module.LAYOUT, module.COUNTS, module.DOWNLOADS, getattr(module, "OPTIONS", {}), known)


def find(root: str | os.PathLike, place: FilePattern) -> Path | None:
    """The first of the alternatives that exists below root, for a pattern its first file; None if there is none."""
    for name in (place,) if isinstance(place, str) else place:
        path = Path(root) / name
        if "*" in name:
            if found := [file for file in Path(root).glob(name) if is_file(file)]:
                return min(found)
        elif is_dir(path) if name.endswith("/") else is_file(path):
            return path
    return None


def _first_path(root: str | os.PathLike, place: FilePattern) -> str:
    """The first of the alternatives that exists, or else the first; several files as a pattern for `data.shards`."""
    names = (place,) if isinstance(place, str) else place
    name = next((name for name in names if find(root, name)), names[0])
    return os.path.join(glob.escape(os.fspath(root)) if "*" in name else root, name)


def missing_paths(root: str | os.PathLike, places: tuple[FilePattern, ...]) -> list[str]:
    """The paths of a layout that do not exist, alternatives as "a or b"."""
    return [place if isinstance(place, str) else " or ".join(place) for place in places if find(root, place) is None]


def require(root: str | os.PathLike, layout: Layout, split: str, page: str) -> list[Path]:
    """The paths of a split in the order of the layout. Raises a UserError that names all missing ones."""
    check_choice("split", split, tuple(layout))
    if not is_dir(root):
        raise UserError(f"There is no folder {root}.", "`root` is the folder of the data set.", f"See {page}.")
    if absent := missing_paths(root, layout[split]):
        raise UserError(
            f"{root} has no {', no '.join(absent)}.",
            f"The split {split!r} needs them.",
            f"Get them from {page}.",
        )
    return [path for place in layout[split] if (path := find(root, place)) is not None]


def names_in(folder: Path) -> set[str]:
    """The names of all files and folders in a folder of images. One call is faster than a look-up of each file."""
    with as_user_error(
        f"The folder of images {folder} cannot be listed.", "Check that it exists and that you may read it."
    ):
        return set(os.listdir(folder))


def image_in(folder: Path, names: set[str], name: str) -> str:
    """The image's path relative to the folder. names: of all files in the folder, which usually saves a look-up.

    Raises InvalidRecord with the cause if there is no such image.
    """
    return name if name in names else os.path.relpath(find_image(folder, name), folder)


def require_records(count: int, file: Path, problems: ProblemCounter) -> None:
    """Raises a UserError with the problems of a file if none of its records can be used."""
    if not count:
        raise UserError(
            f"{file} gives no record.",
            "; ".join(problems.lines()) or "It is empty.",
            "Check the paths of the annotations and of the images.",
        )
