"""Boat: sailing boat, yacht under tall sails, rowing boat with oars, steamer with funnels, motor boat, paper boat."""

from dataclasses import replace

import numpy as np

from .sketch import Part, ellipse, mirrored, polygon, rectangle, smooth

WOODS = ((130, 85, 45), (100, 65, 40), (180, 130, 80), (90, 90, 95))


def boat(rng: np.random.Generator) -> list[Part]:
    """Drawn with the bow to the right, in half of the cases mirrored."""
    variants = (_sailing, _yacht, _rowing, _steamer, _motor, _paper)
    parts = variants[rng.choice(6, p=(0.25, 0.2, 0.15, 0.15, 0.15, 0.1))](rng)
    if rng.random() < 0.5:
        return parts
    return [replace(part, points=mirrored(part.points)) for part in parts]


def _hull(rng: np.random.Generator, top: float, bottom: float, length: float) -> np.ndarray:
    if rng.random() < 0.5:
        stern, bow = rng.uniform(0.65, 0.9), rng.uniform(0.55, 0.8)
        return polygon((-length, top), (length, top), (length * bow, bottom), (-length * stern, bottom))
    return np.concatenate(
        [
            polygon((-length, top)),
            smooth(
                (length, top),
                (length * 0.8, (top + bottom) / 2 + 0.08),
                (length * 0.45, bottom),
                (-length * 0.5, bottom),
                (-length * 0.85, (top + bottom) / 2 + 0.05),
                (-length, top),
                closed=False,
            ),
        ]
    )


def _sail(
    rng: np.random.Generator, foot: tuple[float, float], head: tuple[float, float], end: tuple[float, float], paint: str
) -> Part:
    """A triangle at the mast whose free edge may bulge."""
    bulge = rng.choice((0.0, rng.uniform(0.05, 0.14)))
    middle = ((head[0] + end[0]) / 2 + np.sign(end[0] - foot[0]) * bulge, (head[1] + end[1]) / 2)
    return Part(np.concatenate([polygon(foot), smooth(head, middle, end, closed=False)]), paint)


def _sailing(rng: np.random.Generator) -> list[Part]:
    top, mast, length = rng.uniform(0.42, 0.58), rng.uniform(-0.15, 0.15), rng.uniform(0.65, 0.95)
    wood = WOODS[rng.integers(len(WOODS))]
    sails = rng.integers(3)
    sail_paint, hull_paint = (
        ("body", "body"),
        ("body", "shade"),
        ("tint", "body"),
        ("body", wood if sails == 1 else "body"),
    )[rng.choice(4, p=(0.35, 0.2, 0.2, 0.25))]
    head = rng.uniform(-1.0, -0.8)
    parts = [Part(polygon((mast, head - 0.08), (mast, top + 0.05)), wood, width=rng.uniform(0.04, 0.08))]
    gap = rng.uniform(0.04, 0.09)
    low = top - rng.uniform(0.06, 0.14)
    if sails < 2:
        end = (mast + rng.uniform(0.5, 0.75), low)
        parts.append(_sail(rng, (mast + gap, low), (mast + gap, head), end, sail_paint))
    if sails > 0:
        rise = head if sails == 2 else head + rng.uniform(0.05, 0.5)
        parts.append(
            _sail(
                rng,
                (mast - gap, low),
                (mast - gap, rise),
                (mast - rng.uniform(0.45, 0.7), low),
                sail_paint if sails == 2 or rng.random() < 0.7 else "tint",
            )
        )
    parts.append(Part(_hull(rng, top, rng.uniform(0.9, 1.0), length), hull_paint))
    if rng.random() < 0.5:
        stripe = polygon((-length * 0.9, top + 0.11), (length * 0.9, top + 0.11))
        parts.append(Part(stripe, (255, 255, 255), True, 0.05))
    if rng.random() < 0.3:
        flag = polygon((mast, head - 0.08), (mast - 0.22, head - 0.15), (mast, head - 0.22))
        parts.append(Part(flag, ("body", (220, 60, 60))[rng.integers(2)], True))
    return parts


def _yacht(rng: np.random.Generator) -> list[Part]:
    """A shallow hull under two sails that reach almost from end to end and may be striped across."""
    top, mast, length = rng.uniform(0.7, 0.86), rng.uniform(-0.05, 0.3), rng.uniform(0.7, 0.95)
    hull: str | tuple[int, int, int] = ("body", "shade", (240, 240, 240), WOODS[rng.integers(len(WOODS))])[
        rng.integers(4)
    ]
    foot, gap = top - rng.uniform(0.04, 0.1), rng.uniform(0.02, 0.06)
    parts = [Part(polygon((mast, -1), (mast, top)), WOODS[rng.integers(len(WOODS))], width=rng.uniform(0.02, 0.05))]
    stripe = ("tint", "shade", (255, 255, 255))[rng.integers(3)]
    striped = rng.random() < 0.5
    for side, head, far in (
        (-1, rng.uniform(-1.0, -0.85), -length * rng.uniform(0.85, 1.0)),
        (1, rng.uniform(-0.95, -0.5), length * rng.uniform(0.7, 0.95)),
    ):
        near, bulge = mast + side * gap, rng.uniform(0.0, 0.22) * abs(far - mast)
        u = np.linspace(0, 1, 40)[:, None]  # from the head to the far end
        leech = np.array([[near, head]]) * (1 - u) + np.array([[far, foot]]) * u
        leech[:, 0] += side * bulge * np.sin(np.pi * u[:, 0])
        parts.append(Part(np.concatenate([polygon((near, foot)), leech]), "body"))
        bands = int(rng.integers(4, 8))
        for band in range(1, bands, 2) if striped else ():
            low, high = head + (foot - head) * np.array([band, band + 1]) / bands
            edge = leech[(leech[:, 1] >= low) & (leech[:, 1] <= high)]
            if len(edge):
                parts.append(Part(np.concatenate([polygon((near, high), (near, low)), edge]), stripe))
    bow = length * rng.uniform(1.0, 1.08)
    parts.append(Part(polygon((-length, top), (bow, top), (length * 0.85, 1), (-length * 0.9, 1)), hull))
    if rng.random() < 0.5:
        parts.append(Part(polygon((-length * 0.95, top + 0.1), (bow * 0.93, top + 0.1)), (60, 90, 150), True, 0.04))
    return parts


def _rowing(rng: np.random.Generator) -> list[Part]:
    """From the side and a little from above: the inside, two benches, oars."""
    rise, deep, wood = rng.uniform(0.1, 0.25), rng.uniform(0.4, 0.55), WOODS[rng.integers(3)]
    rim = smooth((-1, -rise), (-0.5, 0.02), (0, 0.07), (0.5, 0.02), (1, -rise), closed=False)
    far = smooth((1, -rise), (0.5, -rise * 0.9), (0, -rise * 0.8), (-0.5, -rise * 0.9), (-1, -rise), closed=False)
    keel = smooth(
        (1, -rise), (0.8, deep * 0.5), (0.5, deep), (-0.5, deep), (-0.85, deep * 0.5), (-1, -rise), closed=False
    )
    parts = [
        Part(np.concatenate([rim, far]), "shade"),
        Part(rectangle(-0.4, -0.08, -0.2, 0.06), wood, True),
        Part(rectangle(0.2, -0.08, 0.4, 0.06), wood, True),
        Part(np.concatenate([rim, keel])),
    ]
    if rng.random() < 0.5:
        parts.append(Part(polygon((-0.8, deep * 0.5), (0.8, deep * 0.5)), "shade", True, 0.04))
    for x in (0.0, 0.5)[: rng.integers(1, 3)]:
        tip = (x - rng.uniform(0.5, 0.8), deep + rng.uniform(0.15, 0.3))
        parts.append(Part(polygon((x + 0.15, -0.35), tip), wood, width=0.06))
        parts.append(
            Part(
                polygon(
                    (tip[0] + 0.12, tip[1] - 0.16),
                    (tip[0] + 0.16, tip[1] - 0.02),
                    (tip[0] - 0.1, tip[1] + 0.18),
                    (tip[0] - 0.16, tip[1] + 0.06),
                ),
                wood,
            )
        )
    return parts


def _steamer(rng: np.random.Generator) -> list[Part]:
    top, bottom = rng.uniform(0.1, 0.25), rng.uniform(0.65, 0.8)
    cabin = ((215, 218, 222), "tint", "tint", "shade")[rng.integers(4)]
    funnels, funnel_top = int(rng.integers(1, 4)), rng.uniform(-0.8, -0.6)
    parts = []
    for x in np.linspace(-0.3, 0.25, funnels) if funnels > 1 else (rng.uniform(-0.25, 0.1),):
        parts.append(Part(rectangle(x - 0.1, funnel_top, x + 0.1, -0.1), "body"))
        parts.append(Part(rectangle(x - 0.1, funnel_top + 0.1, x + 0.1, funnel_top + 0.22), (255, 255, 255), True))
        parts.append(Part(rectangle(x - 0.1, funnel_top, x + 0.1, funnel_top + 0.08), "dark", True))
    if rng.random() < 0.5:
        parts.append(Part(rectangle(-0.42, top - 0.42, 0.4, top - 0.2), cabin))
    parts.append(Part(rectangle(-0.62, top - 0.24, 0.55, top + 0.02), cabin))
    hull = polygon((-0.95, top), (0.45, top), (0.6, top - 0.14), (1, top - 0.16), (0.72, bottom), (-0.78, bottom))
    parts.append(Part(hull))
    for x in np.linspace(-0.5, 0.4, int(rng.integers(3, 6))):
        parts.append(Part(ellipse(x, top - 0.11, 0.055, n=14), (120, 180, 220), True))
        parts.append(Part(ellipse(x, top + 0.18, 0.06, n=14), (255, 255, 255), True))
    if rng.random() < 0.5:
        waterline = polygon((-0.82, bottom - 0.13), (0.77, bottom - 0.13), (0.72, bottom), (-0.78, bottom))
        parts.append(Part(waterline, "shade", True))
    if rng.random() < 0.4:
        for i, size in enumerate((0.09, 0.13, 0.17)):
            parts.append(Part(ellipse(-0.3 - 0.2 * i, funnel_top - 0.12 - 0.1 * i, size, n=20), (200, 200, 205), True))
    return parts


def _motor(rng: np.random.Generator) -> list[Part]:
    top, deep = rng.uniform(-0.05, 0.05), rng.uniform(0.35, 0.5)
    glass = ((140, 200, 230), (90, 140, 180), (60, 70, 90))[rng.integers(3)]
    parts = []
    if rng.random() < 0.5:
        roof, cabin = top - rng.uniform(0.4, 0.5), ("tint", "body")[rng.integers(2)]
        high, low = roof + 0.1, top - 0.08
        parts.append(Part(polygon((-0.5, top), (-0.5, roof), (0.1, roof), (0.4, top)), cabin))
        parts.append(Part(rectangle(-0.38, high, -0.17, low), glass))
        parts.append(Part(polygon((-0.07, low), (-0.07, high), (0.06, high), (0.24, low)), glass))
    else:
        shield = polygon((0.4, top + 0.02), (0.02, top - 0.32), (-0.06, top - 0.3), (0.02, top + 0.02))
        parts.append(Part(shield, glass))
        parts.append(Part(rectangle(-0.5, top - 0.16, -0.25, top + 0.05, 0.06), "shade"))
    if rng.random() < 0.6:
        parts.append(Part(rectangle(-1, top - 0.15, -0.82, top + 0.3, 0.05), (70, 70, 80)))
    hull = smooth((1, top - 0.12), (0.75, top + deep * 0.55), (0.45, top + deep), closed=False)
    parts.append(Part(np.concatenate([hull, polygon((-0.82, top + deep), (-0.9, top))])))
    stripe = polygon((-0.88, top + 0.1), (0.88, top + 0.04), (0.82, top + 0.14), (-0.87, top + 0.2))
    parts.append(Part(stripe, ((255, 255, 255), "tint", "shade")[rng.integers(3)], rng.random() < 0.5))
    return parts


def _paper(rng: np.random.Generator) -> list[Part]:
    """Folded of paper: a triangle between two raised ends."""
    peak, edge, deep = rng.uniform(-0.55, -0.3), rng.uniform(-0.1, 0.0), rng.uniform(0.5, 0.62)
    w = rng.uniform(0.35, 0.5)
    return [
        Part(polygon((0, peak), (w, 0.25), (-w, 0.25)), ("shade", "tint")[rng.integers(2)]),
        Part(polygon((-1, edge), (-w * 0.9, 0.15), (0, 0.22), (w * 0.9, 0.15), (1, edge), (0.6, deep), (-0.6, deep))),
        Part(polygon((-0.6, deep), (0, 0.22), (0.6, deep)), "shade", True),
    ]
