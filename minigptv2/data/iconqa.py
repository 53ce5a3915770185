"""IconQA, the part with choices in words: questions about diagrams from school. Card: datasets/iconqa.md.

A folder a question, with `image.png` and `data.json`:

    {"question": "What time is shown? Answer by choosing.", "choices": ["6:00", "12:05"], "answer": 0,
     "ques_type": "choose_txt", "grade": "...", "label": "..."}
"""

from __future__ import annotations

from pathlib import Path

from minigptv2.data.annotations import Malformed, field, find_image, read_json, words_of
from minigptv2.data.aokvqa import strings
from minigptv2.data.dataset import Problems
from minigptv2.data.layout import Layout, names_in, require, require_records
from minigptv2.errors import UserError
from minigptv2.files import is_dir
from minigptv2.sample import Exchange, Sample

PAGE = "https://iconqa.github.io/"
LAYOUT: Layout = {
    split: ((f"iconqa_data/iconqa/{split}/choose_txt/", f"iconqa/{split}/choose_txt/", f"{split}/choose_txt/"),)
    for split in ("train", "val", "test")
}
COUNTS = {"train": 18946, "val": 6316, "test": 6316}
DOWNLOADS = {"https://iconqa2021.s3.us-west-1.amazonaws.com/iconqa_data.zip": ""}


class IconQa:
    """One record a question, in the order of their numbers; the answer is one of the choices."""

    def __init__(self, root: str, split: str = "val"):
        self.problems = Problems()
        (self.folder,) = require(root, LAYOUT, split, PAGE)
        self.split = split
        self.rows: list[tuple[str, Exchange]] = []  # folder, what was asked
        for name in sorted(names_in(self.folder), key=lambda n: (len(n), n)):
            folder = Path(self.folder, name)
            if not is_dir(folder):
                continue
            try:
                self.rows.append((name, _exchange(folder)))
            except Malformed as error:
                self.problems.add(str(error), f"{split} {name}")
        require_records(len(self.rows), self.folder, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        name, exchange = self.rows[index]
        return Sample(Path(self.folder, name, "image.png"), (0, 0), (exchange,), f"iconqa {self.split} {name}")


def _exchange(folder: Path) -> Exchange:
    try:
        row = read_json(folder / "data.json")
    except UserError as error:
        raise Malformed("a data.json that cannot be read") from error
    choices, answer = strings(row, "choices"), field(row, "answer", int)
    if not 0 <= answer < len(choices):
        raise Malformed("an 'answer' that is none of the choices")
    find_image(folder, "image.png")
    return Exchange("vqa", question=words_of(row, "question"), answer=choices[answer], choices=choices)
