"""This model for lmms-eval: `lmms-eval --model minigptv2 --tasks ...`. How to run it: docs/integrations.md.

Written for lmms-eval 0.7; its interface is `lmms_eval.api.model.lmms`. Where the kit is not installed, the class stands
alone, for tests. Decoding is greedy whatever a task asks for; a task that asks for sampling is told so once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from minigptv2.integrations.questions import Asker, cut, whole

try:
    from lmms_eval.api.model import lmms
except ImportError:
    lmms = object

_LOG = logging.getLogger(__name__)


def manifest():
    """What the kit's entry point asks for: the name of the model and the path of its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("minigptv2", simple_class_path=f"{__name__}.{MiniGPTv2ForLmms.__name__}")


class MiniGPTv2ForLmms(lmms):
    """lmms-eval's view of the model. Options, given as `--model_args pretrained=folder,prompt=okvqa`: those of
    `questions.Asker`, and batch_size. With several processes each takes the GPU of its LOCAL_RANK."""

    is_simple = True

    def __init__(self, batch_size: int | str = 1, device: str | None = None, model: Any = None, **options):
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and device in (None, "", "cuda"):
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.asker = Asker(device=device, model=model, **options)
        self.batch_size = whole("batch_size", batch_size)
        self._told_of_sampling = False

    @property
    def device(self):
        return self.asker.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests, each cut at the strings its task names."""
        asked = [request.args for request in requests]
        out: list[str] = [""] * len(asked)
        for batch, limit in self._batches(asked):
            answers = self.asker.model.chat_batch([question for _, question in batch], limit)
            for (n, _), answer in zip(batch, answers, strict=True):
                out[n] = cut(answer.text, asked[n][1].get("until"))
                self._remember("generate_until", asked[n][0], asked[n][1], out[n])
        return out

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """One list of answers a request: the task says after each answer what is asked next, and when to stop."""
        out = []
        for request in requests:
            context, kwargs, to_visual, to_text, doc_id, task, split = request.args
            visuals, said, info = self._visuals(to_visual, task, split, doc_id), [], None
            while True:
                question = self.asker.question(context, visuals)
                (answer,) = self.asker.model.chat_batch([question], self._limit(question, kwargs))
                said.append(cut(answer.text, kwargs.get("until")))
                visuals, context, done, rounds, info = to_text(
                    self.task_dict[task][split][doc_id],
                    previous_output=list(said),
                    round_idx=len(said),
                    previous_round_info=info,
                )
                if done:
                    break
                visuals = self._flat(visuals)
            out.append(list(rounds) if rounds is not None else said)
            self._remember("generate_until_multi_round", request.args[0], kwargs, out[-1])
        return out

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(loss, greedy) of each continuation: the mean negative log-probability of its tokens and the end, which is
        what this kit's multiple choice takes the least of; and whether the model itself would say it."""
        asked = []
        for request in requests:
            context, continuation, *rest = request.args
            visuals = []
            if rest:
                to_visual, doc_id, task, split = rest
                visuals = self._visuals(to_visual, task, split, doc_id)
                if callable(continuation):
                    continuation = continuation(self.task_dict[task][split][doc_id])
            asked.append((*self.asker.question(context, visuals), str(continuation).strip()))
        out = []
        for start in range(0, len(asked), self.batch_size):
            batch = asked[start : start + self.batch_size]
            likely = self.asker.model.logprobs_batch(batch)
            longest = max(map(len, likely))
            said = self._said([(image, text) for image, text, _ in batch], longest)
            for (_, _, continuation), tokens, answer in zip(batch, likely, said, strict=True):
                loss = -sum(token.logprob for token in tokens) / len(tokens)
                out.append((loss, answer.finish_reason == "stop" and answer.text.strip() == continuation))
        return out

    def _said(self, questions: Sequence[tuple[Any, str]], longest: int) -> list[Any]:
        """The model's own answers of up to so many tokens, each as if it were asked alone: where the context leaves one
        less room than that, it is."""
        rooms = [self.asker.room(*question) for question in questions]
        if min(rooms) >= longest:
            return self.asker.model.chat_batch(questions, longest)
        return [self.asker.model.chat_batch([q], min(room, longest))[0] for q, room in zip(questions, rooms)]

    def _batches(self, asked: Sequence[tuple]) -> Iterator[tuple[list[tuple[int, tuple]], int]]:
        """Numbers and questions of requests that are asked together, neighbours with the same limit of new tokens; and
        that limit. Images are opened a batch at a time."""
        batch: list[tuple[int, tuple]] = []
        together = 0
        for n, (context, kwargs, to_visual, doc_id, task, split) in enumerate(asked):
            question = self.asker.question(context, self._visuals(to_visual, task, split, doc_id))
            limit = self._limit(question, kwargs)
            if batch and (len(batch) == self.batch_size or together != limit):
                yield batch, together
                batch = []
            batch.append((n, question))
            together = limit
        if batch:
            yield batch, together

    def _limit(self, question: tuple[Any, str], kwargs: dict) -> int:
        if kwargs.get("do_sample") or float(kwargs.get("temperature") or 0) > 0:
            if not self._told_of_sampling:
                _LOG.warning("A task asks for sampling; this model answers greedily.")
            self._told_of_sampling = True
        wanted = whole("max_new_tokens", kwargs.get("max_new_tokens") or self.asker.max_new_tokens)
        return self.asker.limit(question, wanted)

    def _visuals(self, to_visual, task: str, split: str, doc_id) -> list[Any]:
        return self._flat(to_visual(self.task_dict[task][split][doc_id]))

    def _flat(self, visuals) -> list[Any]:
        if visuals is None:
            return []
        return [v for each in visuals for v in (each if isinstance(each, (list, tuple)) else [each])]

    def _remember(self, kind: str, context: str, kwargs: dict, answer: Any) -> None:
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            hook.add_partial(kind, (context, kwargs), answer)
