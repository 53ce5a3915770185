"""Umbrella: dome with scalloped edge and hook, straight-edged dome, parasol on a pole with panels, tilted, folded."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from .sketch import Part, arc, polygon, smooth, turned

HANDLES = ("dark", (120, 75, 40), (140, 140, 150), (60, 60, 70), (190, 140, 80))


def umbrella(rng: np.random.Generator) -> list[Part]:
    """Upright or tilted as a whole."""
    parts = (_hooked, _pointed, _beach, _folded)[rng.choice(4, p=(0.45, 0.15, 0.22, 0.18))](rng)
    angle = rng.uniform(-38, 38) if rng.random() < 0.4 else 0.0
    return [replace(part, points=turned(part.points, angle)) for part in parts]


def _panels(count: int, height: float, scallop: float, power: float) -> list[np.ndarray]:
    """The canopy in panels: apex (0, -height), the rim at y = 0 from -1 to 1, each panel's edge `scallop` deep."""
    t = np.linspace(0, np.pi / 2, 10)
    meridian = np.stack([np.sin(t) ** power, -height * np.cos(t)], axis=1)
    ribs = np.sin(np.linspace(-np.pi / 2, np.pi / 2, count + 1) * 0.9) / np.sin(np.pi * 0.45)
    return [
        np.concatenate(
            [meridian * [a, 1], arc((a + b) / 2, 0, (b - a) / 2, scallop, 180, 360, 9), meridian[::-1] * [b, 1]]
        )
        for a, b in pairwise(ribs)
    ]


def _canopy(rng: np.random.Generator, panels: list[np.ndarray], striped: bool) -> list[Part]:
    rim = np.concatenate([panel[10:19] for panel in panels])
    parts = [Part(np.concatenate([panels[0][:10], rim, panels[-1][19:]]))]
    paint = ("tint", "shade", (255, 255, 255))[rng.integers(3)] if striped else ("tint", "shade")[rng.integers(2)]
    if striped or rng.random() < 0.5:
        return parts + [Part(panel, paint, not striped) for panel in panels[1::2]]
    return parts + [Part(panel[:10], ("shade", "dark", "tint")[rng.integers(3)], True, 0.035) for panel in panels[1:]]


def _handle(rng: np.random.Generator, end: float, tip: float) -> list[Part]:
    """A shaft from above the canopy, bent into a hook."""
    paint, width, side = HANDLES[rng.integers(len(HANDLES))], rng.uniform(0.06, 0.11), rng.choice((-1, 1))
    bend = rng.uniform(0.13, 0.22)
    hook = arc(bend, end - bend, bend, bend, 180, rng.uniform(-20, 10), 14)
    return [Part(np.concatenate([polygon((0, tip)), hook]) * [side, 1], paint, width=width)]


def _hooked(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.7, 1.0)
    scallop = 0.0 if rng.random() < 0.15 else rng.uniform(0.06, 0.18)
    panels = _panels(int(rng.integers(3, 7)), height, scallop, 1.0)
    tip = -height - rng.uniform(0.05, 0.16)
    return _handle(rng, rng.uniform(0.75, 1.0), tip) + _canopy(rng, panels, rng.random() < 0.3)


def _pointed(rng: np.random.Generator) -> list[Part]:
    """A canopy whose ribs are straight or sag, as a paper parasol's."""
    height = rng.uniform(0.5, 0.8)
    panels = _panels(int(rng.integers(4, 9)), height, rng.uniform(0.03, 0.1), rng.uniform(1.5, 2.0))
    return _handle(rng, 0.95, -height - 0.14) + _canopy(rng, panels, rng.random() < 0.5)


def _beach(rng: np.random.Generator) -> list[Part]:
    height, pole = rng.uniform(0.5, 0.8), rng.uniform(0.95, 1.3)
    paint = ((235, 235, 235), (150, 105, 60), (120, 120, 130), "dark")[rng.integers(4)]
    parts = []
    if rng.random() < 0.4:
        parts.append(Part(arc(0, pole, 0.5, 0.14, 180, 360, 16), (230, 200, 140)))
    parts.append(Part(polygon((0, -height - 0.1), (0, pole)), paint, width=rng.uniform(0.05, 0.09)))
    scallop = -rng.uniform(0.05, 0.1) if rng.random() < 0.4 else rng.uniform(0.02, 0.1)
    return parts + _canopy(rng, _panels(int(rng.choice((5, 7, 9))), height, scallop, 1.0), True)


def _folded(rng: np.random.Generator) -> list[Part]:
    """Closed, the hook up, the cloth hanging in folds."""
    w, top = rng.uniform(0.2, 0.3), rng.uniform(-0.5, -0.4)
    bend, paint = rng.uniform(0.15, 0.22), HANDLES[rng.integers(len(HANDLES))]
    shaft = np.concatenate([arc(bend, -0.82, bend, bend, 20, -180, 14), polygon((0, 1.15))])
    cloth = np.concatenate(
        [
            smooth((-w, top + 0.08), (-w * 0.75, 0.3), (-0.05, 1), closed=False),
            smooth((0.05, 1), (w * 0.75, 0.3), (w, top + 0.08), closed=False),
            polygon(
                (w * 0.6, top - 0.05),
                (w * 0.3, top + 0.06),
                (0, top - 0.05),
                (-w * 0.3, top + 0.06),
                (-w * 0.6, top - 0.05),
            ),
        ]
    )
    fold = polygon((w * 0.3, top + 0.06), (0.02, 0.95))
    return [
        Part(shaft, paint, width=0.09),
        Part(cloth),
        Part(fold, "shade", True, 0.04),
        Part(fold * [-1, 1], "shade", True, 0.04),
    ]
