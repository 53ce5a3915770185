"""What a train config may say. A recipe is data: the stages differ only in their YAML.

Each field is documented by the string under it; `minigptv2 train CONFIG --print-config` prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

from minigptv2.bundled import find_deepspeed, find_mixture, find_recipe
from minigptv2.config import (
    LanguageConfig,
    LoraConfig,
    ModelConfig,
    VisionConfig,
    from_dict,
    overridden,
    present_keys,
    present_overrides,
    read_yaml,
)
from minigptv2.data.mixture import DataConfig, SourceConfig
from minigptv2.errors import UserError
from minigptv2.train.feature_cache import CacheConfig

RANDOM = "random"  # as init: a model of random weights


@dataclass
class Phase:
    """One phase of the vision pre-training: images of one size."""

    RENAMED: ClassVar[dict[str, str]] = {
        "batch": "batch_size",
        "views": "views_per_scene",
        "most": "max_objects",
        "frame": "canvas_size",
        "crowded": "crowded_fraction",
        "kinds": "class_loss_weight",
        "boxes": "box_loss_weight",
    }

    image_size: int
    """Side of a training image, in pixels."""
    steps: int
    """Optimizer steps of this phase."""
    batch_size: int
    """Images per optimizer step."""
    views_per_scene: int = 2
    """Average number of uses of each scene, each time with new random mirroring and colours."""
    max_objects: int = 8
    """Maximum number of objects in a scene that is not crowded: 3, 4, 6 or 8."""
    canvas_size: int = 0
    """Side of the canvas in pixels: objects are drawn as in a crop of an image of this size. 0: image_size, no crop."""
    crowded_fraction: float = 0.0
    """Fraction of the scenes that are crowded, 0 to 1."""
    class_loss_weight: float = 1.0
    """Weight of the object-class loss, relative to 1 for objectness and colour."""
    box_loss_weight: float = 0.5
    """Weight of the box loss, relative to 1 for objectness and colour."""

    @property
    def canvas(self) -> int:
        """Side of the canvas, in pixels."""
        return self.canvas_size or self.image_size


@dataclass
class OptimConfig:
    """Batch, optimizer, learning rate and losses."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for matrices and convolution kernels, with adamw for everything else."""
    global_batch_size: int = 16
    """Samples per optimizer step, over all processes."""
    micro_batch_size: int = 0
    """Maximum number of samples in one forward pass of a process; 0: no maximum. If a process has more samples per
    step, it splits them evenly and accumulates gradients. A smaller value needs less memory and gives the same loss and
    gradients."""
    lr: float = 1e-3
    """Peak learning rate: reached linearly after warmup_steps, then a cosine down to min_lr at max_steps."""
    min_lr: float = 1e-5
    """Learning rate of the last step."""
    warmup_steps: int = 100
    """Optimizer steps of the linear warm-up."""
    weight_decay: float = 0.05
    """Weight decay of matrices and convolution kernels. Norms, biases, embeddings and positions have none."""
    max_grad_norm: float = 1.0
    """Maximum norm of all gradients together; larger gradients are scaled down to it. 0: no clipping."""
    attention_loss_weight: float = 0.0
    """Weight of the attention loss, which teaches tokens that write a box or name an object where in the image to look
    (`train/attention_supervision.py`); 0: none. Needs data.pack."""
    attention_guidance_steps: int = 0
    """Number of steps with attention guidance, which forces the attention of these tokens towards their targets: fully
    at step 0, then linearly less. 0: no guidance. Needs attention_loss_weight."""


@dataclass
class CheckpointConfig:
    """Checkpoints, and the model that a run saves."""

    save_every: int = 250
    """Optimizer steps between two checkpoints. One holds the trained weights and the optimizer's state."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, the newest ones."""
    save: Literal["full", "trainable"] = "full"
    """What output/model holds. full: all weights. trainable: only the trained weights; to open it, give the initial
    model as base."""

    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"save": {"whole": "full", "small": "trainable"}}


@dataclass
class LogConfig:
    """Logs, and validation during training."""

    log_every: int = 25
    """Optimizer steps between two rows of output/log.jsonl."""
    eval_every: int = 0
    """Optimizer steps between two measurements of the accuracy on held-out scenes; 0: never."""
    tensorboard: bool = True
    """Write curves to output/tensorboard, where TensorBoard is installed."""
    wandb: str = ""
    """Project of Weights & Biases to which curves are also written; empty: none."""


@dataclass
class Recipe:
    """A training run."""

    RENAMED: ClassVar[dict[str, str]] = {
        "kind": "task",
        "tower": "vision_weights",
        "trained": "trainable",
        "batch": "optim.global_batch_size",
        "micro_batch": "optim.micro_batch_size",
        "optimizer": "optim.name",
        "lr": "optim.lr",
        "lowest_lr": "optim.min_lr",
        "warmup": "optim.warmup_steps",
        "weight_decay": "optim.weight_decay",
        "clip": "optim.max_grad_norm",
        "attention": "optim.attention_loss_weight",
        "guided_steps": "optim.attention_guidance_steps",
        "workers": "data.num_workers",
        "pack": "data.pack",
        "save_every": "checkpoint.save_every",
        "keep": "checkpoint.keep_checkpoints",
        "save": "checkpoint.save",
        "log_every": "log.log_every",
        "check_every": "log.eval_every",
        "tensorboard": "log.tensorboard",
        "wandb": "log.wandb",
    }
    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {
        "task": {"stage": "finetune", "backbone": "pretrain_vision"},
        "init": {"nothing": RANDOM},
        "quantize": {"8bit": "bnb-int8", "4bit": "bnb-nf4"},
    }

    output: str
    """Folder of the run. finetune saves its model in output/model."""
    task: Literal["finetune", "pretrain_vision"] = "finetune"
    """finetune: train the parts in `trainable` on questions and answers, with a frozen vision tower. pretrain_vision:
    train only a small vision tower, on drawn scenes; finetune then starts from it."""
    init: str = ""
    """Initial weights: a model folder, "bundled", the output folder of a pretrain_vision run, or "random". Empty: the
    language model of model.language.name and the tower of vision_weights, with a new projector; in pretrain_vision,
    random weights."""
    vision_weights: str = ""
    """Weight file of the vision tower in model.vision, such as eva_vit_g.pth. Used where init is empty."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture of a new model. If init is a model folder, its own config is used instead; only description, and
    lora if the folder has no adapter, are taken from here."""
    tokenizer_scenes: int = 2500
    """Number of drawn scenes whose questions and answers train a new tokenizer. Used where init is "random" or a
    pretrain_vision run."""
    trainable: list[Literal["projector", "language", "lora"]] = field(default_factory=lambda: ["projector", "language"])
    """Parts to train; all others are frozen. language: all weights of the language model. lora: only its adapter."""
    quantize: Literal["", "bnb-int8", "bnb-nf4"] = ""
    """Keep the frozen language model in 8 or 4 bits (bitsandbytes); empty: in full precision."""
    phases: list[Phase] = field(default_factory=list)
    """The phases of pretrain_vision, one after another."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data sets, how they are mixed and how they are read."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Features of the frozen vision tower, computed once and kept on the disk."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Batch, optimizer, learning rate and losses."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints, and the model that a run saves."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logs, and validation during training."""
    max_steps: int = 1000
    """Optimizer steps of the run."""
    seed: int = 1
    """Random seed of the data order, dropout and new weights."""
    precision: Literal["", "float32", "bfloat16"] = ""
    """Dtype of matrix products (mixed precision); trained weights are float32. Empty: the fastest of this device."""
    gradient_checkpointing: bool = False
    """Recompute the activations of the language model in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the layers of the language model with torch.compile. Needs a C++ compiler; the first steps are slower."""
    deepspeed: str = ""
    """JSON file of DeepSpeed's, for its ZeRO stage and offload; empty: without DeepSpeed."""
    device: str = ""
    """cpu, cuda or cuda:N; empty: a GPU where there is one."""


_MINIMA = {
    "max_steps": 0,
    "seed": 0,
    "optim.global_batch_size": 1,
    "optim.micro_batch_size": 0,
    "optim.warmup_steps": 0,
    "optim.attention_loss_weight": 0,
    "optim.attention_guidance_steps": 0,
    "checkpoint.save_every": 1,
    "checkpoint.keep_checkpoints": 1,
    "log.log_every": 1,
    "log.eval_every": 0,
    "data.num_workers": 0,
}


def read_recipe(config: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """The recipe of a YAML file, changed by `a.b=c` overrides; smoke: and shrunk to two steps on a tiny model.

    config: a file, or the name of a bundled recipe (`bundled.find_recipe`). Keys of older versions are read under their
    present names. Overrides also hold against what `smoke` changes. Raises UserError for unknown keys and wrong values.
    """
    file = find_recipe("train", config)
    overrides = present_overrides(Recipe, overrides)
    data = _with_included(present_keys(Recipe, read_yaml(file), str(file)), file)
    recipe = from_dict(Recipe, overridden(data, overrides), str(file))
    if smoke:
        recipe = from_dict(Recipe, overridden(asdict(_smoke(recipe)), overrides), str(file))
    if recipe.deepspeed:
        recipe.deepspeed = find_deepspeed(recipe.deepspeed, file)
    for key, minimum in _MINIMA.items():
        if (value := attrgetter(key)(recipe)) < minimum:
            raise UserError(f"{key} is {value}.", f"It must be {minimum} or more.", "Correct it in the recipe.")
    optim = recipe.optim
    if optim.attention_guidance_steps and not optim.attention_loss_weight:
        raise UserError(
            f"optim.attention_guidance_steps is {optim.attention_guidance_steps}; optim.attention_loss_weight is 0.",
            "Only supervised attention is guided.",
            "Give optim.attention_loss_weight=1, or optim.attention_guidance_steps=0.",
        )
    if optim.attention_loss_weight and not recipe.data.pack:
        raise UserError(
            f"optim.attention_loss_weight is {optim.attention_loss_weight}, and data.pack is false.",
            "Attention is supervised in packed rows.",
            "Give optim.attention_loss_weight=0, or data.pack=true.",
        )
    return recipe


def _with_included(data: dict[str, Any], file: Path) -> dict[str, Any]:
    """The mapping with the sources of its data.include files before its own; then nothing is left to include."""
    section = data.get("data")
    if not isinstance(section, dict) or not section.get("include"):
        return data
    names, own = section["include"], section.get("sources") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"data.include is {names!r}.", "It must be a list of YAML files.", "Try [data/fine.yaml].")
    if not isinstance(own, list):
        return data  # which `from_dict` refuses
    sources = [source for name in names for source in _sources_of(find_mixture(name, file))]
    return {**data, "data": {**section, "include": [], "sources": sources + own}}


def _sources_of(file: Path) -> list[Any]:
    sources = read_yaml(file, expected=list)
    return present_keys(list[SourceConfig], sources, str(file))


def micro_batches(recipe: Recipe, processes: int) -> tuple[int, int]:
    """Samples of a micro-batch, and micro-batches of a process in a step. Raises UserError where they do not divide."""
    batch = recipe.optim.global_batch_size
    share, rest = divmod(batch, processes)
    if rest or not share:
        raise UserError(
            f"optim.global_batch_size is {batch}, with {processes} processes.",
            "The batch must divide by the processes.",
            f"Try optim.global_batch_size={max(1, share) * processes}.",
        )
    largest = min(share, recipe.optim.micro_batch_size or share)
    micro = max(n for n in range(1, largest + 1) if share % n == 0)
    return micro, share // micro


def _smoke(recipe: Recipe) -> Recipe:
    """The same recipe on a model of a few thousand weights, drawn scenes, arithmetic and two steps."""
    stem = (8,) * len(VisionConfig.stem_channels)
    model = replace(
        recipe.model,
        vision=VisionConfig(width=32, depth=1, heads=2, stem_channels=stem),
        patches_per_token=4,
        language=LanguageConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
        ),
        lora=LoraConfig(r=2),
    )
    scenes = [s for s in recipe.data.sources if s.name == "scenes"]
    few = {"count": 16, "questions_per_scene": 4}
    if scenes:
        sources = [replace(s, options={**s.options, **few, "cache_dir": ""}) for s in scenes]
    else:
        sources = [SourceConfig("scenes", 3, few), SourceConfig("arithmetic", 1, {"count": 16})]
    return replace(
        recipe,
        output=recipe.output + "-smoke",
        init=_smoke_init(recipe),
        vision_weights="",
        model=model,
        tokenizer_scenes=60,
        quantize="",
        phases=[replace(p, steps=2, batch_size=2) for p in recipe.phases],
        data=replace(recipe.data, sources=sources, num_workers=0),
        cache=replace(recipe.cache, dir=recipe.cache.dir and recipe.cache.dir + "-smoke"),
        optim=replace(recipe.optim, global_batch_size=4, micro_batch_size=0, warmup_steps=1),
        checkpoint=replace(recipe.checkpoint, save_every=1, save="full"),
        log=replace(recipe.log, log_every=1, eval_every=0, wandb=""),
        max_steps=2,
        compile=False,
        deepspeed="",
    )


def _smoke_init(recipe: Recipe) -> str:
    """The output of the previous stage's smoke run; "random" if there is none."""
    if recipe.task == "pretrain_vision":
        return ""
    run, model = recipe.init.removesuffix("/model"), "/model" if recipe.init.endswith("/model") else ""
    before = Path(run + "-smoke" + model)
    return str(before) if recipe.init and before.is_dir() else RANDOM
