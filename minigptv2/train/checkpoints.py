"""Checkpoints of a run: written atomically; loading never executes code (no pickle).

    output/checkpoints/step-00000250/
        weights.safetensors     the trained weights, float32, and the statistics of trained batch norms
        optimizer.safetensors   the optimizer's state, as "entry/name of the weight"
        random.safetensors      the states of the random number generators, as "cpu/rank" and "cuda/rank"
        progress.json           `Progress`
        checksums.json          SHA-256 of the four

They do not depend on the engine or the number of processes, so a run may resume with others.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from minigptv2.config import from_dict
from minigptv2.errors import UserError
from minigptv2.files import TMP_SUFFIX, hash_file
from minigptv2.train.distributed import World
from minigptv2.train.engine import Engine, State

_NAME = re.compile(r"step-(\d+)")
_CHECKSUMS, _PROGRESS = "checksums.json", "progress.json"


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples taken from the mixture by all processes: the position in it."""
    tokens: int = 0
    """Supervised tokens of these samples."""
    failures: int = 0
    """Records that could not be used."""
    dropped_turns: int = 0
    """Turns of long conversations that did not fit the context."""
    world: int = 1
    """Processes that wrote the checkpoint."""
    batch: int = 0
    """Samples of a step."""
    stream: dict[str, Any] = field(default_factory=dict)
    """What the sample stream needs in addition to its position; empty: nothing."""


def save_checkpoint(output: Path, engine: Engine, progress: Progress, keep: int) -> None:
    """Write the checkpoint of this step and remove all but the newest `keep`. All processes call it."""
    weights, optimizer = engine.state()
    random = {
        f"{generator}/{rank}": state
        for rank, own in enumerate(engine.world.all_gather(_random_state(engine.world)))
        for generator, state in own.items()
    }
    if engine.world.rank == 0:
        try:
            _write(_folder(output, progress.step), weights, optimizer, random, progress)
            for _, folder in _all(output)[keep:]:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(_new(_folder(output, progress.step)), ignore_errors=True)
            raise UserError(
                f"The checkpoint of step {progress.step} cannot be written: {error}",
                f"A checkpoint needs room in {output}; {keep} are kept and one more while it is written.",
                "Make room and run the same command again: it resumes from the checkpoint before.",
            ) from error
    engine.world.barrier()


def load_checkpoint(output: Path, engine: Engine) -> tuple[Progress, list[str]]:
    """Load the newest undamaged checkpoint. Returns the progress, step 0 without one, and lines for the user.

    All processes call it. Raises UserError where every checkpoint is damaged, or is of another model or recipe.
    """
    name, notes = engine.world.broadcast(_choose(output) if engine.world.rank == 0 else None)
    if not name:
        if notes:
            raise UserError(
                f"Every checkpoint in {output} is damaged: {'; '.join(notes)}",
                "A run resumes from its newest undamaged checkpoint.",
                "Delete the folder to start again, or choose another with output=...",
            )
        return Progress(), []
    folder = output / "checkpoints" / name
    weights, optimizer, random = (_read(folder / f"{n}.safetensors") for n in ("weights", "optimizer", "random"))
    progress = from_dict(Progress, json.loads((folder / _PROGRESS).read_text()), str(folder / _PROGRESS))
    if not engine.fits(weights):
        raise UserError(
            f"{folder} is of another model or trains other weights.",
            "A run resumes with the recipe that it began with.",
            "Delete the folder to start again, or choose another with output=...",
        )
    engine.load_state(weights, optimizer)
    if progress.world == engine.world.size:
        _set_random_state(engine.world, random)
    else:
        notes.append(
            f"the checkpoint was written by {progress.world} processes and resumes with {engine.world.size}: the "
            "samples of a step are the same; their order, dropout and the order of sums are not"
        )
    notes.append(f"resumes after step {progress.step}, from {folder}")
    return progress, notes


def _choose(output: Path) -> tuple[str, list[str]]:
    """The name of the newest undamaged checkpoint, or an empty one; and what is wrong with newer ones."""
    notes = []
    for _, folder in _all(output):
        problem = _problem(folder)
        if not problem:
            return folder.name, notes
        notes.append(f"{folder} is damaged ({problem}) and not used")
    return "", notes


def _all(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, the newest first."""
    folders = (output / "checkpoints").glob("step-*")
    found = [(int(m[1]), f) for f in folders if (m := _NAME.fullmatch(f.name))]
    return sorted(found, reverse=True)


def _problem(folder: Path) -> str:
    """What is wrong with a checkpoint; empty: nothing."""
    try:
        expected = json.loads((folder / _CHECKSUMS).read_text())
        for name, checksum in expected.items():
            if _checksum(folder / name) != checksum:
                return f"{name} does not have its checksum"
        return "" if len(expected) == 4 else f"{_CHECKSUMS} is incomplete"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)


def _checksum(file: Path) -> str:
    return hash_file(file, sha256())


def _folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08}"


def _new(folder: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return folder.with_name(folder.name + TMP_SUFFIX)


def has_checkpoint(output: Path) -> bool:
    """Whether there is a checkpoint, damaged or not."""
    return bool(_all(output))


def _write(folder: Path, weights: State, optimizer: State, random: State, progress: Progress) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    new = _new(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name, state in (("weights", weights), ("optimizer", optimizer), ("random", random)):
            save_file({k: v.contiguous().clone() for k, v in state.items()}, new / f"{name}.safetensors")
    except SafetensorError as error:  # raised for a full disk, too
        raise OSError(str(error)) from error
    (new / _PROGRESS).write_text(json.dumps(asdict(progress)))
    checksums = {file.name: _checksum(file) for file in sorted(new.iterdir())}
    (new / _CHECKSUMS).write_text(json.dumps(checksums))
    shutil.rmtree(folder, ignore_errors=True)  # of the same step, written by another run
    new.rename(folder)


def _read(file: Path) -> State:
    from safetensors.torch import load_file

    return load_file(file)


def _random_state(world: World) -> State:
    cuda = {"cuda": torch.cuda.get_rng_state(world.device)} if world.device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _set_random_state(world: World, random: State) -> None:
    if f"cpu/{world.rank}" in random:
        torch.set_rng_state(random[f"cpu/{world.rank}"])
    if world.device.type == "cuda" and f"cuda/{world.rank}" in random:
        torch.cuda.set_rng_state(random[f"cuda/{world.rank}"], world.device)
