"""What of a data set must lie where on disk: for the reader, `datasets/prepare.py` and the tests of the cards.

A reader's module says it in plain constants:

    PAGE       where the files come from, the official page
    LAYOUT     split -> what must lie below `root`: a file, a folder (ends in "/"), or a tuple of places of which one
               must be there. The keys are the values of the reader's `split`
    COUNTS     split -> how many records the published files give; what is not known is not in it
    DOWNLOADS  address -> folder below `root` into which its file is put, an archive unpacked; what has no fixed
               address, or asks for a licence to be signed, is not in it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from minigptv2.data.annotations import one_of
from minigptv2.data.dataset import Problems
from minigptv2.errors import UserError

Place = str | tuple[str, ...]
Layout = Mapping[str, tuple[Place, ...]]


def find(root: str | os.PathLike, place: Place) -> Path | None:
    """The first of the alternatives that is there, below root; None where there is none."""
    for name in (place,) if isinstance(place, str) else place:
        path = Path(root) / name
        if path.is_dir() if name.endswith("/") else path.is_file():
            return path
    return None


def missing(root: str | os.PathLike, places: tuple[Place, ...]) -> list[str]:
    """What of a layout is not there, in words."""
    return [place if isinstance(place, str) else " or ".join(place) for place in places if find(root, place) is None]


def require(root: str | os.PathLike, layout: Layout, split: str, page: str) -> list[Path]:
    """The paths of a split in the order of the layout. Raises UserError that names all that is not there."""
    one_of("split", split, tuple(layout))
    if not Path(root).is_dir():
        raise UserError(f"There is no folder {root}.", "`root` is the folder of the data set.", f"See {page}.")
    if lost := missing(root, layout[split]):
        raise UserError(
            f"{root} has no {', no '.join(lost)}.", f"The split {split!r} needs them; datasets/ shows the layout.",
            f"Get them from {page}; datasets/prepare.py says what is missing.",
        )  # fmt: skip
    return [path for place in layout[split] if (path := find(root, place)) is not None]


def names_in(folder: Path) -> set[str]:
    """The names of all that lies in a folder, read at once: quicker than asking for each file."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed: {error.strerror}.", "It is the folder of the pictures.",
            "Check that it exists and that you may read it.",
        ) from None  # fmt: skip


def require_records(count: int, file: Path, problems: Problems) -> None:
    """Raises UserError where not one record of a file is left, and says why."""
    if not count:
        raise UserError(
            f"{file} gives no record.", "; ".join(problems.lines()) or "It is empty.",
            "Check that the files and pictures lie as datasets/ describes.",
        )  # fmt: skip
