"""Several data sets as one endless stream: which record of which source stands at each position.

The stream is a function of the seed and the position alone. So it is the same for any number of processes and workers,
and a run that starts at position 40 million reads on exactly where an unbroken one would. Sources are drawn by weight,
by a counter-based generator in blocks; within a source records come without replacement, every epoch in another order.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigptv2.errors import UserError

BLOCK = 1 << 16  # positions whose sources are drawn at once
_SOURCE, _ORDER, _INSTEAD = 1, 2, 3  # what random numbers are drawn for; each has a stream of its own
_WORD = (1 << 64) - 1


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
    """sources: what is mixed. max_bad_share: the run stops where more than this share of the samples could not be used;
    least_judged: samples before that is judged. fast_decode: large JPEGs are decoded at a reduced size, which is several
    times faster; the pixels then differ a little from those that the model is asked with (`images.open_image`)."""

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
        raise NotImplementedError

    def __getitem__(self, position: int) -> tuple[int, int]:
        raise NotImplementedError

    def counts(self, position: int) -> np.ndarray:
        """[sources] how many samples of each source stand before this position."""
        raise NotImplementedError

    def instead(self, position: int, attempt: int) -> tuple[int, int]:
        """Another record of the same source, for one at this position that cannot be used; attempt: from 1 on."""
        raise NotImplementedError


def open_mixture(data: DataConfig, seed: int, samples_per_step: int) -> tuple[list, Mixture]:
    """The data sets of a config, opened, and their mixture. samples_per_step: of all ranks together, so that first_step
    and last_step become positions."""
    raise NotImplementedError
