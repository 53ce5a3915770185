"""What a loader did with every tensor of its files. A tensor is ignored only by a rule, which is listed here."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from minigptv2.errors import UserError


@dataclass
class TensorSource:
    """One file or folder. required: number of tensors that the model needs from it; found: those that exist and fit.

    renamed: name in the file -> in the model, if they differ by more than a prefix. resized: name -> change of size.
    ignored: name -> the rule that allows it. missing, unknown, non_finite: names. wrong_shape: name -> shape in the
    file and expected shape, or a wrong dtype.
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
        """One line for each tensor that does not fit: missing, wrong shape, unknown, not finite, in this order."""
        return [
            *(f"{name} is missing" for name in self.missing),
            *(f"{name} has {problem}" for name, problem in self.wrong_shape.items()),
            *(f"{name} is unknown" for name in self.unknown),
            *(f"{name} holds NaN or infinity" for name in self.non_finite),
        ]

    def counts(self) -> dict[str, int]:
        """The number of tensors by what became of them."""
        return {
            name: value if isinstance(value, int) else len(value)
            for name, value in vars(self).items()
            if name not in ("role", "path")
        }


@dataclass
class LoadReport:
    """One `TensorSource` for each file or folder. notes: assumptions that were made, and what looks doubtful."""

    sources: list[TensorSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Sum over sources: required, found, renamed, resized, ignored, missing, unknown, wrong_shape, non_finite."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.counts())
        return dict(total)

    def to_json(self) -> str:
        """The report as the text of report.json."""
        return json.dumps({"counts": self.counts(), **asdict(self)}, indent=2) + "\n"

    def __str__(self) -> str:
        """A table of counts, then the rules by which tensors were ignored, then the notes."""
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
    """Files that do not fit together as a model. report: what was found in them."""

    def __init__(self, given: str, allowed: str, advice: str, report: LoadReport):
        super().__init__(given, allowed, advice)
        self.report = report
