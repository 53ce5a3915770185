"""Dense pre-training of the bundled model's vision tower, since no EVA weights are at hand.

Every patch says, through one linear layer, which kind and colour of thing is seen on it and where that thing's box
lies, as a distribution over the 101 numbers that box text uses. Afterwards the tower is frozen and the layer dropped.

Shapes: B pictures, N = G x G patches in raster order, C channels of the tower.
"""

import json
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minigptv2.boxes import BINS
from minigptv2.data.kinds import KINDS
from minigptv2.data.scenes import COLORS, Scene, draw_scene
from minigptv2.errors import UserError
from minigptv2.files import whole
from minigptv2.images import to_pixels
from minigptv2.model.checkpoint import WEIGHTS as MODEL
from minigptv2.model.vision import VisionTower
from minigptv2.train.identity import identity_of, take_up
from minigptv2.train.launch import STOPPED, StopSignal, choose_device, heed_parent_only
from minigptv2.train.optim import build_optimizers, learning_rate, set_learning_rate
from minigptv2.train.precision import best_dtype, call_in
from minigptv2.train.recipe import Phase, Recipe

KIND_IDS = {kind: i + 1 for i, kind in enumerate(KINDS)}  # 0 is the ground
COLOR_IDS = {color: i for i, color in enumerate(COLORS)}
WEIGHTS = "backbone.safetensors"
LEAST_SHARE = 0.12  # of a patch that a thing must fill to be the patch's thing


@dataclass
class DenseTargets:
    """kind [N] int64, 0 for the ground; color [N] int64, -1 on the ground; box [N, 4] float32, XYXY in 0..1."""

    kind: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor


def dense_targets(scene: Scene, grid: int) -> DenseTargets:
    """What each of grid x grid patches of the scene's picture shows: the thing that fills most of it."""
    size = scene.side
    cells = scene.seen.reshape(grid, size // grid, grid, size // grid)[:, ::3, :, ::3]
    shares = np.stack([(cells == i + 1).mean((1, 3)).ravel() for i in range(len(scene.things))])  # [things, N]
    owner = np.where(shares.max(0) >= LEAST_SHARE, shares.argmax(0) + 1, 0)
    seen = shares.max(1) > 0  # a thing too thin for every third pixel is on no patch
    owner[shares.argmax(1)[seen]] = np.flatnonzero(seen) + 1
    kinds = np.array([0, *(KIND_IDS[t.kind] for t in scene.things)])
    colors = np.array([-1, *(COLOR_IDS[t.color] for t in scene.things)])
    boxes = np.array([(0, 0, 0, 0), *(t.box.xyxy for t in scene.things)], dtype=np.float32) / size
    return DenseTargets(*(torch.from_numpy(table[owner]) for table in (kinds, colors, boxes)))


class SceneViews(torch.utils.data.IterableDataset):
    """An endless stream of (pixels, kind, color, box, place); each drawn scene is seen `views` times, half of them
    mirrored.

    Boxes are relative to the whole picture. place: row and column in its grid of the scene's first patch: (0, 0), or,
    where scenes are windows of it, anywhere. patch: pixels of a side.
    """

    def __init__(self, seed: int, phase: Phase, patch: int, start: int = 0, keep: int = 256):
        self.seed, self.phase, self.patch, self.start, self.keep = seed, phase, patch, start, keep
        self.grid = phase.image_size // patch

    def __iter__(self):
        phase, whole = self.phase, self.phase.whole
        places = (whole - phase.image_size) // self.patch + 1  # of a row, and of a column
        worker = torch.utils.data.get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng((self.seed, self.start, index))
        kept: list[tuple[torch.Tensor, DenseTargets]] = []
        number = self.start + index
        while True:
            if len(kept) < self.keep // 8 or rng.random() < 1 / phase.views:
                crowded = rng.random() < phase.crowded
                scene = draw_scene((self.seed, number), phase.image_size, phase.most, whole / phase.image_size, crowded)
                number += stride
                if not scene.things:
                    continue
                item = torch.from_numpy(np.array(scene.image)), dense_targets(scene, self.grid)
                if len(kept) < self.keep:
                    kept.append(item)
                else:
                    kept[int(rng.integers(self.keep))] = item
            else:
                item = kept[int(rng.integers(len(kept)))]
            image, targets = item
            if rng.random() < 0.5:
                image, targets = image.flip(1), _mirrored(targets, self.grid)
            place = torch.from_numpy(rng.integers(places, size=2))
            box = targets.box * (phase.image_size / whole) + place.flip(0).repeat(2) * (self.patch / whole)
            yield image, targets.kind, targets.color, box, place


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
    cells = on_thing.shape[1] * (phase.whole / phase.image_size) ** 2  # patches of the whole picture
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
            "thing": thing_loss, "kind": kind_loss, "color": color_loss, "box": box_loss,
            "thing_right": ((thing_logits > 0) == on_thing).float().mean(),
            "kind_right": (kind_logits.argmax(-1) == kind).float().mean(),
            "color_right": (color_logits.argmax(-1) == color).float().mean(),
            "box_error": (box_logits.argmax(-1) - numbers).abs().mean(),
        }  # fmt: skip
    return thing_loss + phase.kinds * kind_loss + color_loss + phase.boxes * box_loss, readings


def pretrain(recipe: Recipe) -> Path | None:
    """Train the tower; recipe.output gets the weights, log.jsonl and a checkpoint that a second call resumes.

    None where SIGTERM stopped the run before its end. The checkpoint is then written, too. Ctrl-C ends it likewise, and
    raises KeyboardInterrupt.
    """
    with StopSignal() as stop:
        done = _pretrain(recipe, stop)
        if done is None:
            stop.end()
        return done


def _pretrain(recipe: Recipe, stop: StopSignal) -> Path | None:
    import timm.layers
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    from tqdm import tqdm

    timm.layers.set_fused_attn(False)  # on a CPU the fused backward is several times slower than plain products
    phases, output = recipe.phases, Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    device = choose_device(recipe.device)
    dtype = best_dtype(device)
    tower = VisionTower(recipe.model.vision)
    patch = tower.config.image_size // tower.trunk.patch_embed.grid_size[0]
    for phase in phases:
        if not 0 < phase.image_size <= phase.whole or phase.image_size % patch or phase.whole % patch:
            raise UserError(
                f"A phase has image_size {phase.image_size} and frame {phase.frame}.",
                f"Both are multiples of {patch}, a patch of this tower, and a frame is no smaller than what it frames.",
                "Correct them in the recipe.",
            )  # fmt: skip
    total = sum(p.steps for p in phases)
    model = DenseModel(tower)
    if recipe.init:
        _fill(model, Path(recipe.init))
    model.to(device, memory_format=torch.channels_last)  # convolutions: a fifth more steps
    tower.resize(phases[0].whole)
    optimizers = build_optimizers(model, recipe.optimizer, recipe.lr, recipe.weight_decay)
    step, scenes = 0, 0
    checkpoint = output / "checkpoint.pt"
    identity = identity_of(recipe)
    told = take_up(output, identity, checkpoint.exists() or (output / WEIGHTS).exists())
    ends = list(accumulate(p.steps for p in phases))
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, scenes = saved["step"], saved["scenes"]
        tower.resize(phases[bisect_right(ends, max(0, step - 1))].whole)
        optimizers = build_optimizers(model, recipe.optimizer, recipe.lr, recipe.weight_decay)
        try:
            model.load_state_dict(saved["model"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{checkpoint} was written by another recipe: {' '.join(str(error).split())[:200]}",
                "A run goes on with the model, phases and optimizer that it began with.",
                "Choose another folder with output=..., or delete this one to begin anew.",
            ) from error  # fmt: skip
    for words in told:
        print(words, file=sys.stderr)
    if step >= total:
        print(f"{output} is finished after step {step}: nothing was changed", file=sys.stderr)
        return output
    identity.save(output)
    bar = tqdm(total=total, initial=step, desc="backbone", smoothing=0.05)
    log = open(output / "log.jsonl", "a")
    while step < total:
        phase_index = bisect_right(ends, step)
        phase = phases[phase_index]
        if tower.trunk.patch_embed.img_size[0] != phase.whole:
            tower.resize(phase.whole)
            optimizers = build_optimizers(model, recipe.optimizer, recipe.lr, recipe.weight_decay)
        views = SceneViews(recipe.seed, phase, patch, scenes)
        batches = iter(
            torch.utils.data.DataLoader(
                views,
                phase.batch,
                num_workers=recipe.workers,
                prefetch_factor=4 if recipe.workers else None,
                worker_init_fn=heed_parent_only,
            )
        )
        while step < ends[phase_index]:
            rate = learning_rate(step, total, recipe.lr, recipe.lowest_lr, recipe.warmup)
            set_learning_rate(optimizers, rate)
            waited = time.perf_counter()
            images, kind, color, box, places = (t.to(device) for t in next(batches))
            waited = time.perf_counter() - waited
            model.train()
            outputs = call_in(model, dtype, to_pixels(images), places if phase.frame else None)
            loss, readings = dense_loss(outputs, kind, color, box, phase)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step, scenes = step + 1, scenes + phase.batch
            bar.update()
            if step % recipe.log_every == 0:
                row = {"step": step, "loss": loss, **readings, "norm": norm, "lr": rate, "wait": waited}
                row = {k: round(float(v), 5) for k, v in row.items()} | {"time": round(time.time())}
                log.write(json.dumps(row) + "\n")
                log.flush()
                bar.set_postfix(
                    {
                        k: f"{row[k]:.3g}"
                        for k in ("loss", "thing_right", "kind_right", "color_right", "box_error", "wait")
                    }
                )
            if step % recipe.save_every == 0 or step == total or stop.came:
                state = {"step": step, "scenes": scenes, "model": model.state_dict(),
                         "optimizers": [o.state_dict() for o in optimizers]}  # fmt: skip
                try:
                    with whole(checkpoint) as new:
                        torch.save(state, new)
                    with whole(output / WEIGHTS) as new:
                        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, new)
                except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them, whoever writes
                    raise UserError(
                        f"The checkpoint of step {step} cannot be written: {' '.join(str(error).split())[:200]}",
                        f"A checkpoint needs room in {output}, beside the one before.",
                        "Make room and run the same command again: it goes on from the checkpoint before.",
                    ) from error  # fmt: skip
            if stop.came and step < total:
                bar.write(STOPPED.format(step))
                return None
    return output


def _fill(model: DenseModel, folder: Path) -> None:
    """Begin with an earlier run's weights, or with the tower of a model folder, whatever picture size it had."""
    from safetensors.torch import load_file

    if (folder / WEIGHTS).is_file():
        found = load_file(folder / WEIGHTS)
    elif (folder / MODEL).is_file():
        found = {
            k.replace("vision.", "tower.", 1): v.float()
            for k, v in load_file(folder / MODEL).items() if k.startswith("vision.")
        }  # fmt: skip
        found |= {k: v for k, v in model.state_dict().items() if k.startswith("head.")}
    else:
        raise UserError(
            f"{folder} holds neither {WEIGHTS} nor {MODEL}.",
            "init is the output folder of a backbone run or a model folder.", "Leave init away to begin from nothing.",
        )  # fmt: skip
    grid = round((found["tower.trunk.pos_embed"].shape[1] - 1) ** 0.5)
    model.tower.resize(grid * model.tower.config.image_size // model.tower.trunk.patch_embed.grid_size[0])
    model.load_state_dict(found)
