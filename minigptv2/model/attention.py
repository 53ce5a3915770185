"""Attention over packed rows: every block attends to the shared part of its row and to itself, and scores of other
pairs of tokens are not computed.

Shapes: T tokens of a packed row, R shared parts of S tokens each; a group has N blocks of M tokens; H heads of width D;
K supervised queries of a group. `packing.pack` draws such a row.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minigptv2.packing import Group, PackedLayout

ATTENTION_IMPLEMENTATION = "sdpa_packed"  # transformers' name for `packed_attention`
MIN_MASS = 1e-4  # added to the attention mass before its logarithm, so that the loss stays finite


@dataclass
class Supervision:
    """How one forward pass supervises attention, and its losses; `GroundingVLM.forward` makes a new one each time.

    guidance: 0 to 1, how far the queries of a supervised layer are forced to attend to their targets alone. losses: one
    pair per supervised layer and group: [K, H], -log of the attention mass that each head puts on the query's target,
    before guidance; and [K], the weight of each query.

    Under gradient checkpointing the backward pass runs the layers again, and they append again; by then the forward
    pass has returned its losses.
    """

    guidance: float = 0.0
    losses: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def summed(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """The weighted sum of the losses over all queries, each a mean over its heads; and the sum of the weights."""
        total = sum((loss.mean(1) * weight).sum() for loss, weight in self.losses)
        return total, sum(weight.sum() for _, weight in self.losses)


@torch.compiler.disable  # it would be compiled again for each number of groups
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
    """What transformers calls in every layer: query, key, value [1, H, T, D] each -> ([1, T, H, D], None).

    layout: of a packed row; without one, transformers' own SDPA. Query and key may have different numbers of heads.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    # 1) cut the row into the shared parts and the groups
    sizes = [layout.rows * layout.shared, *(g.mask.shape[2] * len(g.owners) for g in layout.groups)]
    query, key, value = (t[0].transpose(0, 1).split(sizes) for t in (query, key, value))  # of [size, H, D]

    # 2) each shared part attends to itself, causally
    shared = tuple(_blocks(t[0], layout.rows) for t in (query, key, value))  # [R, H, S, D]
    causal = torch.ones(layout.shared, layout.shared, dtype=torch.bool, device=query[0].device).tril()
    out = [_attend(*shared, causal, scaling)]

    # 3) each block of a group attends to the shared part of its row, then to itself, causally
    if not supervised(module.layer_idx, module.config.num_hidden_layers):
        supervision = None
    for i, group in enumerate(layout.groups, 1):
        own = [_blocks(t[i], len(group.owners)) for t in (query, key, value)]  # [N, H, M, D]
        # [N, H, S + M, D] each
        keys, values = (torch.cat([h.index_select(0, group.owners), o], 2) for h, o in zip(shared[1:], own[1:]))
        out.append(_attend(own[0], keys, values, group.mask, scaling, group, supervision))
    return torch.cat(out)[None], None


def supervised(layer: int, layers: int) -> bool:
    """Whether the attention of this layer is supervised: those at one third and at two thirds of the layers are."""
    return layer in (layers // 3, 2 * layers // 3)


def _attend(
    query, key, value, mask, scaling, group: Group | None = None, supervision: Supervision | None = None
) -> torch.Tensor:
    """[N, H, M, D] -> [N * M, H, D]. supervision: of the group's queries that have a target; None in most layers.

    Plain products: on a CPU the backward pass of the fused kernel is many times slower.
    """
    heads_per_key = query.shape[1] // key.shape[1]
    if heads_per_key > 1:
        key, value = key.repeat_interleave(heads_per_key, 1), value.repeat_interleave(heads_per_key, 1)
    scores = (query * scaling) @ key.transpose(2, 3)  # [N, H, M, S + M]; 16 bits under autocast
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if supervision is not None and len(group.query_index):
        weights = _supervise(weights, scores, group, supervision)
    return (weights @ value).transpose(1, 2).flatten(0, 1)


def _supervise(weights: torch.Tensor, scores: torch.Tensor, group: Group, supervision: Supervision) -> torch.Tensor:
    """Record the loss of each supervised query. Returns the weights [N, H, M, S + M], guided towards the targets."""
    blocks, heads, length, keys = weights.shape
    rows = weights.transpose(1, 2).flatten(0, 1)  # [N * M, H, S + M]
    own = rows[group.query_index]  # [K, H, S + M]
    target = pad(group.target_mask, (0, keys - group.target_mask.shape[1]))[:, None]  # [K, 1, S + M]
    mass = (own * target).sum(-1).float()  # [K, H]
    supervision.losses.append((-(mass + MIN_MASS).log(), group.query_weight))
    if not supervision.guidance:
        return weights
    scores = scores.transpose(1, 2).flatten(0, 1)[group.query_index]  # [K, H, S + M]
    on_target = scores.masked_fill(~target, torch.finfo(scores.dtype).min).softmax(-1)
    rows = rows.index_copy(0, group.query_index, own.lerp(on_target, supervision.guidance))
    return rows.view(blocks, length, heads, keys).transpose(1, 2)


def _blocks(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """[count * M, H, D] -> [count, H, M, D]."""
    return tokens.unflatten(0, (count, -1)).transpose(1, 2)


AttentionInterface.register(ATTENTION_IMPLEMENTATION, packed_attention)
