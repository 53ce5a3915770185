"""Metrics of short answers: the official accuracy of visual question answering, and the area under the ROC curve."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Scoring, check_scoring
from minigptv2.eval.metrics.packages import import_from

# Rules of the official evaluation of visual question answering: github.com/GT-Vision-Lab/VQA, vqaEval.py
_NUMBERS = {"none": "0"} | {
    word: str(n)
    for n, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # a bug of the official code: it passes re.UNICODE, 32, where re.sub takes a count
# each is corrected where exactly one of its apostrophes is missing
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
} | {"somebody'd": "somebodyd"}  # this one is reversed in the official table


def normalize_answer(text: str) -> str:
    """A short answer as the official evaluation compares it.

    Lower case; digits for number words; no articles; no punctuation, with a space in its place where it joined two
    words; apostrophes restored in contractions.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    normalized = text
    for mark in _PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        normalized = normalized.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    normalized = _PERIOD.sub("", normalized, count=_MAX_PERIODS).lower()
    words = (word for word in (_NUMBERS.get(w, w) for w in normalized.split()) if word not in _ARTICLES)
    return " ".join(_MISSPELT.get(word, word) for word in words)


def vqa_accuracy(answer: str, references: Sequence[str], scoring: Scoring = "strict") -> float:
    """The official accuracy of an answer against the references, one from each annotator, 0..1.

    Each annotator is left out once; the answer scores min(1, n / 3) for n of the others who gave it; the result is the
    mean. With fewer than four annotators, all others must agree. Stanislaw Antol et al., arXiv 1505.00468, section 3.
    If all references are equal, the official code compares without normalising. compat does so too; strict normalises
    in any case, so that "Yes." matches ten times "yes". Raises UserError if there is no reference.
    """
    if not references:
        raise UserError(
            "A question has no reference answer.", "Accuracy compares with at least one.", "Omit the question."
        )
    texts = [" ".join(re.split(r"[\n\t]", t)).strip() for t in (answer, *references)]
    if check_scoring(scoring) == "strict" or len(set(texts[1:])) > 1:
        texts = [normalize_answer(t) for t in texts]
    matches = [text == texts[0] for text in texts[1:]]
    if len(matches) == 1:
        return float(matches[0])
    enough = min(3, len(matches) - 1)
    return sum(min(1.0, (sum(matches) - own) / enough) for own in matches) / len(matches)


def auc(scores: Sequence[float], labels: Sequence[int | bool]) -> float:
    """Area under the ROC curve, 0..1, by scikit-learn. scores: higher for label 1. labels: 0 or 1.

    Raises UserError unless there is a score for each label and both labels occur.
    """
    with import_from("scikit-learn"):
        from sklearn.metrics import roc_auc_score

    if len(scores) != len(labels) or len(set(map(int, labels))) != 2:
        raise UserError(
            f"AUC got {len(scores)} scores and {len(labels)} labels with {len(set(map(int, labels)))} values.",
            "It needs a score for each label, and both true and false ones.",
            "Evaluate more of the set.",
        )
    return float(roc_auc_score([int(v) for v in labels], list(scores)))
