"""Balloons: round, teardrop, long, and held askew on a curved string."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, smooth, turned


def _bag(rx: float, height: float, neck: float) -> np.ndarray:
    """The rubber, its mouth at the origin and its top at -height."""
    right = [(0, -height), (rx * 0.74, -height * 0.87), (rx, -height * 0.57), (rx * 0.72, -height * 0.24), (neck, 0)]
    return smooth(*right, *((-x, y) for x, y in reversed(right[1:])))


def _string(rng: np.random.Generator, length: float, paint: str | tuple[int, int, int]) -> Part:
    t = np.linspace(0, 1, 20)
    sway, waves = rng.uniform(0, 0.13), rng.uniform(0.5, 2)
    return Part(
        np.stack([sway * np.sin(2 * np.pi * waves * t), 0.06 + length * t], axis=1),
        paint,
        width=rng.uniform(0.025, 0.05),
    )


def _single(rng: np.random.Generator, rx: float, height: float) -> list[Part]:
    """One balloon with its mouth at the origin."""
    grey = ("dark", (120, 120, 125), (190, 185, 180))[rng.integers(3)]
    knot = rng.uniform(0.06, 0.13)
    parts = [
        _string(rng, rng.uniform(0.3, 1.1), grey),
        Part(polygon((0, -knot / 2), (knot, knot), (-knot, knot)), "body" if rng.random() < 0.5 else "shade"),
        Part(_bag(rx, height, rng.uniform(0.02, 0.09))),
    ]
    side = -1 if rng.random() < 0.6 else 1
    look = rng.random()
    if look < 0.4:
        shine = turned(ellipse(0, 0, rx * 0.16, height * rng.uniform(0.07, 0.14), 16), 25 * -side)
        parts.append(Part(shine + [side * rx * 0.5, -height * 0.73], "tint", detail=True))
    elif look < 0.75:
        start, end = (190, 250) if side < 0 else (290, 350)
        shine = arc(0, -height * 0.56, rx * 0.7, height * 0.31, start, end, 12)
        parts.append(Part(shine, "tint", detail=True, width=rng.uniform(0.05, 0.1)))
    return parts


def _moved(parts: list[Part], degrees: float, x: float = 0.0, y: float = 0.0) -> list[Part]:
    return [Part(turned(p.points, degrees) + [x, y], p.paint, p.detail, p.width) for p in parts]


def _askew(rng: np.random.Generator) -> list[Part]:
    side = rng.choice([-1, 1])
    bag = _single(rng, rng.uniform(0.5, 0.65), rng.uniform(1.2, 1.45))[1:]
    string = smooth((0, 0.05), (-0.18 * side, 0.25), (-0.1 * side, 0.5), (-0.35 * side, 0.75), closed=False)
    paint = "dark" if rng.random() < 0.5 else (130, 130, 135)
    return [Part(string, paint, width=rng.uniform(0.03, 0.05)), *_moved(bag, side * rng.uniform(15, 35))]


def balloon(rng: np.random.Generator) -> list[Part]:
    variant = rng.choice(4, p=[0.35, 0.3, 0.1, 0.25])
    if variant == 0:
        rx = rng.uniform(0.58, 0.75)
        return _single(rng, rx, rx * rng.uniform(2.0, 2.3))
    if variant == 1:
        rx = rng.uniform(0.45, 0.6)
        return _single(rng, rx, rx * rng.uniform(2.3, 2.8))
    if variant == 2:
        return _single(rng, rng.uniform(0.28, 0.38), rng.uniform(1.3, 1.6))
    return _askew(rng)
