"""Turns -> segments: what each family of language models puts around a user's and an assistant's words.

Source: LLaMA-2-chat's `[INST]` format as MiniGPT-v2 uses it; the picture stands between `<Img>` and `</Img>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minigptv2.sample import Picture, Turn


@dataclass(frozen=True)
class Wrapper:
    """The text around a user's turn and around each picture. Each turn of the user begins with BOS, each answer ends
    with EOS."""

    user_open: str
    user_close: str
    image_open: str
    image_close: str


Prompt = Literal["llama2", "training", "published"]
WRAPPERS: dict[Prompt, Wrapper] = {
    "llama2": Wrapper("[INST] ", " [/INST]", "<Img>", "</Img> "),
    "training": Wrapper("[INST] ", "  [/INST]", "<Img>", "</Img> "),
    "published": Wrapper("[INST] ", " [/INST]", "<Img>", "</Img> "),
}


@dataclass(frozen=True)
class Segment:
    """A run of one kind. text: tokenized by itself. supervised: the loss is taken over its tokens."""

    kind: Literal["text", "image", "bos", "eos"]
    text: str = ""
    image: Picture | None = None
    supervised: bool = False


def segments(turns: Sequence[Turn], wrapper: Wrapper) -> list[Segment]:
    """The segments of a conversation, in order. A user's words never change its structure: they are text only."""
    out: list[Segment] = []
    for turn in turns:
        if turn.role == "assistant":
            out += [Segment("text", piece, supervised=True) for piece in turn.pieces]
            out.append(Segment("eos", supervised=True))
            continue
        out.append(Segment("bos"))
        text = wrapper.user_open
        for piece in turn.pieces:
            if isinstance(piece, Picture):
                out += [Segment("text", text + wrapper.image_open), Segment("image", image=piece)]
                text = wrapper.image_close
            else:
                text += piece
        out.append(Segment("text", text + wrapper.user_close))
    return out
