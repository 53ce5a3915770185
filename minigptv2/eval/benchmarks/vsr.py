"""Benchmark: Visual Spatial Reasoning, statements that are true or false. A row is a line of the file, from 0."""

from __future__ import annotations

import re

from minigptv2.data.readers.vsr import VSR
from minigptv2.eval.benchmark import Question, ScoringRules, minigpt_v2
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.tasks import EVALUATION

_WORD = re.compile(r"\b(true|false)\b")


class VsrBenchmark(ShortAnswerBenchmark):
    """root, dataset, split, images: as `data.vsr.VSR` has them, `dataset` being its kind, "zeroshot" or "random"."""

    def __init__(self, root: str, dataset: str = "zeroshot", split: str = "test", images: str = ""):
        reader = VSR(root, dataset, split, images)
        super().__init__(f"vsr {dataset} {split}", (reader.file,))
        self.problems, self.excluded = reader.problems, dict(reader.excluded)
        if (dataset, split) == ("zeroshot", "test"):
            self.published = {"accuracy": minigpt_v2(60.6, 63.3, "arXiv 2310.09478v1")}
        for number, image, statement, true, _ in reader.records:
            asked = EVALUATION["vsr"].replace("{}", statement)
            label = "true" if true else "false"
            self.rows.append(Question(number, image, (0, 0), asked, str(image), label, words=statement))

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        """One of the two words must stand in the answer, in any case, and not both."""
        said = set(_WORD.findall(answer.lower()))
        return {"accuracy": float(said == {item.truth})} if len(said) == 1 else None
