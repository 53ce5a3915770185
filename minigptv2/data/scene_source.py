"""Drawn scenes as a data set: record i is scene number `first + i` of a seed and questions about it.

Source: drawn by `scenes.py`; asked by `scene_talk.py`. Options, as a source of a train config:

    - name: scenes
      options: {count: 14000, seed: 11, exchanges: 10, tasks: {refer: 3, chat: 1}, most: 8, dialogues: 0.5}
"""

from __future__ import annotations

import random

from minigptv2.data.dataset import Problems
from minigptv2.sample import Sample

TASKS = ("caption", "grounding", "refer", "identify", "detection", "statement", "vqa", "chat")


class Scenes:
    """count: number of scenes; first: the number of the first one, so that others can be kept apart from training.
    seed: of the drawings. exchanges: questions about a picture in one row. tasks: share of each; of the methods of
    `Talk`. most: at most so many things in a picture. dialogues: share of the samples that are one conversation with
    memory instead of independent questions side by side. side: of the picture, pixels. things: a folder in which the
    things of every scene are kept, so that nothing is drawn only to know what could be asked; it is filled when the data
    set is opened (12 ms a scene, once). Empty: nothing is written."""

    def __init__(
        self,
        count: int,
        seed: int = 11,
        tasks: dict[str, float] | None = None,
        exchanges: int = 12,
        most: int = 8,
        dialogues: float = 0.0,
        first: int = 0,
        side: int = 448,
        things: str = "",
    ):
        self.problems = Problems()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, random.Random(index))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """The scene with questions that `rng` chooses."""
        raise NotImplementedError

    def picture(self, index: int):
        """`self[index].image`, not drawn before it is opened."""
        raise NotImplementedError
