"""Benchmark: COCO detection, average precision by pycocotools. A row is an index in the list `images`, from 0.

Each image has one question, which names categories; a box belongs to the category that its phrase names. Its score is
the probability of its numbers; without one it is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

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
CATEGORIES = ("present", "all")
DESCRIPTION = "F1 at IoU 0.5 of an image's boxes, without crowds"


class Truth(NamedTuple):
    """The annotations of an image."""

    number: Id
    """The image's `id`."""
    objects: tuple[dict[str, Any], ...]
    """As pycocotools takes them; boxes on the upright image."""
    frame: UprightTransform
    """Turns boxes of the file, and those of other programs, upright."""


class CocoDetectionBenchmark:
    """root: holds `annotations/instances_<split>.json`. images: the image folder, if not in root.

    annotations: the name of the file below root, if not the official one. categories: "present" asks for the categories
    that the image has (for all, if it has none), which is a hint for the model; "all" asks for every category of the
    file. orientation: as in `data.readers.coco_detection`, which also finds the images in the same way.
    """

    RENAMED: ClassVar[dict[str, str]] = {"ask": "categories", "instances": "annotations"}
    max_new_tokens = 512
    needs = ("pycocotools",)

    def __init__(
        self,
        root: str,
        split: str = "val2017",
        images: str = "",
        annotations: str = "",
        categories: str = "present",
        orientation: str = "auto",
    ):
        self.asked = check_choice("categories", categories, CATEGORIES)
        self.orientation = orientation
        (self.file,) = annotation_files(root, LAYOUT, split, PAGE, (annotations,))
        self.files = (self.file,)
        self.name = f"coco_detection {annotations.removesuffix('.json') or split}, kinds asked: {categories}"
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.coco = CocoFile(self.file, images, orientation, root, required=False)
        self.problems, self.excluded = self.coco.problems, self.coco.excluded
        self.category_names = self.coco.labels  # every `id` of the file; two may have one label
        self.names = {number: label for label, number in self.coco.category_of.items() if label not in self.coco.roots}

    def frame(self, image: CocoImage) -> UprightTransform:
        """How boxes of this image are turned upright; unchanged if the image is not on disk, or damaged."""
        if image.missing:
            return UprightTransform(1, image.size)
        try:
            frame = upright_transform(image.path, image.size, image.has_size, self.orientation)
        except (InvalidRecord, UserError):  # reported when the image is opened, and by `data check`
            return UprightTransform(1, image.size)
        if frame.problem:
            self.problems.add(frame.problem, image.name, dropped=False)
        return frame

    def items(self) -> list[Question]:
        out, count = [], 0
        for image in self.coco.images:
            frame, objects = self.frame(image), []
            for annotation in image.annotations:
                count += 1
                objects.append(
                    {
                        "id": count,
                        "image_id": image.number,
                        "category_id": annotation.category,
                        "bbox": _turned(annotation.xywh, frame),
                        "area": annotation.area,
                        "iscrowd": int(annotation.crowd),
                    }
                )
            present = {t["category_id"] for t in objects}
            asked = present if self.asked == "present" and present else self.names
            phrases = tuple(Phrase(name) for number, name in self.names.items() if number in asked)
            text = instruction_text(QuestionAnswer("detection", phrases), (0, 0), "floor", None)
            truth = Truth(image.number, tuple(objects), frame)
            out.append(Question(image.index, image.path, frame.size, text, str(image.path), truth, words=text))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        number_of = {name.casefold(): number for number, name in self.names.items()}
        detections, invalid, cases, num_unknown = [], set(), [], 0
        category = _in_order(self.names)
        for item in items:
            prediction = predictions[item.index]
            boxes, malformed = answer_boxes(prediction, item, rules)
            empty = prediction.boxes is None and not prediction.text.strip()
            if prediction.finish_reason != "missing" and (malformed or empty):
                invalid.add(item.index)
            asked = {t["category_id"] for t in item.truth[1]}
            only = next(iter(asked)) if len(asked) == 1 else None
            named = list(boxes)  # with the names of the categories that they count for
            for n, box in enumerate(boxes):
                number = number_of.get(box.phrase.strip().casefold()) if box.phrase else only
                if number is None:
                    num_unknown += 1
                    continue
                named[n] = replace(box, phrase=self.names[number])
                x1, y1, x2, y2 = box.xyxy
                detections.append(
                    {
                        "image_id": item.truth[0],
                        "category_id": number,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": 1.0 if box.score is None else box.score,
                    }
                )
            truth = tuple(_box(t["bbox"], self.names[t["category_id"]]) for t in item.truth[1])
            no_crowds = [n for n, annotation in enumerate(item.truth[1]) if not annotation.get("iscrowd")]
            found = dict(zip(no_crowds, match_boxes(named, [truth[n] for n in no_crowds])))
            counts = DetectionCounts(sum(found.values()), len(no_crowds), len(named))
            score = 0.0 if prediction.finish_reason == "missing" else counts.f1
            cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words,
                    prediction.text,
                    "",
                    truth,
                    tuple(named),
                    score,
                    item.size,
                    tuple(found.get(n) for n in range(len(truth))),
                )
            )
        image_number = _in_order(i.truth[0] for i in items)
        ground_truth = {
            "images": [{"id": image_number[i.truth[0]], "width": i.size[0], "height": i.size[1]} for i in items],
            "annotations": [
                {**t, "image_id": image_number[i.truth[0]], "category_id": category[t["category_id"]]}
                for i in items
                for t in i.truth[1]
            ],
            "categories": [{"id": category[number], "name": name} for number, name in self.names.items()],
        }
        for row in detections:
            row |= {"image_id": image_number[row["image_id"]], "category_id": category[row["category_id"]]}
        precision = coco_average_precision(ground_truth, detections)
        image = {i.index: image_number[i.truth[0]] for i in items}
        corpus = {name: _figure(precision, image, name) for name in ("AP", "AP50", "AP75")}
        return Scored(
            len(items), frozenset(invalid), {}, corpus, cases, {"boxes of no known category": num_unknown}, DESCRIPTION
        )


def _in_order(ids: Iterable[Id]) -> dict[Id, int]:
    """id -> a whole number from 1, in the order of the ids. pycocotools cannot sort ids of text and numbers."""
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
