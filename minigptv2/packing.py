"""Encoded rows -> batches, by padding (`collate`) or by packing into one row (`pack`); and attention masks.

Shapes: B rows of L tokens, P images. Inside a packed row: R shared parts of S tokens each, one for each row that was
packed; then groups of N blocks with M tokens each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID, SHARED_BLOCK, EncodedRow

if TYPE_CHECKING:
    import torch

PADDING_BLOCK = -1  # the block number of padding; a padding token attends only to itself
# loss weight of a supervised query if the previous token has the same target: a long run of equal targets counts less
REPEAT_WEIGHT = 0.125
# `pack` pads a block to the next of these lengths, in tokens; blocks of equal padded length form a group
BUCKET_LENGTHS = [*range(16, 128, 16), *range(128, 512, 64), *range(512, 1 << 20, 512)]


@dataclass
class Batch:
    """Rows of equal length, for one forward pass.

    ids, labels, positions, blocks: [B, L] int64, see `EncodedRow`; blocks is PADDING_BLOCK at padding. pixels:
    [P, 3, H, W] of all images, in the order of the rows. features: in place of pixels, [P, patches, C] from a feature
    cache. Both are None without images. layout: set only by `pack`, which returns one packed row.
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
    """N blocks of a packed row, padded to M tokens each.

    owners: [N] int64, for each block the index of its row, whose shared part it attends to. mask: [N, 1, M, S + M]
    bool, True where a query may attend to a key; keys are the S tokens of the shared part, then the M of the block.

    The other fields are for attention supervision of K queries; K is 0 without it. query_index: [K] int64, indices into
    the N * M tokens of the group. target_mask: [K, S] bool, True at the visual tokens that a query should attend to.
    query_weight: [K] float32, 1, or REPEAT_WEIGHT if the previous token has the same target.
    """

    owners: torch.Tensor
    mask: torch.Tensor
    query_index: torch.Tensor
    target_mask: torch.Tensor
    query_weight: torch.Tensor


@dataclass
class PackedLayout:
    """The order of tokens in a packed row: first the shared parts, then the groups.

    rows: R, number of shared parts. shared: S, tokens in each of them, padding included.
    """

    rows: int
    shared: int
    groups: list[Group]

    def to(self, device) -> PackedLayout:
        """The same layout on another device."""
        groups = [Group(*(t.to(device) for t in vars(g).values())) for g in self.groups]
        return PackedLayout(self.rows, self.shared, groups)


def collate(rows: Sequence[EncodedRow], left: bool = False, length: int = 0) -> Batch:
    """Pad rows to a batch of equal length, without pixels.

    left: pad on the left, for generation. length: minimum length of the padded rows, in tokens.
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
    """Pack rows into one, for training. The loss is that of `collate`, with less padding and fewer attention scores.

    Each row is split into a shared part, which ends at its last image, and blocks. A block is one independent question
    with its answer, or the rest of a conversation. Blocks of similar length form a group. Row A has three questions and
    row B has one:

        [image A | image B | pad] [q A1 | q A2 | q B1] [q A3 | pad]
         shared parts, S each      group of length M    group of length M'

    A block attends to the shared part of its own row and to itself. `attention.packed_attention` computes only these
    attention scores.

    Returns a Batch with B = 1 and L = R * S + (sum of N * M over the groups), without pixels. The groups are in order
    of increasing M.
    """
    import torch

    # 1) split the rows, and group their blocks by padded length
    split = [_split(row) for row in rows]
    shared = max(len(head) for head, _ in split)
    groups: dict[int, list[tuple[int, EncodedRow]]] = {}  # length -> (row, block)
    for owner, (_, blocks) in enumerate(split):
        for block in blocks:
            groups.setdefault(BUCKET_LENGTHS[bisect_left(BUCKET_LENGTHS, len(block))], []).append((owner, block))

    # 2) pad the shared parts, then the blocks of each group
    head_lengths = torch.tensor([len(head) for head, _ in split])
    first_visual = [head.ids.index(IMAGE_TOKEN_ID) if IMAGE_TOKEN_ID in head.ids else 0 for head, _ in split]
    parts = [collate([head for head, _ in split])]  # [R, S]
    layout = PackedLayout(len(rows), shared, [])
    for length, blocks in sorted(groups.items()):
        owners = torch.tensor([owner for owner, _ in blocks])
        to_shared = torch.arange(shared) < head_lengths[owners][:, None]  # [N, S]
        causal = torch.ones(length, length, dtype=torch.bool).tril()  # [M, M]
        mask = torch.cat([to_shared[:, None].expand(-1, length, -1), causal.expand(len(blocks), -1, -1)], dim=-1)
        supervision = _supervised_queries(blocks, length, shared, first_visual)
        layout.groups.append(Group(owners, mask[:, None], *supervision))
        parts.append(collate([block for _, block in blocks], length=length))  # [N, M]

    # 3) concatenate all parts to one row
    names = ("ids", "labels", "positions", "blocks")
    return Batch(*(torch.cat([getattr(p, n).flatten() for p in parts])[None] for n in names), layout=layout)


def _supervised_queries(
    blocks: list[tuple[int, EncodedRow]], length: int, shared: int, first_visual: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query_index [K], target_mask [K, S] and query_weight [K] of a group; see `Group`.

    blocks: (index of its row, block) of the group. length: M. shared: S. first_visual: for each row, the index of its
    first visual token.
    """
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
    """Split a causal row after its last visual token, or after its first token if it has no image."""
    end = 1 + max((i for i, token in enumerate(row.ids) if token == IMAGE_TOKEN_ID), default=0)
    head, (rest,) = _parts(row, [SHARED_BLOCK] * end + [1] * (len(row) - end))
    return head, rest


def _parts(row: EncodedRow, blocks: Sequence[int]) -> tuple[EncodedRow, list[EncodedRow]]:
    """Split a row into its shared part and its other blocks. blocks: the block number of each token."""
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

    A token attends to the tokens before it in its own block and in the shared block. A padding token attends only to
    itself, so that no row of the mask is empty; no other token attends to it.
    """
    import torch

    query, key = blocks[:, :, None], blocks[:, None, :]
    causal = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool, device=blocks.device).tril()
    allowed = causal & (key != PADDING_BLOCK) & ((query == key) | (key == SHARED_BLOCK))
    own = torch.eye(blocks.shape[1], dtype=torch.bool, device=blocks.device)
    return (allowed | own)[:, None]
