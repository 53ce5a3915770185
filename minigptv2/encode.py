"""Turns -> rows of token ids: the only place that calls a tokenizer on a prompt.

Shapes: L tokens of one row. Token ids, labels, positions and blocks are appended by the same call, so there is no
offset to compute and nothing is tokenized twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minigptv2.conversation import PROMPT_TEMPLATES, Segment, segments
from minigptv2.errors import UserError
from minigptv2.sample import ImagePiece, Turn
from minigptv2.tokenizer import HFTokenizer, Tokenizer

IMAGE_TOKEN_ID = -1  # at every position that a visual token will take; no tokenizer gives it, so no text can
SHARED_BLOCK = 0  # the block that every other block of its row attends to
IGNORE_INDEX = -100  # the label of a token without a loss


@dataclass
class EncodedRow:
    """One row of L tokens.

    ids: IMAGE_TOKEN_ID at the position of a visual token. labels: the id itself where supervised, else IGNORE_INDEX.
    blocks: SHARED_BLOCK, or 1, 2, ... for the independent question that a token belongs to; a row with SHARED_BLOCK
    alone is causal. positions: those of a block continue those of the shared block.
    target_tokens: indices of the visual tokens that a token should attend to in training; () for most tokens.
    images: what `images.open_image` takes, in order. dropped_turns: how many of the oldest questions, each with its
    answer, were dropped to fit the context.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    target_tokens: list[tuple[int, ...]] = field(default_factory=list)
    images: list[object] = field(default_factory=list)
    dropped_turns: int = 0

    def add(self, ids: Sequence[int], supervised: bool = False, block: int = SHARED_BLOCK) -> None:
        """Append tokens of one block, with their labels and positions."""
        if self.blocks and self.blocks[-1] == block:
            start = self.positions[-1] + 1
        else:
            start = 1 + max((p for p, b in zip(self.positions, self.blocks) if b == SHARED_BLOCK), default=-1)
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self.positions += range(start, start + len(ids))
        self.blocks += [block] * len(ids)
        self.target_tokens += [()] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


def stop_ids(tokenizer: Tokenizer | HFTokenizer, prompt: str) -> set[int]:
    """The tokens that end an answer: the tokenizer's end of text and the template's end of an answer."""
    return {tokenizer.eos, tokenizer.control_id(PROMPT_TEMPLATES[prompt].answer_close.name)}


class PromptEncoder:
    """Turns -> EncodedRow, for one model."""

    def __init__(
        self,
        tokenizer: Tokenizer | HFTokenizer,
        prompt: str,
        image_tokens: int,
        context: int,
        system_message: str = "",
    ):
        """prompt: a key of `PROMPT_TEMPLATES`. image_tokens: visual tokens of one image. context: tokens of the longest
        row. system_message: stands before the first turn. Raises UserError where the tokenizer lacks a control token
        of the template, or the template has no system message."""
        self.tokenizer, self.image_tokens, self.context = tokenizer, image_tokens, context
        template = PROMPT_TEMPLATES[prompt]
        if system_message and not template.system_open:
            raise UserError(
                f"model.language.system_message is {system_message!r}, and model.prompt is {prompt}.",
                f"These have one: {', '.join(name for name, t in PROMPT_TEMPLATES.items() if t.system_open)}.",
                "Remove it, or choose another prompt.",
            )
        self.template = replace(template, system_message=system_message)
        self._control_ids = {name: tokenizer.control_id(name) for name in sorted(template.control_tokens)}

    @classmethod
    def for_model(cls, model, tokenizer: Tokenizer | HFTokenizer) -> PromptEncoder:
        """model: a `GroundingVLM`, with weights or without."""
        language = model.config.language
        context = language.max_position_embeddings
        return cls(tokenizer, model.config.prompt, model.image_tokens, context, language.system_message)

    def encode(self, turns: Sequence[Turn], room: int = 0) -> EncodedRow:
        """One conversation as one causal row. room: tokens of the context to leave free for the answer.

        Where the row does not fit the context, the oldest questions with their answers are dropped, never an image or
        the last question. Raises UserError where these alone are too long.
        """
        remaining, dropped = list(turns), 0
        while True:
            row = EncodedRow(dropped_turns=dropped)
            for segment in segments(remaining, self.template):
                self._append(row, segment, SHARED_BLOCK)
            if len(row) + room <= self.context:
                return row
            shorter = _without_oldest(remaining)
            if shorter is None:
                for_answer = f", and {room} for the answer" if room else ""
                raise UserError(
                    f"The instruction is too long: {len(row)} tokens with its image{for_answer}.",
                    f"The model's context is {self.context} tokens.",
                    "Shorten it, or lower max_new_tokens." if room else "Shorten it, or the given answer.",
                )
            remaining, dropped = shorter, dropped + 1

    def encode_independent_answers(self, turns: Sequence[Turn]) -> EncodedRow:
        """Independent questions about the same images, with their answers, in one row: each has the ids, positions and
        loss that it has alone, and the images are encoded once.

        A token attends to the shared block and to the tokens before it in its own block:

            keys ->        <s>[INST]<Img> image | question 1, answer 1 | question 2, answer 2
            shared                 causal       |          .           |          .
            block 1                all          |        causal        |          .
            block 2                all          |          .           |        causal

        Raises ValueError unless all images stand at the head of the first turn, and UserError where the images and one
        question with its answer are longer than the context; the whole row may be longer.
        """
        row, block = EncodedRow(), SHARED_BLOCK
        if not turns or turns[0].role != "user":
            raise ValueError("The first turn must be the user's.")
        images = [p for t in turns for p in t.pieces if isinstance(p, ImagePiece)]
        if list(turns[0].pieces[: len(images)]) != images:
            raise ValueError("The images of independent questions must stand at the head of the first turn.")
        head = segments(turns[:1], self.template)
        shared = _shared_segments(head)
        for segment in head[:shared]:
            self._append(row, segment, SHARED_BLOCK)
        for turn in turns:
            if turn.role == "user":
                block += 1
                texts = [p for p in turn.pieces if isinstance(p, str)]
                own = segments([Turn("user", (*images, *texts))], self.template)[shared:]
            else:
                own = segments([turn], self.template)
            for segment in own:
                self._append(row, segment, block)
        longest = 1 + max(row.positions)
        if longest > self.context:
            raise UserError(
                f"A question with its answer is too long: {longest} tokens with its image.",
                f"The model's context is {self.context} tokens.",
                "Shorten it.",
            )
        return row

    def _append(self, row: EncodedRow, segment: Segment, block: int) -> None:
        if segment.type == "image":
            row.images.append(segment.image.image)
            row.add([IMAGE_TOKEN_ID] * self.image_tokens, block=block)
        elif segment.type == "text":
            row.add(self.tokenizer.encode(segment.text), segment.supervised, block)
        else:
            row.add([self._control_ids[segment.control]], segment.supervised, block)


def _shared_segments(head: Sequence[Segment]) -> int:
    """How many segments of the first user turn all questions share: up to the last image; without one, the control
    tokens before the first text."""
    images = [i for i, segment in enumerate(head) if segment.type == "image"]
    return images[-1] + 1 if images else next(i for i, segment in enumerate(head) if segment.type == "text")


def _without_oldest(turns: list[Turn]) -> list[Turn] | None:
    """The conversation without its oldest question and answer, all images kept; None where one question is left."""
    questions = [i for i, t in enumerate(turns) if t.role == "user"]
    if len(questions) < 2:
        return None
    images = tuple(p for t in turns[: questions[1]] for p in t.pieces if isinstance(p, ImagePiece))
    first, *rest = turns[questions[1] :]
    return [Turn("user", (*images, *first.pieces)), *rest]
