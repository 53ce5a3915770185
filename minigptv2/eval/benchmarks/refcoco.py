"""Benchmarks: RefCOCO, RefCOCO+ and RefCOCOg, both ways: the box of an expression, and the words for a box.

One question an expression, by its row in the annotation file; the published system pools answers by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigptv2.boxes import Box, BoxRounding, parse, without_markup
from minigptv2.data.readers.refcoco import RefCoco
from minigptv2.eval.benchmark import Prediction, Published, Question, Scored, ScoredAnswer, ScoringRules, minigpt_v2
from minigptv2.eval.metrics.boxes import IOU_THRESHOLD, iou, is_hit
from minigptv2.eval.metrics.captions import CIDER_FRACTION, caption_scores, cider_fraction
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import EVALUATION, instruction_text

THRESHOLDS = (IOU_THRESHOLD, 0.75, 0.9)
_PAPER = "arXiv 2310.09478, version not recorded"
# acc@0.5 of data set and split, in per cent: the model after stage 2, and after stage 3
_ACCURACY = {
    "refcoco val": (88.69, 88.06),
    "refcoco testA": (91.65, 91.29),
    "refcoco testB": (85.33, 84.30),
    "refcoco+ val": (79.97, 79.58),
    "refcoco+ testA": (85.12, 85.52),
    "refcoco+ testB": (74.45, 73.32),
    "refcocog val": (84.44, 84.19),
    "refcocog test": (84.66, 84.31),
}


class RefCocoBoxBenchmark:
    """root, dataset, split, images, by: as `data.refcoco.RefCoco` has them, `dataset` being its name."""

    max_new_tokens = 50  # one box

    def __init__(self, root: str, dataset: str = "refcoco", split: str = "val", images: str = "", by: str = ""):
        self.reader = RefCoco(root, dataset, split, images=images, by=by)
        self.name, self.files = f"{dataset} {split}", files_of(self.reader)
        self.problems, self.excluded = self.reader.problems, dict(self.reader.excluded)
        known = by in ("", "umd" if dataset == "refcocog" else "unc") and self.name in _ACCURACY
        self.published: Mapping[str, tuple[Published, ...]] = (
            {"acc@0.5": minigpt_v2(*_ACCURACY[self.name], _PAPER)} if known else {}
        )

    def items(self) -> list[Question]:
        ask = EVALUATION["refcoco"]
        return [
            Question(
                r.number,
                r.image,
                r.size,
                ask.replace("{}", r.words),
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
            overlap = iou(boxes[0], item.truth, rules.plus_one) if boxes else 0.0
            for threshold, name in names.items():
                scored.outcomes[name][item.index] = float(is_hit(overlap, threshold, rules.scoring))
            scored.outcomes["mean IoU"][item.index] = overlap
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
    """As `RefCocoBoxBenchmark`, asked the other way round: what is in this box. One question a thing, at the first row
    of its expressions; all of them are references. coding: how the box is written, as the model's config says."""

    max_new_tokens = 50
    needs = ("pycocoevalcap", "Java")

    def __init__(
        self,
        root: str,
        dataset: str = "refcoco",
        split: str = "val",
        images: str = "",
        by: str = "",
        coding: BoxRounding = "floor",
    ):
        self.coding = coding
        self.reader = RefCoco(root, dataset, split, "identify", images=images, by=by)
        self.name, self.files = f"{dataset} {split} reg", files_of(self.reader)
        self.problems, self.excluded = self.reader.problems, dict(self.reader.excluded)
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.things: dict[tuple, list] = {}  # image and box -> rows
        for row in self.reader.records:
            rows = self.things.setdefault((row.image, row.box.xyxy), [])
            rows.append(row)
            if len(rows) > 1:
                self.excluded[row.number] = "another expression for the same thing"
                self.problems.add(self.excluded[row.number], f"{self.reader.file.name} row {row.number}")

    def items(self) -> list[Question]:
        out = []
        for rows in self.things.values():
            row = rows[0]
            exchange = QuestionAnswer("identify", (Phrase("", (row.box,)),))
            asked = instruction_text(exchange, row.size, self.coding, None)
            truth = (row.box, tuple(r.words for r in rows))
            out.append(Question(row.number, row.image, row.size, asked, str(row.image), truth, words=row.words))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        said = {i.index: without_markup(predictions[i.index].text) for i in items}
        invalid = {i.index for i in items if not said[i.index] and predictions[i.index].finish_reason != "missing"}
        references = {i.index: list(i.truth[1]) for i in items}
        outcomes, corpus = caption_scores(said, references, ("CIDEr", "METEOR"))
        cases = [
            ScoredAnswer(
                i.index,
                i.image,
                i.instruction,
                said[i.index],
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
    """The well-formed boxes of an answer, in pixels of the item's image, with their scores where there are any; and
    why others are none."""
    if prediction.boxes is not None:
        return prediction.boxes, ()
    text = prediction.text.replace("<unk>", "")
    found = parse(text, *item.size, rules.decode)
    if not found.boxes and rules.scoring == "compat":  # the published evaluation takes out every space first
        found = parse(text.replace(" ", ""), *item.size, rules.decode)
    if len(found.boxes) == len(prediction.scores):
        return tuple(replace(b, score=s) for b, s in zip(found.boxes, prediction.scores)), found.problems
    return found.boxes, found.problems
