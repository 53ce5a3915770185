"""OCR-VQA: questions about the covers of books. Card: datasets/ocrvqa.md.

One object, number of the book -> its cover, its questions and their answers; split 1 is train, 2 val, 3 test:

    "761183272": {"imageURL": "...jpg", "questions": ["What is the title of this book?", "Who wrote this book?", ...],
                  "answers": ["Mom's Family Wall Calendar 2016", "Sandra Boynton", ...], "genre": "...", "split": 1}
"""

from __future__ import annotations

from pathlib import Path

from minigptv2.data.annotations import NOT_ON_DISK, InvalidRecord, field, strings
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, names_in, require, require_records
from minigptv2.data.json_files import iter_json_object
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://ocr-vqa.github.io/"
SPLITS = {"train": 1, "val": 2, "test": 3}
LAYOUT: Layout = {split: ("dataset.json", "images/") for split in SPLITS}
COUNTS: dict[str, int] = {}  # over all splits 1,002,146 questions about 207,572 covers; by split not published
DOWNLOADS: dict[str, str] = {}  # the page leads to a shared folder; its script loads the covers one by one
SUFFIXES = (".jpg", ".png", ".gif", ".jpeg")


class OcrVqa:
    """One record per question. root: holds `dataset.json` and `images/`, where a cover is `<number of the book>.jpg`,
    or has the suffix of its address."""

    def __init__(self, root: str, split: str = "train"):
        self.problems = ProblemCounter()
        file, self.folder = require(root, LAYOUT, split, PAGE)
        self.name, there = file.name, names_in(self.folder)
        self.rows: list[tuple[str, int, str, str]] = []  # image, number of the question, its words, answer
        for number, row in iter_json_object(file):
            try:
                if field(row, "split", int) != SPLITS[split]:
                    continue
                questions, answers = strings(row, "questions"), strings(row, "answers")
                if len(questions) != len(answers):
                    raise InvalidRecord("not as many answers as questions")
                image = next((number + suffix for suffix in SUFFIXES if number + suffix in there), None)
                if image is None:
                    raise InvalidRecord(NOT_ON_DISK)
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} book {number}")
                continue
            for position, (question, answer) in enumerate(zip(questions, answers)):
                if question.strip() and answer.strip():
                    self.rows.append((image, position, question.strip(), answer.strip()))
                else:
                    self.problems.add("an empty question or answer", f"{self.name} book {number} question {position}")
        require_records(len(self.rows), file, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        image, position, question, answer = self.rows[index]
        question_answer = QuestionAnswer("vqa", question=question, answer=answer)
        key = f"{self.name} book {Path(image).stem} question {position}"
        return Sample(Path(self.folder, image), (0, 0), (question_answer,), key)
