"""`minigptv2 eval CONFIG`: ask a benchmark's questions, or read answers from a file; score; print; write a report.

Under torchrun, the images are split over the processes; all append to one file of answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from minigptv2.boxes import BoxRounding
from minigptv2.bundled import find_recipe, model_folder
from minigptv2.config import from_dict, overridden, read_yaml
from minigptv2.data.dataset import ProblemCounter
from minigptv2.devices import choose_device
from minigptv2.errors import UserError
from minigptv2.eval import formats
from minigptv2.eval.benchmark import (
    BENCHMARKS,
    Benchmark,
    BenchmarkReport,
    Figure,
    Prediction,
    Question,
    Scored,
    Scoring,
    ScoringRules,
    benchmark_class,
    open_benchmark,
    options_of,
)
from minigptv2.eval.inference import BAD_IMAGE, Unasked, missing_image_paths, run_inference, shard_of
from minigptv2.eval.metrics.packages import require
from minigptv2.eval.predictions import (
    PredictionsFile,
    load_external_predictions,
    model_fingerprint,
    run_header,
    writing_to,
)
from minigptv2.files import file_lock
from minigptv2.renames import rename_old_keys

SMOKE, SMOKE_IMAGES = 16, 2  # questions; images of a benchmark that draws them
_ADVICE = "Make room, or give another output=; answered questions are not asked again."
_TIMEOUT = 7 * 24 * 3600  # seconds that a process waits for the others


@dataclass
class EvalConfig:
    """The keys that every benchmark understands. All other keys are options of the benchmark.

    A config may also hold `runs`: a list of benchmarks, each a mapping of keys that are added to the common ones.
    """

    RENAMED: ClassVar[dict[str, str]] = {"batch": "batch_size", "decode": "box_rounding", "rescore": "predictions"}

    benchmark: str = ""
    """A name of `benchmark.BENCHMARKS`, or my_package.module:Class. Must be given."""
    model: str = ""
    """A model folder; "" for the bundled model."""
    base: str = ""
    """For a model folder with trained weights only, the full model folder that it was fine-tuned from."""
    output: str = "output/eval"
    """The folder of answers.jsonl, report.json and report.html. A run that was stopped resumes from answers.jsonl."""
    device: str = ""
    """A device of torch, such as cuda:1; "" takes a GPU if there is one."""
    dtype: str = ""
    """The dtype of the weights: float32, bfloat16 or float16; "" lets the device decide."""
    quantize: str = ""
    """A quantisation of the language model, as `minigptv2 chat --quantize` takes it; "" for none."""
    batch_size: int = 16
    """Questions that are answered together. More is faster on a GPU, and takes more memory; answers stay the same."""
    limit: int = 0
    """Only the questions of the first so many rows; 0 for all."""
    scoring: Scoring = "strict"
    """strict: IoU of continuous boxes, a hit at IoU >= the threshold; short answers without a final full stop. compat:
    as the published evaluation, with one pixel added to each side of a box, and a hit at IoU > the threshold."""
    box_rounding: Literal["", "floor", "center"] = ""
    """How the numbers of a box become pixels. floor: as they are (also right for models that write "round"). center:
    plus half a hundredth. "": as the model's config says; floor for answers of another source."""
    predictions: str = ""
    """A file of answers to score; no model is opened. Docs: docs/integrations.md."""
    allow_missing: bool = False
    """Leave out and count questions whose image is not on disk or cannot be opened. Otherwise, an image that is not on
    disk is an error at the start, and questions about one that cannot be opened count as wrong."""
    export_coco: str = ""
    """A file to write the boxes to, as COCO results. For coco_detection only."""
    export_lmms: str = ""
    """A file to write the boxes to, with the columns of lmms-lab's RefCOCO sets. For refcoco only."""

    @property
    def exports(self) -> dict[formats.Form, str]:
        files: dict[formats.Form, str] = {"coco": self.export_coco, "lmms": self.export_lmms}
        return {form: file for form, file in files.items() if file}


COMMON_KEYS = [f.name for f in dataclasses.fields(EvalConfig)]


@dataclass
class _Run:
    config: EvalConfig
    benchmark: Benchmark
    folder: Path


def run(
    config: str | Path, overrides: Sequence[str] = (), smoke: bool = False, **options: Any
) -> list[BenchmarkReport]:
    """Evaluate and print; one report for each benchmark.

    overrides: "key=value", over the values of the file. smoke: a few questions, to see that it runs. options: keys of
    `EvalConfig` or of the benchmark, over the overrides.
    """
    from minigptv2.eval.report import write

    file = find_recipe("eval", config)
    in_runs = [override for override in overrides if "." in override.partition("=")[0]]  # "runs.0.limit=3"
    given = read_yaml(file, in_runs)
    typed = overridden({}, [override for override in overrides if override not in in_runs]) | options
    # old keys are renamed on each side, so that the command line wins over the file, whichever name either uses
    given = rename_old_keys(given, EvalConfig.RENAMED, str(file))
    typed = rename_old_keys(typed, EvalConfig.RENAMED)
    reports = []
    with _processes() as (rank, world_size):
        runs, models = _runs(given, typed, str(file), smoke), {}
        for one in runs:
            with _only_run_in(one.folder) if rank == 0 else nullcontext():
                report = _evaluate(one, models, rank, world_size)
                if report is not None:
                    with writing_to(one.folder, _ADVICE):
                        write(one.folder, [report])
                    print(table(report), flush=True)
                    reports.append(report)
        if len(runs) > 1 and rank == 0:
            folder = Path((given | typed).get("output") or EvalConfig.output)
            with writing_to(folder, _ADVICE):
                write(folder, reports)
    return reports


@contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder, "run"):
        yield


def _runs(given: dict[str, Any], typed: dict[str, Any], where: str, smoke: bool) -> list[_Run]:
    """Every benchmark of the config with its options; all are checked before the first one is run.

    given: the content of the file. typed: what the command line sets.
    """
    common = given | typed
    entries = common.pop("runs", None)
    if entries is None:
        entries = [{}]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"{where}.runs is {entries!r}.", "It is a list of benchmarks, each a mapping.", "The recipe all has one."
        )
    if len(entries) > 1 and any(common.get(key) for key in ("predictions", "export_coco", "export_lmms")):
        raise UserError(
            f"{where} runs {len(entries)} benchmarks.",
            "A file of answers belongs to one benchmark.",
            "Score or write it with the config of that benchmark.",
        )
    runs = []
    for number, entry in enumerate(entries):
        here = f"{where}.runs[{number}]" if len(entries) > 1 else where
        entry = rename_old_keys(entry, EvalConfig.RENAMED, here)
        name = entry.get("benchmark") or common.get("benchmark")
        old_options = getattr(benchmark_class(name), "RENAMED", {}) if name and isinstance(name, str) else {}
        merged: dict[str, Any] = {}
        for part, source in ((given, where), (typed, ""), (entry, here)):
            merged |= rename_old_keys({k: v for k, v in part.items() if k != "runs"}, old_options, source)
        runs.append(_open_run(merged, here, smoke, several=len(entries) > 1))
    if len({r.folder for r in runs}) < len(runs):
        raise UserError(
            f"{where} runs the same benchmark twice.",
            "Each has its own folder, by its name.",
            "Remove one, or change its options.",
        )
    return runs


def _open_run(merged: dict[str, Any], where: str, smoke: bool, several: bool) -> _Run:
    """One benchmark, opened with the keys of its config. several: it writes to a folder of its own below `output`."""
    config = from_dict(EvalConfig, {k: v for k, v in merged.items() if k in COMMON_KEYS}, where)
    if config.batch_size < 1 or config.limit < 0:
        raise UserError(
            f"{where}: batch_size is {config.batch_size}, limit is {config.limit}.",
            "batch_size is 1 or more; limit is 0, for all, or more.",
            "Correct it.",
        )
    if not config.benchmark:
        raise UserError(
            f"{where} names no benchmark.", f"Known: {', '.join(BENCHMARKS)}.", "Add benchmark: refcoco, for example."
        )
    for form, file in config.exports.items():
        formats.require(form, config.benchmark, f"--export-{form} writes")
        formats.require_writable(file)
    options = {k: v for k, v in merged.items() if k not in COMMON_KEYS}
    known = options_of(config.benchmark)
    if "coding" in known or "size" in known:
        options = {k: v for k, v in _options_of_model(config).items() if k in known} | options
    if smoke and "count" in known:
        options["count"] = SMOKE_IMAGES
    elif smoke:
        config.limit = SMOKE
    benchmark = open_benchmark(config.benchmark, options, COMMON_KEYS)
    require(getattr(benchmark, "needs", ()))
    folder = Path(config.output)
    if several:
        folder /= benchmark.name.replace(" ", "-").replace("/", "-").replace(",", "")
    return _Run(config, benchmark, folder)


def _options_of_model(config: EvalConfig) -> dict[str, Any]:
    """Options of a benchmark that follow from the model's config: how it rounds boxes, and its image size."""
    from minigptv2.api import BUNDLED
    from minigptv2.config import ModelConfig

    file = (model_folder(config.model) if config.model else BUNDLED) / "config.json"
    try:
        model = from_dict(ModelConfig, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", "A model folder holds its config.json.", "Give model= such a folder."
        ) from None
    return {"coding": model.box_rounding, "size": model.vision.image_size}


def _evaluate(one: _Run, models: dict, rank: int, world_size: int) -> BenchmarkReport | None:
    """The report, in the first process; None in the others, which only ask their questions."""
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
    num_asked, seconds, counts, problems, unasked = 0, 0.0, {}, [], {}
    counts |= {"rows left out": len(benchmark.excluded)} if benchmark.excluded else {}
    if config.predictions:
        if rank:
            return None
        predictions, skipped, file_head, problems = _read_predictions(one, everything, items, head)
        counts |= skipped
        of_file = file_head.get("box_rounding", file_head.get("decode"))  # "decode": of older versions
        box_rounding = config.box_rounding or (of_file if of_file in ("floor", "center") else "floor")
        model = str(file_head.get("title") or config.predictions)
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
        model, box_rounding, predictions, num_asked, seconds, unasked = _ask_all(
            one, models, head, items, set(absent), rank, world_size
        )
        if rank:
            return None
    absent_paths = set(absent)
    items = [i for i in items if i.index in predictions or str(i.image) not in absent_paths]
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
            "Check the images, and the length of the model's context.",
        )
    if config.allow_missing:
        damaged = {index: one for index, one in unasked.items() if one.reason == BAD_IMAGE}
        unasked = {index: one for index, one in unasked.items() if index not in damaged}
        items = [i for i in items if i.index not in damaged]
        problems += _causes(damaged.values()).lines()
        counts |= {"images that cannot be opened": len(set(damaged.values()))} if damaged else {}
    counts |= {"questions that could not be asked": len(unasked)} if unasked else {}
    missing = [i.index for i in items if i.index not in predictions]
    filled = {i.index: predictions.get(i.index) or Prediction(i.index, "", "missing") for i in items}
    rules = ScoringRules(config.scoring, box_rounding)
    scored = benchmark.score(items, filled, rules)
    if config.limit:
        beyond_limit = sum(index >= config.limit for index in predictions)
        counts |= {"answers beyond the limit": beyond_limit} if beyond_limit and config.predictions else {}
    answered = [case for case in scored.cases if case.index in predictions]
    for form, file in config.exports.items():
        categories = {name: number for number, name in getattr(benchmark, "category_names", {}).items()}
        problems += [f"{file}: {line}" for line in formats.write(form, file, answered, categories, items).lines()]
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
        problems=[*benchmark.problems.lines(), *problems],
        seconds=round(seconds, 1),
        answers_per_second=round(num_asked / seconds, 2) if num_asked and seconds else 0.0,
        score_description=scored.score_description,
        cases=scored.cases,
    )


def _read_predictions(
    one: _Run, items: list[Question], asked: list[Question], head: dict
) -> tuple[dict[int, Prediction], dict[str, int], dict[str, Any], list[str]]:
    """The answers of the file to score; counts for the report; its first line; and lines about answers left out."""
    file, benchmark = Path(one.config.predictions), one.benchmark
    form, file_head, problems = formats.form_of(file), {}, ProblemCounter()
    if form is None:
        known = {i.index for i in items}
        predictions, counts, file_head = load_external_predictions(file, known, benchmark.excluded, head)
    else:
        formats.require(form, one.config.benchmark, f"{file} holds")
        categories = getattr(benchmark, "category_names", {})
        predictions, counts, problems = formats.read(form, file, items, asked, categories, benchmark.excluded)
    if not any(i.index in predictions for i in asked):
        reasons = [*problems.lines(), *(f"{count} x {problem}" for problem, count in counts.items())]
        raise UserError(
            f"{file} answers none of the {len(asked)} questions.",
            "; ".join(reasons) + "." if reasons else f"It holds {len(predictions) or 'no'} answers.",
            "Name the data set and split that were answered.",
        )
    return predictions, counts, file_head, [f"{file}: {line}" for line in problems.lines()]


def _ask_all(
    one: _Run, models: dict, head: dict, items: list[Question], absent: set[str], rank: int, world_size: int
) -> tuple[str, BoxRounding, dict[int, Prediction], int, float, dict[int, Unasked]]:
    """Ask the questions without an answer. Returns the model's name, its box rounding, all answers so far, how many
    questions were asked now, in how many seconds, and what could not be asked."""
    from tqdm import tqdm

    from minigptv2.api import BUNDLED

    config, benchmark = one.config, one.benchmark
    key = (config.model, config.base, config.device, config.dtype, config.quantize)
    if key not in models:
        models.clear()  # one model in memory at a time
        models[key] = _load(config, rank)
    model = models[key]
    own = "center" if model.config.box_rounding == "center" else "floor"
    box_rounding: BoxRounding = config.box_rounding or own
    title = config.model or "bundled"
    head = {
        **head,
        "model": model_fingerprint(model_folder(config.model) if config.model else BUNDLED),
        "answering": f"{str(model.dtype).removeprefix('torch.')} {config.quantize} {benchmark.max_new_tokens}",
        "prompt": model.config.prompt,
        "box_rounding": box_rounding,
        "title": title,
    }
    file = PredictionsFile(one.folder / "answers.jsonl", head)
    if rank == 0:
        file.prepare()
    _wait(world_size)
    known = {i.index for i in items}
    answered = {index for index in file.read() if index in known}
    mine = [i for i in shard_of(items, rank, world_size) if i.index not in answered and str(i.image) not in absent]
    _wait(world_size)  # no process appends before all have read
    start = time.time()
    with (
        file.appending() as append,
        tqdm(total=len(mine), desc=benchmark.name, unit=" answers", disable=rank > 0) as bar,
    ):

        def keep(predictions: list[Prediction]) -> None:
            append(predictions)
            bar.update(len(predictions))

        unasked = _of_all(run_inference(model, mine, config.batch_size, benchmark.max_new_tokens, keep), world_size)
    _wait(world_size)
    predictions = {index: p for index, p in file.read().items() if index in known}
    num_asked, seconds = len(predictions) - len(answered), time.time() - start
    return title, box_rounding, predictions, num_asked, seconds, unasked


def _load(config: EvalConfig, rank: int):
    from minigptv2.api import MiniGPTv2

    device = choose_device(config.device, int(os.environ.get("LOCAL_RANK", rank)), share=True)
    return MiniGPTv2.from_pretrained(
        config.model or None, str(device), config.dtype or None, config.quantize or None, config.base or None
    )


@contextmanager
def _processes():
    """(rank, world size), from torchrun; (0, 1) without it."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, 1
        return
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=_TIMEOUT))
    try:
        yield dist.get_rank(), world_size
    finally:
        dist.destroy_process_group()


def _wait(world_size: int) -> None:
    """Wait for all processes."""
    if world_size > 1:
        import torch.distributed as dist

        dist.barrier()


def _causes(unasked: Iterable[Unasked]) -> ProblemCounter:
    """Each cause once, even if it concerns several questions."""
    out = ProblemCounter()
    for reason, cause in dict.fromkeys(unasked):
        out.add(reason, cause)
    return out


def _of_all(unasked: dict[int, Unasked], world_size: int) -> dict[int, Unasked]:
    """The questions of all processes that could not be asked."""
    if world_size == 1:
        return unasked
    import torch.distributed as dist

    of_each: list[dict[int, Unasked]] = [{} for _ in range(world_size)]
    dist.all_gather_object(of_each, unasked)
    return {index: reason for one in of_each for index, reason in one.items()}


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
        interval = "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"
        published = "; ".join(f"{p.value:.4f} {p.model} ({p.source})" for p in figure.published)
        rows.append(f"| {name} | {figure.value:.4f} | {interval} | {published} |")
    numbers = {
        "total": report.total,
        "invalid": report.invalid,
        "missing answers": report.missing,
        "images not on disk": report.absent,
        **report.counts,
    }
    rows += [f"| {name} | {value} | | |" for name, value in numbers.items()]
    rows.append(f"| scoring, box rounding | {report.rules.scoring}, {report.rules.box_rounding} | | |")
    rows.append(f"| model | {report.model} | | |")
    rows += [f"counted as wrong: {line}" for line in report.failed]
    return "\n".join(rows + [f"left out: {line}" for line in report.problems])
