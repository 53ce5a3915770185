"""Several data sets as one endless stream: which record of which source stands at each position.

The stream is a function of the seed and the position alone. So it is the same for any number of processes and workers,
and a run that resumes at position 40 million reads the same samples as an uninterrupted one. Sources are drawn by
weight, by a counter-based generator in blocks; within a source records come without replacement, every epoch in another
order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np

from minigptv2.data.dataset import Dataset, open_dataset
from minigptv2.errors import UserError

BLOCK = 1 << 16  # positions whose sources are drawn at once
FEISTEL_ROUNDS = 6  # of the shuffling of a source's records
_NOTHING = -1  # the source of a position at which none may be drawn from


@dataclass
class SourceConfig:
    """One data set of a mixture."""

    name: str
    """A key of `dataset.DATASETS`, or my_package.module:Class."""
    weight: float = 1.0
    """Sampling weight, relative to the other sources."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of its reader, such as root and split."""
    first_step: int = 0
    """First optimizer step that draws from it, counted from 0."""
    last_step: int | None = None
    """Last optimizer step that draws from it; null: the last step of the run. For a curriculum, list several sources
    with different first_step and last_step."""


@dataclass
class DataConfig:
    """The data sets, how they are mixed and how they are read."""

    RENAMED: ClassVar[dict[str, str]] = {
        "max_bad_share": "max_failure_rate",
        "least_judged": "min_samples_before_check",
    }

    sources: list[SourceConfig] = field(default_factory=list)
    """The data sets that are mixed."""
    include: list[str] = field(default_factory=list)
    """YAML files with more sources, each a list; they are put before `sources`. Paths are relative to the folder of the
    recipe or of the bundled recipes."""
    num_workers: int = 1
    """Data-loading workers of each training process; 0: no workers. Raise it if the progress bar shows more than a few
    per cent of waiting for data."""
    pack: bool = True
    """Several questions about an image, and several short samples, share one row without padding (`packing.pack`);
    false: one padded row each."""
    fast_decode: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never smaller than image_size: 2 to 8 times faster. Pixels
    then differ from those at inference by 0.6 to 0.8 of 255 levels on average (photographs of 2 megapixels)."""
    max_failure_rate: float = 0.05
    """Maximum fraction of unusable data, 0 to 1; above it the run stops. It is checked before the first step for the
    records and annotations that each reader dropped, and during training for samples that failed."""
    min_samples_before_check: int = 400
    """Samples before max_failure_rate is checked during training."""


class Mixture:
    """`mixture[position] -> (index of the source, index of its record)`, for every position from 0 on.

    datasets: only their lengths are used. weights: of the sources, relative to each other.
    spans: the positions [first, end) at which each source may be drawn; end = None: without end. Default: all.

    Raises UserError for an invalid weight, an empty data set, and positions without a source.
    """

    def __init__(
        self,
        datasets: Sequence[Sized],
        weights: Sequence[float],
        seed: int,
        spans: Sequence[tuple[int, int | None]] | None = None,
    ):
        self.sizes, self.seed = [len(d) for d in datasets], seed
        spans = spans or [(0, None)] * len(self.sizes)
        for number, (size, weight) in enumerate(zip(self.sizes, weights, strict=True)):
            if not (weight >= 0 and math.isfinite(weight)):
                raise UserError(
                    f"Source {number} has weight {weight}.",
                    "A weight is a number, 0 or more.",
                    "Correct it.",
                )
            if weight > 0 and not size:
                raise UserError(
                    f"Source {number} has no records.",
                    "Only a source with records can be drawn from.",
                    "Check its options, or remove it.",
                )
        self._edges = sorted({0, *(n for span in spans for n in span if n is not None)})  # where the weights change
        self._cumulative = []  # [sources] cumulative weights, for the positions from each edge on
        for edge in self._edges:
            active = [w * (first <= edge and (end is None or edge < end)) for w, (first, end) in zip(weights, spans)]
            self._cumulative.append(np.cumsum(active) if active else np.zeros(1))
        for edge, cumulative in zip(self._edges, self._cumulative):
            if not cumulative[-1] > 0 and (edge == 0 or edge != self._edges[-1]):  # the run may end at the last edge
                raise UserError(
                    f"From sample {edge} on no source may be drawn from.",
                    "At every step at least one source must have a weight over 0.",
                    "Check weight, first_step and last_step of data.sources.",
                )
        self._before = [np.zeros(len(self.sizes), np.int64)]  # [sources] samples that precede each block
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._keys: dict[tuple[int, int], bytes] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        sources, ordinals = self._block(position // BLOCK)
        source = int(sources[position % BLOCK])
        if source == _NOTHING:
            raise UserError(
                f"At sample {position} no source may be drawn from any more.",
                "The last_step of every source is over.",
                "Train fewer steps, or raise the last_step of a source.",
            )
        epoch, index = divmod(int(ordinals[position % BLOCK]), self.sizes[source])
        return source, shuffled(index, self.sizes[source], self._key(source, epoch))

    def counts(self, position: int) -> np.ndarray:
        """[sources] number of samples of each source before this position."""
        block = position // BLOCK
        return self._counted(block) + self._count(self._sources(block)[: position % BLOCK])

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Another record of the same source, where the one at this position cannot be used. attempt: counted from 1."""
        source, _ = self[position]
        return source, _number(f"{self.seed} instead {position} {attempt}") % self.sizes[source]

    def _sources(self, block: int) -> np.ndarray:
        """[BLOCK] index of the source at each position of the block."""
        key = np.array([_number(f"{self.seed} sources"), 0], np.uint64)
        counter = np.array([0, block, 0, 0], np.uint64)
        uniform = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(BLOCK)
        first, out = block * BLOCK, np.empty(BLOCK, np.int16)
        ends = [*self._edges[1:], None]
        for edge, end, cumulative in zip(self._edges, ends, self._cumulative):
            start, stop = max(edge - first, 0), BLOCK if end is None else min(end - first, BLOCK)
            if start >= stop:
                continue
            if cumulative[-1] > 0:
                last = int(np.searchsorted(cumulative, cumulative[-1]))  # the last source with a weight
                drawn = np.searchsorted(cumulative, uniform[start:stop] * cumulative[-1], side="right")
                out[start:stop] = np.minimum(drawn, last)
            else:
                out[start:stop] = _NOTHING
        return out

    def _count(self, sources: np.ndarray) -> np.ndarray:
        """[sources] number of positions of each source."""
        return np.bincount(sources[sources != _NOTHING], minlength=len(self.sizes))

    def _counted(self, block: int) -> np.ndarray:
        """[sources] number of samples of each source before the block."""
        while len(self._before) <= block:
            self._before.append(self._before[-1] + self._count(self._sources(len(self._before) - 1)))
        return self._before[block]

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """[BLOCK] source of each position, and number of samples of that source before it. The last two blocks are
        cached."""
        if block not in self._blocks:
            sources, ordinals = self._sources(block), np.zeros(BLOCK, np.int64)
            for source, before in enumerate(self._counted(block)):
                positions = np.flatnonzero(sources == source)
                ordinals[positions] = before + np.arange(len(positions))
            while len(self._blocks) > 1:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[block] = sources, ordinals
        return self._blocks[block]

    def _key(self, source: int, epoch: int) -> bytes:
        if (source, epoch) not in self._keys:
            if len(self._keys) > 4 * len(self.sizes):
                self._keys.clear()
            self._keys[source, epoch] = _digest(f"{self.seed} order {source} {epoch}")
        return self._keys[source, epoch]


def shuffled(index: int, size: int, key: bytes) -> int:
    """The image of an index under a random permutation of 0..size-1; the key selects the permutation.

    A Feistel network over the next power of four, applied until the result is below size. It stores nothing, so a
    source of 20 million records costs no memory.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(FEISTEL_ROUNDS):
            noise = blake2b(right.to_bytes(8, "little") + bytes([number]), key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(noise, "little") & mask)
        index = left << half | right
        if index < size:
            return index


def _digest(words: str) -> bytes:
    return blake2b(words.encode(), digest_size=16).digest()


def _number(words: str) -> int:
    return int.from_bytes(_digest(words)[:8], "little")


def open_mixture(data: DataConfig, seed: int, samples_per_step: int) -> tuple[list[Dataset], Mixture]:
    """Open the data sets of a config: one for each source, in order, and their mixture.

    samples_per_step: of all ranks together; it turns first_step and last_step into positions. Sources with the same
    name and options share one data set. Raises UserError for a config, a file or an option that is invalid, and for a
    source without records or with too many that its reader dropped.
    """
    if not data.sources:
        raise UserError(
            "data.sources is empty.",
            "It lists the training data: name, weight and options of each source.",
            "minigptv2 train --help lists recipes to copy from.",
        )
    opened: dict[str, Dataset] = {}
    for source in data.sources:
        if source.first_step < 0 or (source.last_step is not None and source.last_step < source.first_step):
            raise UserError(
                f"The source {source.name!r} has first_step {source.first_step} and last_step {source.last_step}.",
                "Steps are counted from 0, and last_step is not less than first_step.",
                "Correct them.",
            )
        key = repr((source.name, source.options))
        if key not in opened:
            opened[key] = open_dataset(source.name, source.options)
            if not len(opened[key]):
                raise UserError(
                    f"The source {source.name!r} has no records.",
                    "; ".join(opened[key].problems.lines()) or "Its reader dropped none.",
                    f"Check its options: {source.options}.",
                )
            _check_dropped(source.name, opened[key], data.max_failure_rate)
    datasets = [opened[repr((s.name, s.options))] for s in data.sources]
    spans = [
        (s.first_step * samples_per_step, None if s.last_step is None else (s.last_step + 1) * samples_per_step)
        for s in data.sources
    ]
    return datasets, Mixture(datasets, [s.weight for s in data.sources], seed, spans)


def _check_dropped(name: str, dataset: Dataset, limit: float) -> None:
    """Raises UserError if the reader dropped more than this fraction of the records, annotations or other units."""
    for unit, dropped, seen in dataset.problems.dropped_of_seen(len(dataset)):
        if dropped > limit * seen:
            raise UserError(
                f"{dropped} of {seen} {unit} of the source {name!r} cannot be used: "
                f"{'; '.join(dataset.problems.lines())}.",
                f"Up to {limit:.1%} of them may be so (data.max_failure_rate).",
                "Look at the data with minigptv2 data check, or raise the limit.",
            )
