"""Attention over packed rows: every exchange about a picture looks at the picture and at itself, and nothing is
computed for the pairs that may not see each other.

Shapes: T tokens of a packed row, H heads of width D; a group has N blocks of M tokens, each after a shared part of S.
"""

from collections.abc import Callable

import torch
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
    for i, group in enumerate(layout.groups, 1):
        own = [_blocks(t[i], len(group.owners)) for t in (query, key, value)]  # [N, H, M, D]
        seen = [torch.cat([h.index_select(0, group.owners), o], 2) for h, o in zip(heads[1:], own[1:])]  # .. S + M ..
        out.append(_attend(own[0], *seen, group.mask, scaling, _look(module, layout, group)))
    return torch.cat(out)[None], None


def supervised(layer: int, layers: int) -> bool:
    """Whether this layer's first head is shown where to look: at a third of the layers and at two thirds."""
    return layer in (layers // 3, 2 * layers // 3)


def _look(module, layout: Layout, group: Group) -> Callable[[torch.Tensor], None] | None:
    """What takes the weights of a supervised layer, [N, H, M, S + M], and adds to `layout.missed`; else None."""
    if not len(group.lookers) or not supervised(module.layer_idx, module.config.num_hidden_layers):
        return None

    def look(weights: torch.Tensor) -> None:
        first = weights[:, 0, :, : group.looks.shape[1]].flatten(0, 1)[group.lookers]  # [K, S]
        layout.missed.append(-((first * group.looks).sum(-1).float() + LEAST).log())

    return look


def _attend(query, key, value, mask, scaling, look=None) -> torch.Tensor:
    """[N, H, M, D] -> [N * M, H, D]. look: is shown the weights. Plain products: on a CPU the fused kernel's backward
    is many times slower."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query * scaling) @ key.transpose(2, 3)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    if look is not None:
        look(weights)
    return (weights @ value).transpose(1, 2).flatten(0, 1)


def _blocks(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """[count * M, H, D] -> [count, H, M, D]."""
    return tokens.unflatten(0, (count, -1)).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
