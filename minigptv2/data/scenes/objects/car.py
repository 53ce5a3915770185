"""Cars: sedan, hatchback, van and beetle from the side, and a car seen from the front."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, rectangle, smooth

GLASS = ((185, 220, 240), (120, 165, 200), (60, 70, 85), (225, 240, 248))
TYRE, LAMP, TAIL = (35, 35, 40), (255, 235, 150), (210, 40, 40)


def _wheels(rng: np.random.Generator, x1: float, x2: float, y: float, r: float) -> list[Part]:
    hub = ((200, 200, 205), (150, 150, 155), (235, 235, 235))[rng.integers(3)]
    share = rng.uniform(0.4, 0.62)
    arched = rng.random() < 0.4
    arches = [Part(ellipse(x, y, r * 1.22, n=28), "shade", detail=True) for x in (x1, x2) if arched]
    tyres = [Part(ellipse(x, y, r, n=28), TYRE) for x in (x1, x2)]
    return [*arches, *tyres, *(Part(ellipse(x, y, r * share, n=20), hub) for x in (x1, x2))]


def _trim(
    rng: np.random.Generator, front: float, back: float, y: float, seam: float, top: float, foot: float
) -> list[Part]:
    """Lamps, the door seam and its handle; the car drives to the left."""
    parts = [
        Part(ellipse(front + 0.07, y, 0.07, 0.06, 14), LAMP, detail=rng.random() < 0.5),
        Part(rectangle(back - 0.09, y - 0.06, back, y + 0.05), TAIL, detail=rng.random() < 0.5),
    ]
    return [
        *parts,
        Part(polygon((seam, top), (seam, foot)), "shade", detail=True, width=0.03),
        Part(polygon((seam + 0.07, top + 0.1), (seam + 0.18, top + 0.1)), "dark", detail=True, width=0.04),
    ]


def _sedan(rng: np.random.Generator) -> list[Part]:
    belt, roof, foot = rng.uniform(-0.1, -0.02), -rng.uniform(0.42, 0.52), rng.uniform(0.26, 0.34)
    a, b = rng.uniform(-0.5, -0.38), rng.uniform(0.42, 0.58)
    hood = belt + rng.uniform(0.02, 0.08)
    body = polygon(
        (-1, foot),
        (-1, hood + 0.12),
        (-0.93, hood + 0.04),
        (a - 0.02, belt),
        (a + 0.26, roof + 0.03),
        (a + 0.34, roof),
        (b - 0.3, roof),
        (b - 0.22, roof + 0.03),
        (b + 0.05, belt),
        (0.94, belt + 0.02),
        (1, belt + 0.1),
        (1, foot),
    )
    glass, middle = GLASS[rng.integers(4)], (a + b) / 2
    windows = [
        polygon((a + 0.1, belt), (a + 0.32, roof + 0.08), (middle - 0.03, roof + 0.08), (middle - 0.03, belt)),
        polygon((middle + 0.03, belt), (middle + 0.03, roof + 0.08), (b - 0.27, roof + 0.08), (b - 0.06, belt)),
    ]
    return [
        Part(body),
        *(Part(w, glass) for w in windows),
        *_trim(rng, -1, 1, belt + 0.15, middle, belt, foot),
        *_wheels(rng, -0.58, 0.58, foot, rng.uniform(0.19, 0.24)),
    ]


def _hatchback(rng: np.random.Generator) -> list[Part]:
    belt, roof, foot = rng.uniform(-0.12, 0), -rng.uniform(0.5, 0.65), rng.uniform(0.3, 0.4)
    nose = rng.uniform(0.02, 0.1)
    body = smooth(
        (-0.95, foot),
        (-0.97, belt + nose + 0.1),
        (-0.85, belt + nose),
        (-0.48, belt - 0.03),
        (-0.15, roof + 0.05),
        (0.15, roof),
        (0.6, roof + 0.06),
        (0.82, belt),
        (0.88, foot - 0.1),
        (0.84, foot),
    )
    glass = GLASS[rng.integers(4)]
    windows = [
        polygon((-0.36, belt), (-0.1, roof + 0.12), (0.13, roof + 0.09), (0.13, belt)),
        polygon((0.2, belt), (0.2, roof + 0.09), (0.5, roof + 0.13), (0.66, belt)),
    ]
    return [
        Part(body),
        *(Part(w, glass) for w in windows),
        *_trim(rng, -0.95, 0.87, belt + 0.17, 0.16, belt, foot),
        *_wheels(rng, -0.52, 0.5, foot, rng.uniform(0.2, 0.26)),
    ]


def _van(rng: np.random.Generator) -> list[Part]:
    belt, roof, foot = rng.uniform(-0.1, 0), -rng.uniform(0.6, 0.75), 0.4
    slope, hood = rng.uniform(0.12, 0.35), rng.uniform(0.0, 0.25)
    body = polygon(
        (-1, foot),
        (-1, belt + 0.1),
        (-0.96 + hood / 4, belt),
        (-0.95 + hood, belt - 0.03),
        (-0.95 + hood + slope, roof + 0.04),
        (-0.88 + hood + slope, roof),
        (0.9, roof),
        (0.97, roof + 0.08),
        (0.98, foot),
    )
    glass = GLASS[rng.integers(4)]
    start = -0.87 + hood
    windows = [
        polygon((start, belt), (start + slope * 0.9, roof + 0.12), (-0.12, roof + 0.12), (-0.12, belt)),
        rectangle(-0.04, roof + 0.12, 0.4, belt),
        rectangle(0.48, roof + 0.12, 0.86, belt),
    ]
    return [
        Part(body),
        *(Part(w, glass) for w in windows[: 1 if rng.random() < 0.25 else 3]),
        Part(rectangle(-0.98, belt + 0.1, 0.97, belt + 0.17), "tint", detail=True),
        *_trim(rng, -1, 0.97, belt + 0.2, -0.08, belt, foot),
        *_wheels(rng, -0.58, 0.58, foot, 0.22),
    ]


def _beetle(rng: np.random.Generator) -> list[Part]:
    """A round toy car: a dome on a rounded slab."""
    r, roof = rng.uniform(0.5, 0.62), rng.uniform(0.5, 0.62)
    dome = arc(0.02, 0, r, roof, 180, 360)
    pane = arc(0.02, -0.03, r * 0.78, roof * 0.75, 180, 360)
    glass = GLASS[rng.integers(4)]
    return [
        Part(dome),
        Part(pane, glass),
        Part(rectangle(-0.02, -roof * 0.9, 0.06, 0), "body"),
        Part(rectangle(-1, -0.06, 1, 0.38, rng.uniform(0.14, 0.3))),
        *_trim(rng, -0.98, 0.99, 0.1, 0.02, 0, 0.35),
        *_wheels(rng, -0.55, 0.55, 0.36, rng.uniform(0.2, 0.25)),
    ]


def _front(rng: np.random.Generator) -> list[Part]:
    top, w = rng.uniform(0.5, 0.62), rng.uniform(0.8, 0.95)
    roof, belt, foot = -rng.uniform(0.65, 0.8), -0.08, 0.5
    cabin = polygon(
        (-w * 0.82, belt + 0.05),
        (-top, roof + 0.06),
        (-top + 0.1, roof),
        (top - 0.1, roof),
        (top, roof + 0.06),
        (w * 0.82, belt + 0.05),
    )
    pane = polygon((-w * 0.68, belt), (-top + 0.07, roof + 0.12), (top - 0.07, roof + 0.12), (w * 0.68, belt))
    lamp = rng.uniform(0.1, 0.14)
    tyres = [rectangle(s * w * 0.72 - 0.13, 0.35, s * w * 0.72 + 0.13, 0.75, 0.05) for s in (-1, 1)]
    lights = [ellipse(s * w * 0.7, 0.13, lamp, n=18) for s in (-1, 1)]
    mirrors = [ellipse(s * (w + 0.03), belt - 0.06, 0.12, 0.08, 14) for s in (-1, 1)]
    shine = LAMP if rng.random() < 0.6 else (245, 245, 245)
    grille = rectangle(-w * 0.4, 0.06, w * 0.4, 0.22, 0.04)
    return [
        *(Part(t, TYRE) for t in tyres),
        *(Part(m, "shade") for m in mirrors),
        Part(cabin),
        Part(pane, GLASS[rng.integers(4)]),
        Part(rectangle(-w, belt, w, foot, rng.uniform(0.08, 0.2))),
        Part(grille, "dark"),
        *(Part(light, shine) for light in lights),
        Part(rectangle(-w * 1.02, 0.36, w * 1.02, foot, 0.06), "shade"),
        Part(rectangle(-0.2, 0.37, 0.2, 0.48), (245, 245, 240), detail=True),
    ]


def car(rng: np.random.Generator) -> list[Part]:
    parts = (_sedan, _hatchback, _van, _beetle, _front)[rng.choice(5, p=[0.25, 0.2, 0.2, 0.15, 0.2])](rng)
    return parts if rng.random() < 0.5 else [Part(p.points * [-1, 1], p.paint, p.detail, p.width) for p in parts]
