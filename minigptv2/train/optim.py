"""Optimizers and the learning-rate schedule of the recipes."""

from math import cos, pi

import torch
from torch import nn

from minigptv2.train.muon import Muon

KERNEL_STEPS = 8.0  # of the stem's kernels, relative to a matrix: batch norms behind them keep their direction alone


def build_optimizers(module: nn.Module, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """The optimizers of one model: "adamw" alone, or "muon" for its projection, the matrices of its blocks and the
    kernels of its convolutions with AdamW for the rest. A kernel of one pixel is a matrix: the one that ends a stem has
    no norm behind it, and what it gives would drown the positions if it took the others' steps.

    Both take the same learning rate: Muon's update is scaled to AdamW's root mean square (arXiv 2502.16982).
    Biases, norms and tables of positions or tokens are not decayed.
    """
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    muon = name == "muon"
    within = (".blocks.", ".layers.", "projector.")
    matrices = [p for n, p in trained if muon and p.ndim == 2 and any(part in n for part in within)]
    matrices += [p for _, p in trained if muon and p.ndim == 4 and p.shape[2:].numel() == 1]
    kernels = [p for _, p in trained if muon and p.ndim == 4 and p.shape[2:].numel() > 1]
    chosen = {id(p) for p in matrices + kernels}
    rest = [(n, p) for n, p in trained if id(p) not in chosen]
    tables = ("pos_embed", "cls_token", "embed_tokens.weight")
    plain = [p for n, p in rest if p.ndim < 2 or n.endswith(tables)]
    decayed = [p for n, p in rest if not (p.ndim < 2 or n.endswith(tables))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if any(g["params"] for g in groups):
        optimizers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98)))
    groups = [{"params": matrices}, {"params": kernels, "scale": KERNEL_STEPS}]
    if chosen:
        optimizers.append(Muon([g for g in groups if g["params"]], lr, weight_decay))
    return optimizers


def learning_rate(step: int, steps: int, peak: float, lowest: float, warmup: int) -> float:
    """Linear warm-up, then a cosine from `peak` to `lowest`, which it reaches at `step == steps`."""
    if step < warmup:
        return lowest + (peak - lowest) * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lowest + (peak - lowest) * 0.5 * (1 + cos(pi * done))


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
