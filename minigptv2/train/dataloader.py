"""The data loader: micro-batches of the mixture. Worker processes read, render and encode records and decode images.

Micro-batch m of rank r holds the positions start + m * batch * world + r + world * k of the mixture, for k < batch. So
the samples of all ranks together do not depend on the number of ranks, nor those of a rank on its number of workers.

Shapes: P images of a micro-batch, H = W pixels of the resized image, N patches, C channels of the vision tower.
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

ATTEMPTS = 20  # records of one source that are tried for one position of the mixture
_EXAMPLES = 3


@dataclass
class MicroBatch:
    """The input of one forward pass, and what it is made of.

    batch: with pixels, [P, H, W, 3] uint8, or features, [P, N, C] float16, on the CPU; use `on(device)`.
    samples: records in it. supervised: number of tokens with a loss.
    failures: "name: reason" of every record that could not be used; another record replaces it.
    dropped_turns: turns of long conversations that did not fit the context.
    vision: of the tower that the pixels are for.
    """

    batch: Batch
    samples: int
    supervised: int
    vision: VisionConfig
    failures: list[str] = field(default_factory=list)
    dropped_turns: int = 0

    def on(self, device: torch.device | str) -> Batch:
        """The batch on this device, with pixels normalised to [P, 3, H, W] float32."""
        batch = self.batch.to(device)
        if batch.pixels is not None:
            batch.pixels = normalize(batch.pixels, self.vision.image_mean, self.vision.image_std)
        return batch


class Failures:
    """Counts the records that could not be used.

    limit: maximum fraction of the records tried, 0..1. min_samples: samples before the fraction is checked.
    """

    def __init__(self, limit: float, min_samples: int):
        self.limit, self.min_samples = limit, min_samples
        self.samples = self.count = 0
        self.examples: list[str] = []

    def add(self, samples: int, failures: Sequence[str]) -> None:
        """Count a micro-batch. Raises UserError, with the first failures, if the fraction is over the limit."""
        self.samples += samples
        self.count += len(failures)
        self.examples += failures[: _EXAMPLES - len(self.examples)]
        tried = self.samples + self.count
        if self.samples >= self.min_samples and self.count > self.limit * tried:
            raise UserError(
                f"{self.count} of {tried} records could not be used: {'; '.join(self.examples)}"
                + ("; ..." if self.count > len(self.examples) else "."),
                f"Up to {self.limit:.1%} of them may be so (data.max_failure_rate).",
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
    """An endless iterator over the micro-batches of one rank.

    data: the sources and their options. encoder: of the model. coding: how boxes are rounded; see `boxes`.
    vision: of the tower; images get its size and normalisation.
    seed: of the order of the records, of their wordings and of the questions about generated scenes.
    batch: samples in a micro-batch.
    samples_per_step: of all ranks in one optimizer step, batch * world * (micro-batches in a step). It turns first_step
        and last_step of the sources into positions of the mixture.
    start: position of the mixture to begin at: the number of samples that all ranks together have had.
    rank, world: this process and the number of training processes.
    workers: processes that read ahead; 0: this process reads.
    pack: all rows as one (`packing.pack`); False: padded rows.
    cache: gives features in place of pixels; no image is opened then.
    opened: the result of `open_mixture` for the same data, seed and samples_per_step, where the caller has it already.
    targets: marks the targets of attention supervision in the rows; needs `pack`.

    Raises UserError at once for an invalid config. The iterator raises UserError when too many records cannot be used;
    the caller only has to log `MicroBatch.failures`.
    """
    datasets, mixture = opened or open_mixture(data, seed, samples_per_step)
    mixture.counts(start)  # computed once here and copied to the workers
    micro_batches = _MicroBatches(
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
    return _iterate(micro_batches, workers, Failures(data.max_failure_rate, data.min_samples_before_check))


def encode_sample(sample: Sample, encoder: PromptEncoder, coding: BoxRounding, rng: random.Random) -> EncodedRow:
    """The sample rendered as text and encoded. Raises UserError if it is too long or has no supervised token.

    coding: how boxes are rounded. rng: samples the wordings and references.
    """
    turns = render(sample, coding, rng)
    if not any(turn.role == "assistant" for turn in turns):
        raise UserError("It has no answer.", "A sample to learn from has a question and an answer.", "Leave it out.")
    row = encoder.encode_independent_answers(turns) if sample.side_by_side else encoder.encode(turns)
    if all(label == IGNORE_INDEX for label in row.labels):
        raise UserError("No token of it has a loss.", "A sample to learn from ends with an answer.", "Leave it out.")
    return row


def _iterate(micro_batches: _MicroBatches, workers: int, failures: Failures) -> Iterator[MicroBatch]:
    """The micro-batches, in the same order for any number of workers. A UserError of a worker is raised here."""
    loader = torch.utils.data.DataLoader(
        micro_batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_sigterm_in_worker,
        generator=torch.Generator(),  # by default it draws a seed from the global generator, which dropout uses
    )
    for micro_batch in loader:
        if isinstance(micro_batch, _WorkerError):
            raise UserError(*micro_batch.parts)
        failures.add(micro_batch.samples, micro_batch.failures)
        yield micro_batch


@dataclass
class _WorkerError:
    """The three parts of a worker's UserError. The DataLoader would raise an exception without them."""

    parts: tuple[str, str, str]


@dataclass
class _MicroBatches(torch.utils.data.IterableDataset):
    """The micro-batches of one worker: every num_workers-th of its rank. Fields: see `open_dataloader`."""

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

    def __iter__(self) -> Iterator[MicroBatch | _WorkerError]:
        worker = torch.utils.data.get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            try:
                yield self._micro_batch(number)
            except UserError as error:
                yield _WorkerError((error.given, error.allowed, error.advice))
                return
            number += stride

    def _micro_batch(self, number: int) -> MicroBatch:
        first = self.start + number * self.batch * self.world + self.rank
        failures: list[str] = []
        encoded = [self._row(first + self.world * k, failures) for k in range(self.batch)]
        rows, images = [row for row, _ in encoded], [image for _, images in encoded for image in images]
        batch = packed(rows) if self.pack else collate(rows)
        if images and self.cache is not None:
            batch.features = torch.stack(images)
        elif images:
            batch.pixels = torch.from_numpy(np.stack(images))
        supervised, dropped = int((batch.labels != IGNORE_INDEX).sum()), sum(row.dropped_turns for row in rows)
        return MicroBatch(batch, len(rows), supervised, self.vision, failures, dropped)

    def _row(self, position: int, failures: list[str]) -> tuple[EncodedRow, list]:
        """The row at a position of the mixture, and its images. A record that cannot be used is added to `failures`,
        and another of the same source replaces it."""
        for attempt in range(ATTEMPTS):
            source, index = self.mixture.replacement(position, attempt) if attempt else self.mixture[position]
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
