"""Mixed precision: trainable weights stay in float32; products are computed in bfloat16."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from minigptv2.model.meta_init import stays_float32


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32 (GPU, CPU with AMX or AVX512-BF16), else float32."""
    if device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def call_in_dtype(module: nn.Module, dtype: torch.dtype, *args, **kwargs):
    """`module(*args, **kwargs)` computed in `dtype`, with gradients for the float32 weights.

    Weights and floating-point arguments are cast to `dtype`; batch norms keep float32 weights. On a CPU this is cheaper
    than autocast: each weight is cast once a step, and activations are not cast at each operation. Not for gradient
    checkpointing, whose second forward pass would use the float32 weights: use `autocast` there.
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
    """A context manager: products are computed in `dtype`. Without torch's cache of cast weights, which would hold a
    second copy of every weight under ZeRO-3."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)
