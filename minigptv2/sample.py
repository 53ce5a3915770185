"""The nouns that travel: a Sample from a reader, Turns to the encoder, an Answer to the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from minigptv2.boxes import Box, without_markup

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Phrase:
    """Words and the boxes they stand for, pixels of the sample's image. No boxes: it is not in the image."""

    text: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class QuestionAnswer:
    """One question and its answer, as meaning; `tasks.render` gives both their words.

    task: a key of `tasks.TASKS`. phrases: what is asked for, or what the grounded caption names, in order.
    question: of [vqa] and free conversation; else empty, or the user's own wording. answer: the words of it, where
    they do not follow from the phrases; in a grounded caption each `{}` is the place of the next phrase. references:
    what several people answered, the most common first, where there is no one `answer`. verbatim: question and answer
    are used as they are: a user's words, and what the model said to them.
    """

    task: str
    phrases: tuple[Phrase, ...] = ()
    question: str = ""
    answer: str = ""
    references: tuple[str, ...] = ()
    verbatim: bool = False


@dataclass(frozen=True)
class Sample:
    """One image and what is said about it. image: anything that `images.open_image` takes, or None for text alone.

    size: width and height of that image in pixels; (0, 0) without one, and where no box needs it. key: where it
    comes from, for messages. side_by_side: the exchanges are independent questions, not one conversation. named: what
    is in the image, by every name that fits it, whatever is asked: where a name in the text may look.
    """

    image: Any
    size: tuple[int, int]
    question_answers: tuple[QuestionAnswer, ...]
    key: str = ""
    side_by_side: bool = False
    entities: tuple[Phrase, ...] = ()


@dataclass(frozen=True)
class ImagePiece:
    """The place of an image among the pieces of a turn."""

    image: Any


@dataclass(frozen=True)
class Turn:
    """Who speaks, and pieces of text and images in any order and number."""

    role: Literal["user", "assistant"]
    pieces: tuple[str | ImagePiece, ...]


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a given answer. text: with a space where it begins a word; the closing token's is `</s>`.
    logprob: the natural logarithm of its probability, 0 or less, given all that stands before it."""

    text: str
    id: int
    logprob: float


@dataclass
class Answer:
    """What the model said about one image.

    text: raw, as generated. boxes: pixels of the upright original image, each with phrase and score (0..1).
    task: a key of `tasks.TASKS`. ended: "stop" at the end token, "length" at `max_new_tokens`. problems: what looked
    like a box in the text and was none. source: what `images.open_image` opens the image from again, None in a
    conversation without one; the decoded pixels are not kept.
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
        """The upright RGB image, opened anew at each use; None in a conversation without one.

        Raises UserError where its file has gone or changed since it was asked about.
        """
        from minigptv2.images import open_image

        return None if self.source is None else open_image(self.source)

    def draw(self) -> Image.Image:
        """The upright image with a labelled frame around each box. Raises UserError as `image` does."""
        from minigptv2.drawing import draw_boxes
        from minigptv2.errors import UserError

        if self.source is None:
            raise UserError(
                "This answer is about no image.",
                "Only an answer about an image can be drawn.",
                "Ask with chat(image, instruction).",
            )
        return draw_boxes(self.image, self.boxes)

    def to_dict(self) -> dict:
        """All but the image, ready for JSON."""
        return {
            "text": self.text,
            "task": self.task,
            "ended": self.finish_reason,
            "boxes": [b.to_dict() for b in self.boxes],
            "problems": list(self.problems),
        }
