"""A sketch is a list of parts; painting one gives an RGBA sprite.

A class (balloon, house, ...) is a function `rng -> list[Part]`: pure geometry in the square [-1, 1] x [-1, 1], x to the
right and y **down**. Colour, style, size and tilt are applied here, once for all classes: every class comes in every
style, and a new class needs no knowledge of Pillow.
"""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

STYLES = ("flat", "outlined", "shaded", "detailed")


@dataclass(frozen=True)
class Part:
    """One polygon, or one line where `width` is given.

    points: [N, 2] float, in the unit square. paint: "body" (the colour that gives the object its name), "shade" (the
    body colour, darker), "tint" (lighter), "dark" (near black or a deep body colour, as the style has it) or an RGB
    tuple for what has a colour of its own (a trunk, a face). detail: left out of the plain drawings. width: of a line,
    in units of the square.
    """

    points: np.ndarray
    paint: str | tuple[int, int, int] = "body"
    detail: bool = False
    width: float | None = None


# ---- geometry: every function returns [N, 2] points in the unit square ----


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, n: int = 40) -> np.ndarray:
    """A closed ellipse (a circle where ry is left out)."""
    t = np.linspace(0, 2 * pi, n, endpoint=False)
    return np.stack([cx + rx * np.cos(t), cy + (rx if ry is None else ry) * np.sin(t)], axis=1)


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float, n: int = 24) -> np.ndarray:
    """Points along an ellipse from `start` to `end` degrees; 0 is to the right, 90 is down."""
    t = np.radians(np.linspace(start, end, n))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def rectangle(x1: float, y1: float, x2: float, y2: float, corner: float = 0.0) -> np.ndarray:
    """A rectangle with rounded corners of radius `corner`."""
    if corner <= 0:
        return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=float)
    r = min(corner, abs(x2 - x1) / 2, abs(y2 - y1) / 2)
    return np.concatenate(
        [
            arc(x2 - r, y1 + r, r, r, -90, 0, 6),
            arc(x2 - r, y2 - r, r, r, 0, 90, 6),
            arc(x1 + r, y2 - r, r, r, 90, 180, 6),
            arc(x1 + r, y1 + r, r, r, 180, 270, 6),
        ]
    )


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """Straight lines between the points."""
    return np.array(points, dtype=float)


def smooth(*points: tuple[float, float], closed: bool = True, n: int = 8) -> np.ndarray:
    """A Catmull-Rom curve through the points, `n` steps between two."""
    p = np.array(points, dtype=float)
    around = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(around[:-3], around[1:-2], around[2:-1], around[3:]):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate(pieces if closed else [*pieces, p[-1:]])


def star_points(spikes: int, inner: float, outer: float = 1.0, cx: float = 0.0, cy: float = 0.0) -> np.ndarray:
    """A star with `spikes` points, the first one upwards."""
    angle = -pi / 2 + np.arange(2 * spikes) * pi / spikes
    radius = np.where(np.arange(2 * spikes) % 2 == 0, outer, inner)
    return np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], axis=1)


def mirrored(points: np.ndarray) -> np.ndarray:
    """The same points on the other side of the vertical axis."""
    return points * [-1, 1]


def turned(points: np.ndarray, degrees: float, cx: float = 0.0, cy: float = 0.0) -> np.ndarray:
    """The points rotated about (cx, cy), clockwise as seen."""
    c, s = cos(degrees * pi / 180), sin(degrees * pi / 180)
    return (points - [cx, cy]) @ np.array([[c, s], [-s, c]]) + [cx, cy]


# ---- painting ----


def _mix(a, b, share: float) -> tuple[int, int, int]:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


def paint(
    parts: list[Part],
    rgb: tuple[int, int, int],
    side: int,
    style: str,
    rng: np.random.Generator,
    tilt: float = 0.0,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> Image.Image:
    """Draw the parts as an RGBA sprite, cropped to what is visible, its longer edge about `side` pixels.

    rgb: the body colour. style: one of STYLES. tilt: degrees clockwise. stretch: of the drawing, before the tilt.
    """
    if style != "detailed":
        keep = 0.0 if style == "flat" else 0.5
        parts = [p for p in parts if not p.detail or rng.random() < keep]
    parts = [replace(p, points=turned(p.points * stretch, tilt)) for p in parts]
    stroke = [p.width or 0 for p in parts]
    low = np.min([p.points.min(0) - w / 2 for p, w in zip(parts, stroke)], axis=0)
    high = np.max([p.points.max(0) + w / 2 for p, w in zip(parts, stroke)], axis=0)
    zoom = 3 if side < 48 else 2
    outline = style == "outlined" or (style == "detailed" and rng.random() < 0.5)
    margin = 2 * zoom + (side * zoom // 12 if outline else 0)
    scale = (side * zoom) / max(high - low)
    width, height = (int(v) + 2 * margin for v in np.ceil((high - low) * scale))

    ink = _mix(rgb, (0, 0, 0), 1.0 if rng.random() < 0.5 else 0.65)
    if sum(rgb) < 130 and outline:
        ink = _mix(rgb, (255, 255, 255), rng.uniform(0.25, 0.9))
    paints = {
        "body": rgb,
        "shade": _mix(rgb, (0, 0, 0), rng.uniform(0.15, 0.4)),
        "tint": _mix(rgb, (255, 255, 255), rng.uniform(0.25, 0.6)),
        "dark": _mix(rgb, (15, 15, 25), rng.uniform(0.6, 1.0)),
    }
    line = max(zoom, round(side * zoom * rng.uniform(0.012, 0.04)))

    sprite = Image.new("RGBA", (width, height), (*rgb, 0))
    draw = ImageDraw.Draw(sprite)
    body = Image.new("L", (width, height), 0) if style in ("shaded", "detailed") else None
    body_draw = ImageDraw.Draw(body) if body else None
    for part in parts:
        points = [(x, y) for x, y in (part.points - low) * scale + margin]
        fill = paints.get(part.paint, part.paint) if isinstance(part.paint, str) else part.paint
        if part.width is not None:
            pen = max(zoom, round(part.width * scale))
            if outline:
                draw.line(points, fill=(*ink, 255), width=pen + line, joint="curve")
            draw.line(points, fill=(*fill, 255), width=pen, joint="curve")
        else:
            draw.polygon(points, fill=(*fill, 255))
            if outline:
                draw.line([*points, *points[:2]], fill=(*ink, 255), width=line, joint="curve")
        if body_draw and part.width is None:
            body_draw.polygon(points, fill=255)
    if body:
        sprite = _shaded(sprite, body, rng)
    sprite = sprite.reduce(zoom)
    return sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox())


def _shaded(sprite: Image.Image, body: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, and sometimes a soft highlight, on the filled parts."""
    width, height = sprite.size
    angle = rng.uniform(0, 2 * pi)
    ramp = Image.linear_gradient("L") if rng.random() < 0.5 else Image.radial_gradient("L")
    ramp = ramp.rotate(angle * 180 / pi, resample=Image.Resampling.BILINEAR).resize((width, height))
    strength = rng.uniform(0.15, 0.5)
    dark = ImageChops.multiply(ramp.point(lambda v: int(v * strength)), body)
    alpha = sprite.getchannel("A")
    shaded = sprite.convert("RGB")
    shaded.paste((0, 0, 0) if rng.random() < 0.7 else (60, 20, 90), mask=dark)
    if rng.random() < 0.6:
        glow = Image.new("L", (64, 64), 0)
        r = rng.uniform(5, 14)
        x, y = 32 + 18 * cos(angle), 32 + 18 * sin(angle)
        ImageDraw.Draw(glow).ellipse((x - r, y - r * 0.7, x + r, y + r * 0.7), fill=round(rng.uniform(60, 200)))
        glow = glow.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4))).resize((width, height))
        shaded.paste((255, 255, 255), mask=ImageChops.multiply(glow, body))
    shaded.putalpha(alpha)
    return shaded
