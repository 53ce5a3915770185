"""Benchmark: Visual Spatial Reasoning, statements that are true or false. A row is a line of the file, from 0."""

from __future__ import annotations

import re
from typing import ClassVar

from minigptv2.data.readers.vsr import VSR
from minigptv2.eval.benchmark import Question, ScoringRules
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.published_results import published_results
from minigptv2.tasks import EVALUATION

_WORD = re.compile(r"\b(true|false)\b")


class VsrBenchmark(ShortAnswerBenchmark):
    """root, variant, split, images: as in `data.readers.vsr.VSR`. variant: the split's type, "zeroshot" or "random"."""

    RENAMED: ClassVar[dict[str, str]] = {"dataset": "variant"}

    def __init__(self, root: str, variant: str = "zeroshot", split: str = "test", images: str = ""):
        reader = VSR(root, variant, split, images)
        super().__init__(f"vsr {variant} {split}", (reader.file,))
        self.problems, self.excluded = reader.problems, dict(reader.excluded)
        self.published = published_results(self.name)
        for number, image, statement, true, _ in reader.records:
            instruction = EVALUATION["vsr"].replace("{}", statement)
            label = "true" if true else "false"
            self.rows.append(Question(number, image, (0, 0), instruction, str(image), label, words=statement))

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        """The answer must hold one of the two words, in upper or lower case, and not both."""
        words = set(_WORD.findall(answer.lower()))
        return {"accuracy": float(words == {item.truth})} if len(words) == 1 else None
