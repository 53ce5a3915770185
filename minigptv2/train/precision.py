"""Weights that are trained stay in float32 and are computed with in bfloat16."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from minigptv2.model.meta_init import stays_float32


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied faster than float32 (GPUs, CPUs with AMX or AVX512-BF16), else float32."""
    if device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def call_in_dtype(module: nn.Module, dtype: torch.dtype, *args, **kwargs):
    """`module(*args, **kwargs)` computed in `dtype`, with gradients that reach the float32 weights.

    Cheaper than autocast on a CPU: each weight is cast once a step and activations are never cast back and forth.
    Batch norms keep float32 weights. What is computed anew in the backward pass (gradient
    checkpointing) would find the float32 weights: there autocast is the way.
    """
    if dtype == torch.float32:
        return module(*args, **kwargs)
    keep = {
        f"{name}.{part}"
        for name, child in module.named_modules()
        if stays_float32(child)
        for part in ("weight", "bias")
    }
    weights = {
        name: p.to(dtype)
        for name, p in module.named_parameters()
        if name not in keep and p.is_floating_point() and p.dtype != dtype
    }
    args = [a.to(dtype) if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
    kwargs = {k: a.to(dtype) if torch.is_tensor(a) and a.is_floating_point() else a for k, a in kwargs.items()}
    return functional_call(module, weights, tuple(args), kwargs)


def autocast(device: torch.device, dtype: torch.dtype):
    """A context in which products are computed in `dtype`. Casts are not remembered: under ZeRO-3 that would hold a
    second copy of every weight."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)
