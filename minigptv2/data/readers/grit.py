"""GRIT-20M: captions of web images with machine-made boxes of their noun chunks and referring expressions.

Card: datasets/grit.md. Tar shards of img2dataset with a JSON a sample, or parquet files with the same columns:

    {"caption": "a wire hanger with a paper cover that reads we heart our customers", "width": 1024, "height": 693,
     "noun_chunks": [[19, 32, 0.0196, 0.3105, 0.9622, 0.9603, 0.7929], ...], "ref_exps": [[19, 66, ...], ...]}

Each item: [start, end) in the caption, x1, y1, x2, y2 as fractions of the image's sides, confidence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from minigptv2.boxes import Box, strip_markup_chars
from minigptv2.data.annotations import InvalidRecord, Unwanted, check_choice, field, parse_box, size_field
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout
from minigptv2.data.shards import LAYOUT_OF_SHARDS, OPTIONS_OF_SHARDS, Record, Shards, changed
from minigptv2.sample import Phrase, QuestionAnswer, Sample

PAGE = "https://github.com/microsoft/unilm/tree/master/kosmos-2"
LAYOUT: Layout = LAYOUT_OF_SHARDS
COUNTS: dict[str, int] = {}  # many of the 20.5 million images are gone
DOWNLOADS: dict[str, str] = {}  # a list of addresses, to be downloaded one by one
OPTIONS = OPTIONS_OF_SHARDS
_LISTS = {"refer": "ref_exps", "identify": "ref_exps", "grounding": "noun_chunks"}


class Grit:
    """One sample per image.

    shards: tar or parquet files, as `data.shards.Shards` takes them, with index, images and image. task: "refer"
    asks for the box of each expression that has exactly one, "identify" for the words of each box, both as independent
    questions; "grounding" gives the caption with the boxes of its noun chunks. min_score: minimum confidence, 0 to 1.
    """

    RENAMED: ClassVar[dict[str, str]] = {"picture": "image", "least_score": "min_score"}

    def __init__(
        self,
        shards: str | list[str],
        task: str = "grounding",
        index: str = "",
        images: str = "",
        image: str = "",
        min_score: float = 0.0,
    ):
        self.task = check_choice("task", task, tuple(_LISTS))
        self.min_score = float(min_score)
        purpose = f"grit-{task}-{self.min_score:g}"
        self.shards = Shards(shards, self._judge, purpose, index, images, image)
        self.problems: ProblemCounter = self.shards.problems

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Sample:
        record = self.shards[index]
        try:
            size, question_answers = self._question_answers(record, [])
        except InvalidRecord as error:
            raise changed(record.key, error) from error
        return Sample(record.image, size, question_answers, f"grit {record.key}", self.task != "grounding")

    def _judge(self, record: Record) -> Iterable[str]:
        item_problems: list[str] = []
        self._question_answers(record, item_problems)
        return item_problems

    def _question_answers(
        self, record: Record, item_problems: list[str]
    ) -> tuple[tuple[int, int], tuple[QuestionAnswer, ...]]:
        """The size and the questions. item_problems: collects the problems of single items. Raises InvalidRecord."""
        size = size_field({side: _whole(record.fields.get(side)) for side in ("width", "height")})
        caption = (
            record.text if "caption" not in record.fields and record.text else field(record.fields, "caption", str)
        )
        spans = self._spans(record.fields, caption, size, item_problems)
        if self.task == "grounding":
            return size, (_grounded(caption, spans),)
        named = [
            (" ".join(strip_markup_chars(caption[start:end]).split()), boxes) for (start, end), boxes in spans.items()
        ]
        named = [(words, boxes) for words, boxes in named if words]
        times = Counter(words for words, _ in named)
        question_answers = []
        for words, boxes in named:
            if self.task == "identify":
                question_answers += [QuestionAnswer("identify", (Phrase(words, (box,)),)) for box in boxes]
            elif len(boxes) == times[words] == 1:
                question_answers.append(QuestionAnswer("refer", (Phrase(words, tuple(boxes)),)))
        if not question_answers:
            raise Unwanted("no expression for one box")
        return size, tuple(question_answers)

    def _spans(
        self, fields: dict[str, Any], caption: str, size: tuple[int, int], item_problems: list[str]
    ) -> dict[tuple[int, int], list[Box]]:
        """The boxes of each span [start, end) of the caption, in its order."""
        name = _LISTS[self.task]
        items = fields.get(name)
        if isinstance(items, str):  # some tools write lists into columns as text
            try:
                items = json.loads(items)
            except (ValueError, RecursionError):
                items = None
        if not isinstance(items, list):
            raise InvalidRecord(f"no list {name!r}")
        width, height = size
        spans: dict[tuple[int, int], list[Box]] = {}
        for item in items:
            try:
                if not isinstance(item, list | tuple) or len(item) < 6:
                    raise InvalidRecord(f"an item of {name!r} that is not six or seven numbers")
                start, end = _whole(item[0]), _whole(item[1])
                if not 0 <= start < end <= len(caption) or not caption[start:end].strip():
                    raise InvalidRecord(f"an item of {name!r} outside the caption")
                parse_box(list(item[2:6]), (1, 1), "xyxy")  # four numbers, and on the image
                x1, y1, x2, y2 = item[2:6]
                box = parse_box((x1 * width, y1 * height, x2 * width, y2 * height), size, "xyxy")
            except InvalidRecord as error:
                item_problems.append(str(error))
                continue
            score = item[6] if len(item) > 6 else None
            if isinstance(score, int | float) and score < self.min_score:
                continue
            boxes = spans.setdefault((start, end), [])
            if box not in boxes:
                boxes.append(box)
        if not spans:
            raise InvalidRecord(f"no usable item in {name!r}")
        return dict(sorted(spans.items()))


def _grounded(caption: str, spans: dict[tuple[int, int], list[Box]]) -> QuestionAnswer:
    """The caption with `{}` for each span that has boxes; of overlapping spans, the first and longest."""
    if "{" in caption or "}" in caption:
        raise InvalidRecord("a caption with curly brackets")
    if strip_markup_chars(caption) != caption:
        raise InvalidRecord("a caption with markup of phrases or boxes")
    answer, phrases, at = "", [], 0
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= at:
            phrases.append(Phrase(" ".join(caption[start:end].split()), tuple(spans[start, end])))
            answer += caption[at:start] + "{}"
            at = end
    return QuestionAnswer("grounding", tuple(phrases), answer=" ".join((answer + caption[at:]).split()))


def _whole(number: Any) -> Any:
    """The number as an int: columns of floats hold 19.0. Raises InvalidRecord where it is not a whole number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number // 1:
        raise InvalidRecord("a size or position that is not a whole number")
    return int(number)
