"""Benchmark: held-out drawn scenes, every task, with the fraction of malformed answers.

The images come from seeds that no training uses. Each question is asked by itself, as a user would ask it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from minigptv2.api import MAX_NEW_TOKENS
from minigptv2.boxes import IOU_THRESHOLD, BoxRounding, parse
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.scenes.questions import QuestionWriter
from minigptv2.data.scenes.world import IMAGE_SIZE, Scene, draw_scene
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Prediction, Published, Question, Scored, ScoredAnswer, ScoringRules
from minigptv2.eval.metrics.boxes import DetectionCounts, iou, is_hit, match_boxes
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import ABSENT, answer_text, instruction_text

FIRST_HELD_OUT = 900_000_001  # the first number of every held-out seed; training seeds are small numbers
BLOCK = 48  # scenes whose wordings come from one random generator; another number gives other questions
REFER = {IOU_THRESHOLD: "refer acc@0.5", 0.75: "refer acc@0.75"}
# F1 over all boxes
COUNTED = {
    "detection": "detection F1@0.5, all instances",
    "grounding": "grounded caption, phrase with right box F1@0.5",
}
# outcomes by type of question, in the order of the table
FIGURES = {
    "refer": REFER[IOU_THRESHOLD],
    "refer, closer": REFER[0.75],
    "identify": "identify, kind and colour right",
    "statement": "spatial statements",
    "absent": "absent phrase refused",
    "vqa": "short answers",
    "all": "malformed answers",
}
DESCRIPTION = "one box: hit at IoU 0.5; several boxes: F1 at IoU 0.5; words: the full answer is equal"


def held_out(seed: int, number: int, size: int) -> Scene:
    """The held-out scene of this number; a scene without objects is drawn again."""
    attempt = 0
    while not (scene := draw_scene((FIRST_HELD_OUT, seed, number, attempt), size)).objects:
        attempt += 1
    return scene


def questions(scene: Scene, rng: random.Random) -> dict[str, QuestionAnswer]:
    """type -> a question of this type about the scene; a type that the scene does not allow is omitted."""
    writer, out = QuestionWriter(scene, rng), {}
    out["refer"] = _until(writer.refer, lambda e: bool(e.phrases[0].boxes))
    out["absent"] = QuestionAnswer("refer", (Phrase(writer.absent()),))
    out["identify"] = writer.identify()
    out["detection"] = _until(writer.detection, lambda e: any(p.boxes for p in e.phrases))
    out["grounding"] = writer.grounding()
    out["statement"] = writer.statement()
    out["vqa"] = writer.vqa()
    return {type_: question for type_, question in out.items() if question is not None}


def _until(draw, accept) -> QuestionAnswer:
    while True:
        question = draw()
        if accept(question):
            return question


class ScenesBenchmark:
    """count: held-out images. seed: which ones. size: pixels of an image's side. coding: how box numbers are rounded.
    The last two are as the model's config says. A row is a question, in the order of asking, from 0."""

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
        for start in range(0, self.count, BLOCK):
            numbers = range(start, min(start + BLOCK, self.count))
            by_type = [questions(held_out(self.seed, n, self.size), random.Random(f"{self.seed}/{n}")) for n in numbers]
            for type_ in dict.fromkeys(type_ for of_scene in by_type for type_ in of_scene):
                rng = random.Random(f"{self.seed}/{start}/{type_}")
                for number, of_scene in zip(numbers, by_type):
                    if type_ in of_scene:
                        text = instruction_text(of_scene[type_], size, self.coding, rng)
                        image, truth = partial(_image, self.seed, number, self.size), (type_, of_scene[type_])
                        out.append(Question(len(out), image, size, text, f"scene {number}", truth, words=text))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        scored = Scored(len(items), outcomes={name: {} for name in FIGURES.values()}, score_description=DESCRIPTION)
        counts: dict[str, dict[int, DetectionCounts]] = {type_: {} for type_ in COUNTED}
        invalid = set()
        for item in items:
            type_, question = item.truth
            prediction = predictions[item.index]
            parsed = parse(prediction.text, *item.size, rules.box_rounding)
            expected = tuple(replace(b, phrase=p.text) for p in question.phrases for b in p.boxes)
            malformed = bool(parsed.problems) or prediction.finish_reason != "stop"
            if malformed and prediction.finish_reason != "missing":
                invalid.add(item.index)
            box_found: list[bool] = []
            if type_ in counts:
                box_found = match_boxes(parsed.boxes, expected)
                counts[type_][item.index] = DetectionCounts(sum(box_found), len(expected), len(parsed.boxes))
                score = counts[type_][item.index].f1
            elif type_ == "refer":
                value = iou(parsed.boxes[0], expected[0], rules.plus_one) if parsed.boxes else 0.0
                for threshold, name in REFER.items():
                    scored.outcomes[name][item.index] = float(is_hit(value, threshold, rules.scoring))
                score = scored.outcomes[REFER[IOU_THRESHOLD]][item.index]
            else:
                if type_ == "absent":
                    refused = prediction.text.startswith(ABSENT.split("{}")[0])
                    score = float(refused and not parsed.boxes and not parsed.problems)
                else:
                    score = float(prediction.text.strip() == answer_text(question, item.size, self.coding))
                scored.outcomes[FIGURES[type_]][item.index] = score
            scored.outcomes["malformed answers"][item.index] = float(malformed)
            answer = question.answer or ("" if expected else answer_text(question, item.size, self.coding))
            scored.cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words,
                    prediction.text,
                    answer,
                    expected,
                    parsed.boxes,
                    score,
                    item.size,
                    tuple(box_found),
                )
            )
        scored.outcomes = {name: by for name, by in scored.outcomes.items() if by}
        scored.invalid = frozenset(invalid)
        for type_, name in COUNTED.items():
            if counts[type_]:
                scored.corpus[name] = partial(_f1, counts[type_])
        return scored


def _f1(counts: Mapping[int, DetectionCounts], indexes: Sequence[int]) -> float:
    total = DetectionCounts()
    for one in (counts[i] for i in indexes if i in counts):
        total.add(one.true_positives, one.num_ground_truth, one.num_predicted)
    return total.f1


def _image(seed: int, number: int, size: int):
    return held_out(seed, number, size).image
