"""Merge neighbouring visual tokens and project them to the language model's width.

Source: MiniGPT-v2 (arXiv 2310.09478) section 2: four adjacent tokens are joined and projected by one linear layer.
"""

import torch
from torch import nn


class Projector(nn.Linear):
    """[B, N, C] -> [B, N / merge, D]: `merge` consecutive tokens of the raster order become one."""

    def __init__(self, width: int, merge: int, out: int):
        super().__init__(merge * width, out)
        self.merge = merge

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = features.shape
        return super().forward(features.reshape(batch, tokens // self.merge, self.merge * width))
