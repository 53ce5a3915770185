"""Questions of evaluation kits as questions to this model: the wording, the image, and the length of the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from minigptv2.api import MAX_NEW_TOKENS
from minigptv2.errors import UserError
from minigptv2.sample import Sample
from minigptv2.tasks import EVALUATION, TASKS, question_of, render

SEVERAL = ("refuse", "first")
_LOG = logging.getLogger(__name__)


class QuestionAsker:
    """Opens the model and words the questions. Values may be text, as kits pass them from a command line.

    pretrained: a model folder, "" for the bundled one. prompt: a key of `tasks.TASKS` (its tag precedes the question)
    or of `tasks.EVALUATION` (the published wording), or your own wording with {} for the question. several: "refuse"
    questions about several images, or ask about the "first" one alone. model: an open model, instead of pretrained.
    """

    def __init__(
        self,
        pretrained: str = "",
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        prompt: str = "vqa",
        several: str = "refuse",
        max_new_tokens: int | str = MAX_NEW_TOKENS,
        model: Any = None,
    ):
        from minigptv2.api import MiniGPTv2

        self.wording = wording_of(prompt)
        if several not in SEVERAL:
            raise UserError(f"several is {several!r}.", f"It must be one of {', '.join(SEVERAL)}.", "Omit it.")
        self.several = several
        self.max_new_tokens = positive_int("max_new_tokens", max_new_tokens)
        self.model = model or MiniGPTv2.from_pretrained(pretrained or None, device or None, dtype, quantize or None)
        self._warned_of_room = False

    def question(self, text: str, images: Sequence[Any]) -> tuple[Any, str]:
        """(image or None, instruction), as `MiniGPTv2.chat_batch` takes it."""
        return self.image(images), self.wording.replace("{}", " ".join(text.replace("<image>", " ").split()))

    def room(self, image: Any, instruction: str) -> int:
        """The number of tokens that the context leaves for an answer to this question alone, 1 or more.

        Raises UserError if the question itself does not fit.
        """
        encoder = self.model.encoder
        turns = render(Sample(image, (1, 1), (question_of(instruction),)), self.model.config.box_rounding)
        return max(1, encoder.context - len(encoder.encode(turns)))

    def limit(self, question: tuple[Any, str], max_new_tokens: int) -> int:
        """The length limit of the answer: max_new_tokens, or the room that the question leaves if that is less, with
        one warning."""
        room = self.room(*question)
        if room < max_new_tokens and not self._warned_of_room:
            _LOG.warning(
                "%d new tokens do not fit after a question; its answer gets the %d that are left, and so do others.",
                max_new_tokens,
                room,
            )
            self._warned_of_room = True
        return min(max_new_tokens, room)

    def image(self, images: Sequence[Any]) -> Any:
        if len(images) > 1 and self.several == "refuse":
            raise UserError(
                f"A question is about {len(images)} images.",
                "This model takes one.",
                "Omit this task, or give several=first to ask about the first image alone.",
            )
        return images[0] if len(images) else None


def wording_of(prompt: str) -> str:
    """The wording of this name, with {} for the question. Raises UserError."""
    if prompt in EVALUATION:
        return EVALUATION[prompt]
    if prompt in TASKS:
        return f"{TASKS[prompt].tag} {{}}".strip()
    if "{}" in prompt:
        return prompt
    raise UserError(
        f"The prompt {prompt!r} is unknown.",
        f"Known: {', '.join(dict.fromkeys([*TASKS, *EVALUATION]))}.",
        "Or give your own wording with {} for the question.",
    )


def truncate(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of these stop strings; empty ones are ignored."""
    for end in [until] if isinstance(until, str) else until or []:
        if end:
            text = text.split(end)[0]
    return text


def positive_int(name: str, value: int | str) -> int:
    """A whole number, 1 or more, which a kit may give as text. Raises UserError."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or number != float(value):
        raise UserError(f"{name} is {value!r}.", "It must be a whole number, 1 or more.", "Omit it.")
    return number
