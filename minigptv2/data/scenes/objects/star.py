"""Stars: five sharp points, five fat or rounded ones, a four-pointed sparkle, six and eight points, faceted ones."""

import numpy as np

from .sketch import Part, arc, ellipse, smooth, star_points


def _five(rng: np.random.Generator) -> np.ndarray:
    return star_points(5, rng.uniform(0.36, 0.48))


def _fat(rng: np.random.Generator) -> np.ndarray:
    """Every corner, or only the outer ones, rounded by a curve through points beside it."""
    corners = star_points(5, rng.uniform(0.48, 0.6))
    beside = rng.uniform(0.12, 0.3)
    before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
    t = np.linspace(0, 1, 6)[None, :, None]
    start, end = corners + (before - corners) * beside, corners + (after - corners) * beside
    curve = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * corners[:, None] + t**2 * end[:, None]
    if rng.random() < 0.5:
        curve[1::2] = corners[1::2, None]
    return curve.reshape(-1, 2)


def _sparkle(rng: np.random.Generator) -> np.ndarray:
    """Four points, with straight or hollow sides."""
    slim = [rng.uniform(0.65, 1.0), 1]
    if rng.random() < 0.4:
        return star_points(4, rng.uniform(0.22, 0.36)) * slim
    t = np.linspace(0, np.pi / 2, 12, endpoint=False)
    power = rng.uniform(2.9, 4.0)
    quarter = np.stack([np.cos(t) ** power, np.sin(t) ** power], axis=1)
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter, quarter @ turn, -quarter, -quarter @ turn]) * slim


def _many(rng: np.random.Generator) -> np.ndarray:
    return star_points(6, rng.uniform(0.4, 0.58)) if rng.random() < 0.6 else star_points(8, rng.uniform(0.4, 0.6))


def _facets(outline: np.ndarray) -> list[Part]:
    """One side of every spike in shade, as on a nautical star."""
    tips, dips = outline[::2], outline[1::2]
    return [Part(np.stack([tip, dip, np.zeros(2)]), "shade") for tip, dip in zip(tips, dips)]


def _face(rng: np.random.Generator) -> list[Part]:
    x, size = rng.uniform(0.14, 0.2), rng.uniform(0.05, 0.08)
    eyes = [Part(ellipse(side * x, -0.05, size, size * 1.4, 12), "dark", detail=True) for side in (-1, 1)]
    return [*eyes, Part(arc(0, 0.1, 0.15, 0.12, 20, 160, 10), "dark", detail=True, width=0.05)]


def star(rng: np.random.Generator) -> list[Part]:
    variant = rng.choice(5, p=[0.34, 0.27, 0.12, 0.15, 0.12])
    if variant == 4:
        outline = _five(rng) if rng.random() < 0.6 else _many(rng)
        return [Part(outline), *_facets(outline)]
    outline = (_five, _fat, _sparkle, _many)[variant](rng)
    parts = [Part(outline)]
    look = rng.random()
    if look < 0.25:
        parts.append(Part(outline * rng.uniform(0.5, 0.78), "tint", detail=True))
    elif look < 0.45 and variant == 1:
        parts += _face(rng)
    elif look < 0.6 and variant != 2:
        shine = smooth((-0.34, -0.2), (-0.16, -0.3), (-0.06, -0.5), closed=False)
        parts.append(Part(shine, "tint", detail=True, width=0.08))
    return parts
