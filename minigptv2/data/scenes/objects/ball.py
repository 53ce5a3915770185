"""Balls: plain or banded, football with pentagons, basketball seams, beach ball panels, tennis ball curves."""

from math import acos, degrees

import numpy as np

from .sketch import Part, arc, ellipse, star_points, turned

WHITE = (250, 250, 248)


def _seam(offset: float, radius: float) -> np.ndarray:
    """The arc inside the unit disc of a circle of that radius whose centre lies at (offset, 0)."""
    half = degrees(acos((offset**2 + radius**2 - 1) / (2 * offset * radius)))
    return arc(offset, 0, radius, radius, 180 - half, 180 + half)


def _plain(rng: np.random.Generator) -> list[Part]:
    parts = [Part(ellipse(0, 0, 1))]
    if rng.random() < 0.6:
        edge = rng.uniform(0.15, 0.4)
        lean = np.degrees(np.arcsin(edge))
        band = np.concatenate([arc(0, 0, 1, 1, -lean, lean, 8), arc(0, 0, 1, 1, 180 - lean, 180 + lean, 8)])
        parts.append(Part(turned(band, rng.uniform(-40, 40)), ("shade", "tint", WHITE)[rng.integers(3)]))
        if rng.random() < 0.4:
            parts.append(Part(star_points(5, 0.2, 0.42), "tint" if rng.random() < 0.5 else (250, 215, 60), detail=True))
    shine = ellipse(-rng.uniform(0.35, 0.5), -rng.uniform(0.4, 0.55), rng.uniform(0.1, 0.25), 0.13, 16)
    return [*parts, Part(shine, "tint", detail=rng.random() < 0.6)]


def _football(rng: np.random.Generator) -> list[Part]:
    ink = "dark" if rng.random() < 0.7 else WHITE
    size, spin = rng.uniform(0.3, 0.42), rng.uniform(0, 72)
    corners = star_points(5, 0, size)[::2]
    line = rng.uniform(0.02, 0.05)
    parts = [Part(ellipse(0, 0, 1)), Part(turned(corners, spin), ink)]
    for k in range(5):
        patch = turned(corners * 1.05, 180) + [0, -rng.uniform(0.98, 1.02)]
        patch *= np.minimum(1, 0.99 / np.linalg.norm(patch, axis=1))[:, None]
        inward = np.array([[0, -size], [0, -0.7]])
        parts += [
            Part(turned(patch, spin + 72 * k), ink),
            Part(turned(inward, spin + 72 * k), ink, width=line),
            Part(turned(np.array([[0, -0.7], [-0.41, -0.56], [-0.45, -0.62]]), spin + 72 * k), ink, width=line),
            Part(turned(np.array([[0, -0.7], [0.41, -0.56], [0.45, -0.62]]), spin + 72 * k), ink, width=line),
        ]
    return parts


def _basketball(rng: np.random.Generator) -> list[Part]:
    offset, width = rng.uniform(1.25, 1.5), rng.uniform(0.05, 0.1)
    side = _seam(offset, rng.uniform(0.75, 0.95))
    bow = rng.uniform(-0.3, 0.3)
    t = np.linspace(-1, 1, 16)
    across = np.stack([t, bow * (1 - t**2)], axis=1)
    down = np.stack([rng.uniform(-0.25, 0.25) * (1 - t**2), t], axis=1)
    spin = rng.uniform(-45, 45)
    seams = [Part(turned(s, spin), "dark", width=width) for s in (side, side * [-1, 1], across, down)]
    return [Part(ellipse(0, 0, 1)), *seams]


def _beach_ball(rng: np.random.Generator) -> list[Part]:
    """Panels between meridians of a sphere, from the pole that is seen to the rim."""
    count = int(rng.choice([6, 8, 10]))
    tip, spin, first = rng.uniform(0.35, 0.9), rng.uniform(-60, 60), rng.uniform(0, 1)
    along, rim = np.linspace(0, 1, 16), np.linspace(0, 1, 10)
    share = rng.uniform(0.6, 0.95)
    other = (WHITE, "tint", "shade")[rng.choice(3, p=[0.6, 0.2, 0.2])]
    parts = [Part(ellipse(0, 0, 1))]
    for k in range(0, count, 2):
        a = (first + k) * 2 * np.pi / count
        b = a + share * 2 * np.pi / count
        turn = np.concatenate([np.full(16, a), a + (b - a) * rim, np.full(16, b)])
        fall = np.arctan2(np.cos(tip), -np.sin(turn) * np.sin(tip)) * np.concatenate([along, np.ones(10), along[::-1]])
        x, y, z = np.sin(fall) * np.cos(turn), np.sin(fall) * np.sin(turn), np.cos(fall)
        flat = np.stack([x, y * np.cos(tip) - z * np.sin(tip)], axis=1)
        parts.append(Part(turned(flat, spin), other))
    pole = turned(ellipse(0, -np.sin(tip), 0.14, 0.14 * np.cos(tip), 16), spin)
    return [*parts, Part(pole, "body" if rng.random() < 0.5 else WHITE)]


def _tennis(rng: np.random.Generator) -> list[Part]:
    seam = _seam(rng.uniform(1.15, 1.4), rng.uniform(0.75, 1.0))
    paint, width, spin = WHITE if rng.random() < 0.8 else "tint", rng.uniform(0.07, 0.14), rng.uniform(-60, 60)
    return [Part(ellipse(0, 0, 1)), *(Part(turned(s, spin), paint, width=width) for s in (seam, seam * [-1, 1]))]


def ball(rng: np.random.Generator) -> list[Part]:
    return (_plain, _football, _basketball, _beach_ball, _tennis)[rng.integers(5)](rng)
