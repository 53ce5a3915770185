"""The data classes that modules exchange: a reader returns Samples, the encoder takes Turns, a user gets Answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from minigptv2.boxes import Box, without_markup

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Phrase:
    """Words and their boxes, in pixels of the sample's image. No boxes: the object is not in the image."""

    text: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class QuestionAnswer:
    """One question and its answer, before they are worded. `tasks.render` writes the text of both.

    task: a key of `tasks.TASKS`.
    phrases: the objects that are asked for, or that a grounded caption names, in order.
    question: the text of a [vqa] or free question; of other tasks empty, or a wording that replaces the task's own.
    answer: its text, where it does not follow from the phrases. In a grounded caption each `{}` stands for the next
        phrase and its boxes.
    references: the answers of several annotators, the most common first, in place of `answer`.
    verbatim: use question and answer as they are; for a user's question and the model's answer to it.
    """

    task: str
    phrases: tuple[Phrase, ...] = ()
    question: str = ""
    answer: str = ""
    references: tuple[str, ...] = ()
    verbatim: bool = False


@dataclass(frozen=True)
class Sample:
    """One image and its questions and answers.

    image: anything that `images.open_image` takes, or None for text alone.
    size: (width, height) of the upright image in pixels; (0, 0) without an image, and where no answer has a box.
    question_answers: one conversation, in order; independent questions if `side_by_side`.
    key: where the sample comes from, for messages.
    entities: every object of the image under each of its names; targets for attention supervision.
    """

    image: Any
    size: tuple[int, int]
    question_answers: tuple[QuestionAnswer, ...]
    key: str = ""
    side_by_side: bool = False
    entities: tuple[Phrase, ...] = ()


@dataclass(frozen=True)
class ImagePiece:
    """An image among the pieces of a turn."""

    image: Any


@dataclass(frozen=True)
class Turn:
    """One message: its role, and pieces of text and images in any order and number."""

    role: Literal["user", "assistant"]
    pieces: tuple[str | ImagePiece, ...]


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a given answer.

    text: of the token, with a leading space where it begins a word; `</s>` for the end token.
    id: in the model's tokenizer.
    logprob: natural logarithm of its probability given all tokens before it, 0 or less.
    """

    text: str
    id: int
    logprob: float


@dataclass
class Answer:
    """The model's answer to one question.

    text: as generated, with its markup.
    boxes: of the text, in pixels of the upright original image, each with phrase and score (0..1).
    task: a key of `tasks.TASKS`.
    finish_reason: "stop" at the end token, "length" at `max_new_tokens`.
    problems: one sentence for each malformed box in the text.
    source: what `images.open_image` opens the image from again; None without an image. Decoded pixels are not kept.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    task: str = ""
    finish_reason: Literal["stop", "length"] = "stop"
    problems: tuple[str, ...] = ()
    source: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> str:
        """The text without boxes and phrase tags."""
        return without_markup(self.text)

    @property
    def image(self) -> Image.Image | None:
        """The upright RGB image, opened again at each use; None without an image.

        Raises UserError if its file is gone or has changed since the question.
        """
        from minigptv2.images import open_image

        return None if self.source is None else open_image(self.source)

    def draw(self) -> Image.Image:
        """The upright RGB image with a labelled frame around each box.

        Raises UserError without an image, and if its file is gone or has changed.
        """
        from minigptv2.drawing import draw_boxes
        from minigptv2.errors import UserError

        image = self.image
        if image is None:
            raise UserError(
                "This answer is about no image.",
                "Only an answer about an image can be drawn.",
                "Ask with chat(image, instruction).",
            )
        return draw_boxes(image, self.boxes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the image. The key "ended" holds `finish_reason`."""
        return {
            "text": self.text,
            "task": self.task,
            "ended": self.finish_reason,
            "boxes": [b.to_dict() for b in self.boxes],
            "problems": list(self.problems),
        }
