"""The one parser of COCO's detection JSON, for training, evaluation and `minigptv2 data check`.

{"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}, ...],
 "annotations": [{"id": 1, "image_id": 9, "category_id": 18, "bbox": [10, 20, 30.5, 40], "iscrowd": 0}, ...],
 "categories": [{"id": 18, "name": "dog"}, ...]}                              bbox: x, y, width, height in pixels

Many tools write this format, each in its own way. docs/data.md says which variants are understood and which refused.
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
TWO_IMAGES = "an image whose 'id' another image has, too: its boxes cannot be assigned, so neither image is used"
LISTED_TWICE = "an image that is listed twice, taken as one"
TWO_SIZES = "a box of an image that is listed twice, in two sizes"
NO_SIZE = "an image without a usable width and height; its size was read from the image file"
TWO_CATEGORIES = "a category whose 'id' another category has, too: neither is used"
ONE_LABEL = "a category whose name differs from an earlier one's by capitals, spaces, _ or - alone, taken as the same"
CLEANED = "a category name with a comma or markup, which was removed"
ROOT = "a category without a box that is the parent of others, never asked for"
SAME_ID = "an annotation whose 'id' an earlier one has"
SAME_BOX = "the same box twice, used once"
AS_TEXT = "a box whose numbers are text"
CORNERS = "a file whose boxes all fit as x1, y1, x2, y2 and reach over the edge as x, y, width, height"
OTHER_AREA = "an 'area' that is not a number, replaced by the area of the box"
STRANGE_CROWD = "an 'iscrowd' that is neither 0 nor 1, taken as 1"
NO_BOX_LEFT = "an image none of whose boxes can be used"
_MIN_BOXES = 3  # for judging whether a file has corners instead of x, y, width, height
_TINY = 8  # pixels; in an image of this size or smaller, a box below 1 pixel may be correct
_TRUE, _FALSE = (1, "1", "1.0", "true", "yes"), (0, "0", "0.0", "false", "no", "", None)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation of an image.

    index: in the file's list. category: `id`. xywh: as in the file. area: square pixels, of the segment if
    the file has it, otherwise of the box. box: for training, clipped to the image, in the file's frame; None for a
    crowd, for a box without area, and for the repetition of a box.
    """

    index: int
    category: Id
    label: str
    xywh: list[float]
    area: float
    crowd: bool
    box: Box | None


@dataclass(slots=True)
class CocoImage:
    """One image file.

    index: of its row in the file's list. number: its `id`. size: (width, height) in the file's frame.
    has_size: whether the JSON has that size. missing: why the image is not on the disk, "" if it is. incomplete: labels
    whose boxes are incomplete in this image. negatives: labels that are absent; None: all labels without a box are.
    unusable: number of annotations that cannot be used."""

    index: int
    number: Id
    name: str
    size: tuple[int, int]
    path: Path
    missing: str = ""
    has_size: bool = True
    annotations: list[Annotation] = field(default_factory=list)
    incomplete: set[str] = field(default_factory=set)
    negatives: frozenset[str] | None = None
    unusable: int = 0

    @property
    def boxes(self) -> dict[str, list[Box]]:
        """label -> boxes for training, in the file's frame."""
        out: dict[str, list[Box]] = {}
        for annotation in self.annotations:
            if annotation.box is not None:
                out.setdefault(annotation.label, []).append(annotation.box)
        return out

    @property
    def present(self) -> set[str]:
        """Labels of which an instance is, or may be, in the image."""
        return {annotation.label for annotation in self.annotations} | self.incomplete


def identity(value: Any) -> Id:
    """An `id`: an integer, also if it is written as 1.0 or "1"; other text unchanged. Raises InvalidRecord."""
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
    """A form of a label without differences in capitals, spaces, underscores and hyphens."""
    words = " ".join(unicodedata.normalize("NFKC", label).casefold().replace("_", " ").split())
    return re.sub(r"(?<=\w)-(?=\w)", " ", words)


def read(file: Path) -> dict[str, list]:
    """The content of a detection file. Raises UserError if one of its three lists is missing."""
    content = read_json(file)
    absent = [name for name in LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if absent:
        raise corrupt_file_error(
            file, f"it has no list {', '.join(map(repr, absent))}, which COCO's detection files have"
        )
    return content


class CocoFile:
    """The content of a detection file, with the paths of its images.

    Arguments: file: the JSON. folder, root, required: of the images, see `ImageFinder`. orientation: see
    `orientation.boxes_orientation`.

    Attributes: images: the usable ones, one for each image file. labels: `id` of a category -> label; several may share
    a label. category_of: label -> the `id` that stands for it. roots: labels that are only parents of others. problems:
    of everything that is dropped or corrected. excluded: index of an image row that is not used -> the problem.
    """

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
        self.category_of: dict[str, Id] = {}
        self._ambiguous: dict[Id, set[str]] = {}  # `id` of several categories -> their labels
        self._read_categories(content["categories"])
        self._shared: dict[Id, list[CocoImage]] = {}  # `id` of several images -> images that its boxes may belong to
        self._other_size: set[Id] = set()  # `id` of rows that repeat an image with another size
        self._by_id: dict[Id, CocoImage] = {}
        self.images = self._read_images(content["images"])
        self._same_box: Counter[tuple[str, str]] = Counter()  # pairs of labels -> number of boxes that have both
        self._read_annotations(content["annotations"])
        self.roots = self._find_roots(content["categories"])
        self._related = self._find_related(content["categories"])

    def _drop(self, problem: str, where: str, unit: str = "annotations") -> None:
        self.problems.add(problem, where, unit=unit)

    def _note(self, problem: str, where: str) -> None:
        self.problems.add(problem, where, dropped=False)

    def absent(self, image: CocoImage) -> list[str]:
        """Labels of which certainly no instance is in the image, in the order of the categories."""
        present = image.present
        return [
            label
            for label in self.category_of
            if label not in present
            and label not in self.roots
            and not self._related.get(label, _NONE) & present
            and (image.negatives is None or label in image.negatives)
        ]

    # ---- categories ----

    def _read_categories(self, rows: list) -> None:
        first: dict[str, str] = {}  # `key_of` a label -> its first spelling
        indices: dict[Id, int] = {}
        for index, row in enumerate(rows):
            where = f"categories row {index}"
            try:
                number, label = identity(field_of(row, "id", (int, float, str))), _label(row)
            except InvalidRecord as error:
                self._drop(str(error), where, "categories")
                continue
            if _label_is_cleaned(row):
                self._note(CLEANED, f"{where} {label!r}")
            label = first.setdefault(key_of(label), label)
            if number in indices:
                if number in self._ambiguous or self.labels[number] != label:
                    self._ambiguous.setdefault(number, {self.labels.pop(number, label)}).add(label)
                if number in self._ambiguous:
                    self._drop(TWO_CATEGORIES, where, "categories")
                else:
                    self._note("a category that is listed twice", where)
                continue
            indices[number] = index
            self.labels[number] = label
        for number, label in self.labels.items():
            if label in self.category_of:
                self._note(ONE_LABEL, f"categories row {indices[number]} {label!r}")
            self.category_of.setdefault(label, number)

    def _find_roots(self, rows: list) -> set[str]:
        """Labels without a box that are not object classes: others name them as their supercategory, or they are
        Roboflow's category 0, which has the name of the data set."""
        used = set().union(*(image.present for image in self.images)) if self.images else set()
        parents = {key_of(row["supercategory"]) for row in rows if _has_parent(row)}
        roots = set()
        for label, number in self.category_of.items():
            row = next((row for row in rows if isinstance(row, dict) and _same_id(row, number)), {})
            roboflow = number == 0 and row.get("supercategory") == "none" and len(self.category_of) > 1
            if label not in used and (key_of(label) in parents or roboflow):
                roots.add(label)
                self._note(ROOT, repr(label))
        return roots

    def _find_related(self, rows: list) -> dict[str, set[str]]:
        """label -> labels whose presence makes its absence uncertain: its parents and children, synonyms, plural, and
        labels that often share its boxes."""
        of_key = {key_of(label): label for label in self.category_of}
        parents: dict[str, set[str]] = {}
        related: dict[str, set[str]] = {}
        for row in rows:
            try:
                own = of_key[key_of(_label(row))]
            except (InvalidRecord, KeyError):
                continue
            if _has_parent(row):
                parents.setdefault(key_of(own), set()).add(key_of(row["supercategory"]))
            synonyms = row.get("synonyms") if isinstance(row.get("synonyms"), list) else []
            for key in [key_of(name) for name in synonyms if isinstance(name, str)]:
                _pair(related, own, of_key.get(key))
        for key, label in of_key.items():
            seen, waiting = {key}, [key]
            while waiting:
                for parent in parents.get(waiting.pop(), _NONE) - seen:
                    seen.add(parent)
                    waiting.append(parent)
                    _pair(related, label, of_key.get(parent))
            for ending in ("s", "es"):
                _pair(related, label, of_key.get(key + ending))
        boxes = Counter(a.label for image in self.images for a in image.annotations) if self._same_box else Counter()
        for (one, other), count in self._same_box.items():
            if 2 * count >= min(boxes[one], boxes[other]):
                _pair(related, one, other)
        return related

    # ---- images ----

    def _read_images(self, rows: list) -> list[CocoImage]:
        numbers: list[Id | None] = []
        for index, row in enumerate(rows):
            try:
                if isinstance(self._names[index], InvalidRecord):
                    raise self._names[index]
                numbers.append(identity(field_of(row, "id", (int, float, str))))
            except InvalidRecord as error:
                numbers.append(None)
                self._exclude(index, row, error)
        shared = self._shared_ids(numbers)
        images: dict[str, CocoImage] = {}  # file -> its image
        for index, (row, number) in enumerate(zip(rows, numbers)):
            if number is None:
                continue
            if number in shared:
                self._exclude(index, row, TWO_IMAGES)
                continue
            name = self._names[index]
            file = _file_key(name) or f"\0{number}"
            if file in images:
                self._listed_again(index, row, number, images[file])
                continue
            try:
                images[file] = self._by_id[number] = self._image(index, row, number, name)
            except InvalidRecord as error:
                self._exclude(index, row, error)
        for index, number in enumerate(numbers):
            if number in shared and (image := images.get(_file_key(self._names[index]))):
                self._shared.setdefault(number, []).append(image)
            elif number in shared:
                self._shared.setdefault(number, [])
        return list(images.values())

    def _shared_ids(self, numbers: list[Id | None]) -> set[Id]:
        """Values of `id` that several image files have."""
        files: dict[Id, str] = {}
        shared = set()
        for name, number in zip(self._names, numbers):
            if number is not None and files.setdefault(number, _file_key(name)) != _file_key(name):
                shared.add(number)
        return shared

    def _exclude(self, index: int, row: Any, problem: object) -> None:
        self.excluded[index] = str(problem)
        self._drop(str(problem), f"images row {index}{_named(row)}", RECORDS)

    def _listed_again(self, index: int, row: Any, number: Id, image: CocoImage) -> None:
        self.excluded[index] = LISTED_TWICE
        self._note(LISTED_TWICE, f"images row {index}{_named(row)}")
        size = _size(row)
        if number not in self._by_id:
            self._by_id[number] = image
            if size is not None and image.has_size and size != image.size:
                self._other_size.add(number)

    def _image(self, index: int, row: dict, number: Id, name: str) -> CocoImage:
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
            self._note(NO_SIZE, f"images row {index}{_named(row)}")
        image = CocoImage(index, number, name, size, path, lost, given)
        if isinstance(known := row.get("neg_category_ids"), list):  # LVIS
            image.negatives = frozenset(self._labels_of(known))
            image.incomplete |= set(self._labels_of(row.get("not_exhaustive_category_ids") or []))
        return image

    def _labels_of(self, numbers: list) -> Iterator[str]:
        for number in numbers:
            if isinstance(number, int | str) and (label := self.labels.get(identity(number))):
                yield label

    # ---- annotations ----

    def _read_annotations(self, rows: list) -> None:
        seen: dict[Any, Any] = {}  # `id` of an annotation -> its image
        boxes: dict[int, dict[tuple, list[str]]] = {}  # index of an image -> box -> its labels
        # counts of boxes: judged, inside the image if read as corners, over the edge if read as x, y, width, height
        judged = fitting = over = 0
        for index, row in enumerate(rows):
            where = f"annotations row {index}"
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
                labels = boxes.setdefault(image.index, {}).setdefault(tuple(xywh), [])
                repeated = label in labels
                if (number := row.get("id")) is not None and isinstance(number, int | str | float):
                    if number in seen:
                        here = seen[number] is image
                        self.problems.add(SAME_ID, where, here and not repeated, "annotations")
                        if here:
                            if not repeated:
                                image.incomplete.add(label)
                            continue
                    seen[number] = image
                crowd = self._crowd(row.get("iscrowd"), where)
                if not crowd:
                    judged += 1
                    fitting += _fits_as_corners(xywh, image.size)
                    over += exceeds_image(xywh, image.size)
                annotation = self._annotation(index, row, category, label, xywh, crowd, image, repeated, where)
            except InvalidRecord as error:
                image.incomplete.add(label)
                image.unusable += 1
                self._drop(str(error), where)
                continue
            image.annotations.append(annotation)
            if not repeated and not crowd:
                for other in labels:
                    self._same_box[min(label, other), max(label, other)] += 1
                labels.append(label)
        if judged >= _MIN_BOXES and fitting == judged and over * 4 >= judged:
            self._note(CORNERS, f"{over} of {judged} boxes reach over the edge")

    def _owner(self, row: Any) -> tuple[CocoImage, Id, str]:
        """Image, category and label of an annotation. Raises InvalidRecord if they are unknown or ambiguous; then the
        labels that it may have count as incomplete in the images that it may belong to."""
        image = identity(field_of(row, "image_id", (int, float, str)))
        category = identity(field_of(row, "category_id", (int, float, str)))
        label = self.labels.get(category)
        possible = self._ambiguous.get(category, _NONE) if label is None else {label}
        if image in self._shared:
            for shared in self._shared[image]:
                shared.incomplete |= possible
            raise InvalidRecord("a box of an image whose 'id' another has, too")
        if image not in self._by_id:
            raise InvalidRecord("an 'image_id' that no image has")
        if label is None:
            self._by_id[image].incomplete |= possible
            self._by_id[image].unusable += 1
            raise InvalidRecord(
                "a 'category_id' that two categories have" if possible else "a 'category_id' that no category has"
            )
        return self._by_id[image], self.category_of[label], label

    def _crowd(self, given: Any, where: str) -> bool:
        value = given.strip().lower() if isinstance(given, str) else given
        if isinstance(value, list | dict) or value not in _TRUE + _FALSE:
            self._note(STRANGE_CROWD, where)
            return True
        return value in _TRUE

    def _annotation(
        self,
        index: int,
        row: dict,
        category: Id,
        label: str,
        xywh: list,
        crowd: bool,
        image: CocoImage,
        repeated: bool,
        where: str,
    ) -> Annotation:
        area = row.get("area", xywh[2] * xywh[3])
        if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < math.inf:
            self._note(OTHER_AREA, where)
            area = xywh[2] * xywh[3]
        box = None
        if crowd:
            image.incomplete.add(label)
        elif repeated:
            self._note(SAME_BOX, where)
        elif not (xywh[2] and xywh[3]):
            image.incomplete.add(label)
            image.unusable += 1
            self._drop(NO_AREA, where)
        else:
            box = parse_box(xywh, image.size)
            if exceeds_image(xywh, image.size):
                self._note(OVER_EDGE, where)
        return Annotation(index, category, label, xywh, area, crowd, box)


_NONE: frozenset[str] = frozenset()


def _pair(related: dict[str, set[str]], one: str, other: str | None) -> None:
    if other is not None and other != one:
        related.setdefault(one, set()).add(other)
        related.setdefault(other, set()).add(one)


def _name(row: Any) -> str | InvalidRecord:
    """The image's file name, for LVIS the end of its address; "" if the row has none."""
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
    """A form of a file name that is equal for all spellings of it."""
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


def _has_parent(row: Any) -> bool:
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
    """(width, height), also if they are written as 640.0 or "640"; None if one is missing or below 1."""
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
    """A `bbox` as four finite numbers; a part of the box is in the image. Raises InvalidRecord."""
    if not isinstance(given, list) or len(given) != 4:
        raise InvalidRecord(NOT_A_BOX)
    if any(isinstance(n, str) for n in given):
        raise InvalidRecord(AS_TEXT)
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < 1e9 for n in given):
        raise InvalidRecord(NOT_A_BOX)
    x, y, width, height = given
    if width < 0 or height < 0:
        raise InvalidRecord(NO_AREA)
    if max(size) > _TINY and min(given) >= 0 and max(given) <= 1 and width and height:
        raise InvalidRecord(FRACTIONS)
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        raise InvalidRecord(OUTSIDE)
    return given


def _fits_as_corners(numbers: list[float], size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = numbers
    return x1 < x2 <= size[0] + 1 and y1 < y2 <= size[1] + 1
