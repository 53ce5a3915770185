"""A-OKVQA: questions about COCO images with ten answers, four choices and three reasons. Card: datasets/aokvqa.md.

{"split": "train", "image_id": 299207, "question_id": "22MexNkBPpdZGX6sxbxVBH", "question": "What is the man by the
 bags awaiting?", "choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3,
 "direct_answers": ["ride", "ride", "bus", ...], "rationales": ["A train would not be on the street, ...", ...]}
"""

from __future__ import annotations

from minigptv2.data.annotations import NOT_ON_DISK, InvalidRecord, by_frequency, field, strings, text_field
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import corrupt_file_error, read_json
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://allenai.org/project/a-okvqa/home"
LAYOUT: Layout = {split: (f"aokvqa_v1p0_{split}.json",) for split in ("train", "val", "test")}
COUNTS = {"train": 17056, "val": 1145, "test": 6702}
DOWNLOADS = {"https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz": ""}
WHY = "Why?"


class AOkVqa:
    """One record per question. Its references are the ten direct answers; the test split has none.

    root: holds the JSON files. images: the folder of COCO's images, "" for root. rationale: a second turn asks
    why. The answer is then the most common one, as the reasons belong to one answer.
    """

    def __init__(self, root: str, split: str = "train", images: str = "", rationale: bool = False):
        self.problems = ProblemCounter()
        (file,) = require(root, LAYOUT, split, PAGE)
        self.images, self.rationale = CocoImages(images or root), rationale
        self.name = file.name
        self.rows: list[
            tuple[int, str, QuestionAnswer, tuple[str, ...]]
        ] = []  # image, question, its words, the reasons
        content = read_json(file)
        if not isinstance(content, list):
            raise corrupt_file_error(file, "it is not a list of questions")
        for position, row in enumerate(content):
            try:
                self.rows.append(self._row(row, split))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} row {position}")
        require_records(len(self.rows), file, self.problems)

    def _row(self, row, split: str) -> tuple[int, str, QuestionAnswer, tuple[str, ...]]:
        image, question = field(row, "image_id", int), text_field(row, "question")
        answers = () if split == "test" else by_frequency(strings(row, "direct_answers"))
        reasons = by_frequency(strings(row, "rationales")) if self.rationale and split != "test" else ()
        if split != "test" and not answers:
            raise InvalidRecord("a question without an answer")
        if image not in self.images:
            raise InvalidRecord(NOT_ON_DISK)
        question_answer = QuestionAnswer("vqa", question=question, references=answers)
        return image, str(row.get("question_id", "")), question_answer, reasons

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        image, number, question_answer, reasons = self.rows[index]
        question_answers = (question_answer,)
        if reasons:
            first = QuestionAnswer("vqa", question=question_answer.question, answer=question_answer.references[0])
            question_answers = first, QuestionAnswer("chat", question=WHY, references=reasons)
        return Sample(self.images.find(image), (0, 0), question_answers, f"{self.name} question {number}")
