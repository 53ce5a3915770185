"""GRIT-20M: captions of web images, their noun chunks and referring expressions bound to boxes by a machine.

Card: datasets/grit.md. Tar shards of img2dataset with a JSON a sample, or parquet files with the same columns:

    {"caption": "a wire hanger with a paper cover that reads we heart our customers", "width": 1024, "height": 693,
     "noun_chunks": [[19, 32, 0.0196, 0.3105, 0.9622, 0.9603, 0.7929], ...], "ref_exps": [[19, 66, ...], ...]}

Each item: [start, end) in the caption, x1, y1, x2, y2 as shares of the image's sides, the machine's confidence.
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
COUNTS: dict[str, int] = {}  # nobody gets all of the 20.5 million images
DOWNLOADS: dict[str, str] = {}  # a list of addresses, each to be asked for
OPTIONS = OPTIONS_OF_SHARDS
_LISTS = {"refer": "ref_exps", "identify": "ref_exps", "grounding": "noun_chunks"}


class Grit:
    """One sample an image.

    shards: tar or parquet files, as `data.shards.Shards` takes them, with index, images and image. task: "refer"
    asks for the box of each expression that has only one, "identify" for the words of each box, side by side;
    "grounding" takes the caption with the boxes of its noun chunks. min_score: of the machine's confidence, 0..1.
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
            size, exchanges = self._exchanges(record, [])
        except InvalidRecord as error:
            raise changed(record.key, error) from error
        return Sample(record.image, size, exchanges, f"grit {record.key}", self.task != "grounding")

    def _judge(self, record: Record) -> Iterable[str]:
        wrong: list[str] = []
        self._exchanges(record, wrong)
        return wrong

    def _exchanges(self, record: Record, wrong: list[str]) -> tuple[tuple[int, int], tuple[QuestionAnswer, ...]]:
        """The size and what is asked. wrong: gets what is wrong with single items. Raises InvalidRecord."""
        size = size_field({side: _whole(record.fields.get(side)) for side in ("width", "height")})
        caption = (
            record.text if "caption" not in record.fields and record.text else field(record.fields, "caption", str)
        )
        spans = self._spans(record.fields, caption, size, wrong)
        if self.task == "grounding":
            return size, (_grounded(caption, spans),)
        named = [
            (" ".join(strip_markup_chars(caption[start:end]).split()), boxes) for (start, end), boxes in spans.items()
        ]
        named = [(words, boxes) for words, boxes in named if words]
        times = Counter(words for words, _ in named)
        exchanges = []
        for words, boxes in named:
            if self.task == "identify":
                exchanges += [QuestionAnswer("identify", (Phrase(words, (box,)),)) for box in boxes]
            elif len(boxes) == times[words] == 1:
                exchanges.append(QuestionAnswer("refer", (Phrase(words, tuple(boxes)),)))
        if not exchanges:
            raise Unwanted("no expression for one box")
        return size, tuple(exchanges)

    def _spans(
        self, fields: dict[str, Any], caption: str, size: tuple[int, int], wrong: list[str]
    ) -> dict[tuple[int, int], list[Box]]:
        """The boxes of every stretch of the caption, in its order."""
        name = _LISTS[self.task]
        items = fields.get(name)
        if isinstance(items, str):  # as some tools write lists into columns
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
                wrong.append(str(error))
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
    """The caption with a place for each stretch; of stretches that overlap, the first and longest."""
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
    """Columns of floats hold whole numbers as 19.0. Raises InvalidRecord for what is no whole number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number // 1:
        raise InvalidRecord("a size or place that is no whole number")
    return int(number)
