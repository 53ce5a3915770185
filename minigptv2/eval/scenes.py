"""Benchmark: held-out scenes of the generated world, every task, with the share of malformed answers.

The pictures come from seeds that no training uses. A question is put by itself, as a user would put it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from minigptv2.boxes import Box, iou
from minigptv2.data.scene_talk import Talk
from minigptv2.data.scenes import Scene, draw_scene
from minigptv2.eval.metrics import Counts, matches
from minigptv2.sample import Answer, Exchange, Phrase
from minigptv2.tasks import ABSENT, answer_text, instruction_text

HELD_OUT = 900_000_001  # the first number of every held-out seed; training seeds are small numbers


def held_out(seed: int, number: int, size: int) -> Scene:
    """The held-out scene of this number; numbers whose scene came out empty are drawn again."""
    attempt = 0
    while not (scene := draw_scene((HELD_OUT, seed, number, attempt), size)).things:
        attempt += 1
    return scene


def questions(scene: Scene, rng: random.Random) -> dict[str, Exchange]:
    """One question of each kind about the scene; a kind that the scene does not offer is left out."""
    talk, out = Talk(scene, rng), {}
    out["refer"] = _until(talk.refer, lambda e: bool(e.phrases[0].boxes))
    out["absent"] = Exchange("refer", (Phrase(talk.absent()),))
    out["identify"] = talk.identify()
    out["detection"] = _until(talk.detection, lambda e: any(p.boxes for p in e.phrases))
    out["grounding"] = talk.grounding()
    out["statement"] = talk.statement()
    out["vqa"] = talk.vqa()
    return {kind: e for kind, e in out.items() if e is not None}


def _until(draw, good) -> Exchange:
    while True:
        exchange = draw()
        if good(exchange):
            return exchange


class Score:
    """Adds up one answer after another; `metrics` yields (name, value)."""

    def __init__(self):
        self.hits: dict[str, list[float]] = defaultdict(list)
        self.detection, self.grounding = Counts(), Counts()
        self.invalid = self.total = 0

    def add(self, kind: str, exchange: Exchange, answer: Answer, size: tuple[int, int]) -> None:
        self.total += 1
        self.invalid += bool(answer.problems) or answer.ended != "stop"
        wanted = tuple(replace(b, phrase=p.text) for p in exchange.phrases for b in p.boxes)
        if kind == "refer":
            overlap = iou(answer.boxes[0], wanted[0]) if answer.boxes else 0.0
            self.hits["refer acc@0.5"].append(overlap >= 0.5)
            self.hits["refer acc@0.75"].append(overlap >= 0.75)
        elif kind == "detection":
            self.detection.add(matches(answer.boxes, wanted, 0.5, _same_phrase), len(wanted), len(answer.boxes))
        elif kind == "grounding":
            self.grounding.add(matches(answer.boxes, wanted, 0.5, _same_phrase), len(wanted), len(answer.boxes))
        elif kind == "absent":
            refused = answer.text.startswith(ABSENT.split("{}")[0]) and not answer.boxes and not answer.problems
            self.hits["absent phrase refused"].append(refused)
        else:
            name = {
                "identify": "identify, kind and colour right",
                "statement": "spatial statements",
                "vqa": "short answers",
            }
            self.hits[name[kind]].append(answer.text.strip() == answer_text(exchange, size, "round"))

    def metrics(self) -> Iterator[tuple[str, float]]:
        order = (
            "refer acc@0.5",
            "refer acc@0.75",
            "detection F1@0.5, all instances",
            "identify, kind and colour right",
            "grounded caption, phrase with right box F1@0.5",
            "spatial statements",
            "absent phrase refused",
            "short answers",
        )
        counted = {order[2]: self.detection.f1, order[4]: self.grounding.f1}
        for name in order:
            hits = self.hits.get(name)
            if name in counted:
                yield name, counted[name]
            elif hits:
                yield name, sum(hits) / len(hits)
        yield "malformed answers", self.invalid / max(1, self.total)
        yield "invalid", self.invalid
        yield "total", self.total


def _same_phrase(given: Box, wanted: Box) -> bool:
    return given.phrase == wanted.phrase


def ask_all(model, seed: int, count: int, batch: int = 48) -> Iterator[tuple[str, Exchange, Answer, Scene]]:
    """Put every question about `count` scenes to the model. Questions of one kind share a batch."""
    size = model.config.vision.image_size
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        drawn = [held_out(seed, n, size) for n in numbers]
        asked = [questions(scene, random.Random(f"{seed}/{n}")) for n, scene in zip(numbers, drawn)]
        for kind in dict.fromkeys(kind for each in asked for kind in each):
            mine = [(scene, each[kind]) for scene, each in zip(drawn, asked) if kind in each]
            rng = random.Random(f"{seed}/{start}/{kind}")
            put = [(s.image, instruction_text(e, (size, size), model.config.box_coding, rng)) for s, e in mine]
            for (scene, exchange), answer in zip(mine, model.chat_batch(put)):
                yield kind, exchange, answer, scene
