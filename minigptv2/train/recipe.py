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
    """How often each scene is used, each time with other random changes of its colours."""
    max_objects: int = 8
    """Most objects in a scene that is not crowded: 3, 4, 6 or 8."""
    canvas_size: int = 0
    """0, or the side in pixels of the canvas of which the training image is a crop at full resolution."""
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
    """Most samples that a process computes at once; 0: its whole share of the batch. A larger share is split evenly
    and its gradients are accumulated. Fewer samples need less memory; the loss and the gradients are the same."""
    lr: float = 1e-3
    """Peak learning rate: reached linearly after warmup_steps, then a cosine down to min_lr at max_steps."""
    min_lr: float = 1e-5
    """Learning rate of the last step."""
    warmup_steps: int = 100
    """Optimizer steps of the linear warm-up."""
    weight_decay: float = 0.05
    """Of matrices and kernels; norms and biases have none."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, taken over all of them; 0: never."""
    attention_loss_weight: float = 0.0
    """Weight of the attention loss, which teaches tokens that write a box or name an object where in the image to look
    (`train/attention_supervision.py`); 0: none. Needs data.pack."""
    attention_guidance_steps: int = 0
    """Until this step these tokens are also guided: at first they see nothing else of the image, then more and more.
    Needs attention_loss_weight."""


@dataclass
class CheckpointConfig:
    """What of a run is written to the disk."""

    save_every: int = 250
    """Optimizer steps between two checkpoints. One holds the trained weights and the optimizer's state."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    save: Literal["full", "trainable"] = "full"
    """The model in output/model: full, or only its trainable weights, to be opened with the model it began from as
    base."""

    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"save": {"whole": "full", "small": "trainable"}}


@dataclass
class LogConfig:
    """What a run reports on the way."""

    log_every: int = 25
    """Optimizer steps between two rows of output/log.jsonl."""
    eval_every: int = 0
    """Optimizer steps between two measurements of the accuracy on held-out scenes; 0: never."""
    tensorboard: bool = True
    """Write curves to output/tensorboard, where TensorBoard is installed."""
    wandb: str = ""
    """Project of Weights & Biases that the curves also go to; empty: none."""


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
    """Folder of the run. The trained model is output/model."""
    task: Literal["finetune", "pretrain_vision"] = "finetune"
    """finetune: train the whole model on conversations. pretrain_vision: train the small vision tower alone, on drawn
    scenes, before that."""
    init: str = ""
    """What the weights begin from: a model folder, or "bundled"; the output of a pretrain_vision run; "random"; or
    empty, and the model is put together from model.language.name and vision_weights."""
    vision_weights: str = ""
    """File of the weights of the vision tower that model.vision describes, such as eva_vit_g.pth."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to build where init is not a model folder. Of an init folder only description changes, and lora where
    it has no adapter yet."""
    tokenizer_scenes: int = 2500
    """The questions and answers about this many drawn scenes train the tokenizer of a model that begins from random
    weights or from a pretrain_vision run."""
    trainable: list[Literal["projector", "language", "lora"]] = field(default_factory=lambda: ["projector", "language"])
    """The parts that are trained; all else is frozen. lora leaves the language model's own weights frozen."""
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
    """What of a run is written to the disk."""
    log: LogConfig = field(default_factory=LogConfig)
    """What a run reports on the way."""
    max_steps: int = 1000
    """Optimizer steps of the run."""
    seed: int = 1
    """Of the order of the samples, of dropout and of new weights."""
    precision: Literal["", "float32", "bfloat16"] = ""
    """Number format of the products; trained weights are float32. Empty: what this machine multiplies fastest."""
    gradient_checkpointing: bool = False
    """Compute the layers of the language model again in the backward pass: less memory, more time."""
    compile: bool = False
    """Run these layers through torch.compile. Needs a C++ compiler; the first steps take longer."""
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
    sources = read_yaml(file, kind=list)
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
    """Where the smoke run of the stage before left its result; random weights where it left none."""
    if recipe.task == "pretrain_vision":
        return ""
    run, model = recipe.init.removesuffix("/model"), "/model" if recipe.init.endswith("/model") else ""
    before = Path(run + "-smoke" + model)
    return str(before) if recipe.init and before.is_dir() else RANDOM
