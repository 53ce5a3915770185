"""Greedy decoding with a cache, box numbers kept well-formed, and the probability of every token.

Shapes: B rows of L tokens (left-padded), D the language model's width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from minigptv2.boxes import BINS, JOINTS
from minigptv2.encode import Batch, Tokenizer, attention_mask
from minigptv2.model.grounding_vlm import GroundingVLM, attention_bias

_IN_A_BOX = frozenset("".join(JOINTS) + "0123456789")


@dataclass
class Generated:
    """ids: without the end token. probabilities: of each of them, 0..1."""

    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    ended: Literal["stop", "length"] = "length"


class BoxGrammar:
    """Which tokens may follow inside an open box, so that every box is `{<x1><y1><x2><y2>}` with x1 <= x2, y1 <= y2.

    It goes by the text, so it does not matter how a tokenizer cuts a box into pieces.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.texts = [tokenizer.words(i) for i in range(tokenizer.size)]
        self.parts = {i: text for i, text in enumerate(self.texts) if text and set(text) <= _IN_A_BOX}
        self.following: dict[str, list[int]] = {}

    def allowed(self, ids: Sequence[int]) -> list[int] | None:
        """The ids that may come next after these, None where any may."""
        written = self._open_box(ids)
        if written is None:
            return None
        if written not in self.following:
            self.following[written] = [i for i, part in self.parts.items() if _continues_a_box(written + part)]
        return self.following[written] or None  # no piece fits where the model opened a box in a way of its own

    def _open_box(self, ids: Sequence[int]) -> str | None:
        """What is written of a box, after its opening, that is still open at the end."""
        text = ""
        for index in reversed(ids):
            text = self.texts[index] + text
            before, opening, written = text.rpartition(JOINTS[0])
            if opening:
                return written if _continues_a_box(written) and JOINTS[2] not in written else None
            if not set(text[1:]) <= _IN_A_BOX:
                return None
        return None


def _continues_a_box(text: str) -> bool:
    """Whether `text`, after the opening of a box, is the beginning of what may stand there, or all of it."""
    numbers: list[int] = []
    for place in range(4):
        digits = text[: len(text) - len(text.lstrip("0123456789"))]
        text = text[len(digits) :]
        least = numbers[place - 2] if place > 1 else 0
        if not text:
            return any(str(n).startswith(digits) for n in range(least, BINS + 1))
        if digits not in map(str, range(least, BINS + 1)):
            return False
        numbers.append(int(digits))
        joint = JOINTS[1] if place < 3 else JOINTS[2]
        if len(text) <= len(joint):
            return joint.startswith(text)
        if not text.startswith(joint):
            return False
        text = text[len(joint) :]
    return False


@functools.lru_cache(maxsize=8)
def grammar_of(tokenizer: Tokenizer) -> BoxGrammar:
    return BoxGrammar(tokenizer)


@torch.inference_mode()
def generate(
    model: GroundingVLM, tokenizer: Tokenizer, batch: Batch, visual: torch.Tensor | None, max_new_tokens: int
) -> list[Generated]:
    """The greedy answer to every row of a left-padded batch. visual: [P, V, D] of all its pictures in order."""
    rows: list[Generated] = []
    for rows in steps(model, tokenizer, batch, visual, max_new_tokens):  # noqa: B007 - the last one is the result
        pass
    return rows


def steps(
    model: GroundingVLM, tokenizer: Tokenizer, batch: Batch, visual: torch.Tensor | None, max_new_tokens: int
) -> Iterator[list[Generated]]:
    """As `generate`, yielding the same growing list after every token. A row that has ended stays as it is."""
    from transformers import DynamicCache

    decoder, grammar = model.decoder, grammar_of(tokenizer)
    rows = [Generated() for _ in range(batch.ids.shape[0])]
    running = [True] * len(rows)
    cache = DynamicCache()
    embedded = model.embed(batch.ids, visual)  # [B, L, D]
    mask = attention_mask(batch.blocks)  # [B, 1, L, L]
    positions = batch.positions
    for _ in range(max_new_tokens):
        states = decoder.model(
            inputs_embeds=embedded, attention_mask=attention_bias(mask, embedded.dtype), position_ids=positions,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        logits = decoder.lm_head(states[:, -1]).float()  # [B, vocabulary]
        chosen, probability = _choose(logits, [grammar.allowed(r.ids) for r in rows])
        for i, row in enumerate(rows):
            if running[i] and chosen[i] == tokenizer.eos:
                running[i], row.ended = False, "stop"
            elif running[i]:
                row.ids.append(chosen[i])
                row.probabilities.append(probability[i])
        yield rows
        if not any(running):
            return
        embedded = decoder.get_input_embeddings()(torch.tensor(chosen, device=logits.device)[:, None])
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask[:, :, -1:], mask.new_ones(len(rows), 1, 1, 1)], dim=-1)


def _choose(logits: torch.Tensor, allowed: list[list[int] | None]) -> tuple[list[int], list[float]]:
    """The likeliest allowed token of each row, and its probability among all tokens."""
    probabilities = logits.softmax(-1)
    open_rows = logits.clone()  # logits, since all probabilities of a box's tokens may round to zero
    for row, ids in enumerate(allowed):
        if ids is not None:
            open_rows[row] = -torch.inf
            open_rows[row, ids] = logits[row, ids]
    chosen = open_rows.argmax(-1)
    return chosen.tolist(), probabilities.gather(1, chosen[:, None])[:, 0].tolist()
