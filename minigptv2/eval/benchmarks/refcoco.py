"""Benchmarks: RefCOCO, RefCOCO+ and RefCOCOg, both ways: the box of an expression, and the words for a box.

One question for each expression, by its row in the annotation file. (The published evaluation collects answers by
image.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from minigptv2.boxes import IOU_THRESHOLD, Box, BoxRounding, parse, without_markup
from minigptv2.data.readers.refcoco import RefCoco
from minigptv2.eval.benchmark import (
    Prediction,
    Published,
    Question,
    Scored,
    ScoredAnswer,
    ScoringRules,
    strip_special_tokens,
)
from minigptv2.eval.metrics.boxes import iou, is_hit
from minigptv2.eval.metrics.captions import CIDER_FRACTION, caption_scores, cider_fraction
from minigptv2.eval.published_results import published_results
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import EVALUATION, instruction_text

THRESHOLDS = (IOU_THRESHOLD, 0.75, 0.9)


class RefCocoBoxBenchmark:
    """root, dataset, split, images, split_by: as in `data.readers.refcoco.RefCoco`."""

    RENAMED: ClassVar[dict[str, str]] = {"by": "split_by"}
    max_new_tokens = 50  # one box

    def __init__(self, root: str, dataset: str = "refcoco", split: str = "val", images: str = "", split_by: str = ""):
        self.reader = RefCoco(root, dataset, split, "refer", images, split_by)
        self.name, self.files = f"{dataset} {split}", files_of(self.reader)
        self.problems, self.excluded = self.reader.problems, dict(self.reader.excluded)
        of_paper = split_by in ("", "umd" if dataset == "refcocog" else "unc")
        self.published: Mapping[str, tuple[Published, ...]] = published_results(self.name) if of_paper else {}

    def items(self) -> list[Question]:
        wording = EVALUATION["refcoco"]
        return [
            Question(
                r.number,
                r.image,
                r.size,
                wording.replace("{}", r.words),
                str(r.image),
                r.box,
                words=r.words,
                key=r.reference,
            )
            for r in self.reader.records
        ]

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        names = {t: f"acc@{t:g}" for t in THRESHOLDS}
        scored = Scored(len(items), outcomes={**{n: {} for n in names.values()}, "mean IoU": {}})
        invalid = set()
        for item in items:
            prediction = predictions[item.index]
            boxes, _ = answer_boxes(prediction, item, rules)
            if not boxes and prediction.finish_reason != "missing":
                invalid.add(item.index)
            value = iou(boxes[0], item.truth, rules.plus_one) if boxes else 0.0
            for threshold, name in names.items():
                scored.outcomes[name][item.index] = float(is_hit(value, threshold, rules.scoring))
            scored.outcomes["mean IoU"][item.index] = value
            scored.cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words,
                    prediction.text,
                    "",
                    (item.truth,),
                    boxes[:1],
                    scored.outcomes[names[THRESHOLDS[0]]][item.index],
                    item.size,
                )
            )
        scored.invalid = frozenset(invalid)
        return scored


class RefCocoTextBenchmark:
    """The words for a box; options as of `RefCocoBoxBenchmark`. One question for each object, at the row of its first
    expression; all its expressions are references. coding: how the box is written, as the model's config says."""

    RENAMED: ClassVar[dict[str, str]] = {"by": "split_by"}
    max_new_tokens = 50
    needs = ("pycocoevalcap", "Java")

    def __init__(
        self,
        root: str,
        dataset: str = "refcoco",
        split: str = "val",
        images: str = "",
        split_by: str = "",
        coding: BoxRounding = "floor",
    ):
        self.coding = coding
        self.reader = RefCoco(root, dataset, split, "identify", images, split_by)
        self.name, self.files = f"{dataset} {split} reg", files_of(self.reader)
        self.problems, self.excluded = self.reader.problems, dict(self.reader.excluded)
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.objects: dict[tuple, list] = {}  # image and box -> rows
        for row in self.reader.records:
            rows = self.objects.setdefault((row.image, row.box.xyxy), [])
            rows.append(row)
            if len(rows) > 1:
                self.excluded[row.number] = "another expression for the same object"
                self.problems.add(self.excluded[row.number], f"{self.reader.file.name} row {row.number}")

    def items(self) -> list[Question]:
        out = []
        for rows in self.objects.values():
            row = rows[0]
            question = QuestionAnswer("identify", (Phrase("", (row.box,)),))
            instruction = instruction_text(question, row.size, self.coding, None)
            truth = (row.box, tuple(r.words for r in rows))
            out.append(Question(row.number, row.image, row.size, instruction, str(row.image), truth, words=row.words))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        texts = {i.index: without_markup(predictions[i.index].text) for i in items}
        invalid = {i.index for i in items if not texts[i.index] and predictions[i.index].finish_reason != "missing"}
        references = {i.index: list(i.truth[1]) for i in items}
        outcomes, corpus = caption_scores(texts, references, ("CIDEr", "METEOR"))
        cases = [
            ScoredAnswer(
                i.index,
                i.image,
                i.instruction,
                texts[i.index],
                "; ".join(i.truth[1]),
                (i.truth[0],),
                (),
                cider_fraction(outcomes["CIDEr"][i.index]),
                i.size,
            )
            for i in items
        ]
        return Scored(len(items), frozenset(invalid), outcomes, corpus, cases, score_description=CIDER_FRACTION)


def files_of(reader: RefCoco):
    """The annotation files: one of the flat form, two of the original one."""
    instances = reader.file.with_name("instances.json")
    return (reader.file,) if reader.file.suffix == ".json" else (reader.file, instances)


def answer_boxes(
    prediction: Prediction, item: Question, rules: ScoringRules
) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    """The well-formed boxes of an answer, XYXY in pixels of the item's image, with scores if known; and what is wrong
    with the others."""
    if prediction.boxes is not None:
        return prediction.boxes, ()
    text = strip_special_tokens(prediction.text)
    parsed = parse(text, *item.size, rules.box_rounding)
    if not parsed.boxes and rules.scoring == "compat":  # the published evaluation removes all spaces first
        parsed = parse(text.replace(" ", ""), *item.size, rules.box_rounding)
    if len(parsed.boxes) == len(prediction.scores):
        return tuple(replace(b, score=s) for b, s in zip(parsed.boxes, prediction.scores)), parsed.problems
    return parsed.boxes, parsed.problems
