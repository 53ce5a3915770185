"""How a file is written whole or not at all, whatever stops the program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from minigptv2.errors import UserError

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


def path_of(given: Any, what: str) -> Path:
    """A path as a user gave it. what: names it in the error, such as "image".

    Raises UserError for what can be no path on this system: another type, a NUL or a lone surrogate in it, a name that
    is too long. Whether anything lies there is not looked at.
    """
    try:
        path = os.fsdecode(given)
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"The {what} {shown(given)} cannot be opened, as it is no path.", f"The system says: {reason}.",
            "Give a path, as in photos/park.jpg; base64 text is to be decoded to bytes first.",
        ) from None  # fmt: skip
    return Path(path)


def shown(given: Any, most: int = 80) -> str:
    """Any value for an error message: quoted, with escapes for what cannot be printed, cut to about `most` letters."""
    text = ascii(given) if not isinstance(given, str) or not given.isprintable() else repr(given)
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-10:]} ({len(text)} letters)"


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
