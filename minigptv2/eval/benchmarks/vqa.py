"""Benchmarks in the format of VQA: VQA v2, OK-VQA, VizWiz. The official accuracy against all ten answers.

A row is a question of the questions file, from 0 (VizWiz: of its only file).
"""

from __future__ import annotations

from minigptv2.data.coco_images import CocoImages
from minigptv2.data.readers import okvqa, vizwiz, vqav2
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Question, ScoringRules, annotation_files, image_folder, image_path
from minigptv2.eval.benchmarks.short_answer import ShortAnswerBenchmark
from minigptv2.eval.metrics.vqa import vqa_accuracy
from minigptv2.eval.published_results import published_results
from minigptv2.tasks import EVALUATION


class _TenAnswers(ShortAnswerBenchmark):
    """truth: (all answers, the answer's type or "")."""

    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float]:
        return self._by_type(item, vqa_accuracy(answer, item.truth[0], rules.scoring))

    def wrong(self, item: Question) -> dict[str, float]:
        return self._by_type(item, 0.0)

    def expected(self, item: Question) -> str:
        return ", ".join(dict.fromkeys(item.truth[0]))

    @staticmethod
    def _by_type(item: Question, value: float) -> dict[str, float]:
        return {"accuracy": value} | ({f"accuracy, {item.truth[1]}": value} if item.truth[1] else {})


class VqaV2Benchmark(_TenAnswers):
    """root: holds the questions and annotations, as the data set's card says. images: COCO's images, if not in root.
    questions, annotations: the names of these files below root, if not the official ones."""

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
            instruction = EVALUATION[self.prompt].replace("{}", row.question)
            truth = row.answers, row.answer_type
            self.rows.append(
                Question(row.number, path, (0, 0), instruction, str(path), truth, words=row.question, key=row.key)
            )


class OkVqaBenchmark(VqaV2Benchmark):
    """The same with the files of OK-VQA."""

    reader, prompt = okvqa, "okvqa"

    def __init__(self, root: str, split: str = "val", images: str = "", questions: str = "", annotations: str = ""):
        super().__init__(root, split, images, questions, annotations)
        self.published = published_results(self.name) if not questions else {}


class VizWizBenchmark(_TenAnswers):
    """root: holds `val.json`, or `Annotations/val.json`, and the folder `val/` of images, or `images` names it."""

    def __init__(self, root: str, split: str = "val", images: str = ""):
        (file,) = annotation_files(root, vizwiz.LAYOUT, split, vizwiz.PAGE)
        super().__init__(f"vizwiz {split}", (file,))
        self.published = published_results(self.name)
        folder = image_folder(root, images, split)
        for row, image in self.usable(vizwiz.read_rows(file), lambda row: image_path(folder, str(row.image))):
            instruction, truth = EVALUATION["vizwiz"].replace("{}", row.question), (row.answers, row.answer_type)
            self.rows.append(
                Question(row.number, image, (0, 0), instruction, row.key, truth, words=row.question, key=row.key)
            )
