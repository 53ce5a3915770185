"""Benchmark: COCO detection, average precision by pycocotools. A row is a place in the list `images`, from 0.

One question an image names the kinds of thing sought; a box belongs to the kind that its phrase names. The scores that
average precision sorts by are the probabilities of the boxes' numbers; answers without them count 1 each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from minigptv2.boxes import Box
from minigptv2.data.annotations import InvalidRecord, check_choice
from minigptv2.data.coco_json import CocoFile, CocoImage, Id
from minigptv2.data.dataset_files import Layout
from minigptv2.data.orientation import UprightTransform, upright_transform
from minigptv2.data.readers.coco_detection import PAGE
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import (
    Prediction,
    Published,
    Question,
    Scored,
    ScoredAnswer,
    ScoringRules,
    annotation_files,
)
from minigptv2.eval.benchmarks.refcoco import answer_boxes
from minigptv2.eval.metrics.boxes import DetectionCounts, coco_average_precision, match_boxes
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import instruction_text

LAYOUT: Layout = {
    split: ((f"annotations/instances_{split}.json", f"instances_{split}.json"),)
    for split in ("val2017", "train2017", "val2014", "train2014")
}
ASK = ("present", "all")
JUDGED = "F1 at IoU 0.5 of an image's boxes, crowds aside"


class Truth(NamedTuple):
    """number: the image's `id`. things: its annotations as pycocotools takes them, boxes on the upright image. frame:
    how boxes in the file's own frame, as those of other programs, are turned upright."""

    number: Id
    things: tuple[dict[str, Any], ...]
    frame: UprightTransform


class CocoDetectionBenchmark:
    """root: holds `annotations/instances_<split>.json`; images: the images, where they are not in root.

    instances: the name of the file below root, where it has another. ask: "present" names the kinds that the image
    holds (all where it holds none), which tells the model something; "all" names every kind of the file. orientation:
    as of the reader that training uses, `data.coco_detection`, which finds the images in the same way, too.
    """

    max_new_tokens = 512
    needs = ("pycocotools",)

    def __init__(
        self,
        root: str,
        split: str = "val2017",
        images: str = "",
        instances: str = "",
        ask: str = "present",
        orientation: str = "auto",
    ):
        self.ask, self.orientation = check_choice("ask", ask, ASK), orientation
        (self.file,) = annotation_files(root, LAYOUT, split, PAGE, (instances,))
        self.files = (self.file,)
        self.name = f"coco_detection {instances.removesuffix('.json') or split}, kinds asked: {ask}"
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.coco = CocoFile(self.file, images, orientation, root, required=False)
        self.problems, self.excluded = self.coco.problems, self.coco.excluded
        self.categories = self.coco.labels  # every `id` of the file; two may have one label
        self.kinds = {number: label for label, number in self.coco.category_of.items() if label not in self.coco.roots}

    def frame(self, image: CocoImage) -> UprightTransform:
        """How boxes of this image are turned upright; as they are where the image is not on the disk, or damaged."""
        if image.lost:
            return UprightTransform(1, image.size)
        try:
            frame = upright_transform(image.path, image.size, image.given, self.orientation)
        except (InvalidRecord, UserError):  # damage is told when the image is opened; `data check` tells of sizes
            return UprightTransform(1, image.size)
        if frame.problem:
            self.problems.add(frame.problem, image.name, dropped=False)
        return frame

    def items(self) -> list[Question]:
        out, count = [], 0
        for image in self.coco.images:
            frame, things = self.frame(image), []
            for thing in image.things:
                count += 1
                things.append(
                    {
                        "id": count,
                        "image_id": image.number,
                        "category_id": thing.category,
                        "bbox": _turned(thing.xywh, frame),
                        "area": thing.area,
                        "iscrowd": int(thing.crowd),
                    }
                )
            asked = {t["category_id"] for t in things} if self.ask == "present" and things else self.kinds
            exchange = QuestionAnswer("detection", tuple(Phrase(name) for k, name in self.kinds.items() if k in asked))
            text, truth = instruction_text(exchange, (0, 0), "floor", None), Truth(image.number, tuple(things), frame)
            out.append(Question(image.place, image.path, frame.size, text, str(image.path), truth, words=text))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        number_of = {name.casefold(): number for number, name in self.kinds.items()}
        found, invalid, cases, strange = [], set(), [], 0
        category = _in_order(self.kinds)
        for item in items:
            prediction = predictions[item.index]
            boxes, malformed = answer_boxes(prediction, item, rules)
            wordless = prediction.boxes is None and not prediction.text.strip()
            if prediction.finish_reason != "missing" and (malformed or wordless):
                invalid.add(item.index)
            asked = {t["category_id"] for t in item.truth[1]}
            only = next(iter(asked)) if len(asked) == 1 else None
            named = list(boxes)  # with the names of the kinds that they are counted as
            for place, box in enumerate(boxes):
                kind = number_of.get(box.phrase.strip().casefold()) if box.phrase else only
                if kind is None:
                    strange += 1
                    continue
                named[place] = replace(box, phrase=self.kinds[kind])
                x1, y1, x2, y2 = box.xyxy
                found.append(
                    {
                        "image_id": item.truth[0],
                        "category_id": kind,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": 1.0 if box.score is None else box.score,
                    }
                )
            truth = tuple(_box(t["bbox"], self.kinds[t["category_id"]]) for t in item.truth[1])
            single = [place for place, thing in enumerate(item.truth[1]) if not thing.get("iscrowd")]
            met = dict(zip(single, match_boxes(named, [truth[place] for place in single])))
            counts = DetectionCounts(sum(met.values()), len(single), len(named))
            right = 0.0 if prediction.finish_reason == "missing" else counts.f1
            cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words,
                    prediction.text,
                    "",
                    truth,
                    tuple(named),
                    right,
                    item.size,
                    tuple(met.get(place) for place in range(len(truth))),
                )
            )
        number = _in_order(i.truth[0] for i in items)
        truth = {
            "images": [{"id": number[i.truth[0]], "width": i.size[0], "height": i.size[1]} for i in items],
            "annotations": [
                {**t, "image_id": number[i.truth[0]], "category_id": category[t["category_id"]]}
                for i in items
                for t in i.truth[1]
            ],
            "categories": [{"id": category[kind], "name": name} for kind, name in self.kinds.items()],
        }
        for row in found:
            row |= {"image_id": number[row["image_id"]], "category_id": category[row["category_id"]]}
        precision = coco_average_precision(truth, found)
        image = {i.index: number[i.truth[0]] for i in items}
        corpus = {name: _figure(precision, image, name) for name in ("AP", "AP50", "AP75")}
        return Scored(len(items), frozenset(invalid), {}, corpus, cases, {"boxes of no known kind": strange}, JUDGED)


def _in_order(ids: Iterable[Id]) -> dict[Id, int]:
    """Each id as a whole number from 1, in their order: pycocotools sorts them, and cannot sort text beside numbers."""
    return {number: n for n, number in enumerate(sorted(ids, key=lambda i: (isinstance(i, str), i)), 1)}


def _turned(xywh: Sequence[float], frame: UprightTransform) -> Sequence[float]:
    if frame.turn == 1:
        return xywh
    box = frame.box(_box(xywh, ""))
    return [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]


def _box(xywh: Sequence[float], phrase: str) -> Box:
    x, y, width, height = xywh
    return Box(x, y, x + width, y + height, phrase)


def _figure(precision, image: dict[int, int], name: str) -> Callable[[Sequence[int]], float | None]:
    return lambda indexes: precision([image[i] for i in indexes])[name]
