"""Hearts: the classic curve, two round lobes over straight sides, a plump one, a slim one leaning to a side."""

import numpy as np

from .sketch import Part, arc, ellipse, mirrored, smooth, turned


def _classic() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 16


def _lobes(rng: np.random.Generator) -> np.ndarray:
    """Two circles and the tangents from them to the tip."""
    r = rng.uniform(0.5, 0.54)
    right = arc(1 - r, -0.4, r, r, -180 + np.degrees(np.arccos((1 - r) / r)), 40)
    tip = np.array([[0, rng.uniform(0.75, 1.0)]])
    return np.concatenate([right, tip, mirrored(right)[::-1]])


def _curved(rng: np.random.Generator, blunt: float) -> np.ndarray:
    """A curve by hand; `blunt` is the half width of the tip."""
    dip = rng.uniform(-0.55, -0.3)
    right = [(0.06, dip - 0.06), (0.3, -0.78), (0.62, -0.82), (0.93, -0.52), (0.92, -0.1), (0.55, 0.42), (blunt, 0.86)]
    half = np.concatenate([[[0, dip]], smooth(*right, closed=False)])
    tip = [[0, 0.95]] if blunt < 0.1 else smooth((blunt, 0.86), (0, 0.93), (-blunt, 0.86), closed=False)
    return np.concatenate([half, tip, mirrored(half)[::-1]])


def heart(rng: np.random.Generator) -> list[Part]:
    variant = rng.integers(4)
    if variant == 0:
        outline = _classic() * [1, rng.uniform(0.85, 1.15)]
    elif variant == 1:
        outline = _lobes(rng) * [1, rng.uniform(0.85, 1.1)]
    elif variant == 2:
        outline = _curved(rng, rng.uniform(0.12, 0.22)) * [rng.uniform(1.0, 1.2), 0.95]
    else:
        outline = turned(_curved(rng, 0.03) * [rng.uniform(0.75, 0.95), 1.05], rng.uniform(-20, 20))
    parts = [Part(outline)]
    look = rng.random()
    if look < 0.25:
        shine = turned(ellipse(0, 0, rng.uniform(0.1, 0.16), rng.uniform(0.16, 0.24), 16), 40) + [-0.5, -0.42]
        parts.append(Part(shine, "tint", detail=True))
    elif look < 0.45:
        shine = arc(-0.48, -0.33, 0.3, 0.3, 175, 265, 10)
        parts.append(Part(shine, "tint", detail=True, width=rng.uniform(0.07, 0.13)))
    elif look < 0.6:
        parts.append(Part(outline * rng.uniform(0.55, 0.78), "tint", detail=True))
    elif look < 0.72 and variant < 3:
        parts.append(Part(outline[outline[:, 0] >= -1e-9], "shade", detail=True))
    return parts
