"""Readers of other packages."""

import sys
from types import ModuleType

import pytest

from minigptv2.data.dataset import ProblemCounter, open_dataset
from minigptv2.sample import QuestionAnswer, Sample


@pytest.fixture
def old_reader(monkeypatch):
    """The name of a reader whose optional methods have the names of older versions."""

    class Old:
        def __init__(self, count: int):
            self.count, self.problems = count, ProblemCounter()

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return Sample(f"{index}.jpg", (0, 0), (QuestionAnswer("caption", answer="a cat"),), f"row {index}")

        def picture(self, index):
            return f"{index}.jpg"

        def missing_pictures(self):
            return ["2.jpg"]

    module = ModuleType("old_reader")
    module.Old = Old
    monkeypatch.setitem(sys.modules, "old_reader", module)
    return "old_reader:Old"


def test_methods_with_old_names_are_called_under_their_present_ones(old_reader, capsys):
    dataset = open_dataset(old_reader, {"count": 3})
    assert dataset.image(1) == dataset[1].image == "1.jpg" and dataset.missing_images() == ["2.jpg"]
    open_dataset(old_reader, {"count": 3})
    assert capsys.readouterr().err.splitlines() == [
        "note: the method picture of the data set old_reader:Old is now called image.",
        "note: the method missing_pictures of the data set old_reader:Old is now called missing_images.",
    ]
