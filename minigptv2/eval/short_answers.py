"""What benchmarks of short answers share: cleaning, counting, and the account of rows that were left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from minigptv2.data.annotations import Malformed, Row
from minigptv2.data.dataset import Problems
from minigptv2.eval.benchmark import Case, Item, Prediction, Published, Rules, Scored, cleaned


class ShortAnswers(ABC):
    """A benchmark whose answers are judged one by one; a subclass fills `rows` and says how to `judge`."""

    max_new_tokens = 20

    def __init__(self, name: str, files: Iterable[Path]):
        self.name, self.files = name, tuple(files)
        self.problems, self.excluded = Problems(), {}
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.rows: list[Item] = []

    def leave_out(self, number: int, kind: object, where: str) -> None:
        """Count a row that cannot be asked. number: from 0."""
        self.problems.add(str(kind), where)
        self.excluded[number] = str(kind)

    def usable(
        self, rows: Iterable[Row], images: Callable[[Row], Path], where: Callable[[Row], str] | None = None
    ) -> Iterator[tuple[Row, Path]]:
        """The rows that can be asked, each with its image's path; the others are counted. images: may raise Malformed.
        where: the place of a row in words, else its number in the first file."""
        for row in rows:
            try:
                if row.problem:
                    raise Malformed(row.problem)
                path = images(row)
            except Malformed as error:
                place = where(row) if where else f"{self.files[0].name} row {row.number}"
                self.leave_out(row.number, error, place)
                continue
            yield row, path

    def items(self) -> list[Item]:
        return list(self.rows)

    @abstractmethod
    def judge(self, item: Item, answer: str, rules: Rules) -> dict[str, float] | None:
        """The outcome of a cleaned answer by metric, the main one first; None where it is malformed."""

    def wanted(self, item: Item) -> str:
        """The right answer in words, for a person."""
        return str(item.truth)

    def wrong(self, item: Item) -> dict[str, float]:
        """The outcomes of no answer."""
        return {"accuracy": 0.0}

    def score(self, items: Sequence[Item], predictions: Mapping[int, Prediction], rules: Rules) -> Scored:
        scored, invalid = Scored(len(items)), set()
        for item in items:
            prediction = predictions[item.index]
            answer = cleaned(prediction.text)
            outcome = None if prediction.ended == "missing" or not answer else self.judge(item, answer, rules)
            if outcome is None:
                outcome = self.wrong(item)
                if prediction.ended != "missing":
                    invalid.add(item.index)
            for metric, value in outcome.items():
                scored.outcomes.setdefault(metric, {})[item.index] = value
            first = next(iter(outcome.values()), None)
            scored.cases.append(
                Case(
                    item.index,
                    item.image,
                    item.words or item.instruction,
                    prediction.text,
                    self.wanted(item),
                    right=first,
                )
            )
        scored.invalid = frozenset(invalid)
        return scored
