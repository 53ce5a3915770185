"""GQA: questions made from scene graphs of Visual Genome's images, one answer each. Card: datasets/gqa.md.

The balanced questions are one JSON object of a gigabyte, question number -> question, which is parsed incrementally:

    "142457": {"question": "On which side is the shelf, the right or the left?", "imageId": "2320168", "answer": "left",
               "fullAnswer": "The shelf is on the left of the image.", "isBalanced": true, ...}

The flat list of the published evaluation is read, too: [{"image": "n161313.jpg", "question": "...", "answer": "..."}].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from sys import intern

from minigptv2.data.annotations import InvalidRecord, Row, file_name_field, text_field
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, image_in, names_in, require, require_records
from minigptv2.data.json_files import is_list, iter_json_list, iter_json_object
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
LAYOUT: Layout = {
    split: ((f"{split}_balanced_questions.json", f"questions/{split}_balanced_questions.json"), "images/")
    for split in ("train", "val", "testdev", "test")
}
COUNTS = {"train": 943000, "val": 132062, "testdev": 12578, "test": 95336}
DOWNLOADS = {
    "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip": "questions/",
    "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip": "",
}


class Gqa:
    """One record per question; the test split has no answers. root: holds the JSON files and `images/`."""

    def __init__(self, root: str, split: str = "train"):
        self.problems = ProblemCounter()
        file, folder = require(root, LAYOUT, split, PAGE)
        self.folder, self.name, there = folder, file.name, names_in(folder)
        self.rows: list[tuple[str, str, str, str]] = []  # image, question's number, its words, answer
        for row in read_rows(file, answered=split != "test"):
            try:
                if row.problem:
                    raise InvalidRecord(row.problem)
                image = intern(image_in(folder, there, str(row.image)))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} question {row.key or row.number}")
                continue
            self.rows.append((image, row.key or str(row.number), row.question, intern("".join(row.answers))))
        require_records(len(self.rows), file, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        image, number, question, answer = self.rows[index]
        question_answer = QuestionAnswer("vqa", question=question, answer=answer)
        return Sample(Path(self.folder, image), (0, 0), (question_answer,), f"{self.name} question {number}")


def read_rows(file: Path, answered: bool = True) -> Iterator[Row]:
    """Each question of a file, as a `Row`. answered: whether it has answers. Raises UserError for a damaged file."""
    rows = (("", row) for row in iter_json_list(file)) if is_list(file) else iter_json_object(file)
    for number, (key, row) in enumerate(rows):
        try:
            words, answers = text_field(row, "question"), (text_field(row, "answer"),) if answered else ()
            image = file_name_field(row, "image") if "image" in row else f"{file_name_field(row, 'imageId')}.jpg"
        except InvalidRecord as error:
            yield Row(number, key, problem=str(error))
            continue
        yield Row(number, key, image, words, answers)
