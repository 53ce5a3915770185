"""Frames lie where the boxes are, labels inside the image, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from minigptv2 import drawing
from minigptv2.boxes import Box
from minigptv2.drawing import COLOURS, draw_boxes
from minigptv2.errors import UserError

GREY = (120, 130, 140)
FIRST, SECOND = (ImageColor.getrgb(c) for c in COLOURS[:2])


def blank(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed(image: Image.Image) -> np.ndarray:
    """[H, W] bool: the pixels that are no longer grey."""
    return (np.asarray(image) != GREY).any(axis=2)


def is_colour(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(image) == colour).all(axis=2)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (excluded) of the True pixels."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def placed(monkeypatch, image: Image.Image, boxes) -> list[tuple[int, int, int, int]]:
    """Where draw_boxes puts each label."""
    places, find = [], drawing._place_label

    def spy(*arguments):
        places.append(find(*arguments))
        return places[-1]

    monkeypatch.setattr(drawing, "_place_label", spy)
    draw_boxes(image, boxes)
    return places


def test_the_frame_is_where_the_box_is():
    drawn = draw_boxes(blank(), [Box(50, 60, 200, 150)])
    mask = changed(drawn)
    assert bounds(mask) == (50, 60, 200, 150)
    assert is_colour(drawn, FIRST)[mask].all()
    line = int(mask[100, 50:100].sum())
    assert 1 <= line <= 4
    assert not mask[60 + line : 150 - line, 50 + line : 200 - line].any()
    assert mask[60 : 60 + line, 50:200].all() and mask[60:150, 200 - line : 200].all()


def test_only_frame_and_label_change(monkeypatch):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
    boxes = [Box(50, 60, 200, 150, "dog", 0.5), Box(220, 100, 390, 290, "cat")]
    drawn, before = np.asarray(draw_boxes(image, boxes)), np.asarray(image)
    allowed = changed(draw_boxes(blank(), [Box(*b.xyxy) for b in boxes]))
    for left, top, right, bottom in placed(monkeypatch, image, boxes):
        allowed[top:bottom, left:right] = True
    assert (drawn[~allowed] == before[~allowed]).all()
    assert allowed.mean() < 0.2


def test_the_image_itself_is_not_modified():
    image = blank()
    drawn = draw_boxes(image, [Box(5, 5, 100, 100, "dog", 0.9)])
    assert not changed(image).any() and changed(drawn).any()


def test_no_boxes_give_a_copy():
    image = blank()
    drawn = draw_boxes(image, [])
    assert drawn is not image and drawn.tobytes() == image.tobytes()


def test_one_colour_per_phrase():
    drawn = draw_boxes(blank(), [Box(x, 100, x + 60, 150, phrase) for x, phrase in ((10, "a"), (100, "b"), (200, "a"))])
    for x, colour in ((10, FIRST), (100, SECOND), (200, FIRST)):
        assert drawn.getpixel((x, 140)) == colour
    many = [Box(10 + 40 * n, 100, 40 + 40 * n, 150, f"p{n}") for n in range(len(COLOURS) + 1)]
    drawn = draw_boxes(blank(), many)
    assert [drawn.getpixel((10 + 40 * n, 148)) for n in (0, len(COLOURS))] == [FIRST, FIRST]


def test_label_is_above_the_frame_or_inside_if_there_is_no_room(monkeypatch):
    (above,) = placed(monkeypatch, blank(), [Box(50, 60, 200, 150, "dog")])
    assert above[0] == 50 and above[3] == 60
    (inside,) = placed(monkeypatch, blank(), [Box(50, 3, 200, 150, "dog")])
    assert inside[:2] == (50, 3)


def test_label_at_the_border_is_moved_into_the_image(monkeypatch):
    for xyxy in ((390, 100, 400, 120), (300, 290, 400, 300), (-50, -50, -10, -10)):
        box = Box(*xyxy, "a long phrase")
        ((left, top, right, bottom),) = placed(monkeypatch, blank(), [box])
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300


def test_labels_of_neighbouring_boxes_do_not_overlap(monkeypatch):
    boxes = [Box(50 + n, 100 + n, 200 + n, 200 + n, f"phrase number {n}", 0.5) for n in range(6)]
    boxes += [Box(50, 100, 200, 200, "the same again")]
    places = placed(monkeypatch, blank(), boxes)
    assert len(places) == 7
    for n, a in enumerate(places):
        assert not any(drawing._overlap(a, b) for b in places[:n])


def test_the_text_is_black_on_light_and_white_on_dark():
    for n, colour in enumerate(COLOURS):
        label = np.asarray(drawing._label(Box(0, 0, 1, 1, "HHH"), 40, colour, 400))
        expected = 255 if colour == "#0072B2" else 0
        assert (label == expected).all(axis=2).any(), n


def test_phrase_and_score_are_both_in_the_label():
    assert drawing._fit("dog", "0.50", 20, 400)[1] == "dog 0.50"
    assert drawing._fit("", "0.50", 20, 400)[1] == "0.50"
    assert drawing._fit("dog", "", 20, 400)[1] == "dog"
    font, text = drawing._fit("a long phrase " * 40, "0.50", 20, 150)
    assert text.startswith("a long") and text.endswith("... 0.50") and font.getlength(text) <= 150
    assert drawing._label(Box(0, 0, 1, 1), 20, COLOURS[0], 100) is None


@pytest.mark.parametrize("size", [(640, 480), (1280, 960), (5120, 3840)])
def test_frame_and_label_grow_with_the_image(monkeypatch, size):
    scale = size[0] / 640
    box = Box(*(v * scale for v in (100, 100, 300, 300)), "dog")
    drawn = draw_boxes(blank(*size), [box])
    line = is_colour(drawn, FIRST)[round(280 * scale), : round(200 * scale)].sum()
    ((_, top, _, bottom),) = placed(monkeypatch, blank(*size), [box])
    assert line / scale == pytest.approx(3, abs=0.5)
    assert (bottom - top) / scale == pytest.approx(23, abs=3)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16), (6000, 16), (16, 6000), (6000, 4000)])
def test_images_of_any_size_are_drawn_on(size):
    width, height = size
    boxes = [
        Box(0, 0, width, height, "all", 1.0),
        Box(-5, -5, 99_999, 99_999, "x" * 5000, 0.5),
        Box(3, 3, 3, 3, "point"),
        Box(width, height, width, height, "corner"),
        Box(9999, 9999, 9999, 9999, "outside"),
        Box(9, 9, 1, 1, "reversed"),
        Box(float("nan"), 0, float("inf"), 2, "no number"),
    ]
    assert draw_boxes(blank(*size), boxes).size == size


def test_an_image_too_low_for_a_label_gets_the_frame():
    drawn = draw_boxes(blank(16, 16), [Box(4, 4, 12, 14, "cat", 0.5)])
    assert bounds(changed(drawn)) == (4, 4, 12, 14)
    assert is_colour(drawn, FIRST)[changed(drawn)].all()


def test_a_box_without_area_gets_a_visible_frame():
    left, top, right, bottom = bounds(changed(draw_boxes(blank(4000, 4000), [Box(2000, 2000, 2000, 2000)])))
    assert right - left == bottom - top >= 20
    assert left <= 2000 < right and top <= 2000 < bottom


@pytest.mark.parametrize(
    "phrase", ["猫", "Ärger", "🐈‍⬛", "\ud800", "a\0b", "a\nb\tc", "\u200f", "שלום", "x" * 5000, " ", "e\u0301"]
)
def test_any_phrase_is_drawn_inside_the_image(monkeypatch, phrase):
    ((left, top, right, bottom),) = placed(monkeypatch, blank(), [Box(50, 60, 200, 150, phrase, 0.25)])
    assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
    assert is_colour(draw_boxes(blank(20, 40), [Box(5, 6, 15, 30, phrase)]), FIRST).any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.lists(st.tuples(st.lists(st.floats(-50, 200), min_size=4, max_size=4), st.text(max_size=20)), max_size=5),
)
def test_any_boxes_are_drawn_on_a_copy(width, height, boxes):
    assert draw_boxes(blank(width, height), [Box(*xyxy, phrase) for xyxy, phrase in boxes]).size == (width, height)


def test_saving_replaces_no_file(tmp_path):
    file, image = tmp_path / "new" / "a.png", blank()
    assert drawing.save_png(image, file) == file
    assert drawing.save_png(image, file) == file, "the same bytes"
    second = drawing.save_png(image, file, {file})
    assert second == file.with_name("a-2.png"), "the same bytes of another image"
    assert drawing.save_png(blank(5, 5), file).name == "a-3.png"
    assert Image.open(file).size == image.size
    assert len(list(file.parent.iterdir())) == 3
    with pytest.raises(UserError, match="cannot be written"):
        drawing.save_png(image, file / "below.png")
