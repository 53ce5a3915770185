"""VQA v2: questions about COCO pictures, each answered by ten people. Card: datasets/vqav2.md.

A question and its annotation, from two files:

    {"image_id": 6818, "question": "What color is the wall?", "question_id": 6818000}
    {"image_id": 6818, "question_id": 6818000, "answers": [{"answer": "white", "answer_confidence": "yes", ...}, ...]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from sys import intern

from minigptv2.data.annotations import Malformed, damaged, field, read_json, words_of
from minigptv2.data.coco_pictures import CocoPictures
from minigptv2.data.dataset import Problems
from minigptv2.data.layout import Layout, require, require_records
from minigptv2.sample import Exchange, Sample

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
    f"{_FILES}Questions_Train_mscoco.zip": "", f"{_FILES}Annotations_Train_mscoco.zip": "",
    f"{_FILES}Questions_Val_mscoco.zip": "", f"{_FILES}Annotations_Val_mscoco.zip": "",
    f"{_FILES}Questions_Test_mscoco.zip": "",
}  # fmt: skip


class VqaV2:
    """One record a question. Its references are all ten answers, the most common first; test splits have none.

    root: holds the JSON files. images: holds COCO's pictures, where that is not root.
    """

    page, layout = PAGE, LAYOUT

    def __init__(self, root: str, split: str = "train", images: str = ""):
        self.problems = Problems()
        files = require(root, self.layout, split, self.page)
        self.pictures = CocoPictures(images or root)
        self.name = files[0].name
        answers = None if len(files) == 1 else _answers(files[1], self.problems)
        self.rows: list[tuple[int, int, str, tuple[str, ...]]] = []  # picture, question, its words, its answers
        for place, row in enumerate(rows_of(files[0], "questions")):
            try:
                picture, number = field(row, "image_id", int), field(row, "question_id", int)
                words = words_of(row, "question")
                if answers is not None and not answers.get(number):
                    raise Malformed("a question without an answer")
                if picture not in self.pictures:
                    raise Malformed("a picture that is not on the disk")
            except Malformed as error:
                self.problems.add(str(error), f"{self.name} row {place}")
                continue
            self.rows.append((picture, number, words, answers[number] if answers else ()))
        require_records(len(self.rows), files[0], self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        picture, number, words, answers = self.rows[index]
        exchange = Exchange("vqa", question=words, references=answers)
        return Sample(self.pictures.find(picture), (0, 0), (exchange,), f"{self.name} question {number}")


def rows_of(file: Path, key: str) -> list:
    """The list that a JSON file holds under a key."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise damaged(file, f"it has no list {key!r}")
    return content[key]


def _answers(file: Path, problems: Problems) -> dict[int, tuple[str, ...]]:
    """Question number -> its answers."""
    found = {}
    for place, row in enumerate(rows_of(file, "annotations")):
        try:
            found[field(row, "question_id", int)] = by_frequency(answers_of(row))
        except Malformed as error:
            problems.add(f"an annotation with {error}", f"{file.name} row {place}", dropped=False)
    return found


def answers_of(row: dict) -> Iterator[str]:
    """The words of a row's answers. Raises Malformed."""
    for answer in field(row, "answers", list):
        yield field(answer, "answer", str)


def by_frequency(answers: Iterable[str]) -> tuple[str, ...]:
    """All answers that are not empty, with repetition, the most common first; of equal count, the first given."""
    counts = Counter(intern(words) for answer in answers if (words := " ".join(answer.split())))
    return tuple(answer for answer, count in counts.most_common() for _ in range(count))
