"""One sample of a shard, and the file access that tar and parquet shards share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from minigptv2.errors import as_user_error


@dataclass(frozen=True)
class Record:
    """One sample of a shard.

    fields: of its JSON file, or the columns of its row. text: of its .txt file, "" if it has none. image: a path, or an
    object that `images.open_image` accepts; None if there is none. key: shard and position in it, for messages.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    image: Any = None
    key: str = ""


# Called with records that have an image. Raises InvalidRecord to drop the record; yields problems of parts of it.
RecordFilter = Callable[[Record], Iterable[str]]


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; fewer at the end of the file. Raises UserError if it cannot be read."""
    with as_user_error(f"{path} cannot be read.", "Check that the disk is still there."):
        with open(path, "rb") as file:  # opened anew: forked processes would share the file position
            file.seek(offset)
            return file.read(size)


def file_version(path: str) -> str:
    """A file's path, size and modification time. It changes when the file is rewritten."""
    try:
        about = os.stat(path)
    except OSError:
        return f"{path}, which cannot be found"
    return f"{path}, {about.st_size} bytes, {about.st_mtime_ns}"
