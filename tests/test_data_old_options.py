"""Options and names of older versions still open the same data, with one line that names the present one."""

import inspect

import pytest

from minigptv2 import renames
from minigptv2.data.dataset import DATASETS, RENAMED_DATASETS, open_dataset, resolve_class
from minigptv2.errors import UserError

OLD = {
    "count": 6,
    "seed": 7,
    "tasks": {"seek": 1, "refer": 2, "near_miss": 1},
    "exchanges": 3,
    "most": 4,
    "dialogues": 0.4,
    "first": 3,
    "side": 112,
    "repeats": 0.2,
}
NEW = {
    "count": 6,
    "seed": 7,
    "tasks": {"refer_to_class": 1, "refer": 2, "refer_to_absent": 1},
    "questions_per_scene": 3,
    "max_objects": 4,
    "dialogue_fraction": 0.4,
    "start": 3,
    "image_size": 112,
    "repeat_prob": 0.2,
}


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(renames, "_printed", set())


def test_scenes_with_old_options_are_the_same_samples(capsys):
    old, new = open_dataset("scenes", OLD), open_dataset("scenes", NEW)
    assert [old[i] for i in range(6)] == [new[i] for i in range(6)]
    notes = capsys.readouterr().err
    for line in (
        "options of scenes: exchanges is now called questions_per_scene",
        "scenes: seek is now called refer_to",
    ):
        assert notes.count(line) == 1


def test_a_task_of_scenes_under_both_names_is_refused():
    with pytest.raises(UserError, match="refer_to_class of scenes is given twice"):
        open_dataset("scenes", {"tasks": {"seek": 1, "refer_to_class": 1}})


@pytest.mark.parametrize("name", DATASETS)
def test_renamed_options_lead_to_options(name):
    reader = resolve_class("data set", name, DATASETS, "")
    options, renamed = inspect.signature(reader).parameters, getattr(reader, "RENAMED", {})
    assert set(renamed.values()) <= set(options) and not set(renamed) & set(options)


def test_old_names_of_data_sets_open(capsys):
    for old, new in RENAMED_DATASETS.items():
        assert old not in DATASETS
        assert open_dataset(old, {"count": 2})[1] == open_dataset(new, {"count": 2})[1]
        assert f"data set={old} is now written {new}" in capsys.readouterr().err
