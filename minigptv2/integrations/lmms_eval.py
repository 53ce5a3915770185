"""This model for lmms-eval: `lmms-eval --model minigptv2 --tasks ...`. How to run it: docs/integrations.md.

Written for lmms-eval 0.7; its interface is `lmms_eval.api.model.lmms`. Without lmms-eval, the class has no base class,
for tests. Decoding is always greedy; if a task asks for sampling, a warning says so once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from minigptv2.integrations.questions import QuestionAsker, positive_int, truncate

try:
    from lmms_eval.api.model import lmms
except ImportError:
    lmms = object

_LOG = logging.getLogger(__name__)


def manifest():
    """For the entry point of lmms-eval: the name of the model and the path of its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("minigptv2", simple_class_path=f"{__name__}.{MiniGPTv2ForLmms.__name__}")


class MiniGPTv2ForLmms(lmms):
    """lmms-eval's view of the model. Options, given as `--model_args pretrained=folder,prompt=okvqa`: those of
    `questions.QuestionAsker`, and batch_size. Under several processes, each uses the GPU of its LOCAL_RANK."""

    is_simple = True

    def __init__(self, batch_size: int | str = 1, device: str | None = None, model: Any = None, **options):
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and device in (None, "", "cuda"):
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.asker = QuestionAsker(device=device, model=model, **options)
        self.batch_size = positive_int("batch_size", batch_size)
        self._warned_of_sampling = False

    @property
    def device(self):
        return self.asker.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests, each truncated at its task's stop strings."""
        asked = [request.args for request in requests]
        out: list[str] = [""] * len(asked)
        for batch, limit in self._batches(asked):
            answers = self.asker.model.chat_batch([question for _, question in batch], limit)
            for (n, _), answer in zip(batch, answers, strict=True):
                out[n] = truncate(answer.text, asked[n][1].get("until"))
                self._remember("generate_until", asked[n][0], asked[n][1], out[n])
        return out

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """One list of answers for each request. After each answer, the task gives the next question, or stops."""
        out = []
        for request in requests:
            context, kwargs, to_visual, to_text, doc_id, task, split = request.args
            visuals, answers, info = self._visuals(to_visual, task, split, doc_id), [], None
            while True:
                question = self.asker.question(context, visuals)
                (answer,) = self.asker.model.chat_batch([question], self._limit(question, kwargs))
                answers.append(truncate(answer.text, kwargs.get("until")))
                visuals, context, done, rounds, info = to_text(
                    self.task_dict[task][split][doc_id],
                    previous_output=list(answers),
                    round_idx=len(answers),
                    previous_round_info=info,
                )
                if done:
                    break
                visuals = self._flat(visuals)
            out.append(list(rounds) if rounds is not None else answers)
            self._remember("generate_until_multi_round", request.args[0], kwargs, out[-1])
        return out

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(loss, is_greedy) of each continuation: the mean negative log-probability of its tokens and the end token
        (lmms-eval picks the choice with the lowest loss), and whether greedy decoding would produce it."""
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
            logprobs = self.asker.model.logprobs_batch(batch)
            longest = max(map(len, logprobs))
            answers = self._greedy_answers([(image, text) for image, text, _ in batch], longest)
            for (_, _, continuation), tokens, answer in zip(batch, logprobs, answers, strict=True):
                loss = -sum(token.logprob for token in tokens) / len(tokens)
                out.append((loss, answer.finish_reason == "stop" and answer.text.strip() == continuation))
        return out

    def _greedy_answers(self, questions: Sequence[tuple[Any, str]], longest: int) -> list[Any]:
        """The model's answers of at most `longest` tokens. If the context leaves less room to one of the questions,
        each is asked by itself."""
        rooms = [self.asker.room(*question) for question in questions]
        if min(rooms) >= longest:
            return self.asker.model.chat_batch(questions, longest)
        return [self.asker.model.chat_batch([q], min(room, longest))[0] for q, room in zip(questions, rooms)]

    def _batches(self, asked: Sequence[tuple]) -> Iterator[tuple[list[tuple[int, tuple]], int]]:
        """Batches of (number, question), with their limit of new tokens: consecutive requests with equal limits. Only
        the images of one batch are open at a time."""
        batch: list[tuple[int, tuple]] = []
        batch_limit = 0
        for n, (context, kwargs, to_visual, doc_id, task, split) in enumerate(asked):
            question = self.asker.question(context, self._visuals(to_visual, task, split, doc_id))
            limit = self._limit(question, kwargs)
            if batch and (len(batch) == self.batch_size or batch_limit != limit):
                yield batch, batch_limit
                batch = []
            batch.append((n, question))
            batch_limit = limit
        if batch:
            yield batch, batch_limit

    def _limit(self, question: tuple[Any, str], kwargs: dict) -> int:
        if kwargs.get("do_sample") or float(kwargs.get("temperature") or 0) > 0:
            if not self._warned_of_sampling:
                _LOG.warning("A task asks for sampling; this model answers greedily.")
            self._warned_of_sampling = True
        max_new_tokens = positive_int("max_new_tokens", kwargs.get("max_new_tokens") or self.asker.max_new_tokens)
        return self.asker.limit(question, max_new_tokens)

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
