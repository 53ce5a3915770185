"""A recipe of a few seconds, with images and text alone mixed, for the tests of the loop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from minigptv2.config import VisionConfig

ROOT = Path(__file__).parents[2]
STEM = [8] * len(VisionConfig.stem_channels)
MODEL = {
    "vision": {"width": 32, "depth": 1, "heads": 2, "stem_channels": STEM, "image_size": 112},
    "language": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "lora": {"r": 2},
}


def write_recipe(folder: Path, init: Path | str) -> Path:
    recipe = {
        "output": str(folder / "output"),
        "init": str(init),
        "trainable": ["projector", "lora"],
        "model": MODEL,
        "tokenizer_scenes": 40,
        "data": {
            "sources": [
                {"name": "scenes", "weight": 2, "options": {"count": 40, "exchanges": 3, "side": 112}},
                {"name": "sums", "weight": 1, "options": {"count": 40}},
            ],
            "num_workers": 0,
        },
        "max_steps": 4,
        "optim": {"global_batch_size": 8, "lr": 3e-3, "min_lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"save_every": 2},
        "log": {"log_every": 1, "tensorboard": False},
        "precision": "float32",
        "device": "cpu",
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def without_dropout(model: Path) -> None:
    """What several processes draw for dropout differs from what one draws: for comparisons there is none."""
    file = model / "config.json"
    file.write_text(file.read_text().replace('"dropout": 0.05', '"dropout": 0.0'))


def environment() -> dict[str, str]:
    threads = str(torch.get_num_threads())  # sums of floats depend on it
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}


def stop_after_two_steps(
    arguments: list[str], output: Path, sent: signal.Signals = signal.SIGTERM, code: int = 143
) -> str:
    """Run minigptv2 with these arguments, which write to output, and send this signal to all of its processes, which
    then ends with this exit code; what it told."""
    running = subprocess.Popen(
        [sys.executable, "-m", "minigptv2", *arguments],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    begun, log = time.monotonic(), output / "log.jsonl"
    while not log.is_file() or log.read_text().count("\n") < 2:
        assert running.poll() is None and time.monotonic() < begun + 280
        time.sleep(0.1)
    os.killpg(running.pid, sent)
    told, _ = running.communicate(timeout=60)
    assert running.returncode == code, told[-2000:]
    assert "stopped after step" in told and "Traceback" not in told, told[-2000:]
    return told
