"""Any detection set in COCO's JSON: images, boxes and their categories. Card: datasets/coco_detection.md.

`coco_json.py` parses the file for training, evaluation and `minigptv2 data check`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minigptv2.data.annotations import InvalidRecord
from minigptv2.data.box_questions import BOX_TASKS, TOO_MANY, LabelledBoxes, box_questions, options_of, too_many
from minigptv2.data.coco_images import COCO_PAGE
from minigptv2.data.coco_json import CROWD, NO_BOX_LEFT, CocoFile
from minigptv2.data.dataset_files import Layout, require_records
from minigptv2.data.orientation import upright_transform
from minigptv2.errors import UserError
from minigptv2.sample import QuestionAnswer, Sample

PAGE = COCO_PAGE
LAYOUT: Layout = {split: (f"annotations/instances_{split}.json",) for split in ("train2017", "val2017")}
COUNTS = {"train2017": 118287, "val2017": 5000}
DOWNLOADS = {"http://images.cocodataset.org/annotations/annotations_trainval2017.zip": ""}
OPTIONS = {split: {"annotations": "{place}"} for split in LAYOUT}
NOTHING = "an image about which nothing can be asked"


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its boxes, in the frame of the file. given: whether the file states the size."""

    number: int | str
    path: Path
    size: tuple[int, int]
    given: bool
    objects: LabelledBoxes


class CocoDetection:
    """One record per image: independent questions about its boxes, at most `questions_per_image`.

    annotations: the JSON file. images: the folder of the images, or of `train2017` and `val2017`; "" where they lie at
    one of the usual positions next to the JSON file. tasks: of detection, refer, identify. The questions are chosen by
    the number of the record. absent: also ask for categories that have no box in the image; correct where every object
    of every category is annotated. orientation: the frame of the boxes: "stored", the image as it lies in the file;
    "upright", the image turned by its EXIF orientation; "auto", whichever the file's width and height match, else
    stored.

    Detection does not ask for a category with a crowd or with an unusable box in the image, as its boxes are not
    complete; its usable boxes can still be identified. Images without any question, and images whose boxes are all
    unusable, are left out.
    """

    RENAMED: ClassVar[dict[str, str]] = {"file": "annotations", "exchanges": "questions_per_image"}

    def __init__(
        self,
        annotations: str,
        images: str = "",
        tasks: Iterable[str] = BOX_TASKS,
        questions_per_image: int = 8,
        absent: bool = True,
        orientation: str = "auto",
    ):
        self.tasks, self.questions_per_image = options_of(tasks, BOX_TASKS, questions_per_image)
        self.orientation = orientation
        coco = CocoFile(Path(annotations), images, orientation)
        self.problems = coco.problems
        self.records = list(records_of(coco, self.tasks, absent))
        require_records(len(self.records), Path(annotations), self.problems)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Reads the header of the image. Raises UserError where that fails or contradicts the size in the file."""
        record = self.records[index]
        try:
            frame = upright_transform(record.path, record.size, record.given, self.orientation)
        except InvalidRecord as error:
            raise UserError(
                f"{record.path} has {error}.",
                "Width and height are those of the stored or of the upright image.",
                "Correct them, with the boxes, in the annotation file.",
            ) from error
        boxes = {label: [frame.box(box) for box in found] for label, found in record.objects.boxes.items()}
        objects = LabelledBoxes(boxes, record.objects.absent, record.objects.incomplete)
        question_answers = _questions(objects, frame.size, self.tasks, self.questions_per_image, index)
        return Sample(record.path, frame.size, question_answers, f"image {record.number}", side_by_side=True)

    def image(self, index: int) -> Path:
        return self.records[index].path


def records_of(coco: CocoFile, tasks: Iterable[str] = BOX_TASKS, absent: bool = True) -> Iterator[Record]:
    """The records of a file. Images that are not used, and labels that are not asked for, are counted."""
    for image in coco.images:
        where = image.name or f"image {image.number}"
        for annotation in image.annotations:
            if annotation.crowd:
                coco.problems.add(CROWD, f"annotations row {annotation.index} of {where}", dropped=False)
        boxes = image.boxes
        for label in too_many(boxes):
            coco.problems.add(TOO_MANY, f"{where} {label!r}", dropped=False)
        objects = LabelledBoxes(boxes, coco.absent(image) if absent else [], frozenset(image.incomplete))
        if image.missing:
            coco.problems.add(image.missing, where)
        elif image.unusable and not boxes:
            coco.problems.add(NO_BOX_LEFT, where)
        elif _questions(objects, image.size, tasks, 1, 0):
            yield Record(image.number, image.path, image.size, image.has_size, objects)
        elif absent or image.annotations:  # without boxes and with absent=False no question was expected
            coco.problems.add(NOTHING, where, dropped=False)


def _questions(
    objects: LabelledBoxes, size: tuple[int, int], tasks: Iterable[str], count: int, seed: int
) -> tuple[QuestionAnswer, ...]:
    return tuple(box_questions(objects, size, tasks, count, random.Random(seed)))
