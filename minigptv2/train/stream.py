"""The mixture as batches: records are read, worded and encoded, their pictures decoded, in as many workers as wanted.

Micro number m of rank r holds the positions start + m * batch * world + r + world * k of the mixture, k < batch: what
the ranks see together does not depend on how many they are, and what one sees does not depend on its workers.

Shapes: P pictures of a micro, H = W pixels of the squashed picture, N patches, C channels of the tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from minigptv2.boxes import Coding
from minigptv2.data.mixture import DataConfig
from minigptv2.encode import Batch, Encoder
from minigptv2.train.feature_cache import FeatureCache


@dataclass
class Micro:
    """What one forward takes. batch: its pixels are still bytes, [P, H, W, 3] uint8, its features [P, N, C] float16; use
    `on(device)`. samples: rows in it. supervised: tokens with a loss. failures: "name: reason" of every record that
    could not be used, and that another one stands in for."""

    batch: Batch
    samples: int
    supervised: int
    failures: list[str] = field(default_factory=list)

    def on(self, device: torch.device | str) -> Batch:
        """The batch on this device, its pixels normalised there to [P, 3, H, W] float32."""
        raise NotImplementedError


class Failures:
    """Counts what could not be used. `add` raises UserError, with the first examples, once their share of all samples is
    over `limit`, but not before `least` samples."""

    def __init__(self, limit: float, least: int):
        self.limit, self.least = limit, least
        self.samples = 0
        self.count = 0
        self.examples: list[str] = []

    def add(self, samples: int, failures: list[str]) -> None:
        raise NotImplementedError


def open_stream(
    data: DataConfig,
    encoder: Encoder,
    coding: Coding,
    image_size: int,
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
) -> Iterator[Micro]:
    """An endless stream of micros of `batch` samples each, for this rank of `world`.

    samples_per_step: of all ranks and micros of one optimizer step, batch * world * micros a step; it places first_step
    and last_step of the sources. start: position of the mixture, samples that all ranks together have had. pack: rows
    as one (`encode.pack`) instead of padded. cache: features in place of pixels; no picture is opened then.

    Raises UserError at once for a config that cannot work, and later where too many records cannot be used (`Failures`
    is kept here; the caller need only log `Micro.failures`).
    """
    raise NotImplementedError
