"""Captions of web images in tar shards of img2dataset: LAION, CC3M, SBU. Cards: datasets/laion.md, cc3m.md, sbu.md.

A sample is 000012.jpg with its caption in 000012.txt, or in 000012.json; parquet files have a column instead:

    {"caption": "burning candle on the background of the aquarium with small fish .", "similarity": 0.31, ...}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from minigptv2.data.annotations import InvalidRecord, Unwanted, text_field
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout
from minigptv2.data.shards import LAYOUT_OF_SHARDS, OPTIONS_OF_SHARDS, Record, Shards, changed
from minigptv2.errors import UserError
from minigptv2.sample import QuestionAnswer, Sample

PAGE = {
    "laion": "https://laion.ai/blog/laion-400-open-dataset/",
    "cc3m": "https://ai.google.com/research/ConceptualCaptions/",
    "sbu": "https://www.cs.rice.edu/~vo9/sbucaptions/",
}
LAYOUT: Layout = LAYOUT_OF_SHARDS
COUNTS: dict[str, int] = {}  # many images of the lists are gone
DOWNLOADS: dict[str, str] = {}  # lists of addresses, to be downloaded one by one
OPTIONS = OPTIONS_OF_SHARDS


class WebCaptions:
    """One sample per image with its caption.

    shards: tar or parquet files, as `data.shards.Shards` takes them, with index, images and image. caption: the
    JSON field or column of the caption; "" is the .txt and, without one, the field "caption". words: minimum and
    maximum number of words of a caption. exclude: a regular expression; captions that contain a match are left out.
    min_values: minimum of JSON fields, such as {similarity: 0.3}. Records left out by these are counted in `problems`.
    """

    RENAMED: ClassVar[dict[str, str]] = {"picture": "image", "without": "exclude", "least": "min_values"}

    def __init__(
        self,
        shards: str | list[str],
        caption: str = "",
        words: tuple[int, int] = (1, 200),
        exclude: str = "",
        min_values: dict[str, float] | None = None,
        index: str = "",
        images: str = "",
        image: str = "",
    ):
        self.caption, self.min_values = caption, dict(min_values or {})
        try:
            self.min_words, self.max_words = (int(n) for n in words)
            self.exclude = re.compile(exclude) if exclude else None
        except (TypeError, ValueError, re.error) as error:
            raise UserError(
                f"The filter of captions cannot be understood: {error}.",
                "words is [min, max]; exclude is a regular expression of Python.",
                "Correct it.",
            ) from error
        purpose = f"captions-{caption}-{self.min_words}-{self.max_words}-{exclude}-{sorted(self.min_values.items())}"
        self.shards = Shards(shards, self._judge, purpose, index, images, image)
        self.problems: ProblemCounter = self.shards.problems

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Sample:
        record = self.shards[index]
        try:
            question_answer = QuestionAnswer("caption", answer=self._caption(record))
        except InvalidRecord as error:
            raise changed(record.key, error) from error
        return Sample(record.image, (0, 0), (question_answer,), record.key)

    def _caption(self, record: Record) -> str:
        """Words with single spaces between them. Raises InvalidRecord."""
        if self.caption or not record.text.strip():
            return text_field(record.fields, self.caption or "caption")
        return " ".join(record.text.split())

    def _judge(self, record: Record) -> Iterable[str]:
        caption = self._caption(record)
        count = len(caption.split())
        if count < self.min_words:
            raise Unwanted(f"a caption of fewer than {self.min_words} words")
        if count > self.max_words:
            raise Unwanted(f"a caption of more than {self.max_words} words")
        if self.exclude and self.exclude.search(caption):
            raise Unwanted("a caption that `exclude` leaves out")
        for name, minimum in self.min_values.items():
            value = record.fields.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidRecord(f"no number {name!r}")
            if not value >= minimum:
                raise Unwanted(f"{name!r} under {minimum}")
        return ()
