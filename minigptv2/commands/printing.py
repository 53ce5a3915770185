"""What commands print: answers on standard output; notes, progress and errors on standard error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.errors import UserError
from minigptv2.tasks import TASKS

if TYPE_CHECKING:
    from PIL import Image

    from minigptv2.sample import Answer

_MAX_WORD = 400  # characters of a word in an error; longer words, such as an image in base64, are shortened


def escape_control_chars(text: str) -> str:
    """The text with control characters as escapes, so that no answer and no file name can control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_error(error: UserError) -> None:
    """Three lines on standard error."""
    parts = (re.sub(r"\s*\n\s*", " ", part) for part in (error.given, error.allowed, error.advice))
    print_note("error: " + "\n  ".join(escape_control_chars(_shorten_words(part)) for part in parts))


def _shorten_words(text: str) -> str:
    long = re.compile(rf"\S{{{_MAX_WORD + 1},}}")
    return long.sub(lambda word: f"{word[0][:80]}...{word[0][-20:]} ({len(word[0]):,} characters)", text)


def print_note(text: str) -> None:
    """A line on standard error. If it cannot be written there, the command continues without it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def boxes_table(answer: Answer) -> str:
    """One line per box: phrase, box in pixels, score. "" if there are no boxes."""
    if not answer.boxes:
        return ""
    rows = [("phrase", "x1", "y1", "x2", "y2", "score")]
    for box in answer.boxes:
        score = "" if box.score is None else f"{box.score:.2f}"
        rows.append(
            (escape_control_chars(box.phrase).replace("\n", " ") or "-", *(str(round(v)) for v in box.xyxy), score)
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows
    )


def print_boxes(answer: Answer) -> None:
    """Print the table of an answer's boxes, if it has any."""
    if answer.boxes:
        print("\n" + boxes_table(answer))
    sys.stdout.flush()


def print_problems(answer: Answer) -> None:
    """Notes about an answer that was cut or has malformed boxes."""
    if answer.finish_reason == "length":
        print_note("note: the answer was cut; --max-new-tokens allows a longer one.")
    for problem in answer.problems:
        print_note(f"note: {escape_control_chars(problem)}.")


def json_line(image: str, answer: Answer) -> str:
    """An answer as one line of JSON; its key "picture" names the image."""
    return json.dumps({"picture": image, **answer.to_dict()})


def save_image(image: Image.Image, file: Path, reserved: Collection[Path] = ()) -> Path:
    """Save an image as PNG without replacing a file, and print its path. reserved: see `drawing.save_png`."""
    from minigptv2.drawing import save_png

    saved = save_png(image, file, reserved)
    kept = f"; {file.name} already existed and was not replaced" if saved != file else ""
    print_note(escape_control_chars(f"saved {saved}{kept}"))
    return saved


def task_lines() -> Iterator[str]:
    """One line per task: its tag, and what it asks for."""
    for task in TASKS.values():
        yield f"  {task.tag or '(none)':<15} {task.help}"
