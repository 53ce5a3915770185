"""Questions and answers about scenes are correct, checked by a small independent parser of their words."""

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from minigptv2.boxes import Box, iou, parse
from minigptv2.data.scenes.objects import OBJECT_CLASSES
from minigptv2.data.scenes.questions import QuestionWriter, scene_questions
from minigptv2.data.scenes.vocabulary import ABSENT_NOUNS, NUMBERS, PHRASINGS, RELATIONS, article, plural
from minigptv2.data.scenes.world import COLORS, Scene, SceneObject, draw_scene
from minigptv2.sample import QuestionAnswer, Sample
from minigptv2.tasks import STATEMENT, TASKS, answer_text, render

TALK = {
    "caption": 1,
    "grounding": 1,
    "refer": 3,
    "refer_to_class": 1,
    "refer_to_absent": 1,
    "identify": 2,
    "detection": 3,
    "statement": 3,
    "vqa": 5,
    "chat": 4,
}
SIDE = 224
SAID = {words: name for name, ways in PHRASINGS.items() for words in ways}  # "to the left of": "left of"
BETWEEN = "|".join(sorted(map(re.escape, SAID), key=len, reverse=True))
EXTREMES = {
    "left": ("the left {}", "the leftmost {}", "the {} on the left"),
    "right": ("the right {}", "the rightmost {}", "the {} on the right"),
    "up": ("the upper {}", "the {} at the top", "the highest {}"),
    "down": ("the lower {}", "the {} at the bottom", "the lowest {}"),
    "big": tuple(f"the {w} {{}}" for w in ("big", "large", "bigger", "biggest")),
    "small": tuple(f"the {w} {{}}" for w in ("small", "little", "smaller", "smallest")),
}
OUTERMOST = {
    "on the left": "left",
    "furthest to the left": "left",
    "the leftmost thing": "left",
    "on the right": "right",
    "furthest to the right": "right",
    "the rightmost thing": "right",
    "at the top": "up",
    "the highest thing": "up",
    "at the bottom": "down",
    "the lowest thing": "down",
    "the biggest thing": "big",
    "the largest object": "big",
    "the smallest thing": "small",
}
LEAST = {
    "left": lambda b: b.center[0],
    "right": lambda b: -b.center[0],
    "up": lambda b: b.center[1],
    "down": lambda b: -b.center[1],
    "big": lambda b: -b.area,
    "small": lambda b: b.area,
}


def _is_so(relation: str, a: Box, b: Box) -> bool:
    """By the centres and areas alone, with no margin."""
    return {
        "left of": a.center[0] < b.center[0],
        "right of": a.center[0] > b.center[0],
        "above": a.center[1] < b.center[1],
        "below": a.center[1] > b.center[1],
        "bigger than": a.area > b.area,
        "smaller than": a.area < b.area,
    }[relation]


def _named(noun: str, objects) -> list[SceneObject]:
    return [o for o in objects if noun in (f"{o.color} {o.class_name}", o.class_name, f"{o.color} thing")]


def _fitting(words: str, objects) -> list[SceneObject]:
    """The objects that a phrase fits."""
    bare = re.sub("^(the|a|an) ", "", words)
    found = re.fullmatch(rf"(.+?) ({BETWEEN}) the (.+)", bare)
    if found:
        (anchor,) = _named(found[3], objects)
        return [o for o in _named(found[1], objects) if o is not anchor and _is_so(SAID[found[2]], o.box, anchor.box)]
    for extreme, ways in EXTREMES.items():
        for way in ways:
            found = re.fullmatch(way.format("(.+)"), "the " + bare)
            if found and _named(found[1], objects):
                values = {id(o): LEAST[extreme](o.box) for o in _named(found[1], objects)}
                return [o for o in objects if values.get(id(o)) == min(values.values())]
    return _named(bare, objects)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    drawn = (draw_scene((8, seed), SIDE) for seed in range(60))
    return [s for s in drawn if s.objects]


@pytest.fixture(scope="module")
def talk(scenes) -> list[tuple[Scene, QuestionAnswer]]:
    return [(s, e) for n, s in enumerate(scenes) for e in scene_questions(s, TALK, 14, random.Random(n))]


def _of(talk, *tasks: str) -> Iterator[tuple[Scene, QuestionAnswer]]:
    return ((s, e) for s, e in talk if e.task in tasks)


def test_every_task_occurs_and_questions_are_unique(scenes, talk):
    assert {e.task for _, e in talk} == set(TASKS)
    for number, scene in enumerate(scenes):
        asked = scene_questions(scene, TALK, 14, random.Random(number))
        assert 3 <= len(asked) <= 14
        turns = render(Sample(None, (SIDE, SIDE), tuple(asked)))
        questions = [o.pieces[0] for o in turns if o.role == "user"]
        assert len(set(questions)) == len(questions)
        assert len(turns) == 2 * len(asked)  # every exchange has an answer


def test_questions_are_deterministic(scenes):
    assert scene_questions(scenes[0], TALK, 9, random.Random(1)) == scene_questions(
        scenes[0], TALK, 9, random.Random(1)
    )


def test_referring_expression_fits_exactly_one_object(talk):
    ways, absent = Counter(), 0
    for scene, exchange in _of(talk, "refer", "chat"):
        if exchange.task == "chat" and not exchange.phrases:
            continue
        (phrase,) = exchange.phrases
        fitting = _fitting(phrase.text, scene.objects)
        if not phrase.boxes:
            absent += 1
            assert not fitting and exchange.question.endswith(phrase.text)
            continue
        assert [o.box for o in fitting] == list(phrase.boxes), f"{phrase.text!r} of {[o.name for o in scene.objects]}"
        ways["relation" if re.search(BETWEEN, phrase.text) else len(phrase.text.split())] += 1
    assert absent > 5 and ways["relation"] > 5 and ways[1] > 5 and ways[2] > 20


@pytest.mark.parametrize("way", ["_by_name", "_by_class", "_by_size", "_by_place", "_by_relation"])
def test_each_description_method_fits_exactly_one_object(scenes, way):
    rng, tried = random.Random(3), 0
    for scene in scenes:
        talk = QuestionWriter(scene, rng)
        for obj in talk.objects:
            for _ in range(4):
                words = getattr(talk, way)(obj)
                if words:
                    tried += 1
                    assert _fitting(words, scene.objects) == [obj], f"{words!r} of {[o.name for o in scene.objects]}"
    assert tried > 20


ASKED = re.compile(rf"(?:is the|The) (.+?)(?: is)? ({BETWEEN}) the (.+?)[.?]")


def test_statements_have_correct_answers(talk):
    said, counts = STATEMENT.partition("{}")[0], Counter()
    for scene, exchange in _of(talk, "vqa"):
        words = exchange.question.removeprefix(said)
        found = ASKED.fullmatch(words)
        if not found:
            continue
        (a,), (b,) = _named(found[1], scene.objects), _named(found[3], scene.objects)
        so = _is_so(SAID[found[2]], a.box, b.box)
        yes, no = ("true", "false") if words != exchange.question else ("yes", "no")
        assert exchange.answer == (yes if so else no), exchange
        counts[exchange.answer] += 1
    assert all(counts[answer] >= 5 for answer in ("true", "false", "yes", "no")), counts
    assert 0.6 < counts["true"] / counts["false"] < 1.6


def test_one_way_statements_have_correct_answers(scenes):
    said, heard = STATEMENT.partition("{}")[0], set()
    for number, scene in enumerate(scenes):
        talk = QuestionWriter(scene, random.Random(number))
        for exchange in filter(None, (talk.one_way() for _ in range(6))):
            a, relation, b = ASKED.fullmatch(exchange.question.removeprefix(said)).groups()
            (a,), (b,) = _named(a, scene.objects), _named(b, scene.objects)
            assert exchange.answer == ("true" if _is_so(SAID[relation], a.box, b.box) else "false")
            heard.add((SAID[relation], exchange.answer))
    assert heard == {(r, o) for r in ("left of", "above", "bigger than") for o in ("true", "false")}


def test_comparisons_have_correct_answers(scenes):
    asked, heard = re.compile("is the (.+?) ((?:\\w+) (?:of|than)|above|below) or (.+?) the (.+)\\?"), Counter()
    for number, scene in enumerate(scenes):
        talk = QuestionWriter(scene, random.Random(number))
        for exchange in filter(None, (talk.comparison() for _ in range(6))):
            a, first, second, b = asked.fullmatch(exchange.question).groups()
            (a,), (b,) = _named(a, scene.objects), _named(b, scene.objects)
            assert RELATIONS[first][0] == second
            assert [r.split()[0] for r in (first, second) if _is_so(r, a.box, b.box)] == [exchange.answer]
            heard[exchange.answer, first.startswith(exchange.answer)] += 1
    assert len(heard) == 2 * len(RELATIONS)  # each answer, named first and named second


def test_false_relation_is_false_by_a_margin():
    """One object is left of, above and smaller than the other: every relation with answer `false` is an opposite."""
    far = SceneObject("cat", "red", Box(10, 10, 30, 30)), SceneObject("dog", "blue", Box(120, 120, 200, 200))
    talk, heard = QuestionWriter(Scene(far, SIDE), random.Random(0)), set()
    for _ in range(300):
        a, relation, b, true = talk._relation()
        first, second = far if a in ("red cat", "cat") else far[::-1]
        assert b in (second.name, second.class_name)
        assert _is_so(relation, first.box, second.box) is true
        heard.add((relation, true))
    assert heard == {(r, o) for r in RELATIONS for o in (True, False)}
    near = SceneObject("cat", "red", Box(10, 10, 30, 30)), SceneObject("dog", "blue", Box(11, 11, 31, 31))
    talk = QuestionWriter(Scene(near, SIDE), random.Random(0))
    assert all(talk._relation() is None for _ in range(30))  # too close to call


def test_counts_and_yes_no_answers_are_correct(talk):
    heard = Counter()
    for scene, exchange in _of(talk, "vqa", "chat"):
        question, objects = exchange.question, scene.objects
        if found := re.fullmatch(r"(?:how many|count the) (.+?)(?: are there\?| do you see\?|\.)", question):
            names = [("things", "objects", plural(o.class_name), f"{o.color} {plural(o.class_name)}") for o in objects]
            many = [n for n in names if found[1] in n]
            assert exchange.answer == NUMBERS[len(many)]
        elif found := re.fullmatch(r"(?:is there|do you see) an? (.+?)(?: in the picture)?\?", question):
            assert exchange.answer == ("yes" if _named(found[1], objects) else "no")
        elif found := re.fullmatch(r"(?:what|which) colou?r (?:is|does) the (.+?)(?: have)?\?", question):
            assert [o.color for o in _named(found[1], objects)] == [exchange.answer]
        elif found := re.fullmatch(r"(?:what is|what is the|which thing is) (\w+)(?: thing)?\?", question):
            if found[1] not in COLORS:
                continue
            assert [o.class_name for o in objects if o.color == found[1]] == [exchange.answer]
        elif found := re.fullmatch(rf"what is ({BETWEEN}) the (.+)\?", question):
            (anchor,) = _named(found[2], objects)
            there = [o for o in objects if o is not anchor and _is_so(SAID[found[1]], o.box, anchor.box)]
            assert exchange.answer == (article(there[0].name) if there else "nothing")
            assert len(there) < 2
        else:
            continue
        heard[question.split()[0] + " " + exchange.answer.split()[0]] += 1
    assert heard["is yes"] > 5 and heard["is no"] > 5 and heard["how zero"] and heard["how one"] and heard["how two"]
    assert len(heard) > 20


def test_extreme_objects_are_correct(scenes):
    asked = set()
    for number, scene in enumerate(scenes):
        talk = QuestionWriter(scene, random.Random(number))
        for question, answer in filter(None, (talk._extreme() for _ in range(6))):
            words = question.removeprefix("what is ").removesuffix("?")
            asked.add(words)
            first = min(scene.objects, key=lambda o: LEAST[OUTERMOST[words]](o.box))
            assert answer == article(first.name), question
    assert asked == set(OUTERMOST)


def test_detection_finds_all_objects_and_no_absent_ones(talk):
    absent = 0
    for scene, exchange in _of(talk, "detection"):
        for phrase in exchange.phrases:
            fitting = sorted((o.box.xyxy for o in _named(phrase.text, scene.objects)), key=_middle)
            assert sorted((b.xyxy for b in phrase.boxes), key=_middle) == fitting
            absent += not fitting
        if exchange.question:
            assert sum(len(p.boxes) for p in exchange.phrases) == len(scene.objects)
    assert absent > 5


def _middle(box: tuple[float, ...]) -> tuple[float, float]:
    return box[0] + box[2], box[1] + box[3]


def test_absent_names_fit_no_object(scenes):
    forms = set()
    for number, scene in enumerate(scenes):
        talk = QuestionWriter(scene, random.Random(number))
        for _ in range(15):
            word = talk.absent()
            assert not _named(word, scene.objects)
            forms.add("foreign" if word.split()[-1] in ABSENT_NOUNS else len(word.split()))
    assert forms == {"foreign", 1, 2} and not set(ABSENT_NOUNS) & set(OBJECT_CLASSES)


def test_captions_name_every_object_once(talk):
    for scene, exchange in _of(talk, "caption"):
        for name, count in Counter(o.name for o in scene.objects).items():
            color, class_name = name.split()
            words = f"{NUMBERS[count]} {color} {plural(class_name)}" if count > 1 else article(name)
            assert len(re.findall(rf"\b{words}\b", exchange.answer)) == 1, (words, exchange.answer)


def test_grounded_captions_give_each_object_a_phrase_and_box(talk):
    for scene, exchange in _of(talk, "grounding"):
        phrases = [(p.text, *p.boxes) for p in exchange.phrases]
        assert sorted(phrases, key=str) == sorted(((article(o.name), o.box) for o in scene.objects), key=str)
        lefts = [box.center[0] for _, box in phrases]
        assert lefts == sorted(lefts) and exchange.answer.count("{}") == len(phrases)


def test_identify_names_the_object_in_the_box(talk):
    for scene, exchange in _of(talk, "identify"):
        (phrase,) = exchange.phrases
        best = max(scene.objects, key=lambda o: iou(o.box, phrase.boxes[0]))
        assert best.name == phrase.text and iou(best.box, phrase.boxes[0]) > 0.7


def test_boxes_survive_formatting_and_parsing(talk):
    """Rounding moves an edge by at most half a hundredth, so a box of 10 hundredths or more keeps an IoU of 0.81."""
    large = 0
    for _, exchange in talk:
        if exchange.task == "identify":
            continue
        text = answer_text(exchange, (SIDE, SIDE), "round")
        found, true = parse(text, SIDE, SIDE), [b for p in exchange.phrases for b in p.boxes]
        assert len(found.boxes) == len(true) and not found.problems, text
        for a, b in zip(found.boxes, true):
            assert max(abs(x - y) for x, y in zip(a.xyxy, b.xyxy)) <= 0.0051 * SIDE
            if min(b.x2 - b.x1, b.y2 - b.y1) >= 0.1 * SIDE:
                assert iou(a, b) > 0.8
                large += 1
        assert "There is no the " not in text and "There is no a" not in text
    assert large > 200


def test_it_is_always_the_same_object_in_a_dialogue(scenes):
    heard = Counter()
    for number, scene in enumerate(scenes):
        turns = QuestionWriter(scene, random.Random(number)).dialogue()
        if not turns:
            assert all(n > 1 for n in Counter(o.name for o in scene.objects).values())
            continue
        assert 3 <= len(turns) <= 6 and turns[0].answer == "yes"
        (it,) = _named(re.fullmatch(r"is there an? (.+)\?", turns[0].question)[1], scene.objects)
        aside = False
        for exchange in turns[1:]:
            question, answer = exchange.question, exchange.answer
            heard[question.split()[0]] += 1
            if question.startswith("and "):
                aside = True
                missing = re.fullmatch(r"and is there an? (.+)\?", question)
                if missing:
                    assert answer == "no" and not _named(missing[1], scene.objects)
                else:
                    (other,) = _named(re.fullmatch("and where is the (.+)\\?", question)[1], scene.objects)
                    assert exchange.phrases[0].boxes == (other.box,) and other is not it
                continue
            assert not aside, [e.question for e in turns]  # "it" would be the other object
            if found := re.fullmatch(rf"is it ({BETWEEN}) the (.+)\?", question):
                (other,) = _named(found[2], scene.objects)
                assert answer == ("yes" if _is_so(SAID[found[1]], it.box, other.box) else "no")
            elif "col" in question:
                assert answer == it.color
            elif question.startswith("what"):
                assert answer.split()[-1] == it.class_name
            else:
                assert exchange.phrases[0].boxes == (it.box,)
    assert min(heard[w] for w in ("and", "is", "what", "where")) > 3
