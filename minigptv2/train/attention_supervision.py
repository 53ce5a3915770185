"""Targets for the attention of text tokens: the visual tokens that each of them should attend to.

Tokens that write a box should attend to the inside of that box, and a name to the objects that it names. Training adds
a loss for this (`model/attention.py`). From the loss of the answers alone, a small model takes thousands of steps to
find which words belong to which part of the image. Inference does not use it.
Source: supervised attention (Liu et al. 2016, arXiv 1609.04186), here from words to visual tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from minigptv2.boxes import BOX_TOKENS, PHRASE_CLOSE, PHRASE_OPEN, Box, parse
from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID, EncodedRow
from minigptv2.sample import Phrase


class Targets:
    """Marks the targets in the rows of one model.

    words: the text of a token, given its id. patches: N, patches of the square image, in raster order. merge:
    number of neighbouring patches of a row that form one visual token.
    """

    def __init__(self, words: Callable[[int], str], patches: int, merge: int):
        self.words, self.side, self.merge = words, math.isqrt(patches), merge

    def mark(self, row: EncodedRow, entities: Sequence[Phrase], size: tuple[int, int]) -> None:
        """Fill `row.target_tokens`: of each token, the visual tokens to attend to, numbered from 0 in raster order.

        entities: the objects of the image by name, with boxes in pixels of an image of `size`, (width, height).

        Question: the last token of a name -> all boxes of that name; the closing token of a box -> that box.
        Answer: the tokens of a box up to its last number, and those that predict a token of its phrase -> that box.
        Answer without a box: the tokens that predict a token of the answer -> the question's box, if it has one only.

        A token predicts the one after it. A row without an image, or with several, stays unmarked.
        """
        if len(row.images) != 1:
            return
        boxes_of = {p.text: [_relative(box, size) for box in p.boxes] for p in entities}
        longest_first = sorted(boxes_of, key=len, reverse=True)
        names = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b" if boxes_of else r"(?!)")
        for number in sorted(set(row.blocks)):
            block = _Block(row, number, self.words)
            answer = block.answer
            for name in names.finditer(block.text[:answer]):
                self._set(block, name.end() - 1, name.end(), boxes_of[name[0]])
            found = parse(block.text, 1, 1)
            in_question = [(box, end) for box, (start, end) in zip(found.boxes, found.spans) if start < answer]
            for box, end in in_question:
                self._set(block, end - 1, end, [box])
            in_answer = [(box, *span) for box, span in zip(found.boxes, found.spans) if span[0] >= answer]
            for box, start, end in in_answer:
                self._set(block, start, end - len(BOX_TOKENS[-1]), [box])
                if block.text[:start].rstrip().endswith(PHRASE_CLOSE):
                    opening, closing = (block.text.rindex(tag, 0, start) for tag in (PHRASE_OPEN, PHRASE_CLOSE))
                    self._set(block, opening, closing, [box], last=False)
            if len(in_question) == 1 and not in_answer:
                self._set(block, answer - 1, len(block.text), [in_question[0][0]], last=False)

    def _set(self, block: _Block, start: int, end: int, boxes: Iterable[Box], last: bool = True) -> None:
        """The tokens with a character of [start, end) get these boxes as target. last: also the last of them."""
        visual = tuple(sorted({index for box in boxes for index in self.visual_tokens(box)}))
        positions = block.tokens(start, end)
        for position in positions if last else positions[:-1]:
            block.row.target_tokens[position] = visual

    def visual_tokens(self, box: Box) -> set[int]:
        """The visual tokens that cover a box, given in fractions of the image: those with a patch whose centre lies in
        it; of a box without such a patch, the one at its centre."""
        rows, columns = (
            [i for i in range(self.side) if low <= (i + 0.5) / self.side <= high]
            or [min(self.side - 1, int((low + high) / 2 * self.side))]
            for low, high in ((box.y1, box.y2), (box.x1, box.x2))
        )
        return {(y * self.side + x) // self.merge for y in rows for x in columns}


class _Block:
    """The text of one block of a row: of one question and its answer, where a row holds several.

    answer: index of the character at which its first supervised token begins.
    """

    def __init__(self, row: EncodedRow, number: int, words: Callable[[int], str]):
        self.row = row
        self._positions = [i for i, b in enumerate(row.blocks) if b == number and row.ids[i] != IMAGE_TOKEN_ID]
        parts = [words(row.ids[i]) for i in self._positions]
        self.text, self._ends = "".join(parts), list(accumulate(map(len, parts)))
        supervised = [
            e - len(p) for i, p, e in zip(self._positions, parts, self._ends) if row.labels[i] != IGNORE_INDEX
        ]
        self.answer = supervised[0] if supervised else len(self.text)

    def tokens(self, start: int, end: int) -> list[int]:
        """Positions in the row of the tokens that hold a character of [start, end)."""
        begins = [0, *self._ends]
        return [i for i, b, e in zip(self._positions, begins, self._ends) if b < end and e > start]


def _relative(box: Box, size: tuple[int, int]) -> Box:
    """In fractions of the image's width and height."""
    return Box(box.x1 / size[0], box.y1 / size[1], box.x2 / size[0], box.y2 / size[1])
