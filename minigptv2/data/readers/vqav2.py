"""VQA v2: questions about COCO images, each answered by ten people. Card: datasets/vqav2.md.

A question and its annotation, from two files:

    {"image_id": 6818, "question": "What color is the wall?", "question_id": 6818000}
    {"image_id": 6818, "question_id": 6818000, "answers": [{"answer": "white", "answer_confidence": "yes", ...}, ...]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigptv2.data.annotations import (
    NOT_ON_DISK,
    InvalidRecord,
    Row,
    answers_of,
    by_frequency,
    field,
    optional_text,
    text_field,
    unique,
)
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import rows_of
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://visualqa.org/download.html"
LAYOUT: Layout = {
    "train": ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"),
    "val": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions.json",),
    "test": ("v2_OpenEnded_mscoco_test2015_questions.json",),
}
COUNTS = {"train": 443757, "val": 214354, "test-dev": 107394, "test": 447793}
_FILES = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_"
DOWNLOADS = {
    f"{_FILES}Questions_Train_mscoco.zip": "",
    f"{_FILES}Annotations_Train_mscoco.zip": "",
    f"{_FILES}Questions_Val_mscoco.zip": "",
    f"{_FILES}Annotations_Val_mscoco.zip": "",
    f"{_FILES}Questions_Test_mscoco.zip": "",
}
NO_ANSWER = "a question without an answer"


class VqaV2:
    """One record per question. Its references are all ten answers, the most common first; test splits have none.

    root: holds the JSON files. images: the folder of COCO's images, "" for root.
    """

    page, layout = PAGE, LAYOUT

    def __init__(self, root: str, split: str = "train", images: str = ""):
        self.problems = ProblemCounter()
        files = require(root, self.layout, split, self.page)
        self.images = CocoImages(images or root)
        self.name = files[0].name
        self.rows: list[tuple[int, str, str, tuple[str, ...]]] = []  # image, question, its words, its answers
        for row in read_rows(files[0], files[1] if len(files) > 1 else None, self.problems):
            answers, problem = by_frequency(row.answers), row.problem
            if not problem and len(files) > 1 and not answers:
                problem = NO_ANSWER
            if not problem and row.image not in self.images:
                problem = NOT_ON_DISK
            if problem:
                self.problems.add(problem, f"{self.name} row {row.number}")
            else:
                self.rows.append((row.image, row.key, row.question, answers))
        require_records(len(self.rows), files[0], self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        image, number, words, answers = self.rows[index]
        question_answer = QuestionAnswer("vqa", question=words, references=answers)
        return Sample(self.images.find(image), (0, 0), (question_answer,), f"{self.name} question {number}")


def read_rows(questions: Path, annotations: Path | None, problems: ProblemCounter) -> Iterator[Row]:
    """Each question as a `Row`, with answers where a file of annotations is given.

    problems: counts annotations that cannot be read; their questions have no answer.
    """
    answers = {} if annotations is None else _answers(annotations, problems)
    seen: set[int] = set()
    for position, row in enumerate(rows_of(questions, "questions")):
        try:
            number, image = field(row, "question_id", int), field(row, "image_id", int)
            words = text_field(row, "question")
            if not unique(seen, number):
                raise InvalidRecord("a second question of the same 'question_id'")
            if annotations is not None and number not in answers:
                raise InvalidRecord(NO_ANSWER)
        except InvalidRecord as error:
            yield Row(position, problem=str(error))
            continue
        texts, answer_type = answers.get(number, ((), ""))
        yield Row(position, str(number), image, words, texts, answer_type=answer_type)


def _answers(file: Path, problems: ProblemCounter) -> dict[int, tuple[tuple[str, ...], str]]:
    """question_id -> its answers and their type."""
    found: dict[int, tuple[tuple[str, ...], str]] = {}
    for position, row in enumerate(rows_of(file, "annotations")):
        try:
            number = field(row, "question_id", int)
            if number in found:
                raise InvalidRecord("a second annotation of the same 'question_id'")
            found[number] = answers_of(row), optional_text(row, "answer_type")
        except InvalidRecord as error:
            problems.add(f"an annotation with {error}", f"{file.name} row {position}", dropped=False)
    return found
