"""Turns -> segments: what each family of language models puts around a user's and an assistant's words.

Source: LLaMA-2-chat's `[INST]` format as MiniGPT-v2 uses it; the image stands between `<Img>` and `</Img>`.

Each segment of text is tokenized by itself and so begins with SentencePiece's space. The published system asked its
weights (`published`) otherwise than it trained them (`training`), here about an image, with `|` between segments:

    llama2     <s>|[INST] <Img>|image|</Img> one [/INST]|answer|</s>|<s>|[INST] two [/INST]|
    training   <s>|[INST] <Img>|image|</Img> one  [/INST]|answer|</s>|<s>|[INST] two  [/INST]|
    published  <s>|<s>|[INST] <Img>|image|</Img> one [/INST]answer|<s>|[INST] two [/INST]|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from minigptv2.sample import ImagePiece, Turn


@dataclass(frozen=True)
class PromptTemplate:
    """The text around a user's turn and around each image.

    first_bos: how many BOS the conversation begins with; each later turn of the user begins with one.
    answers_in_prompt: an answer that another question follows is one segment with the question before it, without EOS,
    and no loss is taken over it; else every answer is a segment of its own and ends with EOS, as the last one always
    does."""

    user_open: str
    user_close: str
    image_open: str
    image_close: str
    first_bos: int = 1
    answers_in_prompt: bool = False


Prompt = Literal["llama2", "minigptv2-train", "minigptv2-eval"]
_LLAMA2 = PromptTemplate("[INST] ", " [/INST]", "<Img>", "</Img> ")
PROMPT_TEMPLATES: dict[Prompt, PromptTemplate] = {
    "llama2": _LLAMA2,
    # what the published weights were trained with, and what their published numbers were measured with
    "minigptv2-train": replace(_LLAMA2, user_close="  [/INST]"),
    "minigptv2-eval": replace(_LLAMA2, first_bos=2, answers_in_prompt=True),
}


@dataclass(frozen=True)
class Segment:
    """A run of one kind. text: tokenized by itself. supervised: the loss is taken over its tokens."""

    kind: Literal["text", "image", "bos", "eos"]
    text: str = ""
    image: ImagePiece | None = None
    supervised: bool = False


def segments(turns: Sequence[Turn], wrapper: PromptTemplate) -> list[Segment]:
    """The segments of a conversation, in order. A user's words never change its structure: they are text only."""
    out: list[Segment] = []
    last_question = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and out and wrapper.answers_in_prompt and number < last_question:
            out[-1] = Segment("text", out[-1].text + "".join(turn.pieces).strip())
            continue
        if turn.role == "assistant":
            out += [Segment("text", piece, supervised=True) for piece in turn.pieces]
            out.append(Segment("eos", supervised=True))
            continue
        out += [Segment("bos")] * (1 if out else wrapper.first_bos)
        text = wrapper.user_open
        for piece in turn.pieces:
            if isinstance(piece, ImagePiece):
                out += [Segment("text", text + wrapper.image_open), Segment("image", image=piece)]
                text = wrapper.image_close
            else:
                text += piece
        out.append(Segment("text", text + wrapper.user_close))
    return out
