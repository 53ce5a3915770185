"""Formats of other programs, read and written: COCO results, and JSON Lines with the columns of lmms-lab's RefCOCO.

COCO results (cocodataset.org, "results format"):
    [{"image_id": 42, "category_id": 18, "bbox": [x, y, width, height], "score": 0.236}, ...]
JSON Lines (lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg; the set has question_id, image, question, answer, segmentation,
bbox, iscrowd, file_name), one line a question, with two columns of ours:
    {"question_id": "7", "question": "...", "answer": ["left zebra"], "bbox": [x, y, width, height],
     "file_name": "COCO_train2014_000000000309_2.jpg", "pred": "raw text", "pred_bbox": [x, y, width, height] or null}
`pred_bbox` is in pixels. Without it, `pred` may be four numbers x1, y1, x2, y2 in 0..1, as lmms-eval's referring tasks
log it. Boxes keep their exact values; they are not rounded to the hundredths of our box text. Formats of answers in
words: `results`.
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
from minigptv2.data.coco_json import Id, identity
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.json_files import iter_json_list, iter_json_object
from minigptv2.errors import UserError
from minigptv2.eval import results
from minigptv2.eval.benchmark import Prediction, Question, ScoredAnswer
from minigptv2.eval.predictions import read_text, writing_to
from minigptv2.files import atomic_write
from minigptv2.tasks import EVALUATION

_COCO_NUMBER = re.compile(r"(\d{12})")
_ANY_NUMBER = re.compile(r"(\d{1,18})")
Form = Literal["coco", "lmms", "pictures", "rows", "lines"]
# format -> the only benchmark it is for; "rows", one list, and "lines", one row per line, are for any
HOLDS: dict[Form, str] = {"coco": "coco_detection", "lmms": "refcoco", "pictures": "refcoco"}
NAMES: dict[Form, str] = {
    "coco": "COCO results",
    "lmms": "lmms-lab's RefCOCO lines",
    "pictures": "the published evaluation's lists",
}


def form_of(file: str | Path) -> Form | None:
    """The format of a file, recognised by its beginning; None for our own, and for all others."""
    start = read_text(Path(file)).lstrip()[:1]
    try:
        first = next(iter_json_list(Path(file)), None) if start == "[" else None
        if start == "[":
            boxes = isinstance(first, dict) and "bbox" in first
            return "coco" if boxes else "rows" if results.is_row(first) else None
        with Path(file).open(encoding="utf-8-sig") as opened:
            row = _json(next(line for line in opened if line.strip()))
        if isinstance(row, dict) and {"file_name", "answer"} <= row.keys():
            return "lmms"
        if results.is_row(row):
            return "lines"
        _, value = next(iter_json_object(Path(file)), ("", None)) if start == "{" else ("", None)
        return "pictures" if isinstance(value, list) else None
    except UserError:  # not JSON: reported with its line when it is read
        return None


def require(form: Form, benchmark: str, what: str) -> None:
    """Raises UserError if this format is not for this benchmark. what: begins the message, such as "a.json holds"."""
    if benchmark != HOLDS.get(form, benchmark):
        raise UserError(
            f"{what} {NAMES[form]}, and the benchmark is {benchmark!r}.",
            f"Only {' and '.join(f'{benchmark} has {NAMES[form]}' for form, benchmark in HOLDS.items())}.",
            "Every run keeps its answers in answers.jsonl, and --predictions reads such a file for any benchmark.",
        )


def require_writable(file: str) -> None:
    """Raises UserError if this file cannot be written, before any question is asked."""
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
    """Write the boxes of these answers. categories, items: see `coco_results`. Returns what could not be written."""
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
    """Answers by index; counts for the report; and what belongs to no question.

    items: all questions of the benchmark. asked: those that this run scores. categories: `id` -> name, for COCO
    results. These list detections only, so an image without one counts as answered with no box. excluded: rows of the
    annotation file that the benchmark left out.
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
        empty = [item.index for item in asked if item.index not in boxes]
        boxes, counts = boxes | dict.fromkeys(empty, ()), {"images without a detection": len(empty)}
    return {index: Prediction(index, "", boxes=found) for index, found in boxes.items()}, counts, problems


def coco_results(
    cases: Iterable[ScoredAnswer], categories: Mapping[str, Id] | None = None, items: Sequence[Question] = ()
) -> tuple[list[dict], ProblemCounter]:
    """All boxes of the answers as COCO detections, and what has no place in this format.

    categories: phrase -> category id; a box has that of its phrase, else that of the question's words. None: all are 1.
    items: questions of the benchmark coco_detection, which know the `id` of each image and how its boxes were turned
    upright; the id of other images is the number in their file name. A box without a score gets 1.
    """
    rows, problems = [], ProblemCounter()
    truths = {item.index: item.truth for item in items}
    for case in cases:
        truth = truths.get(case.index)
        number = image_number(case.image) if truth is None else truth.number
        for box in case.boxes:
            category = 1
            if categories is not None:
                category = categories.get(box.phrase)
                category = categories.get(case.words) if category is None else category
            if number is None:
                problems.add("an image whose name has no number", f"case {case.index}")
            elif category is None:
                problems.add("a phrase that is not a category", f"case {case.index} {box.phrase!r}")
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
    """image id -> boxes with phrase (the category's name) and score, highest score first.

    Raises UserError, with the row, for a file that does not have this format.
    """
    return coco_detections(file, categories)[0]


def coco_detections(
    file: str | Path, categories: Mapping[Id, str] | None = None, images: Container[Id] | None = None
) -> tuple[dict[Id, tuple[Box, ...]], ProblemCounter]:
    """As `read_coco_results`, and what was left out: detections of unknown categories, or in other images."""
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
    """Write the result of `coco_results`; returns its problems."""
    rows, problems = coco_results(cases, categories, items)
    _write(Path(file), json.dumps(rows) + "\n")
    return problems


def write_refcoco_lines(file: str | Path, cases: Iterable[ScoredAnswer], question: str = "") -> ProblemCounter:
    """Write one line for each answer with one expected box. question: the wording, with {} for the expression."""
    lines, problems = [], ProblemCounter()
    for case in cases:
        if len(case.truth) != 1:
            problems.add("an answer without exactly one expected box", f"case {case.index}")
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
    """index -> the predicted boxes, and the lines that belong to no question.

    A line belongs to the question of its question_id if that has the same image and expression, else to a question
    with the same image and expression that has no line yet. A line without a box is an answer without a box.
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
                problems.add("a predicted box that is not a box", f"line {number}")
            out[item.index] = () if box is None else (box,)
    return out, problems


def _item_of(row: dict, words: str, by_index: Mapping, by_words: Mapping, taken: Mapping) -> Question | None:
    number = str(row.get("question_id", ""))
    named = by_index.get(int(number)) if number.isdecimal() and len(number) < 19 else None
    image = image_number(row["file_name"])
    candidates = by_words.get((image, words), [])
    if named in candidates and named.index not in taken:
        return named
    return next((item for item in candidates if item.index not in taken), None)


def _predicted(row: dict, item: Question) -> Box | None:
    if row.get("pred_bbox") is not None:
        corners = _pixels(row["pred_bbox"])
        return Box(*corners) if corners else None
    fractions = _numbers(row.get("pred"))
    if fractions is None or min(item.size) <= 0 or not all(0 <= v <= 1 for v in fractions):
        return None
    x1, y1, x2, y2 = (v * side for v, side in zip(fractions, item.size * 2))
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def image_number(image: Any) -> int | None:
    """The number of a COCO image by its file name: the twelve digits, else the last number; None without one."""
    name = Path(str(image)).stem if isinstance(image, (str, Path)) else ""
    found = _COCO_NUMBER.search(name) or next(iter(reversed(list(_ANY_NUMBER.finditer(name)))), None)
    return int(found[1]) if found else None


def _file_name(image: Any) -> str:
    return Path(str(image)).name if isinstance(image, (str, Path)) else ""


def _xywh(box: Box) -> list[float]:
    return [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]


def _pixels(xywh: Any) -> tuple[float, float, float, float] | None:
    """XYXY of [x, y, width, height]; None if it is not a box."""
    numbers = _numbers(xywh)
    if numbers is None or numbers[2] < 0 or numbers[3] < 0:
        return None
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in value):
        return None  # also NaN, which compares False
    return [float(v) for v in value]


def _plain(expression: str) -> str:
    return " ".join(expression.lower().split())


def _json(line: str) -> Any:
    """The content of the line; the line itself if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _objects(text: str) -> list[Any]:
    """The content of each line that is not empty."""
    return [_json(line) for line in text.split("\n") if line.strip()]


def _load(file: str | Path, read) -> Any:
    text = read_text(Path(file))
    try:
        return read(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}.", "It must be JSON.", "Write it again.") from None


def _not_a(file: str | Path, expected: str, found: str) -> UserError:
    return UserError(f"{file} is not {expected}.", found, "See minigptv2/eval/formats.py for the format.")


def _write(file: Path, text: str) -> None:
    with writing_to(file, "Give another file."):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as new:
            new.write_text(text, encoding="utf-8", errors="replace")
