"""Identifies a run by its recipe and hashes of its files (output/run.json). A run resumes only if these match."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

from minigptv2.config import ModelConfig, present_path
from minigptv2.data.dataset import present_source
from minigptv2.errors import UserError
from minigptv2.files import atomic_write, is_dir, is_file
from minigptv2.train.recipe import CheckpointConfig, Recipe

FILE = "run.json"
# keys that may differ when a run resumes: where and how fast it computes, what it writes, and how long it trains
RESUMABLE_KEYS = (
    "output",
    "max_steps",
    "device",
    "precision",
    "deepspeed",
    "gradient_checkpointing",
    "compile",
    "cache",
    "log",
    "checkpoint.save_every",
    "checkpoint.keep_checkpoints",
    "optim.micro_batch_size",
    "data.num_workers",
    "data.pack",
    "data.max_failure_rate",
    "data.min_samples_before_check",
    "phases.*.steps",
)
_SHOWN = 3  # differences in a message
_LARGE = 1 << 26  # bytes; of a larger file only pieces are hashed
_PIECES, _PIECE = 64, 1 << 12
_HEADER = 1 << 27  # bytes that the header of a safetensors file may have


@dataclass
class Identity:
    """What run.json holds."""

    recipe: dict[str, Any]
    """Every key of the recipe with its value; nested ones as "data.sources.0.name"."""
    contents: dict[str, str] = field(default_factory=dict)
    """For each key that names weights or a data file, the hash of the content."""
    finished: int = -1
    """The step whose model is in output/model; -1: there is none."""

    def differences(self, other: Identity) -> list[str]:
        """A line such as "optim.lr was 0.001 and is 0.01" for every key that differs and may not.

        other: of the run that is asked for now. Files are compared by content, not by name.
        """
        known = _flat(asdict(Recipe("")))
        out = []
        for key in dict.fromkeys([*self.recipe, *other.recipe]):
            if any(fnmatchcase(key, free) or key.startswith(free + ".") for free in RESUMABLE_KEYS):
                continue
            old, new = (of.get(key, known.get(key)) for of in (self.recipe, other.recipe))
            hashes = self.contents.get(key), other.contents.get(key)
            if hashes[0] == hashes[1] if None not in hashes else old == new:
                continue
            out.append(f"{key} was {old!r} and is {new!r}" if old != new else f"{key} {new!r} has other content")
        return out

    def save(self, output: Path) -> None:
        """Write run.json to the run's folder, atomically."""
        with atomic_write(output / FILE) as new:
            new.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")


def identity_of(recipe: Recipe) -> Identity:
    """The identity of a recipe as it was read, before `load_initial_model` changes it."""
    flat = _flat(json.loads(json.dumps(asdict(recipe), default=str)))
    flat = _present(flat, flat)
    named = {key: value for key, value in flat.items() if isinstance(value, str) and value}
    weights = {key: Path(named[key]) for key in ("init", "vision_weights", "model.language.name") if key in named}
    files = {key: Path(v) for key, v in named.items() if key.startswith("data.sources.") and is_file(v)}
    contents = {key: found for key, path in (weights | files).items() if (found := content_hash(path))}
    return Identity(flat, contents)


def compare_with_output(output: Path, now: Identity, begun: bool) -> list[str]:
    """Compare `now` with the run that `output` holds. Returns notes for the user; completes `now` from run.json.

    begun: whether that run has written weights or checkpoints. Raises UserError where it has another recipe.
    """
    if not begun:
        return []
    try:
        kept = json.loads((output / FILE).read_text(encoding="utf-8"))
        recipe, contents = (_present(kept[key], kept["recipe"]) for key in ("recipe", "contents"))
        before = Identity(recipe, contents, int(kept["finished"]))
    except FileNotFoundError:
        return [f"{output} has no {FILE}: its recipe could not be compared with this one"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{output / FILE} cannot be read ({error}): its recipe could not be compared with this one"]
    if wrong := before.differences(now):
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{output} holds a run of another recipe: {'; '.join(wrong[:_SHOWN])}{more}.",
            "A run resumes with the recipe that it began with; docs/finetune.md lists the keys that may change.",
            "Give another output=..., or delete the folder to start again.",
        )
    now.finished, now.contents = before.finished, before.contents | now.contents
    old, new = (of.recipe.get("max_steps") for of in (before, now))
    return [f"max_steps was {old} and is {new}: the learning rate follows the new one"] if old != new else []


def _present(flat: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Keys and values as they are called now. recipe: the flat recipe that they belong to, which names the sources."""
    values = {**Recipe.RENAMED_VALUES, "checkpoint.save": CheckpointConfig.RENAMED_VALUES["save"]}
    values |= {f"model.{key}": renamed for key, renamed in ModelConfig.RENAMED_VALUES.items()}
    out = {}
    for old, value in flat.items():
        key = present_path(Recipe, old, quiet=True)
        out[key] = values.get(key, {}).get(value, value) if isinstance(value, str) else value
    nested = _nested(out)
    sources = nested.get("data", {}).get("sources")
    for number, source in sources.items() if isinstance(sources, dict) else ():  # a list where there are none
        name = recipe.get(f"data.sources.{number}.name")
        if isinstance(name, str):
            present, options = present_source(name, source.get("options", {}))
            source |= {key: value for key, value in (("name", present), ("options", options)) if key in source}
    return _flat(nested)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.0.b": 1} -> {"a": {"0": {"b": 1}}}"""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return out


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """{"a": [{"b": 1}], "c": [2]} -> {"a.0.b": 1, "c": [2]}"""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        return {key: list(value) if isinstance(value, tuple) else value}
    out: dict[str, Any] = {}
    for name, part in parts:
        out |= _flat(part, f"{key}.{name}" if key else str(name))
    return out


# ---- what a file holds ----


def content_hash(path: Path) -> str:
    """A hash of the content of a file, or of the weights of a folder; empty where there is neither. It covers all bytes
    of a small file, and a piece of every tensor of a large one."""
    if is_file(path):
        files = [path]
    elif is_dir(path):
        files = sorted(f for name in ("*.safetensors", "*.bin", "adapter/*.safetensors") for f in path.glob(name))
    else:
        return ""
    made = blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        made.update(f"{file.name if len(files) > 1 else ''} {size}".encode())
        with open(file, "rb") as data:
            if size <= _LARGE:
                made.update(data.read())
                continue
            for start in [*_tensors(data, size), *(size * piece // _PIECES for piece in range(_PIECES))]:
                data.seek(start)
                made.update(data.read(_PIECE))
    return made.hexdigest() if files else ""


def _tensors(data, size: int) -> Iterator[int]:
    """The offset of each tensor of a safetensors file; nothing for another file."""
    length = int.from_bytes(data.read(8), "little")
    if length > min(size, _HEADER):
        return
    try:
        header = json.loads(data.read(length))
        starts = [8 + length + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return
    yield from starts
