"""The language model's layers in 8 or 4 bits, for machines with little memory.

    bnb-int8      8 bits on a CUDA GPU: LLM.int8 (arXiv 2208.07339) of bitsandbytes
    bnb-nf4       4 bits on a CUDA GPU: NF4 of QLoRA (arXiv 2305.14314) of bitsandbytes
    dynamic-int8  8 bits on a CPU: `Int8Linear`; weights are rounded once, inputs for each token

The vision tower, the projector, the embeddings, the head and LoRA's own matrices are not quantised.

Shapes: T tokens, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

import torch
from torch import nn

from minigptv2.errors import UserError
from minigptv2.renames import present_value

BNB_INT8, BNB_NF4, DYNAMIC_INT8 = "bnb-int8", "bnb-nf4", "dynamic-int8"
REQUIREMENTS = {
    BNB_INT8: "a CUDA GPU and bitsandbytes",
    BNB_NF4: "a CUDA GPU and bitsandbytes",
    DYNAMIC_INT8: "a CPU and float32",
}
RENAMED = {"8bit": BNB_INT8, "4bit": BNB_NF4, "int8": DYNAMIC_INT8}  # old value -> present value
OUTLIER = 6.0  # with bnb-int8, larger inputs stay in 16 bits, as in LLM.int8


def present_name(how: str) -> str:
    """The present name of a method; an old name is accepted with a note that gives the present one."""
    return present_value(how, RENAMED, "quantize")


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale per output.

    Inputs are rounded to 8 bits with one scale per token, so that the result of a row does not depend on its batch.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight, scale = _quantize_rows(layer.weight.detach().float())
        self.register_buffer("weight", weight)  # [O, I] int8
        self.register_buffer("scale", scale[:, 0])  # [O]
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I] -> [..., O]."""
        tokens, scale = _quantize_rows(x.flatten(0, -2))  # [T, I] int8, [T, 1]
        out = torch._int_mm(tokens, self.weight.t()) * scale * self.scale  # [T, O]
        if self.bias is not None:
            out = out + self.bias
        return out.unflatten(0, x.shape[:-1])


def _quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers -127..127 as int8, and the scale of each row, [.., 1], so that rows are about integers x scale."""
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (rows / scale).round().to(torch.int8), scale


def quantize_language(decoder: nn.Module, how: str, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the linear layers in the blocks of a Llama causal LM. bitsandbytes layers are moved to `device`.

    how: a key of REQUIREMENTS that `check_quantization` allows. dtype: of the computation. With bnb-int8 an answer may
    depend a little on its batch: an input that is large in one row is kept exact in all rows.
    """
    how = present_name(how)
    for name in _linear_layers(decoder):
        layer = decoder.get_submodule(name)
        made = Int8Linear(layer) if how == DYNAMIC_INT8 else _bitsandbytes_layer(layer, how, device, dtype)
        decoder.set_submodule(name, made)


def _linear_layers(decoder: nn.Module) -> list[str]:
    """Names of the linear layers of the blocks: with an adapter, its base layers, and not its own matrices."""
    layers = [f"model.{name}" for name, m in decoder.model.named_modules() if isinstance(m, nn.Linear)]
    return [name for name in layers if ".lora_" not in name]


def check_quantization(how: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError if `how` is not a key of REQUIREMENTS, or device, dtype or installed packages do not allow it."""
    how = present_name(how)
    if how not in REQUIREMENTS:
        raise UserError(
            f"quantize is {how!r}.",
            f"It must be one of {', '.join(REQUIREMENTS)}, or not given.",
            f"Try {DYNAMIC_INT8} on a CPU, {BNB_NF4} on a GPU.",
        )
    needs = f"{how} needs {REQUIREMENTS[how]}."
    if how == DYNAMIC_INT8:
        if (device.type, dtype) != ("cpu", torch.float32):
            raise UserError(
                f"quantize is {how!r}, but the model runs on {device.type} in {str(dtype).removeprefix('torch.')}.",
                needs,
                f"Omit dtype on a CPU. On a GPU try {BNB_INT8} or {BNB_NF4}, or choose the device cpu.",
            )
        return
    if device.type != "cuda":
        raise UserError(
            f"quantize is {how!r}, but the model runs on {device.type}.",
            needs,
            f"Try {DYNAMIC_INT8}, which runs on a CPU.",
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
    """The same layer of bitsandbytes. Its weights are quantised when they are moved to the GPU."""
    import bitsandbytes

    shape = layer.in_features, layer.out_features, layer.bias is not None
    weight = layer.weight.detach().to(torch.float16 if how == BNB_INT8 else dtype)
    with torch.device("meta"):
        if how == BNB_INT8:
            made = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=OUTLIER)
        else:
            made = bitsandbytes.nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4")
    if how == BNB_INT8:
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    return made.to(device)
