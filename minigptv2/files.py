"""How a file is written whole or not at all, whatever stops the program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

NEW = ".new"  # the end of the name of a file that is not whole yet


def is_file(path: str | os.PathLike) -> bool:
    """Whether a file lies there. False for what can be no path (too long, a NUL in it) and where the system does not
    let this user look, where `Path.is_file` raises."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: str | os.PathLike) -> bool:
    """Whether a folder lies there, as `is_file`."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def whole(file: Path, shared: bool = False) -> Iterator[Path]:
    """Give a name beside `file` to write to; when the block ends, the file takes its own name. An older one stays until
    then, and for good where the block or the system raises.

    shared: several processes may write this file at once, so each writes under a name of its own.
    """
    new = file.with_name(f"{file.name}{f'.{uuid4().hex}' if shared else ''}{NEW}")
    try:
        yield new
        with open(new, "rb+") as written:  # on the disk before the name is: a power cut leaves no empty file
            os.fsync(written.fileno())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
