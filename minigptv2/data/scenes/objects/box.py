"""Boxes: cube in perspective, taped parcel seen from an edge, gift with a bow, wooden crate, open carton."""

import numpy as np

from .sketch import Part, arc, ellipse, polygon, rectangle, smooth

CREAM, GOLD = (245, 225, 180), (250, 205, 60)


def _cube(rng: np.random.Generator) -> list[Part]:
    """Front face, top and one side, with tape over the front and the top."""
    w, h = rng.uniform(0.55, 0.85), rng.uniform(0.45, 0.8)
    dx, dy = rng.uniform(0.25, 0.5), -rng.uniform(0.2, 0.4)
    top, side = ("tint", "shade") if rng.random() < 0.7 else ("shade", "shade")
    parts = [
        Part(rectangle(-w, -h, w, h)),
        Part(polygon((-w, -h), (-w + dx, -h + dy), (w + dx, -h + dy), (w, -h)), top),
        Part(polygon((w, -h), (w + dx, -h + dy), (w + dx, h + dy), (w, h)), side),
    ]
    t = w * rng.uniform(0.1, 0.2)
    if rng.random() < 0.7:
        tape = CREAM if rng.random() < 0.5 else "shade" if top == "tint" else "tint"
        end = -h + h * rng.uniform(0.3, 0.7)
        strip = polygon((-t, end), (-t, -h), (dx - t, -h + dy), (dx + t, -h + dy), (t, -h), (t, end))
        parts.append(Part(strip, tape, detail=rng.random() < 0.5))
    parts.append(Part(rectangle(w * 0.2, h * 0.35, w * 0.8, h * 0.8), (245, 245, 240), detail=True))
    parts.append(Part(polygon((w * 0.3, h * 0.5), (w * 0.7, h * 0.5)), "dark", detail=True, width=0.04))
    return parts if rng.random() < 0.6 else [Part(p.points * [-1, 1], p.paint, p.detail, p.width) for p in parts]


def _parcel(rng: np.random.Generator) -> list[Part]:
    """Seen from an edge: two sides and the top as a rhombus."""
    w, rise, h = rng.uniform(0.75, 1.0), rng.uniform(0.28, 0.5), rng.uniform(0.7, 1.1)
    y = -h / 2
    left, right = ("body", "shade") if rng.random() < 0.6 else ("shade", "body")
    parts = [
        Part(polygon((-w, y), (0, y + rise), (0, y + rise + h), (-w, y + h)), left),
        Part(polygon((w, y), (0, y + rise), (0, y + rise + h), (w, y + h)), right),
        Part(polygon((-w, y), (0, y - rise), (w, y), (0, y + rise)), "tint"),
    ]
    if rng.random() < 0.75:
        a, b, drop = 0.4, 0.6, h * rng.uniform(0.2, 0.5)
        near = [(-w + a * w, y + a * rise), (-w + b * w, y + b * rise)]
        far = [(b * w, y - rise + b * rise), (a * w, y - rise + a * rise)]
        tape = CREAM if rng.random() < 0.6 else "shade"
        parts += [
            Part(polygon(*near, *far), tape),
            Part(polygon(*near, (near[1][0], near[1][1] + drop), (near[0][0], near[0][1] + drop)), tape),
        ]
    return parts


def _gift(rng: np.random.Generator) -> list[Part]:
    w, h, lid = rng.uniform(0.65, 0.85), rng.uniform(0.5, 0.8), rng.uniform(0.22, 0.34)
    over, t = rng.uniform(0.0, 0.12), rng.uniform(0.08, 0.16)
    ribbon = (GOLD, "tint", "shade", (250, 245, 240))[rng.integers(4)]
    size, y = rng.uniform(0.28, 0.42), -h - lid
    loop = smooth((0, y), (size * 0.5, y - size * 0.95), (size * 1.2, y - size * 0.8), (size * 1.1, y - size * 0.1))
    return [
        Part(rectangle(-w, -h, w, h, rng.uniform(0, 0.1))),
        Part(rectangle(-w - over, -h - lid, w + over, -h, rng.uniform(0, 0.08)), "body" if over > 0.06 else "shade"),
        Part(rectangle(-w, -h, w, -h + 0.07), "shade", detail=True),
        Part(rectangle(-t, -h - lid, t, h), ribbon),
        Part(loop, ribbon),
        Part(loop * [-1, 1], ribbon),
        Part(ellipse(0, y - 0.02, t * 0.9, t * 0.8, 16), ribbon),
    ]


def _crate(rng: np.random.Generator) -> list[Part]:
    h = rng.uniform(0.75, 1.0)
    frame = rng.uniform(0.16, 0.26)
    x, y = 1 - frame, h - frame
    beam = frame * 0.8
    planks = [Part(polygon((-x, v * y), (x, v * y)), "dark", detail=True, width=0.03) for v in (-0.5, 0, 0.5)]
    slant = Part(polygon((-x, y), (-x, y - beam), (x - beam, -y), (x, -y), (x, -y + beam), (-x + beam, y)), "body")
    cross = [slant] if rng.random() < 0.5 else [slant, Part(slant.points * [-1, 1], "body")]
    nails = [
        Part(ellipse(i * (1 - frame / 2), j * (h - frame / 2), 0.035, n=8), "dark", detail=True)
        for i in (-1, 1)
        for j in (-1, 1)
    ]
    edges = [Part(rectangle(-1, -h, 1, -y), "body"), Part(rectangle(-1, y, 1, h), "body")]
    return [Part(rectangle(-1, -h, 1, h)), Part(rectangle(-x, -y, x, y), "shade"), *planks, *cross, *edges, *nails]


def _open(rng: np.random.Generator) -> list[Part]:
    """A carton with its flaps folded out."""
    w, h, depth = rng.uniform(0.6, 0.75), rng.uniform(0.35, 0.6), rng.uniform(0.2, 0.36)
    inset, flap = rng.uniform(0.05, 0.2), rng.uniform(0.22, 0.34)
    back = -h - depth
    handle = arc(0, h * 0.05, w * 0.25, 0.07, 0, 180, 10)
    return [
        Part(
            polygon((-w + inset, back), (w - inset, back), (w - inset / 3, back - flap), (inset / 3 - w, back - flap))
        ),
        Part(polygon((-w, -h), (-w + inset, back), (w - inset, back), (w, -h)), "dark"),
        Part(polygon((-w, -h), (-w + inset, back), (-w - flap + inset, back - 0.05), (-w - flap, -h + 0.05)), "tint"),
        Part(polygon((w, -h), (w - inset, back), (w + flap - inset, back - 0.05), (w + flap, -h + 0.05)), "tint"),
        Part(rectangle(-w, -h, w, h)),
        Part(polygon((-w, -h), (w, -h), (w + 0.08, -h + flap), (-w - 0.08, -h + flap)), "shade"),
        Part(handle + [0, h * 0.3], "dark", detail=True),
    ]


def box(rng: np.random.Generator) -> list[Part]:
    return (_cube, _parcel, _gift, _crate, _open)[rng.choice(5, p=[0.3, 0.2, 0.2, 0.12, 0.18])](rng)
