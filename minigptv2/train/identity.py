"""What a run is: its recipe and what it began from, kept in output/run.json. Another run is never taken for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

from minigptv2.errors import UserError
from minigptv2.files import atomic_write, is_dir, is_file
from minigptv2.train.recipe import Recipe

FILE = "run.json"
# keys that may differ when a run is taken up: where and how fast it computes, what it writes, and how long it goes on
RESUMABLE_KEYS = (
    "output",
    "max_steps",
    "workers",
    "device",
    "precision",
    "deepspeed",
    "micro_batch",
    "gradient_checkpointing",
    "compile",
    "pack",
    "cache",
    "log_every",
    "check_every",
    "save_every",
    "keep",
    "tensorboard",
    "wandb",
    "data.max_bad_share",
    "data.least_judged",
    "phases.*.steps",
)
_TOLD = 3  # differences
_LARGE = 1 << 26  # bytes of a file over which its mark is taken of pieces
_PIECES, _PIECE = 64, 1 << 12
_HEADER = 1 << 27  # bytes that the header of a safetensors file may have


@dataclass
class Identity:
    """recipe: every key with its value, nested ones as "data.sources.0.name". contents: of those that name weights or
    data files, what the content is known by. finished: the step whose model stands in output/model; -1: none does."""

    recipe: dict[str, Any]
    contents: dict[str, str] = field(default_factory=dict)
    finished: int = -1

    def differences(self, other: Identity) -> list[str]:
        """ "lr was 0.001 and is 0.01", for every key that may not change; other: what is asked for now. A file is what
        it holds, whatever it is called."""
        known = _flat(asdict(Recipe("")))
        out = []
        for key in dict.fromkeys([*self.recipe, *other.recipe]):
            if any(fnmatchcase(key, free) or key.startswith(free + ".") for free in RESUMABLE_KEYS):
                continue
            old, new = (of.get(key, known.get(key)) for of in (self.recipe, other.recipe))
            marks = self.contents.get(key), other.contents.get(key)
            if marks[0] == marks[1] if None not in marks else old == new:
                continue
            out.append(f"{key} was {old!r} and is {new!r}" if old != new else f"{key} {new!r} has other content")
        return out

    def save(self, output: Path) -> None:
        with atomic_write(output / FILE) as new:
            new.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")


def identity_of(recipe: Recipe) -> Identity:
    """Of a recipe as it was read, before `load_initial_model` fills it in."""
    flat = _flat(json.loads(json.dumps(asdict(recipe), default=str)))
    named = {key: value for key, value in flat.items() if isinstance(value, str) and value}
    weights = {key: Path(named[key]) for key in ("init", "tower", "model.language.name") if key in named}
    files = {key: Path(v) for key, v in named.items() if key.startswith("data.sources.") and is_file(v)}
    contents = {key: mark for key, place in (weights | files).items() if (mark := content_mark(place))}
    return Identity(flat, contents)


def take_up(output: Path, now: Identity, begun: bool) -> list[str]:
    """What to tell about the run that `output` holds, where it has `begun`: written weights or checkpoints. `now` gets
    what is known of it. Raises UserError where that is a run of another recipe."""
    if not begun:
        return []
    try:
        kept = json.loads((output / FILE).read_text(encoding="utf-8"))
        before = Identity(dict(kept["recipe"]), dict(kept["contents"]), int(kept["finished"]))
    except FileNotFoundError:
        return [f"{output} was begun without {FILE}: whether it was by this recipe could not be compared"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{output / FILE} cannot be read ({error}): whether the run is of this recipe could not be compared"]
    if wrong := before.differences(now):
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise UserError(
            f"{output} holds a run of another recipe: {'; '.join(wrong[:_TOLD])}{more}.",
            "A run goes on with what it began with; docs/finetune.md lists the keys that may change.",
            "Give another output=..., or delete the folder to begin anew.",
        )
    now.finished, now.contents = before.finished, before.contents | now.contents
    old, new = (of.recipe.get("max_steps") for of in (before, now))
    return [f"max_steps was {old} and is {new}: the learning rate follows the new one"] if old != new else []


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


def content_mark(place: Path) -> str:
    """What the content of a file is known by, or that of a folder's weights; empty where there is neither. Read are all
    bytes of a small file, a piece of every tensor of a large one."""
    if is_file(place):
        files = [place]
    elif is_dir(place):
        files = sorted(f for kind in ("*.safetensors", "*.bin", "adapter/*.safetensors") for f in place.glob(kind))
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
            for start in [*_tensors(data, size), *(size * place // _PIECES for place in range(_PIECES))]:
                data.seek(start)
                made.update(data.read(_PIECE))
    return made.hexdigest() if files else ""


def _tensors(data, size: int) -> Iterator[int]:
    """Where each tensor of a safetensors file begins; nothing for another file."""
    length = int.from_bytes(data.read(8), "little")
    if length > min(size, _HEADER):
        return
    try:
        header = json.loads(data.read(length))
        starts = [8 + length + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return
    yield from starts
