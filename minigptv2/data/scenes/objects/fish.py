"""Fish: oval with triangle tail, tall tropical with stripes, long and fork-tailed, crossed loop, round with scales."""

from dataclasses import replace

import numpy as np

from .sketch import Part, arc, ellipse, mirrored, polygon, smooth


def fish(rng: np.random.Generator) -> list[Part]:
    """Drawn facing left, in half of the cases turned to face right."""
    parts = (_oval, _tropical, _long, _loop, _scaly)[rng.integers(5)](rng)
    if rng.random() < 0.5:
        return parts
    return [replace(part, points=mirrored(part.points)) for part in parts]


def _accent(rng: np.random.Generator) -> str:
    return ("body", "shade", "tint")[rng.integers(3)]


def _eye(rng: np.random.Generator, x: float, y: float, size: float) -> list[Part]:
    pupil = Part(ellipse(x - size * 0.15, y, size * rng.uniform(0.45, 0.65), n=16), "dark")
    if rng.random() < 0.3:
        return [pupil]
    return [Part(ellipse(x, y, size, n=20), (255, 255, 255)), pupil]


def _tail(rng: np.random.Generator, x: float, height: float, paint: str) -> Part:
    """A tail fin from x to the right edge: a triangle, a fork, or two round lobes."""
    notch = rng.uniform(0.7, 1.0)
    if rng.random() < 0.5:
        return Part(polygon((x, 0), (1, -height), (notch, 0), (1, height)), paint)
    return Part(
        smooth(
            (x, -0.06),
            (0.8, -height),
            (1, -height * 0.85),
            (notch - 0.1, 0),
            (1, height * 0.85),
            (0.8, height),
            (x, 0.06),
        ),
        paint,
    )


def _oval(rng: np.random.Generator) -> list[Part]:
    h, accent = rng.uniform(0.32, 0.6), _accent(rng)
    parts = [_tail(rng, rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.6), accent)]
    if rng.random() < 0.6:
        parts.append(Part(smooth((-0.4, -h * 0.8), (-0.1, -h - 0.25), (0.3, -h - 0.1), (0.2, -h * 0.5)), accent))
    if rng.random() < 0.4:
        parts.append(Part(polygon((-0.2, h * 0.8), (0.15, h + 0.22), (0.2, h * 0.7)), accent))
    parts.append(Part(ellipse(-0.25, 0, 0.75, h)))
    parts += _eye(rng, -0.68, -h * 0.25, rng.uniform(0.08, 0.14))
    parts.append(Part(arc(-0.75, 0, 0.38, h * 0.75, -60, 60, 10), "shade", True, 0.04))
    if rng.random() < 0.6:
        parts.append(Part(smooth((-0.2, 0.05), (0.15, -0.05), (0.25, 0.1), (0.12, 0.22)), accent, True))
    if rng.random() < 0.5:
        parts.append(Part(arc(-0.95, h * 0.2, 0.2, 0.12, 10, 90, 6), "dark", True, 0.04))
    return parts


def _tropical(rng: np.random.Generator) -> list[Part]:
    w, h, accent = rng.uniform(0.6, 0.75), rng.uniform(0.6, 0.85), _accent(rng)
    reach, cx, oval = rng.uniform(0.15, 0.38), -0.95 + w, rng.random() < 0.5
    fin = smooth(
        (cx - w * 0.4, -h * 0.75),
        (cx, -h - reach * 0.8),
        (cx + w, -h - reach),
        (cx + w * 0.75, -h * 0.5),
        (cx + w * 0.5, -h * 0.2),
    )
    body = (
        ellipse(cx, 0, w, h)
        if oval
        else polygon(
            (cx - w, 0), (cx - w * 0.1, -h), (cx + w * 0.1, -h), (cx + w, 0), (cx + w * 0.1, h), (cx - w * 0.1, h)
        )
    )
    parts = [
        _tail(rng, cx + w * 0.8, rng.uniform(0.3, 0.55), accent),
        Part(fin, accent),
        Part(fin * [1, -1], accent),
        Part(body),
    ]
    stripe_paint = ((255, 255, 255), "dark", "shade", "tint")[rng.integers(4)]
    for start in (-0.4, 0.05, 0.45)[: rng.integers(2, 4)]:
        u = np.linspace(start, start + rng.uniform(0.13, 0.24), 6)
        edge = np.sqrt(1 - u**2) if oval else np.minimum(1, (1 - np.abs(u)) / 0.9)
        top = np.stack([cx + w * u, -h * edge], axis=1)
        parts.append(Part(np.concatenate([top, top[::-1] * [1, -1]]), stripe_paint, rng.random() < 0.3))
    return parts + _eye(rng, cx - w * 0.62, -h * 0.12, rng.uniform(0.08, 0.13))


def _long(rng: np.random.Generator) -> list[Part]:
    h, t, x = rng.uniform(0.2, 0.5), rng.uniform(0.28, 0.42), rng.uniform(0.55, 0.7)
    outline = np.concatenate(
        [
            smooth((-1, 0.03), (-0.75, -h * 0.75), (-0.3, -h), (0.2, -h * 0.75), (x, -h * 0.22), closed=False),
            polygon((1, -t), (0.86, 0), (1, t)),
            smooth((x, h * 0.22), (0.2, h * 0.75), (-0.3, h), (-0.75, h * 0.75), (-1, 0.03), closed=False),
        ]
    )
    accent = _accent(rng)
    parts = [
        Part(polygon((-0.3, -h * 0.9), (-0.05, -h - 0.22), (0.3, -h - 0.1), (0.2, -h * 0.6)), accent),
        Part(polygon((-0.25, h * 0.85), (-0.05, h + 0.18), (0.05, h * 0.7)), accent),
        Part(polygon((0.25, h * 0.6), (0.45, h + 0.08), (0.45, h * 0.4)), accent, rng.random() < 0.5),
        Part(outline),
    ]
    belly = smooth(
        (-0.95, 0.06), (-0.3, h * 0.3), (0.45, h * 0.25), (0.2, h * 0.68), (-0.3, h * 0.92), (-0.75, h * 0.68)
    )
    parts.append(Part(belly, "tint", True))
    parts.append(Part(arc(-0.75, 0, 0.22, h * 0.7, -65, 65, 10), "shade", True, 0.04))
    parts.append(Part(polygon((-0.45, 0.02), (-0.15, h * 0.3), (-0.2, h * 0.6)), "shade", True))
    return parts + _eye(rng, -0.76, -h * 0.2, rng.uniform(0.055, 0.085))


def _loop(rng: np.random.Generator) -> list[Part]:
    """Two curves that meet at the nose and cross before the tail."""
    h, cross = rng.uniform(0.4, 0.65), rng.uniform(0.68, 0.76)
    u = np.linspace(0, 1, 30)
    body = h * np.sin(np.pi * np.minimum(u / cross, 1)).clip(0) ** rng.uniform(0.75, 1)
    y = np.where(u < cross, body, (cross - u) * rng.uniform(1.0, 1.7))
    upper = np.stack([2 * u - 1, -np.abs(y) - 0.04 * (u > 0.05)], axis=1)
    parts = [Part(np.concatenate([upper, upper[::-1] * [1, -1]]))]
    if rng.random() < 0.4:
        for shift in (0.0, 0.18, 0.36)[: rng.integers(1, 4)]:
            parts.append(Part(arc(-0.55 + shift, 0, 0.22, h * 0.6, -60, 60, 10), "shade", True, 0.05))
    return parts + _eye(rng, -0.66, -h * 0.2, rng.uniform(0.07, 0.12))


def _scaly(rng: np.random.Generator) -> list[Part]:
    h, accent = rng.uniform(0.5, 0.72), _accent(rng)
    dorsal = [(x, -h * 0.8 - lift) for x, lift in zip(np.linspace(-0.45, 0.25, 5), (0.1, 0.4, 0.28, 0.4, 0.2))]
    parts = [
        _tail(rng, 0.3, rng.uniform(0.4, 0.65), accent),
        Part(polygon((-0.5, -h * 0.5), *dorsal, (0.2, -h * 0.4)), accent),
        Part(smooth((-0.2, h * 0.8), (0.0, h + 0.25), (0.2, h + 0.15), (0.1, h * 0.6)), accent),
        Part(
            smooth(
                (-0.98, 0),
                (-0.8, -h * 0.7),
                (-0.25, -h),
                (0.25, -h * 0.65),
                (0.5, 0),
                (0.25, h * 0.65),
                (-0.25, h),
                (-0.8, h * 0.7),
            )
        ),
    ]
    scale = arc(0, 0, 0.1, 0.12, -80, 80, 7)
    paint = ("shade", "tint", "dark")[rng.integers(3)]
    for row in range(-1, 2):
        for x in np.arange(-0.3, 0.3, 0.2) + 0.1 * (row % 2):
            parts.append(Part(scale + [x, row * h * 0.45], paint, True, 0.035))
    if rng.random() < 0.5:
        parts.append(Part(ellipse(-0.97, h * 0.12, 0.08, 0.07, 16), (235, 110, 110), True))
    return parts + _eye(rng, -0.66, -h * 0.25, rng.uniform(0.11, 0.17))
