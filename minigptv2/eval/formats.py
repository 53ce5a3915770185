"""Answers to and from other programs: COCO's results, and JSON Lines with the columns of lmms-lab's RefCOCO sets.

COCO results (cocodataset.org, "results format"):
    [{"image_id": 42, "category_id": 18, "bbox": [x, y, width, height], "score": 0.236}, ...]
JSON Lines (lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg; the set has question_id, image, question, answer, segmentation,
bbox, iscrowd, file_name), one line a question, with two columns of ours:
    {"question_id": "7", "question": "...", "answer": ["left zebra"], "bbox": [x, y, width, height],
     "file_name": "COCO_train2014_000000000309_2.jpg", "pred": "raw text", "pred_bbox": [x, y, width, height] or null}
Read back, `pred_bbox` is in pixels; without it, `pred` may be four numbers x1, y1, x2, y2 in 0..1, as lmms-eval's own
referring tasks log it. Boxes keep their exact values: nothing passes through the hundredths of our box text.
Answers in words are read in the forms of `results`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from errno import EACCES, EISDIR
from pathlib import Path
from typing import Any, Literal

from minigptv2.boxes import Box
from minigptv2.data.annotations import iter_json_list, iter_json_object
from minigptv2.data.coco_json import Id, identity
from minigptv2.data.dataset import ProblemCounter
from minigptv2.errors import UserError
from minigptv2.eval import results
from minigptv2.eval.benchmark import Prediction, Question, ScoredAnswer
from minigptv2.eval.predictions import read_text, writing_to
from minigptv2.files import atomic_write
from minigptv2.tasks import EVALUATION

_COCO_NUMBER = re.compile(r"(\d{12})")
_ANY_NUMBER = re.compile(r"(\d{1,18})")
Form = Literal["coco", "lmms", "pictures", "rows", "lines"]
# form -> the benchmark whose answers it can say; "rows", one list, and "lines", one row a line, can say any
HOLDS: dict[Form, str] = {"coco": "coco_detection", "lmms": "refcoco", "pictures": "refcoco"}
NAMES: dict[Form, str] = {
    "coco": "COCO results",
    "lmms": "lmms-lab's RefCOCO lines",
    "pictures": "the published evaluation's lists",
}


def form_of(file: str | Path) -> Form | None:
    """Which form a file has, by how it begins; None where it is another program's in none of them, as our own."""
    begin = read_text(Path(file)).lstrip()[:1]
    try:
        first = next(iter_json_list(Path(file)), None) if begin == "[" else None
        if begin == "[":
            boxes = isinstance(first, dict) and "bbox" in first
            return "coco" if boxes else "rows" if results.is_row(first) else None
        with Path(file).open(encoding="utf-8-sig") as opened:
            row = _json(next(line for line in opened if line.strip()))
        if isinstance(row, dict) and {"file_name", "answer"} <= row.keys():
            return "lmms"
        if results.is_row(row):
            return "lines"
        _, value = next(iter_json_object(Path(file)), ("", None)) if begin == "{" else ("", None)
        return "pictures" if isinstance(value, list) else None
    except UserError:  # no JSON: told by line where it is read
        return None


def require(form: Form, benchmark: str, what: str) -> None:
    """Raises UserError where answers to this benchmark cannot be said in this form. what: "a.json holds", say."""
    if benchmark != HOLDS.get(form, benchmark):
        raise UserError(
            f"{what} {NAMES[form]}, and the benchmark is {benchmark!r}.",
            f"Only {' and '.join(f'{benchmark} has {NAMES[form]}' for form, benchmark in HOLDS.items())}.",
            "Every run keeps its answers in answers.jsonl, and --predictions takes such a file for any benchmark.",
        )


def require_writable(file: str) -> None:
    """Raises UserError where a file of this name cannot be written, before any question is asked."""
    folder = Path(file).parent
    with writing_to(Path(file), "Give another file."):
        if Path(file).is_dir():
            raise OSError(EISDIR, os.strerror(EISDIR))
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(EACCES, os.strerror(EACCES))


def write(
    form: Form,
    file: str | Path,
    cases: Iterable[ScoredAnswer],
    categories: Mapping[str, Id],
    items: Sequence[Question] = (),
) -> ProblemCounter:
    """Write the boxes of these cases. categories, items: see `coco_results`."""
    if form == "coco":
        return write_coco_results(file, cases, categories, items)
    return write_refcoco_lines(file, cases, EVALUATION["refcoco"])


def read(
    form: Form,
    file: str | Path,
    items: Sequence[Question],
    asked: Sequence[Question],
    categories: Mapping[Id, str],
    excluded: Collection[int] = (),
) -> tuple[dict[int, Prediction], dict[str, int], ProblemCounter]:
    """Answers by index; counts to show beside the figures; what fits no question.

    items: all of the benchmark; asked: those that this run scores. categories: of COCO results, which list detections
    alone, so that an asked image without one counts as answered with no box. excluded: rows of the annotation file
    that the benchmark left out.
    """
    counts: dict[str, int] = {}
    if form in ("pictures", "rows", "lines"):
        content = _load(file, _objects if form == "lines" else json.loads)
        if form == "pictures":
            texts, problems = results.of_images(Path(file), content, items)
        else:
            texts, problems = results.of_rows(Path(file), content, items, excluded)
        return {index: Prediction(index, text) for index, text in texts.items()}, counts, problems
    if form == "coco":
        item_of = {item.truth.number: item for item in items}
        by_image, problems = coco_detections(file, categories, item_of)
        boxes = {
            item_of[number].index: tuple(item_of[number].truth.frame.box(box) for box in found)
            for number, found in by_image.items()
        }
    else:
        boxes, problems = read_refcoco_lines(file, items)
    if form == "coco" and boxes:
        without = [item.index for item in asked if item.index not in boxes]
        boxes, counts = boxes | dict.fromkeys(without, ()), {"images without a detection": len(without)}
    return {index: Prediction(index, "", boxes=found) for index, found in boxes.items()}, counts, problems


def coco_results(
    cases: Iterable[ScoredAnswer], categories: Mapping[str, Id] | None = None, items: Sequence[Question] = ()
) -> tuple[list[dict], ProblemCounter]:
    """Every box of the answers as COCO detections, and what could not be said in this format.

    categories: phrase -> category id; a box takes that of its phrase, else that of the case's words. None: all are 1.
    items: of the benchmark coco_detection, which know the `id` of each image and the frame of its file's boxes; the id
    of other images is the number in their file's name. A box without a score gets 1.
    """
    rows, problems = [], ProblemCounter()
    truths = {item.index: item.truth for item in items}
    for case in cases:
        truth = truths.get(case.index)
        number = image_number(case.image) if truth is None else truth.number
        for box in case.boxes:
            category = 1
            if categories is not None:
                found = (categories.get(box.phrase), categories.get(case.words))
                category = found[0] if found[0] is not None else found[1]
            if number is None:
                problems.add("an image whose name holds no number", f"case {case.index}")
            elif category is None:
                problems.add("a phrase that is no category", f"case {case.index} {box.phrase!r}")
            else:
                box = box if truth is None else truth.frame.back(box)
                rows.append(
                    {
                        "image_id": number,
                        "category_id": category,
                        "bbox": _xywh(box),
                        "score": 1.0 if box.score is None else box.score,
                    }
                )
    return rows, problems


def read_coco_results(file: str | Path, categories: Mapping[Id, str] | None = None) -> dict[Id, tuple[Box, ...]]:
    """image id -> boxes with phrase (the category's name) and score, the most certain first.

    Raises UserError for a file that is not of this format, with the row.
    """
    return coco_detections(file, categories)[0]


def coco_detections(
    file: str | Path, categories: Mapping[Id, str] | None = None, images: Container[Id] | None = None
) -> tuple[dict[Id, tuple[Box, ...]], ProblemCounter]:
    """As `read_coco_results`, and what was left out: detections of no such category, or in none of these images."""
    rows = _load(file, json.loads)
    if not isinstance(rows, list):
        raise _not_a(file, "a list of detections", "It is not a list.")
    out: dict[Id, list[Box]] = defaultdict(list)
    problems = ProblemCounter()
    for number, row in enumerate(rows):
        box = _pixels(row.get("bbox")) if isinstance(row, dict) else None
        try:
            score, image, category = float(row["score"]), identity(row["image_id"]), identity(row["category_id"])
            if not math.isfinite(score) or box is None:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise _not_a(file, "a list of detections", f"Row {number} is {str(row)[:80]}.") from None
        if images is not None and image not in images:
            problems.add("a detection in an image that is not asked about", f"row {number}, image {image}")
        elif categories is not None and category not in categories:
            problems.add("a detection of no known category", f"row {number}, category {category}")
        else:
            out[image].append(Box(*box, "" if categories is None else categories[category], score))
    return {i: tuple(sorted(found, key=lambda b: -b.score)) for i, found in out.items()}, problems


def write_coco_results(
    file: str | Path,
    cases: Iterable[ScoredAnswer],
    categories: Mapping[str, Id] | None = None,
    items: Sequence[Question] = (),
) -> ProblemCounter:
    """Write what `coco_results` gives; returns its problems."""
    rows, problems = coco_results(cases, categories, items)
    _write(Path(file), json.dumps(rows) + "\n")
    return problems


def write_refcoco_lines(file: str | Path, cases: Iterable[ScoredAnswer], question: str = "") -> ProblemCounter:
    """Write one line a case that has one true box. question: the wording that was put, with {} for the expression."""
    lines, problems = [], ProblemCounter()
    for case in cases:
        if len(case.truth) != 1:
            problems.add("a case without exactly one true box", f"case {case.index}")
            continue
        lines.append(
            json.dumps(
                {
                    "question_id": str(case.index),
                    "question": (question or "{}").replace("{}", case.words),
                    "answer": [case.words],
                    "bbox": _xywh(case.truth[0]),
                    "file_name": _file_name(case.image),
                    "pred": case.answer,
                    "pred_bbox": _xywh(case.boxes[0]) if case.boxes else None,
                },
                ensure_ascii=False,
            )
        )
    _write(Path(file), "".join(f"{line}\n" for line in lines))
    return problems


def read_refcoco_lines(
    file: str | Path, items: Sequence[Question]
) -> tuple[dict[int, tuple[Box, ...]], ProblemCounter]:
    """index of an item -> the boxes predicted for it, and the lines that fit no item.

    A line belongs to the item of its question_id where that item has the same expression, else to an item of the same
    image and expression, each item once. A line with no box gives an empty answer; an item with no line is absent.
    """
    by_index = {item.index: item for item in items}
    by_words: dict[tuple, list[Question]] = defaultdict(list)
    for item in items:
        by_words[image_number(item.image), _plain(item.words)].append(item)
    out: dict[int, tuple[Box, ...]] = {}
    problems = ProblemCounter()

    def rows(text: str) -> list[Any]:
        return [(number, _json(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]

    for number, row in _load(file, rows):
        if not isinstance(row, dict) or "file_name" not in row or "answer" not in row:
            raise _not_a(file, "one JSON object a line with file_name and answer", f"Line {number} is {str(row)[:80]}.")
        expressions = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        for expression in expressions:
            item = _item_of(row, _plain(str(expression)), by_index, by_words, out)
            if item is None:
                problems.add("a line that fits no question", f"line {number}")
                continue
            box = _predicted(row, item)
            if box is None and row.get("pred_bbox") is not None:
                problems.add("a predicted box that is none", f"line {number}")
            out[item.index] = () if box is None else (box,)
    return out, problems


def _item_of(row: dict, words: str, by_index: Mapping, by_words: Mapping, taken: Mapping) -> Question | None:
    place = str(row.get("question_id", ""))
    named = by_index.get(int(place)) if place.isdecimal() and len(place) < 19 else None
    image = image_number(row["file_name"])
    candidates = by_words.get((image, words), [])
    if named in candidates and named.index not in taken:
        return named
    return next((item for item in candidates if item.index not in taken), None)


def _predicted(row: dict, item: Question) -> Box | None:
    if row.get("pred_bbox") is not None:
        corners = _pixels(row["pred_bbox"])
        return Box(*corners) if corners else None
    shares = _numbers(row.get("pred"))
    if shares is None or min(item.size) <= 0 or not all(0 <= v <= 1 for v in shares):
        return None
    x1, y1, x2, y2 = (v * side for v, side in zip(shares, item.size * 2))
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def image_number(image: Any) -> int | None:
    """The number of a COCO image in its file's name: its twelve digits, else its last number; None without one."""
    name = Path(str(image)).stem if isinstance(image, (str, Path)) else ""
    found = _COCO_NUMBER.search(name) or next(iter(reversed(list(_ANY_NUMBER.finditer(name)))), None)
    return int(found[1]) if found else None


def _file_name(image: Any) -> str:
    return Path(str(image)).name if isinstance(image, (str, Path)) else ""


def _xywh(box: Box) -> list[float]:
    return [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]


def _pixels(xywh: Any) -> tuple[float, float, float, float] | None:
    """XYXY of [x, y, width, height]; None where that is no box."""
    numbers = _numbers(xywh)
    if numbers is None or numbers[2] < 0 or numbers[3] < 0:
        return None
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in value):
        return None  # a number that is none is not smaller either
    return [float(v) for v in value]


def _plain(expression: str) -> str:
    return " ".join(expression.lower().split())


def _json(line: str) -> Any:
    """What the line holds; the line itself where it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _objects(text: str) -> list[Any]:
    """What each line holds; empty lines hold nothing."""
    return [_json(line) for line in text.split("\n") if line.strip()]


def _load(file: str | Path, read) -> Any:
    text = read_text(Path(file))
    try:
        return read(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}.", "It must be JSON.", "Write it anew.") from None


def _not_a(file: str | Path, wanted: str, found: str) -> UserError:
    return UserError(f"{file} is not {wanted}.", found, "See minigptv2/eval/formats.py for the format.")


def _write(file: Path, text: str) -> None:
    with writing_to(file, "Give another file."):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as new:
            new.write_text(text, encoding="utf-8", errors="replace")
