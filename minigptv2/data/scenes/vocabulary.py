"""The words of questions about scenes: numbers, nouns, relations and the ways to phrase them."""

from collections.abc import Callable

from minigptv2.boxes import Box

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ABSENT_NOUNS = (
    "dog bird horse cow sheep elephant zebra giraffe lion mouse rabbit duck chair table bed lamp phone book clock door "
    "window key spoon knife fork plate bottle apple banana pear cake bread pizza bicycle train bus truck plane ship "
    "rocket robot hat shoe shirt bag ring crown drum guitar piano bridge tower castle mountain river snowman butterfly "
    "spider snake frog turtle whale shark ghost arrow cross flag pencil scissors camera"
).split()
MARGIN = 0.08  # of the image's side: objects closer together than this are neither left nor right of each other

RELATIONS: dict[str, tuple[str, Callable[[Box, Box, float], bool]]] = {
    # name: (its opposite, whether it holds from box a to box b; m: margin in pixels)
    "left of": ("right of", lambda a, b, m: a.center[0] < b.center[0] - m),
    "right of": ("left of", lambda a, b, m: a.center[0] > b.center[0] + m),
    "above": ("below", lambda a, b, m: a.center[1] < b.center[1] - m),
    "below": ("above", lambda a, b, m: a.center[1] > b.center[1] + m),
    "bigger than": ("smaller than", lambda a, b, m: a.area > 1.5 * b.area),
    "smaller than": ("bigger than", lambda a, b, m: b.area > 1.5 * a.area),
}
CANONICAL_RELATIONS = ("left of", "above", "bigger than")
PHRASINGS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "higher than", "over"),
    "below": ("below", "under", "lower than"),
    "bigger than": ("bigger than", "larger than"),
    "smaller than": ("smaller than",),
}


PLURALS = {"fish": "fish", "person": "people", "box": "boxes"}  # those that do not only add an s


def plural(noun: str) -> str:
    """balloon -> balloons, fish -> fish."""
    return PLURALS.get(noun, noun + "s")


def article(words: str) -> str:
    """red ball -> a red ball, orange ball -> an orange ball."""
    return ("an " if words[0] in "aeiou" else "a ") + words
