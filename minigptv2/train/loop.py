"""The training loop of both tasks. finetune writes a model folder; pretrain_vision writes the weights of the tower.

Run it with `minigptv2 train CONFIG`; finetune also runs under `torchrun` and `deepspeed`. To resume a run that was
stopped or killed, repeat the same command: it continues from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from minigptv2.train.identity import Identity, compare_with_output, identity_of
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

_OLD_CHECKPOINT = "checkpoint.pt"  # a pickle, which pretrain_vision wrote before version 0.2
_SEED_STRIDE = 1_000_003  # rank r seeds dropout with seed + r * _SEED_STRIDE


def run(config: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Path | None:
    """Train as the config says. Returns the folder of the result, or None if SIGTERM stopped the run early.

    config: a YAML file or the name of a recipe. overrides: "key=value", applied after the file. smoke: train two steps
    of a tiny model on generated data; the results of an earlier smoke run are deleted first, unless an override sets
    output.
    """
    recipe = read_recipe(config, overrides, smoke)
    with init_distributed(recipe.device, alone=not recipe.deepspeed) as world, ExitStack() as held:
        world.first(lambda: held.enter_context(file_lock(Path(recipe.output), "run")))
        if smoke and world.rank == 0 and not any(o.startswith("output=") for o in overrides):
            _empty(Path(recipe.output))
            if recipe.cache.dir:
                shutil.rmtree(recipe.cache.dir, ignore_errors=True)
        world.barrier()
        torch.manual_seed(recipe.seed)
        if recipe.task == "finetune":
            return finetune(recipe, world)
        if world.size > 1:
            raise UserError(
                f"pretrain_vision was started with {world.size} processes.",
                "It trains in one process.",
                "Run minigptv2 train without torchrun or deepspeed.",
            )
        return pretrain_vision(recipe, world)


def finetune(recipe: Recipe, world: World) -> Path | None:
    """Train the parts in `recipe.trainable` on questions and answers, and save a model folder.

    Returns that folder, or None if SIGTERM stopped the run early. The vision tower stays frozen.
    """
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    _check_zero3(recipe)
    begun, model_folder = has_checkpoint(output) or is_file(output / "model" / CONFIG), output / "model"
    identity, notes = world.first(lambda: _compare(recipe, begun))

    # ---- the model ----
    model, tokenizer, base = load_initial_model(recipe, world, begun)
    _check_save(recipe, base)
    set_trainable(model, recipe)
    dtype = _dtype(recipe, world)
    if recipe.quantize:
        check_quantization(recipe.quantize, world.device, dtype)
    encoder = PromptEncoder.for_model(model, tokenizer)

    # ---- the data ----
    opened = open_mixture(recipe.data, recipe.seed, recipe.optim.global_batch_size)
    _report_problems(recipe, opened[0], world)
    # before `place_on_device`, which may round the weights of the tower to 16 bits
    cache = _cache(recipe, model, opened[0], world)
    place_on_device(model, recipe, world.device, dtype, base is not None)

    # ---- the engine ----
    micro, accumulate = micro_batches(recipe, world.size)
    settings = Settings(
        dtype,
        recipe.optim.name,
        recipe.optim.weight_decay,
        accumulate,
        recipe.optim.max_grad_norm,
        recipe.gradient_checkpointing,
        "pixels" if cache is None else "features",
        recipe.optim.attention_loss_weight,
    )
    model.train()
    model.vision.eval()
    engine = open_engine(model, world, settings, recipe.deepspeed)
    if recipe.compile:
        for layer in model.decoder.model.layers:
            layer.compile(dynamic=True)
    if world.rank:
        torch.manual_seed(recipe.seed + _SEED_STRIDE * world.rank)  # each process draws its own dropout
    progress, resumed = load_checkpoint(output, engine)
    if progress.step >= recipe.max_steps and begun and _saved(model_folder, identity, progress.step):
        if world.rank == 0:
            _report_finished(output, progress, notes)
        return model_folder
    if world.rank == 0:
        identity.save(output)
    targets = Targets(tokenizer.words, model.vision.patches, model.config.patches_per_token)
    stream = open_dataloader(
        recipe.data,
        encoder,
        model.config.box_rounding,
        model.config.vision,
        seed=recipe.seed,
        batch=micro,
        samples_per_step=recipe.optim.global_batch_size,
        start=progress.samples,
        rank=world.rank,
        world=world.size,
        workers=recipe.data.num_workers,
        pack=recipe.data.pack,
        cache=cache,
        opened=opened,
        targets=targets if recipe.optim.attention_loss_weight else None,
    )
    validator = Validator(model, encoder) if recipe.log.eval_every else None
    with StopSignal() as stop, MetricLogger(recipe, world, progress.step) as logger:
        for line in notes + resumed:
            logger.message(line)
        finished = TrainingLoop(recipe, engine, stream, progress, logger, stop, validator).train()
    if not finished:
        stop.end()
        return None
    _save(recipe, engine, tokenizer, model_folder, base)
    if world.rank == 0:
        identity.finished = progress.step
        identity.save(output)
    return model_folder


def pretrain_vision(recipe: Recipe, world: World) -> Path | None:
    """Train the vision tower on drawn scenes (`train/pretrain_vision.py`) and write its weights to recipe.output.

    SIGTERM and Ctrl-C stop the run early; it then also writes a checkpoint and the weights. Returns recipe.output, or
    None after SIGTERM. Raises KeyboardInterrupt after Ctrl-C.
    """
    output, steps = Path(recipe.output), sum(phase.steps for phase in recipe.phases)
    output.mkdir(parents=True, exist_ok=True)
    begun = has_checkpoint(output) or is_file(output / WEIGHTS)
    if is_file(output / _OLD_CHECKPOINT) and not has_checkpoint(output):
        raise UserError(
            f"{output / _OLD_CHECKPOINT} is the checkpoint of an older version, which cannot be resumed.",
            f"Checkpoints are folders in {output / 'checkpoints'} now. {WEIGHTS} next to it can still be read.",
            f"Give another output=..., and init={output} to start from these weights.",
        )
    model = build_dense(recipe, world.device)
    identity, notes = _compare(recipe, begun)
    settings = Settings(
        _dtype(recipe, world), recipe.optim.name, recipe.optim.weight_decay, max_grad_norm=recipe.optim.max_grad_norm
    )
    engine = DenseEngine(model, world, settings, recipe.phases)
    progress, resumed = load_checkpoint(output, engine)
    # without run.json, which records the last saved step, any saved weights count as finished
    weights_are_final = identity.finished == progress.step or not is_file(output / RUN)
    if progress.step >= steps and is_file(output / WEIGHTS) and weights_are_final:
        _report_finished(output, progress, notes)
        return output
    identity.save(output)
    # no validation: it scores answers, and a vision tower alone writes none
    recipe = replace(recipe, max_steps=steps, log=replace(recipe.log, eval_every=0))
    stream = SceneStream(recipe, patch_of(model.tower), progress.step, progress.samples, progress.stream)
    with StopSignal() as stop, MetricLogger(recipe, world, progress.step) as logger:
        for line in (*notes, *resumed, *stream.notes):
            logger.message(line)
        loop = TrainingLoop(recipe, engine, stream, progress, logger, stop, stream_state=stream.state)
        finished = loop.train()
    save_weights(model, output)
    if not finished:
        stop.end()
        return None
    identity.finished = progress.step
    identity.save(output)
    return output


@dataclass
class TrainingLoop:
    """The optimizer steps of one run, with logs, validation and checkpoints.

    stream: the batches of the remaining steps. validator: required if recipe.log.eval_every is not 0. stream_state:
    returns the state of the stream for the checkpoint, as JSON; empty if its position, progress.samples, is enough.
    """

    recipe: Recipe
    engine: Engine
    stream: Iterator[MicroBatch | DenseBatch]
    progress: Progress
    logger: MetricLogger
    stop: StopSignal
    validator: Validator | None = None
    stream_state: Callable[[], dict[str, Any]] = dict

    def train(self) -> bool:
        """Take all remaining steps. Returns False if SIGTERM or Ctrl-C stopped the run early, after a checkpoint."""
        recipe, progress = self.recipe, self.progress
        stopping = False
        while progress.step < recipe.max_steps and not stopping:
            stopping = self._step()
            due = progress.step % recipe.checkpoint.save_every == 0 or progress.step == recipe.max_steps
            if recipe.log.eval_every and progress.step % recipe.log.eval_every == 0:
                self.logger.log_validation(progress.step, self.validator.evaluate())
            if due or stopping:
                progress.stream = self.stream_state()
                save_checkpoint(Path(recipe.output), self.engine, progress, recipe.checkpoint.keep_checkpoints)
        if progress.step < recipe.max_steps:
            self.logger.message(STOPPED.format(progress.step))
        return progress.step >= recipe.max_steps

    def _step(self) -> bool:
        """Take one optimizer step. Returns whether any process received a signal to stop."""
        recipe, engine, progress, optim = self.recipe, self.engine, self.progress, self.recipe.optim
        world = engine.world

        # ---- the data of this step ----
        started = time.perf_counter()
        micros = [next(self.stream) for _ in range(engine.settings.accumulate)]
        waited = time.perf_counter() - started
        tokens, samples, failures, dropped_turns, stopping = world.all_reduce_sum(
            [
                sum(m.supervised for m in micros),
                sum(m.samples for m in micros),
                sum(len(m.failures) for m in micros),
                sum(m.dropped_turns for m in micros),
                self.stop.received,
            ]
        )

        # ---- forward, backward, update ----
        lr = learning_rate(progress.step, recipe.max_steps, optim.lr, optim.min_lr, optim.warmup_steps)
        engine.set_lr(lr)
        guided_steps = optim.attention_guidance_steps
        guidance = max(0.0, 1 - progress.step / guided_steps) if guided_steps else 0.0  # from 1 linearly to 0
        parts_of_loss = []  # for each micro-batch the fields of `Losses` or `DenseMetrics` as one vector
        for micro in micros:
            loss, parts = engine.losses(micro.on(world.device), tokens, guidance)
            engine.backward(loss)
            parts_of_loss.append(torch.stack(parts))
        grad_norm = engine.step()
        if not math.isfinite(grad_norm):
            raise UserError(
                f"The gradients of step {progress.step + 1} are not finite (norm {grad_norm}).",
                "The last checkpoint is from an earlier step.",
                "Run the same command with precision=float32. Or start again with another output, and with a lower "
                "optim.lr or a larger optim.warmup_steps.",
            )

        # ---- count and log ----
        progress.step += 1
        progress.samples += int(samples)
        progress.tokens += int(tokens)
        progress.failures += int(failures)
        if dropped_turns and not progress.dropped_turns:
            self.logger.message(
                "a conversation is longer than the context: its oldest turns are dropped; log.jsonl counts them as "
                "dropped_turns"
            )
        progress.dropped_turns += int(dropped_turns)
        progress.world, progress.batch = world.size, int(samples)
        self.logger.update(samples, tokens, waited)
        if progress.step % recipe.log.log_every == 0:
            metrics = engine.metrics(world.all_reduce_sum(torch.stack(parts_of_loss).sum(0).tolist()))
            self.logger.log_step(progress.step, metrics, grad_norm, lr, progress.failures, progress.dropped_turns)
        return bool(stopping)


# ---- before and after ----


def _empty(output: Path) -> None:
    """Remove the files of an earlier smoke run, but not the lock that this run holds."""
    for path in output.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def _report_finished(output: Path, progress: Progress, notes: list[str]) -> None:
    for line in (*notes, f"{output} is finished after step {progress.step}: nothing was changed"):
        print(line, file=sys.stderr)


def _compare(recipe: Recipe, begun: bool) -> tuple[Identity, list[str]]:
    """The identity of this run, and notes for the user on how it differs from the run in recipe.output."""
    identity = identity_of(recipe)
    return identity, compare_with_output(Path(recipe.output), identity, begun)


def _dtype(recipe: Recipe, world: World) -> torch.dtype:
    """The dtype of matrix products."""
    return getattr(torch, recipe.precision) if recipe.precision else best_dtype(world.device)


def _saved(folder: Path, identity: Identity, step: int) -> bool:
    """Whether `folder` holds the model of this step. Without run.json, which records the step, any model counts."""
    return is_file(folder / CONFIG) and (identity.finished == step or not is_file(folder.parent / RUN))


def _check_zero3(recipe: Recipe) -> None:
    """Raise UserError if the recipe combines ZeRO-3, which shards the weights, with a key that needs all weights."""
    if recipe.deepspeed and zero_stage(read_deepspeed(Path(recipe.deepspeed))) == 3:
        for key, value in (("log.eval_every", recipe.log.eval_every), ("quantize", recipe.quantize)):
            if value:
                raise UserError(
                    f"{key} is {value!r}, and {recipe.deepspeed} shards the weights over the processes (ZeRO-3).",
                    f"{key} needs the full model in each process.",
                    f"Omit {key}, or give deepspeed=zero2.json.",
                )


def _check_save(recipe: Recipe, base: Path | None) -> None:
    if recipe.checkpoint.save == "trainable" and base is None:
        raise UserError(
            f"checkpoint.save is 'trainable', and init is {recipe.init!r}.",
            "The frozen weights must be in a model folder, the base.",
            "Give checkpoint.save=full, or init= a model folder.",
        )


def _report_problems(recipe: Recipe, datasets: list, world: World) -> None:
    """Print the problems that the readers found in their files, and write the counts to output/problems.json."""
    reported, rows = set(), []
    for source, dataset in zip(recipe.data.sources, datasets):
        if world.rank == 0 and id(dataset) not in reported:
            reported.add(id(dataset))
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
        workers=recipe.data.num_workers,
        rank=world.rank,
        world=world.size,
        fast_decode=recipe.data.fast_decode,
    )
    world.barrier()
    return cache


def _save(recipe: Recipe, engine: Engine, tokenizer: Tokenizer, folder: Path, base: Path | None) -> None:
    """Write the model folder. All processes call it, since the weights may be sharded over them."""
    trained, _ = engine.state()
    frozen = engine.frozen(lambda name: "lora_" in name or base is None)
    if engine.world.rank == 0:
        full = None if base is None else base.resolve()
        save_trained(engine.model, tokenizer, folder, trained, frozen, full, recipe.checkpoint.save == "trainable")
    engine.world.barrier()
