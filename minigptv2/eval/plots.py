"""Plots of the mean score by box size, box position and length of the expression, as SVG for report.html.

Colours come from the style sheet of the report, so that they follow its light or dark mode. Every plot has a title,
named axes, and its numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from minigptv2.eval.benchmark import ScoredAnswer

# upper ends of the bins, the last one open
_SIDES = (32, 64, 96, 160, 256)  # pixels
_WORDS = (1, 2, 3, 4, 6, 9)
_THIRDS = (("top", "middle", "bottom"), ("left", "centre", "right"))
_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 4, 12, 56  # margins of the bars


@dataclass(frozen=True)
class Bin:
    """Answers of one bin: their number, and their mean score, 0..1, with its 95 % interval."""

    label: str
    count: int
    mean: float
    low: float
    high: float


def plots(cases: Sequence[ScoredAnswer]) -> Iterator[str]:
    """The plots that these answers allow, as HTML. Answers without a score are left out."""
    scored = [c for c in cases if c.score is not None]
    boxed = [one for c in scored for one in _boxes(c)]
    if boxed:
        name = "Side of a square of the object's area, pixels"
        yield _bars("By box size", name, by_size(boxed))
        placed = [c for c in boxed if min(c.size) > 0]
        if placed:
            yield _grid("By box position", "Where the middle of the object lies", by_position(placed))
    worded = [c for c in scored if c.words.strip()]
    if len({c.words for c in worded}) > 1:  # all captions are asked for with the same words
        yield _bars("By length", "Words of the expression or question", by_length(worded))


def _boxes(case: ScoredAnswer) -> list[ScoredAnswer]:
    """One entry for each box with a score of its own."""
    if case.box_found:
        pairs = zip(case.truth, case.box_found, strict=True)
        return [replace(case, truth=(box,), score=float(found)) for box, found in pairs if found is not None]
    return [case] if len(case.truth) == 1 else []


def by_size(cases: Sequence[ScoredAnswer]) -> list[Bin]:
    return _binned([(math.sqrt(c.truth[0].area), c.score) for c in cases], _SIDES, integers=False)


def by_length(cases: Sequence[ScoredAnswer]) -> list[Bin]:
    return _binned([(len(c.words.split()), c.score) for c in cases], _WORDS, integers=True)


def by_position(cases: Sequence[ScoredAnswer]) -> list[Bin]:
    """Nine bins, row by row from the top left."""
    cells: dict[tuple[int, int], list[float]] = {}
    for c in cases:
        x, y = c.truth[0].center
        cell = tuple(min(2, max(0, int(3 * v / side))) for v, side in ((y, c.size[1]), (x, c.size[0])))
        cells.setdefault(cell, []).append(c.score)
    return [
        _bin(f"{row} {column}", cells.get((i, j), []))
        for i, row in enumerate(_THIRDS[0])
        for j, column in enumerate(_THIRDS[1])
    ]


def _binned(values: Sequence[tuple[float, float]], ends: Sequence[int], integers: bool) -> list[Bin]:
    """integers: bins include their upper end. Otherwise they are half-open, [start, end)."""
    inside: list[list[float]] = [[] for _ in (*ends, 0)]
    for value, score in values:
        inside[sum(value > e if integers else value >= e for e in ends)].append(score)
    starts = (0, *ends)
    labels = []
    for start, end in zip(starts, ends):
        first = start + 1 if integers else start
        labels.append(f"{end}" if integers and first == end else f"{first}\u2013{end}")
    labels.append(f"{ends[-1] + 1}+" if integers else f"{ends[-1]}+")
    return [_bin(label, scores) for label, scores in zip(labels, inside, strict=True)]


def _bin(label: str, scores: Sequence[float]) -> Bin:
    if not scores:
        return Bin(label, 0, 0.0, 0.0, 0.0)
    mean = sum(scores) / len(scores)
    return Bin(label, len(scores), mean, *wilson(mean, len(scores)))


def wilson(mean: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion of `count` independent cases. Edwin Wilson, JASA 22 (1927), p. 209."""
    z = 1.959964
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _bars(title: str, axis: str, bins: Sequence[Bin]) -> str:
    high, wide = _HEIGHT - _TOP - _BOTTOM, (_WIDTH - _LEFT - _RIGHT) / len(bins)

    def y(fraction: float) -> float:
        return round(_TOP + high * (1 - fraction), 1)

    parts = []
    for tick in range(0, 101, 25):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick / 100)}" y2="{y(tick / 100)}"/>'
        )
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(tick / 100) + 4}" text-anchor="end">{tick}</text>')
    for n, b in enumerate(bins):
        middle, half = round(_LEFT + wide * (n + 0.5), 1), round(wide * 0.34, 1)
        if b.count:
            parts.append(
                f'<rect class="bar" x="{middle - half:.1f}" y="{y(b.mean)}" width="{2 * half}" '
                f'height="{y(0) - y(b.mean):.1f}" rx="2"/>'
            )
            parts.append(
                f'<path class="whisker" d="M{middle} {y(b.low)}V{y(b.high)}M{middle - 4:.1f} {y(b.low)}h8'
                f'M{middle - 4:.1f} {y(b.high)}h8"/>'
            )
        parts.append(f'<text class="tick" x="{middle}" y="{y(0) + 15}" text-anchor="middle">{escape(b.label)}</text>')
        parts.append(f'<text class="count" x="{middle}" y="{y(0) + 29}" text-anchor="middle">n={b.count}</text>')
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(axis)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {_TOP + high / 2}) rotate(-90)" text-anchor="middle">'
        "Score, %</text>"
    )
    return _plot(title, f"{axis}: mean score", parts, bins)


def _grid(title: str, axis: str, bins: Sequence[Bin]) -> str:
    side, gap, left, stretch = 58, 4, 72, 1.55
    parts = []
    for n, b in enumerate(bins):
        row, column = divmod(n, 3)
        x, y = left + column * (side + gap) * stretch, _TOP + row * (side + gap)
        width = side * stretch
        percent = f"{100 * b.mean:.1f}" if b.count else "\u2013"
        parts.append(
            f'<rect class="cell" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{side}" rx="3" '
            f'fill-opacity="{0.08 + 0.5 * b.mean if b.count else 0.04:.2f}"/>'
        )
        parts.append(
            f'<text class="value" x="{x + width / 2:.1f}" y="{y + side / 2 + 1}" text-anchor="middle">{percent}</text>'
        )
        parts.append(
            f'<text class="count" x="{x + width / 2:.1f}" y="{y + side / 2 + 17}" text-anchor="middle">'
            f"n={b.count}</text>"
        )
        if column == 0:
            parts.append(
                f'<text class="tick" x="{left - 8}" y="{y + side / 2 + 4}" text-anchor="end">{_THIRDS[0][row]}</text>'
            )
        if row == 2:
            parts.append(
                f'<text class="tick" x="{x + width / 2:.1f}" y="{y + side + 15}" text-anchor="middle">'
                f"{_THIRDS[1][column]}</text>"
            )
    parts.append(
        f'<text class="axis" x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(axis)}; score, %</text>'
    )
    return _plot(title, f"{axis}: mean score", parts, bins)


def _plot(title: str, description: str, parts: Sequence[str], bins: Sequence[Bin]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(b.label)}</th><td>{b.count}</td>'
        + (
            f"<td>{100 * b.mean:.1f}</td><td>{100 * b.low:.1f}\u2013{100 * b.high:.1f}</td></tr>"
            if b.count
            else "<td>\u2013</td><td>\u2013</td></tr>"
        )
        for b in bins
    )
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
        f'<details><summary>Numbers</summary><table><thead><tr><th scope="col">bin</th><th scope="col">cases</th>'
        f'<th scope="col">score, %</th><th scope="col">95 %</th></tr></thead><tbody>{rows}</tbody></table></details>'
        "</figure>"
    )
