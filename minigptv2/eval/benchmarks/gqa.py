"""Benchmark: GQA, one answer a question. A row is a question in the order of the file, from 0."""

from __future__ import annotations

from minigptv2.data.readers import gqa
from minigptv2.eval.benchmark import Question, ScoringRules, annotation_files, image_folder, image_path
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.published_results import published_results
from minigptv2.tasks import EVALUATION


class GqaBenchmark(ShortAnswerBenchmark):
    """root: holds the questions and `images/`, or `images` names that folder. questions: the file's name below root."""

    def __init__(self, root: str, split: str = "testdev", images: str = "", questions: str = ""):
        (file,) = annotation_files(root, gqa.LAYOUT, split, gqa.PAGE, (questions,))
        super().__init__(f"gqa {split if not questions else questions.removesuffix('.json')}", (file,))
        self.published = published_results(self.name) if not questions else {}
        folder = image_folder(root, images, "images")
        for row, image in self.usable(gqa.read_rows(file), lambda row: image_path(folder, str(row.image))):
            instruction = EVALUATION["gqa"].replace("{}", row.question)
            self.rows.append(
                Question(
                    row.number, image, (0, 0), instruction, row.image, row.answers[0], words=row.question, key=row.key
                )
            )

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float]:
        """Equal in lower case; strict ignores a full stop at the end."""
        answer = answer.lower() if rules.scoring == "compat" else answer.lower().rstrip(".").strip()
        return {"accuracy": float(answer == item.truth.lower())}
