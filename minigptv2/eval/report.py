"""report.json and report.html: the metrics of a run with their intervals, and answers for a person to look at.

report.html is one file that needs no server and loads nothing: images are embedded as JPEG, plots are SVG, and a
content security policy forbids everything else. It follows the light or dark mode, and fits a phone. It shows metrics
times 100, as papers do; report.json has them unscaled.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from minigptv2.boxes import IOU_THRESHOLD, Box
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import BenchmarkReport, Figure, ScoredAnswer
from minigptv2.eval.metrics.boxes import iou
from minigptv2.eval.plots import plots
from minigptv2.files import atomic_write

WORST, RANDOM = 50, 20
_MAX_BYTES = 7_000_000  # of all images as embedded; the file stays under 8 MB
_SIDES = (448, 384, 320, 256, 192, 128, 96, 64)  # longest side of an image in pixels; the first that fits is taken
_QUALITY = 72
_MAX_HEIGHT = 18  # rem, of an image on the page
_MAX_CHARS = 400  # of a question or an answer

_SCORING = {
    "strict": "strict: IoU of continuous boxes, a hit at or above the threshold",
    "compat": "compat: boxes one pixel larger, a hit above the threshold, as the published code",
}
_BOX_ROUNDING = {"floor": "floor: box numbers as they are", "center": "center: box numbers plus half a hundredth"}


def write(folder: str | Path, reports: Sequence[BenchmarkReport]) -> None:
    """Write report.json and report.html into the folder; each replaces an earlier one atomically."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(to_dict(reports), indent=2, default=str) + "\n"),
        ("report.html", page(reports)),
    ):
        with atomic_write(folder / name) as new:
            new.write_text(text, encoding="utf-8", errors="replace")


def to_dict(reports: Sequence[BenchmarkReport]) -> dict[str, Any]:
    """The content of report.json: everything but the answers, and the indexes of those that report.html shows."""
    out = []
    for report in reports:
        row = {k: v for k, v in vars(report).items() if k not in ("cases", "figures", "rules")}
        row |= {"figures": {name: asdict(f) for name, f in report.figures.items()}, "rules": asdict(report.rules)}
        worst, others = worst_cases(report), random_cases(report)
        out.append(row | {"shown": {"worst": [c.index for c in worst], "random": [c.index for c in others]}})
    return {"reports": out}


def worst_cases(report: BenchmarkReport, count: int = WORST) -> list[ScoredAnswer]:
    """The answers with the lowest score, then the lowest IoU. Answers with score 1 are not among them."""
    wrong = [c for c in report.cases if c.score is not None and c.score < 1]
    return sorted(wrong, key=lambda c: (c.score, case_iou(c, report) or 0.0, c.index))[:count]


def random_cases(report: BenchmarkReport, count: int = RANDOM, seed: int = 0) -> list[ScoredAnswer]:
    """Answers drawn uniformly, in their order; the same ones each time."""
    drawn = random.Random(seed).sample(range(len(report.cases)), min(count, len(report.cases)))
    return [report.cases[n] for n in sorted(drawn)]


def case_iou(case: ScoredAnswer, report: BenchmarkReport) -> float | None:
    """The IoU of the answer's first box with the expected one, as it was scored; 0 without a box. None if more than one
    box, or none, is expected, and if words are (the box is then part of the question)."""
    if len(case.truth) != 1 or (case.expected and not case.boxes):
        return None
    return iou(case.boxes[0], case.truth[0], report.rules.plus_one) if case.boxes else 0.0


# ---- the page ----


def page(reports: Sequence[BenchmarkReport]) -> str:
    """The content of report.html."""
    shown = [(report, worst_cases(report), random_cases(report)) for report in reports]
    count = sum(len(worst) + len(others) for _, worst, others in shown)
    images = _Images(_MAX_BYTES // max(1, count))
    sections = "".join(_section(n, *each, images) for n, each in enumerate(shown))
    title = reports[0].name if len(reports) == 1 else f"{len(reports)} benchmarks"
    links = "".join(f'<li><a href="#b{n}">{_text(r.name)}</a></li>' for n, r in enumerate(reports))
    contents = f'<nav aria-label="Benchmarks"><ul>{links}</ul></nav>' if len(reports) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>Evaluation: {_text(title)}</title>'
        f"<style>\n{_style()}</style></head><body><header><h1>Evaluation: {_text(title)}</h1>{contents}</header>"
        f"<main>{sections}</main></body></html>\n"
    )


def _style() -> str:
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def _section(
    number: int, report: BenchmarkReport, worst: list[ScoredAnswer], others: list[ScoredAnswer], images: _Images
) -> str:
    parts = [f'<section id="b{number}"><h2>{_text(report.name)}</h2>', _figures(report), _settings(report)]
    drawings = "".join(plots(report.cases))
    if drawings:
        description = report.score_description or next(iter(report.figures), "the first metric")
        boxes = (
            f" With several boxes, each counts: found at IoU {IOU_THRESHOLD}."
            if any(c.box_found for c in report.cases)
            else ""
        )
        parts.append(
            f'<h3>Scores by size, position and length</h3><div class="note">Score: {_text(description)}.{boxes} '
            f'Whiskers: 95 %, with answers taken as independent.</div><div class="plots">{drawings}</div>'
        )
    for heading, cases in (
        (f"The {len(worst)} worst answers", worst),
        (f"{len(others)} answers drawn at random", others),
    ):
        if cases:
            cards = "".join(_card(case, report, images) for case in cases)
            parts.append(f'<h3>{heading}</h3>{_legend(cases)}<div class="cases">{cards}</div>')
    if not worst and any(c.score is not None for c in report.cases):
        parts.append('<div class="note">No answer is wrong.</div>')
    return "".join([*parts, "</section>"])


def _figures(report: BenchmarkReport) -> str:
    rows = []
    for name, figure in report.figures.items():
        interval = f"{_hundred(figure.low)}\u2013{_hundred(figure.high)}" if figure.low is not None else "\u2013"
        published = "<br>".join(
            f"{_hundred(p.value)} <span>{_text(p.model)}, {_text(p.source)}</span>" for p in figure.published
        )
        rows.append(
            f'<tr><th scope="row">{_text(name)}</th><td class="number"><strong>{_hundred(figure.value)}</strong></td>'
            f'<td class="number">{interval}</td><td class="range">{_range(figure)}</td>'
            f'<td class="published">{published or "&ndash;"}</td></tr>'
        )
    counts = {"answers": report.total, "malformed": report.invalid, "missing": report.missing}
    if report.absent:
        counts["images not on disk"] = report.absent
    tiles = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{value:,}</dd></div>" for name, value in {**counts, **report.counts}.items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Figures"><table class="figures"><caption>'
        "Values times 100. Interval: 95 %, bootstrap over images. Malformed and missing answers count as wrong."
        "</caption><thead>"
        '<tr><th scope="col">metric</th><th scope="col" class="number">value</th><th scope="col" class="number">'
        '95 %</th><th scope="col"><span class="hidden">as a line</span></th><th scope="col">published</th></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><dl class="counts">{tiles}</dl>'
    )


def _range(figure: Figure) -> str:
    """The value as a dot on a line from 0 to 100, its interval as a bar, published values as ticks."""
    if not 0 <= figure.value <= 1:
        return ""

    def x(fraction: float) -> float:
        return round(4 + 152 * min(1.0, max(0.0, fraction)), 1)

    parts = ['<line class="grid" x1="4" x2="156" y1="9" y2="9"/>']
    if figure.low is not None:
        parts.append(
            f'<rect class="interval" x="{x(figure.low)}" y="6" height="6" rx="3" '
            f'width="{max(1.0, x(figure.high) - x(figure.low)):.1f}"/>'
        )
    parts += [f'<line class="other" x1="{x(p.value)}" x2="{x(p.value)}" y1="2" y2="16"/>' for p in figure.published]
    parts.append(f'<circle class="dot" cx="{x(figure.value)}" cy="9" r="4"/>')
    return f'<svg viewBox="0 0 160 18" width="160" height="18" aria-hidden="true">{"".join(parts)}</svg>'


def _settings(report: BenchmarkReport) -> str:
    rows = {
        "benchmark": report.benchmark,
        **report.settings,
        "model": report.model,
        "scoring": _SCORING.get(report.rules.scoring, report.rules.scoring),
        "box rounding": _BOX_ROUNDING.get(report.rules.box_rounding, report.rules.box_rounding),
    }
    if report.seconds:
        rows["time"] = f"{report.seconds:,.0f} s, {report.answers_per_second:.2f} answers per second"
    inner = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in rows.items())
    notes = ""
    for heading, lines in (("Counted as wrong", report.failed), ("Rows left out", report.problems)):
        listed = "".join(f"<li>{_text(line)}</li>" for line in lines)
        notes += f'<div class="problems"><strong>{heading}</strong><ul>{listed}</ul></div>' if listed else ""
    return f'<details class="settings" open><summary>Settings</summary><dl>{inner}</dl></details>{notes}'


def _legend(cases: Sequence[ScoredAnswer]) -> str:
    if not any(c.truth or c.boxes for c in cases):
        return ""
    keys = "".join(
        '<svg viewBox="0 0 30 16" width="30" height="16" aria-hidden="true">'
        '<rect class="halo" x="3" y="3" width="24" height="10"/>'
        f'<rect class="{kind}" x="3" y="3" width="24" height="10"/>'
        f"</svg>{word} "
        for kind, word in (("truth", "truth (solid)"), ("answer", "answer (dashed)"))
    )
    return f'<div class="legend">{keys}</div>'


def _card(case: ScoredAnswer, report: BenchmarkReport, images: _Images) -> str:
    iou = case_iou(case, report)
    facts = [] if iou is None else [f"IoU {iou:.2f}"]
    if case.score is not None:
        mark, word = (
            ("good", "correct") if case.score >= 1 else ("bad", "wrong") if case.score <= 0 else ("some", "partly")
        )
        facts.append(f'<span class="{mark}">{word}{f" {case.score:.2f}" if mark == "some" else ""}</span>')
    rows = [("asked", case.words), ("truth", case.expected), ("answer", case.answer)]
    if not case.expected and not case.truth:
        rows[1] = ("truth", "none")
    words = "".join(
        f"<div><dt>{name}</dt><dd>{_text(_short(value)) or '<em>empty</em>'}</dd></div>"
        for name, value in rows
        if value or name == "answer"
    )
    return (
        f'<article class="case"><div class="image">{images.html(case)}</div>'
        f'<div class="facts"><span class="index">#{case.index}</span> {" ".join(facts)}</div><dl>{words}</dl></article>'
    )


class _Images:
    """Embeds images, each in at most `budget` bytes."""

    def __init__(self, budget: int):
        self.budget = budget

    def html(self, case: ScoredAnswer) -> str:
        """The image with its boxes; text instead if it cannot be opened."""
        from minigptv2.images import open_image

        alt = escape(_short(f"case {case.index}: {case.words}"), quote=True)
        if case.image is None:
            return '<div class="none">no image</div>'
        try:
            image = open_image(case.image() if callable(case.image) else case.image)
        except UserError as error:
            return f'<div class="none">{_text(error.given)}</div>'
        data = base64.b64encode(self._jpeg(image)).decode("ascii")
        width, height = image.size
        return (
            f'<div class="frame" style="width:min(100%,{_MAX_HEIGHT * width / height:.2f}rem)">'
            f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/jpeg;base64,{data}">'
            f'<svg class="boxes" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
            f"{_rectangles(case.truth, 'truth')}{_rectangles(case.boxes, 'answer')}</svg></div>"
        )

    def _jpeg(self, image) -> bytes:
        small = image.copy()
        for side in _SIDES:
            small.thumbnail((side, side))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
            if buffer.tell() * 4 // 3 + 200 <= self.budget:
                break
        return buffer.getvalue()


def _rectangles(boxes: Sequence[Box], kind: str) -> str:
    parts = []
    for box in boxes:
        position = (
            f'x="{box.x1:.1f}" y="{box.y1:.1f}" width="{max(0.0, box.x2 - box.x1):.1f}" '
            f'height="{max(0.0, box.y2 - box.y1):.1f}"'
        )
        parts.append(f'<rect class="halo" {position}/><rect class="{kind}" {position}/>')
    return "".join(parts)


def _hundred(value: float | None) -> str:
    return "\u2013" if value is None else f"{100 * value:.2f}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}\u2026"


def _text(value: Any) -> str:
    """Escaped for HTML; unprintable characters become spaces."""
    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in str(value)), quote=True)
