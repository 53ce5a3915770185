"""Boxes drawn on an image: a frame in the colour of its phrase, and a label with phrase and score.

Coordinates are pixels of the image, origin top left. A rectangle is (left, top, right, bottom), the last two exclusive.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from minigptv2.boxes import Box
from minigptv2.errors import system_error
from minigptv2.files import write_beside

# Okabe & Ito, Color Universal Design (2008), without black; the most distinct first
COLOURS = ("#E69F00", "#56B4E9", "#D55E00", "#009E73", "#F0E442", "#0072B2", "#CC79A7")
_LINE, _FONT = 1 / 180, 1 / 32  # of the geometric mean of width and height
_MIN_FONT = 9  # pixels; smaller letters cannot be read
_MAX_LETTERS = 200  # of a phrase

TextRect = tuple[int, int, int, int]


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an RGB image with a labelled frame around each box. The image itself is not changed.

    Boxes are in pixels of this image. Parts outside it are cut off; a box that is too small gets the smallest frame.
    Each distinct phrase has a colour, in order of appearance; the colours repeat after the last one.
    An image lower than two labels gets frames only, since a label would hide it.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    scale = math.sqrt(image.width * image.height)
    line = max(1, round(scale * _LINE))
    phrases = list(dict.fromkeys(box.phrase for box in boxes))
    colours = [COLOURS[phrases.index(box.phrase) % len(COLOURS)] for box in boxes]
    frames = [_frame(box, line, image.size) for box in boxes]
    for (left, top, right, bottom), colour in zip(frames, colours, strict=True):
        thick = min(line, (min(right - left, bottom - top) + 1) // 2)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=thick)
    labels: list[TextRect] = []
    for box, frame, colour in zip(boxes, frames, colours, strict=True):
        label = _label(box, max(_MIN_FONT, round(scale * _FONT)), colour, image.width)
        if label is None or 2 * label.height > image.height:
            continue
        rect = _place_label(label.size, frame, image.size, labels)
        drawn.paste(label, rect[:2])
        labels.append(rect)
    return drawn


def save_png(image: Image.Image, file: Path, reserved: Collection[Path] = ()) -> Path:
    """Write an image as PNG, atomically, and return its path: `file`, or the next free `name-2.png` if a file of that
    name has other content. No file is replaced.

    reserved: files of other images, which are not used even if their content is the same. Raises UserError.
    """
    png = io.BytesIO()
    image.save(png, "PNG")
    try:
        return write_beside(file, png.getvalue(), reserved)
    except (OSError, ValueError) as error:
        raise system_error(f"{file} cannot be written.", error, "Choose another place, or make room for it.") from None


def _frame(box: Box, line: int, size: tuple[int, int]) -> TextRect:
    left, right = _span(box.x1, box.x2, 2 * line + 1, size[0])
    top, bottom = _span(box.y1, box.y2, 2 * line + 1, size[1])
    return left, top, right, bottom


def _span(start: float, end: float, min_size: int, limit: int) -> tuple[int, int]:
    """The whole pixels from start to end within 0..limit, widened around their middle to `min_size` if possible."""
    first, last = math.floor(min(max(0.0, start), limit)), math.ceil(min(max(0.0, end), limit))
    missing = min(min_size, limit) - (last - first)
    if missing > 0:
        first = min(max(0, first - missing // 2), limit - min(min_size, limit))
        last = first + min(min_size, limit)
    return first, last


def _label(box: Box, font_size: int, colour: str, max_width: int) -> Image.Image | None:
    """The label as an image, at most `max_width` pixels wide: with a smaller font, then with fewer letters.

    None if the box has neither phrase nor score.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in box.phrase).split())
    score = "" if box.score is None else f"{box.score:.2f}"
    if not words and not score:
        return None
    font, text = _fit(words, score, font_size, max_width)
    pad = _pad(font.size)
    ascent, descent = font.getmetrics()
    width = min(max_width, math.ceil(font.getlength(text)) + 2 * pad)
    label = Image.new("RGB", (width, ascent + descent + pad), colour)
    ImageDraw.Draw(label).text((pad, ascent + pad // 2), text, _black_or_white(label), font, anchor="ls")
    return label


def _fit(words: str, score: str, font_size: int, max_width: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font and the text that fit into the width; if even the smallest font is too wide, the words are cut."""
    end = "... " if len(words) > _MAX_LETTERS else " "
    words = words[:_MAX_LETTERS]
    font, text = ImageFont.load_default(font_size), f"{words}{end}{score}".strip()
    needed = font.getlength(text) + 2 * _pad(font_size)
    if needed > max_width:
        font_size = min(font_size, max(_MIN_FONT, int(font_size * max_width / needed)))
        font = ImageFont.load_default(font_size)
    while words and font.getlength(text) + 2 * _pad(font_size) > max_width:
        words = words[:-1].rstrip()
        text = f"{words}... {score}".strip()
    return font, text


def _pad(font_size: float) -> int:
    return max(1, int(font_size) // 5)


def _black_or_white(label: Image.Image) -> str:
    """The text colour with the higher contrast. Luminance: WCAG 2.1, "relative luminance", with gamma 2.2."""
    red, green, blue = ((v / 255) ** 2.2 for v in label.getpixel((0, 0)))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"


def _place_label(
    label: tuple[int, int], frame: TextRect, size: tuple[int, int], labels: Sequence[TextRect]
) -> TextRect:
    """The first candidate that overlaps no earlier label, else the one with the smallest overlap."""
    return min(_candidates(label, frame, size), key=lambda rect: sum(_overlap(rect, other) for other in labels))


def _candidates(label: tuple[int, int], frame: TextRect, size: tuple[int, int]) -> Iterator[TextRect]:
    """Rectangles in order of preference, all inside the image: above the frame, inside it, below it, further away."""
    width, height = label
    left, top, right, bottom = frame
    lines = [top - height, top, bottom, bottom - height]
    for n in (1, 2, 3):
        lines += [top - height - n * height, top + n * height, bottom + n * height]
    fitting = [y for y in lines if 0 <= y <= size[1] - height] or [min(max(0, top), max(0, size[1] - height))]
    for y in fitting:
        for x in (left, right - width):
            x = min(max(0, x), max(0, size[0] - width))
            yield x, y, x + width, y + height


def _overlap(a: TextRect, b: TextRect) -> int:
    """The area that two rectangles share, in pixels."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
