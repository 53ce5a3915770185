"""Benchmark: IconQA with choices in words. The choices are ranked by log-probability, as `asking.rank` says.

A row is a question folder, in the order of their numbers, from 0.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from minigptv2.data.annotations import Malformed, field, read_json, words_of
from minigptv2.data.iconqa import LAYOUT, PAGE
from minigptv2.data.layout import names_in, require
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Item, Rules, minigpt_v2
from minigptv2.eval.short_answers import ShortAnswers
from minigptv2.files import is_dir, is_file
from minigptv2.tasks import EVALUATION


class IconQa(ShortAnswers):
    """root: holds `iconqa/<split>/choose_txt/<number>/data.json` and `image.png`."""

    def __init__(self, root: str, split: str = "val"):
        (folder,) = require(root, LAYOUT, split, PAGE)
        inside = sorted(names_in(folder), key=lambda name: (len(name), name))
        places = [folder / name for name in inside if is_dir(folder / name)]
        super().__init__(f"iconqa {split}", (p / "data.json" for p in places if is_file(p / "data.json")))
        if split == "val":
            self.published = {"accuracy": minigpt_v2(47.7, 49.4, "arXiv 2310.09478v1")}
        for number, place in enumerate(places):
            try:
                words, choices, answer = _question(place)
            except Malformed as error:
                self.leave_out(number, error, f"{split} {place.name}")
                continue
            asked = EVALUATION["iconqa"].replace("{}", words)
            self.rows.append(
                Item(number, place / "image.png", (0, 0), asked, _same_picture(place), choices[answer], choices, words)
            )

    def judge(self, item: Item, answer: str, rules: Rules) -> dict[str, float] | None:
        """The right choice; words that are none of the choices are malformed."""
        said = answer.lower()
        if said not in [c.strip().lower() for c in item.candidates]:
            return None
        return {"accuracy": float(said == item.truth.strip().lower())}


def _question(folder: Path) -> tuple[str, tuple[str, ...], int]:
    try:
        row = read_json(folder / "data.json")
    except UserError as error:
        raise Malformed("a data.json that cannot be read") from error
    choices, answer = field(row, "choices", list), field(row, "answer", int)
    if not choices or not all(isinstance(c, str) and c.strip() for c in choices):
        raise Malformed("a 'choices' that is no list of words")
    if not 0 <= answer < len(choices):
        raise Malformed("an 'answer' that is none of the choices")
    return words_of(row, "question"), tuple(choices), answer


def _same_picture(folder: Path) -> str:
    """The same for folders that hold the same picture, so that the bootstrap draws their questions together."""
    try:
        return hashlib.sha256((folder / "image.png").read_bytes()).hexdigest()[:16]
    except OSError:  # told where it is asked about
        return str(folder)
