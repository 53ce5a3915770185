"""Annotation files: opened whole or piece by piece, and the checks that every reader makes of a record.

What is wrong with a whole file is a UserError; what is wrong with one record is `Malformed`, which the reader counts.
"""

from __future__ import annotations

import errno
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from minigptv2.boxes import Box, without_markup
from minigptv2.errors import UserError

OVER_EDGE = "a box that reaches over the edge of the picture, where it is cut off"
_CHUNK = 1 << 20  # characters read at a time
_SPACE = " \t\r\n"
_FAR = 1e9  # pixels; no box reaches so far, infinity and what is no number included
T = TypeVar("T")


class Malformed(ValueError):
    """One record that cannot be used; its text is the kind, as `Problems.add` takes it."""


def open_text(path: Path):
    """An annotation file as text in UTF-8. Raises UserError."""
    try:
        return path.open(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be opened.", f"The system says: {getattr(error, 'strerror', None) or error}.",
            "Its card in datasets/ says which files lie where; check `root`.",
        ) from error  # fmt: skip


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises UserError with the place of a mistake."""
    with open_text(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise damaged(path, error) from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each line, from 0, and its record; `Malformed` in its place where the line is no JSON. Empty lines
    have numbers and no record."""
    with open_text(path) as file:
        try:
            for number, line in enumerate(file):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (ValueError, RecursionError):
                        yield number, Malformed("a line that is no JSON")
        except UnicodeDecodeError as error:
            raise damaged(path, error) from error


def items_of(path: Path) -> Iterator[Any]:
    """The items of a JSON file that is one list, one at a time: memory for one item, however large the file.

    Raises UserError where it is no list, or where it is damaged or cut short.
    """

    return _pieces(path, "[]", "list", lambda decoder, text, at: decoder.raw_decode(text, at))


def members_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of each member of a JSON file that is one object, as `items_of` reads a list."""

    def member(decoder: json.JSONDecoder, text: str, at: int) -> tuple[tuple[str, Any], int]:
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, at, _SPACE)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise ValueError("a key and a colon are missing")
        value, at = decoder.raw_decode(text, _skip(text, at + 1, _SPACE))
        return (key, value), at

    return _pieces(path, "{}", "object", member)


def _skip(text: str, at: int, these: str) -> int:
    while at < len(text) and text[at] in these:
        at += 1
    return at


def _pieces(path: Path, brackets: str, name: str, piece: Callable[..., tuple[T, int]]) -> Iterator[T]:
    """What stands between the outermost brackets, a piece at a time; more is read where a piece does not end."""
    decoder = json.JSONDecoder()
    with open_text(path) as file:
        try:
            text, at = "", 1
            while not text and (more := file.read(_CHUNK)):
                text = more.lstrip(_SPACE)
            if not text.startswith(brackets[0]):
                raise ValueError(f"it is no {name}")
            while True:
                at = _skip(text, at, _SPACE + ",")
                if text[at : at + 1] == brackets[1]:
                    return
                try:
                    found, end = piece(decoder, text, at)
                    end = _skip(text, end, _SPACE)
                    if text[end : end + 1] not in ("," + brackets[1]) or end == len(text):
                        raise ValueError("neither a comma nor an end follows")  # or it goes on: 1.5 begins with 1
                except ValueError:
                    more = file.read(max(_CHUNK, len(text)))
                    if not more:
                        raise
                    text, at = text[at:] + more, 0
                    continue
                yield found
                at = end
        except (ValueError, RecursionError) as error:
            raise damaged(path, error) from error


def damaged(path: Path, error: object) -> UserError:
    return UserError(
        f"{path} is damaged or of another format.", f"Reading it failed with: {error}.",
        "Download it again and compare its size with the card in datasets/.",
    )  # fmt: skip


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """row[name], which must be of this kind; true and false are no numbers. Raises Malformed."""
    if not isinstance(row, dict):
        raise Malformed("a record that is no JSON object")
    if name not in row:
        raise Malformed(f"no {name!r}")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Malformed(f"a {name!r} of the wrong type")
    return value


def words_of(row: Any, name: str) -> str:
    """row[name], words with single spaces between them. Raises Malformed where there are none."""
    words = " ".join(field(row, name, str).split())
    if not words:
        raise Malformed(f"an empty {name!r}")
    return words


def name_of(row: Any, name: str) -> str:
    """row[name], the name of a file, kept to the character: spaces of any kind are part of it. Raises Malformed."""
    given = field(row, name, str)
    if not given.strip():
        raise Malformed(f"an empty {name!r}")
    return given


def find_image(folder: Path, name: str) -> Path:
    """The file of this name below the folder. Raises Malformed with the cause where there is none.

    The name is taken to the character first. Where no such file is there, backslashes, as tools on Windows write them,
    are read as slashes, and accented letters in their other form of Unicode (composed, decomposed), as macOS writes.
    """
    if "\0" in name:
        raise Malformed("an image name with a NUL character, which no file has")
    for written in _spellings(name):
        path = folder / written
        try:
            if path.is_file():
                return path
        except PermissionError:
            raise Malformed("an image in a folder that this user may not enter") from None
        except OSError as error:
            if name.startswith("data:"):
                raise Malformed("an image given as data (base64) in the place of a file name") from None
            if error.errno == errno.ENAMETOOLONG:
                raise Malformed("an image name that is too long for a file") from None
            raise Malformed(f"an image that the system cannot look up ({error.strerror})") from None
    if name.startswith("data:"):
        raise Malformed("an image given as data (base64) in the place of a file name")
    if name.startswith(("http://", "https://")):
        raise Malformed("an image given as a web address in the place of a file name")
    raise Malformed("a picture that is not on the disk")


def _spellings(name: str) -> Iterator[str]:
    """The ways in which a file's name may be written on the disk, each once, as it is given first."""
    slashes = name.replace("\\", "/")
    forms = [] if name.isascii() else [unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")]
    yield from dict.fromkeys((name, slashes, *forms))


def label_of(row: Any, name: str) -> str:
    """row[name] as a label that `boxes.parse` reads back and a list of labels separates: single spaces, and no comma or
    markup of a phrase or box in it. Raises Malformed where no words are left."""
    words = without_markup(words_of(row, name).replace(",", " "))
    words = " ".join(re.sub(r"[{}<>]", " ", words).split())
    if not words:
        raise Malformed(f"an empty {name!r}")
    return words


def size_of(row: Any) -> tuple[int, int]:
    """(width, height) in pixels. Raises Malformed."""
    size = field(row, "width", int), field(row, "height", int)
    if min(size) < 1:
        raise Malformed("a picture without pixels")
    return size


def box_of(numbers: Any, size: tuple[int, int], form: str = "xywh") -> Box:
    """Four numbers in pixels, "xywh" or "xyxy", as a box clipped to the picture of this size.

    Raises Malformed where they are no four finite numbers, or no area of the picture is left in them.
    """
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        raise Malformed("a box that is not four numbers")
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < _FAR for n in numbers):
        raise Malformed("a box that is not four numbers")
    x1, y1, x2, y2 = numbers
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if not (x1 < x2 and y1 < y2):
        raise Malformed("a box without area")
    width, height = size
    box = Box(float(max(0, x1)), float(max(0, y1)), float(min(width, x2)), float(min(height, y2)))
    if not (box.x1 < box.x2 and box.y1 < box.y2):
        raise Malformed("a box outside the picture")
    return box


ORIENTATIONS = ("auto", "stored", "upright")
OTHER_FRAME = "a size that is of the {} image, while `orientation` says that the boxes are of the {} one"
SWAPPED = "a size whose width and height are swapped, so that nobody knows where the boxes are"


def turn_of(
    given: tuple[int, int] | None, stored: tuple[int, int], orientation: int, choice: str = "auto"
) -> tuple[int, str]:
    """Which EXIF orientation turns the boxes of an image upright (1: they are upright already), and what the sizes say
    against it, as a kind of `Problems`; "" where nothing.

    given: (width, height) that the annotations say, None where they say none. stored, orientation: of the image file,
    see `images.image_header`. choice: what the boxes belong to: "stored" the image as it lies in the file, "upright"
    the image turned upright; "auto" what the given size tells, where it can, else the stored one. A size tells where
    the image is not square and its orientation turns it by 90 degrees. Raises Malformed where no reading fits.
    """
    upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
    tells = ""
    if given is not None and upright != stored and given[0] != given[1]:
        tells = "upright" if (given[0] > given[1]) == (upright[0] > upright[1]) else "stored"
    elif given is not None and given != stored and given == stored[::-1]:
        raise Malformed(SWAPPED)
    frame = choice if choice != "auto" else tells or "stored"
    against = OTHER_FRAME.format(tells, frame) if tells and tells != frame else ""
    return (orientation if frame == "stored" else 1), against


def reaches_over(numbers: Any, size: tuple[int, int], form: str = "xywh") -> bool:
    """Whether a box of which `box_of` made one lay outside the picture in part, by over a pixel."""
    x1, y1, x2, y2 = numbers
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    return x1 < -1 or y1 < -1 or x2 > size[0] + 1 or y2 > size[1] + 1


def one_of(option: str, given: str, allowed: tuple[str, ...]) -> str:
    """A reader's option that has few values. Raises UserError."""
    if given not in allowed:
        raise UserError(f"The option {option} is {given!r}.", f"Allowed: {', '.join(allowed)}.", "Choose one of them.")
    return given
