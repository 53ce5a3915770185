"""The language model's layers in 8 or 4 bits, for machines with little memory.

The tower, the projector, the embeddings, the head and LoRA's own matrices stay as they are.

Shapes: T tokens, I inputs and O outputs of a linear layer.
Source: LLM.int8 (arXiv 2208.07339) for "8bit", QLoRA's NF4 (arXiv 2305.14314) for "4bit", both of bitsandbytes.
"""

from __future__ import annotations

import torch
from torch import nn

from minigptv2.errors import UserError

OUTLIER = 6.0  # inputs over it stay in 16 bits with "8bit", as in LLM.int8
REQUIREMENTS = {
    "8bit": "a CUDA GPU and bitsandbytes",
    "4bit": "a CUDA GPU and bitsandbytes",
    "int8": "a CPU and float32",
}


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale an output. Inputs are rounded to 8 bits with one scale a token, so
    that a row does not depend on its batch."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight, scale = _rounded(layer.weight.detach().float())
        self.register_buffer("weight", weight)  # [O, I] int8
        self.register_buffer("scale", scale[:, 0])  # [O]
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, scale = _rounded(x.flatten(0, -2))  # [T, I] int8, [T, 1]
        out = torch._int_mm(tokens, self.weight.t()) * scale * self.scale  # [T, O]
        if self.bias is not None:
            out = out + self.bias
        return out.unflatten(0, x.shape[:-1])


def _rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers -127..127 as int8 and the scale of each row, [.., 1], that makes the row of them again."""
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (rows / scale).round().to(torch.int8), scale


def quantize_language(decoder: nn.Module, how: str, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the linear layers of a Llama causal LM's blocks, on the way to `device`, which computes in `dtype`.

    how: a key of WAYS that `check_quantization` allows. With "8bit" an answer may depend a little on its batch: an
    input that is large in one row is kept exact in all.
    """
    for name in _linear_layers(decoder):
        layer = decoder.get_submodule(name)
        made = Int8Linear(layer) if how == "int8" else _bitsandbytes_layer(layer, how, device, dtype)
        decoder.set_submodule(name, made)


def _linear_layers(decoder: nn.Module) -> list[str]:
    """Names of the blocks' layers. Of an adapter's, the ones that it adapts are among them, its own are not."""
    layers = [f"model.{name}" for name, m in decoder.model.named_modules() if isinstance(m, nn.Linear)]
    return [name for name in layers if ".lora_" not in name]


def check_quantization(how: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError where `how` is none of WAYS, or device, dtype or the installed packages do not allow it."""
    if how not in REQUIREMENTS:
        raise UserError(
            f"quantize is {how!r}.",
            f"It must be one of {', '.join(REQUIREMENTS)}, or nothing at all.",
            "Try int8 on a CPU, 4bit on a GPU.",
        )
    needs = f"{how} needs {REQUIREMENTS[how]}."
    if how == "int8":
        if (device.type, dtype) != ("cpu", torch.float32):
            raise UserError(
                f"quantize is 'int8', but the model runs on {device.type} in {str(dtype).removeprefix('torch.')}.",
                needs,
                "Leave dtype away on a CPU; on a GPU try 8bit or 4bit, or choose the device cpu.",
            )
        return
    if device.type != "cuda":
        raise UserError(
            f"quantize is {how!r}, but the model runs on {device.type}.", needs, "Try int8, which runs on a CPU."
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"quantize is {how!r}, but bitsandbytes cannot be imported: {error}.",
            needs,
            'Run pip install "minigptv2[quantize]".',
        ) from None


def _bitsandbytes_layer(layer: nn.Linear, how: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The layer as bitsandbytes keeps it; its weights are quantised on their way to the GPU."""
    import bitsandbytes

    shape = layer.in_features, layer.out_features, layer.bias is not None
    weight = layer.weight.detach().to(torch.float16 if how == "8bit" else dtype)
    with torch.device("meta"):
        if how == "8bit":
            made = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=OUTLIER)
        else:
            made = bitsandbytes.nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4")
    if how == "8bit":
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    return made.to(device)
