"""Trees: round or egg-shaped crown, several-lobed crown, conifer in tiers, palm."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, smooth, turned

BARK = ((120, 75, 45), (95, 60, 40), (150, 100, 60), (110, 85, 70), (80, 50, 35))


def _trunk(rng: np.random.Generator, top: float, width: float) -> Part:
    flare = width * rng.uniform(1.0, 1.7)
    shape = smooth((width * 0.8, top), (width * 0.9, (top + 1) / 2), (flare, 1), closed=False)
    return Part(np.concatenate([shape, shape[::-1] * [-1, 1]]), BARK[rng.integers(len(BARK))])


def _round(rng: np.random.Generator) -> list[Part]:
    rx, ry = rng.uniform(0.55, 0.9), rng.uniform(0.6, 0.8)
    cy = -1 + ry
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    bumps = int(rng.integers(8, 14)) if rng.random() < 0.4 else 0
    reach = 1 + 0.06 * np.abs(np.sin(bumps * t / 2)) if bumps else np.ones_like(t)
    egg = rng.uniform(-0.18, 0.18) * np.sin(t)
    crown = np.stack([rx * reach * np.cos(t) * (1 + egg), cy + ry * reach * np.sin(t)], axis=1)
    trunk = _trunk(rng, cy, rng.uniform(0.09, 0.16))
    parts = [trunk, Part(crown)]
    if rng.random() < 0.4:
        fork = [
            polygon((0, cy + ry), (0, cy + ry * 0.2)),
            polygon((0, cy + ry * 0.7), (rx * 0.35, cy + ry * 0.3)),
            polygon((0, cy + ry * 0.85), (-rx * 0.35, cy + ry * 0.45)),
        ]
        parts += [Part(line, trunk.paint, detail=True, width=0.07) for line in fork]
    else:
        light = ellipse(-rx * 0.3, cy - ry * 0.3, rx * rng.uniform(0.25, 0.45), ry * 0.3, 20)
        parts.append(Part(light, "tint", detail=True))
    return parts


def _lobed(rng: np.random.Generator) -> list[Part]:
    """A crown of several round clumps of leaves, drawn as one outline."""
    low, count = rng.uniform(-0.15, 0.0), int(rng.integers(5, 9))
    around = np.linspace(0, 2 * np.pi, count, endpoint=False) + (np.pi / 2 if rng.random() < 0.5 else rng.uniform(0, 1))
    reach = rng.uniform(0.4, 0.5, count)
    x, y, r = reach * np.cos(around), reach * np.sin(around), rng.uniform(0.8, 1.05, count) * 2.2 / count
    r = np.maximum(r, reach * np.sin(np.pi / count) * 1.25)
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)[:, None]
    along, aside = x * np.cos(t) + y * np.sin(t), x * np.sin(t) - y * np.cos(t)
    far = np.max(np.where(np.abs(aside) < r, along + np.sqrt(np.maximum(r**2 - aside**2, 0)), 0), axis=1)
    crown = np.stack([rng.uniform(0.95, 1.25) * far * np.cos(t[:, 0]), far * np.sin(t[:, 0])], axis=1) + [0, low - 0.25]
    parts = [_trunk(rng, low, rng.uniform(0.1, 0.17)), Part(crown)]
    if rng.random() < 0.5:
        parts.append(Part(arc(-0.05, low - 0.2, 0.5, 0.4, 20, 110), "shade", detail=True, width=0.06))
        parts.append(Part(arc(-0.15, low - 0.3, 0.4, 0.3, 200, 270), "shade", detail=True, width=0.06))
    look = rng.random()
    spots = ((-0.45, low - 0.05), (0.1, low - 0.55), (0.42, low - 0.2), (-0.1, low - 0.1))
    if look < 0.3:
        fruit = ((220, 50, 45), (250, 170, 50), (250, 220, 230))[rng.integers(3)]
        parts += [Part(ellipse(x, y, 0.08, n=14), fruit, detail=True) for x, y in spots]
    elif look < 0.7:
        parts += [Part(ellipse(x - 0.05, y - 0.05, 0.2, 0.13, 16), "tint", detail=True) for x, y in spots[:3]]
    return parts


def _conifer(rng: np.random.Generator) -> list[Part]:
    tiers = int(rng.integers(1, 5))
    w, foot = rng.uniform(0.5, 0.85), rng.uniform(0.6, 0.75)
    reach = (foot + 1) / (1 + 0.62 * (tiers - 1))
    sag = rng.choice([0.0, 0.06, 0.12]) if tiers > 1 else 0.0
    parts = [_trunk(rng, foot - 0.1, rng.uniform(0.08, 0.15))]
    banded = rng.random() < 0.4
    for k in range(tiers):
        bottom = foot - 0.62 * reach * k
        half = w * (1 - 0.55 * k / max(tiers - 1, 1)) if tiers > 1 else w
        tier = smooth(
            (half, bottom - sag),
            (half * 0.5, bottom),
            (0, bottom + sag / 2),
            (-half * 0.5, bottom),
            (-half, bottom - sag),
            closed=False,
            n=4,
        )
        parts.append(Part(np.concatenate([tier, [[0, bottom - reach]]]), "shade" if banded and k % 2 == 0 else "body"))
    if tiers == 1:
        ridge = [
            polygon(
                (-w * s, foot - (1 - s) * reach * 0.9),
                (0, foot + 0.06 - (1 - s) * reach * 0.9),
                (w * s, foot - (1 - s) * reach * 0.9),
            )
            for s in (0.3, 0.6)
        ]
        parts += [Part(line * [0.7, 1], "shade", detail=True, width=0.06) for line in ridge]
    return parts


def _palm(rng: np.random.Generator) -> list[Part]:
    lean, w = rng.uniform(-0.4, 0.4), rng.uniform(0.07, 0.11)
    top = np.array([lean, -0.3])
    middle = smooth((0, 1), (lean * 0.25, 0.4), tuple(top), closed=False)
    thin = np.linspace(1.5, 0.9, len(middle))[:, None] * [w, 0]
    trunk = Part(np.concatenate([middle + thin, (middle - thin)[::-1]]), BARK[rng.integers(len(BARK))])
    length, droop = rng.uniform(0.75, 0.95), rng.uniform(0.1, 0.3)
    frond = smooth(
        (0, 0.08),
        (length * 0.35, -0.2),
        (length * 0.75, -0.12),
        (length, droop + 0.1),
        (length * 0.7, 0.1),
        (length * 0.35, 0.08),
    )
    flip = [-1, 1]
    shapes = [
        turned(frond, 48),
        turned(frond * flip, -48),
        turned(frond, 8),
        turned(frond * flip, -8),
        turned(frond, -40),
        turned(frond * flip, 40),
    ]
    if rng.random() < 0.5:
        shapes.append(turned(frond * 0.85, -75))
    parts = [trunk, *(Part(s + top, "shade" if k < 2 else "body") for k, s in enumerate(shapes))]
    nuts = [Part(ellipse(lean + x, -0.2, 0.09, n=14), (105, 65, 40), detail=True) for x in (-0.09, 0.09)]
    return [*parts, *nuts]


def tree(rng: np.random.Generator) -> list[Part]:
    return (_round, _lobed, _conifer, _palm)[rng.choice(4, p=[0.3, 0.27, 0.28, 0.15])](rng)
