"""Boxes: pixels of the original image <-> the text `{<x1><y1><x2><y2>}` with whole numbers 0..100.

The text form and its rounding rule live here and nowhere else. Pixels: XYXY, origin top left, x first, floats.
Source: MiniGPT-v2 (arXiv 2310.09478) section 2, "spatial location representation".

Three codings, and the mean IoU that each can reach at best on RefCOCO:

    floor   cut to hundredths, read back as they are: the published code   .949
    center  cut to hundredths, read back as the middle of each             .972
    round   to the nearest hundredth, read back as it is                   .974

The published weights were trained on cut numbers, so "center" is the right one for them: same text, better pixels.
"floor" gives the published code's own boxes. A model trained here takes "round".
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

BoxRounding = Literal["floor", "center", "round"]
BOX_ROUNDINGS: tuple[BoxRounding, ...] = ("floor", "center", "round")
BINS = 100
DELIMITER = "<delim>"
BOX_TOKENS = ("{<", "><", ">}")  # what opens a box, stands between its numbers and closes it
PHRASE_OPEN, PHRASE_CLOSE = "<p>", "</p>"

_BOX = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")
# a phrase holds no other phrase and no box: where its end is missing, it swallows neither
_WORDS = rf"(?:(?!{PHRASE_OPEN}|\{{\s*<).)*?"
_PHRASE_OR_BOX = re.compile(rf"{PHRASE_OPEN}(?P<phrase>{_WORDS}){PHRASE_CLOSE}|(?P<box>{_BOX.pattern})", re.DOTALL)
# what looks like the beginning of a box; where no box matches there, it is counted as malformed
_OPENING = re.compile(r"\{\s*<")
# what a phrase may not hold; an open bracket at its end would open a box with the tag that follows
_MARKUP = re.compile(rf"{PHRASE_OPEN}|{PHRASE_CLOSE}|{DELIMITER}|\{{\s*<[\d<>\s]*\}}?|\{{\s*$")


@dataclass(frozen=True)
class Box:
    """A box, XYXY in pixels of the original image, and what it is a box of.

    phrase: the words that the text binds to it, "" where there are none. score: 0..1, the model's own probability of
    the box's numbers, None where nobody computed one.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    phrase: str = ""
    score: float | None = None

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return self.x1, self.y1, self.x2, self.y2

    @property
    def area(self) -> float:
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    @property
    def center(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def to_dict(self) -> dict:
        """Ready for JSON, in hundredths of a pixel."""
        return {"phrase": self.phrase, "xyxy": [round(v, 2) for v in self.xyxy], "score": self.score}


@dataclass(frozen=True)
class ParsedText:
    """What `parse` found. spans: where each box stands in the text, [start, end). problems: why something that looks
    like a box is none, in words."""

    boxes: tuple[Box, ...]
    spans: tuple[tuple[int, int], ...]
    problems: tuple[str, ...]


def format_box(box: Box, width: float, height: float, coding: BoxRounding = "round") -> str:
    """The text of one box on an image of width x height pixels; outside values are clamped to the image.

    coding: "round" takes the nearest hundredth; "floor" and "center" cut, as the published weights were trained.
    """
    share = [box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height]
    numbers = [min(BINS, max(0, round(v * BINS) if coding == "round" else int(v * BINS))) for v in share]
    return "{" + "".join(f"<{n}>" for n in numbers) + "}"


def format_boxes(boxes, width: float, height: float, coding: BoxRounding = "round") -> str:
    """Several boxes of one phrase, joined by the delimiter."""
    return DELIMITER.join(format_box(b, width, height, coding) for b in boxes)


def format_phrase(phrase: str, boxes, width: float, height: float, coding: BoxRounding = "round") -> str:
    """A grounded phrase: `<p>phrase</p> {<..>}`; what of the phrase would read as markup is left out."""
    return f"{PHRASE_OPEN}{strip_markup_chars(phrase)}{PHRASE_CLOSE} {format_boxes(boxes, width, height, coding)}"


def parse(text: str, width: float, height: float, coding: BoxRounding = "round") -> ParsedText:
    """Every box in the text, in pixels of an image of width x height. Never raises, whatever the text.

    coding: how the numbers become pixels; "center" adds half a hundredth, the middle of what "floor" cut to.
    A phrase is bound to the boxes that follow it, up to the next phrase or other words. Boxes with numbers over 100, or
    with x2 < x1 or y2 < y1, are no boxes; each is named in `problems`, as is an opening `{<` that never becomes one.
    """
    boxes, spans, problems = [], [], []
    phrase, bound_until = "", 0
    for match in _PHRASE_OR_BOX.finditer(text):
        if match["box"] is None:
            phrase, bound_until = match["phrase"].strip(), match.end()
            continue
        if text[bound_until : match.start()].replace(DELIMITER, "").strip(" ,;"):
            phrase = ""
        bound_until = match.end()
        numbers = [int(n) for n in _BOX.match(match["box"]).groups()]
        problem = _problem(numbers)
        if problem:
            problems.append(f"{match['box']} is no box: {problem}")
            continue
        shift = 0.5 if coding == "center" else 0.0
        x1, y1, x2, y2 = (min(BINS, n + shift) / BINS for n in numbers)
        boxes.append(Box(x1 * width, y1 * height, x2 * width, y2 * height, phrase))
        spans.append(match.span())
    well_formed = {m.start() for m in _BOX.finditer(text)}
    for opening in _OPENING.finditer(text):
        if opening.start() not in well_formed:
            problems.append(
                f"{text[opening.start() : opening.start() + 24]!r} does not continue as {{<x1><y1><x2><y2>}}"
            )
    return ParsedText(tuple(boxes), tuple(spans), tuple(problems))


def _problem(numbers: list[int]) -> str | None:
    if max(numbers) > BINS:
        return f"{max(numbers)} is over {BINS}"
    x1, y1, x2, y2 = numbers
    if x2 < x1 or y2 < y1:
        return "its right or lower edge lies before the left or upper one"
    return None


def strip_markup_chars(words: str) -> str:
    """The words without what reads as markup of a phrase or box, whole or broken off; others stay to the character."""
    while (bare := _MARKUP.sub(" ", words)) != words:  # taking one out may join the halves of another
        words = " ".join(bare.split())
    return words


def without_markup(text: str) -> str:
    """The words of a grounded text alone: no phrase tags, no boxes."""
    bare = _BOX.sub("", text).replace(DELIMITER, "").replace(PHRASE_OPEN, "").replace(PHRASE_CLOSE, "")
    return re.sub(r"\s+([.,;!?])", r"\1", re.sub(r"[ \t]+", " ", bare)).strip()


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0..1, of continuous boxes (no extra pixel)."""
    across = min(a.x2, b.x2) - max(a.x1, b.x1)
    down = min(a.y2, b.y2) - max(a.y1, b.y1)
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    return shared / (a.area + b.area - shared)


def upright_box(box: Box, stored: tuple[float, float], orientation: int) -> Box:
    """A box of an image as it is stored, (width, height), as a box of the same image turned upright.

    orientation: EXIF's, 1..8, which says how the image is turned upright; 1 changes nothing.
    """
    width, height = stored
    x1, y1, x2, y2 = box.xyxy
    if orientation in (2, 3, 7, 8):  # left and right change places
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):  # top and bottom
        y1, y2 = height - y2, height - y1
    if orientation in (5, 6, 7, 8):  # rows become columns
        x1, y1, x2, y2 = y1, x1, y2, x2
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def stored_box(box: Box, stored: tuple[float, float], orientation: int) -> Box:
    """The way back from `upright_box`: a box of the upright image as a box of the image as it is stored."""
    turned = orientation in (5, 6, 7, 8)
    back = {6: 8, 8: 6}.get(orientation, orientation)  # all others undo themselves
    return upright_box(box, (stored[1], stored[0]) if turned else stored, back)


def with_scores(boxes, scores) -> tuple[Box, ...]:
    """The same boxes with a score each."""
    return tuple(replace(b, score=s) for b, s in zip(boxes, scores, strict=True))
