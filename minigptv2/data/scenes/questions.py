"""Questions about a generated scene and their correct answers, for every task, as meaning.

Nothing here is a prompt: `tasks.render` words the instruction and puts the boxes into the answer.
"""

import random
from collections import Counter
from collections.abc import Sequence

from minigptv2.boxes import Box
from minigptv2.data.scenes.objects import OBJECT_CLASSES
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
from minigptv2.data.scenes.world import COLORS, Scene, SceneObject
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import ABSENT, STATEMENT, instruction_text


class QuestionWriter:
    """Writes questions about one scene; `rng` makes every choice.

    Each task is a method that returns one question with its answer, or None where the scene does not allow it.
    """

    def __init__(self, scene: Scene, rng: random.Random):
        self.rng = rng
        self.side = scene.side
        self.objects = sorted(scene.objects, key=lambda o: (o.box.center[0], o.box.center[1]))
        self.names = Counter(o.name for o in self.objects)
        self.classes = Counter(o.class_name for o in self.objects)
        self.colors = Counter(o.color for o in self.objects)

    # ---- the tasks ----

    def caption(self) -> QuestionAnswer:
        groups = self._groups()
        start = self.rng.choice(("", "", "There is ", "The picture shows ")) if self.rng else ""
        return QuestionAnswer("caption", answer=_listed([g.text for g in groups], start) + ".")

    def grounding(self) -> QuestionAnswer:
        """Every object in its own phrase, from left to right."""
        phrases = [Phrase(article(o.name), (o.box,)) for o in self.objects]
        return QuestionAnswer("grounding", tuple(phrases), answer=_listed(["{}"] * len(phrases)) + ".")

    def refer(self) -> QuestionAnswer:
        if self.rng.random() < 0.25:
            absent = self.absent()
            return QuestionAnswer("refer", (Phrase(absent),), self._worded(absent))
        words, obj = self._description()
        return QuestionAnswer("refer", (Phrase(words, (obj.box,)),))

    def refer_to_class(self) -> QuestionAnswer | None:
        """Refer by the class alone, so that colours, which are learned much earlier than classes, do not help."""
        alone = [o for o in self.objects if self.classes[o.class_name] == 1]
        if not alone:
            return None
        obj = self.rng.choice(alone)
        return QuestionAnswer("refer", (Phrase(self._worded(obj.class_name), (obj.box,)),))

    def refer_to_absent(self) -> QuestionAnswer:
        """A referring expression with no match: an absent class, or a class and a colour that occur only separately.

        Without these the model learns that every expression has a box."""
        others = [k for k in OBJECT_CLASSES if k not in self.classes]
        crossed = [f"{c} {k}" for c in self.colors for k in self.classes if f"{c} {k}" not in self.names]
        if crossed and self.rng.random() < 0.4:
            words = self.rng.choice(crossed)
        else:
            words = self.rng.choice(others)
            if self.rng.random() < 0.35:
                words = f"{self.rng.choice(list(self.colors))} {words}"
        return QuestionAnswer("refer", (Phrase(words),), self._worded(words))

    def identify(self) -> QuestionAnswer:
        obj = self.rng.choice(self.objects)
        box = obj.box
        if self.rng.random() < 0.4:
            wobble = [self.rng.uniform(-0.06, 0.06) for _ in range(4)]
            w, h = box.x2 - box.x1, box.y2 - box.y1
            box = Box(box.x1 + wobble[0] * w, box.y1 + wobble[1] * h, box.x2 + wobble[2] * w, box.y2 + wobble[3] * h)
        return QuestionAnswer("identify", (Phrase(obj.name, (box,)),))

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
                obj = self.rng.choice(self.objects)
                word = self.rng.choice((obj.name, obj.name, obj.class_name))
            if word not in words:
                words.append(word)
        return QuestionAnswer("detection", tuple(Phrase(w, self._boxes(w)) for w in words))

    def statement(self) -> QuestionAnswer | None:
        found = self._relation()
        return found and self._stated(*found)

    def one_way(self) -> QuestionAnswer | None:
        """A statement with one of the relations left of, above and bigger than, never their opposites.

        The position of one object alone then makes one answer more likely, so learning can begin there; in
        `statement` it tells nothing."""
        found = self._relation()
        if found is None:
            return None
        a, claimed, b, holds = found
        if claimed not in CANONICAL_RELATIONS:
            claimed, holds = RELATIONS[claimed][0], not holds
        return self._stated(a, claimed, b, holds)

    def _stated(self, a: str, relation: str, b: str, holds: bool) -> QuestionAnswer:
        words = f"The {a} is {self.rng.choice(PHRASINGS[relation])} the {b}."
        return QuestionAnswer("vqa", question=STATEMENT.format(words), answer="true" if holds else "false")

    def comparison(self) -> QuestionAnswer | None:
        """Which of two opposite relations holds; easier to learn than `statement`, as `one_way` is."""
        found = self._relation()
        if found is None:
            return None
        a, claimed, b, holds = found
        opposite = RELATIONS[claimed][0]
        both = self.rng.sample((claimed, opposite), 2)
        answer = (claimed if holds else opposite).split()[0]
        return QuestionAnswer("vqa", question=f"is the {a} {both[0]} or {both[1]} the {b}?", answer=answer)

    def vqa(self) -> QuestionAnswer | None:
        ask = self.rng.choice(
            (
                self._what_color,
                self._which_object,
                self._how_many,
                self._is_there,
                self._is_so,
                self._extreme,
                self._beside,
            )
        )
        found = ask()
        return found and QuestionAnswer("vqa", question=found[0], answer=found[1])

    def chat(self) -> QuestionAnswer | None:
        ask = self.rng.choice(
            (
                self._where,
                self._where,
                self._what_color,
                self._which_object,
                self._how_many,
                self._is_there,
                self._extreme,
                self._beside,
                self._see,
                self._name_it,
                self._about_me,
            )
        )
        found = ask()
        if found is None:
            return None
        question, answer, *phrases = found
        return QuestionAnswer("chat", tuple(phrases), question, answer)

    def dialogue(self) -> list[QuestionAnswer]:
        """Three to six turns about an object and its neighbours, whose later questions refer to earlier turns."""
        unique = [o for o in self.objects if self.names[o.name] == 1]
        if not unique:
            return []
        obj = self.rng.choice(unique)
        turns = [QuestionAnswer("chat", (), f"is there {article(obj.name)}?", "yes")]
        follow = [
            (
                self.rng.choice(("where is it?", "where?", "show me where it is")),
                "{}",
                Phrase(obj.name, (obj.box,)),
            ),
            (self.rng.choice(("what color is it?", "which color does it have?")), obj.color),
            (self.rng.choice(("what is it?", "what kind of thing is it?")), article(obj.class_name)),
        ]
        aside = []  # turns about another object come last: after them, "it" would mean that object
        others = [o for o in unique if o is not obj]
        if others:
            other = self.rng.choice(others)
            for relation in self.rng.sample(list(RELATIONS), 2):
                holds = self._holds(relation, obj, other)
                if holds is not None:
                    asked = f"is it {self.rng.choice(PHRASINGS[relation])} the {other.name}?"
                    follow.append((asked, "yes" if holds else "no"))
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
        classes = [k for k, n in self.classes.items() if n == 1]
        if not classes:
            return None
        class_name = self.rng.choice(classes)
        color = next(o.color for o in self.objects if o.class_name == class_name)
        return self.rng.choice(
            (
                f"what color is the {class_name}?",
                f"which color does the {class_name} have?",
                f"what colour is the {class_name}?",
            )
        ), color

    def _which_object(self):
        colors = [c for c, n in self.colors.items() if n == 1]
        if not colors:
            return None
        color = self.rng.choice(colors)
        class_name = next(o.class_name for o in self.objects if o.color == color)
        return self.rng.choice(
            (f"what is {color}?", f"what is the {color} thing?", f"which thing is {color}?")
        ), class_name

    def _how_many(self):
        if self.rng.random() < 0.25:
            question = self.rng.choice(("how many things are there?", "how many objects do you see?"))
            return question, NUMBERS[len(self.objects)]
        if self.rng.random() < 0.2:
            class_name, color = self.rng.choice(list(OBJECT_CLASSES)), ""
        else:
            obj = self.rng.choice(self.objects)
            class_name, color = obj.class_name, (obj.color + " ") if self.rng.random() < 0.4 else ""
        count = sum(o.class_name == class_name and (not color or o.color == color.strip()) for o in self.objects)
        many = color + plural(class_name)
        return self.rng.choice(
            (f"how many {many} are there?", f"how many {many} do you see?", f"count the {many}.")
        ), NUMBERS[count]

    def _is_there(self):
        there = self.rng.random() < 0.5
        words = (
            self.rng.choice((self.rng.choice(self.objects).name, self.rng.choice(self.objects).class_name))
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
        a, relation, b, holds = found
        return f"is the {a} {self.rng.choice(PHRASINGS[relation])} the {b}?", "yes" if holds else "no"

    def _extreme(self):
        """The outermost, biggest or smallest object, where it is so by a margin."""
        margin = MARGIN * self.side
        measures = {
            ("on the left", "furthest to the left", "the leftmost thing"): lambda o: -o.box.center[0],
            ("on the right", "furthest to the right", "the rightmost thing"): lambda o: o.box.center[0],
            ("at the top", "the highest thing"): lambda o: -o.box.center[1],
            ("at the bottom", "the lowest thing"): lambda o: o.box.center[1],
            ("the biggest thing", "the largest object"): lambda o: self.side * o.box.area / (self.side**2 / 4),
            ("the smallest thing",): lambda o: -self.side * o.box.area / (self.side**2 / 4),
        }
        words, measure = self.rng.choice(list(measures.items()))
        ranked = sorted(self.objects, key=measure, reverse=True)
        if len(ranked) > 1 and measure(ranked[0]) - measure(ranked[1]) < margin / 2:
            return None
        return f"what is {self.rng.choice(words)}?", article(ranked[0].name)

    def _beside(self):
        unique = [o for o in self.objects if self.names[o.name] == 1]
        if not unique:
            return None
        anchor, relation = self.rng.choice(unique), self.rng.choice(("left of", "right of", "above", "below"))
        sides = [self._holds(relation, o, anchor) for o in self.objects if o is not anchor]
        if None in sides or sum(sides) > 1:
            return None
        others = [o for o in self.objects if o is not anchor]
        answer = next((article(o.name) for o, so in zip(others, sides) if so), "nothing")
        return f"what is {self.rng.choice(PHRASINGS[relation])} the {anchor.name}?", answer

    def _where(self):
        if self.rng.random() < 0.2:
            words = self.absent()
            return self._asked_where(words), ABSENT.format(words)
        words, obj = self._description()
        bare = words.removeprefix("the ").removeprefix("a ").removeprefix("an ")
        return self._asked_where(bare), "{}", Phrase(bare, (obj.box,))

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
        if len(self.objects) != 1:
            return None
        return self.rng.choice(("what is this?", "what is it?", "name it")), article(self.objects[0].name)

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
        """The boxes of all objects called "red ball" or "ball", from left to right."""
        return tuple(o.box for o in self.objects if words in (o.name, o.class_name))

    def _groups(self, plain: bool = False) -> list[Phrase]:
        """Every name in the scene with its boxes, from left to right: "a red ball", "two cats"; plain: "red ball"."""
        groups: dict[str, list[Box]] = {}
        for obj in self.objects:
            groups.setdefault(obj.name, []).append(obj.box)
        return [Phrase(name if plain else _counted(name, len(boxes)), tuple(boxes)) for name, boxes in groups.items()]

    def absent(self) -> str:
        """A name that no object has: a class that is there in another colour, another class, or one of ABSENT_NOUNS."""
        chance = self.rng.random()
        if chance < 0.12:
            word = self.rng.choice(ABSENT_NOUNS)
            return word if self.rng.random() < 0.5 else f"{self.rng.choice(list(COLORS))} {word}"
        if chance < 0.35:
            return self.rng.choice([k for k in OBJECT_CLASSES if k not in self.classes])
        class_name = self.rng.choice(self.objects).class_name if chance < 0.7 else self.rng.choice(list(OBJECT_CLASSES))
        return self.rng.choice([f"{c} {class_name}" for c in COLORS if f"{c} {class_name}" not in self.names])

    def _worded(self, words: str) -> str:
        return self.rng.choice((words, words, f"the {words}", article(words)))

    def _description(self) -> tuple[str, SceneObject]:
        """Words that fit exactly one object: colour and class, the class, its size, position or a relation."""
        for _ in range(12):
            obj = self.rng.choice(self.objects)
            describers = (
                self._by_name,
                self._by_name,
                self._by_class,
                self._by_size,
                self._by_place,
                self._by_relation,
            )
            words = self.rng.choice(describers)(obj)
            if words:
                return (words if words.startswith("the ") else self._worded(words)), obj
        obj = max(self.objects, key=lambda o: o.box.area)
        return f"the biggest {obj.class_name}", obj

    def _by_name(self, obj: SceneObject) -> str | None:
        return obj.name if self.names[obj.name] == 1 else None

    def _by_class(self, obj: SceneObject) -> str | None:
        if self.classes[obj.class_name] == 1:
            return obj.class_name
        return f"{obj.color} thing" if self.colors[obj.color] == 1 else None

    def _noun(self, obj: SceneObject) -> tuple[str, list[SceneObject]]:
        """A noun for the object, and the other objects that it fits too."""
        noun = self.rng.choice((obj.name, obj.name, obj.class_name))
        return noun, [o for o in self.objects if noun in (o.name, o.class_name) and o is not obj]

    def _by_size(self, obj: SceneObject) -> str | None:
        noun, rivals = self._noun(obj)
        if rivals and all(RELATIONS["bigger than"][1](obj.box, o.box, 0) for o in rivals):
            return "the " + self.rng.choice(("big ", "large ", "bigger ", "biggest ")) + noun
        if rivals and all(RELATIONS["smaller than"][1](obj.box, o.box, 0) for o in rivals):
            return "the " + self.rng.choice(("small ", "little ", "smaller ", "smallest ")) + noun
        return None

    def _by_place(self, obj: SceneObject) -> str | None:
        noun, rivals = self._noun(obj)
        if not rivals:
            return None
        phrasings = {
            "left of": ("the left {}", "the leftmost {}", "the {} on the left"),
            "right of": ("the right {}", "the rightmost {}", "the {} on the right"),
            "above": ("the upper {}", "the {} at the top", "the highest {}"),
            "below": ("the lower {}", "the {} at the bottom", "the lowest {}"),
        }
        fitting = [w for r, w in phrasings.items() if all(self._holds(r, obj, o) for o in rivals)]
        return self.rng.choice(self.rng.choice(fitting)).format(noun) if fitting else None

    def _by_relation(self, obj: SceneObject) -> str | None:
        anchors = [o for o in self.objects if self.names[o.name] == 1 and o is not obj]
        if not anchors:
            return None
        anchor, (noun, rivals) = self.rng.choice(anchors), self._noun(obj)
        if anchor in rivals and noun == anchor.class_name:
            return None
        relation = self.rng.choice(("left of", "right of", "above", "below"))
        if not self._holds(relation, obj, anchor):
            return None
        if any(self._holds(relation, o, anchor) is not False for o in rivals if o is not anchor):
            return None
        return f"the {noun} {self.rng.choice(PHRASINGS[relation])} the {anchor.name}"

    def _holds(self, relation: str, a: SceneObject, b: SceneObject) -> bool | None:
        """Whether the relation holds from a to b; None where it is too close to call."""
        opposite, holds = RELATIONS[relation]
        margin = MARGIN * self.side
        if holds(a.box, b.box, margin):
            return True
        return False if RELATIONS[opposite][1](a.box, b.box, margin) else None

    def _relation(self) -> tuple[str, str, str, bool] | None:
        """(name of a, relation, name of b, whether it holds), of two unambiguously named objects; half of them hold."""
        unique = [o for o in self.objects if self.names[o.name] == 1]
        if len(unique) < 2:
            return None
        a, b = self.rng.sample(unique, 2)
        holds = self.rng.random() < 0.5
        holding = [r for r in RELATIONS if self._holds(r, a, b)]
        if not holding:
            return None
        relation = self.rng.choice(holding)
        claimed = relation if holds else RELATIONS[relation][0]  # its opposite is clearly false
        words = [
            o.class_name if self.classes[o.class_name] == 1 and self.rng.random() < 0.3 else o.name for o in (a, b)
        ]
        return words[0], claimed, words[1], holds


def _counted(name: str, count: int) -> str:
    if count == 1:
        return article(name)
    color, class_name = name.split()
    return f"{NUMBERS[count]} {color} {plural(class_name)}"


def _listed(words: Sequence[str], start: str = "") -> str:
    text = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return start + text


def scene_questions(scene: Scene, weights: dict[str, float], count: int, rng: random.Random) -> list[QuestionAnswer]:
    """Up to `count` independent questions about the scene, each once; their tasks are drawn by weight.

    weights: of the methods of QuestionWriter: caption, grounding, refer, refer_to_class, refer_to_absent, identify,
    detection, statement, one_way, comparison, vqa, chat.
    """
    writer, out = QuestionWriter(scene, rng), {}
    names, probabilities = list(weights), list(weights.values())
    for _ in range(4 * count):
        exchange = getattr(writer, rng.choices(names, probabilities)[0])()
        if exchange is not None:
            out.setdefault(instruction_text(exchange, (scene.side, scene.side), "round", None), exchange)
        if len(out) == count:
            break
    return list(out.values())


def entities(scene: Scene) -> tuple[Phrase, ...]:
    """Every name of the objects of the scene, in the singular and the plural, with all boxes that it stands for."""
    found: dict[str, list[Box]] = {}
    for obj in scene.objects:
        for words in (obj.class_name, plural(obj.class_name), obj.name, f"{obj.color} {plural(obj.class_name)}"):
            boxes = found.setdefault(words, [])
            if obj.box not in boxes:
                boxes.append(obj.box)
    return tuple(Phrase(words, tuple(boxes)) for words, boxes in found.items())
