"""Benchmark: held-out scenes of the generated world, every task, with the share of malformed answers.

The images come from seeds that no training uses. A question is put by itself, as a user would put it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from minigptv2.api import MAX_NEW_TOKENS
from minigptv2.boxes import BoxRounding, parse
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.scenes.questions import QuestionWriter
from minigptv2.data.scenes.world import IMAGE_SIZE, Scene, draw_scene
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Prediction, Published, Question, Scored, ScoredAnswer, ScoringRules
from minigptv2.eval.metrics.boxes import IOU_THRESHOLD, DetectionCounts, iou, is_hit, match_boxes
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import ABSENT, answer_text, instruction_text

FIRST_HELD_OUT = 900_000_001  # the first number of every held-out seed; training seeds are small numbers
TOGETHER = 48  # scenes whose wordings one generator chooses: part of what the questions are
REFER = {IOU_THRESHOLD: "refer acc@0.5", 0.75: "refer acc@0.75"}
# F1 over all boxes
COUNTED = {
    "detection": "detection F1@0.5, all instances",
    "grounding": "grounded caption, phrase with right box F1@0.5",
}
# outcomes by kind of question, in the order of the table
FIGURES = {
    "refer": REFER[IOU_THRESHOLD],
    "refer, closer": REFER[0.75],
    "identify": "identify, kind and colour right",
    "statement": "spatial statements",
    "absent": "absent phrase refused",
    "vqa": "short answers",
    "all": "malformed answers",
}
JUDGED = "one box at IoU 0.5; of lists of boxes F1 at IoU 0.5; of words the whole answer"


def held_out(seed: int, number: int, size: int) -> Scene:
    """The held-out scene of this number; numbers whose scene came out empty are drawn again."""
    attempt = 0
    while not (scene := draw_scene((FIRST_HELD_OUT, seed, number, attempt), size)).objects:
        attempt += 1
    return scene


def questions(scene: Scene, rng: random.Random) -> dict[str, QuestionAnswer]:
    """One question of each kind about the scene; a kind that the scene does not offer is left out."""
    talk, out = QuestionWriter(scene, rng), {}
    out["refer"] = _until(talk.refer, lambda e: bool(e.phrases[0].boxes))
    out["absent"] = QuestionAnswer("refer", (Phrase(talk.absent()),))
    out["identify"] = talk.identify()
    out["detection"] = _until(talk.detection, lambda e: any(p.boxes for p in e.phrases))
    out["grounding"] = talk.grounding()
    out["statement"] = talk.statement()
    out["vqa"] = talk.vqa()
    return {kind: e for kind, e in out.items() if e is not None}


def _until(draw, good) -> QuestionAnswer:
    while True:
        exchange = draw()
        if good(exchange):
            return exchange


class ScenesBenchmark:
    """count: held-out images. seed: which ones. size: pixels of a side. coding: how box numbers are rounded; both as
    the model's config says. An item's number is its place in the order of asking."""

    max_new_tokens = MAX_NEW_TOKENS

    def __init__(self, count: int = 1000, seed: int = 1, size: int = IMAGE_SIZE, coding: BoxRounding = "round"):
        if count < 1:
            raise UserError(f"count is {count}.", "It is a number of images, 1 or more.", "Try count=100.")
        self.count, self.seed, self.size, self.coding = count, seed, size, coding
        self.name, self.files = f"scenes {count} of seed {seed}", ()
        self.problems, self.excluded = ProblemCounter(), {}
        self.published: Mapping[str, tuple[Published, ...]] = {}

    def items(self) -> list[Question]:
        out: list[Question] = []
        size = (self.size, self.size)
        for start in range(0, self.count, TOGETHER):
            numbers = range(start, min(start + TOGETHER, self.count))
            asked = [questions(held_out(self.seed, n, self.size), random.Random(f"{self.seed}/{n}")) for n in numbers]
            for kind in dict.fromkeys(kind for each in asked for kind in each):
                rng = random.Random(f"{self.seed}/{start}/{kind}")
                for number, each in zip(numbers, asked):
                    if kind in each:
                        text = instruction_text(each[kind], size, self.coding, rng)
                        draw = partial(_image, self.seed, number, self.size)
                        out.append(
                            Question(len(out), draw, size, text, f"scene {number}", (kind, each[kind]), words=text)
                        )
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        scored = Scored(len(items), outcomes={name: {} for name in FIGURES.values()}, score_description=JUDGED)
        counts: dict[str, dict[int, DetectionCounts]] = {kind: {} for kind in COUNTED}
        invalid = set()
        for item in items:
            kind, exchange = item.truth
            prediction = predictions[item.index]
            found = parse(prediction.text, *item.size, rules.decode)
            wanted = tuple(replace(b, phrase=p.text) for p in exchange.phrases for b in p.boxes)
            malformed = bool(found.problems) or prediction.finish_reason != "stop"
            if malformed and prediction.finish_reason != "missing":
                invalid.add(item.index)
            right, met = None, []
            if kind in counts:
                met = match_boxes(found.boxes, wanted)
                counts[kind][item.index] = DetectionCounts(sum(met), len(wanted), len(found.boxes))
                right = counts[kind][item.index].f1
            elif kind == "refer":
                overlap = iou(found.boxes[0], wanted[0], rules.plus_one) if found.boxes else 0.0
                for threshold, name in REFER.items():
                    scored.outcomes[name][item.index] = float(is_hit(overlap, threshold, rules.scoring))
                right = scored.outcomes[REFER[IOU_THRESHOLD]][item.index]
            else:
                if kind == "absent":
                    refused = prediction.text.startswith(ABSENT.split("{}")[0])
                    right = float(refused and not found.boxes and not found.problems)
                else:
                    right = float(prediction.text.strip() == answer_text(exchange, item.size, self.coding))
                scored.outcomes[FIGURES[kind]][item.index] = right
            scored.outcomes["malformed answers"][item.index] = float(malformed)
            said = exchange.answer or ("" if wanted else answer_text(exchange, item.size, self.coding))
            scored.cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words,
                    prediction.text,
                    said,
                    wanted,
                    found.boxes,
                    right,
                    item.size,
                    tuple(met),
                )
            )
        scored.outcomes = {name: by for name, by in scored.outcomes.items() if by}
        scored.invalid = frozenset(invalid)
        for kind, name in COUNTED.items():
            if counts[kind]:
                scored.corpus[name] = partial(_f1, counts[kind])
        return scored


def _f1(counts: Mapping[int, DetectionCounts], indexes: Sequence[int]) -> float:
    whole = DetectionCounts()
    for each in (counts[i] for i in indexes if i in counts):
        whole.add(each.true_positives, each.num_ground_truth, each.num_predicted)
    return whole.f1


def _image(seed: int, number: int, size: int):
    return held_out(seed, number, size).image
