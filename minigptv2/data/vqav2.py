"""VQA v2: questions about COCO pictures, each answered by ten people.

Source: https://visualqa.org/download.html, CC BY 4.0; Goyal et al., arXiv 1612.00837. A question and its annotation:

    {"image_id": 6818, "question": "What color is the wall?", "question_id": 6818000}
    {"image_id": 6818, "question_id": 6818000, "answers": [{"answer": "white", "answer_confidence": "yes", ...}, ...]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from minigptv2.data import disk
from minigptv2.data.coco_pictures import CocoPictures
from minigptv2.data.dataset import Problems
from minigptv2.sample import Exchange, Sample

PAGE = "https://visualqa.org/download.html"
_S3 = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
LAYOUT: disk.Layout = {
    "train": ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"),
    "val": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions.json",),
    "test": ("v2_OpenEnded_mscoco_test2015_questions.json",),
}
COUNTS = {"train": 443757, "val": 214354, "test-dev": 107394, "test": 447793}
DOWNLOADS = {
    f"{_S3}/v2_Questions_Train_mscoco.zip": "", f"{_S3}/v2_Annotations_Train_mscoco.zip": "",
    f"{_S3}/v2_Questions_Val_mscoco.zip": "", f"{_S3}/v2_Annotations_Val_mscoco.zip": "",
    f"{_S3}/v2_Questions_Test_mscoco.zip": "",
}  # fmt: skip


class VqaV2:
    """One record a question. references: all ten answers, the most common first; none in the test splits."""

    page, layout = PAGE, LAYOUT

    def __init__(self, root: str, split: str = "train", images: str = ""):
        """root: holds the JSON files. images: holds the COCO pictures, where that is not root."""
        self.problems = Problems()
        files = disk.require(root, self.layout, split, self.page)
        pictures = CocoPictures(images or root)
        self.name = files[0].name
        answers = _answers(files[1], self.problems) if len(files) > 1 else None
        self.rows: list[tuple[int, int, str, tuple[str, ...]]] = []  # picture, question, words, answers
        for place, row in enumerate(disk.rows_of(disk.read_json(files[0]), "questions", files[0])):
            where = f"{self.name} question {place}"
            try:
                picture, number, words = int(row["image_id"]), int(row["question_id"]), str(row["question"]).strip()
            except (KeyError, TypeError, ValueError):
                self.problems.add("a question without image_id, question_id or question", where)
                continue
            given = () if answers is None else answers.get(number, ())
            if not words:
                self.problems.add("an empty question", where)
            elif answers is not None and not given:
                self.problems.add("a question without an answer", f"{self.name} question_id {number}")
            elif pictures.find(picture) is None:
                self.problems.add("a picture that is not on disk", f"COCO {picture}")
            else:
                self.rows.append((picture, number, words, given))
        self.pictures = pictures
        disk.require_records(len(self.rows), str(files[0]), self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        picture, number, words, answers = self.rows[index]
        exchange = Exchange("vqa", question=words, references=answers)
        return Sample(self.pictures.find(picture), (0, 0), (exchange,), f"{self.name}:{number}")


def _answers(file: Path, problems: Problems) -> dict[int, tuple[str, ...]]:
    """Question number -> its answers."""
    out = {}
    for place, row in enumerate(disk.rows_of(disk.read_json(file), "annotations", file)):
        try:
            out[int(row["question_id"])] = by_frequency(str(given["answer"]) for given in row["answers"])
        except (KeyError, TypeError, ValueError):
            problems.add("an annotation without question_id or answers", f"{file.name} annotation {place}")
    return out


def by_frequency(answers: Iterable[str]) -> tuple[str, ...]:
    """All answers that are not empty, with repetition, the most common first; of equal count, the first given."""
    counts = Counter(disk.shared(words) for answer in answers if (words := answer.strip()))
    return tuple(answer for answer, count in counts.most_common() for _ in range(count))
