"""A model that is built without memory for its weights and then filled tensor by tensor.

So no more than the weights themselves and one further tensor are in memory while a model is opened.
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
    """Modules built inside get parameters that are shapes only; buffers are computed as ever."""
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
    """Make a copy of `tensor` the parameter or buffer `name` of the model, and give the copy.

    It is of `dtype`, None: of the tensor's own; buffers and batch norms keep theirs. The shape must be right already.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    place = getattr(module, leaf)
    weight = isinstance(place, nn.Parameter)
    kept = not weight or stays_float32(module)
    dtype = place.dtype if kept else dtype or tensor.dtype
    copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    setattr(module, leaf, nn.Parameter(copy, place.requires_grad) if weight else copy)
    return copy


def stays_float32(module: nn.Module) -> bool:
    """Batch norms: their kernels ask for float32 weights, whatever they compute in."""
    return isinstance(module, _BatchNorm)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same model, computing in `dtype`: nothing is copied that is of it already.

    Batch norms stay in float32, and so do the rotary frequencies, since 16 bits would turn far positions by a wrong
    angle.
    """
    for module in model.modules():
        if stays_float32(module) or type(module).__name__.endswith("RotaryEmbedding"):
            continue
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model


def unfilled_tensors(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that nobody has filled."""
    return [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
