"""What a data set is to the rest of the program: records by number, and an account of what was wrong with its files.

`DATASETS` names every reader; a name with a colon, `my_package.module:Class`, is imported, so that an outsider's reader
needs no change here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from minigptv2.errors import UserError
from minigptv2.sample import Sample

DATASETS: dict[str, str] = {
    "scenes": "minigptv2.data.scene_source:Scenes",
    "sums": "minigptv2.data.sums:Sums",
}
_EXAMPLES = 3


class Dataset(Protocol):
    """Records by number. `dataset[i]` is a function of i alone, quick, and opens no picture: its `image` is a path, or
    an object that `images.open_image` takes. problems: what was wrong with rows that were left out.

    Two methods are optional. `sample(index, rng) -> Sample`: of a data set that asks other questions about a picture in
    every epoch; training calls it in place of `dataset[index]`, with a random.Random of the sample's position.
    `picture(index)`: `dataset[index].image` where that costs less than the whole record.
    """

    problems: Problems

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Problems:
    """Counts what was wrong, by kind, and keeps the first examples of each."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """kind: "a box outside the picture"; example: where, "val.json row 17"."""
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append(example)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> Iterator[str]:
        """One line a kind, the most frequent first: count, kind, examples."""
        for kind, count in self.counts.most_common():
            more = ", ..." if count > len(self.examples[kind]) else ""
            yield f"{count} x {kind}: {', '.join(self.examples[kind])}{more}"


def open_dataset(name: str, options: dict[str, Any]) -> Dataset:
    """The reader of this name with its options (`root`, `split`, ...).

    Raises UserError for an unknown name or option, with the nearest known one, and what the reader itself raises.
    """
    if ":" not in name and name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1)
        raise UserError(
            f"The data set {name!r} is unknown.",
            f"Known: {', '.join(DATASETS)}; or your own, as my_package.module:Class.",
            f"Did you mean {near[0]}?" if near else "See datasets/ for what each is.",
        )  # fmt: skip
    module, _, attribute = (DATASETS.get(name) or name).partition(":")
    try:
        reader = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"The data set {name!r} cannot be imported: {error}", "It must be my_package.module:Class.",
            "Check the name, and that its package is installed.",
        ) from None  # fmt: skip
    known = list(inspect.signature(reader).parameters)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            raise UserError(
                f"The data set {name!r} has no option {option!r}.", f"Its options: {', '.join(known)}.",
                f"Did you mean {near[0]}?" if near else "Remove it.",
            )  # fmt: skip
    return reader(**options)
