"""Flower: daisy, blossom with notched petals, sunflower, one-piece rosette, each with or without a stem; tulip."""

import numpy as np

from .sketch import Part, arc, ellipse, smooth, turned

CENTRES = ((250, 205, 50), (245, 160, 40), (120, 75, 40), (255, 240, 170), (70, 45, 30), (255, 255, 255))
GREENS = ((60, 150, 60), (40, 120, 50), (110, 175, 60), (30, 100, 70))


def flower(rng: np.random.Generator) -> list[Part]:
    """The petals carry the body colour; stem and centre have their own."""
    if rng.random() < 0.2:
        return _tulip(rng)
    head = (_daisy, _blossom, _sunflower, _rosette)[rng.integers(4)](rng)
    if rng.random() < 0.4:
        return head
    size = rng.uniform(0.55, 0.68)
    head = [Part(p.points * size + [0, size - 1], p.paint, p.detail, p.width and p.width * size) for p in head]
    return _stem(rng, size - 1) + head


def _leaf(rng: np.random.Generator, y: float, side: int, green: tuple[int, int, int]) -> Part:
    length, width, lift = rng.uniform(0.3, 0.5), rng.uniform(0.16, 0.24), rng.uniform(0.15, 0.4)
    points = smooth((0, 0), (0.45, -width / length / 2), (1, 0), (0.45, width / length / 2), n=6) * length
    return Part(turned(points, -45 * lift - 20) * [side, 1] + [0, y], green)


def _stem(rng: np.random.Generator, top: float) -> list[Part]:
    green, bend = GREENS[rng.integers(len(GREENS))], rng.uniform(-0.12, 0.12)
    parts = [Part(smooth((0, top), (bend, (top + 1) / 2), (0, 1), closed=False), green, width=rng.uniform(0.06, 0.12))]
    leaves = rng.integers(0, 3)
    if leaves:
        side = int(rng.choice((-1, 1)))
        parts += [_leaf(rng, rng.uniform(0.65, 0.9), side * sign, green) for sign in (1, -1)[:leaves]]
    return parts


def _round(petal: np.ndarray, count: int, paint: str, start: float = 0.0) -> list[Part]:
    return [Part(turned(petal, start + 360 * i / count), paint) for i in range(count)]


def _centre(rng: np.random.Generator, size: float) -> list[Part]:
    colour = CENTRES[rng.integers(len(CENTRES))]
    parts = [Part(ellipse(0, 0, size, n=28), colour)]
    if rng.random() < 0.5:
        darker = tuple(int(v * 0.8) for v in colour)
        parts.append(Part(ellipse(0, 0, size * 0.6, n=20), darker, True))
    return parts


def _daisy(rng: np.random.Generator) -> list[Part]:
    count = int(rng.integers(5, 13))
    width = np.pi / count * rng.uniform(0.45, 0.68)
    if rng.random() < 0.7:
        petal = ellipse(0, -0.58, min(width, 0.42), 0.42, 24)
    else:
        petal = smooth((0, 0), (-width, -0.5), (-0.05, -0.98), (0.05, -0.98), (width, -0.5), n=5)
    parts = _round(petal, count, "body")
    if rng.random() < 0.5:
        vein = np.array([[0, -0.3], [0, -0.75]])
        parts += [Part(turned(vein, 360 * i / count), "shade", True, 0.03) for i in range(count)]
    return parts + _centre(rng, rng.uniform(0.2, 0.34))


def _blossom(rng: np.random.Generator) -> list[Part]:
    """Cherry blossom: four to six wide petals with a notch."""
    count = int(rng.integers(4, 7))
    w, notch = np.tan(np.pi / count) * rng.uniform(0.62, 0.75), rng.uniform(0.72, 0.88)
    petal = smooth(
        (0, -0.05),
        (-w * 0.8, -0.5),
        (-w * 0.65, -0.88),
        (-0.14, -0.98),
        (0, -notch),
        (0.14, -0.98),
        (w * 0.65, -0.88),
        (w * 0.8, -0.5),
        n=5,
    )
    parts = _round(petal, count, "body")
    if rng.random() < 0.5:
        parts += [
            Part(turned(petal * 0.5, 360 * i / count), ("tint", "shade")[rng.integers(2)], True) for i in range(count)
        ]
    if rng.random() < 0.5:
        thread = np.array([[0, 0], [0, -0.42]])
        parts += [Part(turned(thread, 360 * (i + 0.5) / count), (250, 215, 90), True, 0.04) for i in range(count)]
    return parts + _centre(rng, rng.uniform(0.14, 0.26))


def _sunflower(rng: np.random.Generator) -> list[Part]:
    count, middle = int(rng.integers(11, 18)), rng.uniform(0.36, 0.48)
    width = np.pi / count * rng.uniform(0.7, 0.9)
    petal = smooth((-width * 0.4, -0.3), (-width, -0.65), (0, -1), (width, -0.65), (width * 0.4, -0.3), n=4)
    parts = _round(petal, count, "shade", 180 / count) if rng.random() < 0.6 else []
    brown = ((105, 65, 35), (75, 45, 25), (60, 40, 35), (140, 90, 45))[rng.integers(4)]
    parts += [*_round(petal, count, "body"), Part(ellipse(0, 0, middle), brown)]
    if rng.random() < 0.6:
        seeds = ellipse(0, 0, middle * 0.65, n=8)
        parts += [Part(ellipse(x, y, 0.045, n=8), (45, 28, 20), True) for x, y in seeds]
    return parts


def _rosette(rng: np.random.Generator) -> list[Part]:
    """Round lobes in one outline, as a simple drawing or a sticker has it."""
    count, depth = int(rng.integers(5, 9)), rng.uniform(0.2, 0.42)
    t = np.linspace(0, 2 * np.pi, 16 * count, endpoint=False)
    r = 1 - depth + depth * np.abs(np.cos(count * t / 2)) ** rng.uniform(0.6, 1)
    outline = np.stack([r * np.sin(t), -r * np.cos(t)], axis=1)
    parts = [Part(outline)]
    if rng.random() < 0.5:
        parts.append(Part(outline * rng.uniform(0.6, 0.75), ("tint", "shade")[rng.integers(2)], True))
    return parts + _centre(rng, rng.uniform(0.25, 0.36))


def _tulip(rng: np.random.Generator) -> list[Part]:
    w, base, top = rng.uniform(0.42, 0.55), rng.uniform(0.05, 0.2), rng.uniform(0.35, 0.5)
    green = GREENS[rng.integers(len(GREENS))]
    reach, lift = rng.uniform(0.35, 0.55), rng.uniform(0.3, 0.6)
    leaf = smooth((0, 1), (reach * 0.8, 0.75), (reach, 1 - lift), (reach * 0.35, 0.72), n=6)
    parts = [Part(np.array([[0, base - 0.1], [0, 1.0]]), green, width=rng.uniform(0.07, 0.12)), Part(leaf, green)]
    if rng.random() < 0.7:
        parts.append(Part(leaf * [-1, 1], green))
    rim = np.array([[-w * 1.02, -1], [-w * 0.45, -1 + top], [0, -1], [w * 0.45, -1 + top], [w * 1.02, -1]])
    parts.append(Part(np.concatenate([arc(0, -0.3, w, base + 0.3, 0, 180, 24), rim])))
    if rng.random() < 0.7:
        petal = smooth((0, -0.98), (-w * 0.55, -0.4), (0, base), (w * 0.55, -0.4))
        parts.append(Part(petal, ("shade", "tint")[rng.integers(2)], True))
    return parts
