"""A user's own pictures, boxes and conversations in JSON Lines, one object a line. docs/data.md describes the form.

{"image": "yard.jpg", "boxes": [{"label": "red ball", "xyxy": [40, 60, 160, 180]}],
 "conversation": [{"user": "What is there to play with?", "assistant": "A {red ball}."}]}
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.data import annotations, box_talk
from minigptv2.data.annotations import OVER_EDGE, Malformed, box_of, reaches_over, read_json_lines
from minigptv2.data.box_talk import Things
from minigptv2.data.dataset import Problems
from minigptv2.data.layout import require_records
from minigptv2.errors import UserError
from minigptv2.images import image_size
from minigptv2.sample import Exchange, Phrase, Sample

KEYS = ("image", "size", "id", "boxes", "absent", "caption", "grounding", "questions", "conversation")
BOX_KEYS, FORMS = ("label", "xyxy", "xywh"), ("xyxy", "xywh")
QUESTION_KEYS, TURN_KEYS = ("question", "answer", "answers"), ("user", "assistant")
TASKS = (*box_talk.TASKS, "caption", "grounding", "vqa", "chat")
PARTS = "parts of lines"  # the unit of what is dropped of a line
_NAMED = re.compile(r"\{([^{}]+)\}")

# the picture as it is written, the size that the line gives or None, whether boxes need it -> its path and size
Measure = Callable[[str, tuple[int, int] | None, bool], tuple[Path, tuple[int, int]]]


@dataclass
class Entry:
    """What one line says. image: None for text alone. boxes: label -> boxes, pixels of the upright picture, clipped.
    incomplete: labels of which a box was left out. asked: independent exchanges that are no boxes' own. talked: one
    conversation."""

    line: int
    name: str
    image: Path | None = None
    size: tuple[int, int] = (0, 0)
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)
    asked: list[Exchange] = field(default_factory=list)
    talked: list[Exchange] = field(default_factory=list)


class Own:
    """One record a line for all that is asked independently, and one for its conversation.

    file: the JSON Lines. images: the folder that the pictures' paths start from, "" for that of the file. tasks: of
    detection, refer, identify, caption, grounding, vqa, chat. exchanges: at most so many of a line's independent
    questions, chosen by the number of the record. closed: every thing of every label of the file is marked in every
    picture, so that the other labels are absent there.
    """

    def __init__(
        self, file: str, images: str = "", tasks: Iterable[str] = TASKS, exchanges: int = 8, closed: bool = False
    ):
        self.problems = Problems()
        self.tasks, self.most = box_talk.options_of(tasks, TASKS, exchanges)
        self.name = Path(file).name
        entries = list(entries_of(Path(file), measured_in(picture_folder(Path(file), images)), self.problems))
        self.labels = sorted({label for entry in entries for label in entry.boxes}) if closed else []
        self.records: list[tuple[Entry, bool]] = []  # and whether it is the conversation
        for entry in entries:
            if self._asked(entry, 0):
                self.records.append((entry, False))
            if entry.talked and "chat" in self.tasks:
                self.records.append((entry, True))
        require_records(len(self.records), Path(file), self.problems)

    def _asked(self, entry: Entry, seed: int) -> list[Exchange]:
        rng = random.Random(seed)
        marked = [t for t in self.tasks if t in box_talk.TASKS]
        others = [e for e in entry.asked if e.task in self.tasks]
        absent = entry.absent + [
            name for name in self.labels
            if entry.image and name not in entry.boxes and name not in entry.incomplete and name not in entry.absent
        ]  # fmt: skip
        rng.shuffle(others)
        others = others[: max(self.most // 2, self.most - len(entry.boxes))]
        things = Things(entry.boxes, absent, frozenset(entry.incomplete))
        return others + box_talk.exchanges(things, entry.size, marked, self.most - len(others), rng)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        entry, talked = self.records[index]
        said = entry.talked if talked else self._asked(entry, index)
        return Sample(entry.image, entry.size, tuple(said), f"{self.name} line {entry.line}", side_by_side=not talked)


def picture_folder(file: Path, images: str) -> Path:
    if images and not Path(images).is_dir():
        raise UserError(f"There is no folder {images}.", "`images` is the folder of the pictures.", "Check it.")
    return Path(images) if images else file.parent


def measured_in(folder: Path) -> Measure:
    """Whether the picture is there; its size from the line, else, where boxes need it, from the picture's header."""

    def measure(image: str, given: tuple[int, int] | None, needed: bool) -> tuple[Path, tuple[int, int]]:
        path = folder / image
        if not path.is_file():
            raise Malformed("a picture that is not on the disk")
        if given or not needed:
            return path, given or (0, 0)
        try:
            return path, image_size(path)
        except UserError as error:
            raise Malformed("a picture that cannot be read") from error

    return measure


def entries_of(file: Path, measure: Measure, problems: Problems) -> Iterator[Entry]:
    """What the lines say; what is wrong is counted with its line, and only that part of a line left out."""
    seen: dict[str, int] = {}
    for number, row in read_json_lines(file):
        where = f"line {number + 1}"
        try:
            if isinstance(row, Malformed):
                raise row
            if not isinstance(row, dict):
                raise Malformed("a line that is no JSON object")
            name = str(row.get("id", where))
            if "id" in row and seen.setdefault(name, number) != number:
                raise Malformed("an 'id' that an earlier line has")
            yield _Line(number + 1, name, row, problems).read(measure)
        except Malformed as error:
            problems.add(str(error), where)


class _Line:
    """One line while it is read."""

    def __init__(self, number: int, name: str, row: dict, problems: Problems):
        self.row, self.problems = row, problems
        self.entry, self.where = Entry(number, name), f"line {number}"

    def read(self, measure: Measure) -> Entry:
        row, entry = self.row, self.entry
        self._known(row, KEYS)
        boxes = self._list("boxes")
        if "image" in row:
            image = annotations.field(row, "image", str)
            entry.image, entry.size = measure(image, _size(row), bool(boxes))
        elif any(row.get(key) for key in KEYS[3:-1]):
            raise Malformed("boxes, a caption or questions without a picture")
        for place, box in enumerate(boxes):
            self._told(f"box {place + 1}", self._box, box)
        entry.absent = [words for name in self._list("absent") if (words := self._told("absent", _words, name))]
        if both := [label for label in entry.absent if label in entry.boxes]:
            self.problems.add("a label that is both absent and has a box", f"{self.where} {both[0]!r}", unit=PARTS)
            entry.absent = [label for label in entry.absent if label not in both]
        if "caption" in row:
            self._told("caption", self._caption, row["caption"])
        if "grounding" in row:
            self._told("grounding", self._grounding, row["grounding"])
        for place, question in enumerate(self._list("questions")):
            self._told(f"question {place + 1}", self._question, question)
        if "conversation" in row:
            self._told("conversation", self._conversation, row["conversation"])
        if not (entry.boxes or entry.absent or entry.asked or entry.talked):
            raise Malformed("a line with nothing to learn from")
        return entry

    def _told(self, part: str, read: Callable[[Any], Any], value: Any) -> Any:
        self.problems.saw(1, PARTS)
        try:
            return read(value)
        except Malformed as error:
            self.problems.add(str(error), f"{self.where} {part}".strip(), unit=PARTS)
            return None

    def _known(self, row: dict, keys: tuple[str, ...], part: str = "") -> None:
        for key in row:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(keys)}"
                self.problems.add(
                    f"an unknown key {key!r}, which was not read ({hint})", f"{self.where} {part}".strip(),
                    dropped=False,
                )  # fmt: skip

    def _list(self, key: str) -> list:
        if key not in self.row:
            return []
        return self._told("", lambda row: annotations.field(row, key, list), self.row) or []

    def _box(self, box: Any) -> None:
        label = _words(annotations.field(box, "label", str), "label")
        self._known(box, BOX_KEYS, "box")
        forms = [form for form in FORMS if form in box]
        try:
            if len(forms) != 1:
                raise Malformed(f"a box {'with both' if forms else 'without one of'} 'xyxy' and 'xywh'")
            found = box_of(box[forms[0]], self.entry.size, forms[0])
        except Malformed:
            self.entry.incomplete.add(label)
            raise
        self.entry.boxes.setdefault(label, []).append(found)
        if reaches_over(box[forms[0]], self.entry.size, forms[0]):
            self.problems.add(OVER_EDGE, f"{self.where} {label!r}", dropped=False)

    def _caption(self, given: Any) -> None:
        captions = [_words(c, "caption") for c in (given if isinstance(given, list) else [given])]
        if not captions:
            raise Malformed("an empty 'caption'")
        self.entry.asked.append(Exchange("caption", references=tuple(captions)))

    def _grounding(self, given: Any) -> None:
        text, phrases = self._places(_words(given, "grounding"), every=True)
        if not phrases:
            raise Malformed("a 'grounding' without any {label}")
        self.entry.asked.append(Exchange("grounding", phrases, answer=text))

    def _question(self, given: Any) -> None:
        question = annotations.words_of(given, "question")
        self._known(given, QUESTION_KEYS, "question")
        if ("answer" in given) == ("answers" in given):
            raise Malformed("a question without one of 'answer' and 'answers'")
        answers = given["answers"] if "answers" in given else [given["answer"]]
        if not isinstance(answers, list) or not answers:
            raise Malformed("an 'answers' of the wrong type")
        words = tuple(_words(answer, "answer") for answer in answers)
        self.entry.asked.append(Exchange("vqa", question=question, references=words))

    def _conversation(self, given: Any) -> None:
        if not isinstance(given, list):
            raise Malformed("a 'conversation' of the wrong type")
        if not given:
            raise Malformed("an empty conversation")
        said = []
        for turn in given:
            asked, answered = (
                annotations.field(turn, "user", str).strip(),
                annotations.field(turn, "assistant", str).strip(),
            )
            self._known(turn, TURN_KEYS, "conversation")
            if not asked or not answered:
                raise Malformed("a turn without words")
            text, phrases = self._places(answered, every=False)
            said.append(Exchange("chat", phrases, asked, text, verbatim=not phrases))
        self.entry.talked = said

    def _places(self, text: str, every: bool) -> tuple[str, tuple[Phrase, ...]]:
        """The text with `{}` for every `{label}`, and the phrases. every: other words in braces are a mistake; else
        they are text, unless they are nearly a label."""
        boxes, phrases = self.entry.boxes, []

        def place(match: re.Match) -> str:
            label = " ".join(match[1].split())
            if label in boxes:
                phrases.append(Phrase(label, tuple(boxes[label])))
                return "{}"
            near = difflib.get_close_matches(label, boxes, 1)
            if every or near:
                hint = f", did you mean {{{near[0]}}}?" if near else ""
                raise Malformed(f"a {{label}} in a text that no box has{hint}")
            return match[0]

        out = _NAMED.sub(place, text)
        if phrases and out.count("{}") != len(phrases):
            raise Malformed("a text with {} beside a {label}")
        return (out if phrases else text), tuple(phrases)


def _words(given: Any, name: str = "label") -> str:
    if not isinstance(given, str):
        raise Malformed(f"a {name!r} of the wrong type")
    words = " ".join(given.split())
    if not words:
        raise Malformed(f"an empty {name!r}")
    return words


def _size(row: dict) -> tuple[int, int] | None:
    """The "size" of a line: width and height of the upright picture in pixels."""
    if "size" not in row:
        return None
    size = row["size"]
    if (
        not isinstance(size, list)
        or len(size) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size)
    ):
        raise Malformed("a 'size' that is not [width, height]")
    return size[0], size[1]
