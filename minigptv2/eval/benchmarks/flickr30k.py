"""Benchmark: Flickr30k Entities. How many annotated phrases are found with their box.

Bryan Plummer et al., arXiv 1505.04870, section 5. There are two tasks, with different metrics:

    grounding   The model writes a grounded caption of the image. Recall of the annotated phrases of all its captions:
                a box of the phrase is found; it is found, and its name has a word of the phrase.
    phrases     The model gets a caption and finds its phrases. Recall@1: the first box of the phrase is a hit.

A row is an image of the split (grounding) or a caption (phrases), in the reader's order, from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minigptv2.api import MAX_NEW_TOKENS
from minigptv2.boxes import IOU_THRESHOLD, Box
from minigptv2.data.annotations import check_choice
from minigptv2.data.readers.flickr30k import Flickr30k as Reader
from minigptv2.eval.benchmark import Prediction, Published, Question, Scored, ScoredAnswer, ScoringRules
from minigptv2.eval.benchmarks.refcoco import answer_boxes
from minigptv2.eval.metrics.boxes import iou, is_hit
from minigptv2.sample import Phrase, QuestionAnswer
from minigptv2.tasks import instruction_text

READER_TASKS = {
    "grounding": "phrase_to_boxes",
    "phrases": "caption_to_phrases",
}  # task -> the reader's task with the truth
_WORD = re.compile(r"\w+")
_STOP_WORDS = set("a an the of in on at with and or to his her their its one two some other is are".split())


class Flickr30kBenchmark:
    """root, split, images: as in `data.readers.flickr30k.Flickr30k`. task: "grounding" or "phrases"."""

    max_new_tokens = MAX_NEW_TOKENS

    def __init__(self, root: str, split: str = "test", images: str = "", task: str = "grounding"):
        self.task = check_choice("task", task, tuple(READER_TASKS))
        self.reader = Reader(root, split, READER_TASKS[task], images)
        folder = Path(root)
        self.files = tuple(
            f
            for name in dict.fromkeys(r[0] for r in self.reader.records)
            for f in (folder / "Sentences" / f"{name}.txt", folder / "Annotations" / f"{name}.xml")
        )
        self.name = f"flickr30k {split} {task}"
        self.problems, self.excluded = self.reader.problems, {}
        self.published: Mapping[str, tuple[Published, ...]] = {}

    def items(self) -> list[Question]:
        """truth: the phrases to find, each with its boxes."""
        samples = [self.reader[i] for i in range(len(self.reader))]
        if self.task == "phrases":
            return [
                Question(
                    n,
                    s.image,
                    s.size,
                    instruction_text(s.question_answers[0], s.size, "floor", None),
                    str(s.image),
                    s.question_answers[0].phrases,
                    words=s.question_answers[0].question,
                )
                for n, s in enumerate(samples)
            ]
        images: dict[str, tuple] = {}
        for sample in samples:
            images.setdefault(str(sample.image), (sample, []))[1].extend(sample.question_answers[0].phrases)
        text = instruction_text(QuestionAnswer("grounding"), (0, 0), "floor", None)
        return [
            Question(n, sample.image, sample.size, text, key, tuple(phrases), words=text)
            for n, (key, (sample, phrases)) in enumerate(images.items())
        ]

    def score(self, items: Sequence[Question], predictions: Mapping[int, Prediction], rules: ScoringRules) -> Scored:
        found: dict[str, dict[int, tuple[int, int]]] = {}  # metric -> index -> phrases found, phrases in all
        invalid, cases = set(), []
        for item in items:
            prediction = predictions[item.index]
            boxes, malformed = answer_boxes(prediction, item, rules)
            if prediction.finish_reason != "missing" and (malformed or not boxes):
                invalid.add(item.index)
            each = self._found(item.truth, boxes, rules)
            for metric, phrases in each.items():
                found.setdefault(metric, {})[item.index] = sum(phrases), len(phrases)
            first = next(iter(each.values()))
            truth = tuple(Box(*b.xyxy, p.text) for p in item.truth for b in p.boxes)
            box_found = tuple(hit for p, hit in zip(item.truth, first) for _ in p.boxes)
            cases.append(
                ScoredAnswer(
                    item.index,
                    item.image,
                    item.words,
                    prediction.text,
                    "",
                    truth,
                    boxes,
                    sum(first) / len(first),
                    item.size,
                    box_found,
                )
            )
        corpus = {metric: _recall(by) for metric, by in found.items()}
        return Scored(len(items), frozenset(invalid), {}, corpus, cases, {"phrases": sum(len(i.truth) for i in items)})

    def _found(self, phrases: Sequence[Phrase], boxes: Sequence[Box], rules: ScoringRules) -> dict[str, list[bool]]:
        """metric -> for each phrase, whether it counts as found."""
        if self.task == "phrases":
            by_phrase: dict[str, list[Box]] = {}
            for box in boxes:
                by_phrase.setdefault(box.phrase.strip().lower(), []).append(box)
            found = [_any_hit(by_phrase.get(p.text.strip().lower(), [])[:1], p.boxes, rules) for p in phrases]
            return {"phrase recall@1, IoU 0.5": found}
        found = [_any_hit(boxes, p.boxes, rules) for p in phrases]
        named = [_any_hit([b for b in boxes if _words(b.phrase) & _words(p.text)], p.boxes, rules) for p in phrases]
        return {"phrase recall, IoU 0.5": found, "phrase recall with a word of it, IoU 0.5": named}


def _any_hit(predicted: Sequence[Box], expected: Sequence[Box], rules: ScoringRules) -> bool:
    pairs = ((p, e) for p in predicted for e in expected)
    return any(is_hit(iou(p, e, rules.plus_one), IOU_THRESHOLD, rules.scoring) for p, e in pairs)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _STOP_WORDS


def _recall(counts: Mapping[int, tuple[int, int]]) -> Callable[[Sequence[int]], float | None]:
    def recall(indexes: Sequence[int]) -> float | None:
        total = sum(counts[i][1] for i in indexes)
        return sum(counts[i][0] for i in indexes) / total if total else None

    return recall
