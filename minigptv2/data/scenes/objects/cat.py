"""Cat: face with ears and whiskers, sitting from the front, sitting in profile, walking in profile."""

from dataclasses import replace

import numpy as np

from .sketch import Part, arc, ellipse, mirrored, polygon, rectangle, smooth

PINK = (240, 150, 160)


def cat(rng: np.random.Generator) -> list[Part]:
    """Looking left where it is in profile, in half of the cases mirrored."""
    parts = (_face, _sitting, _profile, _walking)[rng.choice(4, p=(0.35, 0.25, 0.2, 0.2))](rng)
    return [replace(part, points=mirrored(part.points)) for part in parts] if rng.random() < 0.5 else parts


def _placed(parts: list[Part], x: float, y: float, size: float) -> list[Part]:
    return [replace(p, points=p.points * size + [x, y], width=p.width and p.width * size) for p in parts]


def _head(rng: np.random.Generator) -> list[Part]:
    """The face, about two units wide."""
    rx, ry = rng.uniform(0.85, 1.0), rng.uniform(0.68, 0.85)
    inner, outer, tip = rng.uniform(0.2, 0.35), rng.uniform(0.85, 0.97), rng.uniform(-1.35, -1.05)
    ear = polygon((rx * inner, -ry * 0.75), (rx * rng.uniform(0.62, 0.9), tip), (rx * outer, -ry * 0.1))
    middle = ear.mean(0) + [0, 0.05]
    lining = (ear - middle) * 0.55 + middle
    lining_paint = (PINK, "shade", "tint", "dark")[rng.integers(4)]
    parts = [
        Part(ear),
        Part(mirrored(ear)),
        Part(lining, lining_paint, True),
        Part(mirrored(lining), lining_paint, True),
        Part(ellipse(0, 0, rx, ry)),
    ]
    if rng.random() < 0.35:
        stripe = polygon((-0.05, -ry * 0.97), (0.05, -ry * 0.97), (0, -ry * 0.5))
        parts += [Part(stripe + [x, abs(x) * 0.25], "shade", True) for x in (-0.2, 0, 0.2)]
    if rng.random() < 0.35:
        parts.append(Part(ellipse(0, ry * 0.45, 0.38, ry * 0.38), ("tint", (255, 255, 255))[rng.integers(2)], True))
    parts += _eyes(rng, rx * rng.uniform(0.38, 0.48), -ry * rng.uniform(0.0, 0.2))
    y = ry * rng.uniform(0.2, 0.35)
    parts.append(Part(polygon((-0.11, y), (0.11, y), (0, y + 0.11)), (PINK, "dark")[rng.integers(2)]))
    mouth = np.concatenate([arc(-0.13, y + 0.1, 0.13, 0.14, 170, 0, 8), arc(0.13, y + 0.1, 0.13, 0.14, 180, 10, 8)])
    parts.append(Part(mouth, "dark", True, 0.045))
    thick, far, hidden = rng.uniform(0.03, 0.05), rng.uniform(0.95, 1.25), rng.random() < 0.2
    paint = ("dark", "dark", (255, 255, 255))[rng.integers(3)]
    for side in (-1, 1):
        for rise in (-0.14, 0.0, 0.14)[: rng.integers(2, 4)]:
            whisker = polygon((side * 0.42, y + 0.08 + rise * 0.5), (side * far, y + 0.06 + rise * 1.5))
            parts.append(Part(whisker, paint, hidden, thick))
    return parts


def _eyes(rng: np.random.Generator, apart: float, y: float) -> list[Part]:
    """Dots, slit pupils in coloured eyes, or closed arcs."""
    look = rng.integers(3)
    if look == 0:
        return [Part(ellipse(side * apart, y, 0.1, rng.uniform(0.1, 0.16), 16), "dark") for side in (-1, 1)]
    if look == 1:
        iris = ((180, 220, 80), (250, 210, 60), (255, 255, 255), (120, 200, 220))[rng.integers(4)]
        return [
            part
            for side in (-1, 1)
            for part in (
                Part(ellipse(side * apart, y, 0.18, 0.2, 20), iris),
                Part(ellipse(side * apart, y, 0.07, 0.16, 16), "dark"),
            )
        ]
    up = rng.random() < 0.5
    return [
        Part(arc(side * apart, y, 0.17, 0.15, *((190, 350) if up else (10, 170)), 10), "dark", width=0.065)
        for side in (-1, 1)
    ]


def _face(rng: np.random.Generator) -> list[Part]:
    return _placed(_head(rng), 0, 0.15, 0.85)


def _sitting(rng: np.random.Generator) -> list[Part]:
    """From the front: a pear-shaped body, two forelegs, the tail round one side."""
    w, size = rng.uniform(0.45, 0.6), rng.uniform(0.4, 0.52)
    neck = -0.95 + size * 1.7
    tall = rng.uniform(0.1, 0.6)
    tail = smooth(
        (w * 0.5, 0.95),
        (w + 0.2, 0.9),
        (w + 0.35, 0.5),
        (w + 0.2, tall - 0.2),
        (w + 0.3, tall - 0.32),
        (w + 0.48, tall - 0.1),
        (w + 0.52, 0.6),
        (w + 0.3, 1.0),
    )
    body = smooth(
        (-0.2, neck),
        (-w * 0.75, 0.3),
        (-w, 0.75),
        (-w * 0.8, 1),
        (w * 0.8, 1),
        (w, 0.75),
        (w * 0.75, 0.3),
        (0.2, neck),
        n=6,
    )
    parts = [Part(tail, ("body", "shade")[rng.integers(2)]), Part(body)]
    if rng.random() < 0.5:
        parts.append(Part(ellipse(0, neck + 0.45, w * 0.4, 0.32, 24), ("tint", (255, 255, 255))[rng.integers(2)], True))
    if rng.random() < 0.6:
        parts += [Part(rectangle(side * 0.02, 0.4, side * w * 0.45, 1.02, 0.1), "body") for side in (-1, 1)]
    else:
        parts += [Part(polygon((x * w, 0.5), (x * w, 1)), "shade", True, 0.04) for x in (-0.4, 0, 0.4)]
    return parts + _placed(_head(rng), 0, -1 + size * 1.2, size)


def _profile(rng: np.random.Generator) -> list[Part]:
    """Sitting, seen from the side: upright chest, round haunch, tail on the ground or raised behind."""
    if rng.random() < 0.5:
        tail = smooth((0.4, 0.85), (0.75, 0.9), (1.0, 0.7), (1.12, 0.75), (0.95, 1.0), (0.4, 1.02))
    else:
        tail = smooth(
            (0.4, 0.9), (0.68, 0.75), (0.72, 0.3), (0.68, 0.0), (0.78, -0.12), (0.9, 0.05), (0.9, 0.7), (0.6, 1.0)
        )
    back = rng.uniform(-0.1, 0.1)
    body = smooth(
        (-0.5, -0.35),
        (-0.42, 0.2),
        (-0.38, 0.7),
        (-0.5, 0.98),
        (0.4, 1.0),
        (0.62, 0.75),
        (0.48, 0.3 + back),
        (0.15, -0.2 + back),
        (0.0, -0.5),
    )
    parts = [Part(tail), Part(body)]
    parts.append(Part(arc(0.28, 0.72, 0.27, 0.28, 150, 300, 12), "shade", True, 0.045))
    parts.append(Part(polygon((-0.2, 0.5), (-0.2, 0.97)), "shade", True, 0.045))
    if rng.random() < 0.4:
        return parts + _placed(_head(rng), -0.25, -0.48, 0.42)
    return parts + _placed(_side_head(rng), -0.25, -0.5, 0.42)


def _side_head(rng: np.random.Generator) -> list[Part]:
    """A head in profile, looking left, about two units wide."""
    head = smooth(
        (-1, 0.25), (-0.72, -0.15), (-0.35, -0.65), (0.3, -0.75), (0.8, -0.2), (0.65, 0.5), (0.0, 0.72), (-0.7, 0.55)
    )
    ear = polygon((-0.3, -0.5), (-0.08, -1.25), (0.35, -0.6))
    parts = [
        Part(ear + [0.42, 0.08], "shade"),
        Part(ear),
        Part(head),
        Part(ellipse(-0.35, -0.1, 0.11, 0.14, 16), "dark"),
        Part(polygon((-1.02, 0.18), (-0.8, 0.15), (-0.9, 0.32)), (PINK, "dark")[rng.integers(2)]),
    ]
    return parts + [
        Part(polygon((-0.55, 0.3), (-0.95 + rise * 0.3, 0.42 + rise)), "dark", True, 0.05) for rise in (0, 0.18, 0.36)
    ]


def _walking(rng: np.random.Generator) -> list[Part]:
    low, leg, step = rng.uniform(0.25, 0.4), rng.uniform(0.14, 0.18), rng.uniform(0.0, 0.15)
    lift, bend = rng.uniform(-0.95, -0.5), rng.uniform(-0.1, 0.25)
    tail = smooth(
        (0.5, -0.12),
        (0.75, -0.2),
        (0.82, lift + 0.3),
        (0.85 + bend, lift),
        (0.97 + bend, lift + 0.03),
        (0.96, lift + 0.4),
        (0.85, -0.02),
        (0.6, 0.15),
    )
    foot = polygon((-leg / 2, -0.1), (leg / 2, -0.1), (leg * 0.4, 0.85 - low), (-leg * 0.7, 0.85 - low))
    parts = [Part(tail)]
    for x, shift, paint in ((-0.3, 0.12, "shade"), (0.45, 0.1, "shade"), (-0.42, -0.08, "body"), (0.58, -0.05, "body")):
        slant = foot + np.outer((foot[:, 1] > 0), [shift + np.sign(shift) * step, 0])
        parts.append(Part(slant + [x, low], paint))
    parts.append(
        Part(
            smooth(
                (-0.55, -0.2),
                (-0.1, -0.18),
                (0.4, -0.22),
                (0.7, 0.0),
                (0.66, low),
                (0.2, low - 0.02),
                (-0.4, low + 0.03),
                (-0.6, 0.1),
            )
        )
    )
    if rng.random() < 0.4:
        stripe = polygon((-0.04, -0.16), (0.06, -0.16), (0.02, 0.12))
        parts += [Part(stripe + [x, 0], "shade", True) for x in (-0.1, 0.12, 0.34)]
    head = _head(rng) if rng.random() < 0.5 else _side_head(rng)
    return parts + _placed(head, -0.62, -0.35, rng.uniform(0.36, 0.44))
