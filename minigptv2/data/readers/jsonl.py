"""A user's own images, boxes and conversations in JSON Lines. docs/data.md describes the format.

{"image": "yard.jpg", "boxes": [{"label": "red ball", "xyxy": [40, 60, 160, 180]}],
 "conversation": [{"user": "What is there to play with?", "assistant": "A {red ball}."}]}
"""

from __future__ import annotations

import difflib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from minigptv2.boxes import Box
from minigptv2.data import annotations, box_questions
from minigptv2.data.annotations import (
    OVER_EDGE,
    InvalidRecord,
    exceeds_image,
    file_name_field,
    find_image,
    label_field,
    parse_box,
)
from minigptv2.data.box_questions import LabelledBoxes
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import require_records
from minigptv2.data.json_files import read_json_lines
from minigptv2.data.orientation import ORIENTATIONS, UprightTransform, upright_transform
from minigptv2.data.turns import LONG_CONVERSATION, remove_image_mark, split_conversation
from minigptv2.errors import UserError
from minigptv2.files import is_dir
from minigptv2.images import image_header, image_size
from minigptv2.sample import Phrase, QuestionAnswer, Sample

KEYS = ("image", "size", "id", "boxes", "absent", "caption", "grounding", "questions", "conversation")
BOX_KEYS, FORMS = ("label", "xyxy", "xywh"), ("xyxy", "xywh")
QUESTION_KEYS, TURN_KEYS = ("question", "answer", "answers"), ("user", "assistant")
JSONL_TASKS = (*box_questions.BOX_TASKS, "caption", "grounding", "vqa", "chat")
CONTEXT = 1024  # tokens, of the bundled model
PARTS = "parts of lines"  # the unit of dropped parts
_NAMED = re.compile(r"\{([^{}]+)\}")

# (image name, size stated by the line or None, whether boxes need it) -> its path and size
Measure = Callable[[str, tuple[int, int] | None, bool], tuple[Path, tuple[int, int]]]


@dataclass
class Entry:
    """The content of one line. image: None for text without an image. size: width and height in the frame of the boxes;
    sized: whether the line states it. boxes: label -> boxes, pixels of that frame, clipped. incomplete: labels of which
    a box was left out. elsewhere: labels that have boxes on other lines of the same image. asked: independent questions
    that do not come from boxes. talked: one conversation, in parts that each are a record."""

    line: int
    name: str
    image: Path | None = None
    size: tuple[int, int] = (0, 0)
    sized: bool = False
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)
    asked: list[QuestionAnswer] = field(default_factory=list)
    talked: list[tuple[QuestionAnswer, ...]] = field(default_factory=list)


class JsonlDataset:
    """One record per line with its independent questions, and one per conversation, or several for a long one.

    file: the JSON Lines. images: the folder that image paths are relative to, "" for the folder of `file`. tasks: of
    detection, refer, identify, caption, grounding, vqa, chat. questions_per_image: at most so many independent
    questions of a line, chosen by the number of the record. closed: every object of every label in the file is
    annotated in every image, so labels without a box are absent there. context: of the model, in tokens; a
    conversation that is longer, by estimate, is split into several records. orientation: the frame of boxes and
    `size`: "upright", the image turned by its EXIF orientation; "stored", the image as it lies in the file; "auto",
    whichever `size` matches, else stored.
    """

    RENAMED: ClassVar[dict[str, str]] = {"exchanges": "questions_per_image"}

    def __init__(
        self,
        file: str,
        images: str = "",
        tasks: Iterable[str] = JSONL_TASKS,
        questions_per_image: int = 8,
        closed: bool = False,
        context: int = CONTEXT,
        orientation: str = "upright",
    ):
        self.orientation = annotations.check_choice("orientation", orientation, ORIENTATIONS)
        self.problems = ProblemCounter()
        self.tasks, self.questions_per_image = box_questions.options_of(tasks, JSONL_TASKS, questions_per_image)
        self.name = Path(file).name
        measure = measured_in(image_folder(Path(file), images), self.orientation)
        entries = list(entries_of(Path(file), measure, self.problems, context))
        combine_lines(entries, self.problems)
        self.labels = sorted({label for entry in entries for label in entry.boxes}) if closed else []
        self.records: list[tuple[Entry, int | None]] = []  # with the index of the part of its conversation
        for entry in entries:
            if self._asked(entry, 0):
                self.records.append((entry, None))
            if "chat" in self.tasks:
                self.records += [(entry, part) for part in range(len(entry.talked))]
        require_records(len(self.records), Path(file), self.problems)

    def _asked(self, entry: Entry, seed: int) -> list[QuestionAnswer]:
        rng = random.Random(seed)
        marked = [t for t in self.tasks if t in box_questions.BOX_TASKS]
        others = [e for e in entry.asked if e.task in self.tasks]
        absent = entry.absent + [
            name
            for name in self.labels
            if entry.image
            and not (name in entry.boxes or name in entry.incomplete or name in entry.elsewhere)
            and name not in entry.absent
        ]
        rng.shuffle(others)
        others = others[: max(self.questions_per_image // 2, self.questions_per_image - len(entry.boxes))]
        labelled = LabelledBoxes(entry.boxes, absent, frozenset(entry.incomplete))
        return others + box_questions.box_questions(
            labelled, entry.size, marked, self.questions_per_image - len(others), rng
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        entry, part = self.records[index]
        key = f"{self.name} line {entry.line}"
        if part is None:
            question_answers = self._asked(entry, index)
        else:
            question_answers = entry.talked[part]
            key += f" part {part + 1}" if len(entry.talked) > 1 else ""
        size = entry.size
        if entry.boxes:
            frame = frame_of(entry, self.orientation)
            size, question_answers = (
                frame.size,
                [_turned(question_answer, frame) for question_answer in question_answers],
            )
        return Sample(entry.image, size, tuple(question_answers), key, side_by_side=part is None)


def image_folder(file: Path, images: str) -> Path:
    if images and not is_dir(images):
        raise UserError(f"There is no folder {images}.", "`images` is the folder of the images.", "Check it.")
    return Path(images) if images else file.parent


def frame_of(entry: Entry, orientation: str) -> UprightTransform:
    """How the boxes of a line are turned upright. Raises UserError where the stated size belongs to the other frame."""
    if not entry.sized and orientation == "upright":
        return UprightTransform(1, entry.size)
    try:
        frame = upright_transform(entry.image, entry.size, entry.sized, orientation)
        if frame.problem:
            raise InvalidRecord(frame.problem)
        return frame
    except InvalidRecord as error:
        raise UserError(
            f"{entry.image} has {error}.",
            f"Its boxes are read as those of the image with orientation={orientation}.",
            "Correct size and boxes of the line, or choose the option orientation: upright, stored or auto.",
        ) from None


def _turned(question_answer: QuestionAnswer, frame: UprightTransform) -> QuestionAnswer:
    phrases = (replace(p, boxes=tuple(frame.box(box) for box in p.boxes)) for p in question_answer.phrases)
    return replace(question_answer, phrases=tuple(phrases))


def measured_in(folder: Path, orientation: str) -> Measure:
    """A function that finds an image; its size is from the line or, where boxes need it, the image's header."""

    def measure(image: str, given: tuple[int, int] | None, needed: bool) -> tuple[Path, tuple[int, int]]:
        path = find_image(folder, image)
        if given or not needed:
            return path, given or (0, 0)
        try:
            return path, image_size(path) if orientation == "upright" else image_header(path)[0]
        except UserError as error:
            raise InvalidRecord("an image that cannot be read") from error

    return measure


def entries_of(file: Path, measure: Measure, problems: ProblemCounter, context: int = CONTEXT) -> Iterator[Entry]:
    """The entries of the lines. A problem is counted with its line, and only that part of the line is left out."""
    seen: dict[str, int] = {}
    spelled: dict[str, str] = {}  # case-folded label -> its first spelling in the file
    for number, row in read_json_lines(file):
        where = f"line {number + 1}"
        try:
            if isinstance(row, InvalidRecord):
                raise row
            if not isinstance(row, dict):
                raise InvalidRecord("a line that is not a JSON object")
            name = str(row.get("id", where))
            if "id" in row and seen.setdefault(name, number) != number:
                raise InvalidRecord("an 'id' that an earlier line has")
            yield _Line(number + 1, name, row, problems, spelled, context).read(measure)
        except InvalidRecord as error:
            problems.add(str(error), where)


def combine_lines(entries: Iterable[Entry], problems: ProblemCounter) -> None:
    """Combine lines of the same image: boxes of one label on several lines belong together, and a label that has a box
    on one line is absent on none."""
    lines_of: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.image is not None:
            lines_of.setdefault(os.path.normpath(entry.image), []).append(entry)
    for same in lines_of.values():
        if len(same) > 1:
            _combine_image(same, problems)
        for entry in same:
            for label in box_questions.too_many(entry.boxes):
                problems.add(box_questions.TOO_MANY, f"line {entry.line} {label!r}", dropped=False)


def _combine_image(same: list[Entry], problems: ProblemCounter) -> None:
    every: dict[str, list[Box]] = {}
    for entry in same:
        for label, boxes in entry.boxes.items():
            known = every.setdefault(label, [])
            known += [box for box in boxes if box not in known]
    incomplete = set().union(*(entry.incomplete for entry in same))
    if len({entry.size for entry in same if entry.boxes}) > 1:  # then their pixels cannot be compared
        problems.add("an image that two lines give different sizes", f"line {same[-1].line}", dropped=False)
        incomplete |= {label for label in every if sum(label in entry.boxes for entry in same) > 1}
    for entry in same:
        for label in entry.boxes.keys() - incomplete:
            if len(every[label]) > len(entry.boxes[label]):
                problem = "boxes of one label on several lines of an image, taken together"
                problems.add(problem, f"line {entry.line} {label!r}", dropped=False)
                entry.boxes[label] = every[label]
        entry.incomplete |= incomplete
        entry.elsewhere = every.keys() - entry.boxes.keys()
        for label in [name for name in entry.absent if name in entry.elsewhere or name in incomplete]:
            problem = "a label that is absent on one line and has a box on another of the same image"
            problems.add(problem, f"line {entry.line} {label!r}", unit=PARTS)
            entry.absent.remove(label)


class _Line:
    """One line while it is read. spelled: see `entries_of`; it grows."""

    def __init__(
        self, number: int, name: str, row: dict, problems: ProblemCounter, spelled: dict[str, str], context: int
    ):
        self.row, self.problems, self.spelled, self.context = row, problems, spelled, context
        self.entry, self.where = Entry(number, name), f"line {number}"

    def read(self, measure: Measure) -> Entry:
        row, entry = self.row, self.entry
        self._known(row, KEYS)
        boxes = self._list("boxes")
        if "image" in row:
            size = _size(row)
            entry.sized = size is not None
            entry.image, entry.size = measure(file_name_field(row, "image"), size, bool(boxes))
        elif any(row.get(key) for key in KEYS[3:-1]):
            raise InvalidRecord("boxes, a caption or questions without an image")
        for position, box in enumerate(boxes):
            self._read_part(f"box {position + 1}", self._box, box)
        entry.absent = [
            words for name in self._list("absent") if (words := self._read_part("absent", self._label, name))
        ]
        if both := [label for label in entry.absent if label in entry.boxes]:
            self.problems.add("a label that is both absent and has a box", f"{self.where} {both[0]!r}", unit=PARTS)
            entry.absent = [label for label in entry.absent if label not in both]
        if "caption" in row:
            self._read_part("caption", self._caption, row["caption"])
        if "grounding" in row:
            self._read_part("grounding", self._grounding, row["grounding"])
        for position, question in enumerate(self._list("questions")):
            self._read_part(f"question {position + 1}", self._question, question)
        if "conversation" in row:
            self._read_part("conversation", self._conversation, row["conversation"])
        if not (entry.boxes or entry.absent or entry.asked or entry.talked):
            raise InvalidRecord("a line with nothing to learn from")
        return entry

    def _read_part(self, part: str, read: Callable[[Any], Any], value: Any) -> Any:
        self.problems.saw(1, PARTS)
        try:
            return read(value)
        except InvalidRecord as error:
            self.problems.add(str(error), f"{self.where} {part}".strip(), unit=PARTS)
            return None

    def _known(self, row: dict, keys: tuple[str, ...], part: str = "") -> None:
        for key in row:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(keys)}"
                self.problems.add(
                    f"an unknown key {key!r}, which was not read ({hint})",
                    f"{self.where} {part}".strip(),
                    dropped=False,
                )

    def _list(self, key: str) -> list:
        if key not in self.row:
            return []
        return self._read_part("", lambda row: annotations.field(row, key, list), self.row) or []

    def _box(self, box: Any) -> None:
        label = self._label(annotations.field(box, "label", str))
        self._known(box, BOX_KEYS, "box")
        forms = [form for form in FORMS if form in box]
        try:
            if len(forms) != 1:
                raise InvalidRecord(f"a box {'with both' if forms else 'without one of'} 'xyxy' and 'xywh'")
            found = parse_box(box[forms[0]], self.entry.size, forms[0])
        except InvalidRecord:
            self.entry.incomplete.add(label)
            raise
        boxes = self.entry.boxes.setdefault(label, [])
        if found in boxes:
            self.problems.add("the same box twice, read once", f"{self.where} {label!r}", dropped=False)
            return
        boxes.append(found)
        if exceeds_image(box[forms[0]], self.entry.size, forms[0]):
            self.problems.add(OVER_EDGE, f"{self.where} {label!r}", dropped=False)

    def _label(self, given: Any) -> str:
        """The label in its first spelling in the file, without characters that would break a phrase or a list."""
        label = label_field({"label": given}, "label")
        if label != " ".join(given.split()):
            problem = "a label with a comma or brackets, read without them"
            self.problems.add(problem, f"{self.where} {given!r}", dropped=False)
        first = self.spelled.setdefault(label.casefold(), label)
        if first != label:
            problem = "a label that differs from an earlier one in capitals alone, read as that one"
            self.problems.add(problem, f"{self.where} {label!r}, {first!r}", dropped=False)
        return first

    def _caption(self, given: Any) -> None:
        several = given if isinstance(given, list) else [given]
        captions = [remove_image_mark(_words(caption, "caption"), may=False) for caption in several]
        if not captions:
            raise InvalidRecord("an empty 'caption'")
        self.entry.asked.append(QuestionAnswer("caption", references=tuple(captions)))

    def _grounding(self, given: Any) -> None:
        text, phrases = self._phrases(_words(given, "grounding"), every=True)
        if not phrases:
            raise InvalidRecord("a 'grounding' without any {label}")
        self.entry.asked.append(QuestionAnswer("grounding", phrases, answer=text))

    def _question(self, given: Any) -> None:
        question = remove_image_mark(annotations.text_field(given, "question"))
        if not question:
            raise InvalidRecord("an empty 'question'")
        self._known(given, QUESTION_KEYS, "question")
        if ("answer" in given) == ("answers" in given):
            raise InvalidRecord("a question without one of 'answer' and 'answers'")
        answers = given["answers"] if "answers" in given else [given["answer"]]
        if not isinstance(answers, list) or not answers:
            raise InvalidRecord("an 'answers' of the wrong type")
        words = tuple(_words(answer, "answer") for answer in answers)
        self.entry.asked.append(QuestionAnswer("vqa", question=question, references=words))

    def _conversation(self, given: Any) -> None:
        if not isinstance(given, list):
            raise InvalidRecord("a 'conversation' of the wrong type")
        if not given:
            raise InvalidRecord("an empty conversation")
        question_answers = []
        for turn in given:
            asked = remove_image_mark(
                annotations.field(turn, "user", str), may=self.entry.image is not None and not question_answers
            )
            answered = remove_image_mark(annotations.field(turn, "assistant", str), may=False)
            self._known(turn, TURN_KEYS, "conversation")
            if not asked or not answered:
                raise InvalidRecord("a turn without words")
            text, phrases = self._phrases(answered, every=False)
            question_answers.append(QuestionAnswer("chat", phrases, asked, text, verbatim=not phrases))
        self.entry.talked = split_conversation(question_answers, self.context)
        if len(self.entry.talked) > 1:
            self.problems.add(
                LONG_CONVERSATION, f"{self.where} conversation of {len(question_answers)} turns", dropped=False
            )

    def _phrases(self, text: str, every: bool) -> tuple[str, tuple[Phrase, ...]]:
        """The text with `{}` for every `{label}`, and the phrases. every: other words in braces are a problem; else
        they are text, unless similar to a label."""
        boxes, phrases = self.entry.boxes, []

        def insert(match: re.Match) -> str:
            words = " ".join(match[1].split())
            label = self.spelled.get(" ".join(words.replace(",", " ").split()).casefold(), words)
            if label in boxes:
                phrases.append(Phrase(words, tuple(boxes[label])))
                return "{}"
            near = difflib.get_close_matches(label, boxes, 1)
            if every or near:
                hint = f", did you mean {{{near[0]}}}?" if near else ""
                raise InvalidRecord(f"a {{label}} in a text that no box has{hint}")
            return match[0]

        out = _NAMED.sub(insert, text)
        if phrases and out.count("{}") != len(phrases):
            raise InvalidRecord("a text with {} in addition to a {label}")
        return (out if phrases else text), tuple(phrases)


def _words(given: Any, name: str = "label") -> str:
    if not isinstance(given, str):
        raise InvalidRecord(f"a {name!r} of the wrong type")
    words = " ".join(given.split())
    if not words:
        raise InvalidRecord(f"an empty {name!r}")
    return words


def _size(row: dict) -> tuple[int, int] | None:
    """The "size" of a line: width and height of the upright image in pixels."""
    if "size" not in row:
        return None
    size = row["size"]
    if (
        not isinstance(size, list)
        or len(size) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size)
    ):
        raise InvalidRecord("a 'size' that is not [width, height]")
    return size[0], size[1]
