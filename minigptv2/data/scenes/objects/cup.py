"""Cups: straight mug, mug seen from above its rim, teacup on a saucer, takeaway cup with a lid, cup with a straw."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, rectangle, star_points

DRINKS = ((95, 55, 30), (150, 95, 50), (60, 35, 25), (190, 130, 60))


def _steam(rng: np.random.Generator, y: float) -> list[Part]:
    t = np.linspace(0, 1, 14)
    height, sway = rng.uniform(0.3, 0.45), rng.uniform(0.05, 0.09)
    xs = (-0.25, 0.0, 0.25) if rng.random() < 0.6 else (-0.15, 0.15)
    return [
        Part(
            np.stack([x + sway * np.sin(2 * np.pi * t), y - height * t], axis=1),
            (185, 190, 200),
            detail=True,
            width=0.06,
        )
        for x in xs
    ]


def _handle(rng: np.random.Generator, x: float, y: float, rx: float, ry: float) -> Part:
    paint = "body" if rng.random() < 0.6 else "shade"
    width = rng.uniform(0.11, 0.18)
    if rng.random() < 0.3:
        return Part(polygon((x, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x, y + ry)), paint, width=width)
    return Part(arc(x, y, rx, ry, -100, 100), paint, width=width)


def _mug(rng: np.random.Generator) -> list[Part]:
    """Straight from the side."""
    w, foot = rng.uniform(0.55, 0.72), rng.uniform(0.85, 1.0)
    h = rng.uniform(0.6, 0.8)
    r = rng.uniform(0.05, 0.3)
    lower = np.concatenate([arc(w * foot - r, h - r, r, r, 0, 90, 8), arc(-w * foot + r, h - r, r, r, 90, 180, 8)])
    body = np.concatenate([polygon((-w, -h), (w, -h)), lower])
    parts = [_handle(rng, w * 0.95, -0.02, rng.uniform(0.28, 0.38), h * rng.uniform(0.45, 0.62)), Part(body)]
    look = rng.random()
    if look < 0.3:
        parts.append(Part(rectangle(-w * 0.97, -0.12, w * 0.97, 0.14), "tint", detail=True))
    elif look < 0.5:
        parts.append(Part(star_points(5, 0.1, 0.22), "tint", detail=True))
    elif look < 0.75:
        parts.append(Part(rectangle(-w * 1.03, -h, w * 1.03, -h + 0.1, 0.04), "shade", detail=True))
    return parts + (_steam(rng, -h - 0.1) if rng.random() < 0.6 else [])


def _rimmed(rng: np.random.Generator) -> list[Part]:
    """Seen a little from above, so that the drink shows."""
    w, h, ry = rng.uniform(0.58, 0.7), rng.uniform(0.5, 0.72), rng.uniform(0.13, 0.22)
    foot = w * rng.uniform(0.75, 1.0)
    body = np.concatenate([polygon((-w, -h), (w, -h)), arc(0, h, foot, ry * 0.9, 0, 180, 20)])
    parts = [
        _handle(rng, w * 0.92, 0.05, rng.uniform(0.3, 0.4), h * rng.uniform(0.45, 0.6)),
        Part(body),
        Part(ellipse(0, -h, w, ry, 32), "tint" if rng.random() < 0.6 else "shade"),
        Part(ellipse(0, -h + 0.03, w * 0.86, ry * 0.72, 32), DRINKS[rng.integers(4)]),
        Part(rectangle(-w * 0.72, -h * 0.5, -w * 0.58, h * 0.6, 0.06), "tint", detail=True),
    ]
    return parts + (_steam(rng, -h - 0.2) if rng.random() < 0.5 else [])


def _teacup(rng: np.random.Generator) -> list[Part]:
    """A bowl on a saucer."""
    w, deep, top = rng.uniform(0.62, 0.75), rng.uniform(0.65, 0.85), -0.3
    bowl = arc(0, top, w, deep, 0, 180)
    bowl = np.concatenate([bowl, [[-w * 1.04, top - 0.08], [w * 1.04, top - 0.08]]])
    bottom = top + deep
    saucer = ellipse(0, bottom + 0.07, rng.uniform(0.85, 1.0), rng.uniform(0.08, 0.15), 32)
    parts = [
        Part(saucer, "shade" if rng.random() < 0.6 else "tint"),
        Part(
            arc(w * 0.9, top + deep * 0.32, rng.uniform(0.24, 0.32), deep * 0.3, -110, 110),
            "body",
            width=rng.uniform(0.09, 0.13),
        ),
        Part(bowl),
        Part(rectangle(-w * 0.4, bottom - 0.05, w * 0.4, bottom + 0.05), "shade"),
    ]
    if rng.random() < 0.55:
        ry = rng.uniform(0.1, 0.17)
        parts += [
            Part(ellipse(0, top - 0.08, w * 1.04, ry, 32), "tint"),
            Part(ellipse(0, top - 0.06, w * 0.9, ry * 0.7, 32), DRINKS[rng.integers(4)]),
        ]
    elif rng.random() < 0.6:
        parts.append(Part(polygon((-w, top + 0.1), (w, top + 0.1)), "tint", detail=True, width=0.07))
    return parts + (_steam(rng, top - 0.25) if rng.random() < 0.6 else [])


def _takeaway(rng: np.random.Generator) -> list[Part]:
    """A paper cup with a flat lid and often a sleeve."""
    w, foot, lid = rng.uniform(0.5, 0.6), rng.uniform(0.36, 0.44), rng.uniform(0.12, 0.2)
    y = -0.6

    def half(v: float) -> float:
        return w + (foot - w) * (v - y) / (1 - y)

    cover = "dark" if rng.random() < 0.4 else "shade" if rng.random() < 0.5 else (245, 245, 240)
    parts = [
        Part(polygon((-w, y), (w, y), (foot, 1), (-foot, 1))),
        Part(rectangle(-w - 0.07, y - lid, w + 0.07, y, 0.05), cover),
        Part(polygon((-w * 0.85, y - lid - 0.14), (w * 0.85, y - lid - 0.14), (w, y - lid), (-w, y - lid)), cover),
    ]
    a, b = rng.uniform(-0.25, -0.1), rng.uniform(0.35, 0.55)
    sleeve = ("shade", "tint", (190, 145, 95))[rng.integers(3)]
    top, low = half(a) + 0.02, half(b) + 0.02
    return [*parts, Part(polygon((-top, a), (top, a), (low, b), (-low, b)), sleeve, detail=True)]


def _soda(rng: np.random.Generator) -> list[Part]:
    """A tapering cup with a lid and a bent straw."""
    w, foot, y = rng.uniform(0.48, 0.6), rng.uniform(0.33, 0.42), -0.4
    side = rng.choice([-1, 1])
    straw = ((235, 60, 60), (240, 240, 240), "dark", "tint")[rng.integers(4)]
    bend = polygon((0, y), (0.1 * side, -0.95), (0.42 * side, -1.08))
    parts = [
        Part(bend, straw, width=rng.uniform(0.07, 0.11)),
        Part(polygon((-w, y), (w, y), (foot, 1), (-foot, 1))),
        Part(rectangle(-w - 0.07, y - 0.14, w + 0.07, y, 0.05), "tint" if rng.random() < 0.5 else (240, 240, 240)),
    ]
    if rng.random() < 0.5:
        stripes = [
            polygon((w * k - 0.05, y), (w * k + 0.05, y), (foot * k + 0.04, 1), (foot * k - 0.04, 1))
            for k in (-0.6, 0, 0.6)
        ]
        return [*parts, *(Part(s, (250, 250, 250), detail=True) for s in stripes)]
    return [*parts, Part(ellipse(0, 0.25, 0.24, n=24), "tint", detail=True)]


def cup(rng: np.random.Generator) -> list[Part]:
    parts = (_mug, _rimmed, _teacup, _takeaway, _soda)[rng.choice(5, p=[0.25, 0.22, 0.23, 0.15, 0.15])](rng)
    return parts if rng.random() < 0.6 else [Part(p.points * [-1, 1], p.paint, p.detail, p.width) for p in parts]
