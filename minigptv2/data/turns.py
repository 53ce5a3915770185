"""What all readers of conversations need: the mark of the image's place, and records that fit a model's context."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minigptv2.data.annotations import InvalidRecord
from minigptv2.sample import QuestionAnswer

# LLaVA's <image>, MiniGPT-v2's <Img><ImageHere></Img>, and those of like formats (<|image|>, <image_1>, <|image_pad|>)
PLACE = re.compile(r"<\|?image(?:_?\d+|_pad)?\|?>|(?:<img>)?<imagehere>(?:</img>)?", re.IGNORECASE)
IN_PARTS = "a conversation too long for one record, learned as several (option `context`)"
_SHARE = 0.85  # of the context is for the words; the rest for the image and what surrounds each turn
_BOX = 15  # tokens


def without_place(words: str, may: bool = True) -> str:
    """The words without the mark of the image's place: the image always heads the first question of a record.

    may: whether it may stand there. Raises InvalidRecord where it may not, and for several.
    """
    found = PLACE.findall(words)
    if found and not may:
        raise InvalidRecord("a mark of an image, <image>, elsewhere than in the first question about an image")
    if len(found) > 1:
        raise InvalidRecord("several marks of an image, <image>, in one question")
    return PLACE.sub("", words).strip()


def estimate_tokens(said: Sequence[QuestionAnswer]) -> int:
    """How many tokens a conversation has, by estimate, for lack of a tokenizer: half of one a letter of ASCII, as small
    vocabularies need, and one a byte of other letters."""
    words = [w for e in said for w in (e.question, e.answer, *(p.text for p in e.phrases))]
    boxes = sum(len(p.boxes) for e in said for p in e.phrases)
    return sum(len(w.encode(errors="replace")) - sum(map(str.isascii, w)) // 2 for w in words) + _BOX * boxes


def split_conversation(said: Sequence[QuestionAnswer], context: int) -> list[tuple[QuestionAnswer, ...]]:
    """A conversation as consecutive ones, mostly one, that each fit a context of so many tokens, by estimate. No
    question is parted from its answer, however long."""
    parts: list[list[QuestionAnswer]] = []
    left = 0.0
    for exchange in said:
        needed = estimate_tokens((exchange,))
        if not parts or needed > left:
            parts.append([])
            left = _SHARE * context
        parts[-1].append(exchange)
        left -= needed
    return [tuple(part) for part in parts]
