"""Metrics of boxes: IoU, hits at a threshold, matching, and COCO's average precision.

Boxes are XYXY, in pixels. There are two scorings. "strict" is today's usual one: continuous boxes, a hit at IoU >= the
threshold. "compat" is the published code's, for comparison with its figures: each box is one pixel wider and higher,
and a hit needs IoU > the threshold.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minigptv2 import boxes
from minigptv2.boxes import IOU_THRESHOLD, Box
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Scoring, check_scoring
from minigptv2.eval.metrics.packages import import_from


def iou(a: Box, b: Box, plus_one: bool = False) -> float:
    """Intersection over union, 0..1. plus_one: x2 and y2 are the last pixel inside, so every side is one pixel longer,
    as the scoring "compat" has it."""
    if plus_one:
        a, b = (replace(box, x2=box.x2 + 1, y2=box.y2 + 1) for box in (a, b))
    return boxes.iou(a, b)


def is_hit(iou: float, threshold: float = IOU_THRESHOLD, scoring: Scoring = "strict") -> bool:
    """Whether this IoU is a hit. Exactly at the threshold, strict says yes and compat no."""
    return iou > threshold if check_scoring(scoring) == "compat" else iou >= threshold


@dataclass
class DetectionCounts:
    """True positives, ground-truth boxes and predicted boxes of an image or of a set."""

    true_positives: int = 0
    num_ground_truth: int = 0
    num_predicted: int = 0

    def add(self, true_positives: int, num_ground_truth: int, num_predicted: int) -> None:
        """Add the counts of one image."""
        self.true_positives += true_positives
        self.num_ground_truth += num_ground_truth
        self.num_predicted += num_predicted

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 if there are neither ground-truth nor predicted boxes."""
        total = self.num_ground_truth + self.num_predicted
        return 2 * self.true_positives / total if total else 1.0


def match_boxes(predicted: Sequence[Box], expected: Sequence[Box], threshold: float = IOU_THRESHOLD) -> list[bool]:
    """For each expected box, whether it is matched by a predicted box with the same phrase and IoU >= threshold.

    Each box is used once; pairs are matched greedily, highest IoU first.
    """
    pairs = sorted(
        ((iou(p, e), i, j) for i, p in enumerate(predicted) for j, e in enumerate(expected) if p.phrase == e.phrase),
        reverse=True,
    )
    used_predicted, used_expected = set(), set()
    for overlap, i, j in pairs:
        if overlap >= threshold and i not in used_predicted and j not in used_expected:
            used_predicted.add(i)
            used_expected.add(j)
    return [j in used_expected for j in range(len(expected))]


class AveragePrecision:
    """COCO's metrics for boxes, by pycocotools. Boxes are matched once; metrics of other images are then quick.

    metrics = coco_average_precision(ground_truth, detections)
    metrics()              AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, over all images
    metrics([7, 7, 12])    AP, AP50, AP75 of these image ids; an id that is given twice counts twice

    A value is None if the ground truth has no box of that size. Nothing is printed.
    """

    def __init__(self, evaluation):
        self._evaluation = evaluation
        self._column = {image: n for n, image in enumerate(evaluation.params.imgIds)}
        self._last: tuple[tuple, dict] | None = None

    def __call__(self, image_ids: Sequence | None = None) -> dict[str, float | None]:
        if image_ids is None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._evaluation.accumulate()
                self._evaluation.summarize()
            return {n: _or_none(v) for n, v in zip(_COCO_NAMES, self._evaluation.stats, strict=True)}
        if self._last is None or self._last[0] != tuple(image_ids):  # one bootstrap draw asks for several metrics
            self._last = tuple(image_ids), self._of(image_ids)
        return dict(self._last[1])

    def _of(self, image_ids: Sequence) -> dict[str, float | None]:
        import numpy as np
        from pycocotools.cocoeval import COCOeval

        full = self._evaluation.params
        columns = [self._column[i] for i in image_ids]
        per_image = np.empty(len(self._evaluation.evalImgs), dtype=object)
        per_image[:] = self._evaluation.evalImgs
        chosen = per_image.reshape(len(full.catIds), len(full.areaRng), -1)[:, :1, columns]  # area range 0: any size
        part = COCOeval(iouType="bbox")
        part.params.catIds, part.params.imgIds = full.catIds, list(range(len(columns)))
        part.params.areaRng, part.params.maxDets = full.areaRng[:1], full.maxDets[-1:]
        part._paramsEval, part.evalImgs = part.params, list(chosen.ravel())
        with contextlib.redirect_stdout(io.StringIO()):
            part.accumulate()
        precision = part.eval["precision"]  # [thresholds, recalls, classes, 1, 1]
        index = {round(float(t), 2): n for n, t in enumerate(part.params.iouThrs)}
        precisions = {"AP": precision, "AP50": precision[index[0.5]], "AP75": precision[index[0.75]]}
        return {n: _or_none(float(v[v > -1].mean()) if (v > -1).any() else -1) for n, v in precisions.items()}


_COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def _or_none(value: float) -> float | None:
    """pycocotools writes -1 for a metric that does not exist."""
    return float(value) if value >= 0 else None


def coco_average_precision(
    ground_truth: str | Path | dict, detections: str | Path | Sequence[dict]
) -> AveragePrecision:
    """Match detections with COCO ground truth; call the result for the metrics.

    ground_truth: an instances file, or its content. detections: [{image_id, category_id, bbox [x, y, width, height],
    score}], or a file of them. Raises UserError if either has another format.
    """
    with import_from("pycocotools"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    data = _read_json(ground_truth) if isinstance(ground_truth, (str, Path)) else ground_truth
    rows = _read_json(detections) if isinstance(detections, (str, Path)) else list(detections)
    data = _checked_ground_truth(data)
    rows = _checked_detections(rows, data)
    with contextlib.redirect_stdout(io.StringIO()):
        expected, predicted = COCO(), COCO()
        expected.dataset, predicted.dataset = data, {**data, "annotations": rows}
        expected.createIndex()
        predicted.createIndex()
        evaluation = COCOeval(expected, predicted, "bbox")
        evaluation.evaluate()
    return AveragePrecision(evaluation)


def _read_json(file: str | Path):
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", "It must be a JSON file in COCO's format.", "Check the path."
        ) from None


def _checked_ground_truth(data: dict) -> dict:
    """A copy in which every box has an id, an area and iscrowd; some files omit these."""
    try:
        annotations = []
        for number, row in enumerate(data["annotations"], 1):
            _, _, width, height = row["bbox"]
            rest = {"id": number, "area": width * height, "iscrowd": 0} | row
            annotations.append({**rest, "image_id": row["image_id"], "category_id": row["category_id"]})
        return {"images": list(data["images"]), "categories": list(data["categories"]), "annotations": annotations}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The ground truth is not a COCO instances file: {type(error).__name__} {error}",
            "It holds images, categories and annotations with image_id, category_id and bbox of four numbers.",
            "Give the instances_*.json of the set.",
        ) from None


def _checked_detections(detections, data: dict) -> list[dict]:
    """A copy, since pycocotools writes into what it gets."""
    images, categories = {i["id"] for i in data["images"]}, {c["id"] for c in data["categories"]}
    rows = []
    for number, row in enumerate(detections if isinstance(detections, list) else [detections]):
        try:
            box = [float(v) for v in row["bbox"]]
            rows.append(
                {
                    "id": number + 1,
                    "image_id": row["image_id"],
                    "category_id": row["category_id"],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": float(row["score"]),
                }
            )
        except (KeyError, TypeError, ValueError, IndexError):
            box = []
        if len(box) != 4 or not all(abs(v) < float("inf") for v in box):
            raise UserError(
                f"Detection {number} is {str(row)[:80]}.",
                "It must be {image_id, category_id, bbox: [x, y, width, height], score}.",
                "Write it in pixels.",
            )
        for key, known in (("image_id", images), ("category_id", categories)):
            if rows[-1][key] not in known:
                raise UserError(
                    f"Detection {number} has {key} {row[key]!r}.",
                    "The ground truth does not have it.",
                    "Check that both files are of the same set and split.",
                )
    return rows
