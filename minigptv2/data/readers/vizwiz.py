"""VizWiz-VQA: images that blind people took, and what they asked about them. Card: datasets/vizwiz.md.

{"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another image I hope it is a better one.",
 "answers": [{"answer": "unanswerable", "answer_confidence": "yes"}, ...], "answer_type": "...", "answerable": 0}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigptv2.data.annotations import (
    InvalidRecord,
    Row,
    answers_of,
    by_frequency,
    file_name_field,
    optional_text,
    text_field,
)
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, image_in, names_in, require, require_records
from minigptv2.data.json_files import corrupt_file_error, read_json
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://vizwiz.org/tasks-and-datasets/vqa/"
LAYOUT: Layout = {
    split: ((f"{split}.json", f"Annotations/{split}.json"), f"{split}/") for split in ("train", "val", "test")
}
COUNTS = {"train": 20523, "val": 4319, "test": 8000}
_FILES = "https://vizwiz.cs.colorado.edu/VizWiz_final"
DOWNLOADS = {f"{_FILES}/vqa_data/Annotations.zip": ""} | {f"{_FILES}/images/{split}.zip": "" for split in LAYOUT}


class VizWiz:
    """One record per question. Its references are the ten answers; the test split has none.

    root: holds `train.json`, ... and the folders `train/`, ... of the images.
    """

    def __init__(self, root: str, split: str = "val"):
        self.problems = ProblemCounter()
        file, self.folder = require(root, LAYOUT, split, PAGE)
        self.name, there = file.name, names_in(self.folder)
        self.rows: list[tuple[int, str, str, tuple[str, ...]]] = []  # row, image, question, answers
        for row in read_rows(file, answered=split != "test"):
            answers = by_frequency(row.answers)
            try:
                if row.problem or split != "test" and not answers:
                    raise InvalidRecord(row.problem or "a question without an answer")
                image = image_in(self.folder, there, str(row.image))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} row {row.number}")
                continue
            self.rows.append((row.number, image, row.question, answers))
        require_records(len(self.rows), file, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        position, image, question, answers = self.rows[index]
        question_answer = QuestionAnswer("vqa", question=question, references=answers)
        return Sample(Path(self.folder, image), (0, 0), (question_answer,), f"{self.name} row {position}")


def read_rows(file: Path, answered: bool = True) -> Iterator[Row]:
    """Each question of a file as a `Row`; key and image are the image's name. answered: whether it has answers."""
    content = read_json(file)
    if not isinstance(content, list):
        raise corrupt_file_error(file, "it is not a list of questions")
    for position, row in enumerate(content):
        try:
            name, words = file_name_field(row, "image"), text_field(row, "question")
            answers = answers_of(row) if answered else ()
        except InvalidRecord as error:
            yield Row(position, problem=str(error))
            continue
        yield Row(position, name, name, words, answers, answer_type=optional_text(row, "answer_type"))
