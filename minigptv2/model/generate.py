"""Greedy decoding with a key-value cache, well-formed boxes, and the probability of every token.

Shapes: B rows of L tokens (left-padded), P images of V visual tokens, D the language model's width, S cached tokens.
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
from minigptv2.tokenizer import HFTokenizer, Tokenizer

_BOX_CHARS = frozenset("".join(BOX_TOKENS) + "0123456789")


@dataclass
class Generated:
    """ids: the answer's tokens, without the one that ended it. probabilities: of each of them, 0 to 1. finish_reason:
    "stop" for a stop token, "length" where max_new_tokens was reached."""

    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"


class BoxGrammar:
    """Which tokens may follow inside an open box, so that every box is `{<x1><y1><x2><y2>}` with x1 <= x2, y1 <= y2.

    It works on text, so it does not matter how a tokenizer splits a box into tokens.
    """

    def __init__(self, tokenizer: Tokenizer | HFTokenizer):
        self.texts = [tokenizer.words(i) for i in range(tokenizer.size)]
        self.box_texts = {i: text for i, text in enumerate(self.texts) if text and set(text) <= _BOX_CHARS}
        self._allowed: dict[str, list[int]] = {}  # text of an open box -> ids

    def allowed(self, ids: Sequence[int]) -> list[int] | None:
        """The ids that may follow these; None where any may."""
        box = self._open_box(ids)
        if box is None:
            return None
        if box not in self._allowed:
            self._allowed[box] = [i for i, text in self.box_texts.items() if _is_box_prefix(box + text)]
        return self._allowed[box] or None  # no token fits: the model wrote something else

    def _open_box(self, ids: Sequence[int]) -> str | None:
        """The text after the opening of a box that is not closed yet; None outside of a box."""
        text = ""
        for index in reversed(ids):
            text = self.texts[index] + text
            _, opening, box = text.rpartition(BOX_TOKENS[0])
            if opening:
                return box if _is_box_prefix(box) and BOX_TOKENS[2] not in box else None
            if not set(text[1:]) <= _BOX_CHARS:
                return None
        return None


def _is_box_prefix(text: str) -> bool:
    """Whether `text`, which follows the opening of a box, begins or completes a well-formed box."""
    numbers: list[int] = []
    for index in range(4):
        digits = text[: len(text) - len(text.lstrip("0123456789"))]
        text = text[len(digits) :]
        minimum = numbers[index - 2] if index > 1 else 0
        if not text:
            return any(str(n).startswith(digits) for n in range(minimum, BINS + 1))
        if digits not in map(str, range(minimum, BINS + 1)):
            return False
        numbers.append(int(digits))
        separator = BOX_TOKENS[1] if index < 3 else BOX_TOKENS[2]
        if len(text) <= len(separator):
            return separator.startswith(text)
        if not text.startswith(separator):
            return False
        text = text[len(separator) :]
    return False


@functools.lru_cache(maxsize=8)
def grammar_of(tokenizer: Tokenizer | HFTokenizer) -> BoxGrammar:
    """The grammar of boxes in this tokenizer's tokens, computed once for each tokenizer."""
    return BoxGrammar(tokenizer)


@torch.inference_mode()
def generate(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    batch: Batch,
    visual: torch.Tensor | None,
    max_new_tokens: int,
) -> list[Generated]:
    """The greedy answer to every row of a left-padded batch. visual: [P, V, D] of all its images, in order."""
    *_, rows = generate_stepwise(model, tokenizer, batch, visual, max_new_tokens)
    return rows


def generate_stepwise(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    batch: Batch,
    visual: torch.Tensor | None,
    max_new_tokens: int,
) -> Iterator[list[Generated]]:
    """As `generate`; yields the same list after every token. A row that has ended does not change any more."""
    embedded = model.embed(batch.ids, visual)  # [B, L, D]
    mask = attention_mask(batch.blocks)  # [B, 1, L, L]
    yield from _prefill_and_decode(model, tokenizer, new_cache(), embedded, mask, batch.positions, max_new_tokens)


@torch.inference_mode()
def generate_shared_prefix(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    rows: Sequence[EncodedRow],
    owners: Sequence[int],
    visual: torch.Tensor,
    max_new_tokens: int,
) -> list[Generated]:
    """As `generate`, for rows of one image each, where several rows share an image: the part up to the end of an image
    is computed once for all its rows.

    owners: [B], the image of each row. visual: [P, V, D], each image once. All rows begin with the same tokens, so that
    all shared parts have the same length S:

        keys ->      <s>[INST]<Img> image | padding | </Img> question [/INST] | answer ...
        a row                all          |    .    |          causal         |  causal
    """
    # 1) prefill the shared part of each image
    heads, tails = zip(*(split_after_images(row) for row in rows))
    first_row = {owner: row for row, owner in reversed(list(enumerate(owners)))}
    device = visual.device
    shared = collate([heads[first_row[p]] for p in range(len(visual))]).to(device)  # [P, S], no padding
    cache = new_cache()
    model.decoder.model(
        inputs_embeds=model.embed(shared.ids, visual),  # [P, S, D]
        position_ids=shared.positions,
        past_key_values=cache,
        use_cache=True,
        attention_mask=attention_bias(attention_mask(shared.blocks), visual.dtype),
    )

    # 2) copy the cache of each image to its rows: P -> B
    cache.batch_select_indices(torch.tensor(owners, device=device))

    # 3) prefill the questions, and decode
    batch = collate(tails, left=True).to(device)  # [B, L]
    embedded = model.embed(batch.ids, None)  # [B, L, D]
    to_shared = torch.ones(len(rows), 1, batch.ids.shape[1], shared.ids.shape[1], dtype=torch.bool, device=device)
    mask = torch.cat([to_shared, attention_mask(batch.blocks)], dim=-1)  # [B, 1, L, S + L]
    *_, out = _prefill_and_decode(model, tokenizer, cache, embedded, mask, batch.positions, max_new_tokens)
    return out


def _prefill_and_decode(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    cache,
    embedded: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    max_new_tokens: int,
) -> Iterator[list[Generated]]:
    """Yield after every token. embedded: [B, L, D], what follows the S tokens in the cache. mask: [B, 1, L, S + L].
    positions: [B, L].

    Rows that have ended leave the batch once they are at least half of it.
    """
    decoder, grammar, stops = model.decoder, grammar_of(tokenizer), stop_ids(tokenizer, model.config.prompt)
    rows = [Generated() for _ in range(embedded.shape[0])]
    in_batch = list(range(len(rows)))  # the rows still in the batch and the cache, in their order
    running = [True] * len(rows)
    for _ in range(max_new_tokens):
        # 1) the prompt in the first pass (prefill), then one token of each row (decode)
        states = decoder.model(
            inputs_embeds=embedded,
            attention_mask=attention_bias(mask, embedded.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # [batch, L, D]; L is 1 in decode
        logits = decoder.lm_head(states[:, -1]).float()  # [batch, vocabulary]
        logits[:, tokenizer.size :] = -torch.inf  # padding of the embedding table: no tokens

        # 2) choose a token for each row
        chosen, probabilities = _choose(logits, [grammar.allowed(rows[i].ids) for i in in_batch])
        for i, token, probability in zip(in_batch, chosen, probabilities):
            if running[i] and token in stops:
                running[i], rows[i].finish_reason = False, "stop"
            elif running[i]:
                rows[i].ids.append(token)
                rows[i].probabilities.append(probability)
        yield rows
        if not any(running):
            return

        # 3) drop ended rows from the batch
        positions, mask = positions[:, -1:] + 1, mask[:, :, -1:]
        remaining = [index for index, i in enumerate(in_batch) if running[i]]
        if len(remaining) <= len(in_batch) // 2:
            selected = torch.tensor(remaining, device=mask.device)
            cache.batch_select_indices(selected)
            positions, mask = positions[selected], mask[selected]
            in_batch, chosen = [in_batch[p] for p in remaining], [chosen[p] for p in remaining]

        # 4) the chosen tokens are the next input
        embedded = decoder.get_input_embeddings()(torch.tensor(chosen, device=mask.device)[:, None])  # [batch, 1, D]
        mask = torch.cat([mask, mask.new_ones(len(in_batch), 1, 1, 1)], dim=-1)  # one more key


def _choose(logits: torch.Tensor, allowed: list[list[int] | None]) -> tuple[list[int], list[float]]:
    """The most likely allowed token of each row, and its probability among all tokens. logits: [B, vocabulary]."""
    probabilities = logits.softmax(-1)
    masked = logits.clone()  # not the probabilities: those of all box tokens may round to zero
    for row, ids in enumerate(allowed):
        if ids is not None:
            masked[row] = -torch.inf
            masked[row, ids] = logits[row, ids]
    chosen = masked.argmax(-1)
    return chosen.tolist(), probabilities.gather(1, chosen[:, None])[:, 0].tolist()
