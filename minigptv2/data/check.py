"""`minigptv2 data check`: what is in a file of one's own, what is wrong with it, and a sheet of pictures to look at.

JSON Lines (`own.py`) and COCO's detection JSON (`coco_detection.py`) are read by the code that training reads them
with; here every picture is opened, too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.data import coco_detection, own
from minigptv2.data.annotations import (
    OVER_EDGE,
    Malformed,
    find_image,
    reaches_over,
    read_json_lines,
    size_of,
    words_of,
)
from minigptv2.data.annotations import field as field_of
from minigptv2.data.dataset import Problems
from minigptv2.data.turns import tokens_of
from minigptv2.errors import UserError

CELL, BAND = 400, 20  # pixels of a picture's place in the sheet, and of the line with its name
_MOST_LABELS = 12  # named in the summary
TURNED = "a size of the picture as it lies in the file; it is turned upright by its EXIF orientation"
SWAPPED = "a size with width and height exchanged"
OTHER_SIZE = "a size that is not the picture's"


@dataclass
class Report:
    """counts: what was found, by name. labels: how many boxes of each. drawn: picture, its upright size, its boxes."""

    form: str
    counts: dict[str, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    drawn: list[tuple[Path, tuple[int, int], list[Box]]] = field(default_factory=list)
    usable: int = 0

    @property
    def code(self) -> int:
        """0 all is well, 1 there are problems, 2 nothing of the file can be used."""
        return 2 if not self.usable else 1 if self.problems else 0

    def lines(self) -> Iterator[str]:
        yield self.form
        for name, count in self.counts.items():
            yield f"  {count:>8,} {name}"
        if self.labels:
            most = [f"{label} {count:,}" for label, count in self.labels.most_common(_MOST_LABELS)]
            more = f", and {len(self.labels) - len(most):,} more" if len(self.labels) > len(most) else ""
            yield f"labels: {', '.join(most)}{more}"
        if not self.problems:
            yield "no problems"
            return
        yield f"{sum(self.problems.counts.values()):,} problems"
        yield from (f"  {line}" for line in self.problems.lines())
        if not self.usable:
            yield "nothing of this file can be used"


def check(file: str | Path, images: str = "", quick: bool = False) -> Report:
    """Read the whole file and every picture it names. images: their folder. quick: read the pictures' headers alone.

    Raises UserError where the file is neither JSON Lines nor COCO's JSON.
    """
    file = Path(file)
    if file.suffix.lower() in (".jsonl", ".ndjson") or _first_line_is_a_record(file):
        return _check_own(file, images, quick)
    return _check_coco(file, images, quick)


def _first_line_is_a_record(file: Path) -> bool:
    """Whether a file begins with a line that is an object by itself, and not one of COCO's."""
    try:
        with file.open("rb") as lines:
            first = next((line for line in lines if line.strip()), b"")
        row = json.loads(first.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not any(name in row for name in coco_detection.LISTS)


def _look(path: Path, quick: bool) -> tuple[int, int]:
    """The upright size of a picture. Raises Malformed where it is missing, cannot be read or is damaged."""
    from minigptv2.images import image_size, open_image

    if not path.is_file():
        raise Malformed("a picture that is not on the disk")
    try:
        return image_size(path) if quick else open_image(path).size
    except UserError as error:
        kind = "damaged or cut short" if "damaged" in error.given else "not to be read"
        raise Malformed(f"a picture that is {kind}") from error


def _compared(
    given: tuple[int, int], real: tuple[int, int], where: str, problems: Problems, path: Path | None = None
) -> None:
    """Counts a given size that is not the upright one. path: of the image, whose header tells whether EXIF turns it."""
    if given != real:
        turned = given == real[::-1] and (path is None or _turned(path))
        kind = TURNED if turned else SWAPPED if given == real[::-1] else OTHER_SIZE
        problems.add(kind, f"{where} {given[0]} x {given[1]}, upright {real[0]} x {real[1]}")


def _turned(path: Path) -> bool:
    """Whether EXIF turns an image by a quarter."""
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


# ---- JSON Lines ----


def _check_own(file: Path, images: str, quick: bool) -> Report:
    from tqdm import tqdm

    folder = own.picture_folder(file, images)
    report, sizes = Report(f"{file}: JSON Lines"), {}
    lines = sum(1 for _ in read_json_lines(file))

    def measure(image: str, given: tuple[int, int] | None, needed: bool) -> tuple[Path, tuple[int, int]]:
        path = find_image(folder, image)
        if path not in sizes:
            sizes[path] = _look(path, quick)
        if given:
            _compared(given, sizes[path], image, report.problems, path)
        return path, sizes[path]

    counts, longest = Counter(), 0
    read = own.entries_of(file, measure, report.problems)
    entries = list(tqdm(read, "check", lines, unit=" lines", disable=None, leave=False))
    own.settle(entries, report.problems)
    for entry in entries:
        report.usable += 1
        for label, boxes in entry.boxes.items():
            report.labels[label] += len(boxes)
        counts["boxes"] += sum(map(len, entry.boxes.values()))
        for exchange in entry.asked:
            counts[exchange.task] += 1
        counts["conversations"] += bool(entry.talked)
        counts["turns"] += sum(map(len, entry.talked))
        longest = max(longest, sum(map(tokens_of, entry.talked)))
        counts["text"] += entry.image is None
        if entry.image is not None:
            boxes = [Box(*box.xyxy, label) for label, found in entry.boxes.items() for box in found]
            report.drawn.append((entry.image, entry.size, boxes))
    report.counts = {
        "lines": lines, "pictures": len({path for path, _, _ in report.drawn}), "boxes": counts["boxes"],
        "labels": len(report.labels), "captions": counts["caption"], "captions with boxes": counts["grounding"],
        "questions": counts["vqa"], "conversations": counts["conversations"], "turns in them": counts["turns"],
        "tokens in the longest, by estimate": longest,
        "lines without a picture": counts["text"],
    }  # fmt: skip
    return report


# ---- COCO ----


def _check_coco(file: Path, images: str, quick: bool) -> Report:
    from tqdm import tqdm

    content = coco_detection.read(file)
    folder = coco_detection.picture_folder(file, images, content["images"])
    report, problems = Report(f"{file}: COCO detection"), Problems()
    report.problems = problems
    categories = coco_detection.categories_of(content["categories"], problems)
    pictures: dict[int, tuple[str, tuple[int, int]]] = {}
    usable: set[int] = set()
    for place, row in enumerate(tqdm(content["images"], "check", unit=" pictures", disable=None, leave=False)):
        try:
            number, name, given = field_of(row, "id", int), words_of(row, "file_name"), size_of(row)
            if number in pictures:
                raise Malformed("a picture of an 'id' that an earlier one has")
            pictures[number] = name, given
            real = _look(folder / name, quick)
            _compared(given, real, name, problems)
            usable.add(number)
        except Malformed as error:
            problems.add(str(error), f"images row {place}{_named(row)}")
    boxes, _ = coco_detection.boxes_of(content["annotations"], pictures, categories, problems)
    crowds = problems.counts.pop(coco_detection.CROWD, 0)
    _check_annotations(content["annotations"], pictures, problems)
    for number, (name, size) in pictures.items():
        for label, found in boxes.get(number, {}).items():
            report.labels[label] += len(found)
        if number in usable:
            drawn = [Box(*box.xyxy, label) for label, found in boxes.get(number, {}).items() for box in found]
            report.drawn.append((folder / name, size, drawn))
    report.usable = len(usable)
    report.counts = {
        "pictures": len(pictures), "pictures without a box": sum(number not in boxes for number in pictures),
        "boxes": sum(report.labels.values()), "crowds, left out": crowds, "categories": len(categories),
        "categories with a box": len(report.labels),
    }  # fmt: skip
    return report


def _named(row: Any) -> str:
    return f" {row['file_name']}" if isinstance(row, dict) and isinstance(row.get("file_name"), str) else ""


def _check_annotations(rows: list, pictures: dict[int, tuple[str, tuple[int, int]]], problems: Problems) -> None:
    """What the reader has no reason to mind: numbers given twice, and boxes that reach over the edge."""
    seen = set()
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            continue
        number = row.get("id")
        if isinstance(number, int | str):
            if number in seen:
                problems.add("an annotation of an 'id' that an earlier one has", f"annotations row {place}")
            seen.add(number)
        owner = row.get("image_id")
        if row.get("iscrowd") or not isinstance(owner, int) or owner not in pictures:
            continue
        name, size = pictures[owner]
        try:
            coco_detection.box_of(row.get("bbox"), size)
        except Malformed:
            continue
        if reaches_over(row["bbox"], size):
            problems.add(OVER_EDGE, f"annotations row {place} of {name}")


# ---- the sheet ----


def write_sheet(report: Report, out: Path, most: int) -> tuple[Path, int]:
    """Up to `most` pictures, spread over the whole file, with their labelled boxes, as one PNG: where `save_png` put
    it, and how many it shows."""
    from PIL import Image, ImageDraw, ImageFont

    from minigptv2.drawing import save_png

    shown = report.drawn
    if len(shown) > most:
        shown = [shown[i * len(shown) // most] for i in range(most)]
    if not shown:
        raise UserError("There is no picture to show.", "A sheet needs one that can be read.", "Leave --sheet away.")
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + BAND)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (path, size, boxes) in enumerate(shown):
        left, top = place % columns * CELL, place // columns * (CELL + BAND)
        picture = _scaled(path, size, boxes)
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + BAND + (CELL - picture.height) // 2))
        name = "".join(c if c.isprintable() else " " for c in path.name)
        while font.getlength(name) > CELL - 8:
            name = name[1:]
        pen.text((left + 4, top + 3), name, "black", font)
    return save_png(sheet, out), len(shown)


def _scaled(path: Path, size: tuple[int, int], boxes: list[Box]):
    """The upright picture with its boxes, as large as fits into a cell. Boxes: pixels of a picture of `size`."""
    from minigptv2.drawing import draw_boxes
    from minigptv2.images import open_image

    picture = open_image(path)
    share = CELL / max(picture.size)
    picture = picture.resize(tuple(max(1, round(side * share)) for side in picture.size))
    across, down = picture.width / size[0], picture.height / size[1]
    return draw_boxes(picture, [Box(b.x1 * across, b.y1 * down, b.x2 * across, b.y2 * down, b.phrase) for b in boxes])
