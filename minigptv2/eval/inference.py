"""Puts a benchmark's questions to a model: each image is encoded once for all its questions, whatever the batch.

An answer does not depend on the batch, nor on how many processes share the work. A question that cannot be put, as its
image is damaged, say, does not end the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Prediction, Question
from minigptv2.files import is_file
from minigptv2.images import open_image
from minigptv2.tasks import split_tag

if TYPE_CHECKING:
    from minigptv2.api import EncodedImage, MiniGPTv2

# batches whose images are kept at once: questions of one task, whose answers are of like length, share a batch, and
# those about one image lie together, since the language model reads it once a batch
WINDOW = 8
ENCODED_TOGETHER = 8  # images
BAD_IMAGE, BAD_QUESTION = "an image that cannot be opened", "a question that the model cannot take"


class Unasked(NamedTuple):
    """Why a question was not asked. kind: BAD_IMAGE or BAD_QUESTION. cause: names the image, or the row, and says why.

    All questions about one damaged image have the same.
    """

    kind: str
    cause: str


def group_by_image(items: Sequence[Question]) -> list[list[Question]]:
    """The items of each image, images in the order of their first item."""
    groups: dict[str, list[Question]] = {}
    for item in items:
        groups.setdefault(item.image_key, []).append(item)
    return list(groups.values())


def shard_of(items: Sequence[Question], rank: int, world: int) -> list[Question]:
    """What one of several processes asks: every world-th image with all its items."""
    return [item for group in group_by_image(items)[rank::world] for item in group]


def run_inference(
    model: MiniGPTv2,
    items: Sequence[Question],
    batch: int,
    max_new_tokens: int,
    keep: Callable[[list[Prediction]], None],
) -> dict[int, Unasked]:
    """Ask every item and hand answers to `keep` as they come, in no order. What could not be asked, by its index."""
    unasked: dict[int, Unasked] = {}
    for window in _windows(group_by_image(items), batch * WINDOW):
        seen, damaged = _see(model, [group[0] for group in window])
        unasked |= {i.index: damaged[i.image_key] for group in window for i in group if i.image_key in damaged}
        waiting = [item for group in window for item in group if item.image_key not in damaged]
        free = sorted((i for i in waiting if not i.candidates), key=lambda i: split_tag(i.instruction)[0])
        for start in range(0, len(free), batch):
            keep(_answers(model, free[start : start + batch], seen, max_new_tokens, unasked))
        for item in waiting:
            if item.candidates:
                try:
                    keep([rank(model, item, seen[item.image_key], batch)])
                except UserError as error:
                    unasked[item.index] = Unasked(BAD_QUESTION, f"row {item.index}: {error.given}")
    return unasked


def _answers(
    model: MiniGPTv2,
    items: Sequence[Question],
    seen: dict[str, EncodedImage | None],
    max_new_tokens: int,
    unasked: dict[int, Unasked],
) -> list[Prediction]:
    """The answers to these items at once; what the model refuses goes to `unasked`."""
    answers = model.chat_batch([(seen[i.image_key], i.instruction) for i in items], max_new_tokens, errors="return")
    out = []
    for item, answer in zip(items, answers):
        if isinstance(answer, UserError):
            unasked[item.index] = Unasked(BAD_QUESTION, f"row {item.index}: {answer.given}")
        else:
            out.append(Prediction(item.index, answer.text, answer.finish_reason, tuple(b.score for b in answer.boxes)))
    return out


def rank(model: MiniGPTv2, item: Question, image: EncodedImage | None, batch: int) -> Prediction:
    """The likeliest of an item's candidates: that of the highest mean log-probability over its tokens, the closing one
    included. The mean is over the candidate's own tokens, never over padding; of equal ones the first is taken."""
    means: list[float] = []
    for start in range(0, len(item.candidates), batch):
        mine = item.candidates[start : start + batch]
        for tokens in model.logprobs_batch([(image, item.instruction, c) for c in mine], errors="return"):
            if isinstance(tokens, UserError):
                raise tokens
            means.append(sum(t.logprob for t in tokens) / len(tokens))
    return Prediction(item.index, item.candidates[means.index(max(means))], logprobs=tuple(means))


def missing_image_paths(items: Sequence[Question]) -> list[str]:
    """The paths, each once, at which no file lies."""
    paths = dict.fromkeys(item.image for item in items if isinstance(item.image, (str, Path)))
    return [str(path) for path in paths if not is_file(path)]


def _windows(groups: list[list[Question]], size: int) -> Iterator[list[list[Question]]]:
    window, held = [], 0
    for group in groups:
        window.append(group)
        held += len(group)
        if held >= size:
            yield window
            window, held = [], 0
    if window:
        yield window


def _see(model: MiniGPTv2, firsts: Sequence[Question]) -> tuple[dict[str, EncodedImage | None], dict[str, Unasked]]:
    """Each image by its key, encoded a few at a time, None where an item has none; and those that cannot be opened."""
    seen: dict[str, EncodedImage | None] = {i.image_key: None for i in firsts}
    damaged: dict[str, Unasked] = {}
    shown = [i for i in firsts if i.image is not None]
    for start in range(0, len(shown), ENCODED_TOGETHER):
        opened = {}
        for item in shown[start : start + ENCODED_TOGETHER]:
            try:
                opened[item.image_key] = open_image(item.image() if callable(item.image) else item.image)
            except UserError as error:
                damaged[item.image_key] = Unasked(BAD_IMAGE, error.given)
        seen |= zip(opened, model.encode_images(list(opened.values())))
    return seen, damaged
