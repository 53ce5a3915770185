"""Boxes: pixels of the original image <-> the text `{<x1><y1><x2><y2>}` with whole numbers 0..100.

This module is the only one that knows the text form and its rounding. Pixels: XYXY, floats, origin at the top left.
Source: MiniGPT-v2 (arXiv 2310.09478) section 2, "spatial location representation".

Three roundings, and the highest mean IoU that each allows on RefCOCO:

    floor   rounded down to hundredths, decoded as written                 .949
    center  rounded down to hundredths, decoded as the middle of each      .972
    round   rounded to the nearest hundredth, decoded as written           .974

The published weights were trained on numbers rounded down. "center" suits them: the same text, closer pixels. "floor"
reproduces the boxes of the published code. Models trained here use "round".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

BoxRounding = Literal["floor", "center", "round"]
BOX_ROUNDINGS: tuple[BoxRounding, ...] = ("floor", "center", "round")
IOU_THRESHOLD = 0.5  # of a correct box, wherever a metric's name says nothing else
BINS = 100
DELIMITER = "<delim>"
BOX_TOKENS = ("{<", "><", ">}")  # opens a box, separates its numbers, closes it
PHRASE_OPEN, PHRASE_CLOSE = "<p>", "</p>"

_BOX = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")
# a phrase contains no phrase and no box, so that one without an end tag does not run on over the next
_WORDS = rf"(?:(?!{PHRASE_OPEN}|\{{\s*<).)*?"
_PHRASE_OR_BOX = re.compile(rf"{PHRASE_OPEN}(?P<phrase>{_WORDS}){PHRASE_CLOSE}|(?P<box>{_BOX.pattern})", re.DOTALL)
# the beginning of a box; where no whole box follows, it is malformed
_OPENING = re.compile(r"\{\s*<")
# what a phrase may not contain; an open bracket at its end would open a box with the tag that follows
_MARKUP = re.compile(rf"{PHRASE_OPEN}|{PHRASE_CLOSE}|{DELIMITER}|\{{\s*<[\d<>\s]*\}}?|\{{\s*$")


@dataclass(frozen=True)
class Box:
    """A box and the phrase that it belongs to.

    x1, y1, x2, y2: left, top, right and bottom edge in pixels of the upright original image.
    phrase: the words that the text binds to the box, or "".
    score: 0..1, the model's probability of the box's numbers; None where it was not computed.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    phrase: str = ""
    score: float | None = None

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) in pixels."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def area(self) -> float:
        """Square pixels, 0 or more."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def to_dict(self) -> dict[str, Any]:
        """For JSON: phrase, xyxy rounded to hundredths of a pixel, and score."""
        return {"phrase": self.phrase, "xyxy": [round(v, 2) for v in self.xyxy], "score": self.score}


@dataclass(frozen=True)
class ParsedText:
    """What `parse` found.

    boxes: in the order of the text. spans: of each box, its first character and the one after its last, [start, end).
    problems: one sentence for each malformed box.
    """

    boxes: tuple[Box, ...]
    spans: tuple[tuple[int, int], ...]
    problems: tuple[str, ...]


def format_box(box: Box, width: float, height: float, coding: BoxRounding = "round") -> str:
    """The text of one box on an image of width x height pixels. Edges outside the image are clamped to it.

    coding: "round" rounds to the nearest hundredth, "floor" and "center" round down.
    """
    fractions = [box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height]
    numbers = [min(BINS, max(0, round(v * BINS) if coding == "round" else int(v * BINS))) for v in fractions]
    return "{" + "".join(f"<{n}>" for n in numbers) + "}"


def format_boxes(boxes: Iterable[Box], width: float, height: float, coding: BoxRounding = "round") -> str:
    """The text of several boxes of one phrase, with the delimiter between them."""
    return DELIMITER.join(format_box(b, width, height, coding) for b in boxes)


def format_phrase(phrase: str, boxes: Iterable[Box], width: float, height: float, coding: BoxRounding = "round") -> str:
    """A grounded phrase: `<p>phrase</p> {<..>}`. Markup in the phrase itself is removed."""
    return f"{PHRASE_OPEN}{strip_markup_chars(phrase)}{PHRASE_CLOSE} {format_boxes(boxes, width, height, coding)}"


def parse(text: str, width: float, height: float, coding: BoxRounding = "round") -> ParsedText:
    """Every box in the text, in pixels of an image of width x height. Never raises.

    coding: how numbers become pixels; "center" adds half a hundredth, the middle of what "floor" rounds down.

    A phrase is bound to the boxes that follow it, up to the next phrase or other words. A box with a number over 100,
    with x2 < x1 or with y2 < y1 is malformed, and so is an opening `{<` without the rest; `problems` lists both.
    """
    boxes: list[Box] = []
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    phrase, bound_until = "", 0
    for match in _PHRASE_OR_BOX.finditer(text):
        if match["box"] is None:
            phrase, bound_until = match["phrase"].strip(), match.end()
            continue
        if text[bound_until : match.start()].replace(DELIMITER, "").strip(" ,;"):
            phrase = ""
        bound_until = match.end()
        numbers = [int(n) for n in re.findall(r"\d+", match["box"])]
        problem = _problem(numbers)
        if problem:
            problems.append(f"{match['box']} is not a box: {problem}")
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
    """The words without markup of phrases and boxes, whole or cut off. Words without markup are unchanged."""
    while (stripped := _MARKUP.sub(" ", words)) != words:  # removing one may join the halves of another
        words = " ".join(stripped.split())
    return words


def without_markup(text: str) -> str:
    """The words of a grounded text, without phrase tags and boxes."""
    plain = _BOX.sub("", text).replace(DELIMITER, "").replace(PHRASE_OPEN, "").replace(PHRASE_CLOSE, "")
    return re.sub(r"\s+([.,;!?])", r"\1", re.sub(r"[ \t]+", " ", plain)).strip()


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0..1, of continuous boxes: width is x2 - x1, without an extra pixel."""
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (a.area + b.area - intersection)


def upright_box(box: Box, stored: tuple[float, float], orientation: int) -> Box:
    """A box of an image file as a box of the same image turned upright.

    stored: (width, height) of the file before it is turned. orientation: EXIF, 1..8; 1 changes nothing.
    """
    width, height = stored
    x1, y1, x2, y2 = box.xyxy
    if orientation in (2, 3, 7, 8):  # mirrored left to right
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):  # mirrored top to bottom
        y1, y2 = height - y2, height - y1
    if orientation in (5, 6, 7, 8):  # rows become columns
        x1, y1, x2, y2 = y1, x1, y2, x2
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def stored_box(box: Box, stored: tuple[float, float], orientation: int) -> Box:
    """The inverse of `upright_box`: a box of the upright image as a box of the image file."""
    transposed = orientation in (5, 6, 7, 8)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # the other orientations are their own inverse
    return upright_box(box, (stored[1], stored[0]) if transposed else stored, inverse)
