"""`minigptv2 eval CONFIG`: ask a benchmark's questions, or take answers that are there; score; print; write a report.

Under torchrun each process asks the questions about its share of the images; all append to one file of answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigptv2.bundled import find_recipe, model_folder
from minigptv2.config import from_dict, read_yaml
from minigptv2.data.dataset import ProblemCounter
from minigptv2.devices import choose_device
from minigptv2.errors import UserError
from minigptv2.eval import formats, metrics
from minigptv2.eval.benchmark import (
    BENCHMARKS,
    Benchmark,
    BenchmarkReport,
    Decode,
    Figure,
    Prediction,
    Question,
    Scored,
    Scoring,
    ScoringRules,
    open_benchmark,
    options_of,
)
from minigptv2.eval.inference import BAD_IMAGE, Unasked, missing_image_paths, run_inference, shard_of
from minigptv2.eval.predictions import (
    PredictionsFile,
    load_external_predictions,
    model_fingerprint,
    one_run,
    run_header,
    told_where_it_cannot_be_written,
)

SMOKE, SMOKE_IMAGES = 16, 2  # questions, or images of a benchmark that makes them
_AGAIN = "Make room, or give another output=; answers that are there are not asked again."
_PATIENCE = 7 * 24 * 3600  # seconds that a process waits for the others


@dataclass
class EvalConfig:
    """What every benchmark understands; all other keys are options of the benchmark itself.

    model: a model folder, "" for the bundled one. base: of a folder that holds only what was trained, the whole model
    folder that it was trained from. output: folder for answers.jsonl, report.json and report.html.
    batch: answers written together. limit: the first so many questions, 0 for all. scoring and decode: see
    `benchmark.ScoringRules`; decode "" is that of the model, or "floor" for answers of another source. rescore: a file
    of answers to score instead of asking a model. allow_missing: questions whose image is not on disk or cannot be
    opened are left out and counted; without it, an image that is not on disk is an error at the start, and one that
    cannot be opened, which shows while it is asked about, counts as wrong. export_coco, export_lmms: a file for the
    boxes in another program's format, see `exchange`. runs: several benchmarks, each a mapping of what it adds to these
    keys."""

    benchmark: str = ""
    model: str = ""
    base: str = ""
    output: str = "output/eval"
    device: str = ""
    dtype: str = ""
    quantize: str = ""
    batch: int = 16
    limit: int = 0
    scoring: Scoring = "strict"
    decode: str = ""
    rescore: str = ""
    allow_missing: bool = False
    export_coco: str = ""
    export_lmms: str = ""

    @property
    def exports(self) -> dict[formats.Form, str]:
        files: dict[formats.Form, str] = {"coco": self.export_coco, "lmms": self.export_lmms}
        return {form: file for form, file in files.items() if file}


@dataclass
class _Run:
    config: EvalConfig
    benchmark: Benchmark
    folder: Path


def run(
    config: str | Path,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    rescore: str | None = None,
    allow_missing: bool = False,
    export_coco: str | None = None,
    export_lmms: str | None = None,
    base: str | None = None,
) -> list[BenchmarkReport]:
    """Evaluate and print; one report a benchmark. smoke: a few questions, to see that it runs."""
    from minigptv2.eval.report import write

    file = find_recipe("eval", config)
    given = read_yaml(file, list(overrides))
    given |= {"rescore": rescore} if rescore else {}
    given |= {"allow_missing": True} if allow_missing else {}
    given |= {"export_coco": export_coco} if export_coco else {}
    given |= {"export_lmms": export_lmms} if export_lmms else {}
    given |= {"base": base} if base else {}
    reports = []
    with _processes() as (rank, world):
        runs, models = _runs(given, str(file), smoke), {}
        for one in runs:
            with one_run(one.folder) if rank == 0 else nullcontext():
                report = _evaluate(one, models, rank, world)
                if report is not None:
                    with told_where_it_cannot_be_written(one.folder, _AGAIN):
                        write(one.folder, [report])
                    print(table(report), flush=True)
                    reports.append(report)
        if len(runs) > 1 and rank == 0:
            folder = Path(given.get("output") or EvalConfig.output)
            with told_where_it_cannot_be_written(folder, _AGAIN):
                write(folder, reports)
    return reports


def _runs(given: dict[str, Any], where: str, smoke: bool) -> list[_Run]:
    """Every benchmark of the config with its options, checked before any is asked."""
    given = dict(given)
    several = given.pop("runs", None)
    if several is None:
        several = [{}]
    if not isinstance(several, list) or not several or not all(isinstance(r, dict) for r in several):
        raise UserError(
            f"{where}.runs is {several!r}.", "It is a list of benchmarks, each a mapping.", "The recipe all has one."
        )
    if len(several) > 1 and any(given.get(key) for key in ("rescore", "export_coco", "export_lmms")):
        raise UserError(
            f"{where} runs {len(several)} benchmarks.",
            "A file of answers answers one.",
            "Score or write it with the config of its own benchmark.",
        )
    out, common = [], [f.name for f in dataclasses.fields(EvalConfig)]
    for number, added in enumerate(several):
        here = f"{where}.runs[{number}]" if len(several) > 1 else where
        merged = {**given, **added}
        config = from_dict(EvalConfig, {k: v for k, v in merged.items() if k in common}, here)
        if config.decode not in ("", "floor", "center"):
            raise UserError(f"{here}.decode is {config.decode!r}.", "It must be floor or center.", "Try decode=floor.")
        if config.batch < 1 or config.limit < 0:
            raise UserError(
                f"{here}: batch is {config.batch}, limit is {config.limit}.",
                "batch is 1 or more; limit is 0, for all, or more.",
                "Correct it.",
            )
        if not config.benchmark:
            raise UserError(
                f"{here} names no benchmark.", f"Known: {', '.join(BENCHMARKS)}.", "Add benchmark: refcoco, say."
            )
        for form, file in config.exports.items():
            formats.require(form, config.benchmark, f"--export-{form} writes")
            formats.require_writable(file)
        options = {k: v for k, v in merged.items() if k not in common}
        takes = options_of(config.benchmark)
        if "coding" in takes or "size" in takes:
            options = {k: v for k, v in _told_by_the_model(config).items() if k in takes} | options
        if smoke and "count" in takes:
            options["count"] = SMOKE_IMAGES
        elif smoke:
            config.limit = SMOKE
        benchmark = open_benchmark(config.benchmark, options, common)
        metrics.require(getattr(benchmark, "needs", ()))
        folder = Path(config.output)
        if len(several) > 1:
            folder /= benchmark.name.replace(" ", "-").replace("/", "-").replace(",", "")
        out.append(_Run(config, benchmark, folder))
    if len({r.folder for r in out}) < len(out):
        raise UserError(
            f"{where} runs the same benchmark twice.",
            "Each has its own folder, by its name.",
            "Remove one, or change its options.",
        )
    return out


def _told_by_the_model(config: EvalConfig) -> dict[str, Any]:
    """Options that a benchmark's questions take from the config of the model: how it writes boxes, what it sees."""
    from minigptv2.api import BUNDLED
    from minigptv2.config import ModelConfig

    file = (model_folder(config.model) if config.model else BUNDLED) / "config.json"
    try:
        model = from_dict(ModelConfig, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", "A model folder holds its config.json.", "Give model= such a folder."
        ) from None
    return {"coding": model.box_coding, "size": model.vision.image_size}


def _evaluate(one: _Run, models: dict, rank: int, world: int) -> BenchmarkReport | None:
    """Of the first process: the report. Others ask their share and give None."""
    config, benchmark = one.config, one.benchmark
    everything = benchmark.items()
    if not everything:
        raise UserError(
            f"{benchmark.name} has no questions.",
            "; ".join(benchmark.problems.lines()) or "Its files hold no rows.",
            "Check the annotation files.",
        )
    items = [i for i in everything if i.index < config.limit] if config.limit else everything
    head = run_header(benchmark, everything)
    asked, seconds, counts, strange, unasked = 0, 0.0, {}, [], {}
    counts |= {"rows left out": len(benchmark.excluded)} if benchmark.excluded else {}
    if config.rescore:
        if rank:
            return None
        predictions, set_aside, told, strange = _given(one, everything, items, head)
        counts |= set_aside
        own = told.get("decode") if told.get("decode") in ("floor", "center") else "floor"
        decode, model = config.decode or own, str(told.get("title") or config.rescore)
        absent = missing_image_paths(i for i in items if i.index not in predictions) if config.allow_missing else []
    else:
        absent = missing_image_paths(items)
        if absent and not config.allow_missing:
            raise UserError(
                f"{len(absent)} of the {len({i.image_key for i in items})} images of {benchmark.name} are not on "
                f"disk: {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}.",
                "Every question needs its image.",
                "Give their folder (images= or root=), or count and leave them out with --allow-missing.",
            )
        model, decode, predictions, asked, seconds, unasked = _ask_all(
            one, models, head, items, set(absent), rank, world
        )
        if rank:
            return None
    without = set(absent)
    items = [i for i in items if i.index in predictions or str(i.image) not in without]
    if not items:
        raise UserError(
            f"None of the images of {benchmark.name} is on disk.",
            f"Looked for {absent[0]} and others.",
            "Give their folder (images= or root=).",
        )
    if unasked and not any(i.index in predictions for i in items):
        raise UserError(
            f"None of the {len(items)} questions of {benchmark.name} could be asked.",
            "; ".join(_causes(unasked.values()).lines()),
            "Check the images, and how long the model's context is.",
        )
    if config.allow_missing:
        damaged = {index: why for index, why in unasked.items() if why.kind == BAD_IMAGE}
        unasked = {index: why for index, why in unasked.items() if index not in damaged}
        items = [i for i in items if i.index not in damaged]
        strange += _causes(damaged.values()).lines()
        counts |= {"images that cannot be opened": len(set(damaged.values()))} if damaged else {}
    counts |= {"questions that could not be asked": len(unasked)} if unasked else {}
    missing = [i.index for i in items if i.index not in predictions]
    filled = {i.index: predictions.get(i.index) or Prediction(i.index, "", "missing") for i in items}
    rules = ScoringRules(config.scoring, decode)
    scored = benchmark.score(items, filled, rules)
    if config.limit:
        out_of_limit = sum(index >= config.limit for index in predictions)
        counts |= {"answers beyond the limit": out_of_limit} if out_of_limit and config.rescore else {}
    answered = [case for case in scored.cases if case.index in predictions]
    for form, file in config.exports.items():
        categories = {name: number for number, name in getattr(benchmark, "categories", {}).items()}
        strange += [f"{file}: {line}" for line in formats.write(form, file, answered, categories, items).lines()]
    return BenchmarkReport(
        name=benchmark.name,
        benchmark=config.benchmark,
        settings={"limit": config.limit} if config.limit else {},
        model=model,
        rules=rules,
        figures=_figures(scored, items, benchmark),
        total=scored.total,
        invalid=len(scored.invalid),
        missing=len(missing),
        absent=len(absent),
        failed=list(_causes(unasked.values()).lines()),
        counts={**scored.counts, **counts},
        problems=[*benchmark.problems.lines(), *strange],
        seconds=round(seconds, 1),
        answers_per_second=round(asked / seconds, 2) if asked and seconds else 0.0,
        score_description=scored.score_description,
        cases=scored.cases,
    )


def _given(
    one: _Run, items: list[Question], asked: list[Question], head: dict
) -> tuple[dict[int, Prediction], dict[str, int], dict[str, Any], list[str]]:
    """Of the file to score again: its answers, what to count beside the figures, its first line, what fits nothing."""
    file, benchmark = Path(one.config.rescore), one.benchmark
    form, told, problems = formats.form_of(file), {}, ProblemCounter()
    if form is None:
        predictions, counts, told = load_external_predictions(file, {i.index for i in items}, benchmark.excluded, head)
    else:
        formats.require(form, one.config.benchmark, f"{file} holds")
        categories = getattr(benchmark, "categories", {})
        predictions, counts, problems = formats.read(form, file, items, asked, categories, benchmark.excluded)
    if not any(i.index in predictions for i in asked):
        why = [*problems.lines(), *(f"{count} x {kind}" for kind, count in counts.items())]
        raise UserError(
            f"{file} answers none of the {len(asked)} questions.",
            "; ".join(why) + "." if why else f"It holds {len(predictions) or 'no'} answers.",
            "Name the data set and split that were answered.",
        )
    return predictions, counts, told, [f"{file}: {line}" for line in problems.lines()]


def _ask_all(
    one: _Run, models: dict, head: dict, items: list[Question], absent: set[str], rank: int, world: int
) -> tuple[str, Decode, dict[int, Prediction], int, float, dict[int, Unasked]]:
    """Ask what is not answered yet. The model's name, its decode, all answers so far, how many were asked now, in how
    many seconds, and what could not be asked."""
    from tqdm import tqdm

    from minigptv2.api import BUNDLED

    config, benchmark = one.config, one.benchmark
    key = (config.model, config.base, config.device, config.dtype, config.quantize)
    if key not in models:
        models.clear()  # one at a time
        models[key] = _load(config, rank)
    model = models[key]
    own = "center" if model.config.box_coding == "center" else "floor"
    title = config.model or "bundled"
    head = {
        **head,
        "model": model_fingerprint(model_folder(config.model) if config.model else BUNDLED),
        "answering": f"{str(model.dtype).removeprefix('torch.')} {config.quantize} {benchmark.max_new_tokens}",
        "prompt": model.config.prompt,
        "decode": config.decode or own,
        "title": title,
    }
    file = PredictionsFile(one.folder / "answers.jsonl", head)
    if rank == 0:
        file.prepare()
    _wait(world)
    known = {i.index for i in items}
    there = {index for index in file.read() if index in known}
    mine = [i for i in shard_of(items, rank, world) if i.index not in there and str(i.image) not in absent]
    _wait(world)  # nobody appends before everyone has read
    began = time.time()
    with (
        file.appending() as append,
        tqdm(total=len(mine), desc=benchmark.name, unit=" answers", disable=rank > 0) as bar,
    ):

        def keep(predictions: list[Prediction]) -> None:
            append(predictions)
            bar.update(len(predictions))

        unasked = _of_all(run_inference(model, mine, config.batch, benchmark.max_new_tokens, keep), world)
    _wait(world)
    predictions = {index: p for index, p in file.read().items() if index in known}
    return title, config.decode or own, predictions, len(predictions) - len(there), time.time() - began, unasked


def _load(config: EvalConfig, rank: int):
    from minigptv2.api import MiniGPTv2

    device = choose_device(config.device, int(os.environ.get("LOCAL_RANK", rank)), share=True)
    return MiniGPTv2.from_pretrained(
        config.model or None, str(device), config.dtype or None, config.quantize or None, config.base or None
    )


@contextmanager
def _processes():
    """(number of this process, how many there are), from torchrun; (0, 1) without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=_PATIENCE))
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()


def _wait(world: int) -> None:
    """Until every process is here."""
    if world > 1:
        import torch.distributed as dist

        dist.barrier()


def _causes(unasked: Iterable[Unasked]) -> ProblemCounter:
    """Each cause once, also where it concerns several questions."""
    out = ProblemCounter()
    for kind, cause in dict.fromkeys(unasked):
        out.add(kind, cause)
    return out


def _of_all(unasked: dict[int, Unasked], world: int) -> dict[int, Unasked]:
    """What no process could ask."""
    if world == 1:
        return unasked
    import torch.distributed as dist

    of_each: list[dict[int, Unasked]] = [{} for _ in range(world)]
    dist.all_gather_object(of_each, unasked)
    return {index: why for one in of_each for index, why in one.items()}


def _figures(scored: Scored, items: Sequence[Question], benchmark: Benchmark) -> dict[str, Figure]:
    from minigptv2.eval.bootstrap import bootstrap

    values, bounds = scored.figures([i.index for i in items]), bootstrap(scored, items)
    return {
        name: Figure(value, *bounds.get(name, (None, None)), tuple(benchmark.published.get(name, ())))
        for name, value in values.items()
    }


def table(report: BenchmarkReport) -> str:
    """The figures as a Markdown table."""
    rows = [f"| {report.name} | measured | 95 % | published |", "|---|---|---|---|"]
    for name, figure in report.figures.items():
        between = "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"
        published = "; ".join(f"{p.value:.4f} {p.model} ({p.source})" for p in figure.published)
        rows.append(f"| {name} | {figure.value:.4f} | {between} | {published} |")
    numbers = {
        "total": report.total,
        "invalid": report.invalid,
        "missing answers": report.missing,
        "images not on disk": report.absent,
        **report.counts,
    }
    rows += [f"| {name} | {value} | | |" for name, value in numbers.items()]
    rows.append(f"| scoring, decode | {report.rules.scoring}, {report.rules.decode} | | |")
    rows.append(f"| model | {report.model} | | |")
    rows += [f"counted as wrong: {line}" for line in report.failed]
    return "\n".join(rows + [f"left out: {line}" for line in report.problems])
