"""How a file is written whole or not at all, whatever stops the program."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST
from itertools import count
from pathlib import Path
from uuid import uuid4

NEW = ".new"  # the end of the name of a file that is not whole yet
LONGEST = 200  # bytes of a name without its suffix; systems take 255, of which a number and `whole` need some


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
def whole(file: Path, shared: bool = False, over: bool = True) -> Iterator[Path]:
    """Give a name beside `file` to write to; when the block ends, the file takes its own name. An older one stays until
    then, and for good where the block or the system raises.

    shared: several processes may write this file at once, so each writes under a name of its own. over: whether an
    older file is replaced; FileExistsError if not.
    """
    new = file.with_name(f"{file.name}{f'.{uuid4().hex}' if shared else ''}{NEW}")
    try:
        yield new
        with open(new, "rb+") as written:  # on the disk before the name is: a power cut leaves no empty file
            os.fsync(written.fileno())
        if not over:
            _refuse_older(new, file)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _refuse_older(new: Path, file: Path) -> None:
    """Take the name `file`, in one step where the file system has hard links. FileExistsError where it is taken."""
    try:
        os.link(new, file)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(file):
            raise FileExistsError(EEXIST, os.strerror(EEXIST), str(file)) from None


def numbered(file: Path, number: int) -> Path:
    """The file's name for the first that wants it, `name-2.png` for the second, and so on."""
    return file if number == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")


def shortened(stem: str) -> str:
    """A name without its suffix, cut to what every system takes."""
    return os.fsencode(stem)[:LONGEST].decode("utf-8", "ignore") if len(os.fsencode(stem)) > LONGEST else stem


def write_beside(file: Path, data: bytes, taken: Collection[Path] = ()) -> Path:
    """Write a new file, whole, and give its path: `file`, or its next `numbered` name where a file of that name holds
    something else. Nothing that was there is replaced.

    taken: files that stand for something else, although they may hold the same bytes. Raises OSError and ValueError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        place = numbered(file, number)
        if not os.path.lexists(place):
            with suppress(FileExistsError):  # another process may be faster
                with whole(place, shared=True, over=False) as new:
                    new.write_bytes(data)
                return place
        elif place not in taken and _holds(place, data):
            return place
    raise AssertionError  # count has no end


def _holds(file: Path, data: bytes) -> bool:
    return is_file(file) and file.stat().st_size == len(data) and file.read_bytes() == data
