"""Records by number out of webdataset tar shards and parquet files, which are made to be read from end to end.

Each file is gone through once. What is found, where each usable record lies in it, is written to an index beside the
file; after that `shards[i]` reads one row of the index and the record itself, whatever the number of shards. Nothing
stays open or in memory, so any number of processes may read.

An index: a line of JSON, then rows of little-endian numbers. For a tar, block (512 bytes) and size of text, JSON and
image, 0 for what is not there; for parquet, row group and row in it.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
import struct
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from minigptv2.data.annotations import InvalidRecord, Unwanted, find_image
from minigptv2.data.dataset import ProblemCounter
from minigptv2.errors import UserError
from minigptv2.files import atomic_write
from minigptv2.images import SUFFIXES

try:
    import fcntl
except ImportError:  # not on Windows: several processes then make the same index
    fcntl = None

# as every set in shards says it to data/dataset_files.py; beside its tars, img2dataset leaves parquet files without
# images
LAYOUT_OF_SHARDS = {"shards": (("*.tar", "*.parquet"),)}
OPTIONS_OF_SHARDS = {"shards": {"shards": "{place}", "images": ""}}

FORMAT = 3  # of the index; another one is made anew
_BLOCK = 512  # bytes of a tar's header, and what everything in it is aligned to
_TAR, _PARQUET = struct.Struct("<6I"), struct.Struct("<2I")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "picture")
_EXAMPLES = 3


@dataclass(frozen=True)
class TarImage:
    """A file inside an uncompressed tar: `size` bytes from `offset` on. `images.open_image` takes it."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises UserError where the tar is gone or has become shorter."""
        data = _bytes_at(self.path, self.offset, self.size)
        if len(data) < self.size:
            raise UserError(
                f"{self} ends after {len(data)} of {self.size} bytes.",
                "The tar was changed since it was indexed.",
                "Start again, so that its index is made anew.",
            )
        return data

    open = read  # as `images.LazyImage` calls it

    @property
    def key(self) -> str:
        """Another image, another key: a tar that was written anew holds others."""
        return f"{_written(self.path)}, byte {self.offset}, {self.size} bytes"

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}"


@dataclass(frozen=True)
class ParquetImage:
    """The image in one row of a parquet file. `images.open_image` takes it."""

    path: str
    group: int
    row: int
    column: str

    def read(self) -> bytes:
        value = _images(self.path, self.group, self.column)[self.row].as_py()
        if isinstance(value, dict):  # as the datasets library stores an image: bytes and path
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise UserError(
                f"{self} holds no bytes of an image.",
                f"It holds {type(value).__name__}.",
                "Name the right column as `image`.",
            )
        return value

    open = read  # as `images.LazyImage` calls it

    @property
    def key(self) -> str:
        """Another image, another key: a file that was written anew holds others."""
        return f"{_written(self.path)}, row group {self.group}, row {self.row}, {self.column}"

    def __str__(self) -> str:
        return f"{self.path} row group {self.group} row {self.row}"


@dataclass(frozen=True)
class Record:
    """One sample of a shard. fields: of its JSON, or the columns of its row. text: of its .txt, "" where there is
    none. image: a path, or an object that `images.open_image` takes. key: where it lies, for messages."""

    fields: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    image: Any = None
    key: str = ""


# of a record whose image is there: raises InvalidRecord to leave it out; names what is wrong with parts of it
RecordFilter = Callable[[Record], Iterable[str]]


class Shards:
    """The records of all shards that the reader can use, by number.

    files: paths, globs, and ranges like `data/{00000..00331}.tar`. judge: see `RecordFilter`. purpose: what
    distinguishes this judge and its options from others; it begins with a word in a-z, and has an index of its own.
    index: the folder of the indexes, "" for beside each shard. image: the parquet column with the image's bytes,
    its path below `images`, or its address, of which the last part is the name of a file there; "" takes a usual one.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        judge: RecordFilter,
        purpose: str,
        index: str = "",
        images: str = "",
        image: str = "",
    ):
        self.problems = ProblemCounter()
        self._images, self._image = images, image
        told = hashlib.sha256(repr((purpose, images, image)).encode()).hexdigest()[:8]
        self._purpose = f"{re.match(r'[a-z]*', purpose)[0] or 'all'}-{told}"
        self._folder = index
        found = _expand([files] if isinstance(files, str) else files)
        self._shards: list[tuple[str, str, int]] = []  # shard, its index, where the rows begin in that
        self._starts = [0]
        for shard, (file, head, begin) in zip(found, self._indexes(found, judge)):
            for kind, (count, examples) in head["problems"].items():
                self.problems.counts[kind] += count
                kept = self.problems.examples.setdefault(kind, [])
                kept += examples[: _EXAMPLES - len(kept)]
            self.problems.dropped.update(head["dropped"])
            if head["count"]:
                self._shards.append((shard, file, begin))
                self._starts.append(self._starts[-1] + head["count"])
        if not self._shards:
            raise UserError(
                f"None of the {len(found)} shards has a record that can be used.",
                "; ".join(self.problems.lines()) or "They are empty.",
                "Check `files`, and the options that filter.",
            )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        number = bisect_right(self._starts, index) - 1
        shard, file, begin = self._shards[number]
        form = _form(shard)
        row = _bytes_at(file, begin + (index - self._starts[number]) * form.size, form.size)
        if len(row) < form.size:
            raise UserError(
                f"{file} has become shorter.", "It is the index of a shard.", "Start again: it is made anew."
            )
        try:
            return self._record(shard, form.unpack(row))
        except InvalidRecord as error:
            raise changed(shard, error) from error

    def _record(self, shard: str, row: tuple[int, ...]) -> Record:
        if _form(shard) is _PARQUET:
            return _parquet_record(shard, *row, self._image, self._images)
        return _tar_record(shard, row)

    # ---- the indexes ----

    def _indexes(self, shards: list[str], judge: RecordFilter) -> Iterator[tuple[str, dict, int]]:
        """Makes what is missing, then yields path, head and begin of the rows of every shard's index. Several
        processes share the work: each takes the next shard that no other one is at."""
        from tqdm import tqdm

        missing = [shard for shard in shards if self._open_index(shard) is None]
        for shard in tqdm(missing, "index of shards", disable=None if len(missing) > 1 else True):
            self._make(shard, judge, wait=False)
        for shard in shards:
            if (opened := self._open_index(shard)) is None:
                self._make(shard, judge, wait=True)
                opened = self._open_index(shard)
            if opened is None:
                raise UserError(
                    f"The index of {shard} does not fit it.",
                    "The shard was changed while it was read.",
                    "Start again when it is complete.",
                )
            yield opened

    def _index_file(self, shard: str) -> Path:
        if not self._folder:
            return Path(f"{shard}.{self._purpose}.index")
        where = hashlib.sha256(os.path.abspath(shard).encode()).hexdigest()[:12]
        return Path(self._folder, f"{Path(shard).name}.{where}.{self._purpose}.index")

    def _open_index(self, shard: str) -> tuple[str, dict, int] | None:
        """None where there is none, or where it is not of the shard as it is now."""
        file = self._index_file(shard)
        try:
            with open(file, "rb") as opened:
                line = opened.readline()
            head = json.loads(line)
            complete = os.path.getsize(file) == len(line) + head["count"] * _form(shard).size
            return (str(file), head, len(line)) if complete and head["of"] == _identity(shard) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _make(self, shard: str, judge: RecordFilter, wait: bool) -> None:
        """Writes the index of one shard, all at once, unless another process is at it or has done so."""
        with _alone(shard, wait) as alone:
            if not alone or self._open_index(shard) is not None:
                return
            of, problems, rows = _identity(shard), ProblemCounter(), bytearray()
            count, form = 0, _form(shard)
            for row, name in (_parquet_rows if form is _PARQUET else _tar_rows)(shard, problems):
                try:
                    for kind in judge(_imaged(self._record(shard, row))):
                        problems.add(kind, f"{Path(shard).name} {name}", dropped=False)
                except InvalidRecord as error:
                    problems.add(str(error), f"{Path(shard).name} {name}", not isinstance(error, Unwanted))
                else:
                    rows += form.pack(*row)
                    count += 1
            told = {kind: (n, problems.examples[kind]) for kind, n in problems.counts.items()}
            head = {"of": of, "count": count, "problems": told, "dropped": problems.dropped}
            head = json.dumps(head).encode() + b"\n"
            file = self._index_file(shard)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file, shared=True) as new:
                    new.write_bytes(head + rows)
            except OSError as error:
                raise UserError(
                    f"The index {file} cannot be written.",
                    f"The system says: {error.strerror}.",
                    "Name a folder that you may write to as `index`.",
                ) from error


def _imaged(record: Record) -> Record:
    """The record. Raises InvalidRecord where its image is not there."""
    if record.image is None:
        raise InvalidRecord("no image")
    return record


def changed(key: str, error: InvalidRecord) -> UserError:
    """For a record that was usable when the index was made, and is no more."""
    return UserError(
        f"{key} has {error}.",
        "It had not when it was indexed: the shard was changed since.",
        "Start again, so that its index is made anew.",
    )


def _written(path: str) -> str:
    try:
        about = os.stat(path)
    except OSError:
        return f"{path}, which cannot be found"
    return f"{path}, {about.st_size} bytes, {about.st_mtime_ns}"


def _identity(shard: str) -> list:
    state = os.stat(shard)
    return [FORMAT, os.path.basename(shard), state.st_size, state.st_mtime_ns]


class _alone:
    """Holds a lock on a shard; its value says whether it was free. A file system without locks is no obstacle."""

    def __init__(self, shard: str, wait: bool):
        self._shard, self._wait = shard, wait

    def __enter__(self) -> bool:
        self._file = open(self._shard, "rb")
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def __exit__(self, *_) -> None:
        self._file.close()


def _form(shard: str) -> struct.Struct:
    return _PARQUET if shard.endswith(".parquet") else _TAR


def _expand(patterns: Iterable[str]) -> list[str]:
    """The files of all patterns, each once, as given, globs sorted. Raises UserError for what is not there."""
    files: dict[str, None] = {}
    for pattern in patterns:
        for name in _ranges(pattern):
            found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
            lost = [f for f in found if not os.path.isfile(f)]
            if lost or not found:
                raise UserError(
                    f"There is no shard {lost[0] if lost else name}.",
                    f"It is asked for by {pattern!r}.",
                    "Correct the pattern, or download the rest.",
                )
            files |= dict.fromkeys(found)
    return list(files)


def _ranges(pattern: str) -> list[str]:
    """a{08..10}.tar -> a08.tar, a09.tar, a10.tar; a{x,y}.tar -> ax.tar, ay.tar."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    if match[1]:
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise UserError(f"The range {match[0]} ends before it begins.", "It is {first..last}.", "Swap its numbers.")
        middle: Iterable[str] = (f"{n:0{len(match[1])}d}" for n in range(first, last + 1))
    else:
        middle = match[3].split(",")
    tails = _ranges(pattern[match.end() :])
    return [pattern[: match.start()] + m + tail for m, tail in itertools.product(middle, tails)]


def _bytes_at(path: str, offset: int, size: int) -> bytes:
    """Up to `size` bytes; fewer at the end of the file. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:  # opened anew: a position would be shared with forked processes
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read.", f"The system says: {error.strerror}.", "Check that the disk is still there."
        ) from error


# ---- tar ----


_TEXT, _JSON, _IMAGE = range(3)  # places in a row
_KINDS = {".txt": _TEXT, ".json": _JSON} | dict.fromkeys(SUFFIXES, _IMAGE)
_Row = list[int]  # block and size of text, JSON and image


def _tar_rows(shard: str, problems: ProblemCounter) -> Iterator[tuple[tuple[int, ...], str]]:
    """The row and the name of every sample: members of one name, wherever in the shard.

    By WebDataset's rule the name ends at the first dot. Tools write names with dots in them all the same (a.1.jpg with
    a.1.txt), so here it ends at the last dot; see `_joined` for what the rule would have put together beyond that.
    """
    name = os.path.basename(shard)
    rows: dict[tuple[str, str], dict[str, _Row]] = {}  # folder and name by the rule -> name up to the last dot -> row
    others: list[tuple[tuple[str, str], str]] = []  # members of kinds that are not read
    for member in _members(shard, problems):
        folder, _, file = member.name.rpartition("/")
        if file.startswith("."):
            problems.add("a hidden file, as macOS leaves them in archives", f"{name} {member.name}", dropped=False)
            continue
        stem, dot, suffix = file.rpartition(".")
        sample = folder, file.partition(".")[0]
        place = _KINDS.get(f".{suffix.lower()}") if dot else None
        if place is None:
            others.append((sample, member.name))
            continue
        row = rows.setdefault(sample, {}).setdefault(stem, [0] * 6)
        if row[2 * place] or member.size >= 1 << 32:
            kind = "a second member of the same kind and name" if row[2 * place] else "a member of 4 GiB or more"
            problems.add(kind, f"{name} {member.name}")
            continue
        row[2 * place : 2 * place + 2] = member.offset_data // _BLOCK, member.size
    for sample, member in others:
        if sample not in rows:  # else it is a class, features and the like of a sample, not for these readers
            problems.add("a member of a kind that is not read", f"{name} {member}")
    for (folder, first), same in rows.items():
        for stem, row in _joined(first, same, problems, f"{name} {folder}".rstrip()).items():
            if any(row):
                yield tuple(row), f"{folder}/{stem}".lstrip("/")


def _joined(first: str, same: dict[str, _Row], problems: ProblemCounter, where: str) -> dict[str, _Row]:
    """The samples among members whose names agree up to the first dot. first: that name. same: name up to the last
    dot -> row.

    A name with an image and words is a sample. Of the others, 7.image.jpg and 7.caption.txt belong to the sample 7, as
    WebDataset's rule has it, unless a number tells them apart; what finds no place there is counted.
    """
    if len(same) == 1:
        return same
    whole = {stem: row for stem, row in same.items() if row[2 * _IMAGE] and (row[2 * _TEXT] or row[2 * _JSON])}
    loose = {stem: row for stem, row in same.items() if stem not in whole}
    if first not in same and (whole or any(re.search(r"\d", stem[len(first) :]) for stem in loose)):
        return same  # as many samples as names
    base = whole.get(first) or loose.pop(first, None) or [0] * 6
    for stem, row in loose.items():
        for place in (_TEXT, _JSON, _IMAGE):
            part = slice(2 * place, 2 * place + 2)
            if row[2 * place] and not base[2 * place]:
                base[part] = row[part]
            elif row[2 * place]:
                problems.add("a further member of a sample that has one of its kind", f"{where} {stem}", dropped=False)
    return {**whole, first: base}


def _members(shard: str, problems: ProblemCounter) -> Iterator[tarfile.TarInfo]:
    """The whole files in a tar; what is wrong with the tar is counted, and ends it."""
    size, name = os.path.getsize(shard), os.path.basename(shard)
    try:
        tar = tarfile.open(shard, "r:", encoding="utf-8", errors="replace")
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        problems.add("a shard that is no uncompressed tar", f"{name} ({error})")
        return
    with tar:
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, EOFError, ValueError, OSError):
                problems.add("a shard that is damaged or cut short", f"{name} after byte {tar.offset}")
                return
            if member is None:
                break
            if member.offset_data + member.size > size:
                problems.add("a shard that is damaged or cut short", f"{name} in {member.name}")
                return
            if member.isreg() and not member.issparse():
                yield member
        # two blocks of zeros end a tar; tarfile takes whatever it does not understand for the end, too
        end = _bytes_at(shard, tar.offset, _BLOCK)
        if len(end) < _BLOCK or any(end):
            problems.add("a shard that is damaged or cut short", f"{name} after byte {tar.offset}")


def _tar_record(shard: str, row: tuple[int, ...]) -> Record:
    """Raises InvalidRecord for text or JSON that cannot be read."""
    (text_at, text_size), (json_at, json_size), (image_at, image_size) = zip(row[::2], row[1::2])
    first = min(filter(None, (text_at, json_at, image_at)))
    header = _bytes_at(shard, (first - 1) * _BLOCK, 100)  # of a tar's header the name
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
        raise InvalidRecord("JSON that is no object")
    image = TarImage(shard, image_at * _BLOCK, image_size) if image_at and image_size else None
    return Record(fields, text, image, key)


# ---- parquet ----


def _arrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet files cannot be read here.",
            "They are read with pyarrow, which is not installed.",
            'Install it: pip install "minigptv2[parquet]"',
        ) from error
    return pyarrow


@lru_cache(8)  # neighbours are often asked for together
def _words(path: str, group: int, columns: tuple[str, ...]) -> dict[str, Any]:
    return _row_group(path, group, columns)


@lru_cache(1)  # a row group of images may be hundreds of megabytes
def _images(path: str, group: int, column: str) -> Any:
    return _row_group(path, group, (column,))[column]


def _row_group(path: str, group: int, columns: tuple[str, ...]) -> dict[str, Any]:
    """Columns of one row group of a parquet file. Raises UserError."""
    pyarrow = _arrow()
    try:
        # mapped, not opened: a file position would be shared between a process and those that it forks
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            table = file.read_row_group(group, list(columns), use_threads=False)
            return {name: table.column(name) for name in columns}
    except (pyarrow.ArrowException, OSError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read in row group {group}.", f"pyarrow says: {error}.", "Copy or download it again."
        ) from error


@lru_cache(64)
def _columns(path: str, image: str) -> tuple[tuple[str, ...], str]:
    """The columns that are no image, and the one that is, "" where there is none."""
    pyarrow = _arrow()
    schema = pyarrow.parquet.read_schema(path, memory_map=True)
    if image and image not in schema.names:
        raise UserError(
            f"{path} has no column {image!r}.",
            f"Its columns: {', '.join(schema.names)}.",
            "Name one of them as `image`.",
        )
    image = image or next((name for name in _IMAGE_COLUMNS if name in schema.names), "")
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_struct)
    # bytes are read only when the image is opened; a path is a word like others
    lazy = {name for name in schema.names if any(is_so(schema.field(name).type) for is_so in binary)}
    return tuple(name for name in schema.names if name not in lazy), image


def _parquet_rows(shard: str, problems: ProblemCounter) -> Iterator[tuple[tuple[int, int], str]]:
    pyarrow = _arrow()
    try:
        with pyarrow.parquet.ParquetFile(shard, memory_map=True) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        problems.add("a file that is no whole parquet file", f"{os.path.basename(shard)} ({error})")
        return
    for group, size in enumerate(sizes):
        try:
            _words(shard, group, _columns(shard, "")[0])
        except UserError:
            problems.add("a damaged row group of a parquet file", f"{os.path.basename(shard)} row group {group}")
            continue
        for row in range(size):
            yield (group, row), f"row {sum(sizes[:group]) + row}"


def _parquet_record(shard: str, group: int, row: int, column: str, images: str) -> Record:
    columns, column = _columns(shard, column)
    table = _words(shard, group, columns)
    fields = {name: values[row].as_py() for name, values in table.items()}
    image: Any = None
    if column in fields:
        place = fields[column] if fields[column] is not None else ""
        if not isinstance(place, str | int):
            raise InvalidRecord("an image that is neither bytes nor the name of a file, such as a list")
        place = str(place)
        place = place.split("?")[0].rpartition("/")[2] if "://" in place else place
        if place:
            image = find_image(Path(images), place if place.lower().endswith(SUFFIXES) else f"{place}.jpg")
    elif column:
        image = ParquetImage(shard, group, row, column)
    return Record(fields, "", image, f"{os.path.basename(shard)} row group {group} row {row}")
