"""Random access to the records of WebDataset tar shards and parquet files, which are made for sequential reading.

Each file is read once. The positions of its usable records are written to an index next to it; after that `shards[i]`
reads one row of the index and the record itself, for any number of shards. Nothing stays open or in memory, so any
number of processes may read.

An index is a line of JSON, followed by rows of little-endian numbers: `tar.ROW` or `parquet.ROW`.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from minigptv2.data import parquet, tar
from minigptv2.data.annotations import InvalidRecord, Unwanted
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.shard_record import Record, RecordFilter, read_bytes
from minigptv2.errors import UserError, as_user_error
from minigptv2.files import atomic_write, lock_for_reading

# LAYOUT and OPTIONS (see dataset_files.py) of every data set in shards. Tars come first: img2dataset writes parquet
# files without images next to them.
LAYOUT_OF_SHARDS = {"shards": (("*.tar", "*.parquet"),)}
OPTIONS_OF_SHARDS = {"shards": {"shards": "{place}", "images": ""}}

FORMAT = 3  # of the index; an index of another format is rebuilt
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MAX_EXAMPLES = 3


class Shards:
    """The usable records of all shards, by number.

    files: paths, globs, and ranges like `data/{00000..00331}.tar`. record_filter: see `RecordFilter`. purpose:
    distinguishes this filter and its options from others, each of which has an index of its own; it begins with a word
    in a-z. index: the folder of the indexes, "" for the folder of each shard. images, image: of parquet files, see
    `parquet.read_record`.

    Raises UserError if a shard is missing, or if no record can be used.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        record_filter: RecordFilter,
        purpose: str,
        index: str = "",
        images: str = "",
        image: str = "",
    ):
        self.problems = ProblemCounter()
        self._images, self._image = images, image
        digest = hashlib.sha256(repr((purpose, images, image)).encode()).hexdigest()[:8]
        self._purpose = f"{re.match(r'[a-z]*', purpose)[0] or 'all'}-{digest}"
        self._folder = index
        found = _expand([files] if isinstance(files, str) else files)
        self._shards: list[tuple[str, str, int]] = []  # shard, its index, offset of the rows in the index
        self._starts = [0]
        for shard, (file, head, begin) in zip(found, self._indexes(found, record_filter)):
            for problem, (count, examples) in head["problems"].items():
                self.problems.counts[problem] += count
                known = self.problems.examples.setdefault(problem, [])
                known += examples[: _MAX_EXAMPLES - len(known)]
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
        row_format = _format_of(shard).ROW
        row = read_bytes(file, begin + (index - self._starts[number]) * row_format.size, row_format.size)
        if len(row) < row_format.size:
            raise UserError(
                f"{file} has become shorter.", "It is the index of a shard.", "Start again: the index is rebuilt."
            )
        try:
            return self._record(shard, row_format.unpack(row))
        except InvalidRecord as error:
            raise changed(shard, error) from error

    def _record(self, shard: str, row: tuple[int, ...]) -> Record:
        return _format_of(shard).read_record(shard, row, self._images, self._image)

    # ---- the indexes ----

    def _indexes(self, shards: list[str], record_filter: RecordFilter) -> Iterator[tuple[str, dict, int]]:
        """Writes the missing indexes, then yields path, head and offset of the rows of each. Several processes share
        the work: each takes the next shard that no other process holds."""
        from tqdm import tqdm

        missing = [shard for shard in shards if self._open_index(shard) is None]
        for shard in tqdm(missing, "index of shards", disable=None if len(missing) > 1 else True):
            self._write_index(shard, record_filter, wait=False)
        for shard in shards:
            if (opened := self._open_index(shard)) is None:
                self._write_index(shard, record_filter, wait=True)
                opened = self._open_index(shard)
            if opened is None:
                raise UserError(
                    f"The index of {shard} does not match it.",
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
        """Path, head and offset of the rows. None if there is no index, or if the shard has changed since."""
        file = self._index_file(shard)
        try:
            with open(file, "rb") as opened:
                line = opened.readline()
            head = json.loads(line)
            complete = os.path.getsize(file) == len(line) + head["count"] * _format_of(shard).ROW.size
            return (str(file), head, len(line)) if complete and head["of"] == _identity(shard) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _write_index(self, shard: str, record_filter: RecordFilter, wait: bool) -> None:
        """Writes the index of one shard, atomically. Does nothing if another process holds the shard (unless wait) or
        has written the index."""
        with lock_for_reading(shard, wait) as locked:
            if not locked or self._open_index(shard) is not None:
                return
            identity, problems, rows, count = _identity(shard), ProblemCounter(), bytearray(), 0
            shard_format = _format_of(shard)
            for row, name in shard_format.list_rows(shard, problems):
                try:
                    record = self._record(shard, row)
                    if record.image is None:
                        raise InvalidRecord("no image")
                    for problem in record_filter(record):
                        problems.add(problem, f"{Path(shard).name} {name}", dropped=False)
                except InvalidRecord as error:
                    problems.add(str(error), f"{Path(shard).name} {name}", not isinstance(error, Unwanted))
                else:
                    rows += shard_format.ROW.pack(*row)
                    count += 1
            found = {problem: (n, problems.examples[problem]) for problem, n in problems.counts.items()}
            head = {"of": identity, "count": count, "problems": found, "dropped": problems.dropped}
            file = self._index_file(shard)
            with as_user_error(
                f"The index {file} cannot be written.", "Name a writable folder with the option `index`."
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file, shared=True) as new:
                    new.write_bytes(json.dumps(head).encode() + b"\n" + rows)


def changed(key: str, error: InvalidRecord) -> UserError:
    """The error for a record that was usable when its shard was indexed and is not any more."""
    return UserError(
        f"{key} has {error}.",
        "It did not when it was indexed: the shard was changed since.",
        "Start again: the index is rebuilt.",
    )


def _identity(shard: str) -> list:
    state = os.stat(shard)
    return [FORMAT, os.path.basename(shard), state.st_size, state.st_mtime_ns]


def _format_of(shard: str) -> ModuleType:
    """The module that reads a shard, by its suffix."""
    return parquet if shard.endswith(".parquet") else tar


def _expand(patterns: Iterable[str]) -> list[str]:
    """The files of all patterns, each once, in the order of the patterns; those of a glob are sorted. Raises UserError
    for a missing file."""
    files: dict[str, None] = {}
    for pattern in patterns:
        for name in _expand_ranges(pattern):
            found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
            missing = [f for f in found if not os.path.isfile(f)]
            if missing or not found:
                raise UserError(
                    f"There is no shard {missing[0] if missing else name}.",
                    f"The pattern {pattern!r} asks for it.",
                    "Correct the pattern, or download the rest.",
                )
            files |= dict.fromkeys(found)
    return list(files)


def _expand_ranges(pattern: str) -> list[str]:
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
    tails = _expand_ranges(pattern[match.end() :])
    return [pattern[: match.start()] + m + tail for m, tail in itertools.product(middle, tails)]
