"""What the loop costs: its steps against the bare arithmetic on the same tensors, measured in one run."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minigptv2.config import LoraConfig
from minigptv2.data.mixture import DataConfig, SourceConfig
from minigptv2.encode import Encoder
from minigptv2.model.checkpoint import load_folder
from minigptv2.train.begin import choose_trained, settle
from minigptv2.train.checkpoints import Progress
from minigptv2.train.engine import Engine, Settings
from minigptv2.train.journal import Journal
from minigptv2.train.launch import StopSignal, choose_device
from minigptv2.train.launch import World as _World
from minigptv2.train.loop import Stage
from minigptv2.train.optim import build_optimizers, set_learning_rate
from minigptv2.train.precision import autocast_in, best_dtype, call_in
from minigptv2.train.recipe import Recipe
from minigptv2.train.stream import Micro, open_stream


@dataclass(frozen=True)
class Measured:
    """what: in words; ratio: of the two times, and how far it went from round to round; goal: what it should keep to."""

    what: str
    ratio: float
    lowest: float
    highest: float
    goal: str


def bench_loop(folder: Path, rounds: int = 5, steps: int = 6, batch: int = 8, device: str = "") -> Measured:
    """Seconds of the loop's steps by those of a bare forward, backward and update, on the same batches.

    Both train the same model; a round measures one after the other, so that a machine that gets slower meets both.
    """
    place = choose_device(device)
    micros = list(itertools.islice(_micros(folder, batch), steps))
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(output, trained=["projector", "lora"], max_steps=10**9, batch=batch, log_every=1,
                        save_every=10**9, tensorboard=False)  # fmt: skip
        recipe.model.lora = LoraConfig(r=8)
        loop, bare = _loop(folder, recipe, micros, place), _bare(folder, recipe, micros, place)
        with loop.journal:
            for micro in micros:  # whatever is done once only
                loop._step()
                bare(micro)
            ratios = []
            for _ in range(rounds):
                alone = _seconds(place, lambda: [bare(m) for m in micros])
                ratios.append(_seconds(place, lambda: [loop._step() for _ in micros]) / alone)
    ratio = statistics.median(ratios)
    return Measured("a step of the loop / forward, backward and update alone", ratio, min(ratios), max(ratios), "1.05")


def _micros(folder: Path, batch: int):
    model, tokenizer = load_folder(folder)
    encoder = Encoder(tokenizer, model.config.prompt, model.image_tokens, model.config.language.max_position_embeddings)
    data = DataConfig([SourceConfig("scenes", options={"count": 256, "exchanges": 8})])
    size = model.config.vision.image_size
    return open_stream(data, encoder, model.config.box_coding, size, seed=1, batch=batch, samples_per_step=batch)


def _model(folder: Path, recipe: Recipe, device: torch.device):
    torch.manual_seed(recipe.seed)
    model, _ = load_folder(folder)
    choose_trained(model, recipe)
    settle(model, recipe, device, best_dtype(device), kept=True)
    model.train()
    model.vision.eval()
    return model


def _loop(folder: Path, recipe: Recipe, micros: list[Micro], device: torch.device) -> Stage:
    settings = Settings(best_dtype(device), recipe.optimizer, recipe.weight_decay, clip=recipe.clip)
    engine = Engine(_model(folder, recipe, device), _World(0, 1, device), settings)
    journal = Journal(recipe, engine.world, 0)
    return Stage(recipe, engine, itertools.cycle(micros), Progress(), journal, StopSignal())


def _bare(folder: Path, recipe: Recipe, micros: list[Micro], device: torch.device) -> Callable[[Micro], None]:
    model, dtype = _model(folder, recipe, device), best_dtype(device)
    optimizers = build_optimizers(model, recipe.optimizer, recipe.lr, recipe.weight_decay)
    set_learning_rate(optimizers, recipe.lowest_lr)
    batches = {id(micro): micro.on(device) for micro in micros}

    def step(micro: Micro) -> None:
        if device.type == "cpu":
            loss = call_in(model, dtype, batches[id(micro)])
        else:
            with autocast_in(device, dtype):
                loss = model(batches[id(micro)])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
