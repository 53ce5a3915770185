"""Flickr30k Entities: captions whose phrases have boxes. Card: datasets/flickr30k.md.

Sentences/36979.txt holds five captions, a line each; Annotations/36979.xml the boxes of the chains:

    [/EN#137644/people Several men] play [/EN#137645/other cards] while around [/EN#137645/other a green table] .
    <object><name>137644</name><bndbox><xmin>1</xmin>...</bndbox></object>, or <scene>1</scene>, <nobndbox>1</nobndbox>
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from minigptv2.boxes import Box, strip_markup_chars
from minigptv2.bundled import document
from minigptv2.data.annotations import InvalidRecord, check_choice, parse_box, size_field
from minigptv2.data.coco_images import missing
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.dataset_files import Layout
from minigptv2.errors import UserError
from minigptv2.files import is_dir
from minigptv2.sample import Phrase, QuestionAnswer, Sample

PAGE = "https://github.com/BryanPlummer/flickr30k_entities"
LAYOUT: Layout = {split: ("Sentences/", "Annotations/", f"{split}.txt") for split in ("train", "val", "test")}
COUNTS: dict[str, int] = {}  # the number of captions with boxes is not published
DOWNLOADS: dict[str, str] = {}  # the photographs are available on request
OPTIONS = {split: {"split": split, "images": ""} for split in LAYOUT}
CAPTION_TASKS = ("grounding", "caption_to_phrases", "phrase_to_boxes")
FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "")  # of the images, below `images`
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)*)\s+([^\[\]]*)\]")
_PUNCTUATION = re.compile(r"\s+([.,;:!?]|n't\b|'s\b)")


class Flickr30k:
    """Captions and phrases with their boxes.

    root: the folder with `Sentences`, `Annotations`, and `train.txt`, `val.txt`, `test.txt`, the image numbers of
    each split; split "all" takes every image that has sentences. images: the folder of the images, "" for `root`.
    task: "grounding", one sample per caption, answered with the boxes of its phrases; "caption_to_phrases", the caption
    is given and its phrases are detected; "phrase_to_boxes", one sample per phrase of an image, which asks for all its
    boxes. captions_without_boxes: number of captions that have no box and are left out.
    """

    def __init__(self, root: str, split: str = "train", task: str = "grounding", images: str = ""):
        self.split, self.task = split, check_choice("task", task, CAPTION_TASKS)
        self.problems, self.captions_without_boxes = ProblemCounter(), 0
        folder = Path(root)
        below = [Path(images or root, f) for f in FOLDERS]
        self.images = next((f for f in below if is_dir(f) and next(f.glob("*.jpg"), None)), Path(images or root))
        self.records: list[tuple[str, int, tuple[int, int], str, tuple[Phrase, ...]]] = []
        for name in _names(folder, split):
            try:
                sentences = (folder / "Sentences" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
                size, boxes = self._boxes(folder / "Annotations" / f"{name}.xml")
            except OSError as error:
                self.problems.add("a missing file", str(error.filename)[:200])
            except InvalidRecord as error:
                self.problems.add(str(error), f"{name}.xml")
            except UnicodeDecodeError:
                self.problems.add("sentences that are not UTF-8 text", f"{name}.txt")
            except ValueError:
                self.problems.add("a number of an image with a NUL character, which no file has", repr(name))
            else:
                self._add(name, sentences, size, boxes)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        name, line, size, words, phrases = self.records[index]
        key = f"flickr30k {name} line {line}"
        if self.task == "grounding":
            question_answer = QuestionAnswer("grounding", phrases, answer=words)
        elif self.task == "caption_to_phrases":
            question_answer = QuestionAnswer("detection", phrases, question=words)
        else:
            question_answer, key = QuestionAnswer("detection", phrases), f"{key} {phrases[0].text!r}"
        return Sample(self.images / f"{name}.jpg", size, (question_answer,), key)

    def missing_images(self) -> list[Path]:
        """Expected paths of images that are not on the disk. Their captions are kept."""
        return missing(self.images / f"{record[0]}.jpg" for record in self.records)

    def _add(self, name: str, sentences: list[str], size: tuple[int, int], boxes: dict[str, list[Box]]) -> None:
        found: dict[str, tuple[int, list[Box]]] = {}  # words of a phrase -> line of the first one, all boxes
        for line, sentence in enumerate(sentences):
            if not sentence.strip():
                continue
            try:
                words, answer, phrases = _grounded(sentence, boxes)
            except InvalidRecord as error:
                self.problems.add(str(error), f"{name}.txt line {line}")
                continue
            if not phrases:
                self.captions_without_boxes += 1
            elif self.task == "phrase_to_boxes":
                for phrase in phrases:
                    known = found.setdefault(phrase.text.lower(), (line, []))[1]
                    known += [box for box in phrase.boxes if box not in known]
            else:
                text = answer if self.task == "grounding" else words
                self.records.append((name, line, size, text, phrases))
        for text, (line, all_boxes) in found.items():
            self.records.append((name, line, size, "", (Phrase(text, tuple(all_boxes)),)))

    def _boxes(self, file: Path) -> tuple[tuple[int, int], dict[str, list[Box]]]:
        """The image's size and the boxes of each chain. The files count pixels from 1, both edges included."""
        root = _safe_xml(file)
        size = size_field({side: _whole(root.find(f"size/{side}")) for side in ("width", "height")})
        boxes: dict[str, list[Box]] = {}
        for element in root.findall("object"):
            edges = element.find("bndbox")
            if edges is None:  # of the whole scene, or not visible
                continue
            self.problems.saw(1, "boxes")
            try:
                x1, y1, x2, y2 = (_whole(edges.find(edge)) for edge in ("xmin", "ymin", "xmax", "ymax"))
                box = parse_box((x1 - 1, y1 - 1, x2, y2), size, "xyxy")
            except InvalidRecord as error:
                self.problems.add(str(error), f"{file.name} chain {element.findtext('name')}", unit="boxes")
                continue
            for chain in element.findall("name"):
                boxes.setdefault(chain.text or "", []).append(box)
        return size, boxes


def _names(folder: Path, split: str) -> list[str]:
    if not is_dir(folder / "Sentences") or not is_dir(folder / "Annotations"):
        raise UserError(
            f"{folder} has no folders Sentences and Annotations.",
            "They hold the captions and the boxes.",
            f"Unpack annotations.zip there; see {document('datasets/flickr30k.md', PAGE)} for the layout.",
        )
    if split == "all":
        return sorted((f.stem for f in (folder / "Sentences").glob("*.txt")), key=lambda n: (len(n), n))
    try:
        names = (folder / f"{split}.txt").read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / split}.txt cannot be read.",
            "It lists the images of the split, one number per line.",
            "Choose train, val, test, or all for every image.",
        ) from error
    return [Path(name).stem for name in names]


def _safe_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file. A document type is refused: its entities could grow without limit or read files."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InvalidRecord("XML that declares a document type")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as error:
        raise error if isinstance(error, InvalidRecord) else InvalidRecord("XML that is damaged") from error


def _whole(element: ElementTree.Element | None) -> int:
    try:
        return int(element.text)
    except (AttributeError, TypeError, ValueError):
        raise InvalidRecord("a size or box without its numbers") from None


def _grounded(sentence: str, boxes: dict[str, list[Box]]) -> tuple[str, str, tuple[Phrase, ...]]:
    """The words of an annotated caption; the same with `{}` for each phrase that has boxes; and these phrases."""
    if "{" in sentence or "}" in sentence:
        raise InvalidRecord("a caption with curly brackets")
    if strip_markup_chars(sentence) != sentence:
        raise InvalidRecord("a caption with markup of phrases or boxes")
    parts, phrases, at = [], [], 0
    for match in _PHRASE.finditer(sentence):
        words = _tidy(match[3])
        if not words:
            raise InvalidRecord("a phrase without words")
        parts.append(sentence[at : match.start()])
        at = match.end()
        if boxes.get(match[1]):
            phrases.append(Phrase(words, tuple(boxes[match[1]])))
            parts.append("{}")
        else:
            parts.append(words)
    parts.append(sentence[at:])
    answer = _tidy("".join(parts))
    if "[/EN#" in answer or "]" in answer:
        raise InvalidRecord("a caption with unmatched brackets")
    words = answer
    for phrase in phrases:
        words = words.replace("{}", phrase.text, 1)
    return words, answer, tuple(phrases)


def _tidy(words: str) -> str:
    """Tokens as they are written: no space before punctuation."""
    return _PUNCTUATION.sub(r"\1", " ".join(words.split()))
