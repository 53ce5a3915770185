"""The optimizers and the learning-rate schedule of training."""

from math import cos, pi

import torch
from torch import nn

from minigptv2.train.muon import Muon

# step of a convolution kernel relative to that of a matrix; a batch norm after it makes the kernel's scale irrelevant
KERNEL_STEPS = 8.0
# Muon takes 2-D weights whose name contains one of these: the linear layers of the vision tower's blocks (timm names
# them trunk.blocks.N), of the language model's layers (model.layers.N, LoRA's matrices included), and the projector
MATRIX_NAMES = (".blocks.", ".layers.", "projector.")
# tables of vectors, by the end of their name; they are not decayed
TABLE_NAMES = ("pos_embed", "cls_token", "embed_tokens.weight")


def build_optimizers(module: nn.Module, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """The optimizers of all trainable parameters of a model.

    name: "adamw": AdamW alone. "muon": Muon for the matrices and the convolution kernels, AdamW for the rest.
    lr: peak learning rate of both, as Muon's updates are scaled to AdamW's root mean square (arXiv 2502.16982).
    weight_decay: not of biases, norms and tables of positions or tokens.

    Muon selects by shape and name: 2-D weights that MATRIX_NAMES lists, and 4-D weights, which are convolutions. A
    1x1 convolution takes the steps of a matrix: the stem's last one has no norm after it, and with the larger kernel
    step its output would dwarf the position embeddings.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    muon = name == "muon"
    matrices = [p for n, p in trainable if muon and p.ndim == 2 and any(part in n for part in MATRIX_NAMES)]
    matrices += [p for _, p in trainable if muon and p.ndim == 4 and p.shape[2:].numel() == 1]
    kernels = [p for _, p in trainable if muon and p.ndim == 4 and p.shape[2:].numel() > 1]
    chosen = {id(p) for p in matrices + kernels}
    rest = [(n, p) for n, p in trainable if id(p) not in chosen]
    undecayed = [p for n, p in rest if p.ndim < 2 or n.endswith(TABLE_NAMES)]
    decayed = [p for n, p in rest if not (p.ndim < 2 or n.endswith(TABLE_NAMES))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if any(g["params"] for g in groups):
        optimizers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98)))
    groups = [{"params": matrices}, {"params": kernels, "scale": KERNEL_STEPS}]
    if chosen:
        optimizers.append(Muon([g for g in groups if g["params"]], lr, weight_decay))
    return optimizers


def learning_rate(step: int, steps: int, peak: float, min_lr: float, warmup_steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up to `peak`, then a cosine to `min_lr` at `steps`."""
    if step < warmup_steps:
        return min_lr + (peak - min_lr) * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return min_lr + (peak - min_lr) * 0.5 * (1 + cos(pi * progress))


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
