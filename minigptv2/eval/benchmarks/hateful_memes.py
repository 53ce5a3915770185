"""Benchmark: Hateful Memes, accuracy and area under the ROC curve. A row is a line of the file, from 0.

The two answers are ranked by log-probability. The score of an image is p(yes) / (p(yes) + p(no)); an answer without
log-probabilities scores 1 for yes and 0 for no.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigptv2.data.readers.hateful_memes import CHOICES, LAYOUT, PAGE, read_rows
from minigptv2.eval.benchmark import (
    Prediction,
    Question,
    Scored,
    ScoringRules,
    annotation_files,
    image_path,
    strip_special_tokens,
)
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.metrics.vqa import auc
from minigptv2.eval.published_results import published_results
from minigptv2.tasks import EVALUATION

_WORD = re.compile(rf"\b({'|'.join(CHOICES)})\b")


class HatefulMemesBenchmark(ShortAnswerBenchmark):
    """root: holds `dev.jsonl`, ... and `img/`; images: the folder that holds `img/`, if not root."""

    needs = ("scikit-learn",)

    def __init__(self, root: str, split: str = "dev", images: str = ""):
        (file,) = annotation_files(root, LAYOUT, split, PAGE)
        super().__init__(f"hateful_memes {split}", (file,))
        self.published = published_results(self.name)
        folder = Path(images or root)
        rows, where = read_rows(file), lambda row: f"{file.name} line {row.number + 1}"
        for row, image in self.usable(rows, lambda row: image_path(folder, str(row.image)), where):
            instruction = EVALUATION["hateful_memes"].replace("{}", row.question)
            self.rows.append(
                Question(
                    row.number, image, (0, 0), instruction, row.image, row.answers[0], row.choices, words=row.question
                )
            )

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        predicted = _yes_or_no(answer)
        return None if predicted is None else {"accuracy": float(predicted == item.truth)}

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        scored = super().score(items, predictions, rules)
        labels = {i.index: i.truth == CHOICES[1] for i in items}
        scores = {i.index: _score(predictions[i.index], labels[i.index]) for i in items}

        def area(indexes: Sequence[int]) -> float:
            return auc([scores[i] for i in indexes], [labels[i] for i in indexes])

        if len(set(labels.values())) == 2:
            scored.corpus["AUC"] = area
        return scored


def _yes_or_no(answer: str) -> str | None:
    words = set(_WORD.findall(answer.lower()))
    return words.pop() if len(words) == 1 else None


def _score(prediction: Prediction, hateful: bool) -> float:
    """The score of an image, 0..1; for a malformed or missing answer the worst one for its label."""
    if len(prediction.logprobs) == len(CHOICES):
        return 1 / (1 + math.exp(min(700.0, prediction.logprobs[0] - prediction.logprobs[1])))
    predicted = _yes_or_no(strip_special_tokens(prediction.text))
    return float(not hateful) if predicted is None else float(predicted == CHOICES[1])
