"""Attention over packed rows: every exchange about a picture looks at the picture and at itself, and nothing is
computed for the pairs that may not see each other.

Shapes: T tokens of a packed row, H heads of width D; a group has N blocks of M tokens, each after a shared part of S.
"""

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minigptv2.encode import Group, Layout

NAME = "sdpa_packed"  # of the attention that a language model is built with
LEAST = 1e-4  # weight at which a token that looks elsewhere is no longer told apart


@torch.compiler.disable  # group counts differ from step to step: each would be compiled anew
def packed_attention(module, query, key, value, attention_mask, scaling=None, layout: Layout | None = None, **kwargs):
    """What transformers calls in every layer: [1, H, T, D] each -> ([1, T, H, D], None). Without a layout: SDPA."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    sizes = [layout.pictures * layout.shared, *(g.mask.shape[2] * len(g.owners) for g in layout.groups)]
    query, key, value = (t[0].transpose(0, 1).split(sizes) for t in (query, key, value))  # of [size, H, D]
    heads = tuple(_blocks(t[0], layout.pictures) for t in (query, key, value))  # [P, H, S, D]
    causal = torch.ones(layout.shared, layout.shared, dtype=torch.bool, device=query[0].device).tril()
    out = [_attend(*heads, causal, scaling)]
    shown = supervised(module.layer_idx, module.config.num_hidden_layers)
    for i, group in enumerate(layout.groups, 1):
        own = [_blocks(t[i], len(group.owners)) for t in (query, key, value)]  # [N, H, M, D]
        seen = [torch.cat([h.index_select(0, group.owners), o], 2) for h, o in zip(heads[1:], own[1:])]  # .. S + M ..
        out.append(_attend(own[0], *seen, group.mask, scaling, group if shown else None, layout))
    return torch.cat(out)[None], None


def supervised(layer: int, layers: int) -> bool:
    """Whether this layer is shown where to look: the one at a third of the layers and the one at two thirds."""
    return layer in (layers // 3, 2 * layers // 3)


def _attend(query, key, value, mask, scaling, group: Group | None = None, layout: Layout | None = None) -> torch.Tensor:
    """[N, H, M, D] -> [N * M, H, D]. group: whose lookers are shown where to look. Plain products: on a CPU the fused
    kernel's backward is many times slower."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query * scaling) @ key.transpose(2, 3)  # under autocast in fewer bits than the queries
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if group is not None and len(group.lookers):
        weights = _guide(weights, scores, group, layout)
    return (weights @ value).transpose(1, 2).flatten(0, 1)


def _guide(weights: torch.Tensor, scores: torch.Tensor, group: Group, layout: Layout) -> torch.Tensor:
    """The weights [N, H, M, S + M], those of the lookers as far as `layout.guided` only on what they should look at;
    what they have there by themselves is added to `layout.missed`."""
    tokens, heads, length, seen = weights.shape
    rows = weights.transpose(1, 2).flatten(0, 1)  # [N * M, H, S + M]
    own, places = rows[group.lookers], pad(group.looks, (0, seen - group.looks.shape[1]))[:, None]  # [K, 1, S + M]
    layout.missed.append((-((own * places).sum(-1).float() + LEAST).log(), group.counts))
    if not layout.guided:
        return weights
    scores = scores.transpose(1, 2).flatten(0, 1)[group.lookers]
    right = scores.masked_fill(~places, torch.finfo(scores.dtype).min).softmax(-1)
    rows = rows.index_copy(0, group.lookers, own.lerp(right, layout.guided))
    return rows.view(tokens, length, heads, seen).transpose(1, 2)


def _blocks(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """[count * M, H, D] -> [count, H, M, D]."""
    return tokens.unflatten(0, (count, -1)).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
