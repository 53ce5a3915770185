"""Samples of a WebDataset shard: the members of an uncompressed tar that share a name.

    00000.jpg 00000.json 00000.txt 00001.jpg ...

`ROW`, `list_rows` and `read_record` are what `shards.py` needs of a format; `parquet.py` has the same three.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from minigptv2.data.annotations import InvalidRecord
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.shard_record import Record, file_version, read_bytes
from minigptv2.errors import UserError
from minigptv2.images import SUFFIXES

# A sample in an index: first block and size in bytes of its text, JSON and image; 0 for a member that it lacks.
ROW = struct.Struct("<6I")
_TEXT, _JSON, _IMAGE = range(3)  # the order of the members in a row
_MEMBER_OF_SUFFIX = {".txt": _TEXT, ".json": _JSON} | dict.fromkeys(SUFFIXES, _IMAGE)
_BLOCK = 512  # bytes: the size of a member's header, and the alignment of headers and contents
_DAMAGED = "a shard that is damaged or cut short"
_Row = list[int]


@dataclass(frozen=True)
class TarImage:
    """An image file in an uncompressed tar: `size` bytes from `offset` on. `images.open_image` accepts it."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes of the file. Raises UserError if the tar was removed or has become shorter."""
        data = read_bytes(self.path, self.offset, self.size)
        if len(data) < self.size:
            raise UserError(
                f"{self} ends after {len(data)} of {self.size} bytes.",
                "The tar was changed since it was indexed.",
                "Start again: the index is rebuilt.",
            )
        return data

    open = read  # the name in `images.LazyImage`

    @property
    def key(self) -> str:
        """Identifies the image, for caches. It changes when the tar is rewritten."""
        return f"{file_version(self.path)}, byte {self.offset}, {self.size} bytes"

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}"


def list_rows(shard: str, problems: ProblemCounter) -> Iterator[tuple[tuple[int, ...], str]]:
    """The index row and the name of every sample. Members of a sample share a name; they need not be neighbours.

    WebDataset ends the name at the first dot. Many tools write names with dots nevertheless (a.1.jpg with a.1.txt), so
    here the name ends at the last dot. `_merge_samples` then applies WebDataset's rule where it is needed.
    """
    name = os.path.basename(shard)
    rows: dict[tuple[str, str], dict[str, _Row]] = {}  # (folder, name to the first dot) -> name to the last dot -> row
    others: list[tuple[tuple[str, str], str]] = []  # members of other types
    for member in _members(shard, problems):
        folder, _, file = member.name.rpartition("/")
        if file.startswith("."):
            problems.add("a hidden file, as macOS leaves them in archives", f"{name} {member.name}", dropped=False)
            continue
        stem, dot, suffix = file.rpartition(".")
        sample = folder, file.partition(".")[0]
        column = _MEMBER_OF_SUFFIX.get(f".{suffix.lower()}") if dot else None
        if column is None:
            others.append((sample, member.name))
            continue
        row = rows.setdefault(sample, {}).setdefault(stem, [0] * 6)
        if row[2 * column] or member.size >= 1 << 32:
            problem = "a second member of the same type and name" if row[2 * column] else "a member of 4 GiB or more"
            problems.add(problem, f"{name} {member.name}")
            continue
        row[2 * column : 2 * column + 2] = member.offset_data // _BLOCK, member.size
    for sample, member in others:
        if sample not in rows:  # otherwise it is a class label, features etc. of a sample that is used
            problems.add("a member of a type that is not read", f"{name} {member}")
    for (folder, first), same in rows.items():
        for stem, row in _merge_samples(first, same, problems, f"{name} {folder}".rstrip()).items():
            if any(row):
                yield tuple(row), f"{folder}/{stem}".lstrip("/")


def _merge_samples(first: str, same: dict[str, _Row], problems: ProblemCounter, where: str) -> dict[str, _Row]:
    """The samples among members whose names agree up to the first dot.

    first: the name up to the first dot. same: name up to the last dot -> row.

    A name with an image and text is a sample. Of the others, 7.image.jpg and 7.caption.txt belong to the sample 7
    (WebDataset's rule), unless a number in the rest of the name distinguishes them. Members that fit no sample are
    counted.
    """
    if len(same) == 1:
        return same
    complete = {stem: row for stem, row in same.items() if row[2 * _IMAGE] and (row[2 * _TEXT] or row[2 * _JSON])}
    partial = {stem: row for stem, row in same.items() if stem not in complete}
    if first not in same and (complete or any(re.search(r"\d", stem[len(first) :]) for stem in partial)):
        return same  # each name is a sample
    base = complete.get(first) or partial.pop(first, None) or [0] * 6
    for stem, row in partial.items():
        for column in (_TEXT, _JSON, _IMAGE):
            part = slice(2 * column, 2 * column + 2)
            if row[2 * column] and not base[2 * column]:
                base[part] = row[part]
            elif row[2 * column]:
                problems.add("a further member of a sample that has one of its type", f"{where} {stem}", dropped=False)
    return {**complete, first: base}


def _members(shard: str, problems: ProblemCounter) -> Iterator[tarfile.TarInfo]:
    """The complete ordinary files in a tar, up to the first damage, which is counted."""
    size, name = os.path.getsize(shard), os.path.basename(shard)
    try:
        tar = tarfile.open(shard, "r:", encoding="utf-8", errors="replace")
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        problems.add("a shard that is not an uncompressed tar", f"{name} ({error})")
        return
    with tar:
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, EOFError, ValueError, OSError):
                problems.add(_DAMAGED, f"{name} after byte {tar.offset}")
                return
            if member is None:
                break
            if member.offset_data + member.size > size:
                problems.add(_DAMAGED, f"{name} in {member.name}")
                return
            if member.isreg() and not member.issparse():
                yield member
        # Two blocks of zeros end a tar. tarfile also stops, without an error, at a header that it cannot parse.
        end = read_bytes(shard, tar.offset, _BLOCK)
        if len(end) < _BLOCK or any(end):
            problems.add(_DAMAGED, f"{name} after byte {tar.offset}")


def read_record(shard: str, row: tuple[int, ...], images: str = "", image: str = "") -> Record:
    """The sample of an index row. images, image: not used here. Raises InvalidRecord if its text or JSON is invalid."""
    (text_at, text_size), (json_at, json_size), (image_at, image_size) = zip(row[::2], row[1::2])
    first = min(filter(None, (text_at, json_at, image_at)))
    header = read_bytes(shard, (first - 1) * _BLOCK, 100)  # a tar header begins with the name
    name = header.split(b"\0")[0].decode(errors="replace").rpartition("/")[2]
    key = f"{os.path.basename(shard)} {name.rpartition('.')[0] or name}"
    try:
        text = TarImage(shard, text_at * _BLOCK, text_size).read().decode("utf-8-sig") if text_at else ""
        fields = json.loads(TarImage(shard, json_at * _BLOCK, json_size).read()) if json_at else {}
    except UnicodeDecodeError:
        raise InvalidRecord("text that is not in UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidRecord("JSON that cannot be read") from None
    if not isinstance(fields, dict):
        raise InvalidRecord("JSON that is not an object")
    found = TarImage(shard, image_at * _BLOCK, image_size) if image_at and image_size else None
    return Record(fields, text, found, key)
