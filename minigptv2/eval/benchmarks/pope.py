"""Benchmark: POPE, object hallucination. Yifan Li et al., arXiv 2305.10355.

A row is a line of `coco_pope_<split>.json`, from 0:

    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
     "label": "yes"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigptv2.data.annotations import InvalidRecord, check_choice, field, text_field, unique
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.json_files import read_json_lines
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Prediction, Question, Scored, ScoringRules, strip_special_tokens
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.tasks import EVALUATION

SPLITS = ("random", "popular", "adversarial")
_NUMBER = re.compile(r"(\d{12})\.jpg$")
_WORD = re.compile(r"\b(yes|no)\b")
_NO = {"no", "not"}


class PopeBenchmark(ShortAnswerBenchmark):
    """root: holds `coco_pope_<split>.json`, or `coco/` does. images: COCO's images, if not in root."""

    def __init__(self, root: str, split: str = "adversarial", images: str = ""):
        check_choice("split", split, SPLITS)
        places = [Path(root, folder, f"coco_pope_{split}.json") for folder in ("", "coco")]
        file = next((p for p in places if p.is_file()), None)
        if file is None:
            raise UserError(
                f"{root} holds no coco_pope_{split}.json.",
                f"Looked for {places[0]} and {places[1]}.",
                "Get it from https://github.com/AoiDragon/POPE, output/coco.",
            )
        super().__init__(f"pope {split}", (file,))
        coco, seen = CocoImages(images or root), set()
        for number, row in read_json_lines(file):
            try:
                if isinstance(row, InvalidRecord):
                    raise row
                name, words, label = text_field(row, "image"), text_field(row, "text"), text_field(row, "label").lower()
                number_in_name = _NUMBER.search(name)
                if number_in_name is None:
                    raise InvalidRecord("an 'image' that names no image of COCO")
                if label not in ("yes", "no"):
                    raise InvalidRecord("a 'label' other than yes and no")
                if not unique(seen, field(row, "question_id", (int, str))):
                    raise InvalidRecord("a second question of the same 'question_id'")
            except InvalidRecord as error:
                self.leave_out(number, error, f"{file.name} line {number + 1}")
                continue
            path = coco.find(int(number_in_name[1]))
            instruction = EVALUATION["pope"].replace("{}", words)
            key = str(row["question_id"])
            self.rows.append(Question(number, path, (0, 0), instruction, str(path), label, words=words, key=key))

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        predicted = _yes_or_no(answer, rules)
        return None if predicted is None else {"accuracy": float(predicted == item.truth)}

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        """Precision, recall and F1 are of "yes". A malformed or missing answer counts as the wrong one."""
        scored = super().score(items, predictions, rules)
        label = {i.index: i.truth == "yes" for i in items}
        # a correct answer is the label; a wrong, malformed or missing one is its opposite
        predicted = {i.index: label[i.index] == bool(scored.outcomes["accuracy"][i.index]) for i in items}

        def fraction(values: Sequence[bool]) -> float:
            return sum(values) / len(values) if values else 0.0

        def precision(indexes: Sequence[int]) -> float:
            return fraction([label[i] for i in indexes if predicted[i]])

        def recall(indexes: Sequence[int]) -> float:
            return fraction([predicted[i] for i in indexes if label[i]])

        def f1(indexes: Sequence[int]) -> float:
            p, r = precision(indexes), recall(indexes)
            return 2 * p * r / (p + r) if p + r else 0.0

        texts = {i.index: strip_special_tokens(predictions[i.index].text) for i in items}
        said_yes = {index: _yes_or_no(text, rules) == "yes" for index, text in texts.items()}  # malformed: no
        scored.corpus = {
            "precision": precision,
            "recall": recall,
            "F1": f1,
            "yes ratio": lambda indexes: fraction([said_yes[i] for i in indexes]),
        }
        return scored


def _yes_or_no(answer: str, rules: ScoringRules) -> str | None:
    """strict: the first "yes" or "no" of the answer. compat, as the official code: "no" if the first sentence holds
    "no" or "not", else "yes"."""
    if rules.scoring == "strict":
        word = _WORD.search(answer.lower())
        return word[1] if word else None
    words = answer.split(".")[0].replace(",", "").lower().split()
    return "no" if _NO & set(words) else "yes"
