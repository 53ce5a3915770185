"""Benchmark: phrases for things that are not in the picture, which should be refused instead of given a box.

COCO's instances are complete for their 80 kinds, so a kind without annotation is not there. Each picture is asked for
one such kind, chosen by the seed among those that pictures with the same things often hold, so that guessing by the
scene does not help. A row is a place in the list `images`, from 0.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from minigptv2.eval.benchmark import Case, Item, Prediction, Published, Rules, Scored
from minigptv2.eval.coco_detection import CocoDetection
from minigptv2.eval.refcoco import answer_boxes
from minigptv2.sample import Exchange, Phrase
from minigptv2.tasks import instruction_text

LIKELY = 5  # the kinds that most often stand beside those of the picture, among which one is chosen


class AbsentPhrases:
    """root, split, images, instances: as `CocoDetection` has them. seed: chooses the kinds."""

    max_new_tokens = 50

    def __init__(self, root: str, split: str = "val2017", images: str = "", instances: str = "", seed: int = 0):
        self.data, self.seed = CocoDetection(root, split, images, instances), seed
        self.files, self.problems, self.excluded = self.data.files, self.data.problems, self.data.excluded
        self.name = f"absent phrases {instances.removesuffix('.json') or split}"
        self.published: Mapping[str, tuple[Published, ...]] = {}

    def items(self) -> list[Item]:
        there: dict[int, set[int]] = {number: set() for number in self.data.pictures}
        for thing in self.data.things:
            there[thing["image_id"]].add(thing["category_id"])
        together: dict[int, Counter[int]] = {kind: Counter() for kind in self.data.kinds}
        for kinds in there.values():
            for kind in kinds:
                together[kind].update(kinds)
        out = []
        for number, (place, row) in self.data.pictures.items():
            beside = Counter({kind: 0 for kind in self.data.kinds})
            for kind in there[number]:
                beside.update(together[kind])
            likely = [kind for kind, _ in beside.most_common() if kind not in there[number]][:LIKELY]
            if not likely:
                continue  # every kind of the file is in the picture
            name = self.data.kinds[random.Random(f"{self.seed}/{number}").choice(likely)]
            text = instruction_text(Exchange("refer", (Phrase(name),)), (0, 0), "floor", None)
            path, size = self.data.folder.find(number), (row["width"], row["height"])
            out.append(Item(place, path, size, text, str(path), name, words=name))
        return out

    def score(self, items: Sequence[Item], predictions: Mapping[int, Prediction], rules: Rules) -> Scored:
        """Refused: words, and nothing that is or looks like a box."""
        scored, invalid = Scored(len(items), outcomes={"refused": {}}), set()
        for item in items:
            prediction = predictions[item.index]
            boxes, malformed = answer_boxes(prediction, item, rules)
            if prediction.ended != "missing" and (malformed or not prediction.text.strip()):
                invalid.add(item.index)
            refused = float(bool(prediction.text.strip()) and not boxes and not malformed)
            scored.outcomes["refused"][item.index] = refused
            scored.cases.append(Case(item.index, item.image, item.words, prediction.text, "", (), boxes, refused))
        scored.invalid = frozenset(invalid)
        return scored
