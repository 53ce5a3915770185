"""Results of the MiniGPT-v2 paper, Jun Chen et al., arXiv 2310.09478, that a report shows next to ours.

The paper has two lines: the model after stage 2, and after stage 3 ("chat"). Values are per cent.
"""

from __future__ import annotations

from minigptv2.eval.benchmark import Published

_V1 = "arXiv 2310.09478v1"
_ANY = "arXiv 2310.09478, version not recorded"
# name of the benchmark -> metric, stage 2, stage 3, source
_RESULTS: dict[str, tuple[str, float, float, str]] = {
    "refcoco val": ("acc@0.5", 88.69, 88.06, _ANY),
    "refcoco testA": ("acc@0.5", 91.65, 91.29, _ANY),
    "refcoco testB": ("acc@0.5", 85.33, 84.30, _ANY),
    "refcoco+ val": ("acc@0.5", 79.97, 79.58, _ANY),
    "refcoco+ testA": ("acc@0.5", 85.12, 85.52, _ANY),
    "refcoco+ testB": ("acc@0.5", 74.45, 73.32, _ANY),
    "refcocog val": ("acc@0.5", 84.44, 84.19, _ANY),
    "refcocog test": ("acc@0.5", 84.66, 84.31, _ANY),
    "okvqa val": ("accuracy", 56.9, 55.9, _V1),
    "vizwiz val": ("accuracy", 30.3, 42.4, _V1),
    "gqa testdev": ("accuracy", 60.3, 58.8, _V1),
    "vsr zeroshot test": ("accuracy", 60.6, 63.3, _V1),
    "iconqa val": ("accuracy", 47.7, 49.4, _V1),
    "hateful_memes dev": ("accuracy", 58.2, 59.5, _V1),
}


def published_results(benchmark: str) -> dict[str, tuple[Published, ...]]:
    """metric -> the paper's results for a benchmark of this name; empty if the paper has none."""
    if benchmark not in _RESULTS:
        return {}
    metric, stage_2, chat, source = _RESULTS[benchmark]
    return {metric: (Published("MiniGPT-v2", stage_2 / 100, source), Published("MiniGPT-v2-chat", chat / 100, source))}
