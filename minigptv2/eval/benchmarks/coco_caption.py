"""Benchmark: COCO captions, five references for each image. CIDEr, BLEU, ROUGE-L.

A row is an image, numbered as `data.readers.coco_caption.read_rows` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minigptv2.boxes import without_markup
from minigptv2.data.annotations import InvalidRecord, Row
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.readers.coco_caption import LAYOUT, PAGE, read_rows
from minigptv2.eval.benchmark import (
    Prediction,
    Published,
    Question,
    Scored,
    ScoredAnswer,
    ScoringRules,
    annotation_files,
    image_path,
    strip_special_tokens,
)
from minigptv2.eval.metrics.captions import CIDER_FRACTION, caption_scores, cider_fraction
from minigptv2.tasks import EVALUATION

METRICS = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L")


class CocoCaptionBenchmark:
    """root: holds the captions as the data set's card says. images: COCO's images, if not in root. captions: the
    name of the file of captions below root, if not the official one; it has the official form. instruction: asked of
    every image.
    """

    max_new_tokens = 60
    needs = ("pycocoevalcap", "Java")

    def __init__(
        self,
        root: str,
        split: str = "test",
        images: str = "",
        captions: str = "",
        instruction: str = EVALUATION["coco_caption"],
    ):
        (self.file,) = annotation_files(root, LAYOUT, split, PAGE, (captions,))
        self.files, self.instruction = (self.file,), instruction
        self.name = f"coco_caption {captions.removesuffix('.json') or split}"
        self.problems, self.excluded = ProblemCounter(), {}
        self.published: Mapping[str, tuple[Published, ...]] = {}
        folder, coco = Path(images or root), CocoImages(images or root)
        self.rows: list[tuple[Row, Path]] = []
        for row in read_rows(self.file, split if not captions else "", self.problems):
            try:
                if row.problem:
                    raise InvalidRecord(row.problem)
                path = coco.find(row.image) if isinstance(row.image, int) else image_path(folder, row.image)
                self.rows.append((row, path))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.file.name} image {row.number}")
                self.excluded[row.number] = str(error)

    def items(self) -> list[Question]:
        return [
            Question(row.number, path, (0, 0), self.instruction, str(path), row.answers, key=row.key)
            for row, path in self.rows
        ]

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        texts = {
            i.index: " ".join(without_markup(strip_special_tokens(predictions[i.index].text)).split()) for i in items
        }
        invalid = {i.index for i in items if not texts[i.index] and predictions[i.index].finish_reason != "missing"}
        references = {i.index: list(i.truth) for i in items}
        outcomes, corpus = caption_scores(texts, references, METRICS)
        cases = [
            ScoredAnswer(
                i.index,
                i.image,
                self.instruction,
                texts[i.index],
                "; ".join(i.truth),
                score=cider_fraction(outcomes["CIDEr"][i.index]),
            )
            for i in items
        ]
        return Scored(len(items), frozenset(invalid), outcomes, corpus, cases, score_description=CIDER_FRACTION)
