"""Hateful Memes: whether an image together with the words on it is hateful. For evaluation only.
Card: datasets/hateful_memes.md.

    {"id": 8291, "img": "img/08291.png", "label": 1, "text": "white people is this a shooting range"}     one a line
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigptv2.data.annotations import InvalidRecord, Row, field, file_name_field, text_field, unique
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, image_in, names_in, require, require_records
from minigptv2.data.json_files import read_json_lines
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://hatefulmemeschallenge.com/"
COUNTS = {"train": 8500, "dev": 500, "dev_seen": 500, "dev_unseen": 540, "test_seen": 1000, "test_unseen": 2000}
LAYOUT: Layout = {split: (f"{split}.jsonl", "img/") for split in COUNTS}
DOWNLOADS: dict[str, str] = {}  # only after signing a licence
CHOICES = ("no", "yes")  # by label


class HatefulMemes:
    """One record per image. The question holds the words on it, to be put into the evaluation's prompt; the
    answer is "yes" or "no". root: holds `dev.jsonl`, ... and `img/`."""

    def __init__(self, root: str, split: str = "dev"):
        self.problems = ProblemCounter()
        file, folder = require(root, LAYOUT, split, PAGE)
        self.root, self.name, there = Path(root), file.name, {f"img/{name}" for name in names_in(folder)}
        self.rows: list[tuple[int, str, str, str]] = []  # line from 1, image, words, answer
        for row in read_rows(file):
            try:
                if row.problem:
                    raise InvalidRecord(row.problem)
                image = image_in(self.root, there, str(row.image))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} line {row.number + 1}")
                continue
            self.rows.append((row.number + 1, image, row.question, row.answers[0]))
        require_records(len(self.rows), file, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        number, image, words, answer = self.rows[index]
        question_answer = QuestionAnswer("chat", question=words, answer=answer)
        return Sample(self.root / image, (0, 0), (question_answer,), f"{self.name} line {number}")


def read_rows(file: Path) -> Iterator[Row]:
    """Each line of a file, as a `Row`. image: its name below the data set's folder."""
    seen: set[int | str] = set()
    for number, row in read_json_lines(file):
        try:
            if isinstance(row, InvalidRecord):
                raise row
            name, words, label = file_name_field(row, "img"), text_field(row, "text"), field(row, "label", int)
            if label not in (0, 1):
                raise InvalidRecord("a 'label' other than 0 and 1")
            if "id" in row and not unique(seen, field(row, "id", (int, str))):
                raise InvalidRecord("a second row of the same 'id'")
        except InvalidRecord as error:
            yield Row(number, problem=str(error))
            continue
        yield Row(number, str(row.get("id", "")), name, words, (CHOICES[label],), CHOICES)
