"""Where the tokens of a row should look in the image while it is learned.

What writes a box should look into that box, and a name at what it names. So the attention is shown which words belong
to which places, and need not find it through the loss of the answers alone; a small model otherwise takes thousands of
steps to begin. Only training knows of this.
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
    """For one model. words: the text of a token by its number; patches: of an image, which is square; merge: so many
    of them, side by side, are one visual token."""

    def __init__(self, words: Callable[[int], str], patches: int, merge: int):
        self.words, self.side, self.merge = words, math.isqrt(patches), merge

    def mark(self, row: EncodedRow, named: Sequence[Phrase], size: tuple[int, int]) -> None:
        """Fill `row.target_tokens` of a row about one image; another row is left as it is.

        named: what is in the image, boxes in pixels of an image of this size. In a question, the last token of such
        a name looks at all that it names, and the end of a box into it. In an answer, all tokens that lead to a number
        of a box look into that box, and those that lead to the name before a box, too; where the answer has no box and
        the question has one, all that lead to a token of the answer look there.
        """
        if len(row.images) != 1:
            return
        known = {p.text: [_relative(box, size) for box in p.boxes] for p in named}
        longest_first = sorted(known, key=len, reverse=True)
        names = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b" if known else r"(?!)")
        for number in sorted(set(row.blocks)):
            block = _Block(row, number, self.words)
            answer = block.answer
            for name in names.finditer(block.text[:answer]):
                self._look(block, name.end() - 1, name.end(), known[name[0]])
            found = parse(block.text, 1, 1)
            asked = [(box, end) for box, (start, end) in zip(found.boxes, found.spans) if start < answer]
            for box, end in asked:
                self._look(block, end - 1, end, [box])
            told = [(box, *span) for box, span in zip(found.boxes, found.spans) if span[0] >= answer]
            for box, start, end in told:
                self._look(block, start, end - len(BOX_TOKENS[-1]), [box])
                if block.text[:start].rstrip().endswith(PHRASE_CLOSE):
                    opening, closing = (block.text.rindex(tag, 0, start) for tag in (PHRASE_OPEN, PHRASE_CLOSE))
                    self._look(block, opening, closing, [box], last=False)
            if len(asked) == 1 and not told:
                self._look(block, answer - 1, len(block.text), [asked[0][0]], last=False)

    def _look(self, block: _Block, start: int, end: int, boxes: Iterable[Box], last: bool = True) -> None:
        """The tokens with a character of [start, end) look into these boxes. last: also the last of them."""
        spots = tuple(sorted({spot for box in boxes for spot in self._spots(box)}))
        places = block.tokens(start, end)
        for place in places if last else places[:-1]:
            block.row.target_tokens[place] = spots

    def _spots(self, box: Box) -> set[int]:
        """The visual tokens with a patch whose middle is in the box, or with the patch of the box's own middle."""
        rows, columns = (
            [i for i in range(self.side) if low <= (i + 0.5) / self.side <= high]
            or [min(self.side - 1, int((low + high) / 2 * self.side))]
            for low, high in ((box.y1, box.y2), (box.x1, box.x2))
        )
        return {(y * self.side + x) // self.merge for y in rows for x in columns}


class _Block:
    """The text of a block of a row. answer: the character at which its first supervised token begins."""

    def __init__(self, row: EncodedRow, number: int, words: Callable[[int], str]):
        self.row = row
        self._places = [i for i, b in enumerate(row.blocks) if b == number and row.ids[i] != IMAGE_TOKEN_ID]
        parts = [words(row.ids[i]) for i in self._places]
        self.text, self._ends = "".join(parts), list(accumulate(map(len, parts)))
        supervised = [e - len(p) for i, p, e in zip(self._places, parts, self._ends) if row.labels[i] != IGNORE_INDEX]
        self.answer = supervised[0] if supervised else len(self.text)

    def tokens(self, start: int, end: int) -> list[int]:
        """Places in the row of the tokens that hold a character of [start, end)."""
        begins = [0, *self._ends]
        return [i for i, a, e in zip(self._places, begins, self._ends) if a < end and e > start]


def _relative(box: Box, size: tuple[int, int]) -> Box:
    return Box(box.x1 / size[0], box.y1 / size[1], box.x2 / size[0], box.y2 / size[1])
