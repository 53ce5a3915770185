"""COCO's detection JSON, read in one place for training, evaluation and `minigptv2 data check`.

{"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}, ...],
 "annotations": [{"id": 1, "image_id": 9, "category_id": 18, "bbox": [10, 20, 30.5, 40], "iscrowd": 0}, ...],
 "categories": [{"id": 18, "name": "dog"}, ...]}                              bbox: x, y, width, height in pixels

Many tools write this form, each in its own way; docs/data.md says which quirks are understood and what is refused.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.data.annotations import (
    FRACTIONS,
    NO_AREA,
    NOT_A_BOX,
    NOT_AN_OBJECT,
    OUTSIDE,
    OVER_EDGE,
    InvalidRecord,
    check_choice,
    exceeds_image,
    file_name_field,
    label_field,
    parse_box,
    text_field,
)
from minigptv2.data.annotations import field as field_of
from minigptv2.data.coco_images import ImageFinder
from minigptv2.data.dataset import RECORDS, ProblemCounter
from minigptv2.data.json_files import corrupt_file_error, read_json
from minigptv2.data.orientation import ORIENTATIONS
from minigptv2.errors import UserError
from minigptv2.images import image_header, upright_size

Id = int | str
LISTS = ("images", "annotations", "categories")
CROWD = "a crowd in one box, left out"
TWO_IMAGES = "an image whose 'id' another image has, too: whose the boxes are is not known, so neither is used"
LISTED_TWICE = "an image that is listed twice, taken as one"
TWO_SIZES = "a box of an image that is listed twice, in two sizes"
NO_SIZE = "an image without a usable width and height, which were read from its file"
TWO_CATEGORIES = "a category whose 'id' another category has, too: neither is used"
ONE_LABEL = "a category whose name differs from an earlier one's by capitals, spaces, _ or - alone, taken as the same"
CLEANED = "a category name with a comma or markup, which were taken out"
ROOT = "a category without a box that is above the others, never asked for"
SAME_ID = "an annotation of an 'id' that an earlier one has"
SAME_BOX = "the same box twice, used once"
AS_TEXT = "a box whose numbers are text"
CORNERS = "a file whose boxes all fit as x1, y1, x2, y2 and reach over the edge as x, y, width, height"
OTHER_AREA = "an 'area' that is no number, so that of the box was taken"
STRANGE_CROWD = "an 'iscrowd' that is neither 0 nor 1, taken as 1"
NO_BOX_LEFT = "an image of whose boxes none can be used"
_LEAST = 3  # boxes from which a file's corner order is judged
_TINY = 8  # pixels; in a smaller image a box below 1 pixel may be meant
_TRUE, _FALSE = (1, "1", "1.0", "true", "yes"), (0, "0", "0.0", "false", "no", "", None)


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotation. place: in its list, from 0. xywh: as the file has it. area: in square pixels, of the segment
    where the file gives it. box: what training uses, clipped to the image, in the frame of the file; None of a crowd,
    of a box without area and of one that was there before."""

    place: int
    category: Id
    label: str
    xywh: list[float]
    area: float
    crowd: bool
    box: Box | None


@dataclass(slots=True)
class CocoImage:
    """One image file. place: of its row in the list, from 0. number: its `id`. size: width and height in the frame of
    the file. lost: why it is not on the disk, "" where it is. unsure: labels of which not every instance has a usable
    box. negatives: labels that are known to be absent, None where all others are. given: whether the file says size."""

    place: int
    number: Id
    name: str
    size: tuple[int, int]
    path: Path
    lost: str = ""
    given: bool = True
    things: list[Thing] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    negatives: frozenset[str] | None = None
    unusable: int = 0

    @property
    def boxes(self) -> dict[str, list[Box]]:
        """label -> the boxes that training uses, in the frame of the file."""
        out: dict[str, list[Box]] = {}
        for thing in self.things:
            if thing.box is not None:
                out.setdefault(thing.label, []).append(thing.box)
        return out

    @property
    def present(self) -> set[str]:
        return {thing.label for thing in self.things} | self.unsure


def identity(value: Any) -> Id:
    """An id: a whole number, also where it is written as 1.0 or "1"; other text as it is. Raises InvalidRecord."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (text := value.strip()):
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else _float_id(text)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidRecord("an 'id' of the wrong type")


def _float_id(text: str) -> Id:
    return int(text[:-2]) if re.fullmatch(r"[0-9]{1,18}\.0", text) else text


def key_of(label: str) -> str:
    """Equal for labels that differ by capitals, spaces, underscores and hyphens alone."""
    words = " ".join(unicodedata.normalize("NFKC", label).casefold().replace("_", " ").split())
    return re.sub(r"(?<=\w)-(?=\w)", " ", words)


def read(file: Path) -> dict[str, list]:
    """The JSON of a detection set, with its three lists. Raises UserError."""
    content = read_json(file)
    lost = [name for name in LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lost:
        raise corrupt_file_error(file, f"it has no list {', '.join(map(repr, lost))}, as COCO's detection files have")
    return content


class CocoFile:
    """A detection file and where its images are. images: row of the list that is used, one an image file. labels: the
    label of each category's `id`; several may have one. roots: labels that are only above others. problems: all that
    is left out or read in another way than it is written. excluded: place of an image row that is not used, and why.

    file: the JSON. folder: of the images, "" where they lie at one of the usual places beside the file. root: where
    images with COCO's numbers are looked for, too. orientation: see `orientation.boxes_orientation`. required: whether
    it is an error that not one image is found."""

    def __init__(self, file: Path, folder: str = "", orientation: str = "auto", root: str = "", required: bool = True):
        self.file, self.problems, self.excluded = file, ProblemCounter(), {}
        self.orientation = check_choice("orientation", orientation, ORIENTATIONS)
        content = read(file)
        self.problems.saw(len(content["images"]))
        self.problems.saw(len(content["annotations"]), "annotations")
        self.problems.saw(len(content["categories"]), "categories")
        self._names = [_name(row) for row in content["images"]]
        self._finder = ImageFinder(file, folder, root, [name for name in self._names if name], required)
        self.labels: dict[Id, str] = {}
        self.category_of: dict[str, Id] = {}  # label -> the `id` that stands for it
        self._unclear: dict[Id, set[str]] = {}  # `id` of several categories -> their labels
        self._read_categories(content["categories"])
        self._shared: dict[Id, list[CocoImage]] = {}  # `id` of several images -> images that its boxes may belong to
        self._other_size: set[Id] = set()
        self._by_id: dict[Id, CocoImage] = {}
        self.images = self._read_images(content["images"])
        self._meetings: Counter[tuple[str, str]] = Counter()  # labels of one and the same box
        self._read_annotations(content["annotations"])
        self.roots = self._find_roots(content["categories"])
        self._kin = self._find_kin(content["categories"])

    def _drop(self, kind: str, where: str, unit: str = "annotations") -> None:
        self.problems.add(kind, where, unit=unit)

    def _note(self, kind: str, where: str) -> None:
        self.problems.add(kind, where, dropped=False)

    def absent(self, image: CocoImage) -> list[str]:
        """Labels of which surely nothing is in the image, in the order of the categories."""
        present = image.present
        return [
            label
            for label in self.category_of
            if label not in present
            and label not in self.roots
            and not self._kin.get(label, _NONE) & present
            and (image.negatives is None or label in image.negatives)
        ]

    # ---- categories ----

    def _read_categories(self, rows: list) -> None:
        first: dict[str, str] = {}  # key of a label -> how it is written first
        places: dict[Id, int] = {}
        for place, row in enumerate(rows):
            where = f"categories row {place}"
            try:
                number, label = identity(field_of(row, "id", (int, float, str))), _label(row)
            except InvalidRecord as error:
                self._drop(str(error), where, "categories")
                continue
            if _label_is_cleaned(row):
                self._note(CLEANED, f"{where} {label!r}")
            label = first.setdefault(key_of(label), label)
            if number in places:
                if number in self._unclear or self.labels[number] != label:
                    self._unclear.setdefault(number, {self.labels.pop(number, label)}).add(label)
                if number in self._unclear:
                    self._drop(TWO_CATEGORIES, where, "categories")
                else:
                    self._note("a category that is listed twice", where)
                continue
            places[number] = place
            self.labels[number] = label
        for number, label in self.labels.items():
            if label in self.category_of:
                self._note(ONE_LABEL, f"categories row {places[number]} {label!r}")
            self.category_of.setdefault(label, number)

    def _find_roots(self, rows: list) -> set[str]:
        """Labels without a box in the whole file that are no kind of thing: others name them as their supercategory, or
        they are Roboflow's category 0, whose name is that of the data set."""
        used = set().union(*(image.present for image in self.images)) if self.images else set()
        above = {key_of(row["supercategory"]) for row in rows if _above(row)}
        roots = set()
        for label, number in self.category_of.items():
            row = next((row for row in rows if isinstance(row, dict) and _same_id(row, number)), {})
            roboflow = number == 0 and row.get("supercategory") == "none" and len(self.category_of) > 1
            if label not in used and (key_of(label) in above or roboflow):
                roots.add(label)
                self._note(ROOT, repr(label))
        return roots

    def _find_kin(self, rows: list) -> dict[str, set[str]]:
        """label -> labels beside which it is never refused: those above and below it, its synonyms, its plural, and
        labels that stand at the same boxes."""
        of_key = {key_of(label): label for label in self.category_of}
        above: dict[str, set[str]] = {}
        kin: dict[str, set[str]] = {}
        for row in rows:
            try:
                own = of_key[key_of(_label(row))]
            except (InvalidRecord, KeyError):
                continue
            if _above(row):
                above.setdefault(key_of(own), set()).add(key_of(row["supercategory"]))
            synonyms = row.get("synonyms") if isinstance(row.get("synonyms"), list) else []
            for key in [key_of(name) for name in synonyms if isinstance(name, str)]:
                _pair(kin, own, of_key.get(key))
        for key, label in of_key.items():
            seen, waiting = {key}, [key]
            while waiting:
                for higher in above.get(waiting.pop(), _NONE) - seen:
                    seen.add(higher)
                    waiting.append(higher)
                    _pair(kin, label, of_key.get(higher))
            for end in ("s", "es"):
                _pair(kin, label, of_key.get(key + end))
        boxes = Counter(thing.label for image in self.images for thing in image.things) if self._meetings else Counter()
        for (one, other), count in self._meetings.items():
            if 2 * count >= min(boxes[one], boxes[other]):
                _pair(kin, one, other)
        return kin

    # ---- images ----

    def _read_images(self, rows: list) -> list[CocoImage]:
        numbers: list[Id | None] = []
        for place, row in enumerate(rows):
            try:
                if isinstance(self._names[place], InvalidRecord):
                    raise self._names[place]
                numbers.append(identity(field_of(row, "id", (int, float, str))))
            except InvalidRecord as error:
                numbers.append(None)
                self._leave_out(place, row, error)
        shared = self._shared_ids(numbers)
        images: dict[str, CocoImage] = {}  # file -> its image
        for place, (row, number) in enumerate(zip(rows, numbers)):
            if number is None:
                continue
            if number in shared:
                self._leave_out(place, row, TWO_IMAGES)
                continue
            name = self._names[place]
            file = _file_key(name) or f"\0{number}"
            if file in images:
                self._listed_again(place, row, number, images[file])
                continue
            try:
                images[file] = self._by_id[number] = self._image(place, row, number, name)
            except InvalidRecord as error:
                self._leave_out(place, row, error)
        for place, number in enumerate(numbers):
            if number in shared and (image := images.get(_file_key(self._names[place]))):
                self._shared.setdefault(number, []).append(image)
            elif number in shared:
                self._shared.setdefault(number, [])
        return list(images.values())

    def _shared_ids(self, numbers: list[Id | None]) -> set[Id]:
        """Ids that stand at several files."""
        files: dict[Id, str] = {}
        shared = set()
        for name, number in zip(self._names, numbers):
            if number is not None and files.setdefault(number, _file_key(name)) != _file_key(name):
                shared.add(number)
        return shared

    def _leave_out(self, place: int, row: Any, why: object) -> None:
        self.excluded[place] = str(why)
        self._drop(str(why), f"images row {place}{_named(row)}", RECORDS)

    def _listed_again(self, place: int, row: Any, number: Id, image: CocoImage) -> None:
        self.excluded[place] = LISTED_TWICE
        self._note(LISTED_TWICE, f"images row {place}{_named(row)}")
        size = _size(row)
        if number not in self._by_id:
            self._by_id[number] = image
            if size is not None and image.given and size != image.size:
                self._other_size.add(number)

    def _image(self, place: int, row: dict, number: Id, name: str) -> CocoImage:
        path, lost = self._finder.find(name, number)
        size = _size(row)
        given = size is not None
        if size is None:
            if lost:
                raise InvalidRecord(f"no usable width and height, and {lost}")
            try:
                stored, orientation = image_header(path)
            except UserError as error:
                raise InvalidRecord("no usable width and height, and an image that cannot be read") from error
            size = upright_size(stored, orientation) if self.orientation == "upright" else stored
            self._note(NO_SIZE, f"images row {place}{_named(row)}")
        image = CocoImage(place, number, name, size, path, lost, given)
        if isinstance(known := row.get("neg_category_ids"), list):  # LVIS
            image.negatives = frozenset(self._labels_of(known))
            image.unsure |= set(self._labels_of(row.get("not_exhaustive_category_ids") or []))
        return image

    def _labels_of(self, numbers: list) -> Iterator[str]:
        for number in numbers:
            if isinstance(number, int | str) and (label := self.labels.get(identity(number))):
                yield label

    # ---- annotations ----

    def _read_annotations(self, rows: list) -> None:
        seen: dict[Any, Any] = {}  # `id` of an annotation -> its image
        boxes: dict[int, dict[tuple, list[str]]] = {}  # place of an image -> box -> its labels
        judged = fitting = over = 0  # of boxes in pixels: as corners they are inside; they reach over the edge
        for place, row in enumerate(rows):
            where = f"annotations row {place}"
            try:
                image, category, label = self._owner(row)
            except InvalidRecord as error:
                self._drop(str(error), where)
                continue
            where = f"{where} of {image.name or image.number}"
            try:
                if row["image_id"] is not None and identity(row["image_id"]) in self._other_size:
                    raise InvalidRecord(TWO_SIZES)
                xywh = _numbers(row.get("bbox"), image.size)
                labels = boxes.setdefault(image.place, {}).setdefault(tuple(xywh), [])
                again = label in labels
                if (number := row.get("id")) is not None and isinstance(number, int | str | float):
                    if number in seen:
                        here = seen[number] is image
                        self.problems.add(SAME_ID, where, here and not again, "annotations")
                        if here:
                            if not again:
                                image.unsure.add(label)
                            continue
                    seen[number] = image
                crowd = self._crowd(row.get("iscrowd"), where)
                if not crowd:
                    judged += 1
                    fitting += _fits_as_corners(xywh, image.size)
                    over += exceeds_image(xywh, image.size)
                thing = self._thing(place, row, category, label, xywh, crowd, image, again, where)
            except InvalidRecord as error:
                image.unsure.add(label)
                image.unusable += 1
                self._drop(str(error), where)
                continue
            image.things.append(thing)
            if not again and not crowd:
                for other in labels:
                    self._meetings[min(label, other), max(label, other)] += 1
                labels.append(label)
        if judged >= _LEAST and fitting == judged and over * 4 >= judged:
            self._note(CORNERS, f"{over} of {judged} boxes reach over the edge")

    def _owner(self, row: Any) -> tuple[CocoImage, Id, str]:
        """Whose an annotation is. Raises InvalidRecord; where it may be on one of several images, or of one of several
        labels, those labels are no longer sure there."""
        image = identity(field_of(row, "image_id", (int, float, str)))
        category = identity(field_of(row, "category_id", (int, float, str)))
        label = self.labels.get(category)
        unclear = self._unclear.get(category, _NONE) if label is None else {label}
        if image in self._shared:
            for shared in self._shared[image]:
                shared.unsure |= unclear
            raise InvalidRecord("a box of an image whose 'id' another has, too")
        if image not in self._by_id:
            raise InvalidRecord("an 'image_id' that no image has")
        if label is None:
            self._by_id[image].unsure |= unclear
            self._by_id[image].unusable += 1
            raise InvalidRecord(
                "a 'category_id' that two categories have" if unclear else "a 'category_id' that no category has"
            )
        return self._by_id[image], self.category_of[label], label

    def _crowd(self, given: Any, where: str) -> bool:
        plain = given.strip().lower() if isinstance(given, str) else given
        if isinstance(plain, list | dict) or plain not in _TRUE + _FALSE:
            self._note(STRANGE_CROWD, where)
            return True
        return plain in _TRUE

    def _thing(
        self,
        place: int,
        row: dict,
        category: Id,
        label: str,
        xywh: list,
        crowd: bool,
        image: CocoImage,
        again: bool,
        where: str,
    ) -> Thing:
        area = row.get("area", xywh[2] * xywh[3])
        if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < math.inf:
            self._note(OTHER_AREA, where)
            area = xywh[2] * xywh[3]
        box = None
        if crowd:
            image.unsure.add(label)
        elif again:
            self._note(SAME_BOX, where)
        elif not (xywh[2] and xywh[3]):
            image.unsure.add(label)
            image.unusable += 1
            self._drop(NO_AREA, where)
        else:
            box = parse_box(xywh, image.size)
            if exceeds_image(xywh, image.size):
                self._note(OVER_EDGE, where)
        return Thing(place, category, label, xywh, area, crowd, box)


_NONE: frozenset[str] = frozenset()


def _pair(kin: dict[str, set[str]], one: str, other: str | None) -> None:
    if other is not None and other != one:
        kin.setdefault(one, set()).add(other)
        kin.setdefault(other, set()).add(one)


def _name(row: Any) -> str | InvalidRecord:
    """The image's file name, of LVIS the end of its address; "" where the row names none."""
    try:
        if not isinstance(row, dict):
            raise InvalidRecord(NOT_AN_OBJECT)
        if row.get("file_name") is not None:
            return file_name_field(row, "file_name")
        address = row.get("coco_url")
        return "/".join(address.split("/")[-2:]) if isinstance(address, str) else ""
    except InvalidRecord as error:
        return error


def _file_key(name: str) -> str:
    """Equal for names of one file."""
    return os.path.normpath(unicodedata.normalize("NFC", name.replace("\\", "/"))) if name else ""


def _named(row: Any) -> str:
    return f" {row['file_name'][:200]}" if isinstance(row, dict) and isinstance(row.get("file_name"), str) else ""


def _label(row: Any) -> str:
    label = " ".join(label_field(row, "name").replace("_", " ").split())
    if not label:
        raise InvalidRecord("an empty 'name'")
    return label


def _label_is_cleaned(row: dict) -> bool:
    return label_field(row, "name") != text_field(row, "name")


def _above(row: Any) -> bool:
    """Whether a category names another one as its supercategory."""
    if not isinstance(row, dict) or not isinstance(row.get("supercategory"), str) or not row["supercategory"].strip():
        return False
    return not isinstance(row.get("name"), str) or key_of(row["name"]) != key_of(row["supercategory"])


def _same_id(row: dict, number: Id) -> bool:
    try:
        return identity(row.get("id")) == number
    except InvalidRecord:
        return False


def _size(row: dict) -> tuple[int, int] | None:
    """Width and height, also where they are 640.0 or "640"; None where one is missing or below 1."""
    sides = []
    for key in ("width", "height"):
        try:
            side = float(row.get(key) if not isinstance(row.get(key), bool) else "")
        except (TypeError, ValueError):
            return None
        if not 1 <= side < 1e9:
            return None
        sides.append(round(side))
    return sides[0], sides[1]


def _numbers(given: Any, size: tuple[int, int]) -> list[float]:
    """A `bbox` as four finite numbers, of which something is in the image. Raises InvalidRecord."""
    if not isinstance(given, list) or len(given) != 4:
        raise InvalidRecord(NOT_A_BOX)
    if any(isinstance(n, str) for n in given):
        raise InvalidRecord(AS_TEXT)
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < 1e9 for n in given):
        raise InvalidRecord(NOT_A_BOX)
    x, y, across, down = given
    if across < 0 or down < 0:
        raise InvalidRecord(NO_AREA)
    if max(size) > _TINY and min(given) >= 0 and max(given) <= 1 and across and down:
        raise InvalidRecord(FRACTIONS)
    if x >= size[0] or y >= size[1] or x + across <= 0 or y + down <= 0:
        raise InvalidRecord(OUTSIDE)
    return given


def _fits_as_corners(numbers: list[float], size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = numbers
    return x1 < x2 <= size[0] + 1 and y1 < y2 <= size[1] + 1
