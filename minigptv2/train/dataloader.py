"""The mixture as batches: records are read, worded and encoded, their images decoded, in as many workers as wanted.

Micro number m of rank r holds the positions start + m * batch * world + r + world * k of the mixture, k < batch: what
the ranks see together does not depend on how many they are, and what one sees does not depend on its workers.

Shapes: P images of a micro, H = W pixels of the squashed image, N patches, C channels of the tower.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from minigptv2.boxes import BoxRounding
from minigptv2.config import VisionConfig
from minigptv2.data.dataset import Dataset
from minigptv2.data.mixture import DataConfig, Mixture, open_mixture
from minigptv2.encode import IGNORE_INDEX, EncodedRow, PromptEncoder
from minigptv2.errors import UserError
from minigptv2.images import load_square, normalize
from minigptv2.packing import Batch, collate
from minigptv2.packing import pack as packed
from minigptv2.sample import Sample
from minigptv2.tasks import render
from minigptv2.train.attention_supervision import Targets
from minigptv2.train.distributed import ignore_sigterm_in_worker
from minigptv2.train.feature_cache import FeatureCache

ATTEMPTS = 20  # records of one source that are tried for one position
_EXAMPLES = 3


@dataclass
class MicroBatch:
    """What one forward takes. batch: its pixels are still bytes, [P, H, W, 3] uint8, its features [P, N, C] float16;
    use `on(device)`. samples: rows in it. supervised: tokens with a loss. failures: "name: reason" of every record
    that could not be used, and that another one stands in for. dropped_turns: of long conversations, that the context
    had no room for. vision: of the tower that the pixels are for."""

    batch: Batch
    samples: int
    supervised: int
    vision: VisionConfig
    failures: list[str] = field(default_factory=list)
    dropped_turns: int = 0

    def on(self, device: torch.device | str) -> Batch:
        """The batch on this device, its pixels normalised there to [P, 3, H, W] float32."""
        batch = self.batch.to(device)
        if batch.pixels is not None:
            batch.pixels = normalize(batch.pixels, self.vision.image_mean, self.vision.image_std)
        return batch


class Failures:
    """Counts what could not be used. `add` raises UserError, with the first examples, once their share of all records
    tried is over `limit`, but not before `least` samples."""

    def __init__(self, limit: float, least: int):
        self.limit, self.least = limit, least
        self.samples = self.count = 0
        self.examples: list[str] = []

    def add(self, samples: int, failures: Sequence[str]) -> None:
        self.samples += samples
        self.count += len(failures)
        self.examples += failures[: _EXAMPLES - len(self.examples)]
        tried = self.samples + self.count
        if self.samples >= self.least and self.count > self.limit * tried:
            raise UserError(
                f"{self.count} of {tried} records could not be used: {'; '.join(self.examples)}"
                + ("; ..." if self.count > len(self.examples) else "."),
                f"Up to {self.limit:.1%} of them may be so (data.max_bad_share).",
                "Look at the data with minigptv2 data check, or raise the limit.",
            )


def open_dataloader(
    data: DataConfig,
    encoder: PromptEncoder,
    coding: BoxRounding,
    vision: VisionConfig,
    *,
    seed: int,
    batch: int,
    samples_per_step: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pack: bool = True,
    cache: FeatureCache | None = None,
    opened: tuple[list[Dataset], Mixture] | None = None,
    targets: Targets | None = None,
) -> Iterator[MicroBatch]:
    """An endless stream of micros of `batch` samples each, for this rank of `world`.

    vision: of the tower; images get its size and normalisation.
    samples_per_step: of all ranks and micros of one optimizer step, batch * world * micros a step; it places first_step
    and last_step of the sources. start: position of the mixture, samples that all ranks together have had. pack: rows
    as one (`packing.pack`) instead of padded. cache: features in place of pixels; no image is opened then. opened:
    what `open_mixture` gave for the same data, seed and samples_per_step, where the caller has it already. targets:
    marks in the rows where their tokens should look; of use with `pack` alone.

    Raises UserError at once for a config that cannot work, and later where too many records cannot be used (`Failures`
    is kept here; the caller need only log `MicroBatch.failures`).
    """
    datasets, mixture = opened or open_mixture(data, seed, samples_per_step)
    mixture.counts(start)  # here, so that no worker has to
    micros = _Micros(
        [s.name for s in data.sources],
        datasets,
        mixture,
        encoder,
        coding,
        vision,
        data.fast_decode,
        seed,
        batch,
        start,
        rank,
        world,
        pack,
        cache,
        targets,
    )
    return _told(micros, workers, Failures(data.max_bad_share, data.least_judged))


def encode_sample(sample: Sample, encoder: PromptEncoder, coding: BoxRounding, rng: random.Random) -> EncodedRow:
    """The sample worded and encoded. Raises UserError where it is too long or nothing of it can be learned."""
    turns = render(sample, coding, rng)
    if not any(turn.role == "assistant" for turn in turns):
        raise UserError("It has no answer.", "A sample to learn from has a question and an answer.", "Leave it out.")
    row = encoder.encode_independent_answers(turns) if sample.side_by_side else encoder.encode(turns)
    if all(label == IGNORE_INDEX for label in row.labels):
        raise UserError("No token of it has a loss.", "A sample to learn from ends with an answer.", "Leave it out.")
    return row


def _told(micros: _Micros, workers: int, failures: Failures) -> Iterator[MicroBatch]:
    """The micros, in order whatever the number of workers; what a worker raised is raised here."""
    loader = torch.utils.data.DataLoader(
        micros,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_sigterm_in_worker,
        generator=torch.Generator(),  # else opening it would draw from the generator that dropout uses
    )
    for micro in loader:
        if isinstance(micro, _Stopped):
            raise UserError(*micro.parts)
        failures.add(micro.samples, micro.failures)
        yield micro


@dataclass
class _Stopped:
    """A UserError on its way out of a worker: an exception loses its parts there."""

    parts: tuple[str, str, str]


@dataclass
class _Micros(torch.utils.data.IterableDataset):
    names: list[str]
    datasets: list[Dataset]
    mixture: Mixture
    encoder: PromptEncoder
    coding: BoxRounding
    vision: VisionConfig
    fast_decode: bool
    seed: int
    batch: int
    start: int
    rank: int
    world: int
    pack: bool
    cache: FeatureCache | None
    targets: Targets | None

    def __iter__(self) -> Iterator[MicroBatch | _Stopped]:
        worker = torch.utils.data.get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            try:
                yield self._micro(number)
            except UserError as error:
                yield _Stopped((error.given, error.allowed, error.advice))
                return
            number += stride

    def _micro(self, number: int) -> MicroBatch:
        first = self.start + number * self.batch * self.world + self.rank
        failures: list[str] = []
        found = [self._row(first + self.world * k, failures) for k in range(self.batch)]
        rows, images = [row for row, _ in found], [p for _, images in found for p in images]
        batch = packed(rows) if self.pack else collate(rows)
        if images and self.cache is not None:
            batch.features = torch.stack(images)
        elif images:
            batch.pixels = torch.from_numpy(np.stack(images))
        supervised, dropped = int((batch.labels != IGNORE_INDEX).sum()), sum(row.dropped_turns for row in rows)
        return MicroBatch(batch, len(rows), supervised, self.vision, failures, dropped)

    def _row(self, position: int, failures: list[str]) -> tuple[EncodedRow, list]:
        """The row of this position and its images, or those of another record where they cannot be used."""
        for attempt in range(ATTEMPTS):
            source, index = self.mixture.instead(position, attempt) if attempt else self.mixture[position]
            dataset, name = self.datasets[source], f"{self.names[source]} {index}"
            rng = random.Random(f"{self.seed}/{position}/{attempt}")
            try:
                sample = dataset.sample(index, rng) if hasattr(dataset, "sample") else dataset[index]
                name = f"{self.names[source]} {sample.key or index}"
                row = encode_sample(sample, self.encoder, self.coding, rng)
                if self.targets is not None:
                    self.targets.mark(row, sample.entities, sample.size)
                return row, [self._image(image) for image in row.images]
            except UserError as error:
                failures.append(f"{name}: {error.given}")
        raise UserError(
            f"{ATTEMPTS} records in a row cannot be used: {'; '.join(failures[-_EXAMPLES:])}",
            f"They are of the source {self.names[source]!r}.",
            "Look at it with minigptv2 data check.",
        )

    def _image(self, image) -> np.ndarray | torch.Tensor:
        """[H, W, 3] uint8, or [N, C] float16 from the cache."""
        if self.cache is not None:
            return self.cache[image]
        return load_square(image, self.vision.image_size, self.fast_decode)
