"""What the data side of training gains and what its loop costs, each against a plain baseline, measured in one run.

Both ways take turns round by round and the median round of each counts. On a CPU one thread is measured, by the time
that it computes: what else the machine does changes nothing.
"""

from __future__ import annotations

import io
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minigptv2.boxes import BoxRounding
from minigptv2.config import VisionConfig
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.mixture import DataConfig, Mixture, SourceConfig
from minigptv2.data.scenes.dataset import Scenes
from minigptv2.data.scenes.world import draw_scene
from minigptv2.encode import PromptEncoder
from minigptv2.errors import UserError
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.model_folder import load_folder
from minigptv2.packing import Batch
from minigptv2.sample import QuestionAnswer, Sample
from minigptv2.train.checkpoints import Progress
from minigptv2.train.dataloader import MicroBatch, encode_sample, open_dataloader
from minigptv2.train.distributed import StopSignal, World
from minigptv2.train.engine import Engine, Settings
from minigptv2.train.feature_cache import CacheConfig, build_cache
from minigptv2.train.logger import MetricLogger
from minigptv2.train.loop import TrainingLoop
from minigptv2.train.optim import build_optimizers
from minigptv2.train.precision import best_dtype, call_in_dtype
from minigptv2.train.recipe import CheckpointConfig, LogConfig, OptimConfig, Recipe

SIZES = ((1280, 960), (1600, 1200), (2048, 1536), (3000, 2000))  # of the JPEGs, pixels
BATCH = 8
SEED = 1


@dataclass(frozen=True)
class Compared:
    """One comparison. what: its description. rate, plain: samples per second, ours and the baseline's."""

    what: str
    rate: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.rate / self.plain


def bench_data(model: Path, images: int = 16, rounds: int = 3, base: Path | None = None) -> Compared:
    """Samples a second of one core, from JPEGs of 1.2 to 6 megapixels to a normalised batch: the stream with
    fast_decode against a loader of plain PIL and torchvision. model: a folder; its tokenizer and image size are used.
    base, here and below: the model that it was trained from, where it holds only what was trained.
    """
    network, encoder, coding = _open(model, base=base)
    vision = network.config.vision
    with tempfile.TemporaryDirectory() as folder:
        photos = _Photos(Path(folder), images)
        stream = _stream([photos], encoder, coding, vision, fast_decode=True)
        plain = _plain_loader(photos, encoder, coding, vision)
        ours, theirs = _turns(lambda: next(stream).on("cpu"), lambda: next(plain), rounds)
    return Compared(
        "JPEGs over 1 megapixel to a batch, one core: fast_decode against PIL and torchvision", ours, theirs
    )


def bench_cache(
    model: Path,
    scenes: int = 24,
    rounds: int = 3,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    exchanges: int = 10,
    base: Path | None = None,
) -> Compared:
    """Training samples a second with the features of the tower from a cache, against drawing and encoding the scenes at
    every step. exchanges: questions about each; the fewer, the larger the tower's part. The cache is built before the
    clock runs."""
    network, encoder, coding = _open(model, device, base)
    with tempfile.TemporaryDirectory() as folder:
        size = network.config.vision.image_size
        source = [Scenes(scenes, questions_per_scene=exchanges, image_size=size, cache_dir=f"{folder}/things")]
        cache = build_cache(CacheConfig(f"{folder}/cache"), network.vision, source, device=device, dtype=dtype)
        step = _trainer(network, device, dtype)
        vision = network.config.vision
        with_cache, without = (_stream(source, encoder, coding, vision, cache=c) for c in (cache, None))
        ours, theirs = _turns(lambda: step(next(with_cache)), lambda: step(next(without)), rounds, device)
    return Compared("training steps: features from a cache against the tower at every step", ours, theirs)


def bench_packing(
    model: Path,
    scenes: int = 24,
    rounds: int = 3,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    base: Path | None = None,
) -> Compared:
    """Training samples a second with packed rows against padded ones, both with cached features: scenes with ten
    questions each, a quarter of them conversations."""
    network, encoder, coding = _open(model, device, base)
    with tempfile.TemporaryDirectory() as folder:
        size = network.config.vision.image_size
        source = [
            Scenes(
                scenes, questions_per_scene=10, dialogue_fraction=0.25, image_size=size, cache_dir=f"{folder}/things"
            )
        ]
        cache = build_cache(CacheConfig(f"{folder}/cache"), network.vision, source, device=device, dtype=dtype)
        step = _trainer(network, device, dtype)
        packed, padded = (
            _stream(source, encoder, coding, network.config.vision, cache=cache, pack=p) for p in (True, False)
        )
        ours, theirs = _turns(lambda: step(next(packed)), lambda: step(next(padded)), rounds, device)
    return Compared("training steps: packed rows against padded ones", ours, theirs)


def bench_loop(
    model: Path,
    scenes: int = 24,
    rounds: int = 9,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    base: Path | None = None,
) -> Compared:
    """Samples a second of training steps: the whole step of the loop against forward, backward and update alone, on the
    same batches, that lie on the device already."""
    (network, encoder, coding), (other, *_) = _open(model, device, base), _open(model, device, base)
    stream = _stream([Scenes(scenes)], encoder, coding, network.config.vision)
    micros = [next(stream) for _ in range(max(1, scenes // BATCH))]
    step = _trainer(network, device, dtype)
    _trainer(other, device, dtype)
    place = torch.device(device)
    batches = itertools.cycle([(m, m.on(place)) for m in micros])
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            output,
            max_steps=1 << 40,
            checkpoint=CheckpointConfig(save_every=1 << 40),
            log=LogConfig(log_every=1, tensorboard=False),
            optim=OptimConfig(global_batch_size=BATCH, max_grad_norm=0.0, lr=0.0, min_lr=0.0, weight_decay=0.0),
        )
        settings = Settings(dtype or best_dtype(place), "adamw", 0.0, max_grad_norm=0.0)
        engine = Engine(other, World(0, 1, place), settings)
        with (
            redirect_stderr(io.StringIO()),
            MetricLogger(recipe, engine.world, 0) as logger,
        ):  # the progress bar is written to memory, not shown
            loop = TrainingLoop(recipe, engine, itertools.cycle(micros), Progress(), logger, StopSignal())
            ours, theirs = _turns(loop._step, lambda: step(_Ready(next(batches)[1])), rounds, device)
    return Compared("training steps: the loop against forward, backward and update alone", ours, theirs)


@dataclass
class _Ready:
    """A micro-batch that is already on the device."""

    batch: Batch

    def on(self, device: str) -> Batch:
        return self.batch


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype of training's matrix products by its name; None for no name. Raises UserError for another one."""
    if name not in (None, "float32", "bfloat16"):
        raise UserError(
            f"The dtype is {name!r}.",
            "Training multiplies in float32 or bfloat16.",
            "Give one of them.",
        )
    return getattr(torch, name) if name else None


# ---- the two ways ----


def _turns(ours: Callable, plain: Callable, rounds: int, device: str = "cpu") -> tuple[float, float]:
    """Samples a second of each: a first call to warm up, then both in turn; the median of the rounds."""
    clock, threads = time.process_time if device == "cpu" else time.perf_counter, torch.get_num_threads()
    spent: tuple[list[float], list[float]] = ([], [])
    torch.set_num_threads(1 if device == "cpu" else threads)
    try:
        for number in range(rounds + 1):
            for way, times in zip((ours, plain), spent):
                began = clock()
                way()
                if number:
                    times.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    ours_spent, plain_spent = (statistics.median(times) for times in spent)
    return BATCH / ours_spent, BATCH / plain_spent


def _open(
    folder: Path, device: str = "cpu", base: Path | None = None
) -> tuple[GroundingVLM, PromptEncoder, BoxRounding]:
    network, tokenizer = load_folder(folder, base=base)
    return network.to(device), PromptEncoder.for_model(network, tokenizer), network.config.box_rounding


def _stream(
    datasets: list,
    encoder: PromptEncoder,
    coding: BoxRounding,
    vision: VisionConfig,
    fast_decode: bool = False,
    **options,
):
    data = DataConfig([SourceConfig(type(d).__name__) for d in datasets], fast_decode=fast_decode)
    opened = datasets, Mixture(datasets, [1.0] * len(datasets), SEED)
    return open_dataloader(
        data, encoder, coding, vision, seed=SEED, batch=BATCH, samples_per_step=BATCH, opened=opened, **options
    )


def _trainer(network: GroundingVLM, device: str, dtype: torch.dtype | None = None) -> Callable[[MicroBatch], None]:
    """A step of training: projection and language model, AdamW, a learning rate of 0, so that every step costs the same
    and nothing is learned. dtype: of the products; if not given, what this device multiplies fastest."""
    network.requires_grad_(False)
    network.projector.requires_grad_(True)
    network.decoder.requires_grad_(True)
    network.train()
    network.vision.eval()
    dtype = dtype or best_dtype(torch.device(device))
    optimizers = build_optimizers(network, "adamw", 0.0, 0.0)

    def step(micro: MicroBatch) -> None:
        call_in_dtype(network, dtype, micro.on(device)).answer.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def _plain_loader(photos: _Photos, encoder: PromptEncoder, coding: BoxRounding, vision: VisionConfig):
    """Batches as a loader without any of this makes them: PIL decodes, torchvision resizes and normalises."""
    from torchvision import transforms

    to_tensor = transforms.Compose(
        [
            transforms.Resize(
                (vision.image_size, vision.image_size), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
            transforms.Normalize(vision.image_mean, vision.image_std),
        ]
    )
    position, mixture = 0, Mixture([photos], [1.0], SEED)
    while True:
        samples = [photos[mixture[position + k][1]] for k in range(BATCH)]
        rows = [encode_sample(sample, encoder, coding, random.Random(0)) for sample in samples]
        yield rows, torch.stack([to_tensor(Image.open(sample.image).convert("RGB")) for sample in samples])
        position += BATCH


class _Photos:
    """JPEGs of SIZES, drawn scenes with noise at every scale for the detail of photographs, a question about each."""

    def __init__(self, folder: Path, count: int):
        self.problems, self.files = ProblemCounter(), [folder / f"{number}.jpg" for number in range(count)]
        for number, file in enumerate(self.files):
            _photo(number, SIZES[number % len(SIZES)]).save(file, "JPEG", quality=90)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        asked = QuestionAnswer("vqa", question="what is this?", answer="an image")
        return Sample(self.files[index], (0, 0), (asked,), f"photo {index}")


def _photo(number: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(number)
    scene = draw_scene(number).image.resize(size, Image.Resampling.BICUBIC)
    out = np.asarray(scene, np.float32)  # [H, W, 3]
    for grain in (40, 160, 640):
        noise = rng.normal(0, 30 / grain**0.25, (grain * size[1] // size[0], grain)).astype(np.float32)
        out = out + np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))[..., None]
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))
