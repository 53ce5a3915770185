"""This model for VLMEvalKit: `register()` adds it to the kit's models. How to run it: docs/integrations.md.

The kit's interface is `vlmeval.vlm.base.BaseModel`: `generate_inner(message, dataset)` gets a list of
{"type": "image" or "text", "value": path or words} and returns text; `chat_inner(messages, dataset)` gets turns of
{"role", "content": such a list}. Without the kit, the class has no base class, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from minigptv2.errors import UserError
from minigptv2.integrations.questions import QuestionAsker
from minigptv2.sample import QuestionAnswer
from minigptv2.tasks import question_of

try:
    from vlmeval.vlm.base import BaseModel
except ImportError:
    BaseModel = object


def register(name: str = "minigptv2", **options) -> None:
    """Add this model to the kit; options: of `questions.QuestionAsker`. The model is opened when the kit uses it."""
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(MiniGPTv2ForVLMEvalKit, **options)


class MiniGPTv2ForVLMEvalKit(BaseModel):
    """VLMEvalKit's view of the model. Options: those of `questions.QuestionAsker`."""

    INTERLEAVE = False
    allowed_types = ("text", "image")

    def __init__(self, **options):
        super().__init__()
        self.asker = QuestionAsker(**options)

    def use_custom_prompt(self, dataset) -> bool:
        """No: the kit words the question; the option `prompt` is the text around it."""
        return False

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
        """The answer to a message about one image or none."""
        text, images = _parts(message)
        question = self.asker.question(text, images)
        (answer,) = self.asker.model.chat_batch([question], self.asker.limit(question, self.asker.max_new_tokens))
        return answer.text

    def chat_inner(self, messages: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer to the last turn of a conversation. Earlier turns, with the answers that the kit gives, are its
        history. The image may be in any turn."""
        turns = [(turn["role"], *_parts(turn["content"])) for turn in messages]
        if not turns or turns[-1][0] != "user":
            raise UserError(
                "A conversation does not end with a question.", "Its last turn is the user's.", "Check the data set."
            )
        image = self.asker.image([i for _, _, images in turns for i in images])
        chat = self.asker.model.start_chat(image)
        asked: str | None = None
        for role, text, _ in turns[:-1]:
            if role == "user":
                asked = self.asker.question(text, [])[1]
            elif asked is not None:
                question = question_of(asked)
                chat.history.append(
                    QuestionAnswer(question.task, question=question.question, answer=text, verbatim=True)
                )
                asked = None
        last = self.asker.question(turns[-1][1], [])[1]
        return chat.ask(last, self.asker.limit((image, last), self.asker.max_new_tokens)).text


def _parts(message: Sequence[dict[str, str]]) -> tuple[str, list[str]]:
    """The texts of a message, joined by newlines, and its images."""
    for part in message:
        if part.get("type") not in MiniGPTv2ForVLMEvalKit.allowed_types:
            raise UserError(
                f"A message holds {part.get('type')!r}.", "This model takes text and images.", "Omit this data set."
            )
    words = "\n".join(part["value"] for part in message if part["type"] == "text")
    return words, [part["value"] for part in message if part["type"] == "image"]
