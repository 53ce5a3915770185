"""report.json and report.html: the figures of a run with their intervals, and cases for a person to look at.

report.html is one file that needs no server and loads nothing: images are JPEG data inside it, plots are SVG, and a
policy in its head forbids everything else. It follows the reader's light or dark setting and fits a phone.
Figures are shown times 100, as papers print them; report.json has them as they are.
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

from minigptv2.boxes import Box
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import BenchmarkReport, Figure, ScoredAnswer
from minigptv2.eval.metrics import overlap
from minigptv2.eval.plots import plots
from minigptv2.files import atomic_write

WORST, RANDOM = 50, 20
_MOST_BYTES = 7_000_000  # of all images, as they stand in the file; the whole stays under 8 MB
_SIDES = (448, 384, 320, 256, 192, 128, 96, 64)  # longest side of an image, the first that fits
_QUALITY = 72
_TALLEST = 18  # rem, of an image on the page
_MOST_LETTERS = 400  # of a question or an answer

_SCORING = {
    "strict": "strict: IoU of continuous boxes, right at or above the threshold",
    "compat": "compat: boxes a pixel larger, right above the threshold, as the published code",
}
_DECODE = {"floor": "floor: box numbers as they are", "center": "center: box numbers plus half a hundredth"}


def write(folder: str | Path, reports: Sequence[BenchmarkReport]) -> None:
    """Write report.json and report.html of one run into the folder; earlier ones are replaced whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(to_dict(reports), indent=2, default=str) + "\n"),
        ("report.html", page(reports)),
    ):
        with atomic_write(folder / name) as new:
            new.write_text(text, encoding="utf-8", errors="replace")


def to_dict(reports: Sequence[BenchmarkReport]) -> dict[str, Any]:
    """What report.json holds: everything but the cases, and the numbers of those that report.html shows."""
    out = []
    for report in reports:
        row = {k: v for k, v in vars(report).items() if k not in ("cases", "figures", "rules")}
        row |= {"figures": {name: asdict(f) for name, f in report.figures.items()}, "rules": asdict(report.rules)}
        worst, others = worst_cases(report), random_cases(report)
        out.append(row | {"shown": {"worst": [c.index for c in worst], "random": [c.index for c in others]}})
    return {"reports": out}


def worst_cases(report: BenchmarkReport, most: int = WORST) -> list[ScoredAnswer]:
    """The cases with the lowest outcome, then the lowest IoU; those that are wholly right are not among them."""
    wrong = [c for c in report.cases if c.score is not None and c.score < 1]
    return sorted(wrong, key=lambda c: (c.score, case_iou(c, report) or 0.0, c.index))[:most]


def random_cases(report: BenchmarkReport, most: int = RANDOM, seed: int = 0) -> list[ScoredAnswer]:
    """Cases drawn evenly, in their order; the same ones each time."""
    drawn = random.Random(seed).sample(range(len(report.cases)), min(most, len(report.cases)))
    return [report.cases[n] for n in sorted(drawn)]


def case_iou(case: ScoredAnswer, report: BenchmarkReport) -> float | None:
    """The IoU that was scored, where one box is right: with the answer's first box, 0 without one. None where words
    were asked for: the box is then what the question is about."""
    if len(case.truth) != 1 or (case.expected and not case.boxes):
        return None
    return overlap(case.boxes[0], case.truth[0], report.rules.scoring) if case.boxes else 0.0


# ---- the page ----


def page(reports: Sequence[BenchmarkReport]) -> str:
    """The whole of report.html."""
    shown = [(report, worst_cases(report), random_cases(report)) for report in reports]
    count = sum(len(worst) + len(others) for _, worst, others in shown)
    images = _Images(_MOST_BYTES // max(1, count))
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
        f"<style>{_STYLE}</style></head><body><header><h1>Evaluation: {_text(title)}</h1>{contents}</header>"
        f"<main>{sections}</main></body></html>\n"
    )


def _section(
    number: int, report: BenchmarkReport, worst: list[ScoredAnswer], others: list[ScoredAnswer], images: _Images
) -> str:
    parts = [f'<section id="b{number}"><h2>{_text(report.name)}</h2>', _figures(report), _settings(report)]
    drawings = "".join(plots(report.cases))
    if drawings:
        judged = report.score_description or next(iter(report.figures), "the first metric")
        boxes = " Of several boxes each: found at IoU 0.5." if any(c.box_found for c in report.cases) else ""
        parts.append(
            f'<h3>Where it is right</h3><div class="note">Right: {_text(judged)}.{boxes} '
            f'Whiskers: 95 %, each answer taken as independent.</div><div class="plots">{drawings}</div>'
        )
    for heading, cases in ((f"The {len(worst)} worst cases", worst), (f"{len(others)} cases drawn at random", others)):
        if cases:
            cards = "".join(_card(case, report, images) for case in cases)
            parts.append(f'<h3>{heading}</h3>{_legend(cases)}<div class="cases">{cards}</div>')
    if not worst and any(c.score is not None for c in report.cases):
        parts.append('<div class="note">No case is wrong.</div>')
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
        "Figures times 100. Interval: 95 %, bootstrap over images. InvalidRecord and missing answers count as wrong."
        "</caption><thead>"
        '<tr><th scope="col">metric</th><th scope="col" class="number">value</th><th scope="col" class="number">'
        '95 %</th><th scope="col"><span class="hidden">as a line</span></th><th scope="col">published</th></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><dl class="counts">{tiles}</dl>'
    )


def _range(figure: Figure) -> str:
    """The value as a dot on a line from 0 to 100, its interval as a bar, published values as strokes."""
    if not 0 <= figure.value <= 1:
        return ""

    def x(share: float) -> float:
        return round(4 + 152 * min(1.0, max(0.0, share)), 1)

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
        "decode": _DECODE.get(report.rules.decode, report.rules.decode),
    }
    if report.seconds:
        rows["time"] = f"{report.seconds:,.0f} s, {report.answers_per_second:.2f} answers per second"
    inner = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in rows.items())
    told = ""
    for heading, lines in (("Counted as wrong", report.failed), ("Rows left out", report.problems)):
        listed = "".join(f"<li>{_text(line)}</li>" for line in lines)
        told += f'<div class="problems"><strong>{heading}</strong><ul>{listed}</ul></div>' if listed else ""
    return f'<details class="settings" open><summary>Settings</summary><dl>{inner}</dl></details>{told}'


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
            ("good", "right") if case.score >= 1 else ("bad", "wrong") if case.score <= 0 else ("some", "partly")
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
    """Makes the images of cases, each within `budget` bytes as it stands in the file."""

    def __init__(self, budget: int):
        self.budget = budget

    def html(self, case: ScoredAnswer) -> str:
        """The image with the boxes over it; words in its place where it cannot be opened."""
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
            f'<div class="frame" style="width:min(100%,{_TALLEST * width / height:.2f}rem)">'
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
        place = (
            f'x="{box.x1:.1f}" y="{box.y1:.1f}" width="{max(0.0, box.x2 - box.x1):.1f}" '
            f'height="{max(0.0, box.y2 - box.y1):.1f}"'
        )
        parts.append(f'<rect class="halo" {place}/><rect class="{kind}" {place}/>')
    return "".join(parts)


def _hundred(value: float | None) -> str:
    return "\u2013" if value is None else f"{100 * value:.2f}"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}\u2026"


def _text(value: Any) -> str:
    """As HTML: markup is shown, not obeyed; characters without a shape are left out."""
    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in str(value)), quote=True)


_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f6f3;--ink:#1c1c1a;--soft:#5c5c57;--line:#d9d9d3;--blue:#0b6aa6;
--truth:#00a878;--answer:#e8590c;--good:#087355;--bad:#b3261e;--some:#8a5a00}
@media (prefers-color-scheme:dark){:root{--paper:#161615;--card:#212120;--ink:#ecece6;--soft:#a5a59d;--line:#3b3b38;
--blue:#5db3ec;--truth:#1fd6a0;--answer:#ff8a3d;--good:#4fd1a5;--bad:#ff8a80;--some:#e7b65a}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:2rem clamp(1rem,4vw,3rem) 4rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .5rem;letter-spacing:-.01em}
h2{font-size:1.35rem;margin:2.5rem 0 1rem;padding-top:1rem;border-top:1px solid var(--line)}
header+main>section:first-child h2{margin-top:1rem}
h3{font-size:1.05rem;margin:2.25rem 0 .4rem}a{color:var(--blue)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;margin:0;list-style:none}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{caption-side:bottom;text-align:left;color:var(--soft);font-size:.85rem;padding-top:.5rem}
th,td{padding:.45rem .9rem .45rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:500;font-size:.85rem}tbody th{font-weight:500}
.figures{width:100%}.number{text-align:right;white-space:nowrap}.range{width:176px}
.range svg{display:block;margin-top:.2rem}
.published{font-size:.9rem}.published span{color:var(--soft)}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.counts{display:flex;flex-wrap:wrap;gap:.75rem 2rem;margin:1.25rem 0}.counts div{margin:0}
.counts dt{color:var(--soft);font-size:.85rem}.counts dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}
summary{cursor:pointer;color:var(--soft);font-size:.9rem}summary:focus-visible,a:focus-visible,.scroll:focus-visible{
outline:2px solid var(--blue);outline-offset:2px}
.settings dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:.35rem 2rem;
margin:.6rem 0}
.settings dl div{display:flex;gap:.75rem}.settings dt{color:var(--soft);min-width:6.5rem}
.settings dd{margin:0;overflow-wrap:anywhere}
.problems{margin-top:1rem;padding:.6rem 1rem;background:var(--card);border-left:3px solid var(--some);font-size:.92rem}
.problems ul{margin:.3rem 0 0;padding-left:1.1rem;overflow-wrap:anywhere}
.note,.legend{color:var(--soft);font-size:.9rem;margin:.2rem 0 .9rem}
.legend svg{vertical-align:-.2rem;margin-right:.35rem}.legend svg+svg{margin-left:1rem}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1.25rem}
.plot{margin:0;padding:1rem;background:var(--card);border-radius:8px}.plot svg{width:100%;height:auto;display:block}
.plot figcaption{font-weight:600;margin-bottom:.4rem}.plot table{font-size:.85rem;margin-top:.4rem;width:100%}
svg text{fill:var(--ink);font-size:12px}svg .tick,svg .count{fill:var(--soft)}svg .count{font-size:10.5px}
svg .axis{fill:var(--soft);font-size:12px}
svg .tick{font-size:11px}svg .cell~.count{fill:var(--ink)}svg .value{font-size:15px;font-weight:600}
.grid{stroke:var(--line);stroke-width:1}.bar,.cell{fill:var(--blue)}.bar{fill-opacity:.75}
.whisker{stroke:var(--ink);stroke-width:1.4;fill:none}.interval{fill:var(--blue);fill-opacity:.35}
.dot{fill:var(--blue)}.other{stroke:var(--answer);stroke-width:2}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,16.5rem),1fr));gap:1.25rem;align-items:start}
.case{background:var(--card);border-radius:8px;overflow:hidden;padding-bottom:.7rem}
.image{background:var(--line);line-height:0}.frame{position:relative;margin:0 auto}
.image img{width:100%;height:auto;display:block}
.boxes{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.halo,.truth,.answer{fill:none;vector-effect:non-scaling-stroke}.halo{stroke:#000;stroke-opacity:.55;stroke-width:5}
.truth{stroke:var(--truth);stroke-width:2.5}.answer{stroke:var(--answer);stroke-width:2.5;stroke-dasharray:7 4}
.none{margin:0;background:var(--card);padding:2.5rem 1rem;
line-height:1.4;color:var(--soft);text-align:center;overflow-wrap:anywhere}
.facts{display:flex;gap:.75rem;margin:.55rem .8rem .2rem;font-size:.88rem;font-variant-numeric:tabular-nums}
.index{color:var(--soft);margin-right:auto}.good{color:var(--good)}.bad{color:var(--bad)}.some{color:var(--some)}
.case dl{margin:0 .8rem;font-size:.92rem}.case dl div{display:flex;gap:.6rem}
.case dt{color:var(--soft);min-width:3.4rem}.case dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
@media (max-width:40rem){body{padding-top:1.25rem}.range,.figures th:nth-child(4){display:none}
th,td{padding-right:.6rem}}
@media print{.settings[open] summary{display:none}.case{break-inside:avoid}}
"""
