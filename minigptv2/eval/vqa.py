"""Benchmarks in the form of VQA: VQA v2, OK-VQA, VizWiz. The official accuracy against all ten answers.

A row is a question of the questions file, counted from 0 (VizWiz: of its one file).
"""

from __future__ import annotations

from minigptv2.data import okvqa, vizwiz, vqav2
from minigptv2.data.annotations import Malformed, damaged, field, name_of, read_json, words_of
from minigptv2.data.coco_pictures import CocoPictures
from minigptv2.data.vqav2 import rows_of
from minigptv2.errors import UserError
from minigptv2.eval import metrics
from minigptv2.eval.benchmark import Item, Rules, minigpt_v2
from minigptv2.eval.short_answers import ShortAnswers, annotation_files, image_path, picture_folder, unique
from minigptv2.tasks import EVALUATION

_PAPER = "arXiv 2310.09478v1"


class _TenAnswers(ShortAnswers):
    """truth: (all answers, the kind of answer or "")."""

    def judge(self, item: Item, answer: str, rules: Rules) -> dict[str, float]:
        return self._by_kind(item, metrics.vqa_accuracy(answer, item.truth[0], rules.scoring))

    def wrong(self, item: Item) -> dict[str, float]:
        return self._by_kind(item, 0.0)

    def wanted(self, item: Item) -> str:
        return ", ".join(dict.fromkeys(item.truth[0]))

    @staticmethod
    def _by_kind(item: Item, value: float) -> dict[str, float]:
        return {"accuracy": value} | ({f"accuracy, {item.truth[1]}": value} if item.truth[1] else {})


class VqaV2(_TenAnswers):
    """root: holds the questions and annotations, as the card of the data set says. images: COCO's pictures, where they
    are not in root. questions, annotations: names of these files below root, where they have others."""

    reader, prompt = vqav2, "vqav2"

    def __init__(self, root: str, split: str = "val", images: str = "", questions: str = "", annotations: str = ""):
        reader = self.reader
        if bool(questions) != bool(annotations):
            raise UserError(
                "Only one of questions and annotations is given.", "They name the two files below root.", "Give both."
            )
        files = annotation_files(root, reader.LAYOUT, split, reader.PAGE, (questions, annotations))
        if len(files) < 2:
            raise UserError(
                f"The split {split!r} has no published answers.", "Accuracy compares with answers.", "Try split=val."
            )
        name = split if not questions else questions.removesuffix(".json")
        super().__init__(f"{self.prompt} {name}", files)
        answers, pictures, seen = self._answers(files[1]), CocoPictures(images or root), set()
        for place, row in enumerate(rows_of(files[0], "questions")):
            try:
                number, picture, words = field(row, "question_id", int), field(row, "image_id", int), _words(row)
                if not unique(seen, number):
                    raise Malformed("a second question of the same 'question_id'")
                if number not in answers:
                    raise Malformed("a question without an answer")
            except Malformed as error:
                self.leave_out(place, error, f"{files[0].name} row {place}")
                continue
            path = pictures.find(picture)
            asked = EVALUATION[self.prompt].replace("{}", words)
            self.rows.append(
                Item(place, path, (0, 0), asked, str(path), answers[number], words=words, key=str(number))
            )

    def _answers(self, file) -> dict[int, tuple[tuple[str, ...], str]]:
        """Question number -> all answers as they are written, and the kind of answer."""
        found = {}
        for place, row in enumerate(rows_of(file, "annotations")):
            try:
                number = field(row, "question_id", int)
                if number in found:
                    raise Malformed("a second annotation of the same 'question_id'")
                found[number] = _given(row), row.get("answer_type") if isinstance(row.get("answer_type"), str) else ""
            except Malformed as error:
                self.problems.add(f"an annotation with {error}", f"{file.name} row {place}")
        return found


class OkVqa(VqaV2):
    """As VQA v2, with the files of OK-VQA."""

    reader, prompt = okvqa, "okvqa"

    def __init__(self, root: str, split: str = "val", images: str = "", questions: str = "", annotations: str = ""):
        super().__init__(root, split, images, questions, annotations)
        self.published = {"accuracy": minigpt_v2(56.9, 55.9, _PAPER)} if split == "val" and not questions else {}


class VizWiz(_TenAnswers):
    """root: holds `val.json`, or `Annotations/val.json`, and the folder `val/` of pictures, or `images` names it."""

    def __init__(self, root: str, split: str = "val", images: str = ""):
        (file,) = annotation_files(root, vizwiz.LAYOUT, split, vizwiz.PAGE)
        super().__init__(f"vizwiz {split}", (file,))
        self.published = {"accuracy": minigpt_v2(30.3, 42.4, _PAPER)} if split == "val" else {}
        folder, rows = picture_folder(root, images, split), read_json(file)
        if not isinstance(rows, list):
            raise damaged(file, "it is no list of questions")
        for place, row in enumerate(rows):
            try:
                name, words, answers = name_of(row, "image"), _words(row), _given(row)
                image = image_path(folder, name)
                kind = row.get("answer_type") if isinstance(row.get("answer_type"), str) else ""
            except Malformed as error:
                self.leave_out(place, error, f"{file.name} row {place}")
                continue
            asked = EVALUATION["vizwiz"].replace("{}", words)
            self.rows.append(Item(place, image, (0, 0), asked, name, (answers, kind), words=words, key=name))


def _words(row: dict) -> str:
    return words_of(row, "question")


def _given(row: dict) -> tuple[str, ...]:
    """All answers as they are written: the official accuracy counts each, empty ones too."""
    answers = tuple(field(answer, "answer", str) for answer in field(row, "answers", list))
    if not answers:
        raise Malformed("no answer")
    return answers
