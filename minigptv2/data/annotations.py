"""Checks of the records of annotation files: fields, boxes, labels and the files of images.

A record that cannot be used raises `InvalidRecord`, which the reader counts.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, TypeVar

from minigptv2.boxes import Box, strip_markup_chars, without_markup
from minigptv2.errors import UserError

OVER_EDGE = "a box that reaches over the edge of the image, where it is cut off"
FRACTIONS = "a box in fractions of 0..1, not in pixels"
NO_AREA = "a box without area"
OUTSIDE = "a box outside the image"
NOT_A_BOX = "a box that is not four numbers"
NOT_AN_OBJECT = "a record that is not a JSON object"
_AS_DATA = "an image given as data (base64) instead of a file name"
_MAX_PIXELS = 1e9  # no coordinate of a box is larger; excludes infinity and NaN
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
_MAX_FRACTION = 1.001  # largest coordinate of a box in fractions of the image's sides, with rounding
P = TypeVar("P", int, str)  # what identifies an image


NOT_ON_DISK = "an image that is not on the disk"  # as the text of an InvalidRecord


class InvalidRecord(ValueError):
    """A record that cannot be used. Its text is the problem, as `ProblemCounter.add` takes it: "a box without area"."""


class Unwanted(InvalidRecord):
    """A valid record that an option of the reader excludes."""


class MissingImage(InvalidRecord):
    """A record whose image has a valid name and is not on the disk."""


class Row(NamedTuple):
    """A question of an annotation file as it is written, before its image is looked for.

    number: of the row, from 0. key: the question's identifier in the file. image: the file's name, or COCO's number of
    the image. answers: all of them as they are written. choices: of a multiple-choice question. answer_type: as the
    file names it. problem: why the row cannot be used; then only number and key are set. A reader drops such a row, a
    benchmark counts it as excluded.
    """

    number: int
    key: str = ""
    image: str | int = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer_type: str = ""
    problem: str = ""


def field(row: Any, name: str, types: type | tuple[type, ...]) -> Any:
    """row[name], which must be of one of these types; true and false are not numbers. Raises InvalidRecord."""
    if not isinstance(row, dict):
        raise InvalidRecord(NOT_AN_OBJECT)
    if name not in row:
        raise InvalidRecord(f"no {name!r}")
    value = row[name]
    if not isinstance(value, types) or isinstance(value, bool):
        raise InvalidRecord(f"a {name!r} of the wrong type")
    return value


def text_field(row: Any, name: str) -> str:
    """row[name] with single spaces between words. Raises InvalidRecord if it has no words."""
    words = " ".join(field(row, name, str).split())
    if not words:
        raise InvalidRecord(f"an empty {name!r}")
    return words


def file_name_field(row: Any, name: str) -> str:
    """row[name], the name of a file, unchanged: spaces are part of it. Raises InvalidRecord if it is empty."""
    given = field(row, name, str)
    if not given.strip():
        raise InvalidRecord(f"an empty {name!r}")
    return given


def find_image(folder: Path, name: str) -> Path:
    """The image file of this name in the folder.

    The exact name is tried first. If there is no such file, backslashes, which tools on Windows write, are read as
    slashes, and accented letters in the other Unicode form (composed or decomposed), which macOS writes. Raises
    MissingImage if the name is valid and there is no such file, and InvalidRecord if the name is not valid.
    """
    if "\0" in name:
        raise InvalidRecord("an image name with a NUL character, which no file has")
    for written in _spellings(name):
        path = folder / written
        try:
            if path.is_file():
                return path
        except PermissionError:
            raise InvalidRecord("an image in a folder that this user may not enter") from None
        except OSError as error:
            if name.startswith("data:"):
                raise InvalidRecord(_AS_DATA) from None
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidRecord("an image name that is too long for a file") from None
            raise InvalidRecord(f"an image that the system cannot look up ({error.strerror})") from None
    if name.startswith("data:"):
        raise InvalidRecord(_AS_DATA)
    if name.startswith(("http://", "https://")):
        raise InvalidRecord("an image given as a web address instead of a file name")
    if _WINDOWS_PATH.match(name):
        raise InvalidRecord("an image given as a path of a Windows computer")
    if re.search(r"[\0-\x1f]", name):
        raise InvalidRecord("an image name with a line break or tab, which a single backslash in JSON makes")
    raise MissingImage(NOT_ON_DISK)


def phrase_field(row: Any, name: str) -> str:
    """row[name] as a phrase: single spaces, without phrase and box markup. Raises InvalidRecord if nothing is left."""
    words = " ".join(strip_markup_chars(text_field(row, name)).split())
    if not words:
        raise InvalidRecord(f"an empty {name!r}")
    return words


def _spellings(name: str) -> Iterator[str]:
    """The ways in which a file's name may be written on the disk, each once; the given one is first."""
    slashes = name.replace("\\", "/")
    forms = [] if name.isascii() else [unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")]
    yield from dict.fromkeys((name, slashes, *forms))


def label_field(row: Any, name: str) -> str:
    """row[name] as a label that `boxes.parse` reads back and that fits into a comma-separated list: single spaces,
    without commas, phrase and box markup. Raises InvalidRecord if nothing is left."""
    words = without_markup(text_field(row, name).replace(",", " "))
    words = " ".join(re.sub(r"[{}<>]", " ", words).split())
    if not words:
        raise InvalidRecord(f"an empty {name!r}")
    return words


def size_field(row: Any) -> tuple[int, int]:
    """(width, height) in pixels. Raises InvalidRecord."""
    size = field(row, "width", int), field(row, "height", int)
    if min(size) < 1:
        raise InvalidRecord("an image without pixels")
    return size


def corners(numbers: Sequence[float], form: str) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box in the form "xywh" or "xyxy"."""
    x, y, third, fourth = numbers
    return (x, y, x + third, y + fourth) if form == "xywh" else (x, y, third, fourth)


def parse_box(numbers: Any, size: tuple[int, int], form: str = "xywh") -> Box:
    """Four numbers in pixels, "xywh" or "xyxy", as a box clipped to the image of this size (width, height).

    Raises InvalidRecord if they are not four finite numbers, if they are fractions (0..1) of the image's sides, or if
    the box has no area inside the image.
    """
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        raise InvalidRecord(NOT_A_BOX)
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < _MAX_PIXELS for n in numbers):
        raise InvalidRecord(NOT_A_BOX)
    x1, y1, x2, y2 = corners(numbers, form)
    if not (x1 < x2 and y1 < y2):
        raise InvalidRecord(NO_AREA)
    if max(size) > 2 and all(0 <= n <= _MAX_FRACTION for n in numbers):
        raise InvalidRecord(FRACTIONS)
    width, height = size
    box = Box(float(max(0, x1)), float(max(0, y1)), float(min(width, x2)), float(min(height, y2)))
    if not (box.x1 < box.x2 and box.y1 < box.y2):
        raise InvalidRecord(OUTSIDE)
    return box


def exceeds_image(numbers: Any, size: tuple[int, int], form: str = "xywh") -> bool:
    """Whether a valid box reaches over the edge of the image by more than a pixel. Arguments as in `parse_box`."""
    x1, y1, x2, y2 = corners(numbers, form)
    return x1 < -1 or y1 < -1 or x2 > size[0] + 1 or y2 > size[1] + 1


def check_choice(option: str, given: str, allowed: tuple[str, ...]) -> str:
    """The value of a reader's option, if it is among the allowed ones. Raises UserError otherwise."""
    if given not in allowed:
        raise UserError(f"The option {option} is {given!r}.", f"Allowed: {', '.join(allowed)}.", "Choose one of them.")
    return given


def strings(row, name: str) -> tuple[str, ...]:
    """A list of strings under a key. Raises InvalidRecord."""
    values = field(row, name, list)
    if not all(isinstance(value, str) for value in values):
        raise InvalidRecord(f"a {name!r} of the wrong type")
    return tuple(values)


def answers_of(row: Any) -> tuple[str, ...]:
    """The texts of a row's answers as they are written, empty ones included. Raises InvalidRecord if there are none."""
    answers = tuple(intern(field(answer, "answer", str)) for answer in field(row, "answers", list))
    if not answers:
        raise InvalidRecord("no answer")
    return answers


def by_frequency(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers that are not empty, with repetitions, the most common first. Ties keep the given order."""
    counts = Counter(intern(words) for answer in answers if (words := " ".join(answer.split())))
    return tuple(answer for answer, count in counts.most_common() for _ in range(count))


def records_of(captions: Mapping[P, list[str]], apart: bool) -> list[tuple[P, tuple[str, ...]]]:
    """Records (image, captions): one for each image; apart: one for each caption."""
    return [
        record
        for image, words in captions.items()
        for record in ([(image, (w,)) for w in words] if apart else [(image, tuple(words))])
    ]


def optional_text(row: dict, name: str) -> str:
    """row[name] if it is text, else ""."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


def unique(seen: set, key: Any) -> bool:
    """Whether the key is new; it is added to `seen`."""
    if key in seen:
        return False
    seen.add(key)
    return True
