"""The training engine: one interface over plain PyTorch, on one process or many, and DeepSpeed (`train/deepspeed.py`).

The loss of an optimizer step is the sum over all supervised tokens of all its micro-batches on all processes, divided
by their number. So neither the number of processes nor that of micro-batches changes the loss or the gradients. The
loss of a micro-batch is already divided by that number; the engine only adds.

Shapes: P images, N patches, C channels of the tower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from minigptv2.model.grounding_vlm import GroundingVLM, Losses
from minigptv2.packing import Batch
from minigptv2.train.distributed import World
from minigptv2.train.optim import build_optimizers, set_learning_rate
from minigptv2.train.precision import autocast, call_in_dtype

_BUCKET = 1 << 26  # gradient entries of one all-reduce

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What an engine needs to know of a recipe."""

    dtype: torch.dtype
    """Number format of the products."""
    optimizer: str
    """adamw or muon."""
    weight_decay: float
    """Of matrices and kernels."""
    accumulate: int = 1
    """Micro-batches of an optimizer step."""
    max_grad_norm: float = 1.0
    """Norm that the gradients are clipped to; 0: no clipping."""
    checkpointing: bool = False
    """Compute the language model's layers again in the backward pass."""
    blank: Literal["pixels", "features"] = "pixels"
    """The form of the blank image in a text-only row, where all processes must compute the same layers."""
    attention: float = 0.0
    """Weight of the attention loss."""


class Engine:
    """Plain PyTorch: each process has the full model, and gradients are summed over the processes once a step."""

    def __init__(self, model: GroundingVLM, world: World, settings: Settings):
        self.model, self.world, self.settings = model, world, settings
        if settings.checkpointing:
            model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizers = self._prepare()

    def _prepare(self) -> list[torch.optim.Optimizer]:
        if self.world.size > 1:
            for parameter in self.trained.values():
                torch.distributed.broadcast(parameter.data, 0)
        return build_optimizers(self.model, self.settings.optimizer, 1.0, self.settings.weight_decay)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        set_learning_rate(self.optimizers, lr)

    def losses(self, batch: Batch, tokens: float, guidance: float = 0.0) -> tuple[torch.Tensor, Losses]:
        """The micro-batch's part of the loss of the step, for `backward`, and its components, detached.

        tokens: supervised tokens of the whole step, over all processes.
        """
        if self.world.device.type == "cpu" and not self.settings.checkpointing:
            losses = call_in_dtype(self.model, self.settings.dtype, batch, tokens=tokens, guidance=guidance)
        else:
            with autocast(self.world.device, self.settings.dtype):
                losses = self.model(batch, tokens=tokens, guidance=guidance)
        return total_loss(losses, self.settings), Losses(*(part.detach() for part in losses))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The metrics of a step for the log, by name. sums: the components that `losses` gave, summed over the step."""
        answer, attention, weight = sums
        return {"loss": answer, **({"attention_loss": attention / weight} if weight else {})}

    def buffers(self) -> State:
        """Tensors by name that training changes in addition to the trained weights; checkpoints hold them, too."""
        return {}

    def fits(self, weights: State) -> bool:
        """Whether the weights of a checkpoint have the names and shapes of this model."""
        own = {n: list(getattr(p, "ds_shape", p.shape)) for n, p in (self.trained | self.buffers()).items()}
        return own == {n: list(t.shape) for n, t in weights.items()}

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch's loss to those of the step."""
        if loss.requires_grad:  # otherwise nothing in the micro-batch is supervised
            loss.backward()

    def step(self) -> float:
        """Update the weights. Returns the norm of the gradients before clipping."""
        if self.world.size > 1:
            _all_reduce_gradients([p for p in self.trained.values()])
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm or float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(norm)

    def state(self) -> tuple[State, State]:
        """The trained weights and buffers by name, and the optimizers' state by "entry/name": full tensors on the CPU.

        All processes call it; rank 0 gets them.
        """
        weights = {name: p.detach().cpu() for name, p in (self.trained | self.buffers()).items()}
        names = {id(p): name for name, p in self.trained.items()}
        states = {
            f"{entry}/{names[id(p)]}": value.detach().cpu()
            for optimizer in self.optimizers
            for p, entries in optimizer.state.items()
            for entry, value in entries.items()
        }
        return weights, states

    def load_state(self, weights: State, states: State) -> None:
        """Load what `state` returned, in every process."""
        with torch.no_grad():
            for name, tensor in (self.trained | self.buffers()).items():
                tensor.copy_(weights[name])
        of = {id(p): name for name, p in self.trained.items()}
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                found = _entries(states, of[id(parameter)])
                if found:
                    optimizer.state[parameter] = {
                        entry: value if entry == "step" else _with_strides_of(parameter, value)
                        for entry, value in found.items()
                    }

    def frozen(self, select: Callable[[str], bool]) -> State:
        """The frozen tensors whose name `select` accepts, on the CPU. All processes call it."""
        state = self.model.state_dict()
        return {n: t.detach().cpu() for n, t in state.items() if n not in self.trained and select(n)}


def total_loss(losses: Losses, settings: Settings) -> torch.Tensor:
    """The loss that is trained: the answer loss plus the weighted attention loss."""
    return losses.answer + settings.attention * losses.attention if settings.attention else losses.answer


def _with_strides_of(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """The value on the parameter's device and with its strides, so that sums keep their order."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _entries(states: State, name: str) -> State:
    """{"exp_avg/a.b": ...} and "a.b" -> {"exp_avg": ...}"""
    return {key.partition("/")[0]: value for key, value in states.items() if key.partition("/")[2] == name}


def _all_reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients over all processes. A missing gradient counts as 0."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    while parameters:
        bucket, size = [], 0
        while parameters and (not bucket or size + parameters[0].numel() <= _BUCKET):
            size += parameters[0].numel()
            bucket.append(parameters[0])
            parameters = parameters[1:]
        flat = torch.cat([p.grad.flatten() for p in bucket])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket])):
            parameter.grad.copy_(part.view_as(parameter))
