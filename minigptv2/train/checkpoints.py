"""A run's checkpoints: folders that are there whole or not at all, and that no other program's code runs on reading.

    output/checkpoints/step-00000250/
        weights.safetensors     the trained weights, float32, and batch norms' statistics where these are trained, too
        optimizer.safetensors   the optimizer's state of each, as "entry/name"
        random.safetensors      the state of every process's random numbers, as "kind/rank"
        progress.json           what `Progress` holds
        checksums.json          of the four

They know nothing of the engine or the number of processes that wrote them, so a run may go on with others.
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
    """step: optimizer steps done. samples: taken from the mixture by all processes, its position. tokens: supervised
    ones among them. failures: records that could not be used. dropped_turns: turns of long conversations that the
    context had no room for. world: processes that wrote it. batch: samples a step. stream: what the stream of samples
    needs beside its position to go on; empty where that is all."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    failures: int = 0
    dropped_turns: int = 0
    world: int = 1
    batch: int = 0
    stream: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(output: Path, engine: Engine, progress: Progress, keep: int) -> None:
    """Write the checkpoint of this step and remove all but the newest `keep`. All processes call it."""
    weights, optimizer = engine.state()
    random = {
        f"{kind}/{rank}": state
        for rank, own in enumerate(engine.world.all(_random_state(engine.world)))
        for kind, state in own.items()
    }
    if engine.world.rank == 0:
        try:
            _write(_folder(output, progress.step), weights, optimizer, random, progress)
            for _, folder in _all(output)[keep:]:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(_new(_folder(output, progress.step)), ignore_errors=True)  # room for whoever runs it again
            raise UserError(
                f"The checkpoint of step {progress.step} cannot be written: {error}",
                f"A checkpoint needs room in {output}; {keep} are kept and one more while it is written.",
                "Make room and run the same command again: it goes on from the checkpoint before.",
            ) from error
    engine.world.barrier()


def load_checkpoint(output: Path, engine: Engine) -> tuple[Progress, list[str]]:
    """Take up the newest whole checkpoint, or begin at step 0; and what to tell the user. All processes call it.

    Raises UserError where checkpoints are there but none is whole, or where they are of another model or recipe.
    """
    name, said = engine.world.broadcast(_choose(output) if engine.world.rank == 0 else None)
    if not name:
        if said:
            raise UserError(
                f"No checkpoint in {output} is whole: {'; '.join(said)}",
                "A run goes on from its newest whole one.",
                "Delete the folder to begin again, or choose another with output=...",
            )
        return Progress(), []
    folder = output / "checkpoints" / name
    weights, optimizer, random = (_read(folder / f"{n}.safetensors") for n in ("weights", "optimizer", "random"))
    progress = from_dict(Progress, json.loads((folder / _PROGRESS).read_text()), str(folder / _PROGRESS))
    if not engine.fits(weights):
        raise UserError(
            f"{folder} is of another model or trains other weights.",
            "A run resumes with the recipe that it began with.",
            "Delete the folder to begin again, or choose another with output=...",
        )
    engine.load_state(weights, optimizer)
    if progress.world == engine.world.size:
        _set_random_state(engine.world, random)
    else:
        said.append(
            f"the checkpoint was written by {progress.world} processes and goes on with {engine.world.size}: a step's "
            "samples stay the same, but not who reads which, nor dropout's random numbers, nor the order of sums"
        )
    said.append(f"goes on after step {progress.step}, from {folder}")
    return progress, said


def _choose(output: Path) -> tuple[str, list[str]]:
    """The name of the newest whole checkpoint, or nothing; and what is wrong with newer ones."""
    said = []
    for _, folder in _all(output):
        problem = _problem(folder)
        if not problem:
            return folder.name, said
        said.append(f"{folder} is damaged ({problem}) and not used")
    return "", said


def _all(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, the newest first."""
    folders = (output / "checkpoints").glob("step-*")
    found = [(int(m[1]), f) for f in folders if (m := _NAME.fullmatch(f.name))]
    return sorted(found, reverse=True)


def _problem(folder: Path) -> str:
    """What is wrong with a checkpoint; empty: nothing."""
    try:
        wanted = json.loads((folder / _CHECKSUMS).read_text())
        for name, checksum in wanted.items():
            if _checksum(folder / name) != checksum:
                return f"{name} is not what was written"
        return "" if len(wanted) == 4 else f"{_CHECKSUMS} is incomplete"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)


def _checksum(file: Path) -> str:
    return hash_file(file, sha256())


def _folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08}"


def _new(folder: Path) -> Path:
    """Where a checkpoint is until it is whole."""
    return folder.with_name(folder.name + TMP_SUFFIX)


def has_checkpoint(output: Path) -> bool:
    """Whether there is one, whole or not."""
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
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(str(error)) from error
    (new / _PROGRESS).write_text(json.dumps(asdict(progress)))
    checksums = {file.name: _checksum(file) for file in sorted(new.iterdir())}
    (new / _CHECKSUMS).write_text(json.dumps(checksums))
    shutil.rmtree(folder, ignore_errors=True)  # of the same step, from a run that went another way
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
