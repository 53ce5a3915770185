"""What a data set is to the rest of the program: records by number, and an account of what was wrong with its files.

`DATASETS` names every reader; a name with a colon, `my_package.module:Class`, is imported, so that an outsider's reader
needs no change here.
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from minigptv2.errors import UserError, unknown
from minigptv2.renames import present_value, rename_old_keys
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
    # a user's own
    "own": "minigptv2.data.readers.jsonl:JsonlDataset",
    # drawn here
    "scenes": "minigptv2.data.scenes.dataset:Scenes",
    "arithmetic": "minigptv2.data.readers.arithmetic:Arithmetic",
}
RENAMED_DATASETS = {"sums": "arithmetic"}  # old name -> present name
_EXAMPLES = 3
_LONGEST = 200  # characters of an example
RECORDS = "records"  # the unit that most readers drop
_KINDS = {"str": (str, "text"), "int": (int, "a whole number"), "bool": (bool, "true or false")}  # of options


class Dataset(Protocol):
    """Records by number. `dataset[i]` is a function of i alone, quick, and opens no image: its `image` is a path, or
    an object that `images.open_image` takes. problems: what was wrong with rows that were left out.

    Three methods are optional. `sample(index, rng) -> Sample`: of a data set that asks other questions about an image
    in every epoch; training calls it in place of `dataset[index]`, with a random.Random of the sample's position.
    `image(index)`: `dataset[index].image` where that costs less than the whole record. `missing_images()`: the
    paths of images that are not on the disk while their records were kept.
    """

    problems: ProblemCounter

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ProblemCounter:
    """Counts what was wrong, by kind, and keeps the first examples of each. Apart from that, it counts what was dropped
    for it, by unit: records, or the annotations, questions, ... that a record is made of."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.dropped: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def add(self, kind: str, example: str, dropped: bool = True, unit: str = RECORDS) -> None:
        """kind: "a box outside the image"; example: where, "val.json row 17". dropped: False for a note, on what is
        used all the same (a box that is cut off at the edge) or was never meant to be (a crowd). unit: what was
        dropped, in the plural."""
        self.counts[kind] += 1
        self.dropped[unit] += dropped
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append(example if len(example) <= _LONGEST else f"{example[:_LONGEST]}...")

    def saw(self, count: int, unit: str = RECORDS) -> None:
        """The reader has looked at so many, good and bad: what the dropped ones are a share of."""
        self.seen[unit] += count

    def shares(self, kept: int) -> Iterator[tuple[str, int, int]]:
        """(unit, dropped, looked at) of every unit of which a share can be told. kept: the reader's records, of which
        it need not say how many it saw; of any other unit it must."""
        for unit, dropped in self.dropped.items():
            seen = self.seen[unit] or (kept + dropped if unit == RECORDS else 0)
            if dropped and seen:
                yield unit, dropped, max(seen, dropped)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> Iterator[str]:
        """One line a kind, the most frequent first: count, kind, examples."""
        for kind, count in self.counts.most_common():
            more = ", ..." if count > len(self.examples[kind]) else ""
            yield f"{count} x {kind}: {', '.join(self.examples[kind])}{more}"


def resolve_class(what: str, name: str, known: Mapping[str, str], advice: str) -> Any:
    """The class of this name: of the table `known`, or my_package.module:Class. what, advice: for the errors.

    Raises UserError for an unknown name, with the nearest known one, and for what cannot be imported.
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


def open_dataset(name: str, options: dict[str, Any]) -> Dataset:
    """The reader of this name with its options (`root`, `split`, ...).

    Raises UserError for an unknown name or option, with the nearest known one, and what the reader itself raises.
    """
    name = present_value(name, RENAMED_DATASETS, "data set")
    reader = resolve_class("data set", name, DATASETS, "Choose one of these.")
    options = rename_old_keys(options, getattr(reader, "RENAMED", {}), f"options of {name}")
    parameters = inspect.signature(reader).parameters
    known = list(parameters)
    for option, value in options.items():
        if option not in known:
            told, allowed = f"The data set {name!r} has no option {option!r}.", f"Its options: {', '.join(known)}."
            raise unknown(told, option, known, "Remove it.", allowed)
        hint = parameters[option].annotation
        kind = _KINDS.get(hint if isinstance(hint, str) else getattr(hint, "__name__", ""))
        if kind is not None and type(value) is not kind[0]:
            raise UserError(
                f"The option {option} of {name!r} is {value!r}.",
                f"It must be {kind[1]}.",
                "Put text that looks like a number into quotes." if kind[0] is str else "Correct it.",
            )
    return reader(**options)
