"""Cloud: flat-bottomed with three to six bumps, bumpy all round, two layers, overlapping puffs."""

import numpy as np

from .sketch import Part, arc, ellipse


def cloud(rng: np.random.Generator) -> list[Part]:
    """Wider than high."""
    return (_flat, _bumpy, _layers, _puffs)[rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))](rng)


def _union(circles: np.ndarray, base: float = 9.0) -> np.ndarray:
    """The outline of overlapping circles [N, 3] (x, y, radius) seen from their middle, cut off below `base`."""
    centre = (circles[:, :2] * circles[:, 2:]).sum(0) / circles[:, 2].sum()
    circles = np.concatenate([circles, [[*centre, 0.28]]])
    t = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    ray = np.stack([np.cos(t), np.sin(t)], axis=1)
    away = circles[:, :2] - centre
    along = ray @ away.T
    square = circles[:, 2] ** 2 - (away**2).sum(1) + along**2
    reach = np.where(square > 0, along + np.sqrt(np.maximum(square, 0)), 0).max(1)
    points = centre + ray * reach[:, None]
    return np.stack([points[:, 0], np.minimum(points[:, 1], base)], axis=1)


def _flat_circles(rng: np.random.Generator, fewest: int = 3) -> np.ndarray:
    """Bumps that all reach down to y = 0.5, the larger ones in the middle."""
    count = int(rng.integers(fewest, 7))
    x = np.linspace(-1, 1, count)
    peak = rng.uniform(0.1, 0.25) if count == 3 else rng.uniform(0.35, 0.65)
    height = rng.uniform(0.28, 0.4) + peak * (1 - np.abs(x - rng.uniform(-0.3, 0.3))).clip(0)
    radius = (1.35 / count + 0.05) * rng.uniform(0.85, 1.1, count)
    radius[[0, -1]] = height[[0, -1]] = rng.uniform(0.28, 0.38, 2)
    x = x * (1 - radius[[0, -1]].mean())
    fill = np.array([[x[i], 0.5 - radius[i] * 0.9, radius[i] * 0.9] for i in range(1, count - 1)])
    return np.concatenate([np.stack([x, 0.5 - height, radius], axis=1), fill])


def _flat(rng: np.random.Generator) -> list[Part]:
    circles = _flat_circles(rng)
    parts = [Part(_union(circles, 0.5))]
    paint = ("shade", "tint")[rng.integers(2)]
    if rng.random() < 0.4:
        for x, y, r in circles[1:3]:
            parts.append(Part(arc(x, y + 0.08, r * 0.65, r * 0.65, 190, 280, 10), paint, True, 0.05))
    elif rng.random() < 0.5:
        parts.append(Part(_union(circles * [0.85, 0.85, 0.8] + [-0.03, 0, 0], 0.34), "tint", True))
    return parts


def _bumpy(rng: np.random.Generator) -> list[Part]:
    count = int(rng.integers(6, 10))
    t = 2 * np.pi * (np.arange(count) + rng.uniform(0, 1) + rng.uniform(-0.12, 0.12, count)) / count
    height = rng.uniform(0.3, 0.45)
    circles = np.stack([0.68 * np.cos(t), height * np.sin(t), rng.uniform(0.27, 0.38, count)], axis=1)
    parts = [Part(_union(np.concatenate([circles, [[-0.4, 0, 0.42], [0.4, 0, 0.42]]])))]
    if rng.random() < 0.6:
        paint = ("shade", "tint", "dark")[rng.integers(3)]
        for x, y, r in circles[:3]:
            parts.append(Part(arc(x * 0.5, y * 0.5, r * 0.7, r * 0.6, 170, 300, 10), paint, True, 0.045))
    return parts


def _layers(rng: np.random.Generator) -> list[Part]:
    """A darker or lighter cloud looks out behind."""
    shift = [rng.choice((-1, 1)) * rng.uniform(0.3, 0.5), -0.3]
    back = _union(_flat_circles(rng), 0.5) * rng.uniform(0.6, 0.75)
    return [Part(back + shift, ("shade", "tint")[rng.integers(2)]), Part(_union(_flat_circles(rng), 0.5))]


def _puffs(rng: np.random.Generator) -> list[Part]:
    """Whole circles, one over the other, on an oval."""
    circles = _flat_circles(rng, 4)
    order = rng.permutation(len(circles))
    foot = Part(ellipse(0, 0.18, rng.uniform(0.7, 0.85), 0.32))
    return [foot, *(Part(ellipse(*(circles[i] * [1, 1, 1.1]), n=32)) for i in order)]
