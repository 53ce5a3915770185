"""Asks a model a benchmark's questions. Each image is encoded once for all its questions.

An answer depends neither on the batch size nor on the number of processes. If a question cannot be asked, for example
since its image is damaged, the others are asked all the same.
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

# Batches that are planned together. In a window, questions of one task share batches, as their answers have similar
# lengths; and questions about one image are neighbours, as the language model reads an image once per batch.
WINDOW = 8
IMAGE_BATCH_SIZE = 8
BAD_IMAGE, BAD_QUESTION = "an image that cannot be opened", "a question that the model cannot take"


class Unasked(NamedTuple):
    """Why a question was not asked. reason: BAD_IMAGE or BAD_QUESTION. cause: names the image or row, and why;
    it is equal for all questions about one damaged image."""

    reason: str
    cause: str


def group_by_image(items: Sequence[Question]) -> list[list[Question]]:
    """The questions about each image; images in the order of their first question."""
    groups: dict[str, list[Question]] = {}
    for item in items:
        groups.setdefault(item.image_key, []).append(item)
    return list(groups.values())


def shard_of(items: Sequence[Question], rank: int, world_size: int) -> list[Question]:
    """The questions of one of several processes: every world_size-th image with all its questions."""
    return [item for group in group_by_image(items)[rank::world_size] for item in group]


def run_inference(
    model: MiniGPTv2,
    items: Sequence[Question],
    batch_size: int,
    max_new_tokens: int,
    keep: Callable[[list[Prediction]], None],
) -> dict[int, Unasked]:
    """Ask every question; answers go to `keep` as they come, in any order. Returns index -> why it was not asked."""
    unasked: dict[int, Unasked] = {}
    for window in _windows(group_by_image(items), batch_size * WINDOW):
        encoded, damaged = _encode_images(model, [group[0] for group in window])
        unasked |= {i.index: damaged[i.image_key] for group in window for i in group if i.image_key in damaged}
        askable = [item for group in window for item in group if item.image_key not in damaged]
        free = sorted((i for i in askable if not i.candidates), key=lambda i: split_tag(i.instruction)[0])
        for start in range(0, len(free), batch_size):
            keep(_answers(model, free[start : start + batch_size], encoded, max_new_tokens, unasked))
        for item in askable:
            if item.candidates:
                try:
                    keep([rank(model, item, encoded[item.image_key], batch_size)])
                except UserError as error:
                    unasked[item.index] = Unasked(BAD_QUESTION, f"row {item.index}: {error.given}")
    return unasked


def _answers(
    model: MiniGPTv2,
    items: Sequence[Question],
    encoded: dict[str, EncodedImage | None],
    max_new_tokens: int,
    unasked: dict[int, Unasked],
) -> list[Prediction]:
    """The answers to these questions, as one batch; what the model refuses goes to `unasked`."""
    answers = model.chat_batch([(encoded[i.image_key], i.instruction) for i in items], max_new_tokens, errors="return")
    out = []
    for item, answer in zip(items, answers):
        if isinstance(answer, UserError):
            unasked[item.index] = Unasked(BAD_QUESTION, f"row {item.index}: {answer.given}")
        else:
            out.append(Prediction(item.index, answer.text, answer.finish_reason, tuple(b.score for b in answer.boxes)))
    return out


def rank(model: MiniGPTv2, item: Question, image: EncodedImage | None, batch_size: int) -> Prediction:
    """The candidate with the highest mean log-probability over its tokens and the end token; the first of equals."""
    means: list[float] = []
    for start in range(0, len(item.candidates), batch_size):
        candidates = item.candidates[start : start + batch_size]
        for tokens in model.logprobs_batch([(image, item.instruction, c) for c in candidates], errors="return"):
            if isinstance(tokens, UserError):
                raise tokens
            means.append(sum(t.logprob for t in tokens) / len(tokens))
    return Prediction(item.index, item.candidates[means.index(max(means))], logprobs=tuple(means))


def missing_image_paths(items: Sequence[Question]) -> list[str]:
    """The paths of images that do not exist, each once."""
    paths = dict.fromkeys(item.image for item in items if isinstance(item.image, (str, Path)))
    return [str(path) for path in paths if not is_file(path)]


def _windows(groups: list[list[Question]], size: int) -> Iterator[list[list[Question]]]:
    window, count = [], 0
    for group in groups:
        window.append(group)
        count += len(group)
        if count >= size:
            yield window
            window, count = [], 0
    if window:
        yield window


def _encode_images(
    model: MiniGPTv2, firsts: Sequence[Question]
) -> tuple[dict[str, EncodedImage | None], dict[str, Unasked]]:
    """image key -> encoded image, None for a question without an image; and image key -> why it cannot be opened.

    firsts: one question for each image.
    """
    encoded: dict[str, EncodedImage | None] = {i.image_key: None for i in firsts}
    damaged: dict[str, Unasked] = {}
    with_image = [i for i in firsts if i.image is not None]
    for start in range(0, len(with_image), IMAGE_BATCH_SIZE):
        opened = {}
        for item in with_image[start : start + IMAGE_BATCH_SIZE]:
            try:
                opened[item.image_key] = open_image(item.image() if callable(item.image) else item.image)
            except UserError as error:
                damaged[item.image_key] = Unasked(BAD_IMAGE, error.given)
        encoded |= zip(opened, model.encode_images(list(opened.values())))
    return encoded, damaged
