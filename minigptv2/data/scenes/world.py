"""The generated world: images of coloured objects on varied backgrounds, with complete annotation, from a seed.

Drawn by this project: no image files and no licence. A record is a `Scene`: an RGB image, its objects (class, colour,
box of the visible part in pixels) and a map of the object that is visible at each pixel. The same seed gives the same
image on every machine with the same versions of Pillow and NumPy.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from minigptv2.boxes import Box
from minigptv2.data.scenes.objects import OBJECT_CLASSES
from minigptv2.data.scenes.objects.sketch import STYLES, paint

# name: ranges of hue (degrees, may pass 360), saturation and value, from which an object's colour is drawn
COLORS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((348, 371), (0.68, 1.0), (0.62, 1.0)),
    "green": ((85, 160), (0.40, 1.0), (0.32, 0.90)),
    "blue": ((193, 240), (0.50, 1.0), (0.45, 1.0)),
    "yellow": ((44, 60), (0.60, 1.0), (0.85, 1.0)),
    "purple": ((262, 297), (0.40, 0.90), (0.40, 0.90)),
    "orange": ((20, 37), (0.75, 1.0), (0.86, 1.0)),
    "black": ((0, 360), (0.0, 0.30), (0.03, 0.17)),
    "white": ((0, 360), (0.0, 0.05), (0.92, 1.0)),
    "pink": ((318, 352), (0.25, 0.60), (0.90, 1.0)),
    "brown": ((14, 32), (0.50, 0.85), (0.28, 0.56)),
}
IMAGE_SIZE = 448  # pixels, width and height
DEFAULT_SEED = 11  # of the scenes of training and, with the first numbers, of its validation
SMALLEST, LARGEST = 0.06, 0.50  # of the image's side
CROWD = 16  # objects in a crowded image
ROOM = {3: LARGEST, 6: 0.36, 8: 0.28, CROWD: 0.16}  # number of objects -> the largest size, of the side
TILT = {"star": 180, "ball": 180, "triangle": 180, "flower": 40, "box": 25, "kite": 60, "umbrella": 50, "fish": 40}


@dataclass(frozen=True)
class SceneObject:
    """One drawn object. box: of its visible part, XYXY in pixels of the scene's image."""

    class_name: str
    color: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.color} {self.class_name}"


@dataclass(frozen=True)
class Scene:
    """objects: in drawing order. image: RGB, side x side pixels. seen: [side, side] uint8, 0 for the background, i + 1
    where object i is visible. A scene whose features are cached has neither image nor map."""

    objects: tuple[SceneObject, ...]
    side: int
    image: Image.Image | None = None
    seen: np.ndarray | None = None


def draw_scene(
    seed: int | tuple[int, ...],
    size: int = IMAGE_SIZE,
    max_objects: int = 8,
    zoom: float = 1.0,
    crowded: bool = False,
    repeat_prob: float = 0.0,
) -> Scene:
    """Draw the scene of this seed.

    size: width and height of the image in pixels. max_objects: 1 to 8. zoom: factor on the size of the objects, as in a
    crop of a larger image. crowded: 16 small objects instead. repeat_prob: probability (0 to 1) that an object after
    the first has the class and colour of an earlier one, so that several instances are frequent.
    """
    rng = np.random.default_rng(seed)
    ground = _ground(rng, size)
    canvas = Image.fromarray(ground)
    seen = Image.new("L", (size, size), 0)
    # the model gets other images resized to a square, which distorts their objects: these are distorted alike
    aspect = 1.0 if rng.random() < 0.5 else float(np.exp(rng.uniform(-0.5, 0.5)))
    count = CROWD if crowded else int(rng.integers(1, max_objects + 1))
    family = [str(v) for v in rng.choice(list(OBJECT_CLASSES), 3)] if rng.random() < 0.4 else list(OBJECT_CLASSES)
    palette = [str(v) for v in rng.choice(list(COLORS), 3)] if rng.random() < 0.3 else list(COLORS)
    one_style = str(rng.choice(STYLES)) if rng.random() < 0.3 else None
    named: list[tuple[str, str]] = []
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(count):
        class_name, color = str(rng.choice(family)), str(rng.choice(palette))
        if repeat_prob and named and rng.random() < repeat_prob:
            class_name, color = named[int(rng.integers(len(named)))]
        largest = min(0.9, zoom * next(fraction for limit, fraction in ROOM.items() if count <= limit))
        side = size * float(np.exp(rng.uniform(np.log(zoom * SMALLEST * 1.08), np.log(largest * 0.98))))
        rgb = _contrasting(rng, color, ground)
        sprite = _sprite(rng, class_name, rgb, int(side), one_style, aspect)
        place = _place(rng, sprite.size, size, taken)
        if place is None:
            continue
        alpha = sprite.getchannel("A")
        canvas.paste(sprite, place, alpha)
        seen.paste(len(named) + 1, place, alpha.point(lambda a: 255 * (a > 100)))
        named.append((class_name, color))
        taken.append((*place, place[0] + sprite.width, place[1] + sprite.height))
    seen_array = np.asarray(seen)
    boxes = [_visible_box(seen_array, i + 1, place) for i, place in enumerate(taken)]
    objects = tuple(SceneObject(class_name, color, box) for (class_name, color), box in zip(named, boxes))
    return Scene(objects, size, _worn(rng, canvas), seen_array)


def _visible_box(seen: np.ndarray, index: int, within: tuple[int, int, int, int]) -> Box:
    left, top, right, bottom = within
    mask = seen[top:bottom, left:right] == index
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return Box(float(left + xs[0]), float(top + ys[0]), float(left + xs[-1] + 1), float(top + ys[-1] + 1))


def _hsv(
    rng, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[int, int, int]:
    h, s, v = rng.uniform(*hue) % 360 / 60, rng.uniform(*saturation), rng.uniform(*value)
    steps = ((n + h) % 6 for n in (5, 3, 1))
    return tuple(round(255 * v * (1 - s * max(0.0, min(k, 4 - k, 1.0)))) for k in steps)


def _contrasting(rng, color: str, ground: np.ndarray) -> tuple[int, int, int]:
    """A shade of the colour that differs from the mean of the background, the best of a few tries."""
    mean = ground[::16, ::16].reshape(-1, 3).mean(0)
    shades = [_hsv(rng, *COLORS[color]) for _ in range(4)]
    return next((s for s in shades if np.abs(mean - s).sum() > 150), max(shades, key=lambda s: np.abs(mean - s).sum()))


def _sprite(rng, class_name: str, rgb, side: int, style: str | None, aspect: float) -> Image.Image:
    limit = TILT.get(class_name, 20)
    tilt = float(rng.uniform(-limit, limit)) if rng.random() < 0.6 else 0.0
    own = float(np.exp(rng.normal(0, 0.12)))
    sprite = paint(OBJECT_CLASSES[class_name](rng), rgb, side, style or str(rng.choice(STYLES)), rng, tilt, (own, 1.0))
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if aspect != 1.0:
        wide, high = (aspect, 1.0) if aspect < 1 else (1.0, 1 / aspect)
        sprite = sprite.resize((max(9, round(sprite.width * wide)), max(9, round(sprite.height * high))))
    return sprite


def _place(rng, sprite: tuple[int, int], size: int, taken) -> tuple[int, int] | None:
    """Left and top of a position where the sprite hides little of each earlier object; None where there is no room."""
    width, height = sprite
    for attempt in range(24):
        x = int(rng.integers(0, max(1, size - width)))
        y = int(rng.integers(0, max(1, size - height)))
        allowed = 0.12 if attempt < 12 or rng.random() < 0.5 else 0.30
        if all(_hidden(t, (x, y, x + width, y + height)) <= allowed for t in taken):
            return x, y
    return None


def _hidden(a, b) -> float:
    """The intersection of two boxes as a fraction of the smaller one."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


# ---- backgrounds: [H, W, 3] uint8 ----


def _ground_color(rng) -> np.ndarray:
    chance = rng.random()
    if chance < 0.25:
        return np.array([255, 255, 255.0]) if rng.random() < 0.7 else np.full(3, rng.uniform(225, 255))
    if chance < 0.65:
        return np.array(_hsv(rng, (0, 360), (0.03, 0.35), (0.75, 1.0)), float)
    if chance < 0.88:
        return np.array(_hsv(rng, (0, 360), (0.1, 0.7), (0.35, 0.85)), float)
    return np.array(_hsv(rng, (0, 360), (0.0, 0.6), (0.05, 0.3)), float)


def _ground(rng, size: int) -> np.ndarray:
    base = _ground_color(rng)
    near = np.clip(base + rng.normal(0, 22, 3), 0, 255)
    choice = rng.random()
    if choice < 0.28:
        image = np.broadcast_to(base, (size, size, 3))
    elif choice < 0.50:
        image = _gradient(rng, base, _ground_color(rng) if rng.random() < 0.5 else near, size)
    elif choice < 0.74:
        weight = _tiles(rng, size)[..., None].astype(np.float32)
        other = near if rng.random() < 0.7 else np.clip(base + rng.normal(0, 45, 3), 0, 255)
        image = base * (1 - weight) + other * weight
    elif choice < 0.90:
        grain = int(rng.choice([8, 16, 32, 64, 112]))
        coarse = np.clip(base + rng.normal(0, rng.uniform(6, 26), (grain, grain, 3)), 0, 255).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))
    else:
        line = int(size * rng.uniform(0.3, 0.8))
        image = np.empty((size, size, 3))
        image[:line], image[line:] = base, _ground_color(rng)
    return np.ascontiguousarray(image, dtype=np.uint8)


def _gradient(rng, start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    y, x = np.mgrid[0:1:8j, 0:1:8j]
    if rng.random() < 0.7:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = x * np.cos(angle) + y * np.sin(angle)
    else:
        ramp = np.hypot(x - rng.uniform(), y - rng.uniform())
    ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    small = Image.fromarray((start + (end - start) * ramp).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def _tiles(rng, size: int) -> np.ndarray:
    """[H, W] weights 0 or 1 of a repeated pattern."""
    period = int(rng.integers(8, 72))
    y, x = np.ogrid[:size, :size]
    pattern = rng.integers(5)
    if pattern == 0:
        return (x // period + y // period) % 2
    if pattern == 1:
        return ((x + int(rng.integers(-1, 2)) * y) // period) % 2 + 0 * y
    if pattern == 2:
        return (y // period) % 2 + 0 * x
    if pattern == 3:
        r = period * rng.uniform(0.15, 0.4)
        return ((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < r * r).astype(int)
    gap = max(1, period // 10)
    shift = (y // period % 2) * period
    return ((y % period < gap) | ((x + shift) % (2 * period) < gap)).astype(int)


def _worn(rng, image: Image.Image) -> Image.Image:
    """Slight noise, blur and JPEG artefacts, each in some of the images."""
    size = image.size
    if rng.random() < 0.2:
        low = int(size[0] * rng.uniform(0.4, 0.8))
        image = image.resize((low, low), Image.Resampling.BILINEAR).resize(size, Image.Resampling.BILINEAR)
    elif rng.random() < 0.1:
        image = image.filter(ImageFilter.BoxBlur(1))
    if rng.random() < 0.35:
        strength = int(rng.integers(2, 16))
        noise = np.frombuffer(rng.bytes(image.width * image.height * 3), np.int8).reshape(image.height, image.width, 3)
        noise = (noise.astype(np.int16) * strength) >> 7
        image = Image.fromarray(np.clip(np.asarray(image, np.int16) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.35:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 92)))
        image = Image.open(file).convert("RGB")
    return image
