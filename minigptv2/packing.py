"""Rows -> batches: padded, or packed into one row; and which tokens attend to which.

Shapes: B rows of L tokens; in a packed row P images with S shared tokens each, and groups of N blocks of M tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID, SHARED_BLOCK, EncodedRow

if TYPE_CHECKING:
    import torch

PADDING_BLOCK = -1  # the block of padding, which attends only to itself
REPEAT_WEIGHT = 0.125  # weight of a query whose target is the same as the previous token's
# blocks of a packed row are padded to the next of these lengths
BUCKET_LENGTHS = [*range(16, 128, 16), *range(128, 512, 64), *range(512, 1 << 20, 512)]


@dataclass
class Batch:
    """Rows of one length. ids, labels, positions, blocks: [B, L] int64; blocks is PADDING_BLOCK at padding.

    pixels: [P, 3, H, W] of all images in the order of the rows, or features: [P, N, C] from a feature cache; None
    without images. layout: of a row that `pack` made.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor
    pixels: torch.Tensor | None = None
    features: torch.Tensor | None = None
    layout: PackedLayout | None = None

    def to(self, device) -> Batch:
        """The same batch on another device."""
        return Batch(*(None if t is None else t.to(device) for t in vars(self).values()))


@dataclass
class Group:
    """N blocks of a packed row, M tokens each.

    owners: [N], the row whose shared part each block attends to. mask: [N, 1, M, S + M] bool, True where a query
    attends to a key of the shared part (the first S) or of its block.

    Of supervised attention, K queries in all: query_index: [K], their indices among the N * M tokens. target_mask:
    [K, S] bool, the visual tokens that each should attend to. query_weight: [K], 1, or REPEAT_WEIGHT where the previous
    token has the same target.
    """

    owners: torch.Tensor
    mask: torch.Tensor
    query_index: torch.Tensor
    target_mask: torch.Tensor
    query_weight: torch.Tensor


@dataclass
class PackedLayout:
    """Where the parts of a packed row are: `images` shared parts of `shared` tokens each, then the groups in order."""

    images: int
    shared: int
    groups: list[Group]

    def to(self, device) -> PackedLayout:
        """The same layout on another device."""
        groups = [Group(*(t.to(device) for t in vars(g).values())) for g in self.groups]
        return PackedLayout(self.images, self.shared, groups)


def collate(rows: Sequence[EncodedRow], left: bool = False, length: int = 0) -> Batch:
    """Pad rows to one batch, without pixels.

    left: pad at the beginning, for generation. length: of the rows, where the longest is shorter.
    """
    import torch

    length = max(length, max(len(r) for r in rows))

    def padded(name: str, fill: int) -> torch.Tensor:
        out = torch.full((len(rows), length), fill)
        for i, row in enumerate(rows):
            start = length - len(row) if left else 0
            out[i, start : start + len(row)] = torch.tensor(getattr(row, name))
        return out

    labels, blocks = padded("labels", IGNORE_INDEX), padded("blocks", PADDING_BLOCK)
    return Batch(padded("ids", 0), labels, padded("positions", 0), blocks, None)


def pack(rows: Sequence[EncodedRow]) -> Batch:
    """All rows as one packed row, for training: the same loss as `collate`, with little padding and no masked products.

    Each row is split into a shared part, up to its last image, and blocks: one for each independent question with its
    answer, or one for the rest of a conversation. Blocks of similar length form a group. Two rows A and B with three
    and one questions:

        [image A | image B | pad] [q A1 | q A2 | q B1] [q A3 | pad]
         shared parts, S each      group of length M    group of length M'

    A block attends to the shared part of its own row and to itself; `attention.packed_attention` computes these
    products alone.

    Returns a Batch of one row: ids, labels, positions, blocks: [1, P * S + sum of N * M over the groups]; layout: the
    groups, in order of their length.
    """
    import torch

    # 1) split the rows, and sort their blocks by length
    split = [_split(row) for row in rows]
    shared = max(len(head) for head, _ in split)
    groups: dict[int, list[tuple[int, EncodedRow]]] = {}  # length -> (row, block)
    for owner, (_, blocks) in enumerate(split):
        for block in blocks:
            groups.setdefault(BUCKET_LENGTHS[bisect_left(BUCKET_LENGTHS, len(block))], []).append((owner, block))

    # 2) the shared parts, then group after group
    head_lengths = torch.tensor([len(head) for head, _ in split])
    first_visual = [head.ids.index(IMAGE_TOKEN_ID) if IMAGE_TOKEN_ID in head.ids else 0 for head, _ in split]
    parts = [collate([head for head, _ in split])]  # [P, S]
    layout = PackedLayout(len(rows), shared, [])
    for length, blocks in sorted(groups.items()):
        owners = torch.tensor([owner for owner, _ in blocks])
        to_shared = torch.arange(shared) < head_lengths[owners][:, None]  # [N, S]
        causal = torch.ones(length, length, dtype=torch.bool).tril()  # [M, M]
        mask = torch.cat([to_shared[:, None].expand(-1, length, -1), causal.expand(len(blocks), -1, -1)], dim=-1)
        supervision = _supervised_queries(blocks, length, shared, first_visual)
        layout.groups.append(Group(owners, mask[:, None], *supervision))
        parts.append(collate([block for _, block in blocks], length=length))  # [N, M]

    # 3) all parts one after the other
    names = ("ids", "labels", "positions", "blocks")
    return Batch(*(torch.cat([getattr(p, n).flatten() for p in parts])[None] for n in names), layout=layout)


def _supervised_queries(
    blocks: list[tuple[int, EncodedRow]], length: int, shared: int, first_visual: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query_index [K], target_mask [K, S] and query_weight [K] of a group. first_visual: of each row, the index of its
    first visual token."""
    import torch

    targets = {
        n * length + m: [first_visual[owner] + token for token in tokens]
        for n, (owner, block) in enumerate(blocks)
        for m, tokens in enumerate(block.target_tokens)
        if tokens
    }
    target_mask = torch.zeros(len(targets), shared, dtype=torch.bool)
    for line, tokens in zip(target_mask, targets.values()):
        line[tokens] = True
    weight = [REPEAT_WEIGHT if targets.get(i - 1) == tokens else 1.0 for i, tokens in targets.items()]
    return torch.tensor(list(targets), dtype=torch.long), target_mask, torch.tensor(weight)


def _split(row: EncodedRow) -> tuple[EncodedRow, list[EncodedRow]]:
    """The part of a row that all its blocks share, and the blocks."""
    if set(row.blocks) == {SHARED_BLOCK}:
        head, rest = split_after_images(row)
        return head, [rest]
    return _parts(row, row.blocks)


def split_after_images(row: EncodedRow) -> tuple[EncodedRow, EncodedRow]:
    """Split a causal row after its last image, or after its first token where it has none."""
    end = 1 + max((i for i, token in enumerate(row.ids) if token == IMAGE_TOKEN_ID), default=0)
    head, (rest,) = _parts(row, [SHARED_BLOCK] * end + [1] * (len(row) - end))
    return head, rest


def _parts(row: EncodedRow, blocks: Sequence[int]) -> tuple[EncodedRow, list[EncodedRow]]:
    """The shared part and the other blocks of a row, by the block of each token."""
    parts: dict[int, EncodedRow] = {SHARED_BLOCK: EncodedRow()}
    for token, label, position, targets, block in zip(row.ids, row.labels, row.positions, row.target_tokens, blocks):
        part = parts.setdefault(block, EncodedRow())
        part.ids.append(token)
        part.labels.append(label)
        part.positions.append(position)
        part.blocks.append(block)
        part.target_tokens.append(targets)
    return parts.pop(SHARED_BLOCK), list(parts.values())


def attention_mask(blocks: torch.Tensor) -> torch.Tensor:
    """[B, L] blocks -> [B, 1, L, L] bool, True where a query (row) attends to a key (column).

    Causal within a block and from every block to the shared one. A padding token attends to itself, and no other token
    to it, so that no row of the mask is empty.
    """
    import torch

    query, key = blocks[:, :, None], blocks[:, None, :]
    causal = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool, device=blocks.device).tril()
    allowed = causal & (key != PADDING_BLOCK) & ((query == key) | (key == SHARED_BLOCK))
    own = torch.eye(blocks.shape[1], dtype=torch.bool, device=blocks.device)
    return (allowed | own)[:, None]
