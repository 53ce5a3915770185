"""The files of a data set on disk: whether they are there, and reading JSON with errors a user can act on.

A reader's module carries four plain facts, which the reader, `datasets/prepare.py` and the tests of the cards share:

    PAGE       where the files come from, the official page
    LAYOUT     split -> what must lie below `root`: a file, a folder (ends in "/"), or a tuple of places of which one
               must be there
    COUNTS     split -> how many records the published files give
    DOWNLOADS  address -> folder below `root` into which its file is put, an archive unpacked; what has no fixed
               address, or asks for a licence to be signed, is not in it
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    if split not in layout:
        raise unknown("split", split, layout)
    if not Path(root).is_dir():
        raise UserError(f"There is no folder {root}.", "root is the folder that the data set lies in.", f"See {page}.")
    if lost := missing(root, layout[split]):
        raise UserError(
            f"{root} has no {', no '.join(lost)}.", f"The split {split!r} needs them; datasets/ shows the layout.",
            f"Get them from {page}; datasets/prepare.py says what is missing.",
        )  # fmt: skip
    return [find(root, place) for place in layout[split]]  # type: ignore[misc]


def unknown(what: str, given: str, known) -> UserError:
    return UserError(
        f"The {what} {given!r} is unknown.", f"Known: {', '.join(known)}.", f"Write {what}: {next(iter(known))}."
    )


def read_json(file: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """The JSON of a file, whose outermost value must be of this kind (dict or list)."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}.", "It is a JSON file.", "Check the path and its permissions."
        ) from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(
            f"{file} is no JSON: {error}.", "It is one JSON value in UTF-8.", "Download it again."
        ) from None
    if not isinstance(content, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("an object" if k is dict else "a list" for k in kinds)
        raise UserError(
            f"{file} holds a {type(content).__name__}.", f"It must hold {names}.",
            "Check that it is the file that datasets/ describes.",
        )  # fmt: skip
    return content


def rows_of(content: dict, key: str, file: Path) -> list:
    """The list under a key of a JSON object."""
    rows = content.get(key)
    if not isinstance(rows, list):
        raise UserError(
            f"{file} has no list {key!r}.", f"Its keys: {', '.join(map(str, content)) or 'none'}.",
            "Check that it is the file that datasets/ describes.",
        )  # fmt: skip
    return rows


def read_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of each line of a JSON Lines file; the value is a ValueError where it is no JSON."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    yield number, ValueError(str(error))
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}.", "It is a JSON Lines file.", "Check the path."
        ) from None


def names_in(folder: Path) -> set[str]:
    """The names of all that lies in a folder, read once: quicker than asking for each file."""
    return set(os.listdir(folder))


def require_records(count: int, where: str, problems) -> None:
    """Raises UserError where not one record is left, and says why."""
    if count:
        return
    raise UserError(
        f"{where} gives no record.", "; ".join(problems.lines()) or "The file holds none.",
        "Check that root holds the files and pictures that datasets/ describes.",
    )  # fmt: skip


def shared(text: str) -> str:
    """The one copy of a string that stands in many rows: answers repeat, and there are millions."""
    return sys.intern(text)
