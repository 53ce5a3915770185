"""What can be asked about an image whose things have boxes and labels: to detect, refer and identify, as meaning.

For a user's own boxes and for COCO's. A scene that the program draws has more to say: `scenes/questions.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minigptv2.boxes import BINS, Box, iou
from minigptv2.data.annotations import check_choice
from minigptv2.errors import UserError
from minigptv2.sample import Phrase, QuestionAnswer

TASKS = ("detection", "refer", "identify")
MAX_BOXES = 50  # in one answer: about 700 tokens, so that it fits a context of 1,024 with its image and question
TOO_MANY = f"a label with more than {MAX_BOXES} boxes in an image, which detection does not ask for"
_SAME = 0.9  # boxes that overlap more than this show the same thing, so that what it is has two answers
_LEAST_SIDE = 2 / BINS  # of the image: below it, the box's numbers hardly differ


@dataclass(frozen=True)
class LabelledBoxes:
    """boxes: label -> its boxes, pixels of the upright image. absent: labels of which there is none. incomplete:
    labels of which not every instance has a box: their things can be named, but not all be found."""

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
    things: LabelledBoxes, size: tuple[int, int], tasks: Iterable[str], count: int, rng: random.Random
) -> list[QuestionAnswer]:
    """At most `count` independent exchanges, of the tasks in turn; rng chooses which, and which labels go together."""
    asked = {"detection": _detection, "refer": _refer, "identify": _identify}
    piles = []
    for task in tasks:
        pile = asked[task](things, size, rng)
        rng.shuffle(pile)
        piles.append(pile)
    out = []
    while len(out) < count and any(piles):
        out += [pile.pop() for pile in piles if pile]
    return out[:count]


def too_many(boxes: Mapping[str, Sequence[Box]]) -> list[str]:
    """The labels that have too many boxes in the image for [detection], to be counted as `TOO_MANY`."""
    return [label for label, found in boxes.items() if len(found) > MAX_BOXES]


def _detection(things: LabelledBoxes, size: tuple[int, int], rng: random.Random) -> list[QuestionAnswer]:
    """Every label alone, several together, and one that is not there, alone or among the several."""
    there = [
        Phrase(label, tuple(boxes))
        for label, boxes in things.boxes.items()
        if boxes and len(boxes) <= MAX_BOXES and label not in things.incomplete
    ]
    out = [QuestionAnswer("detection", (phrase,)) for phrase in there]
    nothing = [Phrase(rng.choice(things.absent))] if things.absent else []
    out += [QuestionAnswer("detection", (phrase,)) for phrase in nothing]
    several = rng.sample(there, min(len(there), rng.randint(2, 4))) + (nothing if rng.random() < 0.5 else [])
    rng.shuffle(several)
    if len(several) > 1 and sum(len(phrase.boxes) for phrase in several) <= MAX_BOXES:
        out.append(QuestionAnswer("detection", tuple(several)))
    return out


def _refer(things: LabelledBoxes, size: tuple[int, int], rng: random.Random) -> list[QuestionAnswer]:
    """Every label that one thing has, and one that nothing has."""
    out = [
        QuestionAnswer("refer", (Phrase(label, tuple(boxes)),))
        for label, boxes in things.boxes.items()
        if len(boxes) == 1 and label not in things.incomplete
    ]
    return out + ([QuestionAnswer("refer", (Phrase(rng.choice(things.absent)),))] if things.absent else [])


def _identify(things: LabelledBoxes, size: tuple[int, int], rng: random.Random) -> list[QuestionAnswer]:
    """Every box that is large enough to be written and that no other label has."""
    every = [(label, box) for label, boxes in things.boxes.items() for box in boxes]
    return [
        QuestionAnswer("identify", (Phrase(label, (box,)),))
        for label, box in every
        if box.x2 - box.x1 >= _LEAST_SIDE * size[0]
        and box.y2 - box.y1 >= _LEAST_SIDE * size[1]
        and not any(other != label and iou(box, b) > _SAME for other, b in every)
    ]
