"""Benchmark: IconQA with choices in words. The choices are ranked by log-probability, as `asking.rank` says.

A row is a question folder, in the order of their numbers, from 0.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from minigptv2.data.dataset_files import require
from minigptv2.data.readers.iconqa import LAYOUT, PAGE, read_rows
from minigptv2.eval.benchmark import Question, ScoringRules, minigpt_v2
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.files import is_file
from minigptv2.tasks import EVALUATION


class IconQaBenchmark(ShortAnswerBenchmark):
    """root: holds `iconqa/<split>/choose_txt/<number>/data.json` and `image.png`."""

    def __init__(self, root: str, split: str = "val"):
        (folder,) = require(root, LAYOUT, split, PAGE)
        rows = list(read_rows(folder))
        files = (folder / row.key / "data.json" for row in rows)
        super().__init__(f"iconqa {split}", (file for file in files if is_file(file)))
        if split == "val":
            self.published = {"accuracy": minigpt_v2(47.7, 49.4, "arXiv 2310.09478v1")}
        for row, image in self.usable(rows, lambda row: folder / str(row.image), lambda row: f"{split} {row.key}"):
            asked = EVALUATION["iconqa"].replace("{}", row.question)
            same = _same_image(image)
            self.rows.append(
                Question(row.number, image, (0, 0), asked, same, row.answers[0], row.choices, words=row.question)
            )

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        """The right choice; words that are none of the choices are malformed."""
        said = answer.lower()
        if said not in [c.strip().lower() for c in item.candidates]:
            return None
        return {"accuracy": float(said == item.truth.strip().lower())}


def _same_image(image: Path) -> str:
    """The same for files that hold the same image, so that the bootstrap draws their questions together."""
    try:
        return hashlib.sha256(image.read_bytes()).hexdigest()[:16]
    except OSError:  # told where it is asked about
        return str(image.parent)
