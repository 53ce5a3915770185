"""Unnatural Instructions: instructions and answers written by a language model, without images. Card:
datasets/unnatural_instructions.md.

    {"instruction": "You are given ...", "instances": [{"instruction_with_input": "You are given ... Tom ...",
     "input": "Tom ...", "constraints": "The output should be ...", "output": "Yes"}]}     a line of core_data.jsonl
"""

from __future__ import annotations

from typing import Any

from minigptv2.data.annotations import InvalidRecord, field
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout, require, require_records
from minigptv2.data.json_files import iter_json_list, read_json_lines
from minigptv2.sample import QuestionAnswer, Sample

PAGE = "https://github.com/orhonovich/unnatural-instructions"
LAYOUT: Layout = {
    "core": (("core_data.jsonl", "data/core_data.jsonl"),),
    "full": (("full_data.jsonl", "data/full_data.jsonl"),),
    "filtered": (
        ("filtered_unnatural_instruction.json", "unnatural_instructions/filtered_unnatural_instruction.json"),
    ),
}
COUNTS = {"core": 68478}
DOWNLOADS = {
    f"https://github.com/orhonovich/unnatural-instructions/raw/main/data/{name}_data.zip": "data/"
    for name in ("core", "full")
}
NO_CONSTRAINT = ("", "none", "none.")


class UnnaturalInstructions:
    """One record per instance, without an image, verbatim.

    root: holds `core_data.jsonl` or `full_data.jsonl` (whose reformulations are records, too), or, as split
    "filtered", the list that MiniGPT-v2 was trained on.
    """

    def __init__(self, root: str, split: str = "core"):
        self.problems = ProblemCounter()
        (file,) = require(root, LAYOUT, split, PAGE)
        self.name = file.name
        rows = read_json_lines(file) if file.suffix == ".jsonl" else enumerate(iter_json_list(file))
        self.records: list[tuple[int, str, str]] = []  # row, instruction, answer
        for number, row in rows:
            try:
                for instance in _instances(row):
                    self._add(number, instance)
            except InvalidRecord as error:
                self.problems.add(str(error), f"{self.name} row {number}")
        require_records(len(self.records), file, self.problems)

    def _add(self, number: int, instance: Any) -> None:
        try:
            self.records.append((number, *_instruction_and_answer(instance)))
        except InvalidRecord as error:
            self.problems.add(str(error), f"{self.name} row {number}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        number, instruction, answer = self.records[index]
        question_answer = QuestionAnswer("chat", question=instruction, answer=answer, verbatim=True)
        return Sample(None, (0, 0), (question_answer,), f"{self.name} row {number}")


def _instances(row: Any) -> list:
    """The instances of a row and its reformulations. Raises InvalidRecord."""
    if isinstance(row, InvalidRecord):
        raise row
    more = row.get("reformulations") if isinstance(row, dict) else None
    return field(row, "instances", list) + (more if isinstance(more, list) else [])


def _instruction_and_answer(instance: Any) -> tuple[str, str]:
    """The instruction, with its constraints, if any, and the answer."""
    instruction, answer = field(instance, "instruction_with_input", str).strip(), field(instance, "output", str).strip()
    constraints = instance.get("constraints")
    if isinstance(constraints, str) and constraints.strip().lower() not in NO_CONSTRAINT:
        instruction += " " + constraints.strip()
    if not instruction or not answer:
        raise InvalidRecord("an empty instruction or output")
    return instruction, answer
