"""JSON and JSON Lines files, read at once or item by item.

A mistake in the file as a whole is a UserError that names it. A line that is not JSON is an `InvalidRecord`, which the
reader counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from minigptv2.data.annotations import InvalidRecord
from minigptv2.errors import UserError, system_error
from minigptv2.files import refuse_device

_CHUNK = 1 << 20  # characters read at a time
_SPACE = " \t\r\n"
_HEAD = 4096  # bytes from which the type of a file is recognised
_ADVICE_TO_OPEN = {
    FileNotFoundError: "Check the path.",
    IsADirectoryError: "It is a folder: name the file in it.",
    PermissionError: "Give yourself read permission (chmod).",
}
_CONVERT = "Export the annotations as COCO's JSON, or write JSON Lines (docs/data.md)."
T = TypeVar("T")


def open_text(path: Path) -> TextIO:
    """Open a file as UTF-8 text, with or without a byte order mark. Raises UserError."""
    refuse_device(path)
    try:
        return path.open(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        advice = _ADVICE_TO_OPEN.get(type(error), "Give the path of the annotation file.")
        raise system_error(f"{path} cannot be opened.", error, advice) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError, which says where a mistake is."""
    with open_text(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise corrupt_file_error(path, error) from error


def rows_of(path: Path, key: str) -> list:
    """The list under a key of a JSON file. Raises UserError if there is none."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise corrupt_file_error(path, f"it has no list {key!r}")
    return content[key]


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each line, from 0, and its record; for a line that is not JSON, an `InvalidRecord` in place of the
    record. Empty lines are counted and skipped.

    Raises UserError if the file has another format: one JSON list, CSV, YAML, or an encoding other than UTF-8.
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
                    mistake = _mistake_in(error) if isinstance(error, json.JSONDecodeError) else None
                    record = InvalidRecord(f"a line that is not JSON{f' ({mistake[0]})' if mistake else ''}")
                if first:
                    first = False
                    _refuse_other_formats(path, line.lstrip(), record)
                yield number, record
        except UnicodeDecodeError as error:
            raise corrupt_file_error(path, error) from error


def _refuse_other_formats(path: Path, line: str, record: Any) -> None:
    """Raises UserError if the first line shows that the file is not JSON Lines."""
    invalid = isinstance(record, InvalidRecord)
    if isinstance(record, list) and record and isinstance(record[0], dict) or line[0] == "[" and invalid:
        raise UserError(
            f"{path} holds one JSON list.",
            "In JSON Lines each line is one object, without brackets around all.",
            "Write each item of the list on a line of its own.",
        )
    if invalid and (found := _other_format(path)):
        raise _other_format_error(path, *found)


def is_list(path: Path) -> bool:
    """Whether a JSON file is one list, by its first character. Raises UserError if it is not UTF-8 text."""
    with open_text(path) as file:
        try:
            while (first := file.read(1)) and first in _SPACE:
                pass
        except ValueError as error:
            raise corrupt_file_error(path, error) from error
    return first == "["


def iter_json_list(path: Path) -> Iterator[Any]:
    """The items of a JSON file that is one list, one at a time, so that the file may be larger than the memory.

    Raises UserError if it is not a list, is damaged, or is cut short.
    """

    def parse_item(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
        return decoder.raw_decode(text, at)

    return _iter_items(path, "[]", "list", parse_item)


def iter_json_object(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of each member of a JSON file that is one object; otherwise as `iter_json_list`."""

    def parse_member(decoder: json.JSONDecoder, text: str, at: int) -> tuple[tuple[str, Any], int]:
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, at, _SPACE)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise ValueError("a key and a colon are missing")
        value, at = decoder.raw_decode(text, _skip(text, at + 1, _SPACE))
        return (key, value), at

    return _iter_items(path, "{}", "object", parse_member)


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _iter_items(
    path: Path, brackets: str, name: str, parse: Callable[[json.JSONDecoder, str, int], tuple[T, int]]
) -> Iterator[T]:
    """The items between the outermost brackets. parse: decoder, text and start -> an item and its end; if it fails,
    more text is read."""
    decoder = json.JSONDecoder()
    with open_text(path) as file:
        try:
            text, at = "", 1
            while not text and (more := file.read(_CHUNK)):
                text = more.lstrip(_SPACE)
            if not text.startswith(brackets[0]):
                raise ValueError(f"it is not a JSON {name}")
            while True:
                at = _skip(text, at, _SPACE + ",")
                if text[at : at + 1] == brackets[1]:
                    return
                try:
                    item, end = parse(decoder, text, at)
                    end = _skip(text, end, _SPACE)
                    # at the end of the text the item may be incomplete: 1.5 begins with 1
                    if text[end : end + 1] not in ("," + brackets[1]) or end == len(text):
                        raise ValueError("neither a comma nor an end follows")
                except ValueError:
                    more = file.read(max(_CHUNK, len(text)))
                    if not more:
                        raise
                    text, at = text[at:] + more, 0
                    continue
                yield item
                at = end
        except (ValueError, RecursionError) as error:
            raise corrupt_file_error(path, error) from error


def corrupt_file_error(path: Path, error: object) -> UserError:
    """The error for a file that cannot be used as a whole. error: the exception of reading it, or a text that says what
    it lacks."""
    if isinstance(error, Exception) and (found := _other_format(path)):
        return _other_format_error(path, *found)
    if isinstance(error, UnicodeDecodeError):
        return _other_format_error(path, "not text in UTF-8", "Save it again in UTF-8.")
    if isinstance(error, json.JSONDecodeError) and (mistake := _mistake_in(error)):
        words, advice = mistake
        return UserError(f"{path} is not JSON: {words}.", f"Reading it failed with: {error}.", advice)
    return UserError(
        f"{path} is damaged or of another format.",
        f"Reading it failed with: {error}.",
        "Check that it is the right file and that it is complete.",
    )


def _other_format_error(path: Path, name: str, advice: str) -> UserError:
    return UserError(f"{path} is {name}.", "JSON in UTF-8 is read here.", advice)


def _other_format(path: Path) -> tuple[str, str] | None:
    """The format of a file that is not JSON in UTF-8, and what to do; None if its beginning does not show it."""
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
        return "a Git LFS pointer, not the file itself", "Get the file itself with git lfs pull."
    if re.match(r"<(!doctype\s+)?html", text, re.IGNORECASE):
        return "a web page", "Get the file that the page links to."
    if text.startswith("<"):
        return "XML", _CONVERT
    if text[0] in "{[":
        return None
    line = text.splitlines()[0]
    if re.match(r"(---\s*$|- |[\w-]+\s*:(\s|$))", line):
        return "YAML", _CONVERT
    if re.search(r"[,;\t]", line) and not line.startswith(("//", "/*", "#")):
        return "a table (CSV)", _CONVERT
    return None


def _mistake_in(error: json.JSONDecodeError) -> tuple[str, str] | None:
    """The common mistake at which the decoder stopped, and what to do; None if it is not a known one."""
    text, at = error.doc, error.pos
    here, before = text[at:].lstrip(), text[:at].rstrip()
    if error.msg.startswith("Invalid \\"):
        return "a single backslash, as in a path of Windows", "Write two backslashes, or a slash."
    if not here or error.msg.startswith("Unterminated string"):
        return "it ends in the middle", "Complete it: it was cut short, or continues in another file."
    if error.msg.startswith("Invalid control character"):
        return "a line break or tab inside a text", "Write it as \\n or \\t."
    if error.msg.startswith("Extra data"):
        if here[0] in "{[":
            return "several JSON values one after the other", "JSON Lines has one on each line, and ends in .jsonl."
        return "something after its end", "Remove it."
    if here.startswith(("//", "/*", "#")):
        return "a comment", "JSON has no comments: remove it."
    if here[:1] in ("]", "}") and before.endswith(","):
        return "an extra comma", "Remove the comma before the closing bracket."
    if error.msg.startswith("Illegal trailing comma"):  # Python 3.13 and later
        return "an extra comma", "Remove the comma before the closing bracket."
    if here[:1] in ("'", "\u2018", "\u2019", "\u201c", "\u201d"):
        return "single or curly quotation marks", 'Write "straight double quotation marks".'
    if match := re.match(r"True|False|None|nan\b|inf\b|undefined", here):
        return f"{match[0]}, which is not JSON", "Write true, false, null or a number."
    if error.msg.startswith("Expecting ',' delimiter"):
        return "a comma or bracket is missing", "Add it."
    return None
