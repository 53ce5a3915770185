"""Annotation files: opened whole or piece by piece, and the checks that every reader makes of a record.

What is wrong with a whole file is a UserError; what is wrong with one record is `InvalidRecord`, which the reader
counts."""

from __future__ import annotations

import errno
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, TypeVar

from minigptv2.boxes import Box, stored_box, strip_markup_chars, upright_box, without_markup
from minigptv2.errors import UserError
from minigptv2.files import refuse_device
from minigptv2.images import image_header, upright_size

OVER_EDGE = "a box that reaches over the edge of the image, where it is cut off"
_CHUNK = 1 << 20  # characters read at a time
_SPACE = " \t\r\n"
_FAR = 1e9  # pixels; no box reaches so far, infinity and what is no number included
_HEAD = 4096  # bytes of a file that tell what it is
_TO_OPEN = {
    FileNotFoundError: "Check the path.",
    IsADirectoryError: "It is a folder: name the file in it.",
    PermissionError: "Give yourself read permission (chmod).",
}
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
_SHARE = 1.001  # the most of a box in shares of the image's sides, rounding included
T = TypeVar("T")
P = TypeVar("P", int, str)  # what names an image


class InvalidRecord(ValueError):
    """One record that cannot be used; its text is the kind, as `ProblemCounter.add` takes it."""


class Unwanted(InvalidRecord):
    """A good record that an option of the reader leaves out."""


class MissingImage(InvalidRecord):
    """A record whose image is named well, and is not on the disk."""


class Row(NamedTuple):
    """A question of an annotation file as it is written, before its image is looked for.

    number: of the row, from 0. key: what the file calls the question. image: the file's name, or the number of COCO's
    image. answers: all of them as they are written. choices: the answers of which one is right. kind: the type of
    answer that the file names. problem: why the row cannot be used, and then only number and key are filled: a reader
    leaves the row out, a benchmark counts it as excluded.
    """

    number: int
    key: str = ""
    image: str | int = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    kind: str = ""
    problem: str = ""


def open_text(path: Path):
    """An annotation file as text in UTF-8, with or without a byte order mark. Raises UserError."""
    refuse_device(path)
    try:
        return path.open(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be opened.",
            f"The system says: {getattr(error, 'strerror', None) or error}.",
            _TO_OPEN.get(type(error), "Give the path of the annotation file."),
        ) from error


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises UserError with the place of a mistake."""
    with open_text(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise corrupt_file_error(path, error) from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each line, from 0, and its record; `InvalidRecord` in its place where the line is no JSON. Empty
    lines have numbers and no record.

    Raises UserError where the file is of another form: one JSON list, CSV, YAML, another encoding.
    """
    with open_text(path) as file:
        first = True
        try:
            for number, line in enumerate(file):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    mistake = mistake_in(error) if isinstance(error, json.JSONDecodeError) else None
                    record = InvalidRecord(f"a line that is no JSON{f' ({mistake[0]})' if mistake else ''}")
                if first:
                    first = False
                    _refuse_other_forms(path, line.lstrip(), record)
                yield number, record
        except UnicodeDecodeError as error:
            raise corrupt_file_error(path, error) from error


def _refuse_other_forms(path: Path, line: str, record: Any) -> None:
    """Raises UserError where the first line shows that a file is not JSON Lines at all."""
    if isinstance(record, list) and record and isinstance(record[0], dict) or line[0] == "[" and _is_bad(record):
        raise UserError(
            f"{path} holds one JSON list.",
            "In JSON Lines each line is one object, without brackets around all.",
            "Write each item of the list on a line of its own.",
        )
    if _is_bad(record) and (form := _form_of(path)):
        raise _of_another_form(path, form)


def _is_bad(record: Any) -> bool:
    return isinstance(record, InvalidRecord)


def iter_json_list(path: Path) -> Iterator[Any]:
    """The items of a JSON file that is one list, one at a time: memory for one item, however large the file.

    Raises UserError where it is no list, or where it is damaged or cut short.
    """

    return _pieces(path, "[]", "list", lambda decoder, text, at: decoder.raw_decode(text, at))


def is_list(path: Path) -> bool:
    """Whether a JSON file is one list, by its first character. Raises UserError where it is no text in UTF-8."""
    with open_text(path) as file:
        try:
            while (first := file.read(1)) and first in _SPACE:
                pass
        except ValueError as error:
            raise corrupt_file_error(path, error) from error
    return first == "["


def iter_json_object(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of each member of a JSON file that is one object, as `iter_json_list` reads a list."""

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
            raise corrupt_file_error(path, error) from error


def corrupt_file_error(path: Path, error: object) -> UserError:
    """What is wrong with a whole file. error: what was raised when it was read, or what it lacks, in words."""
    if isinstance(error, Exception) and (form := _form_of(path)):
        return _of_another_form(path, form)
    if isinstance(error, UnicodeDecodeError):
        return _of_another_form(path, ("no text in UTF-8", "Save it again in UTF-8."))
    if isinstance(error, json.JSONDecodeError) and (mistake := mistake_in(error)):
        words, advice = mistake
        return UserError(f"{path} is no JSON: {words}.", f"Reading it failed with: {error}.", advice)
    return UserError(
        f"{path} is damaged or of another format.",
        f"Reading it failed with: {error}.",
        "Check that it is the right file and that it is whole.",
    )


def _of_another_form(path: Path, form: tuple[str, str]) -> UserError:
    return UserError(f"{path} is {form[0]}.", "JSON in UTF-8 is read here.", form[1])


def _form_of(path: Path) -> tuple[str, str] | None:
    """What a file is that is no JSON in UTF-8, and what to do; None where its beginning does not tell."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return None
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:4:2] == b"\0\0" or head[1:4:2] == b"\0\0":
        return "text in UTF-16", "Save it again in UTF-8."
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")):
        return "a compressed file", "Unpack it, and give the file that was in it."
    text = head.decode("utf-8-sig", errors="ignore").lstrip()
    if not text:
        return "empty", "Give the file with the annotations."
    if text.startswith("version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself", "Get the file itself with git lfs pull."
    if re.match(r"<(!doctype\s+)?html", text, re.IGNORECASE):
        return "a web page", "Get the file that the page leads to."
    if text.startswith("<"):
        return "XML", "Export the annotations as COCO's JSON, or write JSON Lines (docs/data.md)."
    if text[0] in "{[":
        return None
    line = text.splitlines()[0]
    if re.match(r"(---\s*$|- |[\w-]+\s*:(\s|$))", line):
        return "YAML", "Export the annotations as COCO's JSON, or write JSON Lines (docs/data.md)."
    if re.search(r"[,;\t]", line) and not line.startswith(("//", "/*", "#")):
        return "a table (CSV)", "Export the annotations as COCO's JSON, or write JSON Lines (docs/data.md)."
    return None


def mistake_in(error: json.JSONDecodeError) -> tuple[str, str] | None:
    """What people write that is no JSON, where the decoder stopped, and what to do; None for what is nothing known."""
    text, at = error.doc, error.pos
    here, before = text[at:].lstrip(), text[:at].rstrip()
    if error.msg.startswith("Invalid \\"):
        return "a single backslash, as in a path of Windows", "Write two backslashes, or a slash."
    if not here or error.msg.startswith("Unterminated string"):
        return "it ends in the middle", "Complete it: it was cut short, or goes on elsewhere."
    if error.msg.startswith("Invalid control character"):
        return "a line break or tab inside a text", "Write it as \\n or \\t."
    if error.msg.startswith("Extra data"):
        if here[0] in "{[":
            return "several JSON values one after the other", "JSON Lines has one on each line, and ends in .jsonl."
        return "something after its end", "Remove it."
    if here.startswith(("//", "/*", "#")):
        return "a comment", "JSON has no comments: remove it."
    if here[:1] in ("]", "}") and before.endswith(","):
        return "a comma too many", "Remove the comma before the closing bracket."
    if error.msg.startswith("Illegal trailing comma"):  # Python 3.13 and later
        return "a comma too many", "Remove the comma before the closing bracket."
    if here[:1] in ("'", "\u2018", "\u2019", "\u201c", "\u201d"):
        return "quotation marks of another kind", 'Write "straight double quotation marks".'
    if match := re.match(r"True|False|None|nan\b|inf\b|undefined", here):
        return f"{match[0]}, which is no JSON", "Write true, false, null or a number."
    if error.msg.startswith("Expecting ',' delimiter"):
        return "a comma or bracket is missing", "Add it."
    return None


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """row[name], which must be of this kind; true and false are no numbers. Raises InvalidRecord."""
    if not isinstance(row, dict):
        raise InvalidRecord("a record that is no JSON object")
    if name not in row:
        raise InvalidRecord(f"no {name!r}")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidRecord(f"a {name!r} of the wrong type")
    return value


def text_field(row: Any, name: str) -> str:
    """row[name], words with single spaces between them. Raises InvalidRecord where there are none."""
    words = " ".join(field(row, name, str).split())
    if not words:
        raise InvalidRecord(f"an empty {name!r}")
    return words


def file_name_field(row: Any, name: str) -> str:
    """row[name], the name of a file, kept to the character: spaces of any kind are part of it. Raises InvalidRecord."""
    given = field(row, name, str)
    if not given.strip():
        raise InvalidRecord(f"an empty {name!r}")
    return given


def find_image(folder: Path, name: str) -> Path:
    """The file of this name below the folder. Raises InvalidRecord with the cause where there is none, MissingImage
    where the name is a path at which no file lies.

    The name is taken to the character first. Where no such file is there, backslashes, as tools on Windows write them,
    are read as slashes, and accented letters in their other form of Unicode (composed, decomposed), as macOS writes.
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
                raise InvalidRecord("an image given as data (base64) in the place of a file name") from None
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidRecord("an image name that is too long for a file") from None
            raise InvalidRecord(f"an image that the system cannot look up ({error.strerror})") from None
    if name.startswith("data:"):
        raise InvalidRecord("an image given as data (base64) in the place of a file name")
    if name.startswith(("http://", "https://")):
        raise InvalidRecord("an image given as a web address in the place of a file name")
    if _WINDOWS.match(name):
        raise InvalidRecord("an image given as a path of a Windows computer")
    if re.search(r"[\0-\x1f]", name):
        raise InvalidRecord("an image name with a line break or tab, as a single backslash in JSON makes")
    raise MissingImage("an image that is not on the disk")


def phrase_field(row: Any, name: str) -> str:
    """row[name] as a phrase: single spaces, and no markup of a phrase or box in it. Raises InvalidRecord."""
    words = " ".join(strip_markup_chars(text_field(row, name)).split())
    if not words:
        raise InvalidRecord(f"an empty {name!r}")
    return words


def _spellings(name: str) -> Iterator[str]:
    """The ways in which a file's name may be written on the disk, each once, as it is given first."""
    slashes = name.replace("\\", "/")
    forms = [] if name.isascii() else [unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")]
    yield from dict.fromkeys((name, slashes, *forms))


def label_field(row: Any, name: str) -> str:
    """row[name] as a label that `boxes.parse` reads back and a list of labels separates: single spaces, and no comma or
    markup of a phrase or box in it. Raises InvalidRecord where no words are left."""
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


def parse_box(numbers: Any, size: tuple[int, int], form: str = "xywh") -> Box:
    """Four numbers in pixels, "xywh" or "xyxy", as a box clipped to the image of this size.

    Raises InvalidRecord where they are no four finite numbers, where they are shares (0..1) of the image's sides
    instead of pixels, or no area of the image is left in them."""
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        raise InvalidRecord("a box that is not four numbers")
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < _FAR for n in numbers):
        raise InvalidRecord("a box that is not four numbers")
    x1, y1, x2, y2 = numbers
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if not (x1 < x2 and y1 < y2):
        raise InvalidRecord("a box without area")
    if max(size) > 2 and all(0 <= n <= _SHARE for n in numbers):
        raise InvalidRecord("a box in shares of 0..1, not in pixels")
    width, height = size
    box = Box(float(max(0, x1)), float(max(0, y1)), float(min(width, x2)), float(min(height, y2)))
    if not (box.x1 < box.x2 and box.y1 < box.y2):
        raise InvalidRecord("a box outside the image")
    return box


ORIENTATIONS = ("auto", "stored", "upright")
OTHER_FRAME = "a size that is of the {} image, while `orientation` says that the boxes are of the {} one"
SWAPPED = "a size whose width and height are swapped, so that nobody knows where the boxes are"


def boxes_orientation(
    given: tuple[int, int] | None, stored: tuple[int, int], orientation: int, choice: str = "auto"
) -> tuple[int, str]:
    """Which EXIF orientation turns the boxes of an image upright (1: they are upright already), and what the sizes say
    against it, as a kind of `ProblemCounter`; "" where nothing.

    given: (width, height) that the annotations say, None where they say none. stored, orientation: of the image file,
    see `images.image_header`. choice: what the boxes belong to: "stored" the image as it lies in the file, "upright"
    the image turned upright; "auto" what the given size tells, where it can, else the stored one. A size tells where
    the image is not square and its orientation turns it by 90 degrees. Raises InvalidRecord where no reading fits.
    """
    upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
    tells = ""
    if given is not None and upright != stored and given[0] != given[1]:
        tells = "upright" if (given[0] > given[1]) == (upright[0] > upright[1]) else "stored"
    elif given is not None and given != stored and given == stored[::-1]:
        raise InvalidRecord(SWAPPED)
    frame = choice if choice != "auto" else tells or "stored"
    against = OTHER_FRAME.format(tells, frame) if tells and tells != frame else ""
    return (orientation if frame == "stored" else 1), against


@dataclass(frozen=True)
class UprightTransform:
    """How the boxes of an image are turned upright. size: of the upright image, in pixels of the annotations. against:
    what speaks against it, as a kind of `ProblemCounter`, "" where nothing."""

    turn: int
    framed: tuple[int, int]
    against: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return upright_size(self.framed, self.turn)

    def box(self, box: Box) -> Box:
        return upright_box(box, self.framed, self.turn) if self.turn != 1 else box

    def back(self, box: Box) -> Box:
        """A box of the upright image in the frame of the annotations."""
        return stored_box(box, self.framed, self.turn) if self.turn != 1 else box


def upright_transform(path: Path, size: tuple[int, int], given: bool, orientation: str) -> UprightTransform:
    """size: in the frame of the annotations. given: whether they say it. Reads the header of the image.

    Raises InvalidRecord where the size contradicts the image's, and UserError where its header cannot be read.
    """
    turn, against = boxes_orientation(size if given else None, *image_header(path), orientation)
    return UprightTransform(turn, size, against)


def exceeds_image(numbers: Any, size: tuple[int, int], form: str = "xywh") -> bool:
    """Whether a box of which `parse_box` made one lay outside the image in part, by over a pixel."""
    x1, y1, x2, y2 = numbers
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    return x1 < -1 or y1 < -1 or x2 > size[0] + 1 or y2 > size[1] + 1


def check_choice(option: str, given: str, allowed: tuple[str, ...]) -> str:
    """A reader's option that has few values. Raises UserError."""
    if given not in allowed:
        raise UserError(f"The option {option} is {given!r}.", f"Allowed: {', '.join(allowed)}.", "Choose one of them.")
    return given


def rows_of(file: Path, key: str) -> list:
    """The list that a JSON file holds under a key."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise corrupt_file_error(file, f"it has no list {key!r}")
    return content[key]


def strings(row, name: str) -> tuple[str, ...]:
    """A list of strings under a key. Raises InvalidRecord."""
    values = field(row, name, list)
    if not all(isinstance(value, str) for value in values):
        raise InvalidRecord(f"a {name!r} of the wrong type")
    return tuple(values)


def answers_of(row: Any) -> tuple[str, ...]:
    """The words of a row's answers, each as it is written, empty ones too. Raises InvalidRecord where there are
    none."""
    answers = tuple(intern(field(answer, "answer", str)) for answer in field(row, "answers", list))
    if not answers:
        raise InvalidRecord("no answer")
    return answers


def by_frequency(answers: Iterable[str]) -> tuple[str, ...]:
    """All answers that are not empty, with repetition, the most common first; of equal count, the first given."""
    counts = Counter(intern(words) for answer in answers if (words := " ".join(answer.split())))
    return tuple(answer for answer, count in counts.most_common() for _ in range(count))


def records_of(captions: Mapping[P, list[str]], apart: bool) -> list[tuple[P, tuple[str, ...]]]:
    """(image, its captions), a record an image; apart: a record a caption."""
    return [
        record
        for image, words in captions.items()
        for record in ([(image, (w,)) for w in words] if apart else [(image, tuple(words))])
    ]


def optional_text(row: dict, name: str) -> str:
    """row[name] where it is text, else "": of a key that need not be there."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


def unique(seen: set, key: Any) -> bool:
    """Whether this key comes for the first time."""
    if key in seen:
        return False
    seen.add(key)
    return True
