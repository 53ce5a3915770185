"""Houses: gabled front, front with a side wing in perspective, long side under a hipped roof, tall town house."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, rectangle

GLASS = ((190, 225, 245), (250, 235, 150), (235, 245, 250), (90, 130, 170))
WOOD = ((120, 75, 45), (90, 55, 40), (150, 100, 60), (240, 235, 225))


def _pick(rng: np.random.Generator, colours: tuple) -> tuple[int, int, int] | str:
    return colours[rng.integers(len(colours))]


def _window(x: float, y: float, w: float, h: float, glass: tuple[int, int, int]) -> list[Part]:
    cross = [polygon((x, y - h), (x, y + h)), polygon((x - w, y), (x + w, y))]
    bars = [Part(line, (250, 250, 250), detail=True, width=0.035) for line in cross]
    return [Part(rectangle(x - w, y - h, x + w, y + h), glass), *bars]


def _door(x: float, floor: float, w: float, h: float, rng: np.random.Generator) -> list[Part]:
    paint = "dark" if rng.random() < 0.3 else _pick(rng, WOOD)
    shape = rectangle(x - w, floor - h, x + w, floor)
    if rng.random() < 0.25:
        shape = np.concatenate([arc(x, floor - h + w, w, w, 180, 360, 12), [[x + w, floor], [x - w, floor]]])
    return [Part(shape, paint), Part(ellipse(x + w * 0.55, floor - h * 0.45, 0.03, n=8), (245, 205, 80), detail=True)]


def _chimney(x: float, top: float, foot: float, rng: np.random.Generator) -> Part:
    w = rng.uniform(0.08, 0.13)
    return Part(rectangle(x - w, top, x + w, foot), "dark" if rng.random() < 0.3 else "shade")


def _paints(rng: np.random.Generator) -> tuple[str, str]:
    """Of the walls and of the roof."""
    pairs = (("body", "shade"), ("body", "dark"), ("tint", "body"), ("body", "body"))
    return pairs[rng.choice(4, p=[0.55, 0.15, 0.2, 0.1])]


def _front(rng: np.random.Generator) -> list[Part]:
    walls, roof = _paints(rng)
    w, eaves, ridge = rng.uniform(0.65, 0.85), rng.uniform(-0.2, 0.1), -rng.uniform(0.85, 1.05)
    over = rng.uniform(0.1, 0.25)
    parts = []
    if rng.random() < 0.6:
        parts.append(_chimney(rng.choice([-1, 1]) * w * 0.55, ridge + 0.05, eaves - 0.1, rng))
    parts.append(Part(polygon((-w, eaves), (0, ridge + 0.1), (w, eaves), (w, 0.9), (-w, 0.9)), walls))
    if rng.random() < 0.5:
        parts.append(Part(polygon((-w - over, eaves), (0, ridge), (w + over, eaves)), roof))
    else:
        t = rng.uniform(0.16, 0.26)
        band = polygon(
            (-w - over, eaves),
            (0, ridge - 0.1),
            (w + over, eaves),
            (w + over - 0.08, eaves + t * 0.6),
            (0, ridge - 0.1 + t * 1.3),
            (-w - over + 0.08, eaves + t * 0.6),
        )
        parts.append(Part(band, roof if roof != walls else "shade"))
    glass, layout = _pick(rng, GLASS), rng.random()
    y = (eaves + 0.9) / 2 - 0.05
    size = rng.uniform(0.13, 0.18)
    if layout < 0.5:
        parts += _door(0, 0.9, rng.uniform(0.13, 0.2), rng.uniform(0.45, 0.6), rng)
        parts += _window(-w * 0.62, y, size, size, glass) + _window(w * 0.62, y, size, size, glass)
    else:
        side = rng.choice([-1, 1])
        parts += _door(side * w * 0.45, 0.9, rng.uniform(0.14, 0.2), rng.uniform(0.5, 0.62), rng)
        parts += _window(-side * w * 0.42, y + 0.05, size * 1.2, size * 1.1, glass)
    return [*parts, Part(ellipse(0, (ridge + eaves) / 2 + 0.1, 0.12, n=20), glass, detail=True)]


def _perspective(rng: np.random.Generator) -> list[Part]:
    """A gable end, and the long wall and the roof running away from it."""
    walls, roof = _paints(rng)
    gable, wing = rng.uniform(0.32, 0.45), rng.uniform(0.8, 1.1)
    eaves, ridge, rise = rng.uniform(-0.15, 0.1), -rng.uniform(0.7, 0.95), rng.uniform(0, 0.15)
    left = -1.0
    peak, edge, end = left + gable, left + 2 * gable, min(left + 2 * gable + wing, 1.1)
    floor, over = 0.8, rng.uniform(0.05, 0.12)
    far = floor - rise
    glass = _pick(rng, GLASS)
    parts = [_chimney((peak + end) / 2, ridge - 0.2, ridge + 0.3, rng)] if rng.random() < 0.6 else []
    parts += [
        Part(polygon((left, eaves), (peak, ridge), (edge, eaves), (edge, floor), (left, floor)), walls),
        Part(polygon((edge, eaves), (end, eaves), (end, far), (edge, floor)), "shade" if walls == "body" else "body"),
        Part(
            polygon(
                (peak - 0.02, ridge - over),
                (end - gable * 0.6, ridge - over),
                (end + over, eaves + over / 2),
                (edge + 0.04, eaves + over),
            ),
            roof if roof != walls else "shade",
        ),
        Part(
            polygon((left - over, eaves + over), (peak, ridge - over / 2), (edge + 0.04, eaves + over)),
            "dark",
            width=0.07,
        ),
        *_door(peak, floor, gable * 0.36, rng.uniform(0.42, 0.55), rng),
    ]
    for share in (0.3, 0.72):
        parts += _window(edge + (end - edge) * share, (eaves + far) / 2 + 0.06, 0.12, 0.13, glass)
    return parts if rng.random() < 0.5 else [Part(p.points * [-1, 1], p.paint, p.detail, p.width) for p in parts]


def _long(rng: np.random.Generator) -> list[Part]:
    """Seen from the side, under a roof whose ends slope."""
    walls, roof = _paints(rng)
    eaves, ridge, slope = rng.uniform(-0.1, 0.1), -rng.uniform(0.6, 0.85), rng.uniform(0.15, 0.45)
    glass, floor = _pick(rng, GLASS), 0.7
    parts = [
        _chimney(rng.choice([-0.5, 0.45]), ridge - 0.2, ridge + 0.1, rng),
        Part(rectangle(-0.88, eaves, 0.88, floor), walls),
        Part(
            polygon((-1.05, eaves), (-1.05 + slope, ridge), (1.05 - slope, ridge), (1.05, eaves)),
            roof if roof != walls else "shade",
        ),
        *_door(rng.uniform(-0.1, 0.1), floor, 0.14, 0.48, rng),
    ]
    for x in (-0.52, 0.52):
        parts += _window(x, (eaves + floor) / 2 - 0.03, rng.uniform(0.15, 0.2), 0.15, glass)
    if rng.random() < 0.4:
        parts += [Part(ellipse(x, floor - 0.05, 0.24, 0.17, 20), (70, 150, 70), detail=True) for x in (-0.8, 0.8)]
    return parts


def _tall(rng: np.random.Generator) -> list[Part]:
    """Two storeys under a steep gable."""
    walls, roof = _paints(rng)
    w, eaves, glass = rng.uniform(0.5, 0.62), rng.uniform(-0.45, -0.3), _pick(rng, GLASS)
    parts = [_chimney(w * 0.6, -0.95, -0.4, rng)] if rng.random() < 0.5 else []
    parts += [
        Part(rectangle(-w, eaves, w, 1), walls),
        Part(polygon((-w - 0.12, eaves), (0, -1.05), (w + 0.12, eaves)), roof if roof != walls else "shade"),
        *_door(0 if rng.random() < 0.5 else -w * 0.45, 1, 0.13, 0.42, rng),
    ]
    for x, y in ((-w * 0.5, -0.08), (w * 0.5, -0.08), (w * 0.58, 0.62)):
        parts += _window(x, y, 0.12, 0.16, glass)
    return parts


def house(rng: np.random.Generator) -> list[Part]:
    return (_front, _perspective, _long, _tall)[rng.choice(4, p=[0.4, 0.25, 0.2, 0.15])](rng)
