"""Result files of other programs: each answer is found by the question that its row names, or by its row number.

    {"COCO_train2014_000000580957_4": ["{<10><10><40><60>}", ...], ...}    referring, the published evaluation
    [{"question_id": 2, "answer": "yes"}, ...]                             VQA v2, OK-VQA: published and official
    [{"questionId": "07333408", "prediction": "left"}, ...]                GQA, official
    [{"image": "VizWiz_val_00000000.jpg", "answer": "no"}, ...]            VizWiz, official
    [{"image_id": 42, "caption": "a dog"}, ...]                            captions, official
    [{"pred": "yes", "gt": "no"}, ...], [{"answer": "no"}, ...]            the published evaluation, row by row

The rows may also be JSON Lines. The published evaluation: eval_scripts/ of github.com/Vision-CAIR/MiniGPT-4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigptv2.data.dataset import ProblemCounter
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Question

_NAMES = ("question_id", "questionId", "image_id", "image")  # keys that name the question, in order of preference
_ANSWERS = ("text", "answer", "prediction", "pred", "caption")
_NOT_ASKED = "an answer to no question of the set"


def is_row(row: Any) -> bool:
    """Whether this is an answer in one of these formats."""
    return isinstance(row, dict) and "index" not in row and any(key in row for key in _ANSWERS)


def of_rows(
    file: Path, rows: Sequence[Any], items: Sequence[Question], excluded: Collection[int]
) -> tuple[dict[int, str], ProblemCounter]:
    """index -> text, and what belongs to no question.

    items: all questions of the benchmark. excluded: rows of the annotation file that it left out. Raises UserError for
    a row that is not an answer. Rows that do not name their question must be as many as those of the annotation file,
    and give the same expected answers ("gt").
    """
    named = [_name(row) for row in rows if is_row(row)]
    if len(named) < len(rows):
        number = next(n for n, row in enumerate(rows) if not is_row(row))
        raise _no_answer(file, number, rows[number])
    if not any(named):
        return _by_row(file, rows, items, excluded)
    if not any(item.key for item in items):
        raise UserError(
            f"{file} names its questions ({', '.join(key for key in _NAMES if key in rows[0])}).",
            "The questions of this benchmark have no such names.",
            'Give each answer its row as "index", from 0.',
        )
    return _by_name(file, rows, named, items)


def _by_name(file: Path, rows: Sequence[dict], named: Sequence[str], items: Sequence[Question]):
    by_key = {item.key: item for item in items if item.key}
    out: dict[int, str] = {}
    problems = ProblemCounter()
    for number, (row, name) in enumerate(zip(rows, named)):
        item = by_key.get(name)
        if item is None:
            problems.add(_NOT_ASKED, f"row {number}, {name[:80] or 'without a name'}")
        elif item.index in out:
            problems.add("a second answer to a question, where the first counts", f"row {number}, {name[:80]}")
        else:
            out[item.index] = _text(file, number, row, item)
    return out, problems


def _by_row(file: Path, rows: Sequence[dict], items: Sequence[Question], excluded: Collection[int]):
    by_index = {item.index: item for item in items}
    count = 1 + max([*by_index, *excluded], default=-1)
    if len(rows) != count:
        raise UserError(
            f"{file} holds {len(rows)} answers that do not name their question.",
            f"The annotation file has {count} rows, and such answers are matched by row.",
            'Name the data set and split that were answered, or give each answer its row as "index".',
        )
    out: dict[int, str] = {}
    problems = ProblemCounter()
    for number, row in enumerate(rows):
        item = by_index.get(number)
        if item is None:
            problems.add("an answer to a row left out", f"row {number}")
            continue
        if "gt" in row and isinstance(item.truth, str) and not _same(row["gt"], item):
            raise UserError(
                f"{file} row {number} says that {row['gt']!r} is correct.",
                f"In the annotation file it is {item.truth!r}.",
                "Give the annotation file that was answered.",
            )
        out[number] = _text(file, number, row, item)
    return out, problems


def of_images(
    file: Path, answers: Mapping[str, Any], items: Sequence[Question]
) -> tuple[dict[int, str], ProblemCounter]:
    """As `of_rows`, for answers by `img_id`, in the order of its expressions.

    The published evaluation leaves malformed answers out of its lists. With fewer answers than expressions, it is
    unknown which belong together. If all expressions have the same box, the answers count for the first ones, as in the
    published figures; otherwise none counts.
    """
    by_key: dict[str, list[Question]] = defaultdict(list)
    for item in items:
        if item.key:
            by_key[item.key].append(item)
    out: dict[int, str] = {}
    problems = ProblemCounter()
    for key, texts in answers.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{file}: the answers of {key[:80]!r} are {str(texts)[:80]}.",
                "They must be a list of texts.",
                "Write the file again.",
            )
        asked = by_key.get(key, [])
        if not asked:
            problems.add(_NOT_ASKED, key[:80])
            continue
        if len(texts) < len(asked) and len({item.truth for item in asked}) > 1:
            problems.add("fewer answers than expressions, whose boxes differ: none counts", key[:80])
            continue
        for _ in texts[len(asked) :]:
            problems.add("more answers than the image has expressions", key[:80])
        out |= {item.index: text for item, text in zip(asked, texts)}
    return out, problems


def _name(row: dict) -> str:
    value = next((row[key] for key in _NAMES if key in row), "")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _text(file: Path, number: int, row: dict, item: Question) -> str:
    value = next(row[key] for key in _ANSWERS if key in row)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _choice(value, item) or str(value)
    raise _no_answer(file, number, row)


def _same(given: Any, item: Question) -> bool:
    return (_choice(given, item) or str(given)).strip().lower() == item.truth.strip().lower()


def _choice(value: Any, item: Question) -> str:
    """The candidate of this number; "" if there is none."""
    valid = isinstance(value, int) and 0 <= value < len(item.candidates)
    return item.candidates[value] if valid else ""


def _no_answer(file: Path, number: int, row: Any) -> UserError:
    return UserError(
        f"{file} row {number} is not an answer: {str(row)[:80]}.",
        f"A row names its question ({', '.join(_NAMES)}, or index), and its answer ({', '.join(_ANSWERS)}).",
        "Correct or remove it.",
    )
