"""Visual Genome's regions: boxes with short descriptions by people. Card: datasets/visual_genome.md.

region_descriptions.json is one list of images; sizes and addresses are in image_data.json:

    {"id": 1, "regions": [{"region_id": 1382, "image_id": 1, "phrase": "the clock is green in colour",
                           "x": 421, "y": 57, "width": 82, "height": 139}, ...]}
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import ClassVar

import numpy as np

from minigptv2.boxes import Box
from minigptv2.bundled import document
from minigptv2.data.annotations import InvalidRecord, check_choice, field, parse_box, phrase_field, size_field
from minigptv2.data.coco_images import missing
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, names_in
from minigptv2.data.json_files import corrupt_file_error, iter_json_list, read_json
from minigptv2.errors import UserError
from minigptv2.files import is_dir, is_file
from minigptv2.sample import Phrase, QuestionAnswer, Sample

PAGE = "https://homes.cs.washington.edu/~ranjay/visualgenome/"
FOLDERS = ("VG_100K", "VG_100K_2", "")
REGIONS, IMAGES = "region_descriptions.json", "image_data.json"
LAYOUT: Layout = {"regions": (REGIONS, IMAGES)}
COUNTS: dict[str, int] = {}  # published only as 5.4 million
DOWNLOADS: dict[str, str] = {}  # linked from the page; its addresses were not checked
OPTIONS = {"regions": {"max_area": 0, "images": ""}}


class VisualGenome:
    """One sample per region, in the order of the file.

    root: the folder of the two JSON files. task: "refer" asks for the box of the words, "identify" for the words of
    the box. images: the folder with `VG_100K` and `VG_100K_2`, "" for `root`. max_area: only regions below
    this area, in square pixels, are used, as OFA and MiniGPT-v2 did; 0: all. too_large: number of regions left out so.

    The 5.4 million regions are held in arrays: 36 bytes of numbers each, and their words.
    """

    RENAMED: ClassVar[dict[str, str]] = {"below_area": "max_area"}

    def __init__(self, root: str, task: str = "refer", images: str = "", max_area: int = 16384):
        self.task = check_choice("task", task, ("refer", "identify"))
        self.problems, self.too_large = ProblemCounter(), 0
        files = Path(root, REGIONS), Path(root, IMAGES)
        for file in files:
            if not is_file(file):
                raise UserError(
                    f"{file} is missing.",
                    f"The regions need {REGIONS} and {IMAGES}.",
                    f"See {document('datasets/visual_genome.md', PAGE)} for the layout.",
                )
        self.images = Path(images or root)
        self._read_images(files[1])
        self._read_regions(files[0], max_area)

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        words = self._words[self._ends[index] : self._ends[index + 1]].decode()
        size, path = self._images[self._image[index]]
        question_answer = QuestionAnswer(self.task, (Phrase(words, (Box(*map(float, self._boxes[index])),)),))
        return Sample(Path(path), size, (question_answer,), f"visual_genome region {self._region[index]}")

    def missing_images(self) -> list[Path]:
        """Expected paths of images that are not on the disk. Their regions are kept."""
        return missing(Path(self._images[number][1]) for number in np.unique(self._image))

    def _read_images(self, file: Path) -> None:
        """Fills _images, (size, path) of each image, and _number, from image_id to its index in _images."""
        rows = read_json(file)
        if not isinstance(rows, list):
            raise corrupt_file_error(file, "it is not a list of images")
        listed = [(f, names_in(self.images / f)) for f in FOLDERS if is_dir(self.images / f)]
        self._images: list[tuple[tuple[int, int], str]] = []
        self._number: dict[int, int] = {}
        for position, row in enumerate(rows):
            try:
                number, size = field(row, "image_id", int), size_field(row)
                name = f"{number}.jpg"
                folder = next((f for f, names in listed if name in names), FOLDERS[0])
                self._number[number] = len(self._images)
                self._images.append((size, os.path.join(self.images, folder, name)))
            except InvalidRecord as error:
                self.problems.add(str(error), f"{file.name} image {position}")

    def _read_regions(self, file: Path, max_area: int) -> None:
        boxes, image, region, ends, words = array("f"), array("i"), array("q"), array("q", [0]), bytearray()
        for position, item in enumerate(iter_json_list(file)):
            regions = item.get("regions") if isinstance(item, dict) else None
            if not isinstance(regions, list):
                self.problems.add("an image without a list 'regions'", f"{file.name} image {position}")
                continue
            for row in regions:
                try:
                    identity, number = field(row, "region_id", int), field(row, "image_id", int)
                    if number not in self._number:
                        raise InvalidRecord(f"an 'image_id' that {IMAGES} lacks")
                    at = self._number[number]
                    xywh = [field(row, side, (int, float)) for side in ("x", "y", "width", "height")]
                    box, phrase = parse_box(xywh, self._images[at][0]), phrase_field(row, "phrase")
                    if not abs(identity) < 1 << 63:
                        raise InvalidRecord("a 'region_id' of more than 64 bits")
                    encoded = phrase.encode(errors="replace")  # half of a surrogate pair cannot be encoded
                except InvalidRecord as error:
                    where = row.get("region_id", "?") if isinstance(row, dict) else "?"
                    self.problems.add(str(error), f"{file.name} image {position} region {where}")
                    continue
                if max_area and xywh[2] * xywh[3] >= max_area:
                    self.too_large += 1
                    continue
                boxes.extend(box.xyxy)
                image.append(at)
                region.append(identity)
                words += encoded
                ends.append(len(words))
        self._boxes = np.frombuffer(boxes, np.float32).reshape(-1, 4)  # [regions, 4] xyxy, pixels
        self._image, self._region = np.frombuffer(image, np.int32), np.frombuffer(region, np.int64)
        self._ends, self._words = np.frombuffer(ends, np.int64), bytes(words)
        del self._number
