"""Benchmark: COCO detection, average precision by pycocotools. A row is a place in the list `images`, from 0.

One question a picture names the kinds of thing sought; a box belongs to the kind that its phrase names. The scores that
average precision sorts by are the probabilities of the boxes' numbers; answers without them count 1 each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minigptv2.boxes import Box
from minigptv2.data.annotations import Malformed, damaged, field, one_of, read_json, size_of, words_of
from minigptv2.data.coco_pictures import CocoPictures
from minigptv2.data.dataset import Problems
from minigptv2.data.layout import Layout
from minigptv2.eval import metrics
from minigptv2.eval.benchmark import Case, Item, Prediction, Published, Rules, Scored
from minigptv2.eval.refcoco import answer_boxes
from minigptv2.eval.short_answers import annotation_files
from minigptv2.sample import Exchange, Phrase
from minigptv2.tasks import instruction_text

PAGE = "https://cocodataset.org/#download"
LAYOUT: Layout = {
    split: ((f"annotations/instances_{split}.json", f"instances_{split}.json"),)
    for split in ("val2017", "train2017", "val2014", "train2014")
}
ASK = ("present", "all")
JUDGED = "F1 at IoU 0.5 of a picture's boxes, crowds aside"


class CocoDetection:
    """root: holds `annotations/instances_<split>.json`; images: COCO's pictures, where they are not in root.

    instances: the name of the file below root, where it has another. ask: "present" names the kinds that the picture
    holds (all where it holds none), which tells the model something; "all" names every kind of the file.
    """

    max_new_tokens = 512
    needs = ("pycocotools",)

    def __init__(
        self, root: str, split: str = "val2017", images: str = "", instances: str = "", ask: str = "present"
    ):  # fmt: skip
        self.ask = one_of("ask", ask, ASK)
        (self.file,) = annotation_files(root, LAYOUT, split, PAGE, (instances,))
        self.files = (self.file,)
        self.name = f"coco_detection {instances.removesuffix('.json') or split}, kinds asked: {ask}"
        self.problems, self.excluded = Problems(), {}
        self.published: Mapping[str, tuple[Published, ...]] = {}
        content = read_json(self.file)
        if not isinstance(content, dict) or not all(
            isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
        ):
            raise damaged(self.file, "it lacks a list 'images', 'annotations' or 'categories'")
        self.kinds = self._kinds(content["categories"])
        self.pictures = self._pictures(content["images"])
        self.things = self._things(content["annotations"])
        self.folder = CocoPictures(images or root)

    def items(self) -> list[Item]:
        """truth: the picture's number in COCO, and its annotations."""
        there: dict[int, list[dict]] = {}
        for thing in self.things:
            there.setdefault(thing["image_id"], []).append(thing)
        out = []
        for number, (place, row) in self.pictures.items():
            things = there.get(number, [])
            asked = {t["category_id"] for t in things} if self.ask == "present" and things else self.kinds
            exchange = Exchange("detection", tuple(Phrase(name) for k, name in self.kinds.items() if k in asked))
            text, path = instruction_text(exchange, (0, 0), "floor", None), self.folder.find(number)
            truth, size = (number, tuple(things)), (row["width"], row["height"])
            out.append(Item(place, path, size, text, str(path), truth, words=text))
        return out

    def score(self, items: Sequence[Item], predictions: Mapping[int, Prediction], rules: Rules) -> Scored:
        number_of = {name.casefold(): number for number, name in self.kinds.items()}
        found, invalid, cases, strange = [], set(), [], 0
        for item in items:
            prediction = predictions[item.index]
            boxes, malformed = answer_boxes(prediction, item, rules)
            wordless = prediction.boxes is None and not prediction.text.strip()
            if prediction.ended != "missing" and (malformed or wordless):
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
                found.append({"image_id": item.truth[0], "category_id": kind, "bbox": [x1, y1, x2 - x1, y2 - y1],
                              "score": 1.0 if box.score is None else box.score})  # fmt: skip
            truth = tuple(_box(t["bbox"], self.kinds[t["category_id"]]) for t in item.truth[1])
            single = [place for place, thing in enumerate(item.truth[1]) if not thing.get("iscrowd")]
            met = dict(zip(single, metrics.met(named, [truth[place] for place in single], 0.5)))
            counts = metrics.Counts(sum(met.values()), len(single), len(named))
            right = 0.0 if prediction.ended == "missing" else counts.f1
            cases.append(
                Case(item.index, item.image, item.words, prediction.text, "", truth, tuple(named), right, item.size,
                     tuple(met.get(place) for place in range(len(truth))))
            )  # fmt: skip
        truth = {
            "images": [{"id": i.truth[0], "width": i.size[0], "height": i.size[1]} for i in items],
            "annotations": [thing for i in items for thing in i.truth[1]],
            "categories": [{"id": number, "name": name} for number, name in self.kinds.items()],
        }
        precision = metrics.coco_average_precision(truth, found)
        picture = {i.index: i.truth[0] for i in items}
        corpus = {name: _figure(precision, picture, name) for name in ("AP", "AP50", "AP75")}
        return Scored(len(items), frozenset(invalid), {}, corpus, cases, {"boxes of no known kind": strange}, JUDGED)

    def _kinds(self, rows: list) -> dict[int, str]:
        out: dict[int, str] = {}
        for place, row in enumerate(rows):
            try:
                number, name = field(row, "id", int), words_of(row, "name")
                if number in out:
                    raise Malformed("a second category of the same 'id'")
                out[number] = name
            except Malformed as error:
                self.problems.add(f"a category with {error}", f"{self.file.name} category {place}")
        return out

    def _pictures(self, rows: list) -> dict[int, tuple[int, dict]]:
        """COCO's number -> place in the file, row."""
        out: dict[int, tuple[int, dict]] = {}
        for place, row in enumerate(rows):
            try:
                number = field(row, "id", int)
                size_of(row)
                if number in out:
                    raise Malformed("a second picture of the same 'id'")
                out[number] = place, row
            except Malformed as error:
                self.problems.add(str(error), f"{self.file.name} picture {place}")
                self.excluded[place] = str(error)
        return out

    def _things(self, rows: list) -> list[dict[str, Any]]:
        """Annotations that can be scored, as pycocotools takes them."""
        out, seen = [], set()
        for place, row in enumerate(rows):
            try:
                picture, kind, box = field(row, "image_id", int), field(row, "category_id", int), _numbers(row)
                if picture not in self.pictures:
                    raise Malformed("an 'image_id' that is not in 'images'")
                if kind not in self.kinds:
                    raise Malformed("a 'category_id' that is not in 'categories'")
                width, height = size_of(self.pictures[picture][1])
                if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
                    raise Malformed("a box outside the picture")
                if "id" in row and row["id"] in seen:
                    raise Malformed("a second annotation of the same 'id'")
            except Malformed as error:
                self.problems.add(str(error), f"{self.file.name} annotation {place}")
                continue
            seen.add(row.get("id", f"place {place}"))
            area = row.get("area", box[2] * box[3])
            out.append({"id": len(out) + 1, "image_id": picture, "category_id": kind, "bbox": box, "area": area,
                        "iscrowd": int(bool(row.get("iscrowd", 0)))})  # fmt: skip
        return out


def _numbers(row: dict) -> list[float]:
    box = field(row, "bbox", list)
    good = len(box) == 4 and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in box)
    if not good or not all(math.isfinite(n) for n in box) or min(box[2:]) < 0:
        raise Malformed("a box that is not four numbers, x, y, width and height")
    return box


def _box(xywh: Sequence[float], phrase: str) -> Box:
    x, y, width, height = xywh
    return Box(x, y, x + width, y + height, phrase)


def _figure(precision, picture: dict[int, int], name: str) -> Callable[[Sequence[int]], float | None]:
    return lambda indexes: precision([picture[i] for i in indexes])[name]
