"""Generated scenes are deterministic, and their annotation matches their pixels."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.data.scenes.objects import OBJECT_CLASSES
from minigptv2.data.scenes.objects.sketch import STYLES, paint
from minigptv2.data.scenes.world import COLORS, LARGEST, SMALLEST, Scene, SceneObject, _hsv, draw_scene
from minigptv2.train.pretrain_vision import CLASS_IDS, COLOR_IDS, MIN_FRACTION, SceneViews, _mirrored, dense_targets
from minigptv2.train.recipe import Phase

SIDE = 224
SCENES = 40


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene((3, seed), SIDE) for seed in range(SCENES)]


def test_scenes_are_deterministic(scenes):
    for seed in range(4):
        again = draw_scene((3, seed), SIDE)
        assert again.objects == scenes[seed].objects
        assert np.array_equal(again.seen, scenes[seed].seen)
        assert again.image.tobytes() == scenes[seed].image.tobytes()
    assert len({s.image.tobytes() for s in scenes}) == SCENES


def test_boxes_are_extents_of_visible_pixels(scenes):
    for scene in scenes:
        assert scene.image.size == (SIDE, SIDE) == scene.seen.shape and scene.image.mode == "RGB"
        assert 1 <= len(scene.objects) <= 8 and scene.seen.max() == len(scene.objects)
        for number, obj in enumerate(scene.objects, 1):
            rows, columns = np.nonzero(scene.seen == number)
            extent = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert obj.box.xyxy == extent
            assert 0 <= obj.box.x1 < obj.box.x2 <= SIDE and 0 <= obj.box.y1 < obj.box.y2 <= SIDE
            assert obj.class_name in OBJECT_CLASSES and obj.color in COLORS


def test_max_objects_and_zoom():
    few = [draw_scene((4, seed), 112, max_objects=2, zoom=3.0) for seed in range(15)]
    assert max(len(s.objects) for s in few) == 2
    assert np.mean([_longer_edge(o) for s in few for o in s.objects]) > 0.3 * 112


def test_repeat_prob_repeats_names():
    usual, again = ([draw_scene((4, seed), 112, repeat_prob=r) for seed in range(15)] for r in (0, 0.7))
    assert usual[0].image.tobytes() == draw_scene((4, 0), 112).image.tobytes()
    alike = [np.mean([len({o.name for o in s.objects}) / len(s.objects) for s in scenes]) for scenes in (usual, again)]
    assert alike[1] < 0.7 * alike[0]


def _longer_edge(obj: SceneObject) -> float:
    return max(obj.box.x2 - obj.box.x1, obj.box.y2 - obj.box.y1)


def test_object_sizes_are_in_range(scenes):
    """The longer edge of an object is 6 to 50 % of the side. The outline may add up to 4 % of the edge and a pixel of
    rounding on each side. Resizing to a square may reduce it (by exp(-0.5) at most), and other objects may hide a part:
    the lower bound includes the resizing and is checked for objects that touch no other."""
    alone = []
    for scene in scenes:
        for obj in scene.objects:
            assert _longer_edge(obj) <= LARGEST * SIDE * 1.04 + 2
            if all(_apart(obj.box, o.box) for o in scene.objects if o is not obj):
                alone.append(_longer_edge(obj) / SIDE)
    assert len(alone) > 50
    assert min(alone) >= SMALLEST * np.exp(-0.5)
    assert np.mean(np.array(alone) >= SMALLEST) > 0.9  # most are not shortened along their longer edge
    assert max(alone) > 0.35 and min(alone) < 0.10  # the range is used


def _apart(a: Box, b: Box) -> bool:
    return a.x2 <= b.x1 or b.x2 <= a.x1 or a.y2 <= b.y1 or b.y2 <= a.y1


def _within(hue: float, low: float, high: float, slack: float) -> bool:
    return any(low - slack <= h <= high + slack for h in (hue - 360, hue, hue + 360))


@pytest.mark.parametrize("color", COLORS)
def test_flat_object_has_the_colour_of_its_name(color):
    """For each class, pixels of the body colour exist, and their median hue, saturation and value are in the colour's
    ranges. The slack is for rounding to 0..255, which moves the hue of dark colours."""
    hues, saturations, values = COLORS[color]
    rng = np.random.default_rng(1)
    for class_name in OBJECT_CLASSES:
        rgb = _hsv(rng, hues, saturations, values)
        sprite = np.asarray(paint(OBJECT_CLASSES[class_name](rng), rgb, 64, "flat", rng))
        opaque = sprite[sprite[..., 3] > 250][:, :3]
        body = opaque[np.abs(opaque.astype(int) - rgb).max(1) <= 12]
        assert len(body) > 0.25 * len(opaque), f"{color} {class_name}"
        h, s, v = colorsys.rgb_to_hsv(*np.median(body, axis=0) / 255)
        if color not in ("black", "white"):  # their hue is free
            assert _within(360 * h, *hues, slack=3), f"{color} {class_name}: hue {360 * h}"
        assert saturations[0] - 0.02 <= s <= saturations[1] + 0.02 and values[0] - 0.01 <= v <= values[1] + 0.01


def test_colour_ranges_do_not_overlap():
    """A shade from the ranges of one colour is in the ranges of no other."""
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
@pytest.mark.parametrize("class_name", OBJECT_CLASSES)
def test_every_class_is_drawn_in_every_style_and_size(class_name, style):
    rng = np.random.default_rng(5)
    for side in (27, 60, 224):
        tilt = float(rng.uniform(-180, 180))
        sprite = paint(OBJECT_CLASSES[class_name](rng), (200, 40, 40), side, style, rng, tilt, (0.8, 1.0))
        assert sprite.mode == "RGBA"
        assert 0.9 * side - 3 <= max(sprite.size) <= 1.05 * side + 3
        solid = np.asarray(sprite.getchannel("A")) > 100
        assert solid.mean() > 0.08
        assert solid.any(0).mean() > 0.8 and solid.any(1).mean() > 0.8  # cropped to what is seen


def _slow_targets(scene: Scene, grid: int) -> tuple[list[int], list[int], list[tuple[float, ...]]]:
    """Patch by patch, pixel by pixel (every third), as `dense_targets` says."""
    cell = SIDE // grid
    share = np.zeros((len(scene.objects), grid * grid))
    for patch in range(grid * grid):
        top, left = patch // grid * cell, patch % grid * cell
        pixels = [scene.seen[y, x] for y in range(top, top + cell, 3) for x in range(left, left + cell, 3)]
        for i in range(len(scene.objects)):
            share[i, patch] = pixels.count(i + 1) / len(pixels)
    owners = [int(share[:, p].argmax()) if share[:, p].max() >= MIN_FRACTION else -1 for p in range(grid * grid)]
    for i in range(len(scene.objects)):
        if share[i].max() > 0:
            owners[int(share[i].argmax())] = i
    objects = [scene.objects[i] if i >= 0 else None for i in owners]
    return (
        [CLASS_IDS[o.class_name] if o else 0 for o in objects],
        [COLOR_IDS[o.color] if o else -1 for o in objects],
        [tuple(v / SIDE for v in o.box.xyxy) if o else (0.0,) * 4 for o in objects],
    )


def test_dense_targets_equal_slow_reference(scenes):
    for scene in scenes[:6]:
        targets = dense_targets(scene, 16)
        kind, color, box = _slow_targets(scene, 16)
        assert targets.object_class.tolist() == kind and targets.color.tolist() == color
        torch.testing.assert_close(targets.box, torch.tensor(box))
        assert {CLASS_IDS[o.class_name] for o in scene.objects} <= set(kind)


def test_object_missed_by_sampling_has_no_patch():
    seen = np.zeros((SIDE, SIDE), np.uint8)
    seen[50, 50:90], seen[100:150, 100:150] = 1, 2  # row 50 is not sampled: only every third row is
    objects = SceneObject("ball", "red", Box(50, 50, 90, 51)), SceneObject("cat", "blue", Box(100, 100, 150, 150))
    targets = dense_targets(Scene(objects, SIDE, Image.new("RGB", (SIDE, SIDE)), seen), 16)
    assert set(targets.object_class.tolist()) == {0, CLASS_IDS["cat"]}


def test_mirrored_targets_equal_targets_of_mirrored_scene(scenes):
    grid, side = 16, 256  # cells of 16 pixels, whose every third pixel is the same from both sides
    scene = draw_scene((6, 1), side)
    flipped = tuple(
        SceneObject(o.class_name, o.color, Box(side - o.box.x2, o.box.y1, side - o.box.x1, o.box.y2))
        for o in scene.objects
    )
    image = scene.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = dense_targets(Scene(flipped, side, image, scene.seen[:, ::-1].copy()), grid)
    found, there = _mirrored(dense_targets(scene, grid), grid), expected.object_class > 0
    assert there.any()
    assert torch.equal(found.object_class, expected.object_class) and torch.equal(found.color, expected.color)
    torch.testing.assert_close(found.box[there], expected.box[there])


@pytest.mark.slow
def test_views_are_deterministic_and_match_their_targets():
    def first(start: int = 0) -> list[tuple[torch.Tensor, ...]]:
        views = iter(SceneViews(9, Phase(112, 1, 1, views_per_scene=2), 14, start, keep=16))
        return [next(views) for _ in range(12)]

    views = first()
    for a, b in zip(views, first()):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(views, first(100)))
    known = {}
    for number in range(40):
        scene = draw_scene((9, number), 112)
        if scene.objects:
            image, targets = torch.from_numpy(np.array(scene.image)), dense_targets(scene, 8)
            known[image.numpy().tobytes()] = targets
            known[image.flip(1).numpy().tobytes()] = _mirrored(targets, 8)
    for image, kind, color, box, place in views:
        targets = known[image.numpy().tobytes()]
        assert (
            torch.equal(kind, targets.object_class)
            and torch.equal(color, targets.color)
            and torch.equal(box, targets.box)
        )
        assert place.tolist() == [0, 0]


def test_crops_lie_anywhere_and_their_boxes_with_them():
    views = iter(SceneViews(9, Phase(112, 1, 1, views_per_scene=1, canvas_size=448), 28))
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
