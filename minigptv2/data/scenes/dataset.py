"""Drawn scenes as a data set: record i is scene number `start + i` of a seed and questions about it.

`world.py` draws them, `questions.py` writes the questions: no files and no licence. As a source of a train config:

    - name: scenes
      options: {count: 14000, seed: 11, questions_per_scene: 10, tasks: {refer: 3, chat: 1}, dialogue_fraction: 0.5}
"""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from PIL import Image

from minigptv2.boxes import Box
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.scenes.questions import QuestionWriter, entities, scene_questions
from minigptv2.data.scenes.world import DEFAULT_SEED, IMAGE_SIZE, Scene, SceneObject, draw_scene
from minigptv2.errors import UserError, unknown
from minigptv2.files import atomic_write
from minigptv2.renames import note_once
from minigptv2.sample import Sample

SCENE_TASKS = (
    "caption",
    "grounding",
    "refer",
    "refer_to_class",
    "refer_to_absent",
    "identify",
    "detection",
    "statement",
    "one_way",
    "comparison",
    "vqa",
    "chat",
)
CACHE_SIZE = 64  # scenes whose objects are cached in one file


@dataclass(frozen=True)
class SceneSplit:
    """Scenes that differ only in their number. Its str is their name, also in file names and cache keys."""

    seed: int
    image_size: int
    max_objects: int
    repeat_prob: float = 0.0

    def draw(self, number: int) -> Scene:
        return draw_scene((self.seed, number), self.image_size, self.max_objects, repeat_prob=self.repeat_prob)

    def __str__(self) -> str:
        repeats = f"-repeats{self.repeat_prob}" if self.repeat_prob else ""
        return f"seed{self.seed}-side{self.image_size}-most{self.max_objects}{repeats}"


@dataclass(frozen=True)
class SceneImage:
    """A scene's image, drawn when it is opened, or earlier where its objects had to be known."""

    split: SceneSplit
    number: int
    drawn: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        return f"scene {self.split}/{self.number}"

    def open(self) -> Image.Image:
        return self.drawn or self.split.draw(self.number).image


class Scenes:
    """Images of drawn objects, each with several questions.

    count: number of scenes. seed: of the drawings. start: number of the first scene, to keep training and validation
    apart. image_size: width and height in pixels. max_objects, repeat_prob: see `draw_scene`. tasks: weight of each
    method of `QuestionWriter` that asks; all equal by default. questions_per_scene: maximum number in one record.
    dialogue_fraction: fraction of the records (0 to 1) that are one conversation with memory instead of independent
    questions. cache_dir: a folder for the objects of every scene, so that no scene is drawn only to learn what can be
    asked about it. It is filled when the data set is opened, once, in 12 ms a scene. "": nothing is written.
    """

    RENAMED_TASKS: ClassVar[dict[str, str]] = {"seek": "refer_to_class", "near_miss": "refer_to_absent"}
    RENAMED: ClassVar[dict[str, str]] = {
        "exchanges": "questions_per_scene",
        "most": "max_objects",
        "dialogues": "dialogue_fraction",
        "first": "start",
        "side": "image_size",
        "things": "cache_dir",
        "repeats": "repeat_prob",
    }

    def __init__(
        self,
        count: int = 1_000_000,
        seed: int = DEFAULT_SEED,
        tasks: dict[str, float] | None = None,
        questions_per_scene: int = 12,
        max_objects: int = 8,
        dialogue_fraction: float = 0.0,
        start: int = 0,
        image_size: int = IMAGE_SIZE,
        cache_dir: str = "",
        repeat_prob: float = 0.0,
    ):
        _check(count, questions_per_scene, max_objects, dialogue_fraction, repeat_prob, start, image_size)
        self.count, self.start = count, start
        self.split = SceneSplit(seed, image_size, max_objects, repeat_prob)
        self.tasks = checked_tasks(tasks)
        self.questions_per_scene, self.dialogue_fraction = questions_per_scene, dialogue_fraction
        self.problems = ProblemCounter()
        self._objects = self._cached(Path(cache_dir)) if cache_dir else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, random.Random(f"{self.split.seed}/{index}"))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """The scene with questions that `rng` chooses: other ones in every epoch."""
        image = self.image(index)
        if self._objects is None:
            scene = self.split.draw(image.number)
            image = replace(image, drawn=scene.image)
        else:
            scene = Scene(self._objects[index], self.split.image_size)
        questions, conversation = [], rng.random() < self.dialogue_fraction
        if scene.objects:
            questions = scene_questions(scene, self.tasks, self.questions_per_scene, rng)
            if conversation:
                dialogue = QuestionWriter(scene, rng).dialogue()
                questions = dialogue if dialogue and rng.random() < 0.6 else questions[: rng.randint(1, 6)]
        return Sample(
            image, (self.split.image_size,) * 2, tuple(questions), image.key, not conversation, entities(scene)
        )

    def image(self, index: int) -> SceneImage:
        """`self[index].image`, not yet drawn."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return SceneImage(self.split, self.start + index)

    # ---- the objects, cached in files of CACHE_SIZE scenes each ----

    def _cached(self, folder: Path) -> list[tuple[SceneObject, ...]]:
        """The objects of every scene. Missing files are written in a random order, so that processes which start at
        the same time share the work."""
        from tqdm import tqdm

        folder.mkdir(parents=True, exist_ok=True)
        blocks = range(self.start // CACHE_SIZE, (self.start + self.count - 1) // CACHE_SIZE + 1)
        found = {block: _read(self._file(folder, block)) for block in blocks}
        missing = [block for block, objects in found.items() if objects is None]
        random.Random(os.getpid()).shuffle(missing)
        for block in tqdm(missing, "objects of scenes", unit_scale=CACHE_SIZE, unit=" scenes", disable=not missing):
            file = self._file(folder, block)
            found[block] = _read(file) or self._write(file, block)
        objects = [o for block in blocks for o in found[block]]
        objects = objects[self.start % CACHE_SIZE :][: self.count]
        if objects[0] != self.split.draw(self.start).objects:
            raise UserError(
                f"{folder} holds the objects of scenes that were drawn differently.",
                "Another version of this program, of Pillow or of NumPy drew them.",
                "Delete the folder.",
            )
        return objects

    def _file(self, folder: Path, block: int) -> Path:
        return folder / f"{self.split}-{block * CACHE_SIZE:08}.jsonl"

    def _write(self, file: Path, block: int) -> list[tuple[SceneObject, ...]]:
        objects = [self.split.draw(n).objects for n in range(block * CACHE_SIZE, (block + 1) * CACHE_SIZE)]
        rows = [[[o.class_name, o.color, *o.box.xyxy] for o in row] for row in objects]
        with atomic_write(file, shared=True) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return objects


def _read(file: Path) -> list[tuple[SceneObject, ...]] | None:
    """The objects of CACHE_SIZE scenes; None where the file is missing or damaged."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        objects = [tuple(SceneObject(class_name, color, Box(*box)) for class_name, color, *box in row) for row in rows]
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return objects if len(objects) == CACHE_SIZE else None


def _check(
    count: int,
    questions_per_scene: int,
    max_objects: int,
    dialogue_fraction: float,
    repeat_prob: float,
    start: int,
    image_size: int,
) -> None:
    for name, value, numbers, lowest, highest in (
        ("count", count, int, 1, math.inf),
        ("questions_per_scene", questions_per_scene, int, 1, math.inf),
        ("max_objects", max_objects, int, 1, 8),
        ("start", start, int, 0, math.inf),
        ("image_size", image_size, int, 56, math.inf),
        ("dialogue_fraction", dialogue_fraction, int | float, 0, 1),
        ("repeat_prob", repeat_prob, int | float, 0, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, numbers) or not lowest <= value <= highest:
            raise UserError(
                f"The option {name} of scenes is {value!r}.",
                f"It must be a {'whole ' if numbers is int else ''}number, {lowest} "
                + ("or more." if highest == math.inf else f"to {highest}."),
                "Correct it.",
            )


def checked_tasks(tasks: dict[str, float] | None) -> dict[str, float]:
    """The weights of the tasks, old names under their present ones, in the given order. Raises UserError."""
    if tasks is None:
        return dict.fromkeys(SCENE_TASKS, 1.0)
    checked: dict[str, float] = {}
    for given, weight in tasks.items():
        name = Scenes.RENAMED_TASKS.get(given, given)
        if name not in SCENE_TASKS:
            raise unknown(f"The task {name!r} of scenes is unknown.", name, SCENE_TASKS, "Remove it.")
        if name in checked:
            raise UserError(f"The task {name} of scenes is given twice.", f"One name is {given}.", "Remove one.")
        if name != given:
            note_once(f"tasks of scenes: {given} is now called {name}.")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight >= 0:
            raise UserError(
                f"The task {name} of scenes has weight {weight!r}.", "It is a number, 0 or more.", "Correct it."
            )
        checked[name] = weight
    if not sum(checked.values()) > 0:
        raise UserError(
            "No task of scenes has a weight.", f"Known: {', '.join(SCENE_TASKS)}.", "Give one a weight over 0."
        )
    return checked
