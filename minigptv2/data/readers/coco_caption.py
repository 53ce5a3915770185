"""COCO captions: five captions of every image, by five people. Card: datasets/coco_caption.md.

Two formats are read: Karpathy's splits, the usual ones for captioning, and the official files:

    {"images": [{"cocoid": 391895, "split": "test", "sentences": [{"raw": "A man with a red helmet ..."}, ...]}, ...]}
    {"images": [...], "annotations": [{"image_id": 37777, "id": 99, "caption": "A small kitchen with ..."}, ...]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from minigptv2.data.annotations import (
    NOT_ON_DISK,
    InvalidRecord,
    Row,
    check_choice,
    field,
    file_name_field,
    records_of,
    text_field,
)
from minigptv2.data.coco_images import COCO_PAGE, CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import corrupt_file_error, read_json, rows_of
from minigptv2.renames import present_value
from minigptv2.sample import QuestionAnswer, Sample

PAGE = COCO_PAGE
_KARPATHY = ("dataset_coco.json", "annotations/dataset_coco.json")
LAYOUT: Layout = {split: (_KARPATHY,) for split in ("train", "val", "test")} | {
    split: ((f"annotations/captions_{split}.json", f"captions_{split}.json"),)
    for split in ("train2014", "val2014", "train2017", "val2017")
}
COUNTS = {
    "train": 566747,
    "val": 5000,
    "test": 5000,
    "train2014": 414113,
    "val2014": 40504,
    "train2017": 591753,
    "val2017": 5000,
}
DOWNLOADS = {
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip": "",
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip": "",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip": "",
}
PARTS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}  # of Karpathy's splits
GROUP_BY = ("caption", "image")
_COCO_NAME = re.compile(r"(?:COCO_\w+2\d{3}_)?(\d{12})\.jpg")


class CocoCaption:
    """Training splits have one record per caption, the others one per image with all its captions as references.

    root: holds `dataset_coco.json` (splits train, val, test; its "restval" belongs to train) or
    `annotations/captions_<split>.json` (splits train2014, val2014, train2017, val2017). images: the folder of COCO's
    images, "" for root. group_by: "caption" or "image": one record per caption or per image, "" as above.
    """

    RENAMED: ClassVar[dict[str, str]] = {"per": "group_by"}

    def __init__(self, root: str, split: str = "train", images: str = "", group_by: str = ""):
        self.problems = ProblemCounter()
        (file,) = require(root, LAYOUT, split, PAGE)
        self.images, self.name = CocoImages(images or root), file.name
        captions = read_captions(file, split, self.problems)
        group_by = present_value(group_by or GROUP_BY[not split.startswith("train")], {"picture": "image"}, "group_by")
        check_choice("group_by", group_by, GROUP_BY)
        self.records = []
        for record in records_of(captions, apart=group_by == "caption"):
            if record[0] in self.images:
                self.records.append(record)
            else:
                self.problems.add(NOT_ON_DISK, f"{self.name} image {record[0]}")
        require_records(len(self.records), file, self.problems)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        image, captions = self.records[index]
        question_answer = QuestionAnswer("caption", references=captions)
        return Sample(self.images.find(image), (0, 0), (question_answer,), f"{self.name} image {image}")


def read_captions(file: Path, split: str, problems: ProblemCounter) -> dict[int, list[str]]:
    """The captions of each COCO image, by its number; images in the order in which the file first names them.

    problems: counts captions and images that cannot be used.
    """
    if split not in PARTS:
        return _official_captions(file, rows_of(file, "annotations"), problems)
    captions: dict[int, list[str]] = {}
    for row in read_rows(file, split, problems):
        if row.problem:
            problems.add(row.problem, f"{file.name} image {row.number}")
        else:
            captions.setdefault(row.image, []).extend(row.answers)
    return captions


def read_rows(file: Path, split: str, problems: ProblemCounter) -> Iterator[Row]:
    """One row an image, `answers` being its captions, for a benchmark.

    number: of Karpathy's splits, the index among the images of the split; of the official form, the index in the list
    `images` (in the order of first mention, if the file has no such list). image: the number of the COCO image, or a
    file name that is not COCO's. key: the `id` of the image in the file. problems: counts captions that cannot be used.
    """
    if split in PARTS:
        yield from _karpathy_rows(file, split, problems)
        return
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise corrupt_file_error(file, "it has no list 'annotations'")
    captions = _official_captions(file, content["annotations"], problems)
    if not isinstance(content.get("images"), list):
        for number, (image, texts) in enumerate(captions.items()):
            yield Row(number, str(image), image, answers=tuple(texts))
        return
    for number, row in enumerate(content["images"]):
        try:
            image = field(row, "id", int)
            texts = captions.pop(image, [])
            if not texts:
                raise InvalidRecord("an image without captions, or listed twice")
            yield Row(number, str(image), _image_of(row, image), answers=tuple(texts))
        except InvalidRecord as error:
            yield Row(number, problem=str(error))
    for image in captions:
        problems.add("captions of an image that is not in 'images'", f"{file.name} image {image}")


def _karpathy_rows(file: Path, split: str, problems: ProblemCounter) -> Iterator[Row]:
    number = 0
    for index, row in enumerate(rows_of(file, "images")):
        try:
            if field(row, "split", str) not in PARTS[split]:
                continue
        except InvalidRecord as error:
            problems.add(str(error), f"{file.name} image {index}")
            continue
        try:
            image, sentences, texts = field(row, "cocoid", int), field(row, "sentences", list), []
            for sentence_number, sentence in enumerate(sentences):
                try:
                    texts.append(text_field(sentence, "raw"))
                except InvalidRecord as error:
                    problems.add(str(error), f"{file.name} image {index} sentence {sentence_number}")
            if not texts:
                raise InvalidRecord("an image without captions")
            yield Row(number, str(image), image, answers=tuple(texts))
        except InvalidRecord as error:
            yield Row(number, problem=str(error))
        number += 1


def _official_captions(file: Path, rows: list, problems: ProblemCounter) -> dict[int, list[str]]:
    captions: dict[int, list[str]] = {}
    for index, row in enumerate(rows):
        try:
            captions.setdefault(field(row, "image_id", int), []).append(text_field(row, "caption"))
        except InvalidRecord as error:
            problems.add(str(error), f"{file.name} annotation {index}")
    return captions


def _image_of(row: dict, number: int) -> int | str:
    """Which image a row of `images` is: its file name says it, a COCO one in any of its releases; else its `id`."""
    if "file_name" not in row:
        return number
    name = file_name_field(row, "file_name")
    coco_name = _COCO_NAME.fullmatch(name)
    return int(coco_name[1]) if coco_name else name
