"""Benchmark: COCO captions, every image with its five. CIDEr, BLEU, ROUGE-L.

A row is an image: of an official file, a place in its list `images` (without that list, in the order in which the
captions name the images first); of Karpathy's, a place among the images of the split. From 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigptv2.boxes import without_markup
from minigptv2.data.annotations import InvalidRecord, corrupt_file_error, field, file_name_field, read_json, text_field
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.readers.coco_caption import LAYOUT, PAGE, PARTS
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

_COCO_NAME = re.compile(r"(?:COCO_\w+2\d{3}_)?(\d{12})\.jpg")
METRICS = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L")


class CocoCaptionBenchmark:
    """root: holds the captions as the card of the data set says; images: COCO's images, where they are not in root.
    Where the file's list `images` has file names, they say which image it is, not its number. captions: the name of the
    file of captions below root, where it has another. instruction: asked of every image.
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
        self.folder, self.images = Path(images or root), CocoImages(images or root)
        content = read_json(self.file)
        if not isinstance(content, dict):
            raise corrupt_file_error(self.file, "it is no object with captions")
        karpathy = split in PARTS and not captions
        self.captions = self._karpathy(content, PARTS[split]) if karpathy else self._official(content)

    def items(self) -> list[Question]:
        out = []
        for number, (image, path, captions) in enumerate(self.captions):
            if captions:
                out.append(Question(number, path, (0, 0), self.instruction, str(path), tuple(captions), key=str(image)))
        return out

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        said = {
            i.index: " ".join(without_markup(strip_special_tokens(predictions[i.index].text)).split()) for i in items
        }
        invalid = {i.index for i in items if not said[i.index] and predictions[i.index].finish_reason != "missing"}
        references = {i.index: list(i.truth) for i in items}
        outcomes, corpus = caption_scores(said, references, METRICS)
        cases = [
            ScoredAnswer(
                i.index,
                i.image,
                self.instruction,
                said[i.index],
                "; ".join(i.truth),
                score=cider_fraction(outcomes["CIDEr"][i.index]),
            )
            for i in items
        ]
        return Scored(len(items), frozenset(invalid), outcomes, corpus, cases, score_description=CIDER_FRACTION)

    def _official(self, content: dict) -> list[tuple[int, Path, list[str]]]:
        """The number of each image in the file, where it lies, and its captions."""
        captions: dict[int, list[str]] = {}
        rows = content.get("annotations")
        if not isinstance(rows, list):
            raise corrupt_file_error(self.file, "it has no list 'annotations'")
        for place, row in enumerate(rows):
            try:
                captions.setdefault(field(row, "image_id", int), []).append(text_field(row, "caption"))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.file.name} annotation {place}")
        if not isinstance(content.get("images"), list):
            return [(image, self.images.find(image), words) for image, words in captions.items()]
        out: list[tuple[int, Path, list[str]]] = []
        for place, row in enumerate(content["images"]):
            image, path, kind = -1, Path(), ""
            try:
                image = field(row, "id", int)
                path = self._path(row, image)
                kind = "" if image in captions else "an image without captions, or there twice"
            except InvalidRecord as error:
                kind = str(error)
            words = captions.pop(image, [])
            out.append((image, path, [] if kind else words))
            if kind:
                self._leave_out(place, kind)
        for image in captions:
            self.problems.add("captions of an image that is not in 'images'", f"{self.file.name} image {image}")
        return out

    def _path(self, row: dict, number: int) -> Path:
        """Where the image of this row of `images` lies: by its file name, a COCO one in any of its releases."""
        if "file_name" not in row:
            return self.images.find(number)
        name = file_name_field(row, "file_name")
        known = _COCO_NAME.fullmatch(name)
        return self.images.find(int(known[1])) if known else image_path(self.folder, name)

    def _karpathy(self, content: dict, parts: tuple[str, ...]) -> list[tuple[int, Path, list[str]]]:
        rows = content.get("images")
        if not isinstance(rows, list):
            raise corrupt_file_error(self.file, "it has no list 'images'")
        out: list[tuple[int, Path, list[str]]] = []
        for row in rows:
            if not isinstance(row, dict) or row.get("split") not in parts:
                continue
            try:
                sentences = [text_field(s, "raw") for s in field(row, "sentences", list)]
                if not sentences:
                    raise InvalidRecord("an image without captions")
                number = field(row, "cocoid", int)
                out.append((number, self.images.find(number), sentences))
            except InvalidRecord as error:
                self._leave_out(len(out), str(error))
                out.append((-1, Path(), []))
        return out

    def _leave_out(self, number: int, kind: str) -> None:
        self.problems.add(kind, f"{self.file.name} image {number}")
        self.excluded[number] = kind
