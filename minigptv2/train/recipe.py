"""What a train config may say. A recipe is data: the stages differ only in their YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from minigptv2.config import ModelConfig

TASKS = ("caption", "grounding", "refer", "identify", "detection", "statement", "vqa", "chat")


@dataclass
class Phase:
    """A phase of the backbone's pre-training. image_size: pixels; batch: pictures a step; views: how often a scene is
    seen; most, zoom: of the scenes, as `draw_scene` takes them."""

    image_size: int
    steps: int
    batch: int
    views: int = 2
    most: int = 8
    zoom: float = 1.0


@dataclass
class DataConfig:
    """scenes: how many drawn scenes the feature cache holds. exchanges: questions asked about a picture in one row.
    tasks: share of each. most: [from step, at most so many things], the curriculum. dialogues: share of the rows that
    are one conversation with memory instead of independent questions side by side."""

    scenes: int = 20000
    seed: int = 11
    exchanges: int = 12
    tasks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))
    most: list[list[int]] = field(default_factory=lambda: [[0, 8]])
    dialogues: float = 0.0


@dataclass
class Recipe:
    """kind: "backbone" pre-trains the vision tower, "stage" trains the whole on conversations.

    output: folder of the run; the trained model is output/model. init: the model folder to begin from, or
    the backbone's run for the first stage. cache: folder of the tower's features. trained: what is not frozen.
    compile: the layers of the language model with torch.compile, which needs a C++ compiler.
    """

    output: str
    kind: Literal["stage", "backbone"] = "stage"
    init: str = ""
    cache: str = "output/tiny/features"
    model: ModelConfig = field(default_factory=ModelConfig)
    phases: list[Phase] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    trained: list[Literal["projector", "language", "lora"]] = field(default_factory=lambda: ["projector", "language"])
    steps: int = 1000
    batch: int = 16
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    lowest_lr: float = 1e-5
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 1
    workers: int = 1
    log_every: int = 25
    check_every: int = 500
    save_every: int = 250
    device: str = ""
    compile: bool = False
