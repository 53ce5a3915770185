"""The exception for bad input: passed between processes, and built from an unknown name or a system error."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from minigptv2.errors import UserError, as_user_error, unknown


def _fails():
    raise UserError("given", "allowed", "advice")


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_user_error_survives_copy_and_pickle(way):
    error = way(UserError("given", "allowed", "advice"))
    assert (error.given, error.allowed, error.advice) == ("given", "allowed", "advice")
    assert str(error) == "given\n  allowed\n  advice"


def test_user_error_comes_back_from_a_worker_process():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(UserError, match="given"):
            pool.submit(_fails).result(timeout=60)


@pytest.mark.parametrize(("name", "advice"), [("refr", "Did you mean [refer]?"), ("zzz", "Omit it."), (3, "Omit it.")])
def test_unknown_suggests_the_most_similar_name(name, advice):
    error = unknown("No such tag.", name, iter(["refer", "vqa"]), "Omit it.", form="[{}]")
    assert (error.given, error.allowed, error.advice) == ("No such tag.", "Known: refer, vqa.", advice)
    assert unknown("No such tag.", name, [], "a", "Tags: none.").allowed == "Tags: none."


@pytest.mark.parametrize("content, words", [(None, "No such file or directory"), (b"\xff", "codec can't decode")])
def test_as_user_error_contains_the_system_message(tmp_path, content, words):
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words) as error, as_user_error("The file cannot be read.", "Check it."):
        file.read_text(encoding="utf-8")
    assert error.value.given == "The file cannot be read." and error.value.advice == "Check it."
    assert isinstance(error.value.__cause__, OSError if content is None else UnicodeDecodeError)
