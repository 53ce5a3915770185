"""Moon: thin or fat crescent, crescent with craters, crescent with a face, full moon with craters, gibbous moon."""

from dataclasses import replace
from math import atan2, cos, degrees, radians, sin

import numpy as np

from .sketch import Part, arc, ellipse, mirrored, turned


def moon(rng: np.random.Generator) -> list[Part]:
    """Drawn with the lit side to the left, then turned a little, in half of the cases mirrored."""
    parts = (_plain, _cratered, _face, _full, _gibbous)[rng.choice(5, p=(0.35, 0.15, 0.2, 0.2, 0.1))](rng)
    angle, mirror = rng.uniform(-50, 50), rng.random() < 0.5
    parts = [replace(part, points=turned(part.points, angle)) for part in parts]
    return [replace(part, points=mirrored(part.points)) for part in parts] if mirror else parts


def _crescent(tip: float, thick: float) -> tuple[np.ndarray, np.ndarray]:
    """The outer and inner edge of a crescent: tips at +-`tip` degrees from the right, `thick` wide at the left."""
    c, s, left = cos(radians(tip)), sin(radians(tip)), thick - 1
    middle = (1 - left**2) / (2 * (c - left))
    opening = degrees(atan2(s, c - middle))
    return (
        arc(0, 0, 1, 1, tip, 360 - tip, 40),
        arc(middle, 0, middle - left, middle - left, 360 - opening, opening, 30),
    )


def _plain(rng: np.random.Generator) -> list[Part]:
    parts = [Part(np.concatenate(_crescent(rng.uniform(22, 75), rng.uniform(0.35, 0.85))))]
    if rng.random() < 0.4:
        outer = arc(0, 0, 0.93, 0.93, 100, 250, 24)
        parts.append(Part(np.concatenate([outer, outer[::-1] * [0.9, 1] + [-0.02, 0]]), "tint", True))
    return parts


def _cratered(rng: np.random.Generator) -> list[Part]:
    thick = rng.uniform(0.6, 0.9)
    parts = [Part(np.concatenate(_crescent(rng.uniform(25, 65), thick)))]
    for angle in rng.permutation([115, 150, 180, 215, 245])[: rng.integers(3, 6)] + rng.uniform(-8, 8):
        reach = 1 - thick * rng.uniform(0.35, 0.5)
        size = rng.uniform(0.06, 0.14) * (1 - abs(angle - 180) / 160)
        parts.append(Part(ellipse(reach * cos(radians(angle)), reach * sin(radians(angle)), size, n=20), "shade", True))
    return parts


def _face(rng: np.random.Generator) -> list[Part]:
    """The man in the moon in profile: a nose on the inner edge."""
    tip, thick = rng.uniform(30, 60), rng.uniform(0.65, 0.85)
    outer, inner = _crescent(tip, thick)
    nose = rng.uniform(0.14, 0.3) * np.exp(-(((inner[:, 1] - 0.02) / rng.uniform(0.09, 0.15)) ** 2))
    inner = inner + np.stack([nose, np.zeros_like(nose)], axis=1)
    edge = thick - 1
    parts = [Part(np.concatenate([outer, inner]))]
    if rng.random() < 0.5:
        parts.append(Part(ellipse(edge - 0.18, -0.2, 0.06, 0.09, 16), "dark"))
    else:
        parts.append(Part(arc(edge - 0.2, -0.22, 0.12, 0.09, 10, 170, 10), "dark", width=0.05))
    parts.append(Part(arc(edge - 0.02, 0.2, 0.22, 0.17, 60, 160, 10), "dark", width=0.05))
    parts.append(Part(ellipse(edge - 0.33, 0.12, 0.1, n=16), (240, 130, 120), True))
    return parts


def _full(rng: np.random.Generator) -> list[Part]:
    parts = [Part(ellipse(0, 0, 1))]
    turn = rng.uniform(0, 360)
    count = int(rng.integers(5, 9))
    rim = rng.random() < 0.5
    for i in range(count):
        angle = radians(turn + 360 * i / (count - 1) + rng.uniform(-12, 12))
        reach, size = (0.08, rng.uniform(0.16, 0.3)) if i == 0 else (rng.uniform(0.5, 0.72), rng.uniform(0.08, 0.22))
        x, y = reach * cos(angle), reach * sin(angle)
        parts.append(Part(ellipse(x, y, size, size * rng.uniform(0.8, 1), 24), "shade"))
        if rim:
            parts.append(Part(ellipse(x + size * 0.15, y + size * 0.15, size * 0.72, n=20), "body", True))
    return parts


def _gibbous(rng: np.random.Generator) -> list[Part]:
    """A dark disc, more than half of it lit, with craters."""
    bulge = rng.uniform(0.1, 0.6)
    night = [(60, 65, 90), (40, 40, 50), (90, 95, 110)][rng.integers(3)]
    parts = [
        Part(ellipse(0, 0, 1), night),
        Part(np.concatenate([arc(0, 0, 1, 1, 90, 270, 30), arc(0, 0, bulge, 1, -90, 90, 30)])),
    ]
    for x, y in ((-0.5, -0.3), (-0.2, 0.25), (-0.6, 0.35), (-0.1, -0.5))[: rng.integers(2, 5)]:
        parts.append(Part(ellipse(x, y, rng.uniform(0.1, 0.19), n=20), "shade"))
    return parts
