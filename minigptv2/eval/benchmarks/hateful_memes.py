"""Benchmark: Hateful Memes, accuracy and area under the ROC curve. A row is a line of the file, from 0.

The two answers are ranked by log-probability; the score of an image is the share of "yes" in their probabilities.
An answer without log-probabilities counts as 1 for yes and 0 for no.
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
    minigpt_v2,
    strip_special_tokens,
)
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.metrics.vqa import auc
from minigptv2.tasks import EVALUATION

_WORD = re.compile(rf"\b({'|'.join(CHOICES)})\b")


class HatefulMemesBenchmark(ShortAnswerBenchmark):
    """root: holds `dev.jsonl`, ... and `img/`; images: where `img/` lies, if not in root."""

    needs = ("scikit-learn",)

    def __init__(self, root: str, split: str = "dev", images: str = ""):
        (file,) = annotation_files(root, LAYOUT, split, PAGE)
        super().__init__(f"hateful_memes {split}", (file,))
        if split == "dev":
            self.published = {"accuracy": minigpt_v2(58.2, 59.5, "arXiv 2310.09478v1")}
        folder = Path(images or root)
        rows, where = read_rows(file), lambda row: f"{file.name} line {row.number + 1}"
        for row, image in self.usable(rows, lambda row: image_path(folder, str(row.image)), where):
            asked = EVALUATION["hateful_memes"].replace("{}", row.question)
            self.rows.append(
                Question(row.number, image, (0, 0), asked, row.image, row.answers[0], row.choices, words=row.question)
            )

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        said = _yes_or_no(answer)
        return None if said is None else {"accuracy": float(said == item.truth)}

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        scored = super().score(items, predictions, rules)
        labels = {i.index: i.truth == CHOICES[1] for i in items}
        shares = {i.index: _share(predictions[i.index], labels[i.index]) for i in items}

        def area(indexes: Sequence[int]) -> float:
            return auc([shares[i] for i in indexes], [labels[i] for i in indexes])

        if len(set(labels.values())) == 2:
            scored.corpus["AUC"] = area
        return scored


def _yes_or_no(answer: str) -> str | None:
    found = set(_WORD.findall(answer.lower()))
    return found.pop() if len(found) == 1 else None


def _share(prediction: Prediction, hateful: bool) -> float:
    """The score of an image, 0..1; of a malformed or missing answer the worst one for its label."""
    if len(prediction.logprobs) == len(CHOICES):
        return 1 / (1 + math.exp(min(700.0, prediction.logprobs[0] - prediction.logprobs[1])))
    said = _yes_or_no(strip_special_tokens(prediction.text))
    return float(not hateful) if said is None else float(said == CHOICES[1])
