"""The training loop of the backbone and all stages, on one process or many: one recipe in, one model folder out.

`minigptv2 train CONFIG`, also under `torchrun` and `deepspeed`. A run that was stopped or killed goes on where its last
checkpoint was when the same command is given again.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minigptv2.data.mixture import open_mixture
from minigptv2.encode import PromptEncoder
from minigptv2.errors import UserError
from minigptv2.files import LOCK, atomic_write, file_lock, is_file
from minigptv2.model.model_folder import CONFIG, save_trained
from minigptv2.model.quantize import check_quantization
from minigptv2.tokenizer import Tokenizer
from minigptv2.train.attention_supervision import Targets
from minigptv2.train.checkpoints import Progress, has_checkpoint, load_checkpoint, save_checkpoint
from minigptv2.train.dataloader import MicroBatch, open_dataloader
from minigptv2.train.deepspeed import open_engine, read_deepspeed, zero_stage
from minigptv2.train.distributed import STOPPED, StopSignal, World, init_distributed
from minigptv2.train.engine import Engine, Settings
from minigptv2.train.feature_cache import FeatureCache, build_cache
from minigptv2.train.identity import FILE as RUN
from minigptv2.train.identity import Identity, identity_of, take_up
from minigptv2.train.init_model import load_initial_model, place_on_device, set_trainable
from minigptv2.train.logger import MetricLogger
from minigptv2.train.optim import learning_rate
from minigptv2.train.precision import best_dtype
from minigptv2.train.pretrain_vision import (
    WEIGHTS,
    DenseBatch,
    DenseEngine,
    SceneStream,
    build_dense,
    patch_of,
    save_weights,
)
from minigptv2.train.recipe import Recipe, micro_batches, read_recipe
from minigptv2.train.validation import Validator

_OLD_CHECKPOINT = "checkpoint.pt"  # of a backbone, pickled
_RANKS_APART = 1_000_003  # between the seeds of two processes' dropout


def run(config: str | Path, overrides: list[str] = (), smoke: bool = False) -> Path | None:
    """Train what the config says; the folder of the result, or None where SIGTERM stopped the run before its end.

    smoke: two steps of the same on a tiny model and made data. It begins anew, unless an override names its output.
    """
    recipe = read_recipe(config, list(overrides), smoke)
    with init_distributed(recipe.device, alone=not recipe.deepspeed) as world, ExitStack() as held:
        world.first(lambda: held.enter_context(file_lock(Path(recipe.output), "run")))
        if smoke and world.rank == 0 and not any(o.startswith("output=") for o in overrides):
            _empty(Path(recipe.output))
            if recipe.cache.dir:
                shutil.rmtree(recipe.cache.dir, ignore_errors=True)
        world.barrier()
        torch.manual_seed(recipe.seed)
        if recipe.kind == "stage":
            return train_stage(recipe, world)
        if world.size > 1:
            raise UserError(
                f"A backbone was given to {world.size} processes.",
                "The backbone is trained by one.",
                "Run minigptv2 train without torchrun or deepspeed.",
            )
        return pretrain(recipe, world)


def train_stage(recipe: Recipe, world: World) -> Path | None:
    """Prepare what the recipe begins from, take up the last checkpoint, train, and save the model."""
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    _check_divided(recipe)
    begun, model_folder = has_checkpoint(output) or is_file(output / "model" / CONFIG), output / "model"
    identity, compared = world.first(lambda: _compared(recipe, begun))
    model, tokenizer, kept_in = load_initial_model(recipe, world, begun)
    _check_save(recipe, kept_in)
    set_trainable(model, recipe)
    dtype = _dtype(recipe, world)
    if recipe.quantize:
        check_quantization(recipe.quantize, world.device, dtype)
    encoder = PromptEncoder.for_model(model, tokenizer)
    opened = open_mixture(recipe.data, recipe.seed, recipe.batch)
    _tell_problems(recipe, opened[0], world)
    cache = _cache(
        recipe, model, opened[0], world
    )  # by the tower as it was opened: `place_on_device` may round it further
    place_on_device(model, recipe, world.device, dtype, kept_in is not None)

    micro, accumulate = micro_batches(recipe, world.size)
    settings = Settings(
        dtype,
        recipe.optimizer,
        recipe.weight_decay,
        accumulate,
        recipe.clip,
        recipe.gradient_checkpointing,
        "pixels" if cache is None else "features",
        recipe.attention,
    )
    model.train()
    model.vision.eval()
    engine = open_engine(model, world, settings, recipe.deepspeed)
    if recipe.compile:
        for layer in model.decoder.model.layers:
            layer.compile(dynamic=True)
    if world.rank:
        torch.manual_seed(recipe.seed + _RANKS_APART * world.rank)  # each process has a dropout of its own
    progress, said = load_checkpoint(output, engine)
    if progress.step >= recipe.max_steps and begun and _saved(model_folder, identity, progress.step):
        if world.rank == 0:
            for words in (*compared, f"{output} is finished after step {progress.step}: nothing was changed"):
                print(words, file=sys.stderr)
        return model_folder
    if world.rank == 0:
        identity.save(output)
    stream = open_dataloader(
        recipe.data,
        encoder,
        model.config.box_coding,
        model.config.vision,
        seed=recipe.seed,
        batch=micro,
        samples_per_step=recipe.batch,
        start=progress.samples,
        rank=world.rank,
        world=world.size,
        workers=recipe.workers,
        pack=recipe.pack,
        cache=cache,
        opened=opened,
        targets=Targets(tokenizer.words, model.vision.patches, model.config.merge) if recipe.attention else None,
    )
    reading = Validator(model, encoder) if recipe.check_every else None
    with StopSignal() as stop, MetricLogger(recipe, world, progress.step) as logger:
        for words in compared + said:
            logger.message(words)
        ended = Stage(recipe, engine, stream, progress, logger, stop, reading).train()
    if not ended:
        stop.end()
        return None
    _save(recipe, engine, tokenizer, model_folder, kept_in)
    if world.rank == 0:
        identity.finished = progress.step
        identity.save(output)
    return model_folder


def pretrain(recipe: Recipe, world: World) -> Path | None:
    """Train the vision tower on drawn scenes (`train/pretrain_vision.py`); recipe.output gets its weights.

    None where SIGTERM stopped the run before its end. Its checkpoint and weights are then written, too. Ctrl-C ends it
    likewise, and raises KeyboardInterrupt.
    """
    output, steps = Path(recipe.output), sum(phase.steps for phase in recipe.phases)
    output.mkdir(parents=True, exist_ok=True)
    begun = has_checkpoint(output) or is_file(output / WEIGHTS)
    if is_file(output / _OLD_CHECKPOINT) and not has_checkpoint(output):
        raise UserError(
            f"{output / _OLD_CHECKPOINT} is the checkpoint of an older version, which cannot be resumed.",
            f"Checkpoints are folders in {output / 'checkpoints'} now. {WEIGHTS} beside it is still read.",
            f"Give another output=..., and init={output} to begin with these weights.",
        )
    model = build_dense(recipe, world.device)
    identity, compared = _compared(recipe, begun)
    settings = Settings(_dtype(recipe, world), recipe.optimizer, recipe.weight_decay, max_grad_norm=recipe.clip)
    engine = DenseEngine(model, world, settings, recipe.phases)
    progress, said = load_checkpoint(output, engine)
    if (
        progress.step >= steps
        and is_file(output / WEIGHTS)
        and (identity.finished == progress.step or not is_file(output / RUN))
    ):
        for words in (*compared, f"{output} is finished after step {progress.step}: nothing was changed"):
            print(words, file=sys.stderr)
        return output
    identity.save(output)
    recipe = replace(recipe, max_steps=steps, check_every=0)  # it reads answers, which a backbone has none of
    stream = SceneStream(recipe, patch_of(model.tower), progress.step, progress.samples, progress.stream)
    with StopSignal() as stop, MetricLogger(recipe, world, progress.step) as logger:
        for words in (*compared, *said, *stream.said):
            logger.message(words)
        ended = Stage(recipe, engine, stream, progress, logger, stop, stream_state=stream.state).train()
    save_weights(model, output)
    if not ended:
        stop.end()
        return None
    identity.finished = progress.step
    identity.save(output)
    return output


@dataclass
class Stage:
    """A stage, or the backbone, with everything at hand: what is left is to take its steps. stream_state: gives what a
    checkpoint keeps of the stream beside its position."""

    recipe: Recipe
    engine: Engine
    stream: Iterator[MicroBatch | DenseBatch]
    progress: Progress
    logger: MetricLogger
    stop: StopSignal
    reading: Validator | None = None
    stream_state: Callable[[], dict[str, Any]] = dict

    def train(self) -> bool:
        """Take all steps that are left; False where SIGTERM or Ctrl-C came first. A checkpoint is then written, too."""
        recipe, progress = self.recipe, self.progress
        stopping = False
        while progress.step < recipe.max_steps and not stopping:
            stopping = self._step()
            due = progress.step % recipe.save_every == 0 or progress.step == recipe.max_steps
            if recipe.check_every and progress.step % recipe.check_every == 0:
                self.logger.log_validation(progress.step, self.reading.evaluate())
            if due or stopping:
                progress.stream = self.stream_state()
                save_checkpoint(Path(recipe.output), self.engine, progress, recipe.keep)
        if progress.step < recipe.max_steps:
            self.logger.message(STOPPED.format(progress.step))
        return progress.step >= recipe.max_steps

    def _step(self) -> bool:
        """One optimizer step; whether any process was asked to stop."""
        recipe, engine, progress = self.recipe, self.engine, self.progress
        world = engine.world
        began = time.perf_counter()
        micros = [next(self.stream) for _ in range(engine.settings.accumulate)]
        waited = time.perf_counter() - began
        tokens, samples, failures, dropped_turns, stopping = world.all_reduce_sum(
            [
                sum(m.supervised for m in micros),
                sum(m.samples for m in micros),
                sum(len(m.failures) for m in micros),
                sum(m.dropped_turns for m in micros),
                self.stop.received,
            ]
        )
        rate = learning_rate(progress.step, recipe.max_steps, recipe.lr, recipe.lowest_lr, recipe.warmup)
        engine.set_lr(rate)
        logged = (progress.step + 1) % recipe.log_every == 0
        guidance = max(0.0, 1 - progress.step / recipe.guided_steps) if recipe.guided_steps else 0.0
        found = []  # of each micro-batch: what its loss is made of, such as `Losses`, as one vector
        for micro in micros:
            loss, parts = engine.losses(micro.on(world.device), tokens, guidance)
            engine.backward(loss)
            found.append(torch.stack(parts))
        norm = engine.step()
        if not math.isfinite(norm):
            raise UserError(
                f"The gradients of step {progress.step + 1} are not finite (norm {norm}).",
                "Nothing was written after the last checkpoint.",
                "Give precision=float32 and run the same command again; or, with another output, lower lr or lengthen "
                "warmup.",
            )
        progress.step += 1
        progress.samples += int(samples)
        progress.tokens += int(tokens)
        progress.failures += int(failures)
        if dropped_turns and not progress.dropped_turns:
            self.logger.message(
                "the oldest turns of a conversation did not fit the context and are not learned; "
                "log.jsonl counts them as dropped_turns"
            )
        progress.dropped_turns += int(dropped_turns)
        progress.world, progress.batch = world.size, int(samples)
        self.logger.update(samples, tokens, waited)
        if logged:
            readings = engine.metrics(world.all_reduce_sum(torch.stack(found).sum(0).tolist()))
            self.logger.log_step(progress.step, readings, norm, rate, progress.failures, progress.dropped_turns)
        return bool(stopping)


# ---- before and after ----


def _empty(output: Path) -> None:
    """Remove what an earlier smoke run left, but not the lock that this one holds."""
    for left in output.iterdir():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != LOCK:
            left.unlink()


def _compared(recipe: Recipe, begun: bool) -> tuple[Identity, list[str]]:
    identity = identity_of(recipe)
    return identity, take_up(Path(recipe.output), identity, begun)


def _dtype(recipe: Recipe, world: World) -> torch.dtype:
    """Of the products."""
    return getattr(torch, recipe.precision) if recipe.precision else best_dtype(world.device)


def _saved(folder: Path, identity: Identity, step: int) -> bool:
    """Whether the model of this step was saved; where that is unknown, as it was before run.json, any model."""
    return is_file(folder / CONFIG) and (identity.finished == step or not is_file(folder.parent / RUN))


def _check_divided(recipe: Recipe) -> None:
    """Under ZeRO-3 no process has the whole model between two steps."""
    if recipe.deepspeed and zero_stage(read_deepspeed(Path(recipe.deepspeed))) == 3:
        for key, off in (("check_every", 0), ("quantize", "")):
            if (value := getattr(recipe, key)) != off:
                raise UserError(
                    f"{key} is {value!r}, and {recipe.deepspeed} divides the weights among the processes (ZeRO-3).",
                    f"{key} needs the whole model in each of them.",
                    f"Leave {key} away, or give deepspeed=zero2.json.",
                )


def _check_save(recipe: Recipe, kept_in: Path | None) -> None:
    if recipe.save == "small" and kept_in is None:
        raise UserError(
            f"save is 'small', and init is {recipe.init!r}.",
            "What is frozen must be in a model folder, the base.",
            "Give save=whole, or begin from a model folder.",
        )


def _tell_problems(recipe: Recipe, datasets: list, world: World) -> None:
    """What was wrong with the files of the sources, once each: told, and kept in output/problems.json."""
    told, rows = set(), []
    for source, dataset in zip(recipe.data.sources, datasets):
        if world.rank == 0 and id(dataset) not in told:
            told.add(id(dataset))
            for line in dataset.problems.lines():
                print(f"{source.name}: {line}", file=sys.stderr)
            rows.append(
                {
                    "source": source.name,
                    "options": source.options,
                    "records": len(dataset),
                    "problems": dataset.problems.counts,
                }
            )
    if world.rank == 0:
        with atomic_write(Path(recipe.output) / "problems.json") as new:
            new.write_text(json.dumps(rows, indent=2, default=str) + "\n")


def _cache(recipe: Recipe, model, datasets: list, world: World) -> FeatureCache | None:
    if not recipe.cache.dir:
        return None
    cache = build_cache(
        recipe.cache,
        model.vision,
        datasets,
        device=world.device,
        workers=recipe.workers,
        rank=world.rank,
        world=world.size,
        fast_decode=recipe.data.fast_decode,
    )
    world.barrier()
    return cache


def _save(recipe: Recipe, engine: Engine, tokenizer: Tokenizer, folder: Path, kept_in: Path | None) -> None:
    """Write the model's folder. All processes call it, since the weights may be divided among them."""
    trained, _ = engine.state()
    frozen = engine.frozen(lambda name: "lora_" in name or kept_in is None)
    if engine.world.rank == 0:
        base = None if kept_in is None else kept_in.resolve()
        save_trained(engine.model, tokenizer, folder, trained, frozen, base, recipe.save == "small")
    engine.world.barrier()
