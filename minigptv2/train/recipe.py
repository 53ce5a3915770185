"""What a train config may say. A recipe is data: the stages differ only in their YAML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from minigptv2.bundled import find_deepspeed, find_recipe
from minigptv2.config import LanguageConfig, LoraConfig, ModelConfig, VisionConfig, from_dict, overridden, read_yaml
from minigptv2.data.mixture import DataConfig, SourceConfig
from minigptv2.errors import UserError
from minigptv2.train.feature_cache import CacheConfig

RANDOM = "nothing"  # as init: a model of random weights


@dataclass
class Phase:
    """A phase of the backbone's pre-training. image_size: pixels; frame: of the whole image, where what is drawn is a
    window of it, with things as large in pixels as in the whole; 0: what is drawn is the whole. batch: images a step;
    views: how often a scene is seen; most: of the scenes, as `draw_scene` takes it; crowded: share of the scenes that
    are so. kinds, boxes: weights of these two losses, beside 1 for where things are and for their colours."""

    image_size: int
    steps: int
    batch: int
    views: int = 2
    most: int = 8
    frame: int = 0
    crowded: float = 0.0
    kinds: float = 1.0
    boxes: float = 0.5

    @property
    def canvas(self) -> int:
        """Pixels of a side of the whole image."""
        return self.frame or self.image_size


@dataclass
class Recipe:
    """kind: "backbone" pre-trains the vision tower, "stage" trains the whole on conversations.

    Where it begins and ends. output: folder of the run; the trained model is output/model. save: "whole", or "small"
    for nothing but what was trained, to be opened with base=. init: the model folder to begin from, or "bundled"; the
    backbone's run; "nothing" for random weights; or empty, and the model is put together from model.language.name and
    tower, a file of model.vision's weights. model: what to build where init is no model folder; of an init folder,
    only `knows`, and `lora` where it has no adapter yet, are changed. tokenizer_scenes: what is said about so many
    drawn scenes trains the tokenizer of a model that begins from a backbone or from nothing.

    What is trained. trained: what is not frozen; "lora" leaves the language model's own weights frozen. quantize: the
    frozen language model in few bits. data, cache: see `data/mixture.py` and `train/feature_cache.py`.

    How. max_steps: optimizer steps. batch: samples of one step, of all processes together. micro_batch: the most that a
    process computes at once; 0: its whole share of the batch. A larger share is divided evenly and computed one part
    after the other (gradient accumulation). lr, lowest_lr, warmup: linear for `warmup` steps, then a cosine. clip:
    largest norm of all gradients together; 0: none. precision: of products; empty: what this machine multiplies
    fastest. gradient_checkpointing: layers of the language model are computed twice, and little is kept in between.
    compile: these layers with torch.compile, which needs a C++ compiler. pack: rows laid out as one (`packing.pack`)
    instead of padded. attention: weight of a second loss, which shows tokens that write a box or name a thing where in
    the image to look (`train/attention_supervision.py`); 0: none. guided_steps: until this step they are also guided:
    at first such tokens see nothing else of the image, then more and more. deepspeed: a JSON file of DeepSpeed's.
    device: empty: a GPU where there is one.

    What is written. log_every, check_every, save_every: steps; check_every reads the accuracy on held-out scenes (0:
    never). keep: newest checkpoints that are kept. tensorboard: curves in output/tensorboard. wandb: a project's name.
    """

    output: str
    kind: Literal["stage", "backbone"] = "stage"
    init: str = ""
    tower: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    phases: list[Phase] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    trained: list[Literal["projector", "language", "lora"]] = field(default_factory=lambda: ["projector", "language"])
    quantize: Literal["", "8bit", "4bit"] = ""
    max_steps: int = 1000
    batch: int = 16
    micro_batch: int = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    lowest_lr: float = 1e-5
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 1
    workers: int = 1
    precision: Literal["", "float32", "bfloat16"] = ""
    gradient_checkpointing: bool = False
    compile: bool = False
    pack: bool = True
    attention: float = 0.0
    guided_steps: int = 0
    deepspeed: str = ""
    device: str = ""
    log_every: int = 25
    check_every: int = 0
    save_every: int = 250
    keep: int = 2
    save: Literal["whole", "small"] = "whole"
    tensorboard: bool = True
    wandb: str = ""
    tokenizer_scenes: int = 2500


def read_recipe(config: str | Path, overrides: list[str] = (), smoke: bool = False) -> Recipe:
    """The file's recipe with `a.b=c` overrides, which also hold against what --smoke makes of it.

    config: a file, or the name of a recipe that comes along (`bundled.find_recipe`).
    """
    file = find_recipe("train", config)
    recipe = from_dict(Recipe, read_yaml(file, list(overrides)), str(file))
    if smoke:
        recipe = from_dict(Recipe, overridden(asdict(_smoke(recipe)), list(overrides)), str(file))
    if recipe.deepspeed:
        recipe.deepspeed = find_deepspeed(recipe.deepspeed, file)
    for name, least in (
        ("max_steps", 0),
        ("batch", 1),
        ("micro_batch", 0),
        ("save_every", 1),
        ("log_every", 1),
        ("check_every", 0),
        ("keep", 1),
        ("workers", 0),
        ("warmup", 0),
        ("seed", 0),
        ("attention", 0),
        ("guided_steps", 0),
    ):
        if getattr(recipe, name) < least:
            raise UserError(
                f"{name} is {getattr(recipe, name)}.", f"It must be {least} or more.", "Correct it in the recipe."
            )
    if recipe.guided_steps and not recipe.attention:
        raise UserError(
            f"guided_steps is {recipe.guided_steps}, and attention is 0.",
            "Only supervised attention is guided.",
            "Give attention=1, or guided_steps=0.",
        )
    if recipe.attention and not recipe.pack:
        raise UserError(
            f"attention is {recipe.attention}, and pack is false.",
            "Attention is supervised in packed rows.",
            "Give attention=0, or pack=true.",
        )
    return recipe


def micro_batches(recipe: Recipe, processes: int) -> tuple[int, int]:
    """Samples of a micro-batch, and micro-batches of a process in a step. Raises UserError where they do not divide."""
    share, rest = divmod(recipe.batch, processes)
    if rest or not share:
        raise UserError(
            f"batch is {recipe.batch}, with {processes} processes.",
            "The batch must divide by the processes.",
            f"Try batch={max(1, share) * processes}.",
        )
    most = min(share, recipe.micro_batch or share)
    micro = max(n for n in range(1, most + 1) if share % n == 0)
    return micro, share // micro


def _smoke(recipe: Recipe) -> Recipe:
    """The same recipe on a model of a few thousand weights, drawn scenes, sums and two steps."""
    stem = (8,) * len(VisionConfig.stem_channels)
    model = replace(
        recipe.model,
        vision=VisionConfig(width=32, depth=1, heads=2, stem_channels=stem),
        merge=4,
        language=LanguageConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
        ),
        lora=LoraConfig(r=2),
    )
    scenes = [s for s in recipe.data.sources if s.name == "scenes"]
    if scenes:
        sources = [replace(s, options={**s.options, "count": 16, "exchanges": 4, "things": ""}) for s in scenes]
    else:
        sources = [SourceConfig("scenes", 3, {"count": 16, "exchanges": 4}), SourceConfig("sums", 1, {"count": 16})]
    return replace(
        recipe,
        model=model,
        phases=[replace(p, steps=2, batch=2) for p in recipe.phases],
        data=replace(recipe.data, sources=sources),
        output=recipe.output + "-smoke",
        cache=replace(recipe.cache, dir=recipe.cache.dir and recipe.cache.dir + "-smoke"),
        init=_smoke_init(recipe),
        tower="",
        quantize="",
        deepspeed="",
        save="whole",
        max_steps=2,
        batch=4,
        micro_batch=0,
        warmup=1,
        log_every=1,
        check_every=0,
        save_every=1,
        workers=0,
        compile=False,
        wandb="",
        tokenizer_scenes=60,
    )


def _smoke_init(recipe: Recipe) -> str:
    """Where the smoke run of the stage before left its result; random weights where it left none."""
    if recipe.kind == "backbone":
        return ""
    run, model = recipe.init.removesuffix("/model"), "/model" if recipe.init.endswith("/model") else ""
    before = Path(run + "-smoke" + model)
    return str(before) if recipe.init and before.is_dir() else RANDOM
