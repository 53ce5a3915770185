"""LLaVA's instructions: conversations, descriptions and reasoning about COCO images. Card: datasets/llava.md.

[{"id": "000000442786", "image": "000000442786.jpg", "conversations": [
    {"from": "human", "value": "What do you see happening in this image?\\n<image>"},
    {"from": "gpt", "value": "The scene depicts a lively plaza area ..."}, ...]}, ...]
"""

from __future__ import annotations

import re
from typing import Any

from minigptv2.data.annotations import InvalidRecord, field
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import iter_json_list
from minigptv2.data.turns import IN_PARTS, split_conversation, without_place
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://llava-vl.github.io/"
LAYOUT: Layout = {
    "conversation": ("conversation_58k.json",),
    "detail": ("detail_23k.json",),
    "reasoning": ("complex_reasoning_77k.json",),
}
COUNTS = {"conversation": 56681, "detail": 23240, "reasoning": 76643}
DOWNLOADS: dict[str, str] = {}  # the page leads to the hub that keeps them
CONTEXT = 4096  # tokens, of the published model
_NUMBER = re.compile(r"(?:.*[/\\])?(?:COCO_\w+_)?0*(\d{1,12})(?:\.jpg)?")


class Llava:
    """One record a conversation, every word of it as it was written, but for the mark of the image's place.

    root: holds the JSON files. images: holds COCO's images, where that is not root. context: of the model, in tokens:
    a longer conversation, by estimate, becomes several records.
    """

    page, layout = PAGE, LAYOUT

    def __init__(self, root: str, split: str = "conversation", images: str = "", context: int = CONTEXT):
        self.problems = ProblemCounter()
        (file,) = require(root, self.layout, split, self.page)
        self.images, self.name = CocoImages(images or root), file.name
        self.rows: list[tuple[str, int, tuple[QuestionAnswer, ...]]] = []  # place in the file, image, what was said
        for place, row in enumerate(iter_json_list(file)):
            try:
                image = _image(row)
                said = exchanges_of(row)
                if image not in self.images:
                    raise InvalidRecord("an image that is not on the disk")
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} row {place}")
                continue
            parts = split_conversation(said, context)
            if len(parts) == 1:
                self.rows.append((f"row {place}", image, said))
                continue
            self.problems.add(IN_PARTS, f"{self.name} row {place} of {len(said)} turns", dropped=False)
            self.rows += [(f"row {place} part {n}", image, part) for n, part in enumerate(parts, 1)]
        require_records(len(self.rows), file, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        place, image, said = self.rows[index]
        return Sample(self.images.find(image), (0, 0), said, f"{self.name} {place}")


def _image(row: Any) -> int:
    """COCO's number of the image; rows without a name of the file have it as their id."""
    name = "image" if isinstance(row, dict) and "image" in row else "id"
    match = _NUMBER.fullmatch(str(field(row, name, (str, int))))
    if match is None:
        raise InvalidRecord("an 'image' that names no image of COCO")
    return int(match[1])


def exchanges_of(row: Any) -> tuple[QuestionAnswer, ...]:
    """The pairs of question and answer of a conversation, verbatim. Raises InvalidRecord where they are no pairs."""
    turns = field(row, "conversations", list)
    if not turns or len(turns) % 2:
        raise InvalidRecord("a conversation that is no pairs of question and answer")
    said = []
    for asked, answered in zip(turns[::2], turns[1::2]):
        if field(asked, "from", str) != "human" or field(answered, "from", str) != "gpt":
            raise InvalidRecord("a conversation in which two turns of one speaker follow each other")
        question = without_place(field(asked, "value", str), may=not said)
        answer = without_place(field(answered, "value", str), may=False)
        if not question or not answer:
            raise InvalidRecord("a turn without words")
        said.append(QuestionAnswer("chat", question=question, answer=answer, verbatim=True))
    return tuple(said)
