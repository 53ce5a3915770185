"""How a kit's question becomes ours, for every kit alike: its wording, its one image, where its answer ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from minigptv2.api import MAX_NEW_TOKENS
from minigptv2.errors import UserError
from minigptv2.sample import Sample
from minigptv2.tasks import EVALUATION, TASKS, question_of, render

MANY = ("refuse", "first")
_LOG = logging.getLogger(__name__)


class Asker:
    """Opens the model and words the questions. Values may be text, as kits read them from a command line.

    pretrained: a model folder, "" for the bundled one. prompt: a key of `tasks.TASKS` (its tag is put before the
    question) or of `tasks.EVALUATION` (the published wording), or a wording of one's own that holds {}. several: what
    to do with a question about several images: "refuse" it, or ask about the "first" one alone.
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
        if several not in MANY:
            raise UserError(f"several is {several!r}.", f"It must be one of {', '.join(MANY)}.", "Leave it away.")
        self.several = several
        self.max_new_tokens = whole("max_new_tokens", max_new_tokens)
        self.model = model or MiniGPTv2.from_pretrained(pretrained or None, device or None, dtype, quantize or None)
        self._told_of_room = False

    def question(self, text: str, images: Sequence[Any]) -> tuple[Any, str]:
        """(image or None, instruction), as `MiniGPTv2.chat_batch` takes it."""
        return self.image(images), self.wording.replace("{}", " ".join(text.replace("<image>", " ").split()))

    def room(self, image: Any, instruction: str) -> int:
        """How many tokens the model's context leaves for an answer to this question alone, 1 or more. Raises UserError
        where the question itself does not fit."""
        encoder = self.model.encoder
        turns = render(Sample(image, (1, 1), (question_of(instruction),)), self.model.config.box_rounding)
        return max(1, encoder.context - len(encoder.encode(turns)))

    def limit(self, question: tuple[Any, str], wanted: int) -> int:
        """The longest answer to ask for: as many new tokens as wanted, or the room that is left where they do not fit
        beside the question, which is said once."""
        room = self.room(*question)
        if room < wanted and not self._told_of_room:
            _LOG.warning(
                "%d new tokens do not fit beside a question; its answer gets the %d that are left, and so do others.",
                wanted,
                room,
            )
            self._told_of_room = True
        return min(wanted, room)

    def image(self, images: Sequence[Any]) -> Any:
        if len(images) > 1 and self.several == "refuse":
            raise UserError(
                f"A question is about {len(images)} images.",
                "This model takes one.",
                "Leave this task out, or give several=first to ask about the first image alone.",
            )
        return images[0] if len(images) else None


def wording_of(prompt: str) -> str:
    """The wording that a name stands for, with {} as the question's place."""
    if prompt in EVALUATION:
        return EVALUATION[prompt]
    if prompt in TASKS:
        return f"{TASKS[prompt].tag} {{}}".strip()
    if "{}" in prompt:
        return prompt
    raise UserError(
        f"The prompt {prompt!r} is unknown.",
        f"Known: {', '.join(dict.fromkeys([*TASKS, *EVALUATION]))}.",
        "Or give a wording of your own that holds {} where the question goes.",
    )


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of these strings; an empty string cuts nothing."""
    for end in [until] if isinstance(until, str) else until or []:
        if end:
            text = text.split(end)[0]
    return text


def whole(name: str, value: int | str) -> int:
    """A positive whole number, which a kit may give as text."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or number != float(value):
        raise UserError(f"{name} is {value!r}.", "It must be a whole number, 1 or more.", "Leave it away.")
    return number
