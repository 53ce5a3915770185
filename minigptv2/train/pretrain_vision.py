"""Dense pre-training of a small vision tower on drawn scenes, in place of EVA weights.

One linear layer predicts for every patch the class and colour of the object on it, and the box of that object as a
distribution over the 101 numbers of box text. Afterwards the tower is frozen and the layer is dropped.

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
from minigptv2.data.scenes.objects import OBJECT_CLASSES
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

CLASS_IDS = {name: i + 1 for i, name in enumerate(OBJECT_CLASSES)}  # 0 is the background
COLOR_IDS = {color: i for i, color in enumerate(COLORS)}
WEIGHTS = "backbone.safetensors"
_TABLE = "tower.trunk.pos_embed"
MIN_FRACTION = 0.12  # of a patch that an object must cover to be the object of the patch


@dataclass
class DenseTargets:
    """object_class [N] int64, 0: background. color [N] int64, -1 on background. box [N, 4] float32, XYXY in 0..1."""

    object_class: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor


def dense_targets(scene: Scene, grid: int) -> DenseTargets:
    """The object on each of grid x grid patches of the scene's image: the one that covers most of the patch."""
    size = scene.side
    cells = scene.seen.reshape(grid, size // grid, grid, size // grid)[:, ::3, :, ::3]
    covered = np.stack([(cells == i + 1).mean((1, 3)).ravel() for i in range(len(scene.objects))])  # [objects, N]
    owner = np.where(covered.max(0) >= MIN_FRACTION, covered.argmax(0) + 1, 0)
    sampled = covered.max(1) > 0  # every third pixel is looked at: an object that is thinner may be on no patch
    owner[covered.argmax(1)[sampled]] = np.flatnonzero(sampled) + 1
    classes = np.array([0, *(CLASS_IDS[t.class_name] for t in scene.objects)])
    colors = np.array([-1, *(COLOR_IDS[t.color] for t in scene.objects)])
    boxes = np.array([(0, 0, 0, 0), *(t.box.xyxy for t in scene.objects)], dtype=np.float32) / size
    return DenseTargets(*(torch.from_numpy(table[owner]) for table in (classes, colors, boxes)))


class SceneViews(torch.utils.data.IterableDataset):
    """An endless stream of (pixels, class, color, box, offset). Each scene is used phase.views_per_scene times on
    average, half of them mirrored.

    Boxes are relative to the canvas. offset: row and column, in the canvas's grid of patches, of the image's first
    patch; (0, 0) where the image is the whole canvas. patch: side of a patch in pixels. start: number of the first
    scene.
    """

    def __init__(self, seed: int, phase: Phase, patch: int, start: int = 0, keep: int = 256):
        self.seed, self.phase, self.patch, self.start, self.keep = seed, phase, patch, start, keep

    def first_state(self, worker: int) -> dict[str, Any]:
        """The state from which the stream of this worker starts."""
        rng = np.random.default_rng((self.seed, self.start, worker))
        return {"rng": rng.bit_generator.state, "number": self.start + worker, "kept": []}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        worker = torch.utils.data.get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return _Views(self, self.first_state(index), stride)


class _Views:
    """One worker's views from a state on. Scenes that were kept before it are drawn again when they are used again."""

    def __init__(self, of: SceneViews, state: dict[str, Any], stride: int):
        self.of, self.stride, self.grid = of, stride, of.phase.image_size // of.patch
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]
        self.number, self.kept = state["number"], list(state["kept"])  # the next scene; scenes to use again
        self.drawn: dict[int, tuple[torch.Tensor, DenseTargets] | None] = {}

    def state(self) -> dict[str, Any]:
        """The state as a JSON object. It determines all following views."""
        return {"rng": self.rng.bit_generator.state, "number": self.number, "kept": list(self.kept)}

    def __iter__(self) -> _Views:
        return self

    def __next__(self) -> tuple[torch.Tensor, ...]:
        phase, canvas, rng = self.of.phase, self.of.phase.canvas, self.rng
        offsets = (canvas - phase.image_size) // self.of.patch + 1  # possible ones, of a row and of a column
        image, targets = self._item()
        if rng.random() < 0.5:
            image, targets = image.flip(1), _mirrored(targets, self.grid)
        offset = torch.from_numpy(rng.integers(offsets, size=2))
        box = targets.box * (phase.image_size / canvas) + offset.flip(0).repeat(2) * (self.of.patch / canvas)
        return image, targets.object_class, targets.color, box, offset

    def _item(self) -> tuple[torch.Tensor, DenseTargets]:
        """A new scene, or one that was kept."""
        keep, rng = self.of.keep, self.rng
        while len(self.kept) < keep // 8 or rng.random() < 1 / self.of.phase.views_per_scene:
            scene = (self.number, rng.random() < self.of.phase.crowded_fraction)
            self.number += self.stride
            item = self._draw(*scene)
            if item is None:
                continue
            if len(self.kept) < keep:
                self.kept.append(scene)
            else:
                replaced = int(rng.integers(keep))
                self.drawn.pop(self.kept[replaced][0], None)
                self.kept[replaced] = scene
            self.drawn[scene[0]] = item
            return item
        number, crowded = self.kept[int(rng.integers(len(self.kept)))]
        if number not in self.drawn:
            self.drawn[number] = self._draw(number, crowded)
        return self.drawn[number]

    def _draw(self, number: int, crowded: bool) -> tuple[torch.Tensor, DenseTargets] | None:
        """The image, [H, W, 3] uint8, and its targets; None for a scene without objects."""
        phase = self.of.phase
        zoom = phase.canvas / phase.image_size
        scene = draw_scene((self.of.seed, number), phase.image_size, phase.max_objects, zoom, crowded)
        if not scene.objects:
            return None
        return torch.from_numpy(np.array(scene.image)), dense_targets(scene, self.grid)


@dataclass
class DenseBatch:
    """The batch of a step, as `dataloader.MicroBatch` is in finetune. images: [B, H, W, 3] uint8, and [B, 3, H, W]
    float32 after `on(device)`. object_class, color: [B, N]. box: [B, N, 4]. offsets: [B, 2]. samples: number of
    scenes. supervised: number of patches."""

    phase: Phase
    vision: VisionConfig
    images: torch.Tensor
    object_class: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor
    offsets: torch.Tensor
    failures: tuple[str, ...] = ()
    dropped_turns: int = 0

    @property
    def samples(self) -> int:
        """Number of scenes."""
        return len(self.images)

    @property
    def supervised(self) -> int:
        """Number of patches."""
        return self.object_class.numel()

    def on(self, device: torch.device | str) -> DenseBatch:
        """The batch on a device, with normalised images [B, 3, H, W] float32."""
        moved = (t.to(device) for t in (self.images, self.object_class, self.color, self.box, self.offsets))
        images, *targets = moved
        images = normalize(images, self.vision.image_mean, self.vision.image_std)
        return DenseBatch(self.phase, self.vision, images, *targets)


class _Batches(torch.utils.data.IterableDataset):
    """Each worker's (batch of views, the worker's state after it). states: the state that each worker starts from."""

    def __init__(self, views: SceneViews, states: list[dict[str, Any]]):
        self.views, self.states = views, states

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        views = _Views(self.views, self.states[worker.id if worker else 0], len(self.states))
        while True:
            batch = torch.utils.data.default_collate([next(views) for _ in range(self.views.phase.batch_size)])
            yield batch, views.state()


class SceneStream:
    """The batches of all phases, one phase after another. A resumed run gets the same batches as an unbroken one, as
    long as data.num_workers is the same. step, samples: done before. saved: what `state` returned then. notes: lines
    for the user."""

    def __init__(self, recipe: Recipe, patch: int, step: int = 0, samples: int = 0, saved: dict | None = None):
        self.recipe, self.patch, self.step, self.samples = recipe, patch, step, samples
        self.ends = list(accumulate(phase.steps for phase in recipe.phases))
        self.notes: list[str] = []
        self._index, self._states, self._batches = -1, [], None
        if saved and step < self.ends[-1] and saved["phase"] == bisect_right(self.ends, step):
            if len(saved["workers"]) == max(1, recipe.data.num_workers):
                self._open(saved["phase"], saved["workers"])
            else:
                self.notes.append(
                    f"data.num_workers was {len(saved['workers'])} and is {recipe.data.num_workers}: "
                    "the following scenes differ from those of an unbroken run"
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
        """The state as a JSON object. The first worker state is that of the worker whose batch is next."""
        return {"phase": self._index, "workers": self._states}

    def _open(self, index: int, states: list[dict[str, Any]] | None = None) -> None:
        workers = self.recipe.data.num_workers
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
                generator=torch.Generator(),  # not the global one, which dropout draws from
            )
        )


def _mirrored(targets: DenseTargets, grid: int) -> DenseTargets:
    object_class, color = (v.view(grid, grid).flip(1).flatten() for v in (targets.object_class, targets.color))
    x1, y1, x2, y2 = targets.box.view(grid, grid, 4).flip(1).reshape(-1, 4).unbind(1)
    return DenseTargets(object_class, color, torch.stack([1 - x2, y1, 1 - x1, y2], dim=1))


class DenseModel(nn.Module):
    """The tower, and a linear layer over it that gives objectness, class, colour and 4 x 101 box numbers of a patch."""

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.tower = tower
        self.sizes = (1, len(OBJECT_CLASSES), len(COLORS), 4 * (BINS + 1))
        self.head = nn.Linear(tower.width, sum(self.sizes))

    def forward(self, pixels: torch.Tensor, offsets: torch.Tensor | None = None):
        """[B, 3, H, W] -> logits of objectness [B, N], class [B, N, classes], colour [B, N, colours], box [B, N, 4,
        101]."""
        objectness, object_class, color, box = self.head(self.tower(pixels, offsets)).split(self.sizes, dim=-1)
        return objectness.squeeze(-1), object_class, color, box.unflatten(-1, (4, BINS + 1))


def dense_loss(outputs, object_class, color, box, phase: Phase) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, weighted as the phase says, and metrics: its parts, accuracies, and the box error in hundredths."""
    is_object = object_class > 0  # [B, N]; M of them below
    object_logits, class_logits, color_logits, box_logits = (
        outputs[0].float(),
        *(o[is_object].float() for o in outputs[1:]),
    )
    object_class, color, box = object_class[is_object] - 1, color[is_object], box[is_object]
    cells = is_object.shape[1] * (phase.canvas / phase.image_size) ** 2  # patches of the canvas
    patches = (box[:, 2:] - box[:, :2]).prod(-1) * cells  # [M] patches that the object's box covers
    weight = patches.clamp(min=1) ** -0.5  # so that large objects do not dominate
    weight = weight / weight.sum()
    object_loss = F.binary_cross_entropy_with_logits(object_logits, is_object.float())
    class_loss = (F.cross_entropy(class_logits, object_class, reduction="none") * weight).sum()
    color_loss = (F.cross_entropy(color_logits, color, reduction="none") * weight).sum()
    numbers = box * BINS  # [M, 4]
    near = torch.exp(-0.5 * (torch.arange(BINS + 1, device=box.device) - numbers[..., None]).square() / 0.8**2)
    near = near / near.sum(-1, keepdim=True)
    box_loss = -((near * box_logits.log_softmax(-1)).sum(-1).mean(-1) * weight).sum()
    with torch.no_grad():
        metrics = {
            "objectness_loss": object_loss,
            "class_loss": class_loss,
            "color_loss": color_loss,
            "box_loss": box_loss,
            "objectness_acc": ((object_logits > 0) == is_object).float().mean(),
            "class_acc": (class_logits.argmax(-1) == object_class).float().mean(),
            "color_acc": (color_logits.argmax(-1) == color).float().mean(),
            "box_error": (box_logits.argmax(-1) - numbers).abs().mean(),
        }
    loss = object_loss + phase.class_loss_weight * class_loss + color_loss + phase.box_loss_weight * box_loss
    return loss, metrics


class DenseMetrics(NamedTuple):
    """The loss of a batch and the metrics of `dense_loss`; scalars."""

    loss: torch.Tensor
    objectness_loss: torch.Tensor
    class_loss: torch.Tensor
    color_loss: torch.Tensor
    box_loss: torch.Tensor
    objectness_acc: torch.Tensor
    class_acc: torch.Tensor
    color_acc: torch.Tensor
    box_error: torch.Tensor


class DenseEngine(Engine):
    """The engine of a `DenseModel`. A batch of a phase with another canvas size resizes the position table; the
    optimizer keeps its state, except that of this table."""

    def __init__(self, model: DenseModel, world: World, settings: Settings, phases: list[Phase]):
        super().__init__(model, world, settings)
        self.phases = phases
        self._resize(phases[0].canvas)

    def losses(self, batch: DenseBatch, tokens: float, guidance: float = 0.0) -> tuple[torch.Tensor, DenseMetrics]:
        """As `Engine.losses`. The first batch of a phase with another canvas size resizes the position table."""
        phase = batch.phase
        if self.model.tower.config.image_size != phase.canvas:
            self._resize(phase.canvas)
        offsets = batch.offsets if phase.canvas_size else None
        outputs = call_in_dtype(self.model, self.settings.dtype, batch.images, offsets)
        loss, metrics = dense_loss(outputs, batch.object_class, batch.color, batch.box, phase)
        return loss, DenseMetrics(loss.detach(), **{name: value.detach() for name, value in metrics.items()})

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """As `Engine.metrics`: the loss, and the accuracies."""
        return dict(zip(DenseMetrics._fields, sums))

    def buffers(self) -> State:
        """As `Engine.buffers`: what the model holds in addition to trained weights, such as batch norms' statistics."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in self.trained}

    def fits(self, weights: State) -> bool:
        """The position table may be that of any phase; the model's is resized to it."""
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
    """Side of a patch, in pixels."""
    return tower.config.image_size // tower.grid[0]


def build_dense(recipe: Recipe, device: torch.device) -> DenseModel:
    """The initial model of the recipe. Raises UserError where its phases do not divide into patches."""
    import timm.layers

    timm.layers.set_fused_attn(False)  # on a CPU the fused backward is several times slower than plain products
    tower = VisionTower(recipe.model.vision)
    if tower.prefix_positions != 1 or not isinstance(tower.trunk.blocks, nn.Sequential):
        raise UserError(
            f"The tower {tower.config.timm_name} cannot be pre-trained on scenes.",
            "It must have a class token and position embeddings, which are resized for each phase.",
            "Leave model.vision.timm_name empty, or choose a model such as vit_tiny_patch16_224.",
        )
    patch = patch_of(tower)
    for phase in recipe.phases:
        if not 0 < phase.image_size <= phase.canvas or phase.image_size % patch or phase.canvas % patch:
            raise UserError(
                f"A phase has image_size {phase.image_size} and canvas_size {phase.canvas_size}.",
                f"Both are multiples of {patch}, a patch of this tower, and the canvas is not smaller than the image.",
                "Correct them in the recipe.",
            )
    model = DenseModel(tower)
    if recipe.init:
        _fill(model, Path(recipe.init))
    return model.to(device, memory_format=torch.channels_last).train()  # convolutions: a fifth more steps


def save_weights(model: DenseModel, output: Path) -> None:
    """Write output/backbone.safetensors, which finetune and pretrain_vision take as init."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(output / WEIGHTS) as new:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, new)
    except (OSError, SafetensorError) as error:  # a full disk is either of them
        raise UserError(
            f"{output / WEIGHTS} cannot be written: {error}",
            "The weights need room on the disk.",
            "Make room and run the same command again: it resumes from the last checkpoint.",
        ) from error


def _fill(model: DenseModel, folder: Path) -> None:
    """Load the weights of an earlier run, or the tower of a model folder, of any image size."""
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
            "init is the output folder of a pretrain_vision run or a model folder.",
            "Omit init to start from random weights.",
        )
    grid = round((found[_TABLE].shape[1] - 1) ** 0.5)
    model.tower.resize(grid * model.tower.config.image_size // model.tower.trunk.patch_embed.grid_size[0])
    model.load_state_dict(found)
