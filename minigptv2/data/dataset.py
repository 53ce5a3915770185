"""The interface of a data set (records by number, problems of its files) and the table of all readers.

`DATASETS` names every reader. A name with a colon, `my_package.module:Class`, is imported: a reader of another package
needs no entry here.
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from minigptv2.errors import UserError, unknown
from minigptv2.renames import present_value, rename_old_keys, tell
from minigptv2.sample import Sample

DATASETS: dict[str, str] = {
    # boxes
    "refcoco": "minigptv2.data.readers.refcoco:RefCoco",
    "visual_genome": "minigptv2.data.readers.visual_genome:VisualGenome",
    "flickr30k": "minigptv2.data.readers.flickr30k:Flickr30k",
    "grit": "minigptv2.data.readers.grit:Grit",
    "coco_detection": "minigptv2.data.readers.coco_detection:CocoDetection",
    # captions
    "coco_caption": "minigptv2.data.readers.coco_caption:CocoCaption",
    "textcaps": "minigptv2.data.readers.textcaps:TextCaps",
    "laion": "minigptv2.data.readers.web_captions:WebCaptions",
    "cc3m": "minigptv2.data.readers.web_captions:WebCaptions",
    "sbu": "minigptv2.data.readers.web_captions:WebCaptions",
    # questions and answers
    "vqav2": "minigptv2.data.readers.vqav2:VqaV2",
    "gqa": "minigptv2.data.readers.gqa:Gqa",
    "okvqa": "minigptv2.data.readers.okvqa:OkVqa",
    "aokvqa": "minigptv2.data.readers.aokvqa:AOkVqa",
    "ocrvqa": "minigptv2.data.readers.ocrvqa:OcrVqa",
    "vizwiz": "minigptv2.data.readers.vizwiz:VizWiz",
    "iconqa": "minigptv2.data.readers.iconqa:IconQa",
    "hateful_memes": "minigptv2.data.readers.hateful_memes:HatefulMemes",
    "vsr": "minigptv2.data.readers.vsr:VSR",
    # instructions and conversation
    "llava": "minigptv2.data.readers.llava:Llava",
    "multitask_conversation": "minigptv2.data.readers.multitask_conversation:MultitaskConversation",
    "unnatural_instructions": "minigptv2.data.readers.unnatural_instructions:UnnaturalInstructions",
    # a user's own file
    "own": "minigptv2.data.readers.jsonl:JsonlDataset",
    # drawn here
    "scenes": "minigptv2.data.scenes.dataset:Scenes",
    "arithmetic": "minigptv2.data.readers.arithmetic:Arithmetic",
}
RENAMED_DATASETS = {"sums": "arithmetic"}  # old name -> present name
RENAMED_METHODS = {"picture": "image", "missing_pictures": "missing_images"}  # of readers: old name -> present name
_MAX_EXAMPLES = 3
_MAX_LENGTH = 200  # characters of an example
RECORDS = "records"  # the unit that most readers drop
_OPTION_TYPES = {"str": (str, "text"), "int": (int, "a whole number"), "bool": (bool, "true or false")}


class Dataset(Protocol):
    """Records by number. `dataset[i]` depends on i only, is fast, and does not open the image: its `image` is a path,
    or an object that `images.open_image` accepts. problems: of the rows that were dropped, and notes on others.

    Three methods are optional. `sample(index, rng) -> Sample`: for a data set that asks other questions about an image
    in every epoch; training calls it instead of `dataset[index]`, with a random.Random of the sample's position.
    `image(index)`: `dataset[index].image`, if it costs less than the whole record. `missing_images()`: the paths of
    images that are not on the disk although their records are kept.
    """

    problems: ProblemCounter

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ProblemCounter:
    """Counts problems by their text and keeps the first examples of each. Also counts what was dropped because of them
    and what was read, by unit: records, or the annotations, questions, ... of which records consist."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.dropped: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def add(self, problem: str, example: str, dropped: bool = True, unit: str = RECORDS) -> None:
        """Count a problem. problem: its text, as in "a box outside the image". example: where it is, as in "val.json
        row 17". dropped: False for a note on something that is used nevertheless (a box that is clipped at the edge) or
        was never meant to be used (a crowd). unit: what was dropped, in the plural."""
        self.counts[problem] += 1
        self.dropped[unit] += dropped
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(example if len(example) <= _MAX_LENGTH else f"{example[:_MAX_LENGTH]}...")

    def saw(self, count: int, unit: str = RECORDS) -> None:
        """Count what the reader has read, good and bad."""
        self.seen[unit] += count

    def dropped_of_seen(self, kept: int) -> Iterator[tuple[str, int, int]]:
        """(unit, number dropped, number read) for every unit of which both are known. kept: number of the reader's
        records; records need no call of `saw`, other units do."""
        for unit, dropped in self.dropped.items():
            seen = self.seen[unit] or (kept + dropped if unit == RECORDS else 0)
            if dropped and seen:
                yield unit, dropped, max(seen, dropped)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> Iterator[str]:
        """One line for each problem, the most frequent first: count, problem, examples."""
        for problem, count in self.counts.most_common():
            more = ", ..." if count > len(self.examples[problem]) else ""
            yield f"{count} x {problem}: {', '.join(self.examples[problem])}{more}"


def resolve_class(what: str, name: str, known: Mapping[str, str], advice: str) -> Any:
    """The class of a name: of the table `known` (name -> module:Class), or my_package.module:Class.

    what, advice: for the errors. Raises UserError for an unknown name, with the most similar known one, and for a class
    that cannot be imported.
    """
    if ":" not in name and name not in known:
        allowed = f"Known: {', '.join(known)}; or your own, as my_package.module:Class."
        raise unknown(f"The {what} {name!r} is unknown.", name, known, advice, allowed)
    module, _, attribute = (known.get(name) or name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"The {what} {name!r} cannot be imported: {error}",
            "It must be my_package.module:Class.",
            "Check the name, and that its package is installed.",
        ) from None


def present_source(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of a source as they are called now, for the record of an older version; no line is
    written. What is unknown stays as it is."""
    name = RENAMED_DATASETS.get(name, name)
    if name not in DATASETS:
        return name, dict(options)
    reader = resolve_class("data set", name, DATASETS, "")
    renamed, renamed_tasks = getattr(reader, "RENAMED", {}), getattr(reader, "RENAMED_TASKS", {})
    out = {renamed.get(key, key): value for key, value in options.items()}
    if isinstance(out.get("tasks"), Mapping):
        out["tasks"] = {renamed_tasks.get(task, task): weight for task, weight in out["tasks"].items()}
    return name, out


def open_dataset(name: str, options: dict[str, Any]) -> Dataset:
    """Open the data set of this name with its reader's options (`root`, `split`, ...).

    Raises UserError for an unknown name or option, with the most similar known one, and for what the reader refuses.
    """
    name = present_value(name, RENAMED_DATASETS, "data set")
    reader = resolve_class("data set", name, DATASETS, "Choose one of these.")
    options = rename_old_keys(options, getattr(reader, "RENAMED", {}), f"options of {name}")
    parameters = inspect.signature(reader).parameters
    known = list(parameters)
    for option, value in options.items():
        if option not in known:
            what, allowed = f"The data set {name!r} has no option {option!r}.", f"Its options: {', '.join(known)}."
            raise unknown(what, option, known, "Remove it.", allowed)
        hint = parameters[option].annotation
        expected, words = _OPTION_TYPES.get(
            hint if isinstance(hint, str) else getattr(hint, "__name__", ""), (None, "")
        )
        if expected is not None and type(value) is not expected:
            raise UserError(
                f"The option {option} of {name!r} is {value!r}.",
                f"It must be {words}.",
                "Put text that looks like a number into quotes." if expected is str else "Correct it.",
            )
    dataset = reader(**options)
    _accept_old_methods(type(dataset), name)
    return dataset


def _accept_old_methods(reader: type, name: str) -> None:
    """Give a reader that was written for an older version the present names of its optional methods."""
    for old, new in RENAMED_METHODS.items():
        if callable(getattr(reader, old, None)) and not hasattr(reader, new):
            setattr(reader, new, getattr(reader, old))
            tell(f"the method {old} of the data set {name} is now called {new}.")
