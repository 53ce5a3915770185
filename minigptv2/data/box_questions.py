"""Questions about labelled boxes: detection, refer and identify.

For a user's own boxes and for COCO's. Generated scenes allow more questions: `scenes/questions.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minigptv2.boxes import BINS, Box, iou
from minigptv2.data.annotations import check_choice
from minigptv2.errors import UserError
from minigptv2.sample import Phrase, QuestionAnswer

BOX_TASKS = ("detection", "refer", "identify")
MAX_BOXES = 50  # in one answer: about 700 tokens, so that it fits a context of 1,024 with its image and question
TOO_MANY = f"a label with more than {MAX_BOXES} boxes in an image, which detection does not ask for"
_SAME = 0.9  # IoU above which two boxes show the same object, so that identify would have two answers
_MIN_SIDE = 2 / BINS  # of the image's side; in a smaller box the numbers of the corners hardly differ


@dataclass(frozen=True)
class LabelledBoxes:
    """boxes: label -> its boxes, pixels of the upright image. absent: labels without any object. incomplete:
    labels with objects that have no box: the boxes can be identified, but detection would miss objects."""

    boxes: Mapping[str, Sequence[Box]]
    absent: Sequence[str] = ()
    incomplete: frozenset[str] = frozenset()


def options_of(tasks: str | Iterable[str], allowed: tuple[str, ...], count: int) -> tuple[tuple[str, ...], int]:
    """A reader's options `tasks` and `questions_per_image`, checked. Raises UserError."""
    if count < 1:
        raise UserError(f"The option questions_per_image is {count}.", "It is 1 or more.", "Omit it for the default.")
    chosen = tuple(check_choice("tasks", task, allowed) for task in ([tasks] if isinstance(tasks, str) else tasks))
    if not chosen:
        raise UserError("The option tasks is empty.", f"Allowed: {', '.join(allowed)}.", "Name one or more of them.")
    return chosen, count


def box_questions(
    objects: LabelledBoxes, size: tuple[int, int], tasks: Iterable[str], count: int, rng: random.Random
) -> list[QuestionAnswer]:
    """At most `count` independent questions, from the tasks in turn; rng chooses them and the labels asked together."""
    writers = {"detection": _detection, "refer": _refer, "identify": _identify}
    by_task = []
    for task in tasks:
        questions = writers[task](objects, size, rng)
        rng.shuffle(questions)
        by_task.append(questions)
    out = []
    while len(out) < count and any(by_task):
        out += [questions.pop() for questions in by_task if questions]
    return out[:count]


def too_many(boxes: Mapping[str, Sequence[Box]]) -> list[str]:
    """The labels that have too many boxes for [detection], to be counted as `TOO_MANY`."""
    return [label for label, found in boxes.items() if len(found) > MAX_BOXES]


def _detection(objects: LabelledBoxes, size: tuple[int, int], rng: random.Random) -> list[QuestionAnswer]:
    """Every label alone, several together, and an absent one, alone or among the several."""
    present = [
        Phrase(label, tuple(boxes))
        for label, boxes in objects.boxes.items()
        if boxes and len(boxes) <= MAX_BOXES and label not in objects.incomplete
    ]
    out = [QuestionAnswer("detection", (phrase,)) for phrase in present]
    absent = [Phrase(rng.choice(objects.absent))] if objects.absent else []
    out += [QuestionAnswer("detection", (phrase,)) for phrase in absent]
    several = rng.sample(present, min(len(present), rng.randint(2, 4))) + (absent if rng.random() < 0.5 else [])
    rng.shuffle(several)
    if len(several) > 1 and sum(len(phrase.boxes) for phrase in several) <= MAX_BOXES:
        out.append(QuestionAnswer("detection", tuple(several)))
    return out


def _refer(objects: LabelledBoxes, size: tuple[int, int], rng: random.Random) -> list[QuestionAnswer]:
    """Every label with exactly one box, and an absent one."""
    out = [
        QuestionAnswer("refer", (Phrase(label, tuple(boxes)),))
        for label, boxes in objects.boxes.items()
        if len(boxes) == 1 and label not in objects.incomplete
    ]
    return out + ([QuestionAnswer("refer", (Phrase(rng.choice(objects.absent)),))] if objects.absent else [])


def _identify(objects: LabelledBoxes, size: tuple[int, int], rng: random.Random) -> list[QuestionAnswer]:
    """Every box that is large enough and that no other label has."""
    every = [(label, box) for label, boxes in objects.boxes.items() for box in boxes]
    return [
        QuestionAnswer("identify", (Phrase(label, (box,)),))
        for label, box in every
        if box.x2 - box.x1 >= _MIN_SIDE * size[0]
        and box.y2 - box.y1 >= _MIN_SIDE * size[1]
        and not any(other != label and iou(box, b) > _SAME for other, b in every)
    ]
