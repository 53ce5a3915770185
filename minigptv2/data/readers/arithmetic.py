"""Additions as questions without an image, generated from the index, to try a recipe without any data.

    - name: arithmetic
      options: {count: 100}

A record: "what is 7 plus 12?" -> "19".
"""

from __future__ import annotations

import random

from minigptv2.data.dataset import ProblemCounter
from minigptv2.errors import UserError
from minigptv2.sample import QuestionAnswer, Sample


class Arithmetic:
    """count: number of records."""

    def __init__(self, count: int):
        if not isinstance(count, int) or count < 1:
            raise UserError(f"The option count of arithmetic is {count!r}.", "It must be 1 or more.", "Correct it.")
        self.count, self.problems = count, ProblemCounter()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = random.Random(index)
        a, b = rng.randrange(50), rng.randrange(50)
        question_answer = QuestionAnswer("chat", question=f"what is {a} plus {b}?", answer=str(a + b))
        return Sample(None, (0, 0), (question_answer,), f"sum {index}")
