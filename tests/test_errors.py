"""The exception for bad input, on its way between processes."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from minigptv2.errors import UserError


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
