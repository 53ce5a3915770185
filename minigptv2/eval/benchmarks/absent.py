"""Benchmark: phrases for things that are not in the image, which should be refused instead of given a box.

COCO's instances are complete for their 80 kinds, so a kind without annotation is not there. Each image is asked for
one such kind, chosen by the seed among those that images with the same things often hold, so that guessing by the
scene does not help. A row is a place in the list `images`, from 0.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from minigptv2.eval.benchmark import Prediction, Published, Question, Scored, ScoredAnswer, ScoringRules
from minigptv2.eval.benchmarks.coco_detection import CocoDetectionBenchmark
from minigptv2.eval.benchmarks.refcoco import answer_boxes
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import instruction_text

LIKELY = 5  # the kinds that most often stand beside those of the image, among which one is chosen


class AbsentPhrasesBenchmark:
    """root, split, images, instances, orientation: as `CocoDetection` has them. seed: chooses the kinds."""

    max_new_tokens = 50

    def __init__(
        self,
        root: str,
        split: str = "val2017",
        images: str = "",
        instances: str = "",
        seed: int = 0,
        orientation: str = "auto",
    ):
        self.data, self.seed = CocoDetectionBenchmark(root, split, images, instances, orientation=orientation), seed
        self.files, self.problems, self.excluded = self.data.files, self.data.problems, self.data.excluded
        self.name = f"absent phrases {instances.removesuffix('.json') or split}"
        self.published: Mapping[str, tuple[Published, ...]] = {}

    def items(self) -> list[Question]:
        coco, kinds = self.data.coco, self.data.kinds
        together: dict[int | str, Counter[int | str]] = {kind: Counter() for kind in kinds}
        there = {image.place: {thing.category for thing in image.things} for image in coco.images}
        for present in there.values():
            for kind in present:
                together[kind].update(present)
        out = []
        for image in coco.images:
            beside = Counter({kind: 0 for kind in kinds})
            for kind in there[image.place]:
                beside.update(together[kind])
            absent = set(coco.absent(image))
            likely = [kind for kind, _ in beside.most_common() if kinds[kind] in absent][:LIKELY]
            if not likely:
                kind = "an image of which no kind of the file is surely absent"
                self.problems.add(kind, str(image.path), dropped=False)
                continue
            name = kinds[random.Random(f"{self.seed}/{image.number}").choice(likely)]
            text = instruction_text(QuestionAnswer("refer", (Phrase(name),)), (0, 0), "floor", None)
            size = self.data.frame(image).size
            out.append(Question(image.place, image.path, size, text, str(image.path), name, words=name))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        """Refused: words, and nothing that is or looks like a box."""
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
