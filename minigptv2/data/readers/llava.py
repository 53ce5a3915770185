"""LLaVA's instructions: conversations, descriptions and reasoning about COCO images. Card: datasets/llava.md.

[{"id": "000000442786", "image": "000000442786.jpg", "conversations": [
    {"from": "human", "value": "What do you see happening in this image?\\n<image>"},
    {"from": "gpt", "value": "The scene depicts a lively plaza area ..."}, ...]}, ...]
"""

from __future__ import annotations

import re
from typing import Any

from minigptv2.data.annotations import NOT_ON_DISK, InvalidRecord, field
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import iter_json_list
from minigptv2.data.turns import LONG_CONVERSATION, remove_image_mark, split_conversation
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
    """One record per conversation, verbatim except for the mark of the image (`<image>`).

    root: holds the JSON files. images: the folder of COCO's images, "" for root. context: of the model, in tokens;
    a conversation that is longer, by estimate, is split into several records.
    """

    page, layout = PAGE, LAYOUT

    def __init__(self, root: str, split: str = "conversation", images: str = "", context: int = CONTEXT):
        self.problems = ProblemCounter()
        (file,) = require(root, self.layout, split, self.page)
        self.images, self.name = CocoImages(images or root), file.name
        self.rows: list[tuple[str, int, tuple[QuestionAnswer, ...]]] = []  # row in the file, image, turns
        for position, row in enumerate(iter_json_list(file)):
            try:
                image = _image(row)
                turns = question_answers_of(row)
                if image not in self.images:
                    raise InvalidRecord(NOT_ON_DISK)
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} row {position}")
                continue
            parts = split_conversation(turns, context)
            if len(parts) == 1:
                self.rows.append((f"row {position}", image, turns))
                continue
            self.problems.add(LONG_CONVERSATION, f"{self.name} row {position} of {len(turns)} turns", dropped=False)
            self.rows += [(f"row {position} part {n}", image, part) for n, part in enumerate(parts, 1)]
        require_records(len(self.rows), file, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        position, image, turns = self.rows[index]
        return Sample(self.images.find(image), (0, 0), turns, f"{self.name} {position}")


def _image(row: Any) -> int:
    """The COCO number of the image; rows without a file name have it as their id."""
    name = "image" if isinstance(row, dict) and "image" in row else "id"
    match = _NUMBER.fullmatch(str(field(row, name, (str, int))))
    if match is None:
        raise InvalidRecord("an 'image' that is not one of COCO")
    return int(match[1])


def question_answers_of(row: Any) -> tuple[QuestionAnswer, ...]:
    """The turns of a conversation, verbatim. Raises InvalidRecord where questions and answers do not alternate."""
    messages = field(row, "conversations", list)
    if not messages or len(messages) % 2:
        raise InvalidRecord("a conversation that is not pairs of question and answer")
    turns = []
    for asked, answered in zip(messages[::2], messages[1::2]):
        if field(asked, "from", str) != "human" or field(answered, "from", str) != "gpt":
            raise InvalidRecord("a conversation in which two turns of one speaker follow each other")
        question = remove_image_mark(field(asked, "value", str), may=not turns)
        answer = remove_image_mark(field(answered, "value", str), may=False)
        if not question or not answer:
            raise InvalidRecord("a turn without words")
        turns.append(QuestionAnswer("chat", question=question, answer=answer, verbatim=True))
    return tuple(turns)
