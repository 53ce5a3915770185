"""`minigptv2 data check`: content and problems of a user's annotation file, and a contact sheet of its images.

JSON Lines (`jsonl.py`) and COCO's detection JSON (`coco_json.py`) are read with the same code as in training. In
addition, every image is opened.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minigptv2.boxes import Box
from minigptv2.data.annotations import NOT_ON_DISK, InvalidRecord, find_image
from minigptv2.data.coco_json import CROWD, LISTS, CocoFile, CocoImage
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.json_files import read_json_lines
from minigptv2.data.orientation import UprightTransform, boxes_orientation, upright_transform
from minigptv2.data.readers import coco_detection, jsonl
from minigptv2.data.turns import estimate_tokens
from minigptv2.errors import UserError
from minigptv2.files import is_file, refuse_device
from minigptv2.images import image_header, upright_size

CELL, BAND = 400, 20  # pixels: side of a cell of the sheet, and height of the line with the image's name
_MAX_LABELS = 12  # in the summary
TURNED = "a size of the stored image, which its EXIF orientation turns upright"
OTHER_SIZE = "a size that is not the image's"
UPRIGHT_ELSEWHERE = (
    "a file with sizes of upright images, in which boxes of mirrored, square and upside-down images are read as those "
    "of the stored image (see option orientation: upright)"
)


@dataclass
class ValidationReport:
    """The result of `check`.

    format: one line with the file and its format. counts: name -> number of images, boxes, ... labels: number of boxes
    of each. drawn: path, upright size (width, height), and boxes in pixels of that size. usable: number of records
    that training can use.
    """

    format: str
    counts: dict[str, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    problems: ProblemCounter = field(default_factory=ProblemCounter)
    drawn: list[tuple[Path, tuple[int, int], list[Box]]] = field(default_factory=list)
    usable: int = 0

    @property
    def code(self) -> int:
        """Exit code: 0 without problems, 1 with problems, 2 if nothing of the file can be used."""
        return 2 if not self.usable else 1 if self.problems else 0

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield self.format
        for name, count in self.counts.items():
            yield f"  {count:>8,} {name}"
        if self.labels:
            shown = [f"{label} {count:,}" for label, count in self.labels.most_common(_MAX_LABELS)]
            more = f", and {len(self.labels) - len(shown):,} more" if len(self.labels) > len(shown) else ""
            yield f"labels: {', '.join(shown)}{more}"
        if not self.problems:
            yield "no problems"
            return
        yield f"{sum(self.problems.counts.values()):,} problems"
        yield from (f"  {line}" for line in self.problems.lines())
        if not self.usable:
            yield "nothing of this file can be used"


def check(file: str | Path, images: str = "", quick: bool = False, orientation: str = "") -> ValidationReport:
    """Read the whole file as training does, and every image that it names.

    images: their folder, "" for the usual ones. quick: read only the headers of the images. orientation: the reader's
    option, "" for its default. Raises UserError if the file is neither JSON Lines nor COCO's JSON.
    """
    file = Path(file)
    if file.suffix.lower() in (".jsonl", ".ndjson") or _first_line_is_a_record(file):
        return _check_jsonl(file, images, quick, orientation or "upright")
    return _check_coco(file, images, quick, orientation or "auto")


def _first_line_is_a_record(file: Path) -> bool:
    """Whether the first line of a file is a JSON object, and not COCO's."""
    refuse_device(file)
    try:
        with file.open("rb") as lines:
            first = next((line for line in lines if line.strip()), b"")
        row = json.loads(first.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not any(name in row for name in LISTS)


def _read_image(path: Path, quick: bool) -> tuple[tuple[int, int], int]:
    """The size (width, height) of the stored image, and its EXIF orientation.

    Raises InvalidRecord if the image is missing, cannot be read, or is damaged; with quick, only its header is read.
    """
    from minigptv2.images import open_image

    if not is_file(path):
        raise InvalidRecord(NOT_ON_DISK)
    try:
        found = image_header(path)
        if not quick:
            open_image(path)
        return found
    except UserError as error:
        damaged = "damaged" in error.given
        raise InvalidRecord(f"an image that {'is damaged or cut short' if damaged else 'cannot be read'}") from error


def _compare_sizes(
    given: tuple[int, int], header: tuple[tuple[int, int], int], choice: str, needed: bool
) -> tuple[str, str]:
    """The problem of the size in a line, "" if there is none, and both sizes. header: see `image_header`. choice: the
    option orientation. needed: the line has boxes. Raises InvalidRecord if the size shows that they are of another
    frame.
    """
    stored, orientation = header
    real = upright_size(stored, orientation)
    try:
        turn, problem = boxes_orientation(given, stored, orientation, choice)
    except InvalidRecord as error:
        turn, problem = 1, str(error)
    if problem and choice == "upright" and real != stored:
        problem = TURNED
    if problem and needed:
        raise InvalidRecord(problem)
    if not problem and UprightTransform(turn, given).size != real:
        problem = OTHER_SIZE
    return problem, f"{_by(given)}, upright {_by(real)}"


# ---- JSON Lines ----


def _check_jsonl(file: Path, images: str, quick: bool, orientation: str) -> ValidationReport:
    from tqdm import tqdm

    folder = jsonl.image_folder(file, images)
    report, sizes = ValidationReport(f"{file}: JSON Lines"), {}
    lines = sum(1 for _ in read_json_lines(file))

    def measure(image: str, given: tuple[int, int] | None, needed: bool) -> tuple[Path, tuple[int, int]]:
        path = find_image(folder, image)
        if path not in sizes:
            sizes[path] = _read_image(path, quick)
        stored, turn = sizes[path]
        if given:
            problem, both = _compare_sizes(given, sizes[path], orientation, needed)
            if problem:
                report.problems.add(problem, f"{image} {both}", dropped=False)
            return path, given
        return path, upright_size(stored, turn) if orientation == "upright" else stored

    counts, longest = Counter(), 0
    read = jsonl.entries_of(file, measure, report.problems)
    entries = list(tqdm(read, "check", lines, unit=" lines", disable=None, leave=False))
    jsonl.combine_lines(entries, report.problems)
    for entry in entries:
        report.usable += 1
        for label, boxes in entry.boxes.items():
            report.labels[label] += len(boxes)
        counts["boxes"] += sum(map(len, entry.boxes.values()))
        for exchange in entry.asked:
            counts[exchange.task] += 1
        counts["conversations"] += bool(entry.talked)
        counts["turns"] += sum(map(len, entry.talked))
        longest = max(longest, sum(map(estimate_tokens, entry.talked)))
        counts["text"] += entry.image is None
        if entry.image is not None:
            boxes, size = [], upright_size(*sizes[entry.image])
            if entry.boxes:
                frame = jsonl.frame_of(entry, orientation)
                boxes = [Box(*frame.box(box).xyxy, label) for label, found in entry.boxes.items() for box in found]
                size = frame.size
            report.drawn.append((entry.image, size, boxes))
    report.counts = {
        "lines": lines,
        "images": len({path for path, _, _ in report.drawn}),
        "boxes": counts["boxes"],
        "labels": len(report.labels),
        "captions": counts["caption"],
        "captions with boxes": counts["grounding"],
        "questions": counts["vqa"],
        "conversations": counts["conversations"],
        "turns in them": counts["turns"],
        "tokens in the longest, by estimate": longest,
        "lines without an image": counts["text"],
    }
    return report


# ---- COCO ----


def _check_coco(file: Path, images: str, quick: bool, orientation: str) -> ValidationReport:
    from tqdm import tqdm

    coco = CocoFile(file, images, orientation)
    report, problems = ValidationReport(f"{file}: COCO detection", problems=coco.problems), coco.problems
    usable = {record.path for record in coco_detection.records_of(coco)}
    crowds = problems.counts.pop(CROWD, 0)
    frames: Counter[str] = Counter()
    for image in tqdm(coco.images, "check", unit=" images", disable=None, leave=False):
        for label, found in image.boxes.items():
            report.labels[label] += len(found)
        if image.missing:
            continue
        try:
            stored, exif = _read_image(image.path, quick)
            frame = upright_transform(image.path, image.size, image.has_size, orientation)
        except InvalidRecord as error:
            usable.discard(image.path)
            problems.add(str(error), image.name)
            continue
        frames[_frame_of_size(image, stored, exif)] += 1
        real = stored if frame.turn == exif else upright_size(stored, exif)
        if frame.problem:
            problems.add(frame.problem, image.name, dropped=False)
        elif image.has_size and image.size != real:
            problems.add(OTHER_SIZE, f"{image.name} {_by(image.size)}, not {_by(real)}", dropped=False)
        boxes = [Box(*frame.box(box).xyxy, label) for label, found in image.boxes.items() for box in found]
        report.drawn.append((image.path, frame.size, boxes))
    if orientation == "auto" and frames["upright"] and frames["unknown"] and not frames["stored"]:
        problems.add(UPRIGHT_ELSEWHERE, f"{frames['unknown']} images", dropped=False)
    report.usable = len(usable)
    report.counts = {
        "images": len(coco.images),
        "images without a box": sum(not image.annotations for image in coco.images),
        "boxes": sum(report.labels.values()),
        "crowds, left out": crowds,
        "categories": len(coco.labels),
        "categories with a box": len(report.labels),
    }
    return report


def _frame_of_size(image: CocoImage, stored: tuple[int, int], orientation: int) -> str:
    """The frame of an image's size in the JSON, "upright" or "stored"; "unknown" if both have this size, or if the JSON
    has none; "" if the image is stored upright."""
    if orientation == 1:
        return ""
    real = upright_size(stored, orientation)
    if not image.has_size or real == stored:
        return "unknown"
    return "upright" if (image.size[0] > image.size[1]) == (real[0] > real[1]) else "stored"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# ---- the contact sheet ----


def write_sheet(report: ValidationReport, out: Path, max_images: int) -> tuple[Path, int]:
    """Write up to `max_images` images, evenly spread over the file, with their labelled boxes, as one PNG.

    Returns the path, which `save_png` chooses, and the number of images. Raises UserError if there is none.
    """
    from PIL import Image, ImageDraw, ImageFont

    from minigptv2.drawing import save_png

    shown = report.drawn
    if len(shown) > max_images:
        shown = [shown[i * len(shown) // max_images] for i in range(max_images)]
    if not shown:
        raise UserError(
            "There is no image to show.", "A sheet needs one that can be read.", "Run the check without a sheet."
        )
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + BAND)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (path, size, boxes) in enumerate(shown):
        left, top = number % columns * CELL, number // columns * (CELL + BAND)
        image = _scaled(path, size, boxes)
        sheet.paste(image, (left + (CELL - image.width) // 2, top + BAND + (CELL - image.height) // 2))
        name = "".join(c if c.isprintable() else " " for c in path.name)
        while font.getlength(name) > CELL - 8:
            name = name[1:]
        pen.text((left + 4, top + 3), name, "black", font)
    return save_png(sheet, out), len(shown)


def _scaled(path: Path, size: tuple[int, int], boxes: list[Box]):
    """The upright image with its boxes, scaled to fit into a cell; grey if it cannot be opened. boxes: in pixels of an
    image of `size` (width, height)."""
    from PIL import Image

    from minigptv2.drawing import draw_boxes
    from minigptv2.images import open_image

    try:
        image = open_image(path)
    except UserError:  # with quick, damage is found only here
        image = Image.new("RGB", size, "lightgrey")
    scale = CELL / max(image.size)
    image = image.resize(tuple(max(1, round(side * scale)) for side in image.size))
    x, y = image.width / size[0], image.height / size[1]
    return draw_boxes(image, [Box(b.x1 * x, b.y1 * y, b.x2 * x, b.y2 * y, b.phrase) for b in boxes])
