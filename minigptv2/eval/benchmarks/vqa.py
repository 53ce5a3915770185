"""Benchmarks in the form of VQA: VQA v2, OK-VQA, VizWiz. The official accuracy against all ten answers.

A row is a question of the questions file, counted from 0 (VizWiz: of its one file).
"""

from __future__ import annotations

from minigptv2.data.coco_images import CocoImages
from minigptv2.data.readers import okvqa, vizwiz, vqav2
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Question, ScoringRules, annotation_files, image_folder, image_path, minigpt_v2
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.metrics.vqa import vqa_accuracy
from minigptv2.tasks import EVALUATION

_PAPER = "arXiv 2310.09478v1"


class _TenAnswers(ShortAnswerBenchmark):
    """truth: (all answers, the kind of answer or "")."""

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float]:
        return self._by_kind(item, vqa_accuracy(answer, item.truth[0], rules.scoring))

    def wrong(self, item: Question) -> dict[str, float]:
        return self._by_kind(item, 0.0)

    def expected(self, item: Question) -> str:
        return ", ".join(dict.fromkeys(item.truth[0]))

    @staticmethod
    def _by_kind(item: Question, value: float) -> dict[str, float]:
        return {"accuracy": value} | ({f"accuracy, {item.truth[1]}": value} if item.truth[1] else {})


class VqaV2Benchmark(_TenAnswers):
    """root: holds the questions and annotations, as the card of the data set says. images: COCO's images, where they
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
        coco = CocoImages(images or root)
        rows = vqav2.read_rows(files[0], files[1], self.problems)
        for row, path in self.usable(rows, lambda row: coco.find(row.image)):
            asked = EVALUATION[self.prompt].replace("{}", row.question)
            truth = row.answers, row.answer_type
            self.rows.append(
                Question(row.number, path, (0, 0), asked, str(path), truth, words=row.question, key=row.key)
            )


class OkVqaBenchmark(VqaV2Benchmark):
    """As VQA v2, with the files of OK-VQA."""

    reader, prompt = okvqa, "okvqa"

    def __init__(self, root: str, split: str = "val", images: str = "", questions: str = "", annotations: str = ""):
        super().__init__(root, split, images, questions, annotations)
        self.published = {"accuracy": minigpt_v2(56.9, 55.9, _PAPER)} if split == "val" and not questions else {}


class VizWizBenchmark(_TenAnswers):
    """root: holds `val.json`, or `Annotations/val.json`, and the folder `val/` of images, or `images` names it."""

    def __init__(self, root: str, split: str = "val", images: str = ""):
        (file,) = annotation_files(root, vizwiz.LAYOUT, split, vizwiz.PAGE)
        super().__init__(f"vizwiz {split}", (file,))
        self.published = {"accuracy": minigpt_v2(30.3, 42.4, _PAPER)} if split == "val" else {}
        folder = image_folder(root, images, split)
        for row, image in self.usable(vizwiz.read_rows(file), lambda row: image_path(folder, str(row.image))):
            asked, truth = EVALUATION["vizwiz"].replace("{}", row.question), (row.answers, row.answer_type)
            self.rows.append(
                Question(row.number, image, (0, 0), asked, row.key, truth, words=row.question, key=row.key)
            )
