"""Files: paths that users give, checksums, atomic writing, and locks between processes."""

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
from typing import IO, Any
from uuid import uuid4

from minigptv2.errors import UserError, system_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
TMP_SUFFIX = ".new"  # ends the name of a file that is not complete yet
MAX_NAME = 200  # bytes of a name without its suffix; systems allow 255, of which a number and `atomic_write` need some
_CHUNK = 1 << 22  # bytes


def is_file(path: str | os.PathLike) -> bool:
    """Whether the path is a file. False, where `Path.is_file` raises, for an invalid path (too long, with a NUL) and in
    a folder that this user may not read."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: str | os.PathLike) -> bool:
    """Whether the path is a folder; otherwise as `is_file`."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def refuse_device(path: str | os.PathLike) -> None:
    """Raise UserError for a device, such as /dev/zero, which may have no end. Pipes and missing files pass."""
    with suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise UserError(f"{path} is a device.", "An ordinary file, or a pipe, is read here.", "Check the path.")


def to_path(given: Any, what: str) -> Path:
    """A path that a user gave, which need not exist. what: names it in the error, such as "image".

    Raises UserError if it is not a valid path on this system: another type, a NUL or a lone surrogate in it, a name
    that is too long.
    """
    try:
        path = os.fsdecode(given)
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError, TypeError) as error:
        raise system_error(
            f"The {what} {shorten(given)} cannot be opened, as it is not a path.",
            error,
            "Give a path, such as photos/park.jpg. Decode base64 text to bytes first.",
        ) from None
    return Path(path)


def shorten(given: Any, length: int = 80) -> str:
    """Any value for an error message: quoted, on one line, unprintable characters escaped, cut to `length`."""
    text = " ".join(ascii(given).split()) if not isinstance(given, str) or not given.isprintable() else repr(given)
    return text if len(text) <= length else f"{text[: length - 20]}...{text[-10:]} ({len(text)} characters)"


def hash_file(file: Path, digest: Any) -> str:
    """The hash of a file's bytes, in hexadecimal. digest: a new hash object of hashlib."""
    with open(file, "rb") as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_write(file: Path, shared: bool = False, over: bool = True) -> Iterator[Path]:
    """Yield a temporary name next to `file`; when the block ends, the file written there gets its final name. An older
    file stays until then, and is kept if the block or the system raises.

    shared: several processes may write this file at once; each gets a temporary name of its own. over: replace an older
    file, otherwise raise FileExistsError.
    """
    new = file.with_name(f"{file.name}{f'.{uuid4().hex}' if shared else ''}{TMP_SUFFIX}")
    try:
        yield new
        with open(new, "rb+") as written:  # data reaches the disk before the name: no empty file after a power cut
            os.fsync(written.fileno())
        if not over:
            _claim_name(new, file)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def file_lock(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Create the folder and lock its file `.lock` until the block or this process ends, so that one process at a time
    writes there. what: names the work in the errors, such as "run". wait: wait until the lock is free, with one line on
    standard error.

    Raises UserError if the folder cannot be written or is in use. On a file system without locks nothing is locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be written: {error}.",
            f"A {what} needs a folder that it can create and write to.",
            "Choose another one.",
        ) from error
    with file:
        printed = False
        while not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise UserError(
                    f"{folder} is in use by {holder}.",
                    f"One {what} at a time may write there.",
                    "Wait until it ends, or choose another folder.",
                )
            if not printed:
                printed = True
                print(f"{folder}: waiting for {holder}", file=sys.stderr, flush=True)
            time.sleep(1)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        except OSError:
            pass  # the disk is full: the folder is locked, only the owner's name is missing
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


def _lock(file: IO) -> bool:
    """Try to lock an open file; whether this process holds the lock. Forked processes do not inherit it (lockf), so a
    worker that outlives a killed run holds no lock."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _claim_name(new: Path, file: Path) -> None:
    """Link `new` to the name `file`, atomically if the file system has hard links. FileExistsError if it exists."""
    try:
        os.link(new, file)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(file):
            raise FileExistsError(EEXIST, os.strerror(EEXIST), str(file)) from None


def numbered(file: Path, number: int) -> Path:
    """The file's name for number 1, `name-2.png` for number 2, and so on."""
    return file if number == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")


def shortened(stem: str) -> str:
    """A name without its suffix, cut to a length that every system allows."""
    return os.fsencode(stem)[:MAX_NAME].decode("utf-8", "ignore") if len(os.fsencode(stem)) > MAX_NAME else stem


def write_beside(file: Path, data: bytes, taken: Collection[Path] = ()) -> Path:
    """Write a new file atomically and return its path: `file`, or its next `numbered` name if a file of that name has
    other content. No existing file is replaced.

    taken: existing files that must not be returned even if they have the same content. Raises OSError and ValueError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = numbered(file, number)
        if not os.path.lexists(path):
            with suppress(FileExistsError):  # another process may be faster
                with atomic_write(path, shared=True, over=False) as new:
                    new.write_bytes(data)
                return path
        elif path not in taken and _holds(path, data):
            return path
    raise AssertionError  # count has no end


def _holds(file: Path, data: bytes) -> bool:
    return is_file(file) and file.stat().st_size == len(data) and file.read_bytes() == data
