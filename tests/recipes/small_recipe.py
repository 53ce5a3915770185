"""A recipe of a few seconds, with pictures and text alone mixed, for the tests of the loop."""

from pathlib import Path

import yaml

from minigptv2.config import VisionConfig

STEM = [8] * len(VisionConfig.stem_channels)
MODEL = {
    "vision": {"width": 32, "depth": 1, "heads": 2, "stem_channels": STEM, "image_size": 112},
    "language": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 2},
    "lora": {"r": 2},
}  # fmt: skip


def write_recipe(folder: Path, init: Path | str) -> Path:
    recipe = {
        "output": str(folder / "output"), "init": str(init), "trained": ["projector", "lora"], "model": MODEL,
        "tokenizer_scenes": 40,
        "data": {"sources": [
            {"name": "scenes", "weight": 2, "options": {"count": 40, "exchanges": 3, "side": 112}},
            {"name": "sums", "weight": 1, "options": {"count": 40}},
        ]},
        "max_steps": 4, "batch": 8, "lr": 3e-3, "lowest_lr": 1e-3, "warmup": 1, "log_every": 1, "save_every": 2,
        "workers": 0, "precision": "float32", "device": "cpu", "tensorboard": False,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def without_dropout(model: Path) -> None:
    """What several processes draw for dropout differs from what one draws: for comparisons there is none."""
    file = model / "config.json"
    file.write_text(file.read_text().replace('"dropout": 0.05', '"dropout": 0.0'))
