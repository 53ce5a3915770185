"""What a benchmark is to the rest of the program: items to ask, and a score of the answers.

`BENCHMARKS` names every one; `open_benchmark` builds it from the options of a config. The runner asks, keeps and reads
answers; a benchmark never touches the model, so answers of any source can be scored. Pure Python, nothing heavy.

    items = benchmark.items()                            rows of the annotation file, in its order
    scored = benchmark.score(items, predictions, rules)  one prediction for every item, given or missing
    figures of scored: the mean of each of `outcomes`, and each of `corpus` over all indexes
    intervals: both again over images drawn with repetition, `Question.image` being the unit
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from minigptv2.boxes import Box
from minigptv2.data.annotations import MissingImage, find_image
from minigptv2.data.dataset import ProblemCounter, resolve_class
from minigptv2.data.dataset_files import Layout, Place, find
from minigptv2.errors import UserError, unknown
from minigptv2.files import is_dir, is_file
from minigptv2.renames import rename_old_keys

Scoring = Literal["strict", "compat"]
Decode = Literal["floor", "center"]
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)

BENCHMARKS: dict[str, str] = {
    "refcoco": "minigptv2.eval.benchmarks.refcoco:RefCocoBoxBenchmark",
    "reg": "minigptv2.eval.benchmarks.refcoco:RefCocoTextBenchmark",
    "vsr": "minigptv2.eval.benchmarks.vsr:VsrBenchmark",
    "vqav2": "minigptv2.eval.benchmarks.vqa:VqaV2Benchmark",
    "okvqa": "minigptv2.eval.benchmarks.vqa:OkVqaBenchmark",
    "vizwiz": "minigptv2.eval.benchmarks.vqa:VizWizBenchmark",
    "gqa": "minigptv2.eval.benchmarks.gqa:GqaBenchmark",
    "iconqa": "minigptv2.eval.benchmarks.iconqa:IconQaBenchmark",
    "hateful_memes": "minigptv2.eval.benchmarks.hateful_memes:HatefulMemesBenchmark",
    "coco_detection": "minigptv2.eval.benchmarks.coco_detection:CocoDetectionBenchmark",
    "coco_caption": "minigptv2.eval.benchmarks.coco_caption:CocoCaptionBenchmark",
    "flickr30k": "minigptv2.eval.benchmarks.flickr30k:Flickr30kBenchmark",
    "pope": "minigptv2.eval.benchmarks.pope:PopeBenchmark",
    "absent": "minigptv2.eval.benchmarks.absent:AbsentPhrasesBenchmark",
    "scenes": "minigptv2.eval.benchmarks.scenes:ScenesBenchmark",
}


@dataclass(frozen=True)
class Question:
    """One question. index: the row of the annotation file, from 0; unique, and the key of its answer.

    image: what `images.open_image` takes (a path is not opened before it is asked), None for text alone. size: width
    and height of the image in pixels, (0, 0) where no box needs it. instruction: the final text put to the model.
    image: which image this is, equal for all items about it: they share its encoding and are drawn together by the
    bootstrap. truth: what is right, in the benchmark's own form: a Box, a label, references. candidates: answers to be
    ranked by their log-probability; empty where the model writes freely. words: what is asked for, for a plot's title.
    key: what result files of other programs call it, such as its question_id or its image's name; several items may
    share it; "" where the set gives its questions no name.
    """

    index: int
    image: Any
    size: tuple[int, int]
    instruction: str
    image_key: str
    truth: Any = None
    candidates: tuple[str, ...] = ()
    words: str = ""
    key: str = ""


@dataclass(frozen=True)
class Prediction:
    """One answer. text: raw, as generated; of a ranked item the best candidate. ended: "stop", "length", or "missing"
    where there is no answer to this item (text is then empty, and it counts as wrong).

    scores: 0..1, of the text's well-formed boxes in order; empty where nobody computed them. logprobs: of each
    candidate, length-normalised as `asking.rank` says; empty where nothing was ranked. boxes: XYXY pixels, of an answer
    that another program gave as boxes and not as text: scored as they are, whatever the decode; None: read the text.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length", "missing"] = "stop"
    scores: tuple[float, ...] = ()
    logprobs: tuple[float, ...] = ()
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True)
class ScoringRules:
    """scoring: "strict" is IoU of continuous boxes, a hit at >= the threshold; "compat" adds one pixel to every side
    and takes > the threshold, as the published evaluation does. decode: how box numbers become pixels: "floor" reads
    them as they are (the published code, and models of the "round" coding), "center" adds half a hundredth."""

    scoring: Scoring = "strict"
    decode: Decode = "floor"

    @property
    def plus_one(self) -> bool:
        """Whether boxes are scored with one pixel added to each side."""
        return self.scoring == "compat"


@dataclass(frozen=True)
class ScoredAnswer:
    """One item for a person to look at. truth and boxes: XYXY pixels of the upright image; boxes are the answer's.

    score: 0..1, the outcome of the benchmark's first metric or what `Scored.score_description` names, None where there
    is none. box_found: of each box of truth, whether the answer found it or its phrase at IoU 0.5, None where that does
    not matter; empty where `score` says it. expected: the right answer in words, "" where it is boxes alone. size:
    width and height of the image, (0, 0) where nobody knows it."""

    index: int
    image: Any
    words: str
    answer: str
    expected: str = ""
    truth: tuple[Box, ...] = ()
    boxes: tuple[Box, ...] = ()
    score: float | None = None
    size: tuple[int, int] = (0, 0)
    box_found: tuple[bool | None, ...] = ()


@dataclass
class Scored:
    """What `Benchmark.score` found.

    outcomes: metric -> index -> value; the figure is their mean (a metric may cover some items only, such as
    "accuracy, yes/no"). corpus: metric -> function of indexes, the figure of these items as a corpus; an index may
    stand there several times, for the bootstrap, and counts as often; None where the figure does not exist.
    invalid: indexes of malformed answers, counted as wrong, never left out; missing answers are not among them.
    cases: one an item, same order as the items. counts: whole numbers to show beside the figures. score_description:
    what `score` of the cases is, in words; empty: the first metric."""

    total: int
    invalid: frozenset[int] = frozenset()
    outcomes: dict[str, dict[int, float]] = field(default_factory=dict)
    corpus: dict[str, Callable[[Sequence[int]], float | None]] = field(default_factory=dict)
    cases: list[ScoredAnswer] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    score_description: str = ""

    def figures(self, indexes: Sequence[int]) -> dict[str, float]:
        """Every metric: means of the outcomes, then the corpus functions over these indexes (all of them)."""
        means = {name: sum(by.values()) / len(by) for name, by in self.outcomes.items() if by}
        whole = {name: function(indexes) for name, function in self.corpus.items()}
        return means | {name: value for name, value in whole.items() if value is not None}


@dataclass(frozen=True)
class Published:
    """A figure from a paper, in our unit (shares are 0..1). source: "arXiv 2310.09478v1"; it names the version."""

    model: str
    value: float
    source: str


def minigpt_v2(stage_2: float, chat: float, source: str) -> tuple[Published, ...]:
    """The paper's two lines, in per cent: the model after stage 2, and after stage 3."""
    return Published("MiniGPT-v2", stage_2 / 100, source), Published("MiniGPT-v2-chat", chat / 100, source)


@dataclass(frozen=True)
class Figure:
    """One line of a report. low, high: 95 % confidence, bootstrap over images; None where it was not computed."""

    value: float
    low: float | None = None
    high: float | None = None
    published: tuple[Published, ...] = ()


@dataclass
class BenchmarkReport:
    """What the runner hands to report.json and report.html, one for each benchmark that was run.

    name: "refcoco testA". settings: the benchmark's options that change what is measured (dataset, split, limit).
    model: its folder, "bundled", or the answers file of a rescoring. answered: how, in words: prompt wrapper, batch, or
    "rescored". absent: images that are not on disk, with --allow-missing. judged: as in `Scored`. problems: lines
    about rows left out, and what of the answers could not be read or written in another program's format. failed: lines
    about questions that could not be asked, as their image cannot be opened, say, and count as wrong.
    """

    name: str
    benchmark: str
    settings: dict[str, Any]
    model: str
    rules: ScoringRules
    figures: dict[str, Figure]
    total: int
    invalid: int
    missing: int = 0
    absent: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    answers_per_second: float = 0.0
    score_description: str = ""
    cases: list[ScoredAnswer] = field(default_factory=list)


class Benchmark(Protocol):
    """A class whose constructor takes keyword options (`root`, `dataset`, `split`, ...), as a reader's does.

    name: short, with what distinguishes it: "refcoco testA". files: the annotation files, whose bytes say which data
    this is. problems: rows left out, as in `data.dataset.ProblemCounter`; excluded: their numbers, and why. published:
    metric -> figures of papers.
    max_new_tokens: the longest answer asked for. A benchmark whose figures another package computes names it in
    `needs`, as `metrics.require` takes it.
    """

    name: str
    files: tuple[Path, ...]
    problems: ProblemCounter
    excluded: Mapping[int, str]
    published: Mapping[str, tuple[Published, ...]]
    max_new_tokens: int

    def items(self) -> list[Question]: ...

    def score(
        self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules
    ) -> Scored: ...


def open_benchmark(name: str, options: dict[str, Any], beside: Sequence[str] = ()) -> Benchmark:
    """The benchmark of this name with its options; UserError with the nearest known name or option.

    beside: keys that a config may hold too, for the suggestion.
    """
    kind, known = _kind(name), options_of(name)
    options = rename_old_keys(options, getattr(kind, "RENAMED", {}), f"options of {name}")
    for option in options:
        if option not in known:
            allowed = f"Its options: {', '.join([*known, *beside])}."
            told = f"The benchmark {name!r} has no option {option!r}."
            raise unknown(told, option, [*known, *beside], "Remove it.", allowed)
        if not isinstance(options[option], (str, int)):
            raise UserError(f"{option} is {options[option]!r}.", "It must be a text or a whole number.", "Correct it.")
        default = known[option]
        if isinstance(options[option], str) != isinstance(default, str) and default is not None:
            wanted = "a text" if isinstance(default, str) else "a whole number"
            raise UserError(f"{option} is {options[option]!r}.", f"It must be {wanted}.", "Correct it, or quote it.")
    lacking = [option for option, default in known.items() if default is None and option not in options]
    if lacking:
        raise UserError(
            f"The benchmark {name!r} was given no {lacking[0]}.",
            f"Its options: {', '.join(known)}.",
            f"Add {lacking[0]}=... to the command.",
        )
    return kind(**options)


def options_of(name: str) -> dict[str, Any]:
    """The options of a benchmark and what each is by default; None where it must be given."""
    empty = inspect.Parameter.empty
    return {n: None if p.default is empty else p.default for n, p in inspect.signature(_kind(name)).parameters.items()}


def _kind(name: str) -> Callable[..., Benchmark]:
    return resolve_class("benchmark", name, BENCHMARKS, "minigptv2 eval --help lists recipes.")


def check_scoring(scoring: str) -> str:
    if scoring not in SCORINGS:
        raise UserError(f"scoring is {scoring!r}.", f"It must be one of {', '.join(SCORINGS)}.", "Try strict.")
    return scoring


def strip_special_tokens(text: str) -> str:
    """Without the unknown-token mark, which the published evaluation takes out too, and without outer space."""
    return text.replace("<unk>", "").strip()


def annotation_files(root: str, layout: Layout, split: str, page: str, given: Sequence[str] = ()) -> list[Path]:
    """The annotation files of a split below root, without its folders of images; or those that are given by name.

    Raises UserError that names what is not there.
    """
    if any(given):
        paths = [Path(root, name) for name in given if name]
        for path in paths:
            if not is_file(path):
                raise UserError(f"{path} does not exist.", "It was named as an annotation file.", "Check its name.")
        return paths
    if split not in layout:
        raise UserError(f"The split is {split!r}.", f"Known: {', '.join(layout)}.", "Choose one of them.")
    places = [place for place in layout[split] if not _is_folder(place)]
    lost = [place for place in places if find(root, place) is None]
    if lost:
        names = ", ".join(place if isinstance(place, str) else " or ".join(place) for place in lost)
        raise UserError(f"{root} has no {names}.", f"The split {split!r} needs it.", f"Get it from {page}.")
    return [path for place in places if (path := find(root, place)) is not None]


def image_folder(root: str, images: str, *names: str) -> Path:
    """The folder of images: `images` where it is given, else the first of these names below root, else root."""
    if images:
        return Path(images)
    return next((Path(root, n) for n in names if is_dir(Path(root, n))), Path(root))


def image_path(folder: Path, name: str) -> Path:
    """Where the image of this name lies below the folder, or is expected. Raises InvalidRecord for what can be no
    path."""
    try:
        return find_image(folder, name)
    except MissingImage:
        return folder / name


def _is_folder(place: Place) -> bool:
    return (place if isinstance(place, str) else place[0]).endswith("/")
