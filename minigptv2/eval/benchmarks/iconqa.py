"""Benchmark: IconQA with choices in words. The choices are ranked by log-probability, see `inference.rank`.

A row is a question folder, in the order of their numbers, from 0.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from minigptv2.data.dataset_files import require
from minigptv2.data.readers.iconqa import LAYOUT, PAGE, read_rows
from minigptv2.eval.benchmark import Question, ScoringRules
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.published_results import published_results
from minigptv2.files import is_file
from minigptv2.tasks import EVALUATION


class IconQaBenchmark(ShortAnswerBenchmark):
    """root: holds `iconqa/<split>/choose_txt/<number>/data.json` and `image.png`."""

    def __init__(self, root: str, split: str = "val"):
        (folder,) = require(root, LAYOUT, split, PAGE)
        rows = list(read_rows(folder))
        files = (folder / row.key / "data.json" for row in rows)
        super().__init__(f"iconqa {split}", (file for file in files if is_file(file)))
        self.published = published_results(self.name)
        for row, image in self.usable(rows, lambda row: folder / str(row.image), lambda row: f"{split} {row.key}"):
            instruction = EVALUATION["iconqa"].replace("{}", row.question)
            image_key = _hash_of(image)
            self.rows.append(
                Question(
                    row.number, image, (0, 0), instruction, image_key, row.answers[0], row.choices, words=row.question
                )
            )

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        """Whether it is the correct choice; text that is not one of the choices is malformed."""
        answer = answer.lower()
        if answer not in [c.strip().lower() for c in item.candidates]:
            return None
        return {"accuracy": float(answer == item.truth.strip().lower())}


def _hash_of(image: Path) -> str:
    """Equal for files with the same content, so that the bootstrap draws their questions together."""
    try:
        return hashlib.sha256(image.read_bytes()).hexdigest()[:16]
    except OSError:  # reported when the question is asked
        return str(image.parent)
