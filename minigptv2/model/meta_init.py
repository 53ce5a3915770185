"""A model built on the meta device, without memory for its weights, and then filled tensor by tensor.

Opening a model so needs the memory of its weights and of one more tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Modules built inside get parameters on the meta device: shapes without values. Buffers are computed as usual."""
    thread = threading.get_ident()

    def shape_only(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(shape_only)
    try:
        yield
    finally:
        handle.remove()


def set_tensor(model: nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Set the parameter or buffer `name` of the model to a copy of `tensor`, and return the copy.

    dtype: of the copy; None for that of the tensor. Buffers and batch norms keep their own. The shape is not checked.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    current = getattr(module, leaf)
    is_weight = isinstance(current, nn.Parameter)
    keeps_dtype = not is_weight or stays_float32(module)
    dtype = current.dtype if keeps_dtype else dtype or tensor.dtype
    copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    setattr(module, leaf, nn.Parameter(copy, current.requires_grad) if is_weight else copy)
    return copy


def stays_float32(module: nn.Module) -> bool:
    """Whether this is a batch norm: its kernels need float32 weights for inputs of any dtype."""
    return isinstance(module, _BatchNorm)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same model with its tensors in `dtype`. Tensors that have it already are not copied.

    Batch norms stay in float32. So do the rotary frequencies: rounded to 16 bits they give wrong angles at far
    positions.
    """
    for module in model.modules():
        if stays_float32(module) or type(module).__name__.endswith("RotaryEmbedding"):
            continue
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model


def unfilled_tensors(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are still on the meta device."""
    return [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
