"""Dense pre-training of the bundled model's vision tower, since no EVA weights are at hand.

Every patch says, through one linear layer, which kind and colour of thing is seen on it and where that thing's box
lies, as a distribution over the 101 numbers that box text uses. Afterwards the tower is frozen and the layer dropped.

Shapes: B images, N = G x G patches in raster order, C channels of the tower.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minigptv2.boxes import BINS
from minigptv2.config import VisionConfig
from minigptv2.data.scenes.objects import KINDS
from minigptv2.data.scenes.world import COLORS, Scene, draw_scene
from minigptv2.errors import UserError
from minigptv2.files import atomic_write
from minigptv2.images import normalize
from minigptv2.model.model_folder import WEIGHTS as MODEL
from minigptv2.model.vision import VisionTower
from minigptv2.train.distributed import World, ignore_sigterm_in_worker
from minigptv2.train.engine import Engine, Settings, State
from minigptv2.train.precision import call_in_dtype
from minigptv2.train.recipe import Phase, Recipe

KIND_IDS = {kind: i + 1 for i, kind in enumerate(KINDS)}  # 0 is the ground
COLOR_IDS = {color: i for i, color in enumerate(COLORS)}
WEIGHTS = "backbone.safetensors"
_TABLE = "tower.trunk.pos_embed"
MIN_FRACTION = 0.12  # of a patch that a thing must fill to be the patch's thing


@dataclass
class DenseTargets:
    """kind [N] int64, 0 for the ground; color [N] int64, -1 on the ground; box [N, 4] float32, XYXY in 0..1."""

    kind: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor


def dense_targets(scene: Scene, grid: int) -> DenseTargets:
    """What each of grid x grid patches of the scene's image shows: the thing that fills most of it."""
    size = scene.side
    cells = scene.seen.reshape(grid, size // grid, grid, size // grid)[:, ::3, :, ::3]
    shares = np.stack([(cells == i + 1).mean((1, 3)).ravel() for i in range(len(scene.things))])  # [things, N]
    owner = np.where(shares.max(0) >= MIN_FRACTION, shares.argmax(0) + 1, 0)
    seen = shares.max(1) > 0  # a thing too thin for every third pixel is on no patch
    owner[shares.argmax(1)[seen]] = np.flatnonzero(seen) + 1
    kinds = np.array([0, *(KIND_IDS[t.kind] for t in scene.things)])
    colors = np.array([-1, *(COLOR_IDS[t.color] for t in scene.things)])
    boxes = np.array([(0, 0, 0, 0), *(t.box.xyxy for t in scene.things)], dtype=np.float32) / size
    return DenseTargets(*(torch.from_numpy(table[owner]) for table in (kinds, colors, boxes)))


class SceneViews(torch.utils.data.IterableDataset):
    """An endless stream of (pixels, kind, color, box, place); each drawn scene is seen `views` times, half of them
    mirrored.

    Boxes are relative to the whole image. place: row and column in its grid of the scene's first patch: (0, 0), or,
    where scenes are windows of it, anywhere. patch: pixels of a side. start: number of the first scene.
    """

    def __init__(self, seed: int, phase: Phase, patch: int, start: int = 0, keep: int = 256):
        self.seed, self.phase, self.patch, self.start, self.keep = seed, phase, patch, start, keep

    def first_state(self, worker: int) -> dict[str, Any]:
        """Where the stream of this worker begins."""
        rng = np.random.default_rng((self.seed, self.start, worker))
        return {"rng": rng.bit_generator.state, "number": self.start + worker, "kept": []}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        worker = torch.utils.data.get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return _Views(self, self.first_state(index), stride)


class _Views:
    """One worker's views from a state on; what was kept before it is drawn again where it is seen again."""

    def __init__(self, of: SceneViews, state: dict[str, Any], stride: int):
        self.of, self.stride, self.grid = of, stride, of.phase.image_size // of.patch
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]
        self.number, self.kept = state["number"], list(state["kept"])  # the next scene; those to be seen again
        self.drawn: dict[int, tuple[torch.Tensor, DenseTargets] | None] = {}

    def state(self) -> dict[str, Any]:
        """JSON: the views after the last one depend on nothing else."""
        return {"rng": self.rng.bit_generator.state, "number": self.number, "kept": list(self.kept)}

    def __iter__(self) -> _Views:
        return self

    def __next__(self) -> tuple[torch.Tensor, ...]:
        phase, whole, rng = self.of.phase, self.of.phase.canvas, self.rng
        places = (whole - phase.image_size) // self.of.patch + 1  # of a row, and of a column
        image, targets = self._item()
        if rng.random() < 0.5:
            image, targets = image.flip(1), _mirrored(targets, self.grid)
        place = torch.from_numpy(rng.integers(places, size=2))
        box = targets.box * (phase.image_size / whole) + place.flip(0).repeat(2) * (self.of.patch / whole)
        return image, targets.kind, targets.color, box, place

    def _item(self) -> tuple[torch.Tensor, DenseTargets]:
        """A new scene, or one that was kept."""
        keep, rng = self.of.keep, self.rng
        while len(self.kept) < keep // 8 or rng.random() < 1 / self.of.phase.views:
            scene = (self.number, rng.random() < self.of.phase.crowded)
            self.number += self.stride
            item = self._draw(*scene)
            if item is None:
                continue
            if len(self.kept) < keep:
                self.kept.append(scene)
            else:
                place = int(rng.integers(keep))
                self.drawn.pop(self.kept[place][0], None)
                self.kept[place] = scene
            self.drawn[scene[0]] = item
            return item
        number, crowded = self.kept[int(rng.integers(len(self.kept)))]
        if number not in self.drawn:
            self.drawn[number] = self._draw(number, crowded)
        return self.drawn[number]

    def _draw(self, number: int, crowded: bool) -> tuple[torch.Tensor, DenseTargets] | None:
        """The image, [H, W, 3] uint8, and its targets; None for a scene without things."""
        phase = self.of.phase
        zoom = phase.canvas / phase.image_size
        scene = draw_scene((self.of.seed, number), phase.image_size, phase.most, zoom, crowded)
        if not scene.things:
            return None
        return torch.from_numpy(np.array(scene.image)), dense_targets(scene, self.grid)


@dataclass
class DenseBatch:
    """What a step takes, as `stream.MicroBatch` is for a stage. images: [B, H, W, 3] uint8, of `on(device)`'s [B, 3, H,
    W] float32. kind, color: [B, N]; box: [B, N, 4]; places: [B, 2]. samples: scenes. supervised: patches."""

    phase: Phase
    vision: VisionConfig
    images: torch.Tensor
    kind: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor
    places: torch.Tensor
    failures: tuple[str, ...] = ()
    dropped_turns: int = 0

    @property
    def samples(self) -> int:
        return len(self.images)

    @property
    def supervised(self) -> int:
        return self.kind.numel()

    def on(self, device: torch.device | str) -> DenseBatch:
        moved = (t.to(device) for t in (self.images, self.kind, self.color, self.box, self.places))
        images, *targets = moved
        images = normalize(images, self.vision.image_mean, self.vision.image_std)
        return DenseBatch(self.phase, self.vision, images, *targets)


class _Batches(torch.utils.data.IterableDataset):
    """Of each worker: (batch of views, the worker's state after it). states: where each worker begins."""

    def __init__(self, views: SceneViews, states: list[dict[str, Any]]):
        self.views, self.states = views, states

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        views = _Views(self.views, self.states[worker.id if worker else 0], len(self.states))
        while True:
            batch = torch.utils.data.default_collate([next(views) for _ in range(self.views.phase.batch)])
            yield batch, views.state()


class SceneStream:
    """The batches of all phases, one after the other. A run that goes on gets the batches that it would have got, as
    long as `workers` is the same. step, samples: done before; saved: what `state` gave then. said: for the user."""

    def __init__(self, recipe: Recipe, patch: int, step: int = 0, samples: int = 0, saved: dict | None = None):
        self.recipe, self.patch, self.step, self.samples = recipe, patch, step, samples
        self.ends = list(accumulate(phase.steps for phase in recipe.phases))
        self.said: list[str] = []
        self._index, self._states, self._batches = -1, [], None
        if saved and step < self.ends[-1] and saved["phase"] == bisect_right(self.ends, step):
            if len(saved["workers"]) == max(1, recipe.workers):
                self._open(saved["phase"], saved["workers"])
            else:
                self.said.append(
                    f"workers was {len(saved['workers'])} and is {recipe.workers}: the scenes to come are others"
                )

    def __iter__(self) -> SceneStream:
        return self

    def __next__(self) -> DenseBatch:
        index = bisect_right(self.ends, self.step)
        if index != self._index:
            self._open(index)
        batch, state = next(self._batches)
        self._states = [*self._states[1:], state]
        self.step += 1
        self.samples += len(batch[0])
        return DenseBatch(self.recipe.phases[index], self.recipe.model.vision, *batch)

    def state(self) -> dict[str, Any]:
        """JSON: of each worker, the one whose turn is next first."""
        return {"phase": self._index, "workers": self._states}

    def _open(self, index: int, states: list[dict[str, Any]] | None = None) -> None:
        workers = self.recipe.workers
        views = SceneViews(self.recipe.seed, self.recipe.phases[index], self.patch, self.samples)
        self._index = index
        self._states = states or [views.first_state(worker) for worker in range(max(1, workers))]
        self._batches = iter(
            torch.utils.data.DataLoader(
                _Batches(views, self._states),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                worker_init_fn=ignore_sigterm_in_worker,
                generator=torch.Generator(),  # else opening it would draw from the model's generator
            )
        )


def _mirrored(targets: DenseTargets, grid: int) -> DenseTargets:
    kind, color = (v.view(grid, grid).flip(1).flatten() for v in (targets.kind, targets.color))
    x1, y1, x2, y2 = targets.box.view(grid, grid, 4).flip(1).reshape(-1, 4).unbind(1)
    return DenseTargets(kind, color, torch.stack([1 - x2, y1, 1 - x1, y2], dim=1))


class DenseModel(nn.Module):
    """The tower and the linear layer that reads it: is there a thing, which kind, which colour, 4 x 101 box numbers."""

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.tower = tower
        self.sizes = (1, len(KINDS), len(COLORS), 4 * (BINS + 1))
        self.head = nn.Linear(tower.width, sum(self.sizes))

    def forward(self, pixels: torch.Tensor, places: torch.Tensor | None = None):
        thing, kind, color, box = self.head(self.tower(pixels, places)).split(self.sizes, dim=-1)
        return thing.squeeze(-1), kind, color, box.unflatten(-1, (4, BINS + 1))


def dense_loss(outputs, kind, color, box, phase: Phase) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, weighed as the phase says, and its readings: shares of patches and colours, box error in hundredths."""
    on_thing = kind > 0
    thing_logits, kind_logits, color_logits, box_logits = (
        outputs[0].float(),
        *(o[on_thing].float() for o in outputs[1:]),
    )
    kind, color, box = kind[on_thing] - 1, color[on_thing], box[on_thing]
    cells = on_thing.shape[1] * (phase.canvas / phase.image_size) ** 2  # patches of the whole image
    patches = (box[:, 2:] - box[:, :2]).prod(-1) * cells  # that the patch's thing covers, [M]
    weight = patches.clamp(min=1) ** -0.5  # small things count too
    weight = weight / weight.sum()
    thing_loss = F.binary_cross_entropy_with_logits(thing_logits, on_thing.float())
    kind_loss = (F.cross_entropy(kind_logits, kind, reduction="none") * weight).sum()
    color_loss = (F.cross_entropy(color_logits, color, reduction="none") * weight).sum()
    numbers = box * BINS  # [M, 4]
    near = torch.exp(-0.5 * (torch.arange(BINS + 1, device=box.device) - numbers[..., None]).square() / 0.8**2)
    near = near / near.sum(-1, keepdim=True)
    box_loss = -((near * box_logits.log_softmax(-1)).sum(-1).mean(-1) * weight).sum()
    with torch.no_grad():
        readings = {
            "thing": thing_loss,
            "kind": kind_loss,
            "color": color_loss,
            "box": box_loss,
            "thing_right": ((thing_logits > 0) == on_thing).float().mean(),
            "kind_right": (kind_logits.argmax(-1) == kind).float().mean(),
            "color_right": (color_logits.argmax(-1) == color).float().mean(),
            "box_error": (box_logits.argmax(-1) - numbers).abs().mean(),
        }
    return thing_loss + phase.kinds * kind_loss + color_loss + phase.boxes * box_loss, readings


class DenseReadings(NamedTuple):
    """The loss of a batch and its readings, as `dense_loss` gives them; no dimensions."""

    loss: torch.Tensor
    thing: torch.Tensor
    kind: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor
    thing_right: torch.Tensor
    kind_right: torch.Tensor
    color_right: torch.Tensor
    box_error: torch.Tensor


class DenseEngine(Engine):
    """For a `DenseModel`. A batch of a phase with another size of the whole image resizes the table of positions; the
    optimizer goes on, but for its state of that table."""

    def __init__(self, model: DenseModel, world: World, settings: Settings, phases: list[Phase]):
        super().__init__(model, world, settings)
        self.phases = phases
        self._resize(phases[0].canvas)

    def losses(self, batch: DenseBatch, tokens: float, guidance: float = 0.0) -> tuple[torch.Tensor, DenseReadings]:
        phase = batch.phase
        if self.model.tower.config.image_size != phase.canvas:
            self._resize(phase.canvas)
        places = batch.places if phase.frame else None
        outputs = call_in_dtype(self.model, self.settings.dtype, batch.images, places)
        loss, readings = dense_loss(outputs, batch.kind, batch.color, batch.box, phase)
        return loss, DenseReadings(loss.detach(), **{name: value.detach() for name, value in readings.items()})

    def metrics(self, sums: list[float]) -> dict[str, float]:
        return dict(zip(DenseReadings._fields, sums))

    def buffers(self) -> State:
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in self.trained}

    def fits(self, weights: State) -> bool:
        """The table of positions may be that of any phase, and is resized to it."""
        table = weights.get(_TABLE)
        for size in {phase.canvas for phase in self.phases} if table is not None else ():
            if (size // patch_of(self.model.tower)) ** 2 + 1 == table.shape[1]:
                self._resize(size)
        return super().fits(weights)

    def _resize(self, size: int) -> None:
        old = self.trained[_TABLE]
        self.model.tower.resize(size)
        new = self.model.tower.trunk.pos_embed
        self.trained[_TABLE] = new
        for optimizer in self.optimizers:
            optimizer.state.pop(old, None)
            for group in optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]


def patch_of(tower: VisionTower) -> int:
    """Pixels of a side of a patch."""
    return tower.config.image_size // tower.grid[0]


def build_dense(recipe: Recipe, device: torch.device) -> DenseModel:
    """The model that the recipe begins with. Raises UserError where its phases do not divide into patches."""
    import timm.layers

    timm.layers.set_fused_attn(False)  # on a CPU the fused backward is several times slower than plain products
    tower = VisionTower(recipe.model.vision)
    if tower.prefix_positions != 1 or not isinstance(tower.trunk.blocks, nn.Sequential):
        raise UserError(
            f"The tower {tower.config.timm_name} cannot be pre-trained on scenes.",
            "It must have a class token and a table of positions, which is resized from phase to phase.",
            "Leave model.vision.timm_name empty, or choose a model such as vit_tiny_patch16_224.",
        )
    patch = patch_of(tower)
    for phase in recipe.phases:
        if not 0 < phase.image_size <= phase.canvas or phase.image_size % patch or phase.canvas % patch:
            raise UserError(
                f"A phase has image_size {phase.image_size} and frame {phase.frame}.",
                f"Both are multiples of {patch}, a patch of this tower, and a frame is no smaller than what it frames.",
                "Correct them in the recipe.",
            )
    model = DenseModel(tower)
    if recipe.init:
        _fill(model, Path(recipe.init))
    return model.to(device, memory_format=torch.channels_last).train()  # convolutions: a fifth more steps


def save_weights(model: DenseModel, output: Path) -> None:
    """Write what a stage or another backbone begins from: output/backbone.safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(output / WEIGHTS) as new:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, new)
    except (OSError, SafetensorError) as error:  # a full disk is either of them
        raise UserError(
            f"{output / WEIGHTS} cannot be written: {error}",
            "The weights need room on the disk.",
            "Make room and run the same command again: it goes on from the last checkpoint.",
        ) from error


def _fill(model: DenseModel, folder: Path) -> None:
    """Begin with an earlier run's weights, or with the tower of a model folder, whatever image size it had."""
    from safetensors.torch import load_file

    if (folder / WEIGHTS).is_file():
        found = load_file(folder / WEIGHTS)
    elif (folder / MODEL).is_file():
        found = {
            k.replace("vision.", "tower.", 1): v.float()
            for k, v in load_file(folder / MODEL).items()
            if k.startswith("vision.")
        }
        found |= {k: v for k, v in model.state_dict().items() if k.startswith("head.")}
    else:
        raise UserError(
            f"{folder} holds neither {WEIGHTS} nor {MODEL}.",
            "init is the output folder of a backbone run or a model folder.",
            "Leave init away to begin from nothing.",
        )
    grid = round((found[_TABLE].shape[1] - 1) ** 0.5)
    model.tower.resize(grid * model.tower.config.image_size // model.tower.trunk.patch_embed.grid_size[0])
    model.load_state_dict(found)
