"""Person: standing or waving in shirt and trousers, in a dress, walking, restroom pictogram, head and shoulders."""

from dataclasses import replace

import numpy as np

from .sketch import Part, arc, ellipse, mirrored, polygon, rectangle, smooth

Colour = str | tuple[int, int, int]
SKINS = ((255, 219, 172), (241, 194, 125), (224, 172, 105), (198, 134, 66), (141, 85, 36), (255, 204, 60))
HAIRS = ((60, 40, 25), (30, 25, 25), (110, 70, 35), (200, 150, 70), (150, 60, 30), (120, 120, 125))


def person(rng: np.random.Generator) -> list[Part]:
    """Clothes in the body colour, or all of it in a pictogram."""
    parts = (_standing, _walking, _pictogram, _bust)[rng.choice(4, p=(0.4, 0.2, 0.2, 0.2))](rng)
    return [replace(part, points=mirrored(part.points)) for part in parts] if rng.random() < 0.5 else parts


def _limb(width: float, *joints: tuple[float, float]) -> np.ndarray:
    """A band of the given width through the joints, with round ends."""
    line = smooth(*joints, closed=False, n=6)
    step = np.gradient(line, axis=0)
    step *= width / 2 / np.hypot(step[:, 0], step[:, 1])[:, None]
    side = step[:, ::-1] * [-1, 1]
    t = np.linspace(0, np.pi, 8)[:, None]
    end = line[-1] + np.cos(t) * side[-1] + np.sin(t) * step[-1]
    start = line[0] - np.cos(t) * side[0] - np.sin(t) * step[0]
    return np.concatenate([line + side, end, (line - side)[::-1], start])


def _hair(rng: np.random.Generator, y: float, rx: float, ry: float) -> tuple[list[Part], list[Part]]:
    """What lies behind the head and what lies over it: short, long, a bun, a cap in the body colour, or bald."""
    paint: Colour = HAIRS[rng.integers(len(HAIRS))]
    behind: list[Part] = []
    look = rng.integers(5)
    if look == 4 and rng.random() < 0.5:
        return [], []
    if look == 1:
        long = rng.uniform(0.9, 1.7)
        behind.append(
            Part(
                np.concatenate(
                    [
                        arc(0, y, rx * 1.25, ry * 1.15, 180, 360, 16),
                        polygon((rx * 1.3, y + ry * long), (-rx * 1.3, y + ry * long)),
                    ]
                ),
                paint,
            )
        )
    if look == 2:
        behind.append(Part(ellipse(0, y - ry * 1.15, rx * 0.5, n=16), paint))
    if look == 3:
        paint = "body"
    fringe = rng.uniform(0.3, 0.7)
    cap = np.concatenate(
        [
            arc(0, y, rx * 1.08, ry * 1.1, 175, 365, 18),
            smooth(
                (rx * 0.7, y - ry * 0.35),
                (rx * rng.uniform(-0.4, 0.4), y - ry * fringe),
                (-rx * 0.8, y - ry * 0.25),
                closed=False,
                n=4,
            ),
        ]
    )
    return behind, [Part(cap, paint)]


def _head(rng: np.random.Generator, y: float, r: float, skin: Colour) -> list[Part]:
    rx = r * rng.uniform(0.8, 1.0)
    behind, over = _hair(rng, y, rx, r)
    eye = ellipse(0, 0, r * 0.11, r * 0.14, 10)
    face = [Part(eye + [side * rx * 0.38, y + r * 0.1], (40, 30, 30), True) for side in (-1, 1)]
    face.append(Part(arc(0, y + r * 0.35, rx * 0.4, r * 0.25, 20, 160, 8), (150, 60, 50), True, r * 0.09))
    return [*behind, Part(ellipse(0, y, rx, r, 28), skin), *over, *face]


def _standing(rng: np.random.Generator) -> list[Part]:
    """From the front, arms down, out, or one waving; trousers, shorts or a dress; a child has a large head."""
    skin: Colour = SKINS[rng.integers(len(SKINS))]
    head, w = rng.uniform(0.17, 0.32), rng.uniform(0.2, 0.28)
    neck = -1 + 2 * head
    hip = neck + (1 - neck) * rng.uniform(0.42, 0.5)
    dress = rng.random() < 0.35
    trousers: Colour = skin if dress else ("body", "shade", "shade", (50, 60, 90))[rng.integers(4)]
    leg, arm, spread = rng.uniform(0.13, 0.18), rng.uniform(0.1, 0.14), rng.uniform(0.0, 0.1)
    foot, shoulder = w * 0.5 + spread, neck + 0.13
    parts = []
    for side in (-1, 1):
        parts.append(Part(_limb(leg, (side * w * 0.5, hip - 0.05), (side * foot, 0.93)), trousers))
        parts.append(Part(ellipse(side * (foot + 0.04), 0.95, 0.12, 0.06, 16), (50, 40, 40)))
    pose = rng.integers(3)
    for side in (-1, 1):
        if side == 1 and pose == 0:
            elbow, hand = (w + 0.25, shoulder + 0.08), (w + rng.uniform(0.3, 0.4), neck - rng.uniform(0.15, 0.35))
        elif pose == 1:
            elbow, hand = (side * (w + 0.2), shoulder + 0.15), (side * (w + 0.42), shoulder + rng.uniform(0.1, 0.3))
        else:
            elbow, hand = (side * (w + 0.12), shoulder + 0.25), (side * (w + 0.14), hip)
        parts.append(Part(ellipse(*hand, arm * 0.6, n=14), skin))
        cuff = (0.15 * elbow[0] + 0.85 * hand[0], 0.15 * elbow[1] + 0.85 * hand[1])
        parts.append(Part(_limb(arm, (side * (w - 0.06), shoulder), elbow, cuff)))
    parts.append(Part(rectangle(-0.07, neck - 0.08, 0.07, neck + 0.12), skin))
    hem = hip + (0.3 if dress else 0.04)
    flare = w * rng.uniform(1.5, 2.0) if dress else w * rng.uniform(0.8, 1.0)
    parts.append(
        Part(
            polygon(
                (-w * 0.55, neck + 0.04),
                (w * 0.55, neck + 0.04),
                (w, neck + 0.12),
                (w * 0.8, hip - 0.2),
                (flare, hem),
                (-flare, hem),
                (-w * 0.8, hip - 0.2),
                (-w, neck + 0.12),
            )
        )
    )
    if rng.random() < 0.4:
        parts.append(Part(polygon((-w * 0.8, hip - 0.04), (w * 0.8, hip - 0.04)), "dark", True, 0.06))
    return parts + _head(rng, -1 + head, head, skin)


def _walking(rng: np.random.Generator) -> list[Part]:
    """In profile with a stride, all in one colour or dressed."""
    plain = rng.random() < 0.4
    skin: Colour = "body" if plain else SKINS[rng.integers(len(SKINS))]
    trousers: Colour = "body" if plain else ("body", "shade", (50, 60, 90))[rng.integers(3)]
    head, stride, leg = rng.uniform(0.17, 0.22), rng.uniform(0.12, 0.5), rng.uniform(0.15, 0.2)
    neck = -1 + 2 * head
    lean = rng.uniform(0.0, 0.1)
    swing = rng.uniform(0.28, 0.42)
    back_arm = _limb(0.13, (0, neck + 0.18), (-swing * 0.8, neck + 0.38), (-swing - 0.05, 0.0))
    front_arm = _limb(0.13, (0, neck + 0.18), (swing * 0.55, neck + 0.45), (swing + 0.15, neck + 0.5))
    back_leg = _limb(leg, (-0.02, 0.05), (-stride * 0.4, 0.48), (-stride - 0.15, 0.88))
    front_leg = _limb(leg, (0.02, 0.05), (stride * 0.75, 0.45), (stride * 0.8, 0.92))
    parts = [Part(back_arm, "body" if plain else "shade"), Part(back_leg, trousers), Part(front_leg, trousers)]
    if not plain:
        parts += [
            Part(ellipse(-stride - 0.1, 0.93, 0.13, 0.07, 16), (50, 40, 40)),
            Part(ellipse(stride * 0.8 + 0.06, 0.95, 0.14, 0.06, 16), (50, 40, 40)),
            Part(ellipse(swing + 0.2, neck + 0.49, 0.08, n=14), skin),
            Part(rectangle(lean - 0.06, neck - 0.1, lean + 0.06, neck + 0.12), skin),
        ]
    parts.append(Part(_limb(rng.uniform(0.3, 0.38), (lean * 0.6, neck + 0.22), (0, 0.05))))
    parts.append(Part(front_arm, "body" if plain else "tint", plain and rng.random() < 0.3))
    if plain:
        return [*parts, Part(ellipse(lean + 0.04, -1 + head * 0.9, head, n=24))]
    figure = _head(rng, -1 + head, head, skin)
    return parts + [replace(part, points=part.points + [lean, 0]) for part in figure if not part.detail]


def _pictogram(rng: np.random.Generator) -> list[Part]:
    """The figure on a restroom door, all in the body colour."""
    head, w, arm = rng.uniform(0.17, 0.23), rng.uniform(0.24, 0.32), rng.uniform(0.12, 0.16)
    top, hip = -1 + 2 * head + rng.uniform(0.04, 0.08), rng.uniform(0.05, 0.2)
    parts = [Part(ellipse(0, -1 + head, head, n=28))]
    gap = rng.uniform(0.015, 0.04)
    if rng.random() < 0.35:
        parts += [Part(rectangle(side * gap, hip, side * (gap + 0.14), 1)) for side in (-1, 1)]
        parts += [Part(_limb(arm, (side * w * 0.8, top + 0.08), (side * (w + 0.2), hip))) for side in (-1, 1)]
        parts.append(Part(polygon((-w * 0.7, top), (w * 0.7, top), (w + 0.18, hip + 0.15), (-w - 0.18, hip + 0.15))))
        return parts
    raised = rng.random() < 0.35
    for side in (-1, 1):
        hand = (w + 0.3, top - 0.35) if raised and side == 1 else (side * (w + arm * rng.uniform(0.6, 0.9)), hip + 0.05)
        parts.append(Part(_limb(arm, (side * (w - 0.03), top + arm * 0.7), hand)))
        parts.append(Part(rectangle(side * gap, hip - 0.1, side * w * 0.85, 1, rng.uniform(0.0, 0.08))))
    parts.append(Part(rectangle(-w, top, w, hip + 0.02, rng.uniform(0.04, 0.14))))
    return parts


def _bust(rng: np.random.Generator) -> list[Part]:
    """Head and shoulders, as for a user account."""
    plain = rng.random() < 0.45
    r, w, top = rng.uniform(0.38, 0.46), rng.uniform(0.75, 0.95), rng.uniform(0.0, 0.1)
    shoulders = np.concatenate([arc(0, 0.95, w, 0.95 - top, 180, 360, 30), polygon((w, 1), (-w, 1))])
    if plain:
        return [Part(shoulders), Part(ellipse(0, -1 + r * 1.05, r, r * 1.05))]
    skin: Colour = SKINS[rng.integers(len(SKINS))]
    y, collar = top - r * 0.85, rng.uniform(0.18, 0.3)
    head = _head(rng, y, r, skin)
    parts = [
        Part(shoulders),
        Part(rectangle(-0.14, y, 0.14, top + 0.1), skin),
        Part(polygon((-collar, top + 0.03), (collar, top + 0.03), (0, top + 0.3)), skin, rng.random() < 0.5),
    ]
    if rng.random() < 0.5:
        parts += [Part(polygon((side * w * 0.6, 0.7), (side * w * 0.6, 1)), "shade", True, 0.04) for side in (-1, 1)]
    skip = 1 if head[0].paint in HAIRS else 0
    return head[:skip] + parts + head[skip:]
