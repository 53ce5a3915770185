"""What can be asked about a generated scene, and the right answers: every task, as meaning.

Nothing here is a prompt: `tasks.render` words the instruction and puts the boxes into the answer.
"""

import random
from collections import Counter
from collections.abc import Sequence

from minigptv2.boxes import Box
from minigptv2.data.scenes.objects import KINDS
from minigptv2.data.scenes.vocabulary import (
    ABSENT_NOUNS,
    CANONICAL_RELATIONS,
    MARGIN,
    NUMBERS,
    PHRASINGS,
    RELATIONS,
    article,
    plural,
)
from minigptv2.data.scenes.world import COLORS, Scene, Thing
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import ABSENT, STATEMENT, instruction_text


class QuestionWriter:
    """The questions about one scene; every method gives one exchange, or None where the scene does not offer one."""

    def __init__(self, scene: Scene, rng: random.Random):
        self.rng = rng
        self.side = scene.side
        self.things = sorted(scene.things, key=lambda t: (t.box.center[0], t.box.center[1]))
        self.names = Counter(t.name for t in self.things)
        self.kinds = Counter(t.kind for t in self.things)
        self.colors = Counter(t.color for t in self.things)

    # ---- the tasks ----

    def caption(self) -> QuestionAnswer:
        groups = self._groups()
        start = self.rng.choice(("", "", "There is ", "The picture shows ")) if self.rng else ""
        return QuestionAnswer("caption", answer=_listed([g.text for g in groups], start) + ".")

    def grounding(self) -> QuestionAnswer:
        """Every thing in a phrase of its own, from left to right."""
        phrases = [Phrase(article(t.name), (t.box,)) for t in self.things]
        return QuestionAnswer("grounding", tuple(phrases), answer=_listed(["{}"] * len(phrases)) + ".")

    def refer(self) -> QuestionAnswer:
        if self.rng.random() < 0.25:
            absent = self.absent()
            return QuestionAnswer("refer", (Phrase(absent),), self._worded(absent))
        words, thing = self._description()
        return QuestionAnswer("refer", (Phrase(words, (thing.box,)),))

    def refer_to_class(self) -> QuestionAnswer | None:
        """Refer by the kind alone: colours, which are learned long before kinds, do not help."""
        alone = [t for t in self.things if self.kinds[t.kind] == 1]
        if not alone:
            return None
        thing = self.rng.choice(alone)
        return QuestionAnswer("refer", (Phrase(self._worded(thing.kind), (thing.box,)),))

    def refer_to_absent(self) -> QuestionAnswer:
        """Refer to what is nearly there: a kind that is not, alone or in a colour that is, or a colour and a kind that
        are, but not in one thing. What `refer_to_class` teaches, without this, is that a kind is always found."""
        others = [k for k in KINDS if k not in self.kinds]
        crossed = [f"{c} {k}" for c in self.colors for k in self.kinds if f"{c} {k}" not in self.names]
        if crossed and self.rng.random() < 0.4:
            words = self.rng.choice(crossed)
        else:
            words = self.rng.choice(others)
            if self.rng.random() < 0.35:
                words = f"{self.rng.choice(list(self.colors))} {words}"
        return QuestionAnswer("refer", (Phrase(words),), self._worded(words))

    def identify(self) -> QuestionAnswer:
        thing = self.rng.choice(self.things)
        box = thing.box
        if self.rng.random() < 0.4:
            wobble = [self.rng.uniform(-0.06, 0.06) for _ in range(4)]
            w, h = box.x2 - box.x1, box.y2 - box.y1
            box = Box(box.x1 + wobble[0] * w, box.y1 + wobble[1] * h, box.x2 + wobble[2] * w, box.y2 + wobble[3] * h)
        return QuestionAnswer("identify", (Phrase(thing.name, (box,)),))

    def detection(self) -> QuestionAnswer:
        if self.rng.random() < 0.2:
            return QuestionAnswer(
                "detection",
                tuple(self._groups(plain=True)),
                self.rng.choice(("everything", "all things")),
                " ".join(["{}"] * len(self.names)),
            )
        count = self.rng.choice((1, 1, 1, 2, 2, 3))
        words: list[str] = []
        for _ in range(count):
            if self.rng.random() < 0.15:
                word = self.absent()
            else:
                thing = self.rng.choice(self.things)
                word = self.rng.choice((thing.name, thing.name, thing.kind))
            if word not in words:
                words.append(word)
        return QuestionAnswer("detection", tuple(Phrase(w, self._boxes(w)) for w in words))

    def statement(self) -> QuestionAnswer | None:
        found = self._relation()
        return found and self._stated(*found)

    def one_way(self) -> QuestionAnswer | None:
        """A statement that something is left of, above or bigger than something else, never the other way round. So
        the place of one of the things makes true or false likelier, which is where learning can begin: of any
        statement it says nothing."""
        found = self._relation()
        if found is None:
            return None
        a, said, b, true = found
        if said not in CANONICAL_RELATIONS:
            said, true = RELATIONS[said][0], not true
        return self._stated(a, said, b, true)

    def _stated(self, a: str, relation: str, b: str, true: bool) -> QuestionAnswer:
        words = f"The {a} is {self.rng.choice(PHRASINGS[relation])} the {b}."
        return QuestionAnswer("vqa", question=STATEMENT.format(words), answer="true" if true else "false")

    def comparison(self) -> QuestionAnswer | None:
        """Which of two opposites holds: as `one_way`, a question to begin with."""
        found = self._relation()
        if found is None:
            return None
        a, said, b, true = found
        opposite = RELATIONS[said][0]
        both = self.rng.sample((said, opposite), 2)
        answer = (said if true else opposite).split()[0]
        return QuestionAnswer("vqa", question=f"is the {a} {both[0]} or {both[1]} the {b}?", answer=answer)

    def vqa(self) -> QuestionAnswer | None:
        kind = self.rng.choice(
            (
                self._what_color,
                self._which_thing,
                self._how_many,
                self._is_there,
                self._is_so,
                self._extreme,
                self._beside,
            )
        )
        found = kind()
        return found and QuestionAnswer("vqa", question=found[0], answer=found[1])

    def chat(self) -> QuestionAnswer | None:
        kind = self.rng.choice(
            (
                self._where,
                self._where,
                self._what_color,
                self._which_thing,
                self._how_many,
                self._is_there,
                self._extreme,
                self._beside,
                self._see,
                self._name_it,
                self._about_me,
            )
        )
        found = kind()
        if found is None:
            return None
        question, answer, *phrases = found
        return QuestionAnswer("chat", tuple(phrases), question, answer)

    def dialogue(self) -> list[QuestionAnswer]:
        """Three to six turns about a thing and its neighbours in which later questions lean on earlier answers."""
        unique = [t for t in self.things if self.names[t.name] == 1]
        if not unique:
            return []
        thing = self.rng.choice(unique)
        turns = [QuestionAnswer("chat", (), f"is there {article(thing.name)}?", "yes")]
        follow = [
            (
                self.rng.choice(("where is it?", "where?", "show me where it is")),
                "{}",
                Phrase(thing.name, (thing.box,)),
            ),
            (self.rng.choice(("what color is it?", "which color does it have?")), thing.color),
            (self.rng.choice(("what is it?", "what kind of thing is it?")), article(thing.kind)),
        ]
        aside = []  # what speaks of another thing comes last: after it, "it" would be that thing
        others = [t for t in unique if t is not thing]
        if others:
            other = self.rng.choice(others)
            for relation in self.rng.sample(list(RELATIONS), 2):
                true = self._holds(relation, thing, other)
                if true is not None:
                    asked = f"is it {self.rng.choice(PHRASINGS[relation])} the {other.name}?"
                    follow.append((asked, "yes" if true else "no"))
            aside.append((f"and where is the {other.name}?", "{}", Phrase(other.name, (other.box,))))
            aside.append((f"and is there {article(self.absent())}?", "no"))
        self.rng.shuffle(follow)
        self.rng.shuffle(aside)
        last = aside[: self.rng.randint(0, 2)]
        for question, answer, *phrases in follow[: self.rng.randint(2, 5) - len(last)] + last:
            turns.append(QuestionAnswer("chat", tuple(phrases), question, answer))
        return turns

    # ---- vqa and conversation: (question, answer, *phrases) or None ----

    def _what_color(self):
        kinds = [k for k, n in self.kinds.items() if n == 1]
        if not kinds:
            return None
        kind = self.rng.choice(kinds)
        color = next(t.color for t in self.things if t.kind == kind)
        return self.rng.choice(
            (f"what color is the {kind}?", f"which color does the {kind} have?", f"what colour is the {kind}?")
        ), color

    def _which_thing(self):
        colors = [c for c, n in self.colors.items() if n == 1]
        if not colors:
            return None
        color = self.rng.choice(colors)
        kind = next(t.kind for t in self.things if t.color == color)
        return self.rng.choice((f"what is {color}?", f"what is the {color} thing?", f"which thing is {color}?")), kind

    def _how_many(self):
        if self.rng.random() < 0.25:
            question = self.rng.choice(("how many things are there?", "how many objects do you see?"))
            return question, NUMBERS[len(self.things)]
        if self.rng.random() < 0.2:
            kind, color = self.rng.choice(list(KINDS)), ""
        else:
            thing = self.rng.choice(self.things)
            kind, color = thing.kind, (thing.color + " ") if self.rng.random() < 0.4 else ""
        count = sum(t.kind == kind and (not color or t.color == color.strip()) for t in self.things)
        many = color + plural(kind)
        return self.rng.choice(
            (f"how many {many} are there?", f"how many {many} do you see?", f"count the {many}.")
        ), NUMBERS[count]

    def _is_there(self):
        there = self.rng.random() < 0.5
        words = (
            self.rng.choice((self.rng.choice(self.things).name, self.rng.choice(self.things).kind))
            if there
            else self.absent()
        )
        question = self.rng.choice(
            (
                f"is there {article(words)}?",
                f"do you see {article(words)}?",
                f"is there {article(words)} in the picture?",
            )
        )
        return question, "yes" if there else "no"

    def _is_so(self):
        found = self._relation()
        if found is None:
            return None
        a, relation, b, true = found
        return f"is the {a} {self.rng.choice(PHRASINGS[relation])} the {b}?", "yes" if true else "no"

    def _extreme(self):
        """The outermost, biggest or smallest thing, where it is so by a margin."""
        margin = MARGIN * self.side
        measures = {
            ("on the left", "furthest to the left", "the leftmost thing"): lambda t: -t.box.center[0],
            ("on the right", "furthest to the right", "the rightmost thing"): lambda t: t.box.center[0],
            ("at the top", "the highest thing"): lambda t: -t.box.center[1],
            ("at the bottom", "the lowest thing"): lambda t: t.box.center[1],
            ("the biggest thing", "the largest object"): lambda t: self.side * t.box.area / (self.side**2 / 4),
            ("the smallest thing",): lambda t: -self.side * t.box.area / (self.side**2 / 4),
        }
        words, measure = self.rng.choice(list(measures.items()))
        ranked = sorted(self.things, key=measure, reverse=True)
        if len(ranked) > 1 and measure(ranked[0]) - measure(ranked[1]) < margin / 2:
            return None
        return f"what is {self.rng.choice(words)}?", article(ranked[0].name)

    def _beside(self):
        unique = [t for t in self.things if self.names[t.name] == 1]
        if not unique:
            return None
        anchor, relation = self.rng.choice(unique), self.rng.choice(("left of", "right of", "above", "below"))
        sides = [self._holds(relation, t, anchor) for t in self.things if t is not anchor]
        if None in sides or sum(sides) > 1:
            return None
        others = [t for t in self.things if t is not anchor]
        answer = next((article(t.name) for t, so in zip(others, sides) if so), "nothing")
        return f"what is {self.rng.choice(PHRASINGS[relation])} the {anchor.name}?", answer

    def _where(self):
        if self.rng.random() < 0.2:
            words = self.absent()
            return self._asked_where(words), ABSENT.format(words)
        words, thing = self._description()
        bare = words.removeprefix("the ").removeprefix("a ").removeprefix("an ")
        return self._asked_where(bare), "{}", Phrase(bare, (thing.box,))

    def _asked_where(self, words: str) -> str:
        return self.rng.choice(
            (
                f"where is the {words}?",
                f"Where is the {words}?",
                f"can you find the {words}?",
                f"show me the {words}",
                f"find the {words}",
            )
        )

    def _see(self):
        caption = self.caption().answer
        return self.rng.choice(
            ("what do you see?", "what is in the picture?", "describe the picture.", "What is in this image?")
        ), caption

    def _name_it(self):
        if len(self.things) != 1:
            return None
        return self.rng.choice(("what is this?", "what is it?", "name it")), article(self.things[0].name)

    def _about_me(self):
        return self.rng.choice(
            (
                ("hello", "Hello! Ask me about the picture."),
                ("hi", "Hello! Ask me about the picture."),
                ("thank you", "You are welcome."),
                ("thanks!", "You are welcome."),
                ("who are you?", "I am a small MiniGPT-v2 that knows drawn pictures of simple things."),
                ("what can you do?", "I can describe drawn pictures, find things in them and answer questions."),
            )
        )

    # ---- what the scene holds ----

    def _boxes(self, words: str) -> tuple[Box, ...]:
        """All things that "red ball" or "ball" names, from left to right."""
        return tuple(t.box for t in self.things if words in (t.name, t.kind))

    def _groups(self, plain: bool = False) -> list[Phrase]:
        """Every name in the scene with its boxes, from left to right: "a red ball", "two cats"; plain: "red ball"."""
        groups: dict[str, list[Box]] = {}
        for thing in self.things:
            groups.setdefault(thing.name, []).append(thing.box)
        return [Phrase(name if plain else _counted(name, len(boxes)), tuple(boxes)) for name, boxes in groups.items()]

    def absent(self) -> str:
        """A name that nothing in the scene has: another colour of a kind that is there, another kind, or a stranger."""
        chance = self.rng.random()
        if chance < 0.12:
            word = self.rng.choice(ABSENT_NOUNS)
            return word if self.rng.random() < 0.5 else f"{self.rng.choice(list(COLORS))} {word}"
        if chance < 0.35:
            return self.rng.choice([k for k in KINDS if k not in self.kinds])
        kind = self.rng.choice(self.things).kind if chance < 0.7 else self.rng.choice(list(KINDS))
        return self.rng.choice([f"{c} {kind}" for c in COLORS if f"{c} {kind}" not in self.names])

    def _worded(self, words: str) -> str:
        return self.rng.choice((words, words, f"the {words}", article(words)))

    def _description(self) -> tuple[str, Thing]:
        """Words that fit one thing alone: colour and kind, the kind, its size, its place or a relation."""
        for _ in range(12):
            thing = self.rng.choice(self.things)
            ways = (self._by_name, self._by_name, self._by_kind, self._by_size, self._by_place, self._by_relation)
            words = self.rng.choice(ways)(thing)
            if words:
                return (words if words.startswith("the ") else self._worded(words)), thing
        thing = max(self.things, key=lambda t: t.box.area)
        return f"the biggest {thing.kind}", thing

    def _by_name(self, thing: Thing) -> str | None:
        return thing.name if self.names[thing.name] == 1 else None

    def _by_kind(self, thing: Thing) -> str | None:
        if self.kinds[thing.kind] == 1:
            return thing.kind
        return f"{thing.color} thing" if self.colors[thing.color] == 1 else None

    def _noun(self, thing: Thing) -> tuple[str, list[Thing]]:
        """A noun for the thing, and the other things that it names too."""
        noun = self.rng.choice((thing.name, thing.name, thing.kind))
        return noun, [t for t in self.things if noun in (t.name, t.kind) and t is not thing]

    def _by_size(self, thing: Thing) -> str | None:
        noun, rivals = self._noun(thing)
        if rivals and all(RELATIONS["bigger than"][1](thing.box, t.box, 0) for t in rivals):
            return "the " + self.rng.choice(("big ", "large ", "bigger ", "biggest ")) + noun
        if rivals and all(RELATIONS["smaller than"][1](thing.box, t.box, 0) for t in rivals):
            return "the " + self.rng.choice(("small ", "little ", "smaller ", "smallest ")) + noun
        return None

    def _by_place(self, thing: Thing) -> str | None:
        noun, rivals = self._noun(thing)
        if not rivals:
            return None
        places = {
            "left of": ("the left {}", "the leftmost {}", "the {} on the left"),
            "right of": ("the right {}", "the rightmost {}", "the {} on the right"),
            "above": ("the upper {}", "the {} at the top", "the highest {}"),
            "below": ("the lower {}", "the {} at the bottom", "the lowest {}"),
        }
        fitting = [w for r, w in places.items() if all(self._holds(r, thing, t) for t in rivals)]
        return self.rng.choice(self.rng.choice(fitting)).format(noun) if fitting else None

    def _by_relation(self, thing: Thing) -> str | None:
        anchors = [t for t in self.things if self.names[t.name] == 1 and t is not thing]
        if not anchors:
            return None
        anchor, (noun, rivals) = self.rng.choice(anchors), self._noun(thing)
        if anchor in rivals and noun == anchor.kind:
            return None
        relation = self.rng.choice(("left of", "right of", "above", "below"))
        if not self._holds(relation, thing, anchor):
            return None
        if any(self._holds(relation, t, anchor) is not False for t in rivals if t is not anchor):
            return None
        return f"the {noun} {self.rng.choice(PHRASINGS[relation])} the {anchor.name}"

    def _holds(self, relation: str, a: Thing, b: Thing) -> bool | None:
        """Whether a is so to b; None where it is too close to call."""
        opposite, holds = RELATIONS[relation]
        margin = MARGIN * self.side
        if holds(a.box, b.box, margin):
            return True
        return False if RELATIONS[opposite][1](a.box, b.box, margin) else None

    def _relation(self) -> tuple[str, str, str, bool] | None:
        """Two things named without doubt, and a relation that clearly holds or clearly does not; half are true."""
        unique = [t for t in self.things if self.names[t.name] == 1]
        if len(unique) < 2:
            return None
        a, b = self.rng.sample(unique, 2)
        true = self.rng.random() < 0.5
        holding = [r for r in RELATIONS if self._holds(r, a, b)]
        if not holding:
            return None
        relation = self.rng.choice(holding)
        said = relation if true else RELATIONS[relation][0]  # its opposite is clearly false
        words = [t.kind if self.kinds[t.kind] == 1 and self.rng.random() < 0.3 else t.name for t in (a, b)]
        return words[0], said, words[1], true


def _counted(name: str, count: int) -> str:
    if count == 1:
        return article(name)
    color, kind = name.split()
    return f"{NUMBERS[count]} {color} {plural(kind)}"


def _listed(words: Sequence[str], start: str = "") -> str:
    text = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return start + text


def scene_questions(scene: Scene, weights: dict[str, float], count: int, rng: random.Random) -> list[QuestionAnswer]:
    """`count` independent exchanges about the scene, tasks drawn by weight; no question twice.

    weights: of the methods of QuestionWriter: caption, grounding, refer, refer_to_class, refer_to_absent, identify,
    detection, statement, one_way, comparison, vqa, chat.
    """
    talk, out = QuestionWriter(scene, rng), {}
    names, shares = list(weights), list(weights.values())
    for _ in range(4 * count):
        exchange = getattr(talk, rng.choices(names, shares)[0])()
        if exchange is not None:
            out.setdefault(instruction_text(exchange, (scene.side, scene.side), "round", None), exchange)
        if len(out) == count:
            break
    return list(out.values())


def entities(scene: Scene) -> tuple[Phrase, ...]:
    """Every name of what is in the scene, in the singular and the plural, with all boxes that it stands for."""
    found: dict[str, list[Box]] = {}
    for thing in scene.things:
        for words in (thing.kind, plural(thing.kind), thing.name, f"{thing.color} {plural(thing.kind)}"):
            boxes = found.setdefault(words, [])
            if thing.box not in boxes:
                boxes.append(thing.box)
    return tuple(Phrase(words, tuple(boxes)) for words, boxes in found.items())
