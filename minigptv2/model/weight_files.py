"""Tensors of files, read one at a time: safetensors, and files of torch.save (.pth, .bin), in one file or in shards.

No code of a file is run: pickles are read by torch's weights-only unpickler, which builds tensors and plain values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minigptv2.errors import UserError
from minigptv2.files import is_file

Shape = tuple[int, ...]
_ZIP = b"PK\x03\x04"  # the first bytes of a file of torch.save since torch 1.6; older files cannot be memory-mapped
_PICKLE = b"\x80"  # the first byte of such an older file
_REMAP_AFTER = 1 << 22  # bytes read of a mapped file before it is mapped again, which frees the pages read so far


class Safetensors:
    """A safetensors file. shapes: name -> shape, of all its tensors."""

    def __init__(self, file: Path):
        self.file = file
        with self._opened() as opened:
            self.shapes: dict[str, Shape] = {k: tuple(opened.get_slice(k).get_shape()) for k in opened.keys()}

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._opened() as opened:  # for each tensor: an open file keeps all read pages in memory
            return opened.get_tensor(name)

    def release(self) -> None:
        """Nothing to do: the file is open only while a tensor is read."""

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as opened:
                yield opened
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self.file} cannot be read: {error}",
                "It must be a complete safetensors file.",
                "Copy it again.",
            ) from None


class TorchFile:
    """Named tensors in a file of torch.save. key: under which they are stored; "": the file itself is the mapping."""

    def __init__(self, file: Path, key: str = ""):
        self.file, self.key = file, key
        self._held: dict[str, torch.Tensor] | None = None
        self._read = 0
        self.shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        self.release()

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._mapped and self._read > _REMAP_AFTER:
            self.release()
        tensor = self._tensors()[name]
        self._read += tensor.nbytes
        return tensor

    def release(self) -> None:
        """Free the memory of the file. The next tensor opens it again."""
        self._held, self._read = None, 0

    def _tensors(self) -> dict[str, torch.Tensor]:
        if self._held is None:
            self._held = self._select(self._load())
        return self._held

    def _load(self) -> object:
        try:
            with open(self.file, "rb") as opened:
                start = opened.read(len(_ZIP))
            self._mapped = start == _ZIP
            if not self._mapped and start[:1] != _PICKLE:
                raise ValueError(f"it begins with {start!r}; no file of torch.save does")
            return torch.load(self.file, map_location="cpu", weights_only=True, mmap=self._mapped)
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes can raise any exception
            raise _read_error(self.file, error) from None

    def _select(self, content: object) -> dict[str, torch.Tensor]:
        where = f" under {self.key!r}" if self.key else ""
        if self.key:
            found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
            if not isinstance(content, dict) or self.key not in content:
                raise UserError(
                    f"{self.file} has nothing under {self.key!r}; it holds: {found}.",
                    f"The published layout keeps its tensors under {self.key!r}.",
                    "Give the file as it was published or as its training wrote it.",
                )
            content = content[self.key]
        bad = None
        if not isinstance(content, dict) or not content:
            bad = f"{type(content).__name__} instead of a mapping of names to tensors"
        elif odd := [k for k, v in content.items() if not isinstance(k, str) or not _is_plain(v)]:
            bad = f"{odd[0]!r}, which is not a plain tensor with a name"
        if bad:
            raise UserError(
                f"{self.file} holds{where} {bad}.",
                "It must hold only named tensors there.",
                "Give the file as it was published.",
            )
        return dict(content)


class Tensors(Mapping[str, torch.Tensor]):
    """The tensors of several files as one mapping, in the order of the files. path: as the user gave it.

    Only the file that was read last is open, so reading in order needs little memory.
    """

    def __init__(self, path: Path, files: Sequence[Safetensors | TorchFile]):
        self.path = path
        self._last: Safetensors | TorchFile | None = None
        self.files: dict[str, Safetensors | TorchFile] = {}
        self.shapes: dict[str, Shape] = {}
        for file in files:
            for name, shape in file.shapes.items():
                if name in self.files:
                    raise UserError(
                        f"{name} is in {self.files[name].file.name} and in {file.file.name}.",
                        "A tensor is in one shard.",
                        "Copy the whole folder again.",
                    )
                self.files[name], self.shapes[name] = file, shape

    def __getitem__(self, name: str) -> torch.Tensor:
        file = self.files[name]
        if file is not self._last:
            self.release()
            self._last = file
        return file[name]

    def release(self) -> None:
        """Free the memory of the files."""
        if self._last is not None:
            self._last.release()

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def open_file(file: Path, key: str = "") -> Tensors:
    """The tensors of one file. Raises UserError if it does not exist or is damaged."""
    if not is_file(file):
        raise UserError(f"{file} is not a file.", "A file of weights was expected.", "Check the path.")
    return Tensors(file, [Safetensors(file) if file.suffix == ".safetensors" else TorchFile(file, key)])


def open_shards(index: Path) -> Tensors:
    """The tensors of all shards in an index file. Raises UserError that names missing shards."""
    folder = index.parent
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = list(dict.fromkeys(shard_of.values()))
        if not all(isinstance(s, str) and Path(s).name == s for s in shards) or not shards:
            raise ValueError("a shard is a file in the same folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(
            f"{index} cannot be read: {type(error).__name__}: {error}",
            "It must list the shard of each tensor.",
            "Copy it again.",
        ) from None
    missing = [s for s in shards if not is_file(folder / s)]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing[:3])}.",
            f"{index.name} names {len(shards)} shards; all must be there.",
            "Copy or download the missing ones.",
        )
    files = [Safetensors(folder / s) if s.endswith(".safetensors") else TorchFile(folder / s) for s in shards]
    tensors = Tensors(folder, files)
    lost = [name for name in shard_of if name not in tensors]
    if lost:
        raise UserError(
            f"{shard_of[lost[0]]} does not hold {lost[0]}.",
            f"{index.name} says that it does.",
            "Copy the whole folder again.",
        )
    return tensors


def overlay(own: Tensors, base: Tensors) -> Tensors:
    """Both as one mapping; for a name in both, the tensor of `own`."""
    both = Tensors(own.path, [])
    both.files, both.shapes = base.files | own.files, base.shapes | own.shapes
    return both


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _read_error(file: Path, error: Exception) -> UserError:
    """The error for a file that torch cannot read. torch's message is long and advises to trust the file, so only the
    class or the line that matters is taken from it."""
    message = str(error)
    found = re.search(r"GLOBAL ([\w.]+)|(TorchScript)", message)
    if found:
        return UserError(
            f"{file} asks to build a {found[1] or found[2]}, which is not a tensor.",
            "Files of weights are read without running their code.",
            "Do not trust this file; get it from where it was published.",
        )
    reason = (message.split("Unpickler error:")[-1].strip().splitlines() or [""])[0][:200]
    return UserError(
        f"{file} cannot be read: {type(error).__name__}: {reason}",
        "It must be a complete file of torch.save.",
        "Download it again, and compare its size with the published one.",
    )
