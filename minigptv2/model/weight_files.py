"""Tensors of files, read one at a time: safetensors, and what torch.save wrote (.pth, .bin), whole or in shards.

No code of a file is ever run: pickles are read by torch's weights-only reader, which builds tensors and plain values.
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
_ZIP = b"PK\x03\x04"  # how a file of torch.save begins since torch 1.6; older ones cannot be mapped
_PICKLE = b"\x80"  # and how such an older one does
_HELD = 1 << 22  # bytes that are read of a mapped file before it is mapped anew, so that its pages do not pile up


class Safetensors:
    """A safetensors file. shapes: of all its tensors, by name."""

    def __init__(self, file: Path):
        self.file = file
        with self._opened() as opened:
            self.shapes: dict[str, Shape] = {k: tuple(opened.get_slice(k).get_shape()) for k in opened.keys()}

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._opened() as opened:  # anew for each tensor: a mapped file would hold all that was read of it
            return opened.get_tensor(name)

    def release(self) -> None:
        """Nothing is held."""

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
    """A mapping of names to tensors that torch.save wrote. key: where in the file it is, "" for the file itself."""

    def __init__(self, file: Path, key: str = ""):
        self.file, self.key = file, key
        self._held: dict[str, torch.Tensor] | None = None
        self._read = 0
        self.shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        self.release()

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._mapped and self._read > _HELD:
            self.release()
        tensor = self._tensors()[name]
        self._read += tensor.nbytes
        return tensor

    def release(self) -> None:
        """Give back what is held of the file. The next tensor opens it again."""
        self._held, self._read = None, 0

    def _tensors(self) -> dict[str, torch.Tensor]:
        if self._held is None:
            self._held = self._chosen(self._load())
        return self._held

    def _load(self) -> object:
        try:
            with open(self.file, "rb") as opened:
                start = opened.read(len(_ZIP))
            self._mapped = start == _ZIP
            if not self._mapped and start[:1] != _PICKLE:
                raise ValueError(f"it begins with {start!r}, as no file of torch.save does")
            return torch.load(self.file, map_location="cpu", weights_only=True, mmap=self._mapped)
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes end in any kind of error
            raise _unreadable(self.file, error) from None

    def _chosen(self, content: object) -> dict[str, torch.Tensor]:
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
        elif odd := [k for k, v in content.items() if not isinstance(k, str) or not _plain(v)]:
            bad = f"{odd[0]!r}, which is no plain tensor with a name"
        if bad:
            raise UserError(
                f"{self.file} holds{where} {bad}.",
                "It must hold named tensors and nothing else there.",
                "Give the file as it was published.",
            )
        return dict(content)


class Tensors(Mapping[str, torch.Tensor]):
    """The tensors of several files as one mapping, in the files' order. path: what a user named.

    Only the file that was read last is held open, so reading in order takes little memory.
    """

    def __init__(self, path: Path, files: Sequence[Safetensors | TorchFile]):
        self.path = path
        self._last: Safetensors | TorchFile | None = None
        self.homes: dict[str, Safetensors | TorchFile] = {}
        self.shapes: dict[str, Shape] = {}
        for file in files:
            for name, shape in file.shapes.items():
                if name in self.homes:
                    raise UserError(
                        f"{name} is in {self.homes[name].file.name} and in {file.file.name}.",
                        "A tensor is in one shard.",
                        "Copy the whole folder again.",
                    )
                self.homes[name], self.shapes[name] = file, shape

    def __getitem__(self, name: str) -> torch.Tensor:
        home = self.homes[name]
        if home is not self._last:
            self.release()
            self._last = home
        return home[name]

    def release(self) -> None:
        """Give back what is held of the files."""
        if self._last is not None:
            self._last.release()

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)


def open_file(file: Path, key: str = "") -> Tensors:
    """The tensors of one file. Raises UserError where it does not exist or is damaged."""
    if not is_file(file):
        raise UserError(f"{file} is no file.", "A file of weights was expected.", "Check the path.")
    return Tensors(file, [Safetensors(file) if file.suffix == ".safetensors" else TorchFile(file, key)])


def open_shards(index: Path) -> Tensors:
    """The tensors of all shards that an index file names. Raises UserError that names the first missing shard."""
    folder = index.parent
    try:
        homes = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = list(dict.fromkeys(homes.values()))
        if not all(isinstance(s, str) and Path(s).name == s for s in shards) or not shards:
            raise ValueError("a shard is a file beside it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(
            f"{index} cannot be read: {type(error).__name__}: {error}",
            "It must say which tensor is in which shard.",
            "Copy it again.",
        ) from None
    missing = [s for s in shards if not is_file(folder / s)]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing[:3])}.",
            f"{index.name} names {len(shards)} shards; all must be there.",
            "Copy or download the missing ones.",
        )
    kinds = [Safetensors(folder / s) if s.endswith(".safetensors") else TorchFile(folder / s) for s in shards]
    tensors = Tensors(folder, kinds)
    lost = [name for name in homes if name not in tensors]
    if lost:
        raise UserError(
            f"{homes[lost[0]]} does not hold {lost[0]}.",
            f"{index.name} says that it does.",
            "Copy the whole folder again.",
        )
    return tensors


def overlay(own: Tensors, base: Tensors) -> Tensors:
    """Both as one: of a name that both have, the tensor of `own`."""
    both = Tensors(own.path, [])
    both.homes, both.shapes = base.homes | own.homes, base.shapes | own.shapes
    return both


def _plain(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _unreadable(file: Path, error: Exception) -> UserError:
    """torch's words are long and advise to trust the file; what matters in them is one name or one line."""
    words = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|(TorchScript)", words)
    if named:
        return UserError(
            f"{file} asks to build a {named[1] or named[2]}, which is no tensor.",
            "Files of weights are read without running any code of theirs.",
            "Do not trust this file; get it from the place where it was published.",
        )
    said = (words.split("Unpickler error:")[-1].strip().splitlines() or [""])[0][:200]
    return UserError(
        f"{file} cannot be read: {type(error).__name__}: {said}",
        "It must be a whole file that torch.save wrote.",
        "Download it again, and compare its size with the one where it was published.",
    )
