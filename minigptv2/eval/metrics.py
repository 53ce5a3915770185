"""How answers are scored: matching of boxes, precision and recall."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minigptv2.boxes import Box, iou


@dataclass
class Counts:
    """True positives, and how many there were to find and found in all."""

    right: int = 0
    wanted: int = 0
    given: int = 0

    def add(self, right: int, wanted: int, given: int) -> None:
        self.right, self.wanted, self.given = self.right + right, self.wanted + wanted, self.given + given

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was wanted and nothing given."""
        return 2 * self.right / (self.wanted + self.given) if self.wanted + self.given else 1.0


def matches(
    given: Sequence[Box], wanted: Sequence[Box], threshold: float, same: Callable[[Box, Box], bool] = lambda a, b: True
) -> int:
    """How many of the given boxes meet a wanted one of their own, best overlaps first: IoU >= threshold and `same`."""
    pairs = sorted(
        ((iou(g, w), i, j) for i, g in enumerate(given) for j, w in enumerate(wanted) if same(g, w)), reverse=True
    )
    used_given, used_wanted = set(), set()
    for overlap, i, j in pairs:
        if overlap >= threshold and i not in used_given and j not in used_wanted:
            used_given.add(i)
            used_wanted.add(j)
    return len(used_given)
