"""The seam between the loop and what does the arithmetic: one process, several, or DeepSpeed (`train/deepspeed.py`).

The loss of an optimizer step is the sum over all supervised tokens of all its micro-batches on all processes, divided
by their number. So neither the number of processes nor that of micro-batches changes the loss or the gradients. Every
engine is given the loss of a micro-batch already divided by that number; what is left to do is to add.

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

_BUCKET = 1 << 26  # gradients that are added up between processes at once

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """dtype: of the products. accumulate: micro-batches of an optimizer step. clip: largest norm of all gradients
    together; 0: none. checkpointing: the language model's layers are computed again in the backward pass. blank: what a
    row of text alone looks at where all processes must compute the same layers. attention: weight of the loss of
    supervised attention."""

    dtype: torch.dtype
    optimizer: str
    weight_decay: float
    accumulate: int = 1
    max_grad_norm: float = 1.0
    checkpointing: bool = False
    blank: Literal["pixels", "features"] = "pixels"
    attention: float = 0.0


class Engine:
    """Plain torch, on one process or many: each has the whole model, and gradients are added up once a step."""

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

    def set_lr(self, rate: float) -> None:
        set_learning_rate(self.optimizers, rate)

    def losses(self, batch: Batch, tokens: float, guidance: float = 0.0) -> tuple[torch.Tensor, Losses]:
        """This micro-batch's share of the step's loss, for `backward`, and what it is made of, detached. tokens:
        supervised ones of the whole step, everywhere."""
        if self.world.device.type == "cpu" and not self.settings.checkpointing:
            losses = call_in_dtype(self.model, self.settings.dtype, batch, tokens=tokens, guidance=guidance)
        else:
            with autocast(self.world.device, self.settings.dtype):
                losses = self.model(batch, tokens=tokens, guidance=guidance)
        return total_loss(losses, self.settings), Losses(*(part.detach() for part in losses))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """What the log says of a step: "loss" and more. sums: the parts that `losses` gave, over its micro-batches."""
        answer, attention, weight = sums
        return {"loss": answer, **({"missed": attention / weight} if weight else {})}

    def buffers(self) -> State:
        """What training changes of the model beside the trained weights, by name; it belongs into a checkpoint."""
        return {}

    def fits(self, weights: State) -> bool:
        """Whether a checkpoint's weights are of this model, which then can take them."""
        own = {n: list(getattr(p, "ds_shape", p.shape)) for n, p in (self.trained | self.buffers()).items()}
        return own == {n: list(t.shape) for n, t in weights.items()}

    def backward(self, loss: torch.Tensor) -> None:
        if loss.requires_grad:  # else the micro-batch has nothing to learn from
            loss.backward()

    def step(self) -> float:
        """One update of the weights; the norm of the gradients before they were clipped."""
        if self.world.size > 1:
            _add_up([p for p in self.trained.values()])
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm or float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(norm)

    def state(self) -> tuple[State, State]:
        """The trained weights and buffers by name and the optimizers' state by "entry/name", whole, on the CPU; all
        processes call it, and the first one gets them."""
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
        """What `gather` gave, back in its places, in every process."""
        with torch.no_grad():
            for name, tensor in (self.trained | self.buffers()).items():
                tensor.copy_(weights[name])
        of = {id(p): name for name, p in self.trained.items()}
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                found = _entries(states, of[id(parameter)])
                if found:
                    optimizer.state[parameter] = {
                        entry: value if entry == "step" else _laid_out_as(parameter, value)
                        for entry, value in found.items()
                    }

    def frozen(self, wanted: Callable[[str], bool]) -> State:
        """The tensors of the model with wanted names that are not trained, on the CPU; all processes call it."""
        state = self.model.state_dict()
        return {n: t.detach().cpu() for n, t in state.items() if n not in self.trained and wanted(n)}


def total_loss(losses: Losses, settings: Settings) -> torch.Tensor:
    return losses.answer + settings.attention * losses.attention if settings.attention else losses.answer


def _laid_out_as(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """The value on the parameter's device and, where it has its shape, with its strides: sums keep their order."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _entries(states: State, name: str) -> State:
    """{"exp_avg/a.b": ...} and "a.b" -> {"exp_avg": ...}"""
    return {key.partition("/")[0]: value for key, value in states.items() if key.partition("/")[2] == name}


def _add_up(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients of all processes; one that a process has none of counts as 0 there."""
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
