"""The interface of a data set, the counter of problems in its files, and the table of all readers.

`DATASETS` maps the name of each data set to its reader. A reader of another package needs no entry: give its class as
the name, `my_package.module:Class`.
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from minigptv2.errors import UserError, unknown
from minigptv2.renames import note_once, present_value, rename_old_keys
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
    # generated, without files
    "scenes": "minigptv2.data.scenes.dataset:Scenes",
    "arithmetic": "minigptv2.data.readers.arithmetic:Arithmetic",
}
RENAMED_DATASETS = {"sums": "arithmetic"}  # old name -> current name
RENAMED_METHODS = {"picture": "image", "missing_pictures": "missing_images"}  # methods of readers: old -> current name
_MAX_EXAMPLES = 3  # of each problem
_MAX_LENGTH = 200  # characters of an example
RECORDS = "records"  # the default unit of `ProblemCounter`
_OPTION_TYPES = {"str": (str, "text"), "int": (int, "a whole number"), "bool": (bool, "true or false")}


class Dataset(Protocol):
    """A map-style data set of Samples, as torch's Dataset.

    `dataset[i]` always returns the same Sample for i, is fast, and does not open the image: `Sample.image` is a path or
    another object that `images.open_image` accepts. problems: counts the rows that the reader dropped, and the flaws of
    rows that it kept.

    A reader may have three more methods:
    - `sample(index, rng) -> Sample`: for new questions about the same image in each epoch. Training calls it instead of
      `dataset[index]`. rng: a random.Random, seeded by the position of the sample in the mixture.
    - `image(index)`: the same as `dataset[index].image`, but faster.
    - `missing_images() -> list`: paths of images that are not on disk, of records that are kept.
    """

    problems: ProblemCounter

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ProblemCounter:
    """Counts the problems that a reader finds in its files, with the first examples of each.

    It also counts, for each unit, how many items the reader read (`seen`) and dropped. A unit is a plural noun:
    "records", or what a record consists of, such as "annotations" or "questions".
    """

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.dropped: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def add(self, problem: str, example: str, dropped: bool = True, unit: str = RECORDS) -> None:
        """Count one problem.

        problem: its description, such as "a box outside the image". example: its location, such as "val.json row 17".
        dropped: whether an item was lost. False if the item is still used (a box that is clipped at the edge) or would
        not have been used anyway (a crowd). unit: the unit of the dropped item.
        """
        self.counts[problem] += 1
        self.dropped[unit] += dropped
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(example if len(example) <= _MAX_LENGTH else f"{example[:_MAX_LENGTH]}...")

    def saw(self, count: int, unit: str = RECORDS) -> None:
        """Count the items that the reader read, both kept and dropped ones."""
        self.seen[unit] += count

    def dropped_of_seen(self, kept: int) -> Iterator[tuple[str, int, int]]:
        """(unit, number dropped, number read) for each unit with dropped items.

        kept: length of the data set; kept and dropped records together are the records read. A unit other than records
        is omitted if the reader never called `saw` for it.
        """
        for unit, dropped in self.dropped.items():
            seen = self.seen[unit] or (kept + dropped if unit == RECORDS else 0)
            if dropped and seen:
                yield unit, dropped, max(seen, dropped)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> Iterator[str]:
        """One line for each problem, the most frequent first: "3 x a box outside the image: val.json row 17, ..."."""
        for problem, count in self.counts.most_common():
            more = ", ..." if count > len(self.examples[problem]) else ""
            yield f"{count} x {problem}: {', '.join(self.examples[problem])}{more}"


def resolve_class(what: str, name: str, known: Mapping[str, str], advice: str) -> Any:
    """Import the class for a name: a key of `known` (name -> module:Class), or my_package.module:Class.

    what: what the name stands for, such as "data set", for error messages. advice: the last line of the error for an
    unknown name, if no known name is similar. Raises UserError for an unknown name, and if the import fails.
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
    """Translate the name and options of a source, as an older version recorded them, to their current names.

    Prints no note. Unknown names stay unchanged.
    """
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
    """Open a data set by its name (see `DATASETS`) with the options of its reader, such as `root` and `split`.

    Raises UserError for an unknown name or option, which suggests the most similar known one, for an option of the
    wrong type, and where the reader raises it.
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
    """Add the current names of optional methods to a reader that was written for an older version."""
    for old, new in RENAMED_METHODS.items():
        if callable(getattr(reader, old, None)) and not hasattr(reader, new):
            setattr(reader, new, getattr(reader, old))
            note_once(f"the method {old} of the data set {name} is now called {new}.")
