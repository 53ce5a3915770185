"""What a loader did with every tensor of the files it was given: nothing is dropped without a name and a rule."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from minigptv2.errors import UserError


@dataclass
class TensorSource:
    """One file or folder. required: tensors that the model takes from it; found: those of them that are there and fit.

    renamed: name in the file -> in the model, where they differ by more than the part's name. resized: name -> how.
    ignored: name -> the rule that allows it. missing, unknown, non_finite: names. wrong_shape: name -> found and wanted
    shape, or a wrong kind of number.
    """

    role: str
    path: str
    required: int = 0
    found: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    wrong_shape: dict[str, str] = field(default_factory=dict)
    non_finite: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """In words, the gravest kind first."""
        return [
            *(f"{name} is missing" for name in self.missing),
            *(f"{name} has {what}" for name, what in self.wrong_shape.items()),
            *(f"{name} is unknown" for name in self.unknown),
            *(f"{name} holds NaN or infinity" for name in self.non_finite),
        ]

    def counts(self) -> dict[str, int]:
        return {
            name: value if isinstance(value, int) else len(value)
            for name, value in vars(self).items()
            if name not in ("role", "path")
        }


@dataclass
class LoadReport:
    """One `Source` for each file or folder. notes: what was taken for granted, and what looks doubtful."""

    sources: list[TensorSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Over all sources: required, found, renamed, resized, ignored, missing, unknown, wrong_shape, non_finite."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.counts())
        return dict(total)

    def to_json(self) -> str:
        return json.dumps({"counts": self.counts(), **asdict(self)}, indent=2) + "\n"

    def __str__(self) -> str:
        """A small table, then the rules by which tensors were ignored, then the notes."""
        rows = [(s.role, s.counts()) for s in self.sources] + [("together", self.counts())]
        heads = ["", *(name.replace("_", " ") for name in rows[-1][1])]
        cells = [heads, *([role, *map(str, counts.values())] for role, counts in rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]).rstrip()
            for row in cells
        ]
        for source in self.sources:
            lines += [f"{source.role}, resized: {name}, {how}" for name, how in source.resized.items()]
            for rule, count in Counter(source.ignored.values()).items():
                lines.append(f"{source.role}, ignored {count}: {rule}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class UnfitError(UserError):
    """Files that make no model. report: what was found in them."""

    def __init__(self, given: str, allowed: str, advice: str, report: LoadReport):
        super().__init__(given, allowed, advice)
        self.report = report
