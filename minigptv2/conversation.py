r"""Turns -> segments: what each family of language models puts around the text of a user and of an assistant.

Each segment of text is tokenized by itself. Control tokens are segments of their own, so a user's text never becomes
one: "<|im_start|>" in a question is encoded as these characters.

Sources: LLaMA-2-chat's `[INST]` format as MiniGPT-v2 uses it; the image is between `<Img>` and `</Img>`. ChatML, the
format of Qwen2 and SmolLM2: their `chat_template`, without the system message that these two add by default.

MiniGPT-v2's published code used one format in training (`minigptv2-train`) and another in evaluation
(`minigptv2-eval`). Two questions, "one" and "two", about an image, with `|` between segments:

    llama2           <s>|[INST] <Img>|image|</Img> one [/INST]|answer|</s>|<s>|[INST] two [/INST]|
    minigptv2-train  <s>|[INST] <Img>|image|</Img> one  [/INST]|answer|</s>|<s>|[INST] two  [/INST]|
    minigptv2-eval   <s>|<s>|[INST] <Img>|image|</Img> one [/INST]answer|<s>|[INST] two [/INST]|
    chatml           <|im_start|>|user\n<Img>|image|</Img> one|<|im_end|>|\n|<|im_start|>|assistant\n|answer|<|im_end|>|
                     \n|<|im_start|>|user\ntwo|<|im_end|>|\n|<|im_start|>|assistant\n|
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from minigptv2.sample import ImagePiece, Turn


@dataclass(frozen=True)
class ControlToken:
    """A special token, which no user text is encoded to. name: its text in the vocabulary, or "bos" or "eos"."""

    name: str


BOS, EOS = ControlToken("bos"), ControlToken("eos")
Parts = tuple[str | ControlToken, ...]


@dataclass(frozen=True)
class PromptTemplate:
    """What stands around each user turn, each image and each answer. Text that is adjacent becomes one segment.

    conversation_open: before everything else. system_open, system_close: around system_message, before the first user
    turn; both empty where the format has no system message. answer_close: ends every answer; generation stops there,
    and the loss includes it. after_answer: between an answer and the next user turn.
    answers_in_prompt: an answer that another question follows is appended to the question before it, without
    answer_close and without a loss.
    """

    user_open: Parts
    user_close: Parts
    answer_close: ControlToken
    conversation_open: Parts = ()
    after_answer: Parts = ()
    system_open: Parts = ()
    system_close: Parts = ()
    system_message: str = ""
    image_open: str = "<Img>"
    image_close: str = "</Img> "
    answers_in_prompt: bool = False

    @property
    def opening(self) -> Parts:
        """What stands before the first user turn."""
        system = (*self.system_open, self.system_message, *self.system_close) if self.system_message else ()
        return (*self.conversation_open, *system)

    @property
    def control_tokens(self) -> set[str]:
        """Names of all control tokens of the format."""
        values = [getattr(self, field.name) for field in fields(self)]
        parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        return {part.name for part in parts if isinstance(part, ControlToken)}


Prompt = Literal["llama2", "minigptv2-train", "minigptv2-eval", "chatml"]
_LLAMA2 = PromptTemplate((BOS, "[INST] "), (" [/INST]",), EOS)
_IM_START, _IM_END = ControlToken("<|im_start|>"), ControlToken("<|im_end|>")
PROMPT_TEMPLATES: dict[Prompt, PromptTemplate] = {
    "llama2": _LLAMA2,
    # what the published weights were trained with, and what their published numbers were measured with
    "minigptv2-train": replace(_LLAMA2, user_close=("  [/INST]",)),
    "minigptv2-eval": replace(_LLAMA2, conversation_open=(BOS,), answers_in_prompt=True),
    "chatml": PromptTemplate(
        user_open=(_IM_START, "user\n"),
        user_close=(_IM_END, "\n", _IM_START, "assistant\n"),
        answer_close=_IM_END,
        after_answer=("\n",),
        system_open=(_IM_START, "system\n"),
        system_close=(_IM_END, "\n"),
    ),
}


@dataclass(frozen=True)
class Segment:
    """A piece of one type. text: tokenized by itself. control: the name of a control token. supervised: the loss is
    taken over its tokens."""

    type: Literal["text", "image", "control"]
    text: str = ""
    image: ImagePiece | None = None
    control: str = ""
    supervised: bool = False


def segments(turns: Sequence[Turn], template: PromptTemplate) -> list[Segment]:
    """The segments of a conversation, in order."""
    out: list[Segment] = []
    last_question = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and out and template.answers_in_prompt and number < last_question:
            out[-1] = Segment("text", out[-1].text + "".join(turn.pieces).strip())
        elif turn.role == "assistant":
            out += [Segment("text", piece, supervised=True) for piece in turn.pieces]
            out.append(Segment("control", control=template.answer_close.name, supervised=True))
        else:
            before = template.after_answer if out else template.opening
            out += _joined([*before, *_user_parts(turn, template)])
    return out


def _user_parts(turn: Turn, template: PromptTemplate) -> Iterator[str | ControlToken | ImagePiece]:
    yield from template.user_open
    for piece in turn.pieces:
        yield from (template.image_open, piece, template.image_close) if isinstance(piece, ImagePiece) else (piece,)
    yield from template.user_close


def _joined(parts: Iterable[str | ControlToken | ImagePiece]) -> Iterator[Segment]:
    """The parts as segments, without a loss; texts side by side are one segment."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield Segment("text", text)
        text = ""
        if isinstance(part, ImagePiece):
            yield Segment("image", image=part)
        else:
            yield Segment("control", control=part.name)
    if text:
        yield Segment("text", text)
