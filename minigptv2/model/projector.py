"""Merge neighbouring patches and project them to the language model's width.

Source: MiniGPT-v2 (arXiv 2310.09478) section 2: four adjacent tokens are joined and projected by one linear layer.
"""

import torch
from torch import nn


class Projector(nn.Linear):
    """[B, N, C] features -> [B, N / merge, D] visual tokens: `merge` consecutive patches in raster order become one."""

    def __init__(self, width: int, merge: int, out: int):
        super().__init__(merge * width, out)
        self.merge = merge

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, N, C] -> [B, N / merge, D]."""
        batch, patches, width = features.shape
        return super().forward(features.reshape(batch, patches // self.merge, self.merge * width))
