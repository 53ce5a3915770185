"""The base class of benchmarks with short answers: it counts rows left out, and scores answer by answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from minigptv2.data.annotations import InvalidRecord, Row
from minigptv2.data.dataset import ProblemCounter
from minigptv2.eval.benchmark import (
    Prediction,
    Published,
    Question,
    Scored,
    ScoredAnswer,
    ScoringRules,
    strip_special_tokens,
)


class ShortAnswerBenchmark(ABC):
    """A benchmark whose answers are scored one by one. A subclass fills `rows` and defines `score_answer`."""

    max_new_tokens = 20

    def __init__(self, name: str, files: Iterable[Path]):
        self.name, self.files = name, tuple(files)
        self.problems, self.excluded = ProblemCounter(), {}
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.rows: list[Question] = []

    def leave_out(self, number: int, reason: object, where: str) -> None:
        """Count a row that cannot be asked. number: from 0."""
        self.problems.add(str(reason), where)
        self.excluded[number] = str(reason)

    def usable(
        self, rows: Iterable[Row], images: Callable[[Row], Path], where: Callable[[Row], str] | None = None
    ) -> Iterator[tuple[Row, Path]]:
        """The rows that can be asked, each with its image's path; the others are counted.

        images: gives the path of a row's image; may raise InvalidRecord. where: names a row, for messages; default: its
        number in the first file.
        """
        for row in rows:
            try:
                if row.problem:
                    raise InvalidRecord(row.problem)
                path = images(row)
            except InvalidRecord as error:
                named = where(row) if where else f"{self.files[0].name} row {row.number}"
                self.leave_out(row.number, error, named)
                continue
            yield row, path

    def items(self) -> list[Question]:
        return list(self.rows)

    @abstractmethod
    def score_answer(self, item: Question, answer: str, rules: ScoringRules) -> dict[str, float] | None:
        """metric -> value for an answer without special tokens, the main metric first; None if it is malformed."""

    def expected(self, item: Question) -> str:
        """The expected answer in words, for a person."""
        return str(item.truth)

    def wrong(self, item: Question) -> dict[str, float]:
        """metric -> value for a malformed or missing answer."""
        return {"accuracy": 0.0}

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        scored, invalid = Scored(len(items)), set()
        for item in items:
            prediction = predictions[item.index]
            answer = strip_special_tokens(prediction.text)
            outcome = (
                None if prediction.finish_reason == "missing" or not answer else self.score_answer(item, answer, rules)
            )
            if outcome is None:
                outcome = self.wrong(item)
                if prediction.finish_reason != "missing":
                    invalid.add(item.index)
            for metric, value in outcome.items():
                scored.outcomes.setdefault(metric, {})[item.index] = value
            first = next(iter(outcome.values()), None)
            scored.cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words or item.instruction,
                    prediction.text,
                    self.expected(item),
                    score=first,
                )
            )
        scored.invalid = frozenset(invalid)
        return scored
