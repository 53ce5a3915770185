"""Attention over packed rows: every exchange about an image looks at the image and at itself, and nothing is
computed for the pairs that may not see each other.

Shapes: T tokens of a packed row, H heads of width D; a group has N blocks of M tokens, each after a shared part of S.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minigptv2.packing import Group, PackedLayout

ATTENTION_IMPLEMENTATION = "sdpa_packed"  # of the attention that a language model is built with
LEAST = 1e-4  # weight at which a token that looks elsewhere is no longer told apart


@dataclass
class Supervision:
    """How one forward pass supervises attention, and what it found; `GroundingVLM.forward` makes a new one each time.

    guidance: 0 to 1, how far the queries of a supervised layer attend to their targets only. losses: of each supervised
    layer and each group, [K, H]: -log of the attention mass that each head puts on the query's target by itself; and
    [K]: the weight of each query.

    Under gradient checkpointing the backward pass runs the layers again, and they append again; by then the forward
    pass has returned its losses.
    """

    guidance: float = 0.0
    losses: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def summed(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """The losses summed over all queries by their weights, each a mean over its heads; and the sum of the
        weights."""
        return sum((m.mean(1) * w).sum() for m, w in self.losses), sum(w.sum() for _, w in self.losses)


@torch.compiler.disable  # group counts differ from step to step: each would be compiled anew
def packed_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    layout: PackedLayout | None = None,
    supervision: Supervision | None = None,
    **kwargs,
):
    """What transformers calls in every layer: [1, H, T, D] each -> ([1, T, H, D], None). Without a layout: SDPA."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    sizes = [layout.images * layout.shared, *(g.mask.shape[2] * len(g.owners) for g in layout.groups)]
    query, key, value = (t[0].transpose(0, 1).split(sizes) for t in (query, key, value))  # of [size, H, D]
    heads = tuple(_blocks(t[0], layout.images) for t in (query, key, value))  # [P, H, S, D]
    causal = torch.ones(layout.shared, layout.shared, dtype=torch.bool, device=query[0].device).tril()
    out = [_attend(*heads, causal, scaling)]
    if not supervised(module.layer_idx, module.config.num_hidden_layers):
        supervision = None
    for i, group in enumerate(layout.groups, 1):
        own = [_blocks(t[i], len(group.owners)) for t in (query, key, value)]  # [N, H, M, D]
        seen = [torch.cat([h.index_select(0, group.owners), o], 2) for h, o in zip(heads[1:], own[1:])]  # .. S + M ..
        out.append(_attend(own[0], *seen, group.mask, scaling, group, supervision))
    return torch.cat(out)[None], None


def supervised(layer: int, layers: int) -> bool:
    """Whether this layer is shown where to look: the one at a third of the layers and the one at two thirds."""
    return layer in (layers // 3, 2 * layers // 3)


def _attend(
    query, key, value, mask, scaling, group: Group | None = None, supervision: Supervision | None = None
) -> torch.Tensor:
    """[N, H, M, D] -> [N * M, H, D]. supervision: of the group's queries that have a target; None in most layers. Plain
    products: on a CPU the fused kernel's backward is many times slower."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query * scaling) @ key.transpose(2, 3)  # under autocast in fewer bits than the queries
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if supervision is not None and len(group.query_index):
        weights = _supervise(weights, scores, group, supervision)
    return (weights @ value).transpose(1, 2).flatten(0, 1)


def _supervise(weights: torch.Tensor, scores: torch.Tensor, group: Group, supervision: Supervision) -> torch.Tensor:
    """Record the loss of each query, and return the weights [N, H, M, S + M], guided towards the targets."""
    tokens, heads, length, seen = weights.shape
    rows = weights.transpose(1, 2).flatten(0, 1)  # [N * M, H, S + M]
    own, places = (
        rows[group.query_index],
        pad(group.target_mask, (0, seen - group.target_mask.shape[1]))[:, None],
    )  # [K, 1, S + M]
    supervision.losses.append((-((own * places).sum(-1).float() + LEAST).log(), group.query_weight))
    if not supervision.guidance:
        return weights
    scores = scores.transpose(1, 2).flatten(0, 1)[group.query_index]
    right = scores.masked_fill(~places, torch.finfo(scores.dtype).min).softmax(-1)
    rows = rows.index_copy(0, group.query_index, own.lerp(right, supervision.guidance))
    return rows.view(tokens, length, heads, seen).transpose(1, 2)


def _blocks(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """[count * M, H, D] -> [count, H, M, D]."""
    return tokens.unflatten(0, (count, -1)).transpose(1, 2)


AttentionInterface.register(ATTENTION_IMPLEMENTATION, packed_attention)
