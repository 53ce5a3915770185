"""Any detection set in COCO's JSON: pictures, boxes and their categories. Card: datasets/coco_detection.md.

{"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}, ...],
 "annotations": [{"id": 1, "image_id": 9, "category_id": 18, "bbox": [10, 20, 30.5, 40], "iscrowd": 0}, ...],
 "categories": [{"id": 18, "name": "dog"}, ...]}                              bbox: x, y, width, height in pixels
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.data.annotations import Malformed, box_of, damaged, field, read_json, size_of, words_of
from minigptv2.data.box_talk import TASKS, Things, exchanges, options_of
from minigptv2.data.dataset import Problems
from minigptv2.data.layout import Layout, require_records
from minigptv2.errors import UserError
from minigptv2.sample import Exchange, Sample

PAGE = "https://cocodataset.org/#download"
LAYOUT: Layout = {split: (f"annotations/instances_{split}.json",) for split in ("train2017", "val2017")}
COUNTS = {"train2017": 118287, "val2017": 5000}
DOWNLOADS = {"http://images.cocodataset.org/annotations/annotations_trainval2017.zip": ""}
OPTIONS = {split: {"file": "{place}"} for split in LAYOUT}
LISTS = ("images", "annotations", "categories")
CROWD = "a crowd in one box, left out"


class CocoDetection:
    """One record a picture: independent questions about its boxes, at most `exchanges` of them.

    file: the JSON. images: the folder of the pictures, or that of `train2017` and `val2017`, where they do not lie at
    one of the usual places beside the file. tasks: of detection, refer, identify. exchanges: at most so many a picture,
    chosen by its number. absent: ask for categories without a box, too, as is right where every thing of every
    category has one.

    A category that has a crowd in the picture, or a box that was left out, is not asked for there: its boxes can be
    named, but they are not all. Pictures about which nothing can be asked are left out.
    """

    def __init__(
        self, file: str, images: str = "", tasks: Iterable[str] = TASKS, exchanges: int = 8, absent: bool = True
    ):
        self.problems = Problems()
        (self.tasks, self.most), self.absent = options_of(tasks, TASKS, exchanges), absent
        content = read(Path(file))
        self.folder = picture_folder(Path(file), images, content["images"])
        self.categories = categories_of(content["categories"], self.problems)
        pictures: dict[int, tuple[str, tuple[int, int]]] = {}
        for place, row in enumerate(content["images"]):
            try:
                pictures[field(row, "id", int)] = words_of(row, "file_name"), size_of(row)
            except Malformed as error:
                self.problems.add(str(error), f"images row {place}")
        self.problems.saw(len(content["images"]))
        boxes, unsure = boxes_of(content["annotations"], pictures, self.categories, self.problems)
        self.records: list[tuple[int, str, tuple[int, int], Things]] = []
        for number, (name, size) in pictures.items():
            if not (self.folder / name).is_file():
                self.problems.add("a picture that is not on the disk", name)
                continue
            things = self._things(boxes.get(number, {}), frozenset(unsure.get(number, ())))
            if self._said(things, size, 0):
                self.records.append((number, name, size, things))
        require_records(len(self.records), Path(file), self.problems)

    def _things(self, boxes: dict[str, list[Box]], unsure: frozenset[str]) -> Things:
        absent = [c for c in self.categories.values() if c not in boxes and c not in unsure] if self.absent else []
        return Things(boxes, absent, unsure)

    def _said(self, things: Things, size: tuple[int, int], seed: int) -> tuple[Exchange, ...]:
        return tuple(exchanges(things, size, self.tasks, self.most, random.Random(seed)))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        number, name, size, things = self.records[index]
        said = self._said(things, size, index)
        return Sample(self.folder / name, size, said, f"picture {number}", side_by_side=True)


def read(file: Path) -> dict[str, list]:
    """The JSON of a detection set, with its three lists. Raises UserError."""
    content = read_json(file)
    lost = [name for name in LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lost:
        raise damaged(file, f"it has no list {', '.join(map(repr, lost))}, as COCO's detection files have")
    return content


def picture_folder(file: Path, images: str, rows: list) -> Path:
    """The first usual folder that holds one of the first pictures of the file: below the one that is named, or beside
    the file. The one that is named, where none holds any."""
    part = file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
    if images:
        if not Path(images).is_dir():
            raise UserError(f"There is no folder {images}.", "`images` is the folder of the pictures.", "Check it.")
        places = tuple(Path(images, below) for below in ("", part, f"images/{part}"))
    else:
        near, above = file.absolute().parent, file.absolute().parent.parent
        places = (near, near / "images", near / part, above / "images" / part, above / part, above / "images", above)
    for name in (
        row["file_name"] for row in rows[:20] if isinstance(row, dict) and isinstance(row.get("file_name"), str)
    ):
        for place in places:
            if (place / name).is_file():
                return place
    if images:
        return Path(images)
    raise UserError(
        f"The pictures of {file} were not found.", f"Looked in {', '.join(map(str, places))}.",
        "Name their folder with the option images; for data check, with --images.",
    )  # fmt: skip


def categories_of(rows: list, problems: Problems) -> dict[int, str]:
    """Number -> name; underscores are spaces."""
    found: dict[int, str] = {}
    for place, row in enumerate(rows):
        try:
            number, name = field(row, "id", int), words_of(row, "name").replace("_", " ")
            if number in found:
                raise Malformed("a second category of the same id")
            found[number] = name
        except Malformed as error:
            problems.add(str(error), f"categories row {place}", unit="categories")
    return found


def boxes_of(
    rows: list, pictures: dict[int, tuple[str, tuple[int, int]]], categories: dict[int, str], problems: Problems
) -> tuple[dict[int, dict[str, list[Box]]], dict[int, set[str]]]:
    """Picture -> category -> boxes; and picture -> the categories of which not every instance has a box."""
    boxes: dict[int, dict[str, list[Box]]] = {}
    unsure: dict[int, set[str]] = {}
    problems.saw(len(rows), "annotations")
    for place, row in enumerate(rows):
        try:
            picture, category = _owner(row, pictures, categories)
        except Malformed as error:
            problems.add(str(error), f"annotations row {place}", unit="annotations")
            continue
        try:
            if row.get("iscrowd"):
                raise Malformed(CROWD)
            box = box_of(row.get("bbox"), pictures[picture][1])
            boxes.setdefault(picture, {}).setdefault(category, []).append(box)
        except Malformed as error:
            unsure.setdefault(picture, set()).add(category)
            where = f"annotations row {place} of {pictures[picture][0]}"
            problems.add(str(error), where, str(error) != CROWD, "annotations")
    return boxes, unsure


def _owner(row: Any, pictures: dict, categories: dict[int, str]) -> tuple[int, str]:
    picture, category = field(row, "image_id", int), field(row, "category_id", int)
    if picture not in pictures:
        raise Malformed("an 'image_id' that no picture has")
    if category not in categories:
        raise Malformed("a 'category_id' that no category has")
    return picture, categories[category]
