import random

import numpy as np
import pytest

from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Question, Scored
from minigptv2.eval.bootstrap import bootstrap, corpus_interval, mean_interval


def items_of(images):
    return [Question(i, None, (0, 0), "", image) for i, image in enumerate(images)]


def test_one_question_an_image_agrees_with_the_normal_approximation():
    """2,000 independent answers, 70 % right: p +- 1.96 sqrt(p (1 - p) / n)."""
    values = {i: float(i < 1400) for i in range(2000)}
    low, high = mean_interval(values, {i: str(i) for i in values}, 4000)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert low == pytest.approx(0.7 - half, abs=half / 10) and high == pytest.approx(0.7 + half, abs=half / 10)


def test_questions_that_agree_within_an_image_widen_the_interval_by_their_number():
    """200 images of 9 equal answers hold 200 answers' worth of information: three times the width of 1,800."""
    rng = random.Random(0)
    of_image = [float(rng.random() < 0.6) for _ in range(200)]
    values = {i: of_image[i // 9] for i in range(1800)}
    clustered = mean_interval(values, {i: str(i // 9) for i in values}, 3000)
    single = mean_interval(values, {i: str(i) for i in values}, 3000)
    assert (clustered[1] - clustered[0]) / (single[1] - single[0]) == pytest.approx(3, rel=0.1)


def test_images_of_different_numbers_of_questions_count_by_question():
    """The estimate drawn around is the mean over questions, not over images."""
    values = {i: float(i >= 900) for i in range(1000)}  # 100 images of 9 wrong ones, 100 of one right
    image_of = {i: f"a{i // 9}" if i < 900 else f"b{i}" for i in values}
    low, high = mean_interval(values, image_of)
    assert low < 0.1 < high < 0.2


def test_the_same_seed_gives_the_same_numbers_in_blocks_or_not(monkeypatch):
    scored = Scored(
        100,
        outcomes={"accuracy": {i: (i * 7 % 10) / 10 for i in range(100)}},
        corpus={"max": lambda chosen: float(max(chosen))},
    )
    items = items_of(str(i // 4) for i in range(100))
    first = bootstrap(scored, items)
    assert first == bootstrap(scored, items) and set(first) == {"accuracy", "max"}
    assert first != bootstrap(scored, items, seed=1)
    monkeypatch.setattr("minigptv2.eval.bootstrap._BLOCK", 100)
    assert bootstrap(scored, items) == first


def test_a_corpus_figure_that_is_a_mean_agrees_with_the_mean():
    values = {i: float(i % 3 == 0) for i in range(600)}
    image_of = {i: str(i // 2) for i in values}
    slow = corpus_interval(lambda chosen: sum(values[i] for i in chosen) / len(chosen), image_of, 1000)
    quick = mean_interval(values, image_of, 1000)
    assert slow == pytest.approx(quick, abs=0.006)


def test_items_of_an_image_are_drawn_together_and_as_often_as_drawn():
    seen = []
    corpus_interval(lambda chosen: seen.append(chosen) or 1.0, {0: "a", 1: "a", 2: "b"}, 50)
    assert all(chosen.count(0) == chosen.count(1) and chosen.count(0) + chosen.count(2) == 2 for chosen in seen)
    assert {chosen.count(0) for chosen in seen} == {0, 1, 2}


def test_draws_without_a_value_are_skipped_and_too_many_give_no_interval():
    def sometimes(chosen):
        if 0 in chosen:
            raise UserError("only one class", "", "")
        return float("nan") if 1 in chosen else 2.0

    assert corpus_interval(sometimes, {i: str(i) for i in range(10)}) is None
    assert corpus_interval(lambda c: None if 0 in c and 1 in c else 1.0, {i: str(i) for i in range(10)}) == (1, 1)


def test_one_image_has_no_interval():
    scored = Scored(2, outcomes={"accuracy": {0: 1.0, 1: 0.0}}, corpus={"f": lambda c: 1.0})
    assert bootstrap(scored, items_of("aa")) == {}


def test_a_metric_of_some_items_only_is_drawn_over_their_images():
    scored = Scored(40, outcomes={"yes/no": {i: float(i % 2) for i in range(20)}})
    low, high = bootstrap(scored, items_of(map(str, range(40))))["yes/no"]
    assert 0.2 < low < 0.5 < high < 0.8
