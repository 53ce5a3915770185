"""COCO captions: five short descriptions of every image, by five people. Card: datasets/coco_caption.md.

Two forms are read. Karpathy's splits, which captioning is trained and measured on, and the official files:

    {"images": [{"cocoid": 391895, "split": "test", "sentences": [{"raw": "A man with a red helmet ..."}, ...]}, ...]}
    {"images": [...], "annotations": [{"image_id": 37777, "id": 99, "caption": "A small kitchen with ..."}, ...]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from minigptv2.data.annotations import InvalidRecord, check_choice, field, records_of, text_field
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import rows_of
from minigptv2.renames import present_value
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://cocodataset.org/#download"
_KARPATHY = ("dataset_coco.json", "annotations/dataset_coco.json")
LAYOUT: Layout = {split: (_KARPATHY,) for split in ("train", "val", "test")} | {
    split: ((f"annotations/captions_{split}.json", f"captions_{split}.json"),)
    for split in ("train2014", "val2014", "train2017", "val2017")
}
COUNTS = {
    "train": 566747,
    "val": 5000,
    "test": 5000,
    "train2014": 414113,
    "val2014": 40504,
    "train2017": 591753,
    "val2017": 5000,
}
DOWNLOADS = {
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip": "",
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip": "",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip": "",
}
PARTS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}  # of Karpathy's splits
GROUP_BY = ("caption", "image")


class CocoCaption:
    """Splits of training give one record a caption, the others one record an image with all captions as references.

    root: holds `dataset_coco.json` (splits train, val, test; its "restval" belongs to train) or
    `annotations/captions_<split>.json` (splits train2014, val2014, train2017, val2017). images: holds COCO's images,
    where that is not root. group_by: "caption" or "image" chooses otherwise.
    """

    RENAMED: ClassVar[dict[str, str]] = {"per": "group_by"}

    def __init__(self, root: str, split: str = "train", images: str = "", group_by: str = ""):
        self.problems = ProblemCounter()
        (file,) = require(root, LAYOUT, split, PAGE)
        self.images, self.name = CocoImages(images or root), file.name
        captions: dict[int, list[str]] = {}  # image -> its captions
        for image, caption in self._karpathy(file, split) if split in PARTS else self._official(file):
            captions.setdefault(image, []).append(caption)
        group_by = present_value(group_by or GROUP_BY[not split.startswith("train")], {"picture": "image"}, "group_by")
        check_choice("group_by", group_by, GROUP_BY)
        self.records = records_of(captions, apart=group_by == "caption")
        require_records(len(self.records), file, self.problems)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        image, captions = self.records[index]
        exchange = QuestionAnswer("caption", references=captions)
        return Sample(self.images.find(image), (0, 0), (exchange,), f"{self.name} image {image}")

    def _karpathy(self, file: Path, split: str) -> Iterator[tuple[int, str]]:
        for place, row in enumerate(rows_of(file, "images")):
            try:
                if field(row, "split", str) not in PARTS[split]:
                    continue
                image, sentences = self._on_disk(field(row, "cocoid", int)), field(row, "sentences", list)
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} image {place}")
                continue
            for number, sentence in enumerate(sentences):
                try:
                    yield image, text_field(sentence, "raw")
                except InvalidRecord as error:
                    self.problems.add(str(error), f"{self.name} image {place} sentence {number}")

    def _official(self, file: Path) -> Iterator[tuple[int, str]]:
        for place, row in enumerate(rows_of(file, "annotations")):
            try:
                yield self._on_disk(field(row, "image_id", int)), text_field(row, "caption")
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} annotation {place}")

    def _on_disk(self, image: int) -> int:
        if image not in self.images:
            raise InvalidRecord("an image that is not on the disk")
        return image
