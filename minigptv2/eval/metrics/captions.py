"""Metrics of captions by pycocoevalcap: CIDEr, BLEU, ROUGE-L, METEOR. The tokenizer and METEOR are Java programs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minigptv2.errors import UserError
from minigptv2.eval.metrics.packages import find_java, import_from

Outcomes = dict[str, dict[int, float]]
CorpusFunctions = dict[str, Callable[[Sequence[int]], float]]
CAPTION_METRICS = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR")
CIDER_FRACTION = "CIDEr / 10, since CIDEr is 0..10"  # what `cider_fraction` gives, in words


def cider_fraction(cider: float) -> float:
    """CIDEr of one caption, 0..10, as a fraction of its maximum, 0..1."""
    return min(1.0, cider / 10)


def caption_scores(
    predictions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    names: Sequence[str] = ("CIDEr", "BLEU-4", "ROUGE-L", "METEOR"),
) -> tuple[Outcomes, CorpusFunctions]:
    """COCO's caption metrics (pycocoevalcap).

    predictions, references: by item number. Every item needs a caption and at least one reference; a missing caption is
    "", which scores 0. names: any of `CAPTION_METRICS`.

    Returns first the metrics that are means over items (CIDEr, ROUGE-L): metric -> item -> value. Then those that are
    counted over the whole set (BLEU, METEOR): metric -> function of item numbers; a repeated number counts again.
    CIDEr weighs words by how rare they are in all references given here, so give the whole set at once.

    Raises UserError for other names and items, and if there is no Java.
    """
    _check_captions(predictions, references, names)
    with import_from("pycocoevalcap"):
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

    java = find_java()
    ids = list(predictions)
    words = iter(ptb_tokens([predictions[i] for i in ids] + [t for i in ids for t in references[i]], java))
    predicted = {i: [next(words)] for i in ids}
    expected = {i: [next(words) for _ in references[i]] for i in ids}
    outcomes: Outcomes = {}
    corpus: CorpusFunctions = {}
    for name in names:
        if name in ("CIDEr", "ROUGE-L"):
            _, values = (Cider() if name == "CIDEr" else Rouge()).compute_score(expected, predicted)
            outcomes[name] = dict(zip(ids, map(float, values), strict=True))
    if any(name.startswith("BLEU") for name in names):
        counts = _bleu_counts(expected, predicted)
        for name in names:
            if name.startswith("BLEU"):
                corpus[name] = lambda items, n=int(name[-1]): _bleu(sum(counts[i] for i in items), n)
    if "METEOR" in names:
        stats = _meteor_stats(expected, predicted, java)
        corpus["METEOR"] = lambda items: _meteor(sum(stats[i] for i in items))
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
        in_one_only = sorted(set(predictions) ^ set(references), key=str)[:3]
        raise UserError(
            f"{len(predictions)} items have captions and {len(references)} have references; in one only: {in_one_only}",
            "Both must have the same items, at least one, each with a reference.",
            'Give "" for a missing caption.',
        )


def _bleu_counts(expected: Mapping[int, list[str]], predicted: Mapping[int, list[str]]) -> dict:
    """item -> array [10]: lengths of the caption and of the reference closest in length; n-grams of the caption for
    n in 1..4; those of them that are in a reference."""
    import numpy as np
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    out = {}
    for i, (caption,) in predicted.items():
        cooked = cook_test(caption, cook_refs(expected[i]), eff="closest")
        out[i] = np.array([cooked["testlen"], cooked["reflen"], *cooked["guess"], *cooked["correct"]], float)
    return out


def _bleu(sums, n: int) -> float:
    """BLEU-n of summed counts, with the tiny terms that pycocoevalcap adds to avoid a division by 0."""
    from math import exp

    product = 1.0
    for total, matched in zip(sums[2 : 2 + n], sums[6 : 6 + n]):
        product *= (matched + 1e-15) / (total + 1e-9)
    ratio = (sums[0] + 1e-15) / (sums[1] + 1e-9)
    return float(product ** (1 / n) * (exp(1 - 1 / ratio) if ratio < 1 else 1.0))


def ptb_tokens(texts: Sequence[str], java: str) -> list[str]:
    """Each text as lower-case words separated by one space, without punctuation, by the Stanford tokenizer."""
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
    tokenized = done.stdout.decode("utf-8").split("\n")
    if done.returncode or len(tokenized) < len(texts):
        raise _java_failed("The tokenizer", java, done.stderr)
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(w for w in line.split() if w not in dropped) for line in tokenized[: len(texts)]]


def _meteor_stats(expected: Mapping[int, list[str]], predicted: Mapping[int, list[str]], java: str) -> dict:
    """item -> array [23] of the counts of METEOR 1.5 (English, normalised) for the best reference. See `_meteor`."""
    import numpy as np
    from pycocoevalcap.meteor import meteor

    folder = Path(meteor.__file__).parent
    command = [java, "-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        out = {}
        for i, (caption,) in predicted.items():
            line = " ||| ".join(["SCORE", *(t.replace("|||", "") for t in (*expected[i], caption))])
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            out[i] = np.array([float(v) for v in process.stdout.readline().split()])
            if len(out[i]) != _METEOR_COUNTS:
                raise ValueError
        lines = (" ".join(map(str, counts)) for counts in out.values())
        process.stdin.write(f"{' ||| '.join(['EVAL', *lines])}\n".encode())
        process.stdin.flush()
        *_, total = (float(process.stdout.readline()) for _ in range(len(out) + 1))
    except (OSError, ValueError):
        raise _java_failed("METEOR", java, b"") from None
    finally:
        process.kill()
        process.communicate()
    for counts in out.values():
        if counts[21] == counts[0] and counts[22] == counts[1] and counts[20] == 1:
            counts[20] = 0  # the caption equals the reference: no fragmentation
    if abs(_meteor(sum(out.values())) - total) > 1e-6:
        raise UserError(
            f"METEOR's program scores these captions {total}, its counts give {_meteor(sum(out.values()))}.",
            "They must agree. This is another version of METEOR than 1.5.",
            "Install pycocoevalcap 1.2.",
        )
    return out


_METEOR_COUNTS = 23
_METEOR_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of exact, stem, synonym and paraphrase matches, for English
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def _meteor(sums) -> float:
    """METEOR of summed counts. Michael Denkowski and Alon Lavie, Meteor Universal (2014), section 3, English.

    Counts by index: words (0 caption, 1 reference); function words (2, 3); for each of four match types, content words
    of caption and reference, then function words of both (4..19); chunks (20); matched words (21, 22).
    """

    def matched_fraction(side: int) -> float:
        matched = sum(
            w * (_DELTA * sums[4 + 4 * m + side] + (1 - _DELTA) * sums[6 + 4 * m + side])
            for m, w in enumerate(_METEOR_WEIGHTS)
        )
        length = _DELTA * (sums[side] - sums[2 + side]) + (1 - _DELTA) * sums[2 + side]
        return matched / length if length else 0.0

    precision, recall = matched_fraction(0), matched_fraction(1)
    if not precision or not recall:
        return 0.0
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = sums[20] / ((sums[21] + sums[22]) / 2)
    return float(mean * (1 - _GAMMA * fragmentation**_BETA))


def _java_failed(what: str, java: str, stderr: bytes) -> UserError:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return UserError(
        f"{what} of COCO's caption metrics ended without an answer.",
        f"{java} says: {lines[0] if lines else 'nothing'}",
        "Check that this Java runs, and that 2 GB of memory are free.",
    )
