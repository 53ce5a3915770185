"""Features of the frozen tower for the pictures of any source, written to disk once and read in place of the pictures.

A folder: about.json says which tower made it; each shard is NAME.npy, [n, N, C] float16, and NAME.json with the keys of
its pictures and a checksum, written last. N: patches, C: channels of the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minigptv2.model.vision import VisionTower


@dataclass
class CacheConfig:
    """dir: folder of the features; empty: none are written, and the tower runs at every step. shard_mb: size of one file
    in 2**20 bytes: what a killed build has to compute again. verify: checksums are compared whenever a run begins, which
    reads the whole cache once."""

    dir: str = ""
    shard_mb: int = 256
    verify: bool = True


class FeatureCache:
    """An open cache, which `build_cache` returns."""

    def __getitem__(self, image: Any) -> torch.Tensor:
        """[N, C] float16 of a picture as `Sample.image` gives it. Raises UserError where it could not be read."""
        raise NotImplementedError


def build_cache(
    config: CacheConfig,
    tower: VisionTower,
    datasets: Sequence,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    fast_decode: bool = False,
    batch: int = 32,
) -> FeatureCache:
    """The features of every picture of these data sets; what the folder lacks is computed first, with its rate and ETA.

    Ranks share the work and all return when the cache is complete; a killed build goes on with the next shard. A damaged
    shard is reported and made anew. Raises UserError for a folder that another tower wrote.
    """
    raise NotImplementedError
