"""What a benchmark is to the rest of the program: questions to ask, and a score of the answers.

`BENCHMARKS` names every one; `open_benchmark` builds it from the options of a config. The runner asks the questions,
stores and reads answers; a benchmark never touches the model, so answers of any source can be scored. Pure Python.

    items = benchmark.items()                            questions, in the order of the annotation file
    scored = benchmark.score(items, predictions, rules)  one prediction for each question, if only a missing one
    figures of scored: the mean of each of `outcomes`, and each of `corpus` over all indexes
    intervals: both again over images drawn with repetition; `Question.image_key` is the unit
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from minigptv2.boxes import Box, BoxRounding
from minigptv2.data.annotations import MissingImage, find_image
from minigptv2.data.dataset import ProblemCounter, resolve_class
from minigptv2.data.dataset_files import FilePattern, Layout, find
from minigptv2.errors import UserError, unknown
from minigptv2.files import is_dir, is_file
from minigptv2.renames import rename_old_keys

Scoring = Literal["strict", "compat"]
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
    """One question, by its row in the annotation file."""

    index: int
    """The row of the annotation file, from 0: unique, and the key of its answer."""
    image: Any
    """What `images.open_image` takes (a path is opened when it is asked), or a function that gives it; None for text
    alone."""
    size: tuple[int, int]
    """Width and height of the image in pixels; (0, 0) if no box needs it."""
    instruction: str
    """The final text that the model gets."""
    image_key: str
    """Equal for all questions about one image: it is encoded once for them, and the bootstrap draws them together."""
    truth: Any = None
    """The expected answer, in the benchmark's own form: a Box, a label, references."""
    candidates: tuple[str, ...] = ()
    """Answers to rank by log-probability; empty if the model writes freely."""
    words: str = ""
    """The expression or question alone, for a person."""
    key: str = ""
    """The question's name in result files of other programs, such as its question_id; several questions may share it.
    "" if the data set has no names."""


@dataclass(frozen=True)
class Prediction:
    """One answer."""

    index: int
    """Of the question."""
    text: str
    """Raw, as generated; of ranked candidates the best one."""
    finish_reason: Literal["stop", "length", "missing"] = "stop"
    """"missing": there is no answer; the text is empty, and it counts as wrong."""
    scores: tuple[float, ...] = ()
    """0..1, of the text's well-formed boxes in order; empty if nobody computed them."""
    logprobs: tuple[float, ...] = ()
    """Of each candidate, the mean over its tokens, see `inference.rank`; empty if nothing was ranked."""
    boxes: tuple[Box, ...] | None = None
    """XYXY in pixels, of another program that gave boxes and not text: scored as they are. None: read the text."""


@dataclass(frozen=True)
class ScoringRules:
    """How answers are scored."""

    scoring: Scoring = "strict"
    """strict: IoU of continuous boxes, a hit at IoU >= the threshold. compat: as the published evaluation, with one
    pixel added to each side, and a hit at IoU > the threshold."""
    box_rounding: BoxRounding = "floor"
    """How box numbers become pixels. floor: as they are (the published code, and models that write "round"). center:
    plus half a hundredth."""

    @property
    def plus_one(self) -> bool:
        """Whether boxes are scored with one pixel added to each side."""
        return self.scoring == "compat"


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer with its score, for a person to look at. Boxes are XYXY, in pixels of the upright image."""

    index: int
    image: Any
    words: str
    answer: str
    expected: str = ""
    """The expected answer in words; "" if it consists of boxes alone."""
    truth: tuple[Box, ...] = ()
    """The expected boxes, or the box in question."""
    boxes: tuple[Box, ...] = ()
    """The boxes of the answer."""
    score: float | None = None
    """0..1: the benchmark's first metric, or what `Scored.score_description` names; None if there is none."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the image in pixels; (0, 0) if unknown."""
    box_found: tuple[bool | None, ...] = ()
    """For each box of `truth`, whether the answer found it at IoU 0.5; None for a box that does not count. Empty if
    `score` says it."""


@dataclass
class Scored:
    """The result of `Benchmark.score`."""

    total: int
    """Questions, with missing answers."""
    invalid: frozenset[int] = frozenset()
    """Indexes of malformed answers. They count as wrong. Missing answers are not among them."""
    outcomes: dict[str, dict[int, float]] = field(default_factory=dict)
    """metric -> index -> value. The figure is the mean; a metric may cover some questions only."""
    corpus: dict[str, Callable[[Sequence[int]], float | None]] = field(default_factory=dict)
    """metric -> function of indexes that gives the figure of these questions as a corpus. A repeated index counts
    again, for the bootstrap. None: the figure does not exist for them."""
    cases: list[ScoredAnswer] = field(default_factory=list)
    """One for each question, in their order."""
    counts: dict[str, int] = field(default_factory=dict)
    """Further whole numbers to show."""
    score_description: str = ""
    """Name of the score of each answer; "" for the first metric."""

    def figures(self, indexes: Sequence[int]) -> dict[str, float]:
        """Every metric: means of the outcomes, then the corpus functions over these indexes (all of them)."""
        means = {name: sum(by.values()) / len(by) for name, by in self.outcomes.items() if by}
        corpus = {name: function(indexes) for name, function in self.corpus.items()}
        return means | {name: value for name, value in corpus.items() if value is not None}


@dataclass(frozen=True)
class Published:
    """A figure from a paper, in our unit (0..1). source: the paper and its version, "arXiv 2310.09478v1"."""

    model: str
    value: float
    source: str


@dataclass(frozen=True)
class Figure:
    """The value of a metric. low, high: its 95 % interval, by bootstrap over images; None if not computed."""

    value: float
    low: float | None = None
    high: float | None = None
    published: tuple[Published, ...] = ()


@dataclass
class BenchmarkReport:
    """What the runner writes to report.json and report.html; one for each benchmark of a run."""

    name: str
    """With what distinguishes it: "refcoco testA"."""
    benchmark: str
    """The key in `BENCHMARKS`."""
    settings: dict[str, Any]
    """Options that change what is measured, such as limit."""
    model: str
    """Its folder, "bundled", or the file of answers that was scored."""
    rules: ScoringRules
    figures: dict[str, Figure]
    total: int
    invalid: int
    missing: int = 0
    """Questions without an answer, which count as wrong."""
    absent: int = 0
    """Images that are not on disk, with --allow-missing; their questions are left out."""
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Lines about rows left out, and about answers that could not be read, or written in another format."""
    failed: list[str] = field(default_factory=list)
    """Lines about questions that could not be asked, for example since their image cannot be opened. They count as
    wrong."""
    seconds: float = 0.0
    answers_per_second: float = 0.0
    score_description: str = ""
    cases: list[ScoredAnswer] = field(default_factory=list)


class Benchmark(Protocol):
    """A class whose constructor takes keyword options (`root`, `dataset`, `split`, ...), as a reader's does.

    name: short, with what distinguishes it: "refcoco testA". files: the annotation files; their bytes identify the
    data. problems: rows left out, see `data.dataset.ProblemCounter`. excluded: row number -> why it was left out.
    published: metric -> figures of papers. max_new_tokens: length limit of an answer.

    Optional: needs, the packages that its metrics need, as `metrics.packages.require` takes them; category_names, of a
    benchmark that has COCO categories, `id` -> name; RENAMED, old option -> present option.
    """

    name: str
    files: tuple[Path, ...]
    problems: ProblemCounter
    excluded: Mapping[int, str]
    published: Mapping[str, tuple[Published, ...]]
    max_new_tokens: int

    def items(self) -> list[Question]:
        """All questions, in the order of their rows; `Question.index` is the row."""

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        """The metrics of these questions, and each answer's score. predictions: by index; one that is missing is
        wrong."""


def open_benchmark(name: str, options: dict[str, Any], common: Sequence[str] = ()) -> Benchmark:
    """The benchmark of this name with its options. Raises UserError with the nearest known name or option.

    common: keys of a config that are not options, for the suggestion.
    """
    benchmark, known = benchmark_class(name), options_of(name)
    options = rename_old_keys(options, getattr(benchmark, "RENAMED", {}), f"options of {name}")
    for option in options:
        if option not in known:
            allowed = f"Its options: {', '.join([*known, *common])}."
            message = f"The benchmark {name!r} has no option {option!r}."
            raise unknown(message, option, [*known, *common], "Remove it.", allowed)
        if not isinstance(options[option], (str, int)):
            raise UserError(f"{option} is {options[option]!r}.", "It must be a text or a whole number.", "Correct it.")
        default = known[option]
        if isinstance(options[option], str) != isinstance(default, str) and default is not None:
            expected = "a text" if isinstance(default, str) else "a whole number"
            raise UserError(f"{option} is {options[option]!r}.", f"It must be {expected}.", "Correct it, or quote it.")
    missing = [option for option, default in known.items() if default is None and option not in options]
    if missing:
        raise UserError(
            f"The benchmark {name!r} was given no {missing[0]}.",
            f"Its options: {', '.join(known)}.",
            f"Add {missing[0]}=... to the command.",
        )
    return benchmark(**options)


def options_of(name: str) -> dict[str, Any]:
    """The options of a benchmark with their defaults; None for an option that must be given."""
    empty, parameters = inspect.Parameter.empty, inspect.signature(benchmark_class(name)).parameters
    return {n: None if p.default is empty else p.default for n, p in parameters.items()}


def benchmark_class(name: str) -> Callable[..., Benchmark]:
    """The class of this name: of `BENCHMARKS`, or my_package.module:Class. Raises UserError."""
    return resolve_class("benchmark", name, BENCHMARKS, "minigptv2 eval --help lists recipes.")


def check_scoring(scoring: str) -> str:
    """The scoring itself. Raises UserError unless it is one of `SCORINGS`."""
    if scoring not in SCORINGS:
        raise UserError(f"scoring is {scoring!r}.", f"It must be one of {', '.join(SCORINGS)}.", "Try strict.")
    return scoring


def strip_special_tokens(text: str) -> str:
    """Without the unknown token, which the published evaluation removes too, and without outer space."""
    return text.replace("<unk>", "").strip()


def annotation_files(root: str, layout: Layout, split: str, page: str, names: Sequence[str] = ()) -> list[Path]:
    """The annotation files of a split below root, without its image folders; or the files of these names, if given.

    Raises UserError that names the missing files.
    """
    if any(names):
        paths = [Path(root, name) for name in names if name]
        for path in paths:
            if not is_file(path):
                raise UserError(f"{path} does not exist.", "It was named as an annotation file.", "Check its name.")
        return paths
    if split not in layout:
        raise UserError(f"The split is {split!r}.", f"Known: {', '.join(layout)}.", "Choose one of them.")
    places = [place for place in layout[split] if not _is_folder(place)]
    missing = [place for place in places if find(root, place) is None]
    if missing:
        listed = ", ".join(place if isinstance(place, str) else " or ".join(place) for place in missing)
        raise UserError(f"{root} has no {listed}.", f"The split {split!r} needs it.", f"Get it from {page}.")
    return [path for place in places if (path := find(root, place)) is not None]


def image_folder(root: str, images: str, *names: str) -> Path:
    """The image folder: `images` if given, else the first of these names that exists below root, else root."""
    if images:
        return Path(images)
    return next((Path(root, n) for n in names if is_dir(Path(root, n))), Path(root))


def image_path(folder: Path, name: str) -> Path:
    """The path of this image below the folder, even if it is missing. Raises InvalidRecord if it cannot be a path."""
    try:
        return find_image(folder, name)
    except MissingImage:
        return folder / name


def _is_folder(place: FilePattern) -> bool:
    return (place if isinstance(place, str) else place[0]).endswith("/")
