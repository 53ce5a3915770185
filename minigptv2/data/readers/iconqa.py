"""IconQA, the part with choices in words: questions about diagrams from school. Card: datasets/iconqa.md.

A folder a question, with `image.png` and `data.json`:

    {"question": "What time is shown? Answer by choosing.", "choices": ["6:00", "12:05"], "answer": 0,
     "ques_type": "choose_txt", "grade": "...", "label": "..."}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigptv2.data.annotations import InvalidRecord, Row, field, find_image, strings, text_field
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, names_in, require, require_records
from minigptv2.data.json_files import read_json
from minigptv2.errors import UserError
from minigptv2.files import is_dir
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://iconqa.github.io/"
LAYOUT: Layout = {
    split: ((f"iconqa_data/iconqa/{split}/choose_txt/", f"iconqa/{split}/choose_txt/", f"{split}/choose_txt/"),)
    for split in ("train", "val", "test")
}
COUNTS = {"train": 18946, "val": 6316, "test": 6316}
DOWNLOADS = {"https://iconqa2021.s3.us-west-1.amazonaws.com/iconqa_data.zip": ""}


class IconQa:
    """One record per question, in the order of their numbers; the answer is one of the choices."""

    def __init__(self, root: str, split: str = "val"):
        self.problems = ProblemCounter()
        (self.folder,) = require(root, LAYOUT, split, PAGE)
        self.split = split
        self.rows: list[tuple[str, QuestionAnswer]] = []  # folder, what was asked
        for row in read_rows(self.folder):
            try:
                if row.problem:
                    raise InvalidRecord(row.problem)
                find_image(self.folder / row.key, "image.png")
            except InvalidRecord as error:
                self.problems.add(str(error), f"{split} {row.key}")
                continue
            self.rows.append((row.key, QuestionAnswer("vqa", question=row.question, answer=row.answers[0])))
        require_records(len(self.rows), self.folder, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        name, question_answer = self.rows[index]
        return Sample(Path(self.folder, name, "image.png"), (0, 0), (question_answer,), f"iconqa {self.split} {name}")


def read_rows(folder: Path) -> Iterator[Row]:
    """Each question's folder in the order of their numbers, as a `Row`; key: its name. image: below `folder`."""
    names = sorted(names_in(folder), key=lambda name: (len(name), name))
    for number, name in enumerate(name for name in names if is_dir(folder / name)):
        try:
            row = _read(folder / name / "data.json")
            choices, answer, words = strings(row, "choices"), field(row, "answer", int), text_field(row, "question")
            if not choices or not all(choice.strip() for choice in choices):
                raise InvalidRecord("a 'choices' that is not a list of texts")
            if not 0 <= answer < len(choices):
                raise InvalidRecord("an 'answer' that is none of the choices")
        except InvalidRecord as error:
            yield Row(number, name, problem=str(error))
            continue
        yield Row(number, name, f"{name}/image.png", words, (choices[answer],), choices)


def _read(file: Path) -> object:
    try:
        return read_json(file)
    except UserError as error:
        raise InvalidRecord("a data.json that cannot be read") from error
