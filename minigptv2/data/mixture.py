"""Several data sets as one endless stream: which record of which source stands at each position.

The stream is a function of the seed and the position alone. So it is the same for any number of processes and workers,
and a run that starts at position 40 million reads on exactly where an unbroken one would. Sources are drawn by weight,
by a counter-based generator in blocks; within a source records come without replacement, every epoch in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from minigptv2.data.dataset import Dataset, open_dataset
from minigptv2.errors import UserError

BLOCK = 1 << 16  # positions whose sources are drawn at once
FEISTEL_ROUNDS = 6  # of the shuffling of a source's records
_NOTHING = -1  # the source of a position at which none may be drawn from


@dataclass
class SourceConfig:
    """name: a key of `dataset.DATASETS`, or my_package.module:Class. options: of that reader. weight: its share of the
    samples, relative to the other sources. first_step, last_step: the optimizer steps, counted from 0, that draw from
    it, both included; no last_step: to the end. So a curriculum is several sources, one after the other."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    first_step: int = 0
    last_step: int | None = None


@dataclass
class DataConfig:
    """sources: what is mixed. max_bad_share: the run stops where more than this share of the records could not be
    used: before its first step, where a source's reader dropped more of its records, annotations or other units; later,
    where more samples failed. least_judged: samples before the latter is judged. fast_decode: JPEGs of at least twice
    the image's size are decoded at a half, a quarter or an eighth of theirs, 2 to 8 times faster; the squashed pixels
    then differ from those that the model is asked with by 0.6 to 0.8 of 255 levels on average (photographs of 2
    megapixels)."""

    sources: list[SourceConfig] = field(default_factory=list)
    max_bad_share: float = 0.05
    least_judged: int = 400
    fast_decode: bool = False


class Mixture:
    """`mixture[position] -> (number of the source, index of its record)`, for every position from 0 on.

    datasets: anything with a length. spans: the positions [from, to) at which each source is drawn from; to = None
    means without end. Raises UserError for weights or data sets that cannot be drawn from.
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
        self._shares = []  # for the positions from each edge on: [sources] cumulative weights
        for edge in self._edges:
            active = [w * (first <= edge and (to is None or edge < to)) for w, (first, to) in zip(weights, spans)]
            self._shares.append(np.cumsum(active) if active else np.zeros(1))
        for edge, shares in zip(self._edges, self._shares):
            if not shares[-1] > 0 and (edge == 0 or edge != self._edges[-1]):  # after the last edge the run may be over
                raise UserError(
                    f"From sample {edge} on no source may be drawn from.",
                    "At every step at least one source must have a weight over 0.",
                    "Check weight, first_step and last_step of data.sources.",
                )
        self._before = [np.zeros(len(self.sizes), np.int64)]  # of each block: [sources] samples that precede it
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._keys: dict[tuple[int, int], bytes] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        sources, ordinals = self._block(position // BLOCK)
        source = int(sources[position % BLOCK])
        if source == _NOTHING:
            raise UserError(
                f"At sample {position} no source may be drawn from any more.",
                "All have ended with their last_step.",
                "Train fewer steps, or let a source go on.",
            )
        epoch, index = divmod(int(ordinals[position % BLOCK]), self.sizes[source])
        return source, shuffled(index, self.sizes[source], self._key(source, epoch))

    def counts(self, position: int) -> np.ndarray:
        """[sources] how many samples of each source stand before this position."""
        block = position // BLOCK
        return self._counted(block) + self._count(self._sources(block)[: position % BLOCK])

    def instead(self, position: int, attempt: int) -> tuple[int, int]:
        """Another record of the same source, for one at this position that cannot be used; attempt: from 1 on."""
        source, _ = self[position]
        return source, _number(f"{self.seed} instead {position} {attempt}") % self.sizes[source]

    def _sources(self, block: int) -> np.ndarray:
        """[BLOCK] the source of each position of the block."""
        key = np.array([_number(f"{self.seed} sources"), 0], np.uint64)
        counter = np.array([0, block, 0, 0], np.uint64)
        chance = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(BLOCK)
        first, out = block * BLOCK, np.empty(BLOCK, np.int16)
        ends = [*self._edges[1:], None]
        for edge, end, shares in zip(self._edges, ends, self._shares):
            start, stop = max(edge - first, 0), BLOCK if end is None else min(end - first, BLOCK)
            if start >= stop:
                continue
            if shares[-1] > 0:
                last = int(np.searchsorted(shares, shares[-1]))  # the last source with a weight
                drawn = np.searchsorted(shares, chance[start:stop] * shares[-1], side="right")
                out[start:stop] = np.minimum(drawn, last)
            else:
                out[start:stop] = _NOTHING
        return out

    def _count(self, sources: np.ndarray) -> np.ndarray:
        return np.bincount(sources[sources != _NOTHING], minlength=len(self.sizes))

    def _counted(self, block: int) -> np.ndarray:
        while len(self._before) <= block:
            self._before.append(self._before[-1] + self._count(self._sources(len(self._before) - 1)))
        return self._before[block]

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """[BLOCK] source of each position, and how many samples of that source precede it. The last two are kept."""
        if block not in self._blocks:
            sources, ordinals = self._sources(block), np.zeros(BLOCK, np.int64)
            for source, before in enumerate(self._counted(block)):
                places = np.flatnonzero(sources == source)
                ordinals[places] = before + np.arange(len(places))
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
    """Where the permutation of 0..size-1 that belongs to the key puts this index.

    A Feistel network over the next power of four, walked on until it falls inside: nothing is stored, so that a source
    of 20 million records costs no memory.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(FEISTEL_ROUNDS):
            noise = blake2b(right.to_bytes(8, "little") + bytes([turn]), key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(noise, "little") & mask)
        index = left << half | right
        if index < size:
            return index


def _digest(words: str) -> bytes:
    return blake2b(words.encode(), digest_size=16).digest()


def _number(words: str) -> int:
    return int.from_bytes(_digest(words)[:8], "little")


def open_mixture(data: DataConfig, seed: int, samples_per_step: int) -> tuple[list[Dataset], Mixture]:
    """The data sets of a config, opened, and their mixture. samples_per_step: of all ranks together, so that first_step
    and last_step become positions. Sources that differ only in when they are drawn from share one data set."""
    if not data.sources:
        raise UserError(
            "data.sources is empty.",
            "It lists what is trained on: name, weight and options of each source.",
            "minigptv2 train --help lists recipes to copy from.",
        )
    opened: dict[str, Dataset] = {}
    for source in data.sources:
        if source.first_step < 0 or (source.last_step is not None and source.last_step < source.first_step):
            raise UserError(
                f"The source {source.name!r} has first_step {source.first_step} and last_step {source.last_step}.",
                "Steps are counted from 0, and the last one does not come before the first.",
                "Correct them.",
            )
        which = repr((source.name, source.options))
        if which not in opened:
            opened[which] = open_dataset(source.name, source.options)
            if not len(opened[which]):
                raise UserError(
                    f"The source {source.name!r} has no records.",
                    "; ".join(opened[which].problems.lines()) or "Nothing was left out as wrong.",
                    f"Check its options: {source.options}.",
                )
            _judge(source.name, opened[which], data.max_bad_share)
    datasets = [opened[repr((s.name, s.options))] for s in data.sources]
    spans = [
        (s.first_step * samples_per_step, None if s.last_step is None else (s.last_step + 1) * samples_per_step)
        for s in data.sources
    ]
    return datasets, Mixture(datasets, [s.weight for s in data.sources], seed, spans)


def _judge(name: str, dataset: Dataset, limit: float) -> None:
    """Raise UserError where the reader dropped more than this share of what it looked at."""
    for unit, dropped, seen in dataset.problems.dropped_of_seen(len(dataset)):
        if dropped > limit * seen:
            raise UserError(
                f"{dropped} of {seen} {unit} of the source {name!r} cannot be used: "
                f"{'; '.join(dataset.problems.lines())}.",
                f"Up to {limit:.1%} of them may be so (data.max_bad_share).",
                "Look at the data with minigptv2 data check, or raise the limit.",
            )
