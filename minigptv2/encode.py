"""Samples and turns -> token ids: the only place that calls a tokenizer.

Shapes: L tokens of one row, B rows. Token ids, the supervised flag, positions and blocks are appended by the same call,
so there is no offset to compute and nothing is tokenized twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.conversation import PROMPT_TEMPLATES, Segment, segments
from minigptv2.errors import UserError
from minigptv2.sample import ImagePiece, Turn

if TYPE_CHECKING:
    import torch

IMAGE_TOKEN_ID = -1  # at every place that a visual token will take; no tokenizer gives it, so no text can
SHARED_BLOCK = 0  # the block that every other block of its row may look at
IGNORE_INDEX = -100  # the label of what has no loss
REPEAT_WEIGHT = 0.125  # how much a token counts that should look where the one before it did
BUCKET_LENGTHS = [
    *range(16, 128, 16),
    *range(128, 512, 64),
    *range(512, 1 << 20, 512),
]  # that packed blocks are padded to


class Tokenizer:
    """A SentencePiece model: text to pieces, never to a control token, whatever the text holds."""

    def __init__(self, model: bytes):
        """model: the bytes of a `tokenizer.model`. Raises ValueError or RuntimeError where they are none."""
        import sentencepiece

        if not model:  # sentencepiece itself would open it and log an error at every call
            raise ValueError("it is empty")
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bos, self.eos = self._pieces.bos_id(), self._pieces.eos_id()
        self.size = self._pieces.get_piece_size()
        if min(self.bos, self.eos) < 0:  # -1 stands for "has none", and is IMAGE_TOKEN_ID here
            raise ValueError("it has no token for the beginning or the end of a text")

    @classmethod
    def load(cls, file: Path) -> Tokenizer:
        return cls(file.read_bytes())

    def save(self, file: Path) -> None:
        file.write_bytes(self.model)

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode([i for i in ids if i not in (self.bos, self.eos)])

    def control_id(self, name: str) -> int:
        """The id of "bos", "eos" or a control token by its name. Raises UserError where the model has none."""
        if name in ("bos", "eos"):
            return getattr(self, name)
        index = self._pieces.piece_to_id(name)
        if not self._pieces.is_control(index):
            raise no_control_token(name)
        return index

    def piece(self, index: int) -> str:
        return self._pieces.id_to_piece(index)

    def words(self, index: int) -> str:
        """The text of one token, with a space where it begins a word; the name of a control token or of a byte."""
        return self.piece(index).replace("▁", " ")


class HFTokenizer:
    """A tokenizer of transformers, for language models without a SentencePiece file (Qwen); used like `Tokenizer`.

    Where the family has no token for the beginning of a text, the one that separates texts stands in for it.
    """

    def __init__(self, folder: str | Path):
        """folder: where the files are, or a hub's name. Raises ValueError or OSError where there is none."""
        from transformers import AutoTokenizer

        self._own = AutoTokenizer.from_pretrained(folder)
        ids = self._own.bos_token_id, self._own.pad_token_id, self._own.eos_token_id
        if self._own.eos_token_id is None:
            raise ValueError("it has no token for the end of a text")
        self.bos = next(i for i in ids if i is not None)
        self.eos, self.size = self._own.eos_token_id, len(self._own)
        special = [i for i, token in self._own.added_tokens_decoder.items() if token.special]
        self._control_ids = {self.bos, self.eos, *special}

    def save(self, file: Path) -> None:
        """file: a folder, which gets several."""
        self._own.save_pretrained(file)

    def encode(self, text: str) -> list[int]:
        """A control token's name in the text stays text."""
        return self._own.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens; control tokens have none."""
        kept = [i for i in ids if i not in self._control_ids]
        return self._own.decode(kept, clean_up_tokenization_spaces=False).strip(" ")

    def control_id(self, name: str) -> int:
        """The id of "bos", "eos" or a control token by its name. Raises UserError where the tokenizer has none."""
        if name in ("bos", "eos"):
            return getattr(self, name)
        index = self._own.convert_tokens_to_ids(name)
        if index not in self._control_ids or index in self.encode(name):  # a user's text could else become it
            raise no_control_token(name)
        return index

    def piece(self, index: int) -> str:
        return self._own.convert_ids_to_tokens(index) or ""

    def words(self, index: int) -> str:
        return self._own.convert_tokens_to_string([self.piece(index)])


def no_control_token(name: str) -> UserError:
    return UserError(
        f"The tokenizer has no control token {name}.",
        "The prompt template needs it; chatml is for models such as Qwen2 and SmolLM2.",
        "Set model.prompt to llama2, or take a language model whose tokenizer has the token.",
    )


@dataclass
class EncodedRow:
    """One row. ids: IMAGE_TOKEN_ID where a visual token goes; labels: the id itself where supervised, else
    IGNORE_INDEX.

    target_tokens: the visual tokens, by their number in the image, that a token should look at in training; () for
    most. positions restart after the shared block; blocks: SHARED, or the number of the exchange a token belongs to
    (one block alone: an ordinary causal row). images: what `images.open_image` takes, in the order of their places.
    dropped_turns: how many of the oldest questions, each with its answer, are not in the row, as the context is full.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    target_tokens: list[tuple[int, ...]] = field(default_factory=list)
    images: list[object] = field(default_factory=list)
    dropped_turns: int = 0

    def add(self, ids: Sequence[int], supervised: bool = False, block: int = SHARED_BLOCK) -> None:
        if self.blocks and self.blocks[-1] == block:
            start = self.positions[-1] + 1
        else:
            start = 1 + max((p for p, b in zip(self.positions, self.blocks) if b == SHARED_BLOCK), default=-1)
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self.positions += range(start, start + len(ids))
        self.blocks += [block] * len(ids)
        self.target_tokens += [()] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


def stop_ids(tokenizer: Tokenizer | HFTokenizer, prompt: str) -> set[int]:
    """The tokens that end an answer: the tokenizer's end of text and the template's end of an answer."""
    return {tokenizer.eos, tokenizer.control_id(PROMPT_TEMPLATES[prompt].answer_close.name)}


class PromptEncoder:
    """Turns -> EncodedRow, for one model."""

    def __init__(
        self,
        tokenizer: Tokenizer | HFTokenizer,
        prompt: str,
        image_tokens: int,
        context: int,
        system_message: str = "",
    ):
        """prompt: a key of `PROMPT_TEMPLATES`. image_tokens: visual tokens of one image. context: tokens of the longest
        row. system_message: stands before the first turn. Raises UserError where the tokenizer lacks a control token
        of the template, or the template has no system message."""
        self.tokenizer, self.image_tokens, self.context = tokenizer, image_tokens, context
        template = PROMPT_TEMPLATES[prompt]
        if system_message and not template.system_open:
            raise UserError(
                f"model.language.system_message is {system_message!r}, and model.prompt is {prompt}.",
                f"These have one: {', '.join(name for name, t in PROMPT_TEMPLATES.items() if t.system_open)}.",
                "Remove it, or choose another prompt.",
            )
        self.template = replace(template, system_message=system_message)
        self._control_ids = {name: tokenizer.control_id(name) for name in sorted(template.control_tokens)}

    @classmethod
    def for_model(cls, model, tokenizer: Tokenizer | HFTokenizer) -> PromptEncoder:
        """model: a `GroundingVLM`, with weights or without."""
        language = model.config.language
        context = language.max_position_embeddings
        return cls(tokenizer, model.config.prompt, model.image_tokens, context, language.system_message)

    def encode(self, turns: Sequence[Turn], room: int = 0) -> EncodedRow:
        """One conversation as one row that fits the context with `room` tokens to spare.

        The oldest turns are dropped where it does not fit, never the image or the last question; UserError where
        those alone are too long.
        """
        kept, dropped = list(turns), 0
        while True:
            row = EncodedRow(dropped_turns=dropped)
            for segment in segments(kept, self.template):
                self._append(row, segment, SHARED_BLOCK)
            if len(row) + room <= self.context:
                return row
            shorter = _without_oldest(kept)
            if shorter is None:
                to_come = f", and {room} for the answer" if room else ""
                raise UserError(
                    f"The instruction is too long: {len(row)} tokens with its image{to_come}.",
                    f"The model's context is {self.context} tokens.",
                    "Shorten it, or lower max_new_tokens." if room else "Shorten it, or the answer that was given.",
                )
            kept, dropped = shorter, dropped + 1

    def encode_independent_answers(self, turns: Sequence[Turn]) -> EncodedRow:
        """Independent exchanges about one image in one row, as if each were asked alone; the image is shared.

        A token sees the shared block and what precedes it in its own block:

            keys ->        <s>[INST]<Img> image | question 1, answer 1 | question 2, answer 2
            shared                 causal       |          .           |          .
            exchange 1             all          |        causal        |          .
            exchange 2             all          |          .           |        causal

        UserError where one exchange and the image are longer than the context; their sum may be.
        """
        row, block = EncodedRow(), SHARED_BLOCK
        if not turns or turns[0].role != "user":
            raise ValueError("The first turn must be the user's.")
        words = [p for p in turns[0].pieces if not isinstance(p, ImagePiece)]
        later = [p for t in turns[1:] for p in t.pieces if isinstance(p, ImagePiece)]
        if list(turns[0].pieces[len(turns[0].pieces) - len(words) :]) != words or later:
            raise ValueError("The images of exchanges side by side must stand at the head of the first turn.")
        images = [p for p in turns[0].pieces if isinstance(p, ImagePiece)]
        head = segments(turns[:1], self.template)
        shared = _shared_segments(head)
        for segment in head[:shared]:
            self._append(row, segment, SHARED_BLOCK)
        for turn in turns:
            alone = segments([turn], self.template)
            if turn.role == "user":
                block += 1
                texts = [p for p in turn.pieces if isinstance(p, str)]
                alone = segments([Turn("user", (*images, *texts))], self.template)[shared:]
            for segment in alone:
                self._append(row, segment, block)
        longest = 1 + max(row.positions)
        if longest > self.context:
            raise UserError(
                f"An exchange is too long: {longest} tokens with its image.",
                f"The model's context is {self.context} tokens.",
                "Shorten it.",
            )
        return row

    def _append(self, row: EncodedRow, segment: Segment, block: int) -> None:
        if segment.kind == "image":
            row.images.append(segment.image.image)
            row.add([IMAGE_TOKEN_ID] * self.image_tokens, block=block)
        elif segment.kind == "text":
            row.add(self.tokenizer.encode(segment.text), segment.supervised, block)
        else:
            row.add([self._control_ids[segment.control]], segment.supervised, block)


def _shared_segments(head: Sequence[Segment]) -> int:
    """How many segments of a first user turn all exchanges share: up to the last image; without one, the control
    tokens before the first text."""
    images = [i for i, segment in enumerate(head) if segment.kind == "image"]
    return images[-1] + 1 if images else next(i for i, segment in enumerate(head) if segment.kind == "text")


def _without_oldest(turns: list[Turn]) -> list[Turn] | None:
    """The conversation without its oldest question and answer, images kept; None when only the last is left."""
    asked = [i for i, t in enumerate(turns) if t.role == "user"]
    if len(asked) < 2:
        return None
    images = tuple(p for t in turns[: asked[1]] for p in t.pieces if isinstance(p, ImagePiece))
    first, *rest = turns[asked[1] :]
    return [Turn("user", (*images, *first.pieces)), *rest]


@dataclass
class Batch:
    """Rows padded to one length. ids, labels, positions, blocks: [B, L] int64 (blocks -1 at padding).

    pixels: [P, 3, H, W] of all images in order, or features: [P, N, C] where a cache gave them; None without any.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor
    pixels: torch.Tensor | None = None
    features: torch.Tensor | None = None
    layout: PackedLayout | None = None  # of one packed row, where `pack` made it

    def to(self, device) -> Batch:
        return Batch(*(None if t is None else t.to(device) for t in vars(self).values()))


@dataclass
class Group:
    """N blocks of M tokens each. owners: [N] whose shared part each sees; mask: [N, 1, M, S + M] bool, True: seen.

    query_index: [K] which of the N * M tokens should look at certain visual tokens; target_mask: [K, S] bool, at which;
    query_weight: [K], how much each counts: 1 where a token must find its place, less where the token before it looks
    there, too."""

    owners: torch.Tensor
    mask: torch.Tensor
    query_index: torch.Tensor
    target_mask: torch.Tensor
    query_weight: torch.Tensor


@dataclass
class PackedLayout:
    """A packed row: the shared parts of all images, `shared` tokens each, then the blocks of every group."""

    images: int
    shared: int
    groups: list[Group]

    def to(self, device) -> PackedLayout:
        groups = [Group(*(t.to(device) for t in vars(g).values())) for g in self.groups]
        return PackedLayout(self.images, self.shared, groups)


def collate(
    rows: Sequence[EncodedRow],
    left: bool = False,
    load: Callable[[list[object]], torch.Tensor] | None = None,
    length: int = 0,
) -> Batch:
    """Pad rows to one batch, left or right, of the longest one's length or `length`. load: images -> pixels
    [P, 3, H, W]."""
    import torch

    length = max(length, max(len(r) for r in rows))

    def padded(name: str, fill: int) -> torch.Tensor:
        out = torch.full((len(rows), length), fill)
        for i, row in enumerate(rows):
            start = length - len(row) if left else 0
            out[i, start : start + len(row)] = torch.tensor(getattr(row, name))
        return out

    images = [image for row in rows for image in row.images]
    return Batch(
        padded("ids", 0),
        padded("labels", IGNORE_INDEX),
        padded("positions", 0),
        padded("blocks", -1),
        load(images) if images and load else None,
    )


def pack(rows: Sequence[EncodedRow]) -> Batch:
    """All rows as one, for training: blocks of like length lie together, so that little is padded or masked away.

    The blocks of a row are its exchanges side by side, or all that follows its last image. Same loss as `collate`.
    """
    import torch

    split = [_split(row) for row in rows]
    shared = max(len(head) for head, _ in split)
    groups: dict[int, list[tuple[int, EncodedRow]]] = {}
    for owner, (_, blocks) in enumerate(split):
        for block in blocks:
            groups.setdefault(BUCKET_LENGTHS[bisect_left(BUCKET_LENGTHS, len(block))], []).append((owner, block))
    heads = torch.tensor([len(head) for head, _ in split])
    firsts = [head.ids.index(IMAGE_TOKEN_ID) if IMAGE_TOKEN_ID in head.ids else 0 for head, _ in split]
    parts = [collate([head for head, _ in split])]
    layout = PackedLayout(len(rows), shared, [])
    for length, blocks in sorted(groups.items()):
        owners = torch.tensor([owner for owner, _ in blocks])
        before = torch.arange(shared) < heads[owners][:, None]  # [N, S]
        own = torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.cat([before[:, None].expand(-1, length, -1), own.expand(len(blocks), -1, -1)], dim=-1)
        wanted = {
            n * length + m: [firsts[owner] + place for place in places]
            for n, (owner, block) in enumerate(blocks)
            for m, places in enumerate(block.target_tokens)
            if places
        }
        looks = torch.zeros(len(wanted), shared, dtype=torch.bool)
        for look, places in zip(looks, wanted.values()):
            look[places] = True
        counts = torch.tensor([REPEAT_WEIGHT if wanted.get(i - 1) == places else 1.0 for i, places in wanted.items()])
        lookers = torch.tensor(list(wanted), dtype=torch.long)
        layout.groups.append(Group(owners, mask[:, None], lookers, looks, counts))
        parts.append(collate([block for _, block in blocks], length=length))
    names = ("ids", "labels", "positions", "blocks")
    return Batch(*(torch.cat([getattr(p, n).flatten() for p in parts])[None] for n in names), layout=layout)


def _split(row: EncodedRow) -> tuple[EncodedRow, list[EncodedRow]]:
    """The part of a row that all its blocks share, and the blocks."""
    if set(row.blocks) == {SHARED_BLOCK}:
        head, rest = split_after_images(row)
        return head, [rest]
    return _parts(row, row.blocks)


def split_after_images(row: EncodedRow) -> tuple[EncodedRow, EncodedRow]:
    """An ordinary causal row as what stands up to the end of its last image (at least one token), and the rest."""
    end = 1 + max((i for i, token in enumerate(row.ids) if token == IMAGE_TOKEN_ID), default=0)
    head, (rest,) = _parts(row, [SHARED_BLOCK] * end + [1] * (len(row) - end))
    return head, rest


def _parts(row: EncodedRow, blocks: Sequence[int]) -> tuple[EncodedRow, list[EncodedRow]]:
    parts: dict[int, EncodedRow] = {SHARED_BLOCK: EncodedRow()}
    for token, label, position, looks, block in zip(row.ids, row.labels, row.positions, row.target_tokens, blocks):
        part = parts.setdefault(block, EncodedRow())
        part.ids.append(token)
        part.labels.append(label)
        part.positions.append(position)
        part.blocks.append(block)
        part.target_tokens.append(looks)
    return parts.pop(SHARED_BLOCK), list(parts.values())


def attention_mask(blocks: torch.Tensor) -> torch.Tensor:
    """[B, L] blocks -> [B, 1, L, L] bool, True where a query (row) may look at a key (column).

    Causal within a block and from every block to the shared one. Padding is seen by itself alone, so that no row of
    the mask is empty.
    """
    import torch

    query, key = blocks[:, :, None], blocks[:, None, :]
    causal = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool, device=blocks.device).tril()
    allowed = causal & (key >= 0) & ((query == key) | (key == SHARED_BLOCK))
    own = torch.eye(blocks.shape[1], dtype=torch.bool, device=blocks.device)
    return (allowed | own)[:, None]
