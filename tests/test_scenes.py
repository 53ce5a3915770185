"""The generated world: the same seed gives the same scene, and its annotation is what can be seen."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.data.scenes.objects import KINDS
from minigptv2.data.scenes.objects.sketch import STYLES, paint
from minigptv2.data.scenes.world import COLORS, LARGEST, SMALLEST, Scene, Thing, _hsv, draw_scene
from minigptv2.train.pretrain_vision import COLOR_IDS, KIND_IDS, MIN_FRACTION, SceneViews, _mirrored, dense_targets
from minigptv2.train.recipe import Phase

SIDE = 224
SCENES = 40


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene((3, seed), SIDE) for seed in range(SCENES)]


def test_the_same_seed_gives_the_same_scene(scenes):
    for seed in range(4):
        again = draw_scene((3, seed), SIDE)
        assert again.things == scenes[seed].things
        assert np.array_equal(again.seen, scenes[seed].seen)
        assert again.image.tobytes() == scenes[seed].image.tobytes()
    assert len({s.image.tobytes() for s in scenes}) == SCENES


def test_boxes_are_the_extents_of_what_is_seen(scenes):
    for scene in scenes:
        assert scene.image.size == (SIDE, SIDE) == scene.seen.shape and scene.image.mode == "RGB"
        assert 1 <= len(scene.things) <= 8 and scene.seen.max() == len(scene.things)
        for number, thing in enumerate(scene.things, 1):
            rows, columns = np.nonzero(scene.seen == number)
            extent = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert thing.box.xyxy == extent
            assert 0 <= thing.box.x1 < thing.box.x2 <= SIDE and 0 <= thing.box.y1 < thing.box.y2 <= SIDE
            assert thing.kind in KINDS and thing.color in COLORS


def test_fewer_and_larger_things_where_asked():
    few = [draw_scene((4, seed), 112, max_objects=2, zoom=3.0) for seed in range(15)]
    assert max(len(s.things) for s in few) == 2
    assert np.mean([_longer_edge(t) for s in few for t in s.things]) > 0.3 * 112


def test_a_name_comes_again_where_asked():
    usual, again = ([draw_scene((4, seed), 112, repeat_prob=r) for seed in range(15)] for r in (0, 0.7))
    assert usual[0].image.tobytes() == draw_scene((4, 0), 112).image.tobytes()
    alike = [np.mean([len({t.name for t in s.things}) / len(s.things) for s in scenes]) for scenes in (usual, again)]
    assert alike[1] < 0.7 * alike[0]


def _longer_edge(thing: Thing) -> float:
    return max(thing.box.x2 - thing.box.x1, thing.box.y2 - thing.box.y1)


def test_sizes_are_in_their_range(scenes):
    """A thing is drawn with its longer edge at 6 to 50 % of the side. What is seen may be more by the outline (at most
    4 % of the edge, and a pixel a side of rounding), and less where the image was squashed (by exp(-0.5) at most) or
    another thing hides a part: the lower bound is asserted of things that touch no other, its squash included."""
    alone = []
    for scene in scenes:
        for thing in scene.things:
            assert _longer_edge(thing) <= LARGEST * SIDE * 1.04 + 2
            if all(_apart(thing.box, t.box) for t in scene.things if t is not thing):
                alone.append(_longer_edge(thing) / SIDE)
    assert len(alone) > 50
    assert min(alone) >= SMALLEST * np.exp(-0.5)
    assert np.mean(np.array(alone) >= SMALLEST) > 0.9  # most are not squashed along their longer edge
    assert max(alone) > 0.35 and min(alone) < 0.10  # the range is used


def _apart(a: Box, b: Box) -> bool:
    return a.x2 <= b.x1 or b.x2 <= a.x1 or a.y2 <= b.y1 or b.y2 <= a.y1


def _within(hue: float, low: float, high: float, slack: float) -> bool:
    return any(low - slack <= h <= high + slack for h in (hue - 360, hue, hue + 360))


@pytest.mark.parametrize("color", COLORS)
def test_a_flat_thing_has_the_colour_of_its_name(color):
    """Of each kind: the opaque pixels painted in the body colour are there, and their median hue, saturation and value
    lie in the colour's ranges. Slack: channels are whole numbers of 0..255, which moves the hue of dark colours."""
    hues, saturations, values = COLORS[color]
    rng = np.random.default_rng(1)
    for kind in KINDS:
        rgb = _hsv(rng, hues, saturations, values)
        sprite = np.asarray(paint(KINDS[kind](rng), rgb, 64, "flat", rng))
        opaque = sprite[sprite[..., 3] > 250][:, :3]
        body = opaque[np.abs(opaque.astype(int) - rgb).max(1) <= 12]
        assert len(body) > 0.25 * len(opaque), f"{color} {kind}"
        h, s, v = colorsys.rgb_to_hsv(*np.median(body, axis=0) / 255)
        if color not in ("black", "white"):  # their hue is free
            assert _within(360 * h, *hues, slack=3), f"{color} {kind}: hue {360 * h}"
        assert saturations[0] - 0.02 <= s <= saturations[1] + 0.02 and values[0] - 0.01 <= v <= values[1] + 0.01


def test_no_two_colours_are_mistaken():
    """A shade drawn from one colour's ranges lies in no other's."""
    rng = np.random.default_rng(2)
    for name, ranges in COLORS.items():
        for _ in range(200):
            h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in _hsv(rng, *ranges)))
            fitting = {
                other
                for other, (hues, ss, vs) in COLORS.items()
                if _within(360 * h, *hues, 0) and ss[0] <= s <= ss[1] and vs[0] <= v <= vs[1]
            }
            assert fitting <= {name}, f"{name} {360 * h:.0f} {s:.2f} {v:.2f}"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_in_every_style_and_size(kind, style):
    rng = np.random.default_rng(5)
    for side in (27, 60, 224):
        tilt = float(rng.uniform(-180, 180))
        sprite = paint(KINDS[kind](rng), (200, 40, 40), side, style, rng, tilt, (0.8, 1.0))
        assert sprite.mode == "RGBA"
        assert 0.9 * side - 3 <= max(sprite.size) <= 1.05 * side + 3
        solid = np.asarray(sprite.getchannel("A")) > 100
        assert solid.mean() > 0.08
        assert solid.any(0).mean() > 0.8 and solid.any(1).mean() > 0.8  # cropped to what is seen


def _slow_targets(scene: Scene, grid: int) -> tuple[list[int], list[int], list[tuple[float, ...]]]:
    """Patch by patch, pixel by pixel (every third), as `dense_targets` says."""
    cell = SIDE // grid
    share = np.zeros((len(scene.things), grid * grid))
    for patch in range(grid * grid):
        top, left = patch // grid * cell, patch % grid * cell
        pixels = [scene.seen[y, x] for y in range(top, top + cell, 3) for x in range(left, left + cell, 3)]
        for i in range(len(scene.things)):
            share[i, patch] = pixels.count(i + 1) / len(pixels)
    owners = [int(share[:, p].argmax()) if share[:, p].max() >= MIN_FRACTION else -1 for p in range(grid * grid)]
    for i in range(len(scene.things)):
        if share[i].max() > 0:
            owners[int(share[i].argmax())] = i
    things = [scene.things[i] if i >= 0 else None for i in owners]
    return (
        [KIND_IDS[t.kind] if t else 0 for t in things],
        [COLOR_IDS[t.color] if t else -1 for t in things],
        [tuple(v / SIDE for v in t.box.xyxy) if t else (0.0,) * 4 for t in things],
    )


def test_dense_targets_are_those_of_the_slow_reference(scenes):
    for scene in scenes[:6]:
        targets = dense_targets(scene, 16)
        kind, color, box = _slow_targets(scene, 16)
        assert targets.kind.tolist() == kind and targets.color.tolist() == color
        torch.testing.assert_close(targets.box, torch.tensor(box))
        assert {KIND_IDS[t.kind] for t in scene.things} <= set(kind)


def test_a_thing_between_the_sampled_pixels_is_on_no_patch():
    seen = np.zeros((SIDE, SIDE), np.uint8)
    seen[50, 50:90], seen[100:150, 100:150] = 1, 2  # row 50 is no third one of its patch
    things = Thing("ball", "red", Box(50, 50, 90, 51)), Thing("cat", "blue", Box(100, 100, 150, 150))
    targets = dense_targets(Scene(things, SIDE, Image.new("RGB", (SIDE, SIDE)), seen), 16)
    assert set(targets.kind.tolist()) == {0, KIND_IDS["cat"]}


def test_mirrored_targets_are_those_of_the_mirrored_scene(scenes):
    grid, side = 16, 256  # cells of 16 pixels, whose every third pixel is the same from both sides
    scene = draw_scene((6, 1), side)
    flipped = tuple(
        Thing(t.kind, t.color, Box(side - t.box.x2, t.box.y1, side - t.box.x1, t.box.y2)) for t in scene.things
    )
    image = scene.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = dense_targets(Scene(flipped, side, image, scene.seen[:, ::-1].copy()), grid)
    found, there = _mirrored(dense_targets(scene, grid), grid), expected.kind > 0
    assert there.any()
    assert torch.equal(found.kind, expected.kind) and torch.equal(found.color, expected.color)
    torch.testing.assert_close(found.box[there], expected.box[there])


def test_the_stream_of_views_is_repeatable_and_pairs_images_with_their_targets():
    def first(start: int = 0) -> list[tuple[torch.Tensor, ...]]:
        views = iter(SceneViews(9, Phase(112, 1, 1, views=2), 14, start, keep=16))
        return [next(views) for _ in range(12)]

    views = first()
    for a, b in zip(views, first()):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(views, first(100)))
    known = {}
    for number in range(40):
        scene = draw_scene((9, number), 112)
        if scene.things:
            image, targets = torch.from_numpy(np.array(scene.image)), dense_targets(scene, 8)
            known[image.numpy().tobytes()] = targets
            known[image.flip(1).numpy().tobytes()] = _mirrored(targets, 8)
    for image, kind, color, box, place in views:
        targets = known[image.numpy().tobytes()]
        assert torch.equal(kind, targets.kind) and torch.equal(color, targets.color) and torch.equal(box, targets.box)
        assert place.tolist() == [0, 0]


def test_views_of_windows_lie_anywhere_in_the_whole_and_their_boxes_with_them():
    views = iter(SceneViews(9, Phase(112, 1, 1, views=1, frame=448), 28))
    seen, places = torch.arange(4), []
    for image, kind, _, box, place in (next(views) for _ in range(40)):
        assert image.shape == (112, 112, 3) and len(kind) == 16
        row, column = (int(v) for v in place)
        left, top = ((column + seen).repeat(4) * 28 / 448, (row + seen).repeat_interleave(4) * 28 / 448)  # of patches
        on = kind > 0
        x1, y1, x2, y2 = box[on].unbind(1)
        assert ((x1 < left[on] + 28 / 448) & (x2 > left[on]) & (y1 < top[on] + 28 / 448) & (y2 > top[on])).all()
        assert (box[on] >= torch.tensor([column, row] * 2) / 16).all()
        assert (box[on] <= torch.tensor([column + 4, row + 4] * 2) / 16).all()
        places.append((row, column))
    rows, columns = zip(*places)
    assert min(rows) < 3 and max(rows) > 9 and max(rows) <= 12 and len({r - c for r, c in places}) > 10
