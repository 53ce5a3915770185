"""Chooses the device and the dtype of a model.

torch is imported when a device is chosen, so that the command line can name the formats without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from minigptv2.errors import UserError

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def choose_device(
    name: str | torch.device | None = None, local_rank: int | None = None, share: bool = False
) -> torch.device:
    """The device of this name; without one, a GPU if there is one, else the CPU. It is tried out.

    local_rank: the number of this process among several on this machine; "cuda" is then the GPU of this number. share:
    several processes may use one GPU, if there are more processes than GPUs.
    Raises UserError if the device cannot be used.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is None and local_rank is not None:
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()) if share else local_rank)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        process = "" if local_rank is None else f" by process {local_rank} of this machine"
        fewer = "" if local_rank is None else ", or start as many processes as there are GPUs"
        raise UserError(
            f"The device {str(name or 'cuda')!r} cannot be used{process}.",
            f"torch says: {str(error).splitlines()[0]}",
            f"Try the device cpu{fewer}.",
        ) from None


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of this name; without one, bfloat16 on a GPU and float32 elsewhere. Raises UserError."""
    import torch

    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype) if dtype in DTYPES else dtype
    if dtype not in [getattr(torch, name) for name in DTYPES]:
        raise UserError(f"dtype is {dtype!r}.", f"It must be one of {', '.join(DTYPES)}.", 'Try dtype="float32".')
    return dtype
