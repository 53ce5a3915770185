"""Shared by readers of conversations: removing the mark of the image, and splitting to a model's context length."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minigptv2.data.annotations import InvalidRecord
from minigptv2.sample import QuestionAnswer

# LLaVA's <image>, MiniGPT-v2's <Img><ImageHere></Img>, and those of like formats (<|image|>, <image_1>, <|image_pad|>)
IMAGE_MARK = re.compile(r"<\|?image(?:_?\d+|_pad)?\|?>|(?:<img>)?<imagehere>(?:</img>)?", re.IGNORECASE)
LONG_CONVERSATION = "a conversation too long for one record, split into several (option `context`)"
_TEXT_FRACTION = 0.85  # of the context; the rest is for the image and the prompt template of each turn
_TOKENS_PER_BOX = 15


def remove_image_mark(words: str, may: bool = True) -> str:
    """The words without the mark of the image: the image always precedes the first question of a record.

    may: whether a mark is allowed. Raises InvalidRecord where it is not, and for several marks.
    """
    found = IMAGE_MARK.findall(words)
    if found and not may:
        raise InvalidRecord("a mark of an image, <image>, elsewhere than in the first question about an image")
    if len(found) > 1:
        raise InvalidRecord("several marks of an image, <image>, in one question")
    return IMAGE_MARK.sub("", words).strip()


def estimate_tokens(turns: Sequence[QuestionAnswer]) -> int:
    """The estimated number of tokens, without a tokenizer: half a token per ASCII letter, as with a small vocabulary,
    and one per byte of other letters."""
    words = [w for e in turns for w in (e.question, e.answer, *(p.text for p in e.phrases))]
    boxes = sum(len(p.boxes) for e in turns for p in e.phrases)
    return sum(len(w.encode(errors="replace")) - sum(map(str.isascii, w)) // 2 for w in words) + _TOKENS_PER_BOX * boxes


def split_conversation(turns: Sequence[QuestionAnswer], context: int) -> list[tuple[QuestionAnswer, ...]]:
    """The conversation in consecutive parts, usually one, that each fit a context of so many tokens, by estimate. A
    question and its answer stay in one part, however long they are."""
    parts: list[list[QuestionAnswer]] = []
    left = 0.0
    for question_answer in turns:
        needed = estimate_tokens((question_answer,))
        if not parts or needed > left:
            parts.append([])
            left = _TEXT_FRACTION * context
        parts[-1].append(question_answer)
        left -= needed
    return [tuple(part) for part in parts]
