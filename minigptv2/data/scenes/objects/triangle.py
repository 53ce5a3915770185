"""Triangles: equilateral, isosceles, right-angled and scalene; sharp or rounded; plain, framed, nested or halved."""

import numpy as np

from .sketch import Part, polygon


def _rounded(corners: np.ndarray, share: float) -> np.ndarray:
    """The corners cut off along a quadratic curve that starts `share` of the way along each edge."""
    before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
    start, end = corners + (before - corners) * share, corners + (after - corners) * share
    t = np.linspace(0, 1, 8)[None, :, None]
    return ((1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * corners[:, None] + t**2 * end[:, None]).reshape(-1, 2)


def _corners(rng: np.random.Generator) -> np.ndarray:
    variant = rng.choice(4, p=[0.35, 0.3, 0.2, 0.15])
    if variant == 0:
        return polygon((0, -0.866), (1, 0.866), (-1, 0.866))
    if variant == 1:
        h = rng.uniform(0.5, 1.3)
        return polygon((0, -h), (0.9, h), (-0.9, h))
    if variant == 2:
        h = rng.uniform(0.6, 1.0)
        return polygon((-1, -h), (1, h), (-1, h)) * [rng.choice([-1, 1]), 1]
    h = rng.uniform(0.6, 0.9)
    return polygon((rng.uniform(-0.7, 0.7), -h), (1, h), (-1, h))


def triangle(rng: np.random.Generator) -> list[Part]:
    corners = _corners(rng)
    if rng.random() < 0.2:
        corners = corners * [1, -1]
    outline = _rounded(corners, rng.uniform(0.06, 0.2)) if rng.random() < 0.4 else corners
    edges = np.linalg.norm(np.roll(corners, 1, axis=0) - np.roll(corners, -1, axis=0), axis=1)
    incentre = edges @ corners / edges.sum()
    parts = [Part(outline)]
    look = rng.random()
    if look < 0.15:
        inner = (outline - incentre) * rng.uniform(0.35, 0.58) + incentre
        parts.append(Part(inner, (252, 252, 250) if rng.random() < 0.6 else "tint"))
    elif look < 0.4:
        for size, paint in ((rng.uniform(0.65, 0.85), "tint"), (rng.uniform(0.4, 0.6), "body")):
            parts.append(Part((outline - incentre) * size + incentre, paint, detail=True))
    elif look < 0.55:
        foot = (corners[1] + corners[2]) / 2
        parts.append(Part(np.stack([corners[0], corners[1], foot]), "shade", detail=True))
    elif look < 0.7:
        shine = (corners[[0, 2]] - incentre) * rng.uniform(0.55, 0.7) + incentre
        parts.append(Part(shine, "tint", detail=True, width=rng.uniform(0.05, 0.12)))
    return parts
