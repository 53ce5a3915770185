"""`minigptv2 eval CONFIG`: run the benchmarks of a config, print a table, write predictions and a report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from minigptv2.config import from_dict, read_yaml


@dataclass
class ScenesConfig:
    """count: held-out pictures. seed: which ones. batch: pictures whose questions are asked together."""

    count: int = 1000
    seed: int = 1
    batch: int = 48


@dataclass
class EvalConfig:
    """model: a model folder, "" for the bundled one. output: folder for predictions.jsonl and report.json."""

    scenes: ScenesConfig
    model: str = ""
    output: str = "output/eval"
    device: str = ""
    dtype: str = "float32"


def run(config: str | Path, overrides: list[str] = (), smoke: bool = False) -> dict[str, float]:
    """Evaluate and print; returns the metrics. smoke: 8 pictures."""
    from tqdm import tqdm

    from minigptv2.api import MiniGPTv2
    from minigptv2.eval.scenes import Score, ask_all

    wanted = from_dict(EvalConfig, read_yaml(Path(config), list(overrides)), str(config))
    if smoke:
        wanted.scenes.count = 8
    model = MiniGPTv2.from_pretrained(wanted.model or None, wanted.device or None, wanted.dtype)
    output, score, began, asked = Path(wanted.output), Score(), time.time(), 0
    output.mkdir(parents=True, exist_ok=True)
    size = (model.config.vision.image_size,) * 2
    with (
        open(output / "predictions.new", "w", encoding="utf-8") as file,
        tqdm(desc="eval scenes", unit=" answers") as bar,
    ):
        for kind, exchange, answer, scene in ask_all(
            model, wanted.scenes.seed, wanted.scenes.count, wanted.scenes.batch
        ):
            score.add(kind, exchange, answer, size)
            asked += 1
            things = [[t.name, *t.box.xyxy] for t in scene.things]
            phrases = [{"text": p.text, "boxes": [b.xyxy for b in p.boxes]} for p in exchange.phrases]
            row = {"kind": kind, "question": exchange.question, "phrases": phrases, "wanted": exchange.answer,
                   "answer": answer.to_dict(), "things": things}  # fmt: skip
            file.write(json.dumps(row) + "\n")
            bar.update()
    (output / "predictions.new").replace(output / "predictions.jsonl")
    metrics = dict(score.metrics())
    seconds = time.time() - began
    report = {
        "metrics": metrics,
        "pictures": wanted.scenes.count,
        "seed": wanted.scenes.seed,
        "model": wanted.model or "bundled",
        "seconds": round(seconds),
        "answers_per_second": round(asked / seconds, 2),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(metrics, wanted.scenes.count))
    return metrics


def table(metrics: dict[str, float], pictures: int) -> str:
    """The figures as a Markdown table."""
    rows = [f"| figure on held-out scenes ({pictures} pictures) | measured |", "|---|---|"]
    rows += [
        f"| {name} | {value if isinstance(value, int) else format(value, '.3f')} |" for name, value in metrics.items()
    ]
    return "\n".join(rows)
