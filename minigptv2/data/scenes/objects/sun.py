"""Sun: disc with triangle rays, with line rays, with wavy rays, with a spiked corona; any of them may have a face."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, rectangle, smooth, star_points, turned


def sun(rng: np.random.Generator) -> list[Part]:
    """Rays first, then the disc, then what is on it."""
    disc = rng.uniform(0.42, 0.66)
    rays = (_triangles, _lines, _wavy, _corona)[rng.integers(4)](rng, disc)
    parts = [*rays, Part(ellipse(0, 0, disc))]
    extra = rng.random()
    if extra < 0.3:
        return parts + _face(rng, disc)
    if extra < 0.6:
        parts.append(Part(ellipse(0, 0, disc * rng.uniform(0.65, 0.85)), "tint", True))
    return parts


def _accent(rng: np.random.Generator) -> str:
    return ("body", "body", "shade", "tint")[rng.integers(4)]


def _other(rng: np.random.Generator) -> str:
    """For rays that touch the disc, which would make a star in its own colour."""
    return ("shade", "tint")[rng.integers(2)]


def _ring(rng: np.random.Generator, ray: np.ndarray, count: int, paint: str) -> list[Part]:
    """The ray, pointing up, all round; sometimes every other one shorter."""
    short = rng.uniform(0.8, 0.9) if count % 2 == 0 and rng.random() < 0.4 else 1.0
    start = rng.choice((0, 180 / count))
    return [Part(turned(ray * (short if i % 2 else 1), start + 360 * i / count), paint) for i in range(count)]


def _triangles(rng: np.random.Generator, disc: float) -> list[Part]:
    count = int(rng.integers(7, 17))
    loose = rng.random() < 0.6
    base = disc + rng.uniform(0.05, 0.12) if loose else disc * 0.9
    half = np.pi * base / count * rng.uniform(0.5, 0.95)
    return _ring(rng, polygon((-half, -base), (0, -1), (half, -base)), count, _accent(rng) if loose else _other(rng))


def _lines(rng: np.random.Generator, disc: float) -> list[Part]:
    count, half = int(rng.integers(6, 15)), rng.uniform(0.03, 0.065)
    start = disc + rng.uniform(0.08, 0.18) if rng.random() < 0.75 else disc * 0.9
    ray = rectangle(-half, -1, half, -start, half if rng.random() < 0.6 else 0)
    return _ring(rng, ray, count, _accent(rng))


def _wavy(rng: np.random.Generator, disc: float) -> list[Part]:
    count = int(rng.integers(8, 13))
    w, sway = np.pi * disc / count * rng.uniform(0.7, 0.95), rng.choice((-1, 1)) * rng.uniform(0.07, 0.12)
    middle = (1 + disc) / 2
    ray = np.concatenate(
        [
            smooth((-w, -disc * 0.92), (-w * 0.6 + sway, -middle), (0, -1), closed=False, n=6),
            smooth((0, -1), (w * 0.6 + sway, -middle), (w, -disc * 0.92), closed=False, n=6),
        ]
    )
    return _ring(rng, ray, count, _accent(rng))


def _corona(rng: np.random.Generator, disc: float) -> list[Part]:
    """One star with many spikes behind the disc, sometimes a second one between its spikes."""
    count = int(rng.integers(9, 19))
    paint = _other(rng)
    spikes = star_points(count, disc * rng.uniform(1.0, 1.15))
    if rng.random() < 0.4:
        return [Part(turned(spikes, 180 / count) * 0.97, "tint" if paint == "shade" else "shade"), Part(spikes, paint)]
    return [Part(spikes, paint)]


def _face(rng: np.random.Generator, disc: float) -> list[Part]:
    eye = ellipse(0, 0, disc * rng.uniform(0.09, 0.14), disc * rng.uniform(0.12, 0.19), 16)
    apart, up = disc * rng.uniform(0.3, 0.42), -disc * rng.uniform(0.1, 0.25)
    smile = arc(0, disc * 0.12, disc * rng.uniform(0.35, 0.5), disc * rng.uniform(0.3, 0.45), 20, 160, 14)
    parts = [Part(eye + [-apart, up], "dark"), Part(eye + [apart, up], "dark"), Part(smile, "dark", width=disc * 0.1)]
    if rng.random() < 0.5:
        cheek = ellipse(0, 0, disc * 0.14, n=14)
        parts += [Part(cheek + [side * disc * 0.6, disc * 0.2], (245, 130, 110), True) for side in (-1, 1)]
    return parts
