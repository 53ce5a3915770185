"""VSR: true or false statements about the spatial relation of two objects in a COCO image. Card: datasets/vsr.md.

JSON Lines, one statement per line:

    {"image": "000000372029.jpg", "caption": "The dog is on the surfboard.", "label": 1, "relation": "on", ...}
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from minigptv2.bundled import document
from minigptv2.data.annotations import InvalidRecord, check_choice, field, text_field
from minigptv2.data.coco_images import CocoImages, missing
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout
from minigptv2.data.json_files import read_json_lines
from minigptv2.errors import UserError
from minigptv2.files import is_file
from minigptv2.sample import QuestionAnswer, Sample
from minigptv2.tasks import STATEMENT

PAGE = "https://github.com/cambridgeltl/visual-spatial-reasoning"
VARIANTS, SPLITS = ("random", "zeroshot"), ("train", "dev", "test")
FOLDERS = ("splits/", "data/splits/", "")  # of the folders random/ and zeroshot/, below the root
PARTS = {f"{variant} {split}": (variant, split) for variant in VARIANTS for split in SPLITS}
LAYOUT: Layout = {
    part: (tuple(f"{folder}{variant}/{split}.jsonl" for folder in FOLDERS),) for part, (variant, split) in PARTS.items()
}
COUNTS = {
    "random train": 7680,
    "random dev": 1097,
    "random test": 2195,
    "zeroshot train": 3489,
    "zeroshot dev": 340,
    "zeroshot test": 1222,
}
DOWNLOADS: dict[str, str] = {}  # the files are in the page's repository, in data/splits
OPTIONS = {part: {"variant": variant, "split": split} for part, (variant, split) in PARTS.items()}


class VSR:
    """One sample per statement, answered "true" or "false".

    root: the folder with `splits/zeroshot/test.jsonl`, or with `zeroshot/test.jsonl`. variant: "zeroshot" or "random",
    the way the data was split. split: "train", "dev" or "test". images: the folder of the images, "" for `root`.
    records: line number from 0, image, statement, whether it is true, relation. excluded: line number and reason
    of every line that was left out.
    """

    RENAMED: ClassVar[dict[str, str]] = {"kind": "variant"}

    def __init__(self, root: str, variant: str = "zeroshot", split: str = "test", images: str = ""):
        self.variant = check_choice("variant", variant, VARIANTS)
        self.split = check_choice("split", split, SPLITS)
        self.problems = ProblemCounter()
        self.excluded: list[tuple[int, str]] = []
        files = [Path(root, name) for name in LAYOUT[f"{variant} {split}"][0]]
        self.file = next((f for f in files if is_file(f)), None)
        if self.file is None:
            raise UserError(
                f"{root} holds no {variant}/{split}.jsonl.",
                f"Looked for {', '.join(map(str, files))}.",
                f"See {document('datasets/vsr.md', PAGE)} for the layout.",
            )
        coco = CocoImages(images or root)
        self.records: list[tuple[int, Path, str, bool, str]] = []
        for number, row in read_json_lines(self.file):
            try:
                if isinstance(row, InvalidRecord):
                    raise row
                name = Path(field(row, "image", str)).stem
                if not (name.isascii() and name.isdigit() and len(name) <= 12):
                    raise InvalidRecord("an 'image' that is not a COCO number")
                label = field(row, "label", int)
                if label not in (0, 1):
                    raise InvalidRecord("a 'label' other than 0 and 1")
                relation = row.get("relation") if isinstance(row.get("relation"), str) else ""
                self.records.append((number, coco.find(int(name)), text_field(row, "caption"), label == 1, relation))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.file.name} line {number}")
                self.excluded.append((number, str(error)))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        number, image, statement, true, _ = self.records[index]
        question_answer = QuestionAnswer(
            "vqa", question=STATEMENT.format(statement), answer="true" if true else "false"
        )
        return Sample(image, (0, 0), (question_answer,), f"vsr {self.variant} {self.split} line {number}")

    def missing_images(self) -> list[Path]:
        """Expected paths of images that are not on the disk. Their statements are kept."""
        return missing(record[1] for record in self.records)
