"""Drawn scenes as a data set: record i is scene number `first + i` of a seed and questions about it.

Source: drawn by `world.py`, asked by `questions.py`; no files, no licence to mind. As a source of a train config:

    - name: scenes
      options: {count: 14000, seed: 11, exchanges: 10, tasks: {refer: 3, chat: 1}, most: 8, dialogues: 0.5}
"""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from minigptv2.boxes import Box
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.scenes.questions import QuestionWriter, entities, scene_questions
from minigptv2.data.scenes.world import Scene, Thing, draw_scene
from minigptv2.errors import UserError, unknown
from minigptv2.files import atomic_write
from minigptv2.sample import Sample

TASKS = (
    "caption",
    "grounding",
    "refer",
    "seek",
    "near_miss",
    "identify",
    "detection",
    "statement",
    "one_way",
    "comparison",
    "vqa",
    "chat",
)
CACHE_SIZE = 64  # scenes whose things are kept in one file


@dataclass(frozen=True)
class SceneSplit:
    """Scenes that differ by their number alone. Its text names all of them, also in names of files."""

    seed: int
    image_size: int
    max_objects: int
    repeat_prob: float = 0.0

    def draw(self, number: int) -> Scene:
        return draw_scene((self.seed, number), self.image_size, self.max_objects, repeats=self.repeat_prob)

    def __str__(self) -> str:
        repeats = f"-repeats{self.repeat_prob}" if self.repeat_prob else ""
        return f"seed{self.seed}-side{self.image_size}-most{self.max_objects}{repeats}"


@dataclass(frozen=True)
class SceneImage:
    """A scene's image, drawn when it is opened, or already where its things had to be known."""

    series: SceneSplit
    number: int
    drawn: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        return f"scene {self.series}/{self.number}"

    def open(self) -> Image.Image:
        return self.drawn or self.series.draw(self.number).image


class Scenes:
    """count: number of scenes; first: the number of the first one, so that others can be kept apart from training.
    seed: of the drawings. exchanges: questions about an image in one row. tasks: share of each, of the methods of
    `QuestionWriter`; all alike if not given. most, repeats: of `draw_scene`. dialogues: share of the samples that are
    one conversation with memory instead of independent questions side by side. side: of the image, pixels. things: a
    folder in which the things of every scene are kept, so that no scene is drawn only to know what can be asked; it is
    filled when the data set is opened, 12 ms a scene, once. Empty: nothing is written."""

    def __init__(
        self,
        count: int = 1_000_000,
        seed: int = 11,
        tasks: dict[str, float] | None = None,
        exchanges: int = 12,
        most: int = 8,
        dialogues: float = 0.0,
        first: int = 0,
        side: int = 448,
        things: str = "",
        repeats: float = 0.0,
    ):
        _check(count, exchanges, most, dialogues, repeats, first, side)
        self.count, self.first, self.series = count, first, SceneSplit(seed, side, most, repeats)
        self.tasks, self.exchanges, self.dialogues = _checked_tasks(tasks), exchanges, dialogues
        self.problems = ProblemCounter()
        self._things = self._kept(Path(things)) if things else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, random.Random(f"{self.series.seed}/{index}"))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """The scene with questions that `rng` chooses."""
        image = self.image(index)
        if self._things is None:
            scene = self.series.draw(image.number)
            image = replace(image, drawn=scene.image)
        else:
            scene = Scene(self._things[index], self.series.image_size)
        talk, memory = [], rng.random() < self.dialogues
        if scene.things:
            talk = scene_questions(scene, self.tasks, self.exchanges, rng)
            if memory:
                told = QuestionWriter(scene, rng).dialogue()
                talk = told if told and rng.random() < 0.6 else talk[: rng.randint(1, 6)]
        return Sample(image, (self.series.image_size,) * 2, tuple(talk), image.key, not memory, entities(scene))

    def image(self, index: int) -> SceneImage:
        """`self[index].image`, not drawn before it is opened."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return SceneImage(self.series, self.first + index)

    # ---- the things, kept in files of KEPT scenes each ----

    def _kept(self, folder: Path) -> list[tuple[Thing, ...]]:
        """The things of every scene. Files that are not there yet are written, in a random order, so that several
        processes that begin at once share the work."""
        from tqdm import tqdm

        folder.mkdir(parents=True, exist_ok=True)
        blocks = range(self.first // CACHE_SIZE, (self.first + self.count - 1) // CACHE_SIZE + 1)
        found = {block: _read(self._file(folder, block)) for block in blocks}
        missing = [block for block, things in found.items() if things is None]
        random.Random(os.getpid()).shuffle(missing)
        for block in tqdm(missing, "things of scenes", unit_scale=CACHE_SIZE, unit=" scenes", disable=not missing):
            file = self._file(folder, block)
            found[block] = _read(file) or self._write(file, block)
        things = [t for block in blocks for t in found[block]]
        things = things[self.first % CACHE_SIZE :][: self.count]
        if things[0] != self.series.draw(self.first).things:
            raise UserError(
                f"{folder} holds the things of scenes that were drawn otherwise.",
                "Another version of this program, of Pillow or of NumPy drew them.",
                "Delete the folder.",
            )
        return things

    def _file(self, folder: Path, block: int) -> Path:
        return folder / f"{self.series}-{block * CACHE_SIZE:08}.jsonl"

    def _write(self, file: Path, block: int) -> list[tuple[Thing, ...]]:
        things = [self.series.draw(n).things for n in range(block * CACHE_SIZE, (block + 1) * CACHE_SIZE)]
        rows = [[[t.kind, t.color, *t.box.xyxy] for t in row] for row in things]
        with atomic_write(file, shared=True) as new:
            new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return things


def _read(file: Path) -> list[tuple[Thing, ...]] | None:
    """The things of KEPT scenes; None where the file is missing or damaged."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        things = [tuple(Thing(kind, color, Box(*box)) for kind, color, *box in row) for row in rows]
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return things if len(things) == CACHE_SIZE else None


def _check(count: int, exchanges: int, most: int, dialogues: float, repeats: float, first: int, side: int) -> None:
    for name, value, numbers, lowest, highest in (
        ("count", count, int, 1, math.inf),
        ("exchanges", exchanges, int, 1, math.inf),
        ("most", most, int, 1, 8),
        ("first", first, int, 0, math.inf),
        ("side", side, int, 56, math.inf),
        ("dialogues", dialogues, int | float, 0, 1),
        ("repeats", repeats, int | float, 0, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, numbers) or not lowest <= value <= highest:
            raise UserError(
                f"The option {name} of scenes is {value!r}.",
                f"It must be a {'whole ' if numbers is int else ''}number, {lowest} "
                + ("or more." if highest == math.inf else f"to {highest}."),
                "Correct it.",
            )


def _checked_tasks(tasks: dict[str, float] | None) -> dict[str, float]:
    if tasks is None:
        return dict.fromkeys(TASKS, 1.0)
    for name, share in tasks.items():
        if name not in TASKS:
            raise unknown(f"The task {name!r} of scenes is unknown.", name, TASKS, "Remove it.")
        if not isinstance(share, int | float) or isinstance(share, bool) or not share >= 0:
            raise UserError(
                f"The task {name} of scenes has share {share!r}.", "It is a number, 0 or more.", "Correct it."
            )
    if not sum(tasks.values()) > 0:
        raise UserError("No task of scenes has a share.", f"Known: {', '.join(TASKS)}.", "Give one a share over 0.")
    return dict(tasks)
