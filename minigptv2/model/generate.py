"""Greedy decoding with a cache, box numbers kept well-formed, and the probability of every token.

Shapes: B rows of L tokens (left-padded), D the language model's width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from minigptv2.boxes import BINS, BOX_TOKENS
from minigptv2.encode import EncodedRow, stop_ids
from minigptv2.model.grounding_vlm import GroundingVLM, attention_bias
from minigptv2.model.kv_cache import new_cache
from minigptv2.packing import Batch, attention_mask, collate, split_after_images
from minigptv2.tokenizer import Tokenizer

_IN_A_BOX = frozenset("".join(BOX_TOKENS) + "0123456789")


@dataclass
class Generated:
    """ids: without the end token. probabilities: of each of them, 0..1."""

    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"


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
            before, opening, written = text.rpartition(BOX_TOKENS[0])
            if opening:
                return written if _continues_a_box(written) and BOX_TOKENS[2] not in written else None
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
        joint = BOX_TOKENS[1] if place < 3 else BOX_TOKENS[2]
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
    """The greedy answer to every row of a left-padded batch. visual: [P, V, D] of all its images in order."""
    rows: list[Generated] = []
    for rows in generate_stepwise(model, tokenizer, batch, visual, max_new_tokens):  # noqa: B007 - the last one is the result
        pass
    return rows


def generate_stepwise(
    model: GroundingVLM, tokenizer: Tokenizer, batch: Batch, visual: torch.Tensor | None, max_new_tokens: int
) -> Iterator[list[Generated]]:
    """As `generate`, yielding the same growing list after every token. A row that has ended stays as it is."""
    embedded = model.embed(batch.ids, visual)  # [B, L, D]
    mask = attention_mask(batch.blocks)  # [B, 1, L, L]
    yield from _decode(model, tokenizer, new_cache(), embedded, mask, batch.positions, max_new_tokens)


@torch.inference_mode()
def generate_shared_prefix(
    model: GroundingVLM,
    tokenizer: Tokenizer,
    rows: Sequence[EncodedRow],
    owners: Sequence[int],
    visual: torch.Tensor,
    max_new_tokens: int,
) -> list[Generated]:
    """As `generate`, for rows of one image each, several about the same: what stands up to the end of an image is
    computed once for all its rows.

    owners: [B] the image of each row. visual: [P, V, D], each image once. All rows begin alike, so that the
    shared parts have one length S:

        keys ->      <s>[INST]<Img> image | padding | </Img> question [/INST] | answer ...
        a row                all            |    .    |          causal         |  causal
    """
    heads, tails = zip(*(split_after_images(row) for row in rows))
    first = {owner: row for row, owner in reversed(list(enumerate(owners)))}
    device = visual.device
    shared = collate([heads[first[p]] for p in range(len(visual))]).to(device)  # [P, S], no padding
    cache = new_cache()
    model.decoder.model(
        inputs_embeds=model.embed(shared.ids, visual),
        position_ids=shared.positions,
        past_key_values=cache,
        use_cache=True,
        attention_mask=attention_bias(attention_mask(shared.blocks), visual.dtype),
    )
    cache.batch_select_indices(torch.tensor(owners, device=device))
    batch = collate(tails, left=True).to(device)  # [B, L]
    embedded = model.embed(batch.ids, None)  # [B, L, D]
    seen = torch.ones(len(rows), 1, batch.ids.shape[1], shared.ids.shape[1], dtype=torch.bool, device=device)
    mask = torch.cat([seen, attention_mask(batch.blocks)], dim=-1)  # [B, 1, L, S + L]
    out: list[Generated] = []
    for out in _decode(model, tokenizer, cache, embedded, mask, batch.positions, max_new_tokens):  # noqa: B007
        pass
    return out


def _decode(
    model: GroundingVLM,
    tokenizer: Tokenizer,
    cache,
    embedded: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    max_new_tokens: int,
) -> Iterator[list[Generated]]:
    """Token after token behind what the cache and `embedded` [B, L, D] hold; mask: [B, 1, L, cached + L].

    Rows that have ended are computed no more once they are half of all.
    """
    decoder, grammar = model.decoder, grammar_of(tokenizer)
    stops = stop_ids(tokenizer, model.config.prompt)
    rows = [Generated() for _ in range(embedded.shape[0])]
    computed = list(range(len(rows)))  # the rows still in the cache, in its order
    running = [True] * len(rows)
    for _ in range(max_new_tokens):
        states = decoder.model(
            inputs_embeds=embedded,
            attention_mask=attention_bias(mask, embedded.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = decoder.lm_head(states[:, -1]).float()  # [computed, vocabulary]
        logits[:, tokenizer.size :] = -torch.inf  # rows that fill the table up to a round number are no tokens
        chosen, probability = _choose(logits, [grammar.allowed(rows[i].ids) for i in computed])
        for i, token, chance in zip(computed, chosen, probability):
            if running[i] and token in stops:
                running[i], rows[i].finish_reason = False, "stop"
            elif running[i]:
                rows[i].ids.append(token)
                rows[i].probabilities.append(chance)
        yield rows
        if not any(running):
            return
        positions, mask = positions[:, -1:] + 1, mask[:, :, -1:]
        going = [place for place, i in enumerate(computed) if running[i]]
        if len(going) <= len(computed) // 2:
            kept = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(kept)
            positions, mask = positions[kept], mask[kept]
            computed, chosen = [computed[p] for p in going], [chosen[p] for p in going]
        embedded = decoder.get_input_embeddings()(torch.tensor(chosen, device=mask.device)[:, None])
        mask = torch.cat([mask, mask.new_ones(len(computed), 1, 1, 1)], dim=-1)


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
