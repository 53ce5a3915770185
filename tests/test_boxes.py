"""Boxes: from pixels to text and back, malformed boxes, the highest IoU that each rounding allows."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigptv2.boxes import (
    BOX_ROUNDINGS,
    Box,
    format_box,
    format_boxes,
    format_phrase,
    iou,
    parse,
    strip_markup_chars,
    without_markup,
)

REFCOCOG = Path(__file__).parent / "data" / "refcocog"
SHAPED = st.lists(st.sampled_from([*"{<>}0129 ,;", "<p>", "</p>", "<delim>", "{<", "><", ">}", "é", "\n", "cat"]))
BOUND = {"round": 0.5, "floor": 1.0, "center": 0.5}  # maximum error of an edge, in hundredths of the side


@st.composite
def boxes(draw, side: float = 1.0) -> Box:
    x1, x2 = sorted(draw(st.lists(st.floats(0, side), min_size=2, max_size=2)))
    y1, y2 = sorted(draw(st.lists(st.floats(0, side), min_size=2, max_size=2)))
    return Box(x1, y1, x2, y2)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), SHAPED.map("".join)))
def test_parse_accepts_any_text(text):
    found = parse(text, 640, 480)
    assert len(found.boxes) == len(found.spans)
    for box, (start, end) in zip(found.boxes, found.spans):
        assert 0 <= box.x1 <= box.x2 <= 640 and 0 <= box.y1 <= box.y2 <= 480
        assert text[start] == "{" and text[end - 1] == "}"


@pytest.mark.parametrize("coding", BOX_ROUNDINGS)
@settings(max_examples=80, deadline=None)
@given(box=boxes(), width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_roundtrip_error_is_within_rounding(coding, box, width, height):
    box = Box(box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height)
    (back,) = parse(format_box(box, width, height, coding), width, height, coding).boxes
    for before, after, side in zip(box.xyxy, back.xyxy, (width, height) * 2):
        assert abs(before - after) <= (BOUND[coding] / 100 + 1e-9) * side


def test_roundings_of_one_box():
    box = Box(0.6, 9.4, 59.9, 100)
    assert [format_box(box, 100, 100, c) for c in BOX_ROUNDINGS] == ["{<0><9><59><100>}"] * 2 + ["{<1><9><60><100>}"]
    assert parse("{<0><9><59><100>}", 200, 100, "floor").boxes[0].xyxy == (0, 9, 118, 100)
    assert parse("{<0><9><59><100>}", 200, 100, "center").boxes[0].xyxy == (1, 9.5, 119, 100)
    assert format_box(Box(-5, -0.1, 101, 250), 100, 100) == "{<0><0><100><100>}"


@settings(max_examples=150, deadline=None)
@given(box=boxes(), width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_floor_and_center_write_the_published_text(box, width, height):
    """Decoding: "floor" as in the published code, "center" half a hundredth further in, inside the image."""
    box = Box(box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height)
    sides = (width, height) * 2
    numbers = [int(v / side * 100) for v, side in zip(box.xyxy, sides)]
    text = "{" + "".join(f"<{n}>" for n in numbers) + "}"
    assert format_box(box, width, height, "floor") == format_box(box, width, height, "center") == text
    (cut,), (middle,) = (parse(text, width, height, coding).boxes for coding in ("floor", "center"))
    assert cut.xyxy == pytest.approx([n / 100 * side for n, side in zip(numbers, sides)])
    assert middle.xyxy == pytest.approx([min(n + 0.5, 100) / 100 * side for n, side in zip(numbers, sides)])


@pytest.mark.parametrize("coding", ["center", "round"])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=4, max_size=4), st.integers(1, 4000), st.integers(1, 4000))
def test_parsed_box_is_formatted_to_the_same_text(coding, numbers, width, height):
    """So the box of one answer can be used in a question. "floor" fails: 29 / 100 * 100 is 28.999 in floats."""
    (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
    text = f"{{<{x1}><{y1}><{x2}><{y2}>}}"
    assert format_box(parse(text, width, height, coding).boxes[0], width, height, coding) == text


def test_phrase_is_bound_to_the_boxes_that_follow():
    a, b, c = Box(10, 20, 30, 40), Box(50, 60, 70, 80), Box(0, 0, 5, 5)
    text = format_phrase("two cats", (a, b), 100, 100) + " and " + format_phrase("a dog", (c,), 100, 100)
    assert text == "<p>two cats</p> {<10><20><30><40>}<delim>{<50><60><70><80>} and <p>a dog</p> {<0><0><5><5>}"
    found = parse(text, 100, 100)
    assert [(x.phrase, x.xyxy) for x in found.boxes] == [("two cats", a.xyxy), ("two cats", b.xyxy), ("a dog", c.xyxy)]
    assert [text[s:e] for s, e in found.spans] == [format_box(x, 100, 100) for x in (a, b, c)]
    assert not found.problems
    assert without_markup(text + " .") == "two cats and a dog."
    assert format_boxes((a, b), 100, 100) == "{<10><20><30><40>}<delim>{<50><60><70><80>}"


@pytest.mark.parametrize(
    "text, phrases",
    [
        ("<p>x</p> at last {<1><2><3><4>}", [""]),
        ("<p>x</p> {<1><2><3><4>}, {<1><2><3><5>}", ["x", "x"]),
        ("<p>x</p> {<1><2><3><4>} near {<1><2><3><5>}", ["x", ""]),
        ("<p> x </p>{<1><2><3><4>}", ["x"]),
        ("<p>x {<1><2><3><4>} </p>", [""]),  # a late end tag does not include the box
        ("<p>lost {<1><2><3><4>} <p>x</p> {<1><2><3><5>}", ["", "x"]),
        ("<p>lost <p>x</p> {<1><2><3><5>}", ["x"]),
    ],
)
def test_text_between_boxes_ends_phrase(text, phrases):
    assert [b.phrase for b in parse(text, 100, 100).boxes] == phrases


@pytest.mark.parametrize(
    "text, message",
    [
        ("{<1><2><3><101>}", "101 is over 100"),
        ("{<30><2><3><4>}", "edge lies before"),
        ("{<1><40><3><4>}", "edge lies before"),
        ("{<1><2><3>}", "does not continue"),
        ("{<1><2><3><4>", "does not continue"),
        ("{ <1><2><3><4>}", "does not continue"),
        ("{<1><2><3><4000>}", "does not continue"),
        ("{<-1><2><3><4>}", "does not continue"),
    ],
)
def test_malformed_boxes_are_reported(text, message):
    found = parse(text + " {<1><2><3><4>}", 100, 100)
    assert [b.xyxy for b in found.boxes] == [(1, 2, 3, 4)]
    assert len(found.problems) == 1 and message in found.problems[0]


def _cells_iou(a: Box, b: Box) -> float:
    """IoU of boxes with integer edges, as sets of unit cells."""
    cells = [{(x, y) for x in range(int(v.x1), int(v.x2)) for y in range(int(v.y1), int(v.y2))} for v in (a, b)]
    either = cells[0] | cells[1]
    return len(cells[0] & cells[1]) / len(either) if either else 0.0


@st.composite
def whole_boxes(draw) -> Box:
    xs, ys = (sorted(draw(st.lists(st.integers(0, 12), min_size=2, max_size=2))) for _ in range(2))
    return Box(xs[0], ys[0], xs[1], ys[1])


@settings(max_examples=150, deadline=None)
@given(whole_boxes(), whole_boxes(), st.floats(0.1, 50))
def test_iou_equals_iou_of_cell_sets(a, b, scale):
    assert iou(a, b) == pytest.approx(_cells_iou(a, b))
    assert iou(a, b) == iou(b, a)
    assert iou(a, a) == (1.0 if a.area else 0.0)
    larger = [Box(*(v * scale for v in box.xyxy)) for box in (a, b)]
    assert iou(*larger) == pytest.approx(iou(a, b))


def test_highest_iou_of_each_rounding_on_refcocog_rows():
    boxes_ = {
        (tuple(r["bbox"]), r["width"], r["height"])
        for f in sorted(REFCOCOG.glob("*.json"))
        for r in json.loads(f.read_text())
    }
    assert len(boxes_) == 28
    mean = dict.fromkeys(BOX_ROUNDINGS, 0.0)
    for (x, y, w, h), *size in boxes_:
        box = Box(x, y, x + w, y + h)
        for coding in BOX_ROUNDINGS:
            best = iou(box, parse(format_box(box, *size, coding), *size, coding).boxes[0])
            assert best >= 0.5
            mean[coding] += best / len(boxes_)
    # over all of RefCOCO, RefCOCO+ and RefCOCOg they are .949, .972 and .974
    assert mean == pytest.approx({"floor": 0.9469241, "center": 0.9727478, "round": 0.9709674}, abs=1e-6)


@pytest.mark.parametrize(
    "phrase", ["red </p> ball", "<p>red", "red {", "red <delim>", "<<p>p>", "a {<1><2><3><4>} b", "{<1>", "red, round"]
)
def test_markup_in_a_phrase_is_removed(phrase):
    text = format_phrase(phrase, [Box(10, 10, 50, 50)], 100, 100)
    found = parse(text, 100, 100)
    assert not found.problems and [b.xyxy for b in found.boxes] == [(10, 10, 50, 50)]
    assert found.boxes[0].phrase == strip_markup_chars(phrase).strip()
    assert strip_markup_chars("red, round  ball > 3 {x}") == "red, round  ball > 3 {x}"


def test_to_dict_has_no_float_noise():
    box = parse("{<10><10><20><20>}", 560, 560).boxes[0]
    assert box.to_dict()["xyxy"] == [56.0, 56.0, 112.0, 112.0]
