"""The exception for bad input, on its way between processes."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from minigptv2.errors import UserError, unknown


def _fails():
    raise UserError("given", "allowed", "advice")


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_user_error_is_copied_and_pickled_whole(way):
    error = way(UserError("given", "allowed", "advice"))
    assert (error.given, error.allowed, error.advice) == ("given", "allowed", "advice")
    assert str(error) == "given\n  allowed\n  advice"


def test_user_error_comes_back_from_a_worker_process():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(UserError, match="given"):
            pool.submit(_fails).result(timeout=60)


@pytest.mark.parametrize(
    ("name", "advice"), [("refr", "Did you mean [refer]?"), ("zzz", "Leave it away."), (3, "Leave it away.")]
)
def test_an_unknown_name_is_told_with_the_nearest_known_one(name, advice):
    error = unknown("No such tag.", name, iter(["refer", "vqa"]), "Leave it away.", form="[{}]")
    assert (error.given, error.allowed, error.advice) == ("No such tag.", "Known: refer, vqa.", advice)
    assert unknown("No such tag.", name, [], "a", "Tags: none.").allowed == "Tags: none."
