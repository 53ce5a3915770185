"""TextCaps: captions that read the text in the image. Card: datasets/textcaps.md.

{"data": [{"image_id": "4be9f385ac8a883e", "image_width": 1024, "caption_id": 4, "caption_str": "The billboard ...",
           "reference_strs": ["A billboard ...", ...], "set_name": "train", ...}, ...]}       one row a caption
"""

from __future__ import annotations

from pathlib import Path

from minigptv2.data.annotations import InvalidRecord, file_name_field, records_of, text_field
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, image_in, names_in, require, require_records
from minigptv2.data.json_files import rows_of
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://textvqa.org/textcaps/dataset/"
LAYOUT: Layout = {
    "train": ("TextCaps_0.1_train.json", "train_images/"),
    "val": ("TextCaps_0.1_val.json", "train_images/"),
    "test": ("TextCaps_0.1_test.json", "test_images/"),
}
COUNTS = {"train": 109765, "val": 3166, "test": 3289}
_FILES = "https://dl.fbaipublicfiles.com/textvqa"
DOWNLOADS = {f"{_FILES}/data/textcaps/{LAYOUT[split][0]}": "" for split in LAYOUT} | {
    f"{_FILES}/images/train_val_images.zip": "",
    f"{_FILES}/images/test_images.zip": "",
}


class TextCaps:
    """train has one record per caption; val one per image, with all captions as references; test has no captions.

    root: holds the JSON files, `train_images/` (of train and val) and `test_images/`.
    """

    def __init__(self, root: str, split: str = "train"):
        self.problems = ProblemCounter()
        file, self.folder = require(root, LAYOUT, split, PAGE)
        self.name, there = file.name, names_in(self.folder)
        captions: dict[str, list[str]] = {}  # image -> its captions
        for position, row in enumerate(rows_of(file, "data")):
            try:
                image = image_in(self.folder, there, f"{file_name_field(row, 'image_id')}.jpg")
                caption = text_field(row, "caption_str") if split != "test" else ""
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} row {position}")
                continue
            captions.setdefault(image, []).extend([caption] if caption else [])
        self.records = records_of(captions, apart=split == "train")
        require_records(len(self.records), file, self.problems)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        image, captions = self.records[index]
        question_answer = QuestionAnswer("caption", references=captions)
        return Sample(Path(self.folder, image), (0, 0), (question_answer,), f"{self.name} image {Path(image).stem}")
