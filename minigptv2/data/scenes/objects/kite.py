"""Kite: diamond with a cross and a bowed tail, arch-topped, delta with streamers, hexagon; leaning to either side."""

from dataclasses import replace

import numpy as np

from .sketch import Part, arc, ellipse, mirrored, polygon, turned


def kite(rng: np.random.Generator) -> list[Part]:
    """Leaning to the right, in half of the cases mirrored."""
    parts = (_diamond, _arch, _delta, _hexagon)[rng.choice(4, p=(0.5, 0.15, 0.25, 0.1))](rng)
    lean = rng.uniform(0, 42)
    parts = [replace(part, points=turned(part.points, lean)) for part in parts]
    return [replace(part, points=mirrored(part.points)) for part in parts] if rng.random() < 0.5 else parts


def _line(rng: np.random.Generator) -> str | tuple[int, int, int]:
    return ("dark", "shade", "body", (120, 120, 130), (150, 105, 60))[rng.integers(5)]


def _tail(rng: np.random.Generator, x: float, y: float, length: float, bows: int) -> list[Part]:
    """A wavy line hanging from (x, y), with bows, triangles or nothing on it."""
    t = np.linspace(0, 1, 24)
    sway = rng.choice((-1, 1)) * rng.uniform(0.08, 0.2)
    points = np.stack([x + sway * np.sin(t * rng.uniform(4, 9)), y + length * t], axis=1)
    parts = [Part(points, _line(rng), width=rng.uniform(0.035, 0.06))]
    size, tied = rng.uniform(0.1, 0.16), rng.random() < 0.7
    bow = (
        polygon((0, 0), (-1, -0.6), (-1, 0.6), (0, 0), (1, -0.6), (1, 0.6))
        if tied
        else polygon((-0.8, -0.5), (0.8, -0.5), (0, 1))
    ) * size
    paint = ("body", "shade", "tint")[rng.integers(3)]
    for i in np.linspace(8, 22, bows).astype(int):
        parts.append(Part(turned(bow, rng.uniform(-25, 25)) + points[i], paint))
    return parts


def _bows(rng: np.random.Generator) -> int:
    return int(rng.integers(2, 5)) if rng.random() < 0.8 else 0


def _diamond(rng: np.random.Generator) -> list[Part]:
    w, arm, foot = rng.uniform(0.48, 0.68), rng.uniform(-0.65, -0.4), rng.uniform(0.2, 0.4)
    top, right, bottom, left, cross = (0, -1), (w, arm), (0, foot), (-w, arm), (0, arm)
    parts = [*_tail(rng, 0, foot, rng.uniform(0.6, 0.9), _bows(rng)), Part(polygon(top, right, bottom, left))]
    pattern, paint = rng.integers(4), ("shade", "tint")[rng.integers(2)]
    if pattern == 0:
        parts += [Part(polygon(top, right, cross), paint), Part(polygon(left, cross, bottom), paint)]
    elif pattern == 1:
        parts.append(Part(polygon(top, right, bottom), paint))
    elif pattern == 2:
        parts.append(Part(polygon(top, right, left), paint, True))
    line = _line(rng) if rng.random() < 0.6 else "shade"
    plain = rng.random() < 0.3
    parts += [Part(polygon(top, bottom), line, plain, 0.04), Part(polygon(left, right), line, plain, 0.04)]
    if rng.random() < 0.25:
        tassel = polygon((0, 0), (0.1, 0.22), (-0.1, 0.22))
        parts += [Part(tassel + right, "shade", True), Part(tassel + left, "shade", True)]
    return parts


def _arch(rng: np.random.Generator) -> list[Part]:
    """A round top over a long point, sometimes with a face."""
    w, arm, foot = rng.uniform(0.55, 0.68), rng.uniform(-0.7, -0.58), rng.uniform(0.25, 0.4)
    outline = np.concatenate([arc(0, arm, w, 1 + arm, 180, 360, 24), polygon((0, foot))])
    parts = [*_tail(rng, 0, foot, rng.uniform(0.5, 0.8), _bows(rng) or 2), Part(outline)]
    if rng.random() < 0.4:
        parts += [Part(ellipse(side * w * 0.4, arm, 0.07, n=14), "dark") for side in (-1, 1)]
        parts.append(Part(arc(0, arm + 0.1, w * 0.35, 0.15, 20, 160, 10), "dark", width=0.05))
        return parts
    return parts + [
        Part(polygon((0, -1), (0, foot)), _line(rng), width=0.04),
        Part(polygon((-w, arm), (w, arm)), _line(rng), width=0.04),
    ]


def _delta(rng: np.random.Generator) -> list[Part]:
    """Two swept wings, a keel, and two or three streamers."""
    wing, notch = rng.uniform(-0.25, 0.0), rng.uniform(-0.35, -0.15)
    if rng.random() < 0.5:
        outline = polygon((0, -0.9), (1, wing), (0, notch), (-1, wing))
    else:
        outline = polygon((0, -0.9), (1, wing), (0.45, wing), (0, wing + 0.25), (-0.45, wing), (-1, wing))
        notch = wing + 0.25
    parts = []
    reach = rng.uniform(0.5, 0.9)
    for x in (0,) if rng.random() < 0.4 else (-0.35, 0.35):
        y = notch + (wing - notch) * abs(x)
        parts += _tail(rng, x, y - 0.05, reach, int(rng.integers(0, 3)))
    right = outline[outline[:, 0] >= 0]
    parts += [Part(outline), Part(right, ("shade", "tint")[rng.integers(2)], rng.random() < 0.4)]
    return parts + [Part(polygon((0, -0.9), (0, notch)), "dark", True, 0.04)]


def _hexagon(rng: np.random.Generator) -> list[Part]:
    """A tall hexagon with crossing spars and two or three tails."""
    w, shoulder = rng.uniform(0.5, 0.65), rng.uniform(0.3, 0.42)
    corners = polygon(
        (0, -1), (w, -0.3 - shoulder), (w, -0.3 + shoulder), (0, 0.4), (-w, -0.3 + shoulder), (-w, -0.3 - shoulder)
    )
    parts = []
    for x, y in ((-w, -0.3 + shoulder), (0, 0.4), (w, -0.3 + shoulder)):
        parts += _tail(rng, x * 0.95, y - 0.03, rng.uniform(0.5, 0.6), int(rng.integers(0, 3)))
    parts.append(Part(corners))
    if rng.random() < 0.6:
        paint = ("shade", "tint")[rng.integers(2)]
        parts += [Part(np.concatenate([corners[i : i + 2], [[0, -0.3]]]), paint) for i in (0, 2)]
    line = _line(rng)
    return parts + [Part(corners[[i, i + 3]], line, width=0.04) for i in range(3)]
