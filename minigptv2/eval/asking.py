"""Puts a benchmark's questions to a model: each picture is encoded once for all its questions, whatever the batch.

An answer does not depend on the batch, nor on how many processes share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.eval.benchmark import Item, Prediction
from minigptv2.tasks import split_tag

if TYPE_CHECKING:
    from minigptv2.api import MiniGPTv2, Seen

# batches whose pictures are kept at once: questions of one task, whose answers are of like length, share a batch, and
# those about one picture lie together, since the language model reads it once a batch
WINDOW = 8
ENCODED_TOGETHER = 8  # pictures


def pictures_of(items: Sequence[Item]) -> list[list[Item]]:
    """The items of each picture, pictures in the order of their first item."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.picture, []).append(item)
    return list(groups.values())


def share_of(items: Sequence[Item], rank: int, world: int) -> list[Item]:
    """What one of several processes asks: every world-th picture with all its items."""
    return [item for group in pictures_of(items)[rank::world] for item in group]


def ask(
    model: MiniGPTv2, items: Sequence[Item], batch: int, max_new_tokens: int,
    keep: Callable[[list[Prediction]], None],
) -> None:  # fmt: skip
    """Ask every item and hand answers to `keep` as they come, in no order."""
    for window in _windows(pictures_of(items), batch * WINDOW):
        seen = _see(model, [group[0] for group in window])
        waiting = [item for group in window for item in group]
        free = sorted((i for i in waiting if not i.candidates), key=lambda i: split_tag(i.instruction)[0])
        for start in range(0, len(free), batch):
            mine = free[start : start + batch]
            answers = model.chat_batch([(seen[i.picture], i.instruction) for i in mine], max_new_tokens)
            keep([
                Prediction(i.index, a.text, a.ended, tuple(b.score for b in a.boxes)) for i, a in zip(mine, answers)
            ])  # fmt: skip
        for item in waiting:
            if item.candidates:
                keep([rank(model, item, seen[item.picture], batch)])


def rank(model: MiniGPTv2, item: Item, picture: Seen | None, batch: int) -> Prediction:
    """The likeliest of an item's candidates: that of the highest mean log-probability over its tokens, the closing one
    included. The mean is over the candidate's own tokens, never over padding; of equal ones the first is taken."""
    means: list[float] = []
    for start in range(0, len(item.candidates), batch):
        mine = item.candidates[start : start + batch]
        for tokens in model.logprobs_batch([(picture, item.instruction, c) for c in mine]):
            means.append(sum(t.logprob for t in tokens) / len(tokens))
    return Prediction(item.index, item.candidates[means.index(max(means))], logprobs=tuple(means))


def absent_pictures(items: Sequence[Item]) -> list[str]:
    """The paths, each once, at which no file lies."""
    paths = dict.fromkeys(item.image for item in items if isinstance(item.image, (str, Path)))
    return [str(path) for path in paths if not Path(path).is_file()]


def _windows(groups: list[list[Item]], size: int) -> Iterator[list[list[Item]]]:
    window, held = [], 0
    for group in groups:
        window.append(group)
        held += len(group)
        if held >= size:
            yield window
            window, held = [], 0
    if window:
        yield window


def _see(model: MiniGPTv2, firsts: Sequence[Item]) -> dict[str, Seen | None]:
    """Each picture by its key, encoded a few at a time; None where an item has none."""
    seen: dict[str, Seen | None] = {i.picture: None for i in firsts}
    shown = [i for i in firsts if i.image is not None]
    for start in range(0, len(shown), ENCODED_TOGETHER):
        mine = shown[start : start + ENCODED_TOGETHER]
        opened = model.see([i.image() if callable(i.image) else i.image for i in mine])
        seen |= {i.picture: s for i, s in zip(mine, opened)}
    return seen
