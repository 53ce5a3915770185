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


@dataclass
class Generated:
    """ids: without the end token. probabilities: of each of them, 0..1."""

    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    ended: Literal["stop", "length"] = "length"


class BoxGrammar:
    """Which tokens may follow inside an open box, so that every box is `{<x1><y1><x2><y2>}` with x1 <= x2, y1 <= y2.

    Works on tokenizers whose pieces hold the three joints of a box and single digits; on others it allows everything.
    """

    def __init__(self, tokenizer: Tokenizer):
        ids = {tokenizer.piece(i): i for i in range(tokenizer.size)}
        self.usable = all(p in ids for p in (*JOINTS, *"0123456789"))
        if self.usable:
            self.opens, self.between, self.closes = (ids[j] for j in JOINTS)
            self.digit_ids = {d: ids[d] for d in "0123456789"}
            self.digits = {i: d for d, i in self.digit_ids.items()}

    def allowed(self, ids: Sequence[int]) -> list[int] | None:
        """The ids that may come next after these, None where any may."""
        if not self.usable:
            return None
        numbers = self._open_box(ids)
        if numbers is None:
            return None
        written = numbers[-1]
        lowest = int(numbers[-3]) if len(numbers) > 2 else 0
        fitting = [str(n) for n in range(lowest, BINS + 1) if str(n).startswith(written)]
        following = {n[len(written)] for n in fitting if len(n) > len(written)}
        out = [self.digit_ids[d] for d in sorted(following)]
        if written in fitting:
            out.append(self.between if len(numbers) < 4 else self.closes)
        return out

    def _open_box(self, ids: Sequence[int]) -> list[str] | None:
        """The numbers of a box that is still open at the end, as far as they are written."""
        for start in range(len(ids) - 1, -1, -1):
            if ids[start] == self.opens:
                break
            if ids[start] != self.between and ids[start] not in self.digits:
                return None
        else:
            return None
        text = "".join("," if i == self.between else self.digits[i] for i in ids[start + 1 :])
        return text.split(",")


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
