"""Benchmark: phrases for objects that are not in the image, which should be refused instead of given a box.

COCO's annotations are complete for their 80 categories, so a category without annotation is absent. Each image is asked
for one absent category. The seed chooses it among those that most often occur in images with the same objects, so that
guessing by the scene does not help. A row is an index in the list `images`, from 0.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from minigptv2.eval.benchmark import Prediction, Published, Question, Scored, ScoredAnswer, ScoringRules
from minigptv2.eval.benchmarks.coco_detection import CocoDetectionBenchmark
from minigptv2.eval.benchmarks.refcoco import answer_boxes
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import instruction_text

LIKELY = 5  # categories among which one is chosen: those that most often occur with the image's own


class AbsentPhrasesBenchmark:
    """root, split, images, annotations, orientation: as of `CocoDetectionBenchmark`. seed: chooses the categories."""

    RENAMED: ClassVar[dict[str, str]] = {"instances": "annotations"}
    max_new_tokens = 50

    def __init__(
        self,
        root: str,
        split: str = "val2017",
        images: str = "",
        annotations: str = "",
        seed: int = 0,
        orientation: str = "auto",
    ):
        self.data, self.seed = CocoDetectionBenchmark(root, split, images, annotations, orientation=orientation), seed
        self.files, self.problems, self.excluded = self.data.files, self.data.problems, self.data.excluded
        self.name = f"absent phrases {annotations.removesuffix('.json') or split}"
        self.published: Mapping[str, tuple[Published, ...]] = {}

    def items(self) -> list[Question]:
        coco, names = self.data.coco, self.data.names
        cooccurrence: dict[int | str, Counter[int | str]] = {category: Counter() for category in names}
        present = {image.index: {annotation.category for annotation in image.annotations} for image in coco.images}
        for categories in present.values():
            for category in categories:
                cooccurrence[category].update(categories)
        out = []
        for image in coco.images:
            counts = Counter({category: 0 for category in names})
            for category in present[image.index]:
                counts.update(cooccurrence[category])
            absent = set(coco.absent(image))
            likely = [category for category, _ in counts.most_common() if names[category] in absent][:LIKELY]
            if not likely:
                problem = "an image in which no category is certainly absent"
                self.problems.add(problem, str(image.path), dropped=False)
                continue
            name = names[random.Random(f"{self.seed}/{image.number}").choice(likely)]
            text = instruction_text(QuestionAnswer("refer", (Phrase(name),)), (0, 0), "floor", None)
            size = self.data.frame(image).size
            out.append(Question(image.index, image.path, size, text, str(image.path), name, words=name))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        """Refused: the answer has text, and nothing that is a box or looks like one."""
        scored, invalid = Scored(len(items), outcomes={"refused": {}}), set()
        for item in items:
            prediction = predictions[item.index]
            boxes, malformed = answer_boxes(prediction, item, rules)
            if prediction.finish_reason != "missing" and (malformed or not prediction.text.strip()):
                invalid.add(item.index)
            refused = float(bool(prediction.text.strip()) and not boxes and not malformed)
            scored.outcomes["refused"][item.index] = refused
            scored.cases.append(
                ScoredAnswer(item.index, item.image, item.words, prediction.text, "", (), boxes, refused)
            )
        scored.invalid = frozenset(invalid)
        return scored
