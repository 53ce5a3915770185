"""Samples of a parquet file: one a row, with the image in a column, or named by a column.

`ROW`, `list_rows` and `read_record` are what `shards.py` needs of a format; `tar.py` has the same three.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from minigptv2.data.annotations import InvalidRecord, find_image
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.shard_record import Record, file_version
from minigptv2.errors import UserError
from minigptv2.images import SUFFIXES

ROW = struct.Struct("<2I")  # a sample in an index: row group, and row in that group
_IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "picture")


@dataclass(frozen=True)
class ParquetImage:
    """The image in one row of a parquet file. `images.open_image` accepts it."""

    path: str
    group: int
    row: int
    column: str

    def read(self) -> bytes:
        """The bytes of the image file. Raises UserError if the cell does not hold bytes."""
        value = _images(self.path, self.group, self.column)[self.row].as_py()
        if isinstance(value, dict):  # the form of Hugging Face datasets: {"bytes": ..., "path": ...}
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise UserError(
                f"{self} holds no bytes of an image.",
                f"It holds {type(value).__name__}.",
                "Name the column of the images with the option `image`.",
            )
        return value

    open = read  # the name in `images.LazyImage`

    @property
    def key(self) -> str:
        """Identifies the image, for caches. It changes when the file is rewritten."""
        return f"{file_version(self.path)}, row group {self.group}, row {self.row}, {self.column}"

    def __str__(self) -> str:
        return f"{self.path} row group {self.group} row {self.row}"


def _import_pyarrow() -> Any:
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


@lru_cache(8)  # neighbouring rows are often read one after the other
def _fields(path: str, group: int, columns: tuple[str, ...]) -> dict[str, Any]:
    return _row_group(path, group, columns)


@lru_cache(1)  # a row group of images may take hundreds of megabytes
def _images(path: str, group: int, column: str) -> Any:
    return _row_group(path, group, (column,))[column]


def _row_group(path: str, group: int, columns: tuple[str, ...]) -> dict[str, Any]:
    """Columns of one row group. Raises UserError if they cannot be read."""
    pyarrow = _import_pyarrow()
    try:
        # memory-mapped: forked processes would share the position of an open file
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            table = file.read_row_group(group, list(columns), use_threads=False)
            return {name: table.column(name) for name in columns}
    except (pyarrow.ArrowException, OSError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read in row group {group}.", f"pyarrow says: {error}.", "Copy or download it again."
        ) from error


@lru_cache(64)
def _columns(path: str, image: str) -> tuple[tuple[str, ...], str]:
    """The columns without binary data, and the column of the images, "" if there is none. image: its name if given."""
    pyarrow = _import_pyarrow()
    schema = pyarrow.parquet.read_schema(path, memory_map=True)
    if image and image not in schema.names:
        raise UserError(
            f"{path} has no column {image!r}.",
            f"Its columns: {', '.join(schema.names)}.",
            "Name one of them with the option `image`.",
        )
    image = image or next((name for name in _IMAGE_COLUMNS if name in schema.names), "")
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_struct)
    # binary data is read only when the image is opened; a column of paths is text like others
    lazy = {name for name in schema.names if any(is_type(schema.field(name).type) for is_type in binary)}
    return tuple(name for name in schema.names if name not in lazy), image


def list_rows(shard: str, problems: ProblemCounter) -> Iterator[tuple[tuple[int, int], str]]:
    """The index row and the name of every row of the file. Damage is counted."""
    pyarrow = _import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(shard, memory_map=True) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        problems.add("a file that is not a complete parquet file", f"{os.path.basename(shard)} ({error})")
        return
    for group, size in enumerate(sizes):
        try:
            _fields(shard, group, _columns(shard, "")[0])
        except UserError:
            problems.add("a damaged row group of a parquet file", f"{os.path.basename(shard)} row group {group}")
            continue
        for row in range(size):
            yield (group, row), f"row {sum(sizes[:group]) + row}"


def read_record(shard: str, row: tuple[int, ...], images: str = "", image: str = "") -> Record:
    """The sample of an index row.

    images: the folder of the images, where a column names them. image: the name of the images' column, "" for a usual
    one. Raises InvalidRecord if the row names an image that is not in the folder, or holds neither bytes nor a name.
    """
    group, number = row
    columns, column = _columns(shard, image)
    fields = {name: values[number].as_py() for name, values in _fields(shard, group, columns).items()}
    found: Any = None
    if column in fields:
        name = fields[column] if fields[column] is not None else ""
        if not isinstance(name, str | int):
            raise InvalidRecord("an image that is neither bytes nor the name of a file, such as a list")
        name = str(name)
        name = name.split("?")[0].rpartition("/")[2] if "://" in name else name
        if name:
            found = find_image(Path(images), name if name.lower().endswith(SUFFIXES) else f"{name}.jpg")
    elif column:
        found = ParquetImage(shard, group, number, column)
    return Record(fields, "", found, f"{os.path.basename(shard)} row group {group} row {number}")
