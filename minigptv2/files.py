"""How a file is written whole or not at all, whatever stops the program; and by one process at a time."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from minigptv2.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
TMP_SUFFIX = ".new"  # the end of the name of a file that is not whole yet
LONGEST = 200  # bytes of a name without its suffix; systems take 255, of which a number and `atomic_write` need some


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


def refuse_device(path: str | os.PathLike) -> None:
    """Raise UserError for a device, such as /dev/zero, which may be read without end. A pipe is read as a file is; what
    is not there is left to its opening."""
    with suppress(OSError, ValueError):
        kind = os.stat(path).st_mode
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            raise UserError(f"{path} is a device.", "An ordinary file, or a pipe, is read here.", "Check the path.")


def to_path(given: Any, what: str) -> Path:
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
            f"The {what} {shorten(given)} cannot be opened, as it is no path.",
            f"The system says: {reason}.",
            "Give a path, as in photos/park.jpg; base64 text is to be decoded to bytes first.",
        ) from None
    return Path(path)


def shorten(given: Any, most: int = 80) -> str:
    """Any value for an error message: one line, quoted, what cannot be printed in escapes, cut to `most` letters."""
    text = " ".join(ascii(given).split()) if not isinstance(given, str) or not given.isprintable() else repr(given)
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-10:]} ({len(text)} letters)"


@contextmanager
def atomic_write(file: Path, shared: bool = False, over: bool = True) -> Iterator[Path]:
    """Give a name beside `file` to write to; when the block ends, the file takes its own name. An older one stays until
    then, and for good where the block or the system raises.

    shared: several processes may write this file at once, so each writes under a name of its own. over: whether an
    older file is replaced; FileExistsError if not.
    """
    new = file.with_name(f"{file.name}{f'.{uuid4().hex}' if shared else ''}{TMP_SUFFIX}")
    try:
        yield new
        with open(new, "rb+") as written:  # on the disk before the name is: a power cut leaves no empty file
            os.fsync(written.fileno())
        if not over:
            _refuse_older(new, file)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def file_lock(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Make the folder and keep other processes out of it, by a lock on its file `.lock`, until the block ends or this
    process does, however it ends. what: "run", for the errors. wait: until it is free, told once.

    Raises UserError where the folder cannot be written, or is in use. A file system without locks is no obstacle.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be written: {error}.",
            f"A {what} needs a folder that it may make and write to.",
            "Choose another one.",
        ) from error
    with file:
        told = False
        while not _taken(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise UserError(
                    f"{folder} is in use by {holder}.",
                    f"One {what} at a time may write there.",
                    "Wait until it ends, or choose another folder.",
                )
            if not told:
                told = True
                print(f"{folder}: waiting for {holder}", file=sys.stderr, flush=True)
            time.sleep(1)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        except OSError:
            pass  # a full disk: the lock holds all the same, and only its owner's name is missing
        yield


@contextmanager
def lock_for_reading(path: str | os.PathLike, wait: bool = False) -> Iterator[bool]:
    """Lock a file that exists, and may be read-only, until the block ends. Yields False if another process holds the
    lock. wait: wait for it instead. Without support for locks (Windows, some file systems) it yields True."""
    with open(path, "rb") as file:
        locked = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                locked = False
            except OSError:
                pass
        yield locked


def _taken(file) -> bool:
    """Whether this process holds the lock now. A process that it forks does not inherit it, so that a worker which
    outlives a killed run holds nothing."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


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
                with atomic_write(place, shared=True, over=False) as new:
                    new.write_bytes(data)
                return place
        elif place not in taken and _holds(place, data):
            return place
    raise AssertionError  # count has no end


def _holds(file: Path, data: bytes) -> bool:
    return is_file(file) and file.stat().st_size == len(data) and file.read_bytes() == data
