"""95 % confidence intervals by bootstrap over images.

Answers about one image are correlated, so images are drawn, not questions: as many as there are, with replacement, each
with all its questions. The interval is from the 2.5th to the 97.5th percentile of the metric over the draws.
Bradley Efron and Robert Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

Means (accuracy, CIDEr, ROUGE-L) are drawn `resamples` times, as sums over images, which is quick at any size. Metrics
of a whole set (BLEU, METEOR, F1, AUC, COCO's AP) are computed for every draw, `corpus_resamples` times. For AP, boxes
are matched once (`metrics.boxes.AveragePrecision`); only the precision curve is computed again. CIDEr keeps the word
weights of the whole set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from minigptv2.eval.benchmark import Question, Scored

if TYPE_CHECKING:
    import numpy as np

RESAMPLES, CORPUS_RESAMPLES = 1000, 200
_PERCENTILES = (2.5, 97.5)
_BLOCK = 4_000_000  # random numbers held at a time

Interval = tuple[float, float]


def bootstrap(
    scored: Scored,
    items: Sequence[Question],
    resamples: int = RESAMPLES,
    seed: int = 0,
    corpus_resamples: int = CORPUS_RESAMPLES,
) -> dict[str, Interval]:
    """metric -> (low, high), for every outcome and corpus figure of `scored`. The same seed gives the same numbers.

    Images are identified by `Question.image_key`. A metric over fewer than two images has no interval and is omitted.
    """
    image_of = {item.index: item.image_key for item in items}
    out = {}
    for name, values in scored.outcomes.items():
        interval = mean_interval(values, image_of, resamples, seed)
        if interval is not None:
            out[name] = interval
    for name, function in scored.corpus.items():
        interval = corpus_interval(function, image_of, corpus_resamples, seed)
        if interval is not None:
            out[name] = interval
    return out


def mean_interval(
    values: Mapping[int, float], image_of: Mapping[int, str], resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The interval of the mean of values, by index; None for fewer than two images. image_of: index -> image key."""
    import numpy as np

    numbers: dict[str, int] = {}  # image key -> its number
    clusters = [numbers.setdefault(image_of[i], len(numbers)) for i in values]
    count = len(numbers)
    if count < 2:
        return None
    sums = np.bincount(clusters, weights=np.fromiter(values.values(), float), minlength=count)  # [images]
    sizes = np.bincount(clusters, minlength=count).astype(float)  # [images]
    rng, means = np.random.default_rng(seed), []
    at_once = max(1, _BLOCK // count)
    for start in range(0, resamples, at_once):
        drawn = rng.integers(count, size=(min(at_once, resamples - start), count))  # [draws, images]
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return _percentiles(np.concatenate(means))


def corpus_interval(
    function: Callable[[Sequence[int]], float | None],
    image_of: Mapping[int, str],
    resamples: int = CORPUS_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of a metric of a whole set: `function` gets the indexes of the questions about the drawn images.

    A draw for which the metric does not exist (None or NaN, such as AUC with one class) is left out. None if this
    happens for half of the draws or more, and for fewer than two images.
    """
    import numpy as np

    by_image: dict[str, list[int]] = {}
    for index, image in image_of.items():
        by_image.setdefault(image, []).append(index)
    groups = list(by_image.values())
    if len(groups) < 2:
        return None
    rng, figures = np.random.default_rng(seed), []
    for _ in range(resamples):
        value = _figure(function, [i for g in rng.integers(len(groups), size=len(groups)) for i in groups[g]])
        if value is not None and math.isfinite(value):
            figures.append(value)
    return _percentiles(np.array(figures)) if 2 * len(figures) > resamples else None


def _figure(function: Callable[[Sequence[int]], float | None], items: list[int]) -> float | None:
    from minigptv2.errors import UserError

    try:
        return function(items)
    except UserError:  # the metric does not exist for these questions
        return None


def _percentiles(figures: np.ndarray) -> Interval:
    import numpy as np

    low, high = np.percentile(figures, _PERCENTILES)
    return float(low), float(high)
