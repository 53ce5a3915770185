"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that each refer to one object in a COCO image. Card: datasets/refcoco.md.

Two formats are read. The original one, `refs(unc).p` with `instances.json`, is a pickle; no code in it is run. The flat
one, `refcoco_val.json`, is a list with a row for each expression:

    {"img_id": "COCO_train2014_000000580957_4", "sents": "white pot upper right corner",
     "bbox": [468.3, 0.91, 171.7, 116.12], "height": 428, "width": 640}      bbox: x, y, width, height in pixels
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from minigptv2.boxes import Box
from minigptv2.bundled import document
from minigptv2.data.annotations import InvalidRecord, check_choice, field, parse_box, phrase_field, size_field
from minigptv2.data.coco_images import CocoImages, missing
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout
from minigptv2.data.json_files import corrupt_file_error, read_json
from minigptv2.errors import UserError
from minigptv2.files import is_dir, is_file
from minigptv2.sample import Phrase, QuestionAnswer, Sample

PAGE = "https://github.com/lichengunc/refer"
DEFAULT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # data set -> author of its usual split
NAMES = tuple(DEFAULT_BY)
_UNC, _UMD = ("train", "val", "testA", "testB"), ("train", "val", "test")
PARTS = {
    f"{name} {split}": (name, split) for name, by in DEFAULT_BY.items() for split in (_UNC if by == "unc" else _UMD)
}
LAYOUT: Layout = {  # the original format needs both files, the flat one only its own
    part: tuple(
        (f"{name}/{file}", file, f"{name}_{split}.json") for file in (f"refs({DEFAULT_BY[name]}).p", "instances.json")
    )
    for part, (name, split) in PARTS.items()
}
COUNTS = {
    "refcoco val": 10834,
    "refcoco testA": 5657,
    "refcoco testB": 5095,
    "refcoco+ val": 10758,
    "refcoco+ testA": 5726,
    "refcoco+ testB": 4889,
    "refcocog val": 4896,
    "refcocog test": 9602,
}
DOWNLOADS: dict[str, str] = {}  # the page names zip files of another server, not checked
OPTIONS = {part: {"dataset": name, "split": split} for part, (name, split) in PARTS.items()}
_IMAGE = re.compile(r"COCO_(?:train|val)2014_(\d{12})(?:_\d+)?")
# what the unpickler raises on damaged data
_CORRUPT = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    AssertionError,
    OSError,
    struct.error,
)


class Row(NamedTuple):
    """One expression. number: its index among all rows of its file and split, with those that are left out. reference:
    the `img_id` of the flat format, the key of an answer in the published evaluation; "" where unknown."""

    number: int
    image: Path
    size: tuple[int, int]
    words: str
    box: Box
    reference: str = ""


class RefCoco:
    """One sample per expression, in the order of the file.

    root: the folder with `refcoco_val.json`, or with `refs(unc).p` and `instances.json`, directly or in a folder named
    as the data set. dataset: "refcoco", "refcoco+" or "refcocog". by: who made the split of the original format, "unc",
    "umd" or "google"; "" is umd for RefCOCOg and unc for the others. images: the folder of the images, "" for `root`.
    task: "refer", from words to a box, or "identify", from a box to words. excluded: row number and reason of every
    row that was left out.
    """

    RENAMED: ClassVar[dict[str, str]] = {"name": "dataset"}

    def __init__(
        self,
        root: str,
        dataset: str = "refcoco",
        split: str = "train",
        task: str = "refer",
        images: str = "",
        by: str = "",
    ):
        self.dataset, self.split = check_choice("dataset", dataset, NAMES), split
        self.task = check_choice("task", task, ("refer", "identify"))
        self.problems = ProblemCounter()
        self.excluded: list[tuple[int, str]] = []
        by = by or DEFAULT_BY[dataset]
        original = [f for f in (Path(root, dataset, f"refs({by}).p"), Path(root, f"refs({by}).p")) if is_file(f)]
        flat = Path(root, f"{dataset}_{split}.json")
        if not original and not is_file(flat):
            raise _nothing_there(Path(root), dataset, split, by)
        coco = CocoImages(images or root)
        self.file = original[0] if original else flat
        rows = self._original(coco) if original else self._flat(coco)
        self.records = [row for row in rows if row is not None]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        row = self.records[index]
        question_answer = QuestionAnswer(self.task, (Phrase(row.words, (row.box,)),))
        return Sample(row.image, row.size, (question_answer,), f"{self.dataset} {self.split} row {row.number}")

    def missing_images(self) -> list[Path]:
        """Expected paths of images that are not on the disk. Their rows are kept."""
        return missing(row.image for row in self.records)

    def _flat(self, images: CocoImages) -> Iterator[Row | None]:
        rows = read_json(self.file)
        if not isinstance(rows, list):
            raise corrupt_file_error(self.file, "it is not a list of rows")
        for number, row in enumerate(rows):
            try:
                named = _IMAGE.fullmatch(field(row, "img_id", str).removesuffix(".jpg"))
                if named is None:
                    raise InvalidRecord("an 'img_id' that is not one of COCO")
                size = size_field(row)
                box = parse_box(field(row, "bbox", list), size)
                words, reference = phrase_field(row, "sents"), named[0]
                yield Row(number, images.find(int(named[1])), size, words, box, reference)
            except InvalidRecord as error:
                self._leave_out(number, str(error), f"{self.file.name} row {number}")

    def _original(self, images: CocoImages) -> Iterator[Row | None]:
        """A row for each sentence of each reference of the split, in the order of the file."""
        references = read_pickle(self.file)
        if not isinstance(references, list):
            raise corrupt_file_error(self.file, "it is not a list of references")
        sizes, boxes = _instances(self.file.with_name("instances.json"))
        splits = sorted({str(r.get("split")) for r in references if isinstance(r, dict)})
        if self.split not in splits:
            raise UserError(
                f"{self.file} has no split {self.split!r}.",
                f"Its splits: {', '.join(splits) or 'none'}.",
                "Choose one of them, or another `by`.",
            )
        number, seen = 0, set()
        for position, reference in enumerate(references):
            if not isinstance(reference, dict) or "split" not in reference:
                self.problems.add("a reference without a split", f"{self.file.name} reference {position}")
                continue
            if reference["split"] != self.split:
                continue
            try:
                identity = field(reference, "ref_id", int)
                if identity in seen:
                    raise InvalidRecord("a second reference of the same 'ref_id'")
                seen.add(identity)
                sentences = field(reference, "sentences", list)
                if not sentences:
                    raise InvalidRecord("a reference without sentences")
                image, annotation = field(reference, "image_id", int), field(reference, "ann_id", int)
                if image not in sizes:
                    raise InvalidRecord("an 'image_id' that instances.json lacks")
                if annotation not in boxes:
                    raise InvalidRecord("an 'ann_id' that instances.json lacks")
                size = size_field(sizes[image])
                box = parse_box(field(boxes[annotation], "bbox", list), size)
                if boxes[annotation].get("image_id") != image:
                    raise InvalidRecord("a box of another image")
            except InvalidRecord as error:
                sentences = reference.get("sentences")
                if not isinstance(sentences, list) or not sentences:
                    self.problems.add(str(error), f"{self.file.name} reference {position}")
                    continue
                for _ in sentences:
                    self._leave_out(number, str(error), f"{self.file.name} reference {position}")
                    number += 1
                continue
            path, name = images.find(image), reference.get("file_name")
            name = name.removesuffix(".jpg") if isinstance(name, str) else ""
            for sentence in sentences:
                try:
                    yield Row(number, path, size, phrase_field(sentence, "sent"), box, name)
                except InvalidRecord as error:
                    self._leave_out(number, str(error), f"{self.file.name} reference {position}")
                number += 1

    def _leave_out(self, number: int, problem: str, where: str) -> None:
        self.problems.add(problem, where)
        self.excluded.append((number, problem))


def _instances(file: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """The images and the annotations of COCO's instances.json, each by its id."""
    found = read_json(file)
    try:
        return tuple({i["id"]: i for i in found[name] if isinstance(i, dict)} for name in ("images", "annotations"))
    except (TypeError, KeyError) as error:
        raise corrupt_file_error(file, f"no lists 'images' and 'annotations' of objects with 'id' ({error})") from error


def _nothing_there(root: Path, name: str, split: str, by: str) -> UserError:
    if not is_dir(root):
        return UserError(
            f"{root} is not a folder.",
            "`root` is the folder of the annotation.",
            f"See {document('datasets/refcoco.md', PAGE)} for its layout.",
        )
    there = sorted(f.name for f in (*root.glob("*.json"), *root.rglob("refs(*).p")))
    return UserError(
        f"{root} holds neither {name}_{split}.json nor refs({by}).p.",
        f"Annotation files found there: {', '.join(there[:12]) or 'none'}.",
        f"Choose a `split` and a `by` that are there, or see {document('datasets/refcoco.md', PAGE)} for the layout.",
    )


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, tuples, strings and numbers; refuses every opcode that imports or calls something."""

    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> Any:
        raise _Refused("a persistent object")


class _Refused(Exception):
    pass


def read_pickle(path: Path) -> Any:
    """The content of a pickle of plain data, of any protocol and of Python 2 too; no code in it is run.

    Raises UserError where it holds anything but plain containers, text and numbers, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise UserError(
            f"{path} would load {error}.",
            "Only dicts, lists, text and numbers are read from a pickle, no code.",
            "Do not open it with other tools; download the original file again.",
        ) from None
    except _CORRUPT as error:
        raise corrupt_file_error(path, str(error) or type(error).__name__) from error
