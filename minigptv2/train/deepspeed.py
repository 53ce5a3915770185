"""The engine of a run under DeepSpeed, and its JSON file; `open_engine` chooses between this and plain torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minigptv2.bundled import config_folder
from minigptv2.errors import UserError
from minigptv2.files import refuse_device
from minigptv2.model.grounding_vlm import GroundingVLM, Losses
from minigptv2.packing import Batch
from minigptv2.train.distributed import World
from minigptv2.train.engine import Engine, Settings, State, total_loss
from minigptv2.train.optim import build_optimizers, set_learning_rate
from minigptv2.train.precision import autocast


class _Loss(nn.Module):
    """The model as DeepSpeed calls it. Under ZeRO all processes must compute the same layers in the same order, so a
    text-only row also encodes a blank image, whose weight is 0."""

    def __init__(self, model: GroundingVLM, device: torch.device, settings: Settings):
        super().__init__()
        self.model, self.device, self.settings = model, device, settings

    def forward(self, batch: Batch, tokens: float, guidance: float) -> tuple[torch.Tensor, ...]:
        """The loss, and the three fields of `Losses`, detached, since DeepSpeed allows one output with a gradient."""
        text_only = batch.pixels is None and batch.features is None
        if text_only and self.settings.blank == "pixels":
            size = self.model.config.vision.image_size
            batch = replace(batch, pixels=torch.zeros(1, 3, size, size, device=self.device))
        elif text_only:
            tower = self.model.vision
            batch = replace(batch, features=torch.zeros(1, tower.patches, tower.width, device=self.device))
        with autocast(self.device, self.settings.dtype):
            losses = self.model(batch, tokens=tokens, guidance=guidance, text_only=text_only)
        return total_loss(losses, self.settings), *(part.detach() for part in losses)


class DeepSpeedEngine(Engine):
    """DeepSpeed. ZeRO stage and offload come from a JSON file, everything else from the recipe.

    Trained weights are float32 and products have the recipe's precision, as without DeepSpeed.
    """

    def __init__(self, model: GroundingVLM, world: World, settings: Settings, file: Path):
        self.config = read_deepspeed(file)
        if settings.optimizer != "adamw":
            raise UserError(
                f"optim.name is {settings.optimizer!r}.",
                "ZeRO divides the weights as one flat vector, which only adamw allows.",
                "Give optim.name=adamw, or deepspeed= for a run without DeepSpeed.",
            )
        super().__init__(model, world, settings)

    @property
    def stage(self) -> int:
        """ZeRO's stage, 0 to 3."""
        return zero_stage(self.config)

    def _prepare(self) -> list[torch.optim.Optimizer]:
        import deepspeed

        settings = self.settings
        zero = self.config.get("zero_optimization", {})
        offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        (optimizer,) = build_optimizers(self.model, "adamw", 1.0, settings.weight_decay)
        if offload:
            groups = [{k: g[k] for k in ("params", "weight_decay")} for g in optimizer.param_groups]
            optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=1.0, betas=optimizer.defaults["betas"])
        config = {
            **self.config,
            "train_micro_batch_size_per_gpu": 1,  # used by DeepSpeed's own counters alone
            "gradient_accumulation_steps": settings.accumulate,
            "gradient_clipping": settings.max_grad_norm,
        }
        self.deep, *_ = deepspeed.initialize(
            model=_Loss(self.model, self.world.device, settings), optimizer=optimizer, config=config
        )
        self.micros = 0
        return [self.deep.basic_optimizer]

    def set_lr(self, lr: float) -> None:
        """As `Engine.set_lr`, in DeepSpeed's optimizer."""
        set_learning_rate([self.deep.optimizer], lr)

    def losses(self, batch: Batch, tokens: float, guidance: float = 0.0) -> tuple[torch.Tensor, Losses]:
        """As `Engine.losses`, through DeepSpeed's wrapper, which gathers divided weights."""
        loss, *parts = self.deep(batch, tokens, guidance)
        return loss, Losses(*parts)

    def backward(self, loss: torch.Tensor) -> None:
        """As `Engine.backward`. DeepSpeed counts each micro-batch; only `step` updates the weights."""
        self.deep.backward(loss * self.world.size, scale_wrt_gas=False)  # DeepSpeed averages over the processes
        self.micros += 1
        if self.micros % self.settings.accumulate:
            self.deep.step()  # counts micro-batches only

    def step(self) -> float:
        """As `Engine.step`; DeepSpeed sums and clips the gradients."""
        norm = None
        if self.stage == 0:  # DeepSpeed does not give its norm
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained.values() if p.grad is not None])
        self.deep.step()
        return float(self.deep.get_global_grad_norm() if norm is None else norm)

    def state(self) -> tuple[State, State]:
        """As `Engine.state`; tensors that ZeRO divides are joined."""
        if self.stage == 0:
            return super().state()
        first, weights, states = self.world.rank == 0, {}, {}
        state = self.optimizers[0].state
        entries = ("exp_avg", "exp_avg_sq") if state else ()
        for name, parameter in self.trained.items():
            got = {entry: self._full_tensor(parameter, entry) for entry in (None, *entries)}
            if first:
                weights[name] = got.pop(None)
                states |= {f"{entry}/{name}": value for entry, value in got.items()}
        if first and entries:
            step = torch.as_tensor(float(state[self._parts()[0]]["step"]))
            states |= {f"step/{name}": step for name in self.trained}
        return weights, states

    def _full_tensor(self, parameter: nn.Parameter, entry: str | None) -> torch.Tensor:
        """The float32 weight, or an entry of its Adam state, joined from the parts of all processes, on the CPU."""
        shape = getattr(parameter, "ds_shape", parameter.shape)
        full = torch.zeros(shape.numel(), dtype=torch.float32, device=self.world.device)
        own, start = self._own_part(parameter, entry)
        size = min(len(own), len(full) - start)  # the last part is padded
        if size > 0:
            full[start : start + size] = own[:size]
        if self.world.size > 1:
            torch.distributed.all_reduce(full)
        return full.view(shape).cpu()

    def _own_part(self, parameter: nn.Parameter, entry: str | None) -> tuple[torch.Tensor, int]:
        """This process's part of it, flat, and the index at which it begins in the full tensor."""
        deep, parts = self.deep.optimizer, self._parts()
        if self.stage == 3:
            group, start, size = deep.grad_position[deep.get_param_id(parameter)]
            place = self.world.rank * parameter.ds_tensor.ds_numel
        else:
            mapping = parameter._hp_mapping
            if mapping is None:
                return torch.zeros(0), 0
            group, address = mapping.param_group_index, mapping.get_hp_fragment_address()
            start, size, place = address.start, address.numel, mapping.lp_fragment_address.start
        flat = parts[group] if entry is None else self.optimizers[0].state[parts[group]][entry]
        return flat.data[start : start + size], place

    def load_state(self, weights: State, states: State) -> None:
        """As `Engine.load_state`; each process takes its part of what ZeRO divides."""
        if self.stage == 0:
            return super().load_state(weights, states)
        steps = [value for key, value in states.items() if key.startswith("step/")]
        entries = ("exp_avg", "exp_avg_sq") if steps else ()
        for part in self._parts() if steps else ():
            step = steps[0].clone() if isinstance(self.optimizers[0], torch.optim.AdamW) else int(steps[0])
            self.optimizers[0].state[part] = {"step": step, **{e: torch.zeros_like(part.data) for e in entries}}
        for name, parameter in self.trained.items():
            for entry in (None, *entries):
                value = weights[name] if entry is None else states[f"{entry}/{name}"]
                own, start = self._own_part(parameter, entry)
                given = value.flatten()[start : start + len(own)]
                own[: len(given)] = given.to(own.device)
        self._weights_from_masters(weights)

    def _parts(self) -> list[torch.Tensor]:
        """The flat float32 vectors that the optimizer of this process updates."""
        deep = self.deep.optimizer
        return deep.fp32_partitioned_groups_flat if self.stage == 3 else deep.single_partition_of_fp32_groups

    def _weights_from_masters(self, weights: State) -> None:
        import deepspeed

        for name, parameter in self.trained.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                with torch.no_grad():
                    parameter.data.copy_(weights[name])

    def frozen(self, select: Callable[[str], bool]) -> State:
        """As `Engine.frozen`; ZeRO-3 divides frozen tensors, too, so they are gathered."""
        out = super().frozen(select)
        if self.stage < 3:
            return out
        import deepspeed

        for name, parameter in self.model.named_parameters():
            if name in out:
                with deepspeed.zero.GatheredParameters([parameter]):
                    out[name] = parameter.detach().cpu().clone()
        return out


_RECIPES_OWN = (
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "amp",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
)


def read_deepspeed(file: Path) -> dict:
    """Read DeepSpeed's JSON file. Raises UserError where it is not one, or sets what belongs in the recipe."""
    known = ", ".join(sorted(f.name for f in (config_folder("train") / "deepspeed").glob("*.json")))
    refuse_device(file)
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"deepspeed is {str(file)!r}, which cannot be read: {error}",
            "It must be a JSON file of DeepSpeed's.",
            f"Bundled ones: {known}.",
        ) from None
    double = [key for key in _RECIPES_OWN if key in config]
    if double:
        raise UserError(
            f"{file} sets {', '.join(double)}.",
            "The recipe sets these, with and without DeepSpeed.",
            "Remove them from the JSON file.",
        )
    return config


def zero_stage(config: dict) -> int:
    """The ZeRO stage, 0 to 3, of what `read_deepspeed` returned."""
    return config.get("zero_optimization", {}).get("stage", 0)


def open_engine(model: GroundingVLM, world: World, settings: Settings, deepspeed: str) -> Engine:
    """The engine of a run. deepspeed: the JSON file that a recipe names; empty: plain PyTorch."""
    if not deepspeed:
        return Engine(model, world, settings)
    return DeepSpeedEngine(model, world, settings, Path(deepspeed))
