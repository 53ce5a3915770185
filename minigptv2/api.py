"""MiniGPTv2: open a model, ask it about images, get answers with boxes in pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minigptv2.boxes import Box, BoxRounding, parse
from minigptv2.bundled import BUNDLED, model_folder
from minigptv2.errors import UserError
from minigptv2.files import shorten, to_path
from minigptv2.images import Original, is_tensor, normalize, open_image, open_original, resize_square
from minigptv2.sample import Answer, QuestionAnswer, Sample, TokenLogprob, Turn
from minigptv2.tasks import TASKS, question_of, render

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from minigptv2.encode import EncodedRow
    from minigptv2.model.generate import Generated
    from minigptv2.model.load_report import LoadReport

MAX_NEW_TOKENS = 300
ERRORS = ("raise", "return")
# calls a function with each of several things
_Each = Callable[[Callable[[Any], Any], Sequence[Any]], list]


class MiniGPTv2:
    """One model, ready to answer. Build it with `from_pretrained`.

    An image is a path, bytes, a binary file object, a Pillow image, a numpy array ([H, W, 3] uint8), a torch tensor
    ([3, H, W], uint8 or 0..1), what `encode_images` gave for one, or None for a question without one;
    `images.open_image` says more. allow_urls, of every call that takes an image: whether a web address is an image,
    too; it is opened only if it is of http or https and leads to a public host.

    errors, of every call that takes many: "raise" raises the UserError of the first question or image that is wrong and
    names its place in the list; "return" puts it into its place among the results, and the others are answered. What is
    no list of the right kind is raised always.

    report: what `from_published` did with every tensor, None otherwise.
    """

    report: LoadReport | None = None

    def __init__(
        self,
        network,
        tokenizer,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        quantize: str | None = None,
    ):
        from minigptv2.encode import PromptEncoder
        from minigptv2.model.meta_init import cast

        self.device, self.dtype = _place(device, dtype, quantize)
        self.quantize, self.parameters = quantize, sum(p.numel() for p in network.parameters())
        if quantize is not None:
            from minigptv2.model.quantize import quantize_language

            quantize_language(network.decoder, quantize, self.device, self.dtype)
        self.network = cast(network.eval(), self.dtype).to(self.device)
        self.tokenizer, self.config = tokenizer, network.config
        self.encoder = PromptEncoder.for_model(network, tokenizer)

    def __repr__(self) -> str:
        side, dtype = self.config.vision.image_size, str(self.dtype).removeprefix("torch.")
        return (
            f"MiniGPTv2({self.parameters:,} parameters, images of {side} x {side} pixels, context of "
            f"{self.encoder.context} tokens, device={str(self.device)!r}, dtype={dtype!r}, quantize={self.quantize!r})"
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        quantize: str | None = None,
        base: str | Path | None = None,
    ) -> MiniGPTv2:
        """Open a model folder, or the bundled small model where none, or "bundled", is named.

        device: "cpu", "cuda", ...; default: a GPU where there is one. dtype: "float32", "bfloat16", "float16"; default:
        float32 on a CPU, bfloat16 on a GPU. quantize: "8bit" or "4bit" (a GPU, with bitsandbytes) or "int8" (a CPU)
        keep the language model's layers so; see `model/quantize.py`. base: for a folder that holds only what was
        trained, the whole model folder that it was trained from. Raises UserError where the folder is no whole,
        fitting model, and where this machine cannot quantise so.
        """
        from minigptv2.model.model_folder import load_folder

        device, dtype = _place(device, dtype, quantize)  # before the weights are read
        folder = BUNDLED if folder is None else model_folder(folder)
        opened = load_folder(folder, dtype, None if base is None else model_folder(base, "base"))
        return cls(*opened, device, dtype, quantize)

    @classmethod
    def from_published(
        cls,
        checkpoint: str | Path,
        eva: str | Path,
        llama: str | Path,
        prompt: str = "published",
        vision: dict[str, int] | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        quantize: str | None = None,
        image_size: int = 448,
        lora_alpha: int = 16,
        box_coding: BoxRounding = "center",
    ) -> MiniGPTv2:
        """Open the published files as they are: a checkpoint's .pth, eva_vit_g.pth, a LLaMA-2-7b-chat folder.

        prompt: "published", the form of the published numbers, or "training", the form of the training. vision:
        num_heads and depth where they are not those of ViT-g. device, dtype, quantize: of `from_pretrained`.
        box_coding: "center", or "floor" for the very boxes of the published code. No code of a file is run. `.report`
        says what became of each tensor; print it. Raises UserError, with the likely cause, where anything is missing or
        does not fit.
        """
        from minigptv2.model.published import load_published

        device, dtype = _place(device, dtype, quantize)  # before the weights are read
        files = [to_path(checkpoint, "checkpoint"), to_path(eva, "EVA file"), to_path(llama, "LLaMA folder")]
        network, tokenizer, report = load_published(
            *files,
            prompt,
            vision,
            image_size,
            lora_alpha,
            dtype,
            box_coding,
        )
        model = cls(network, tokenizer, device, dtype, quantize)
        model.report = report
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write safetensors (16 bits), config.json, the tokenizer and the adapter: what `from_pretrained` opens.

        Raises UserError for a quantised model, whose 16-bit weights are gone.
        """
        from minigptv2.model.model_folder import save_folder

        if self.quantize is not None:
            raise UserError(
                f"This model is quantised ({self.quantize}).",
                "A folder holds weights of 16 bits.",
                "Copy the folder that it was opened from, and give quantize again when you open the copy.",
            )
        save_folder(self.network, self.tokenizer, to_path(folder, "model folder"))

    def chat(
        self, image: Any, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS, *, allow_urls: bool = False
    ) -> Answer:
        """Answer one instruction about one image. Raises UserError for a bad image or instruction."""
        return self._chat([(image, instruction)], max_new_tokens, allow_urls, _plainly)[0]

    def chat_batch(
        self,
        questions: Iterable[tuple[Any, str]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        errors: Literal["raise", "return"] = "raise",
        allow_urls: bool = False,
    ) -> list[Answer | UserError]:
        """Answer many (image, instruction) at once: the same answers as one at a time, in the same order.

        questions: any iterable of pairs. An image that stands in several questions is opened and encoded once, and read
        once by the language model. Raises UserError; see errors above.
        """
        pairs = _tuples(questions, "questions", "chat_batch", ("image", "instruction"))
        return self._chat(pairs, max_new_tokens, allow_urls, _each("questions", errors))

    def encode_images(
        self, images: Iterable[Any], *, errors: Literal["raise", "return"] = "raise", allow_urls: bool = False
    ) -> list[EncodedImage | UserError]:
        """Open and encode images once, to ask about them in several calls: give a Seen in an image's place.

        images: any iterable of them. Raises UserError for a bad image, and None is one here; see errors above.
        """
        given = _items(images, "images", "encode_images([image])")
        return self._see(given, allow_urls, _each("images", errors))

    def stream(
        self, image: Any, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS, *, allow_urls: bool = False
    ) -> Stream:
        """The answer to one instruction as it is written: iterate over its text; `.answer` is there at the end."""
        return self.start_chat(image, allow_urls=allow_urls).stream(instruction, max_new_tokens)

    def start_chat(self, image: Any = None, *, allow_urls: bool = False) -> Chat:
        """A conversation with memory about one image, which is opened and encoded once."""
        return Chat(self, None if image is None else self._see_one(image, allow_urls))

    def logprobs(self, image: Any, instruction: str, answer: str, *, allow_urls: bool = False) -> list[TokenLogprob]:
        """How likely the model finds this answer: each token's log-probability, and that of the end after it.

        Nothing is generated: every token is judged with the right ones before it. Their sum ranks candidates.
        Raises UserError for an empty answer, a bad image or instruction, and for what does not fit the context.
        """
        return self._logprobs([(image, instruction, answer)], allow_urls, _plainly)[0]

    def logprobs_batch(
        self,
        asked: Iterable[tuple[Any, str, str]],
        *,
        errors: Literal["raise", "return"] = "raise",
        allow_urls: bool = False,
    ) -> list[list[TokenLogprob] | UserError]:
        """As `logprobs` for many (image, instruction, answer) at once: no result depends on the others."""
        triples = _tuples(asked, "asked", "logprobs_batch", ("image", "instruction", "answer"))
        return self._logprobs(triples, allow_urls, _each("asked", errors))

    def image_features(self, image: Any, *, allow_urls: bool = False) -> torch.Tensor:
        """[V, D] float32 on the CPU: an image as the language model gets it, V visual tokens of its width D.

        V is 256 at the published sizes and 64 in the bundled model. Raises UserError for a bad image.
        """
        return self._see_one(image, allow_urls).visual.float().cpu()

    # ---- questions on their way through the model ----

    def _chat(self, pairs: Sequence[tuple[Any, str]], max_new_tokens: int, allow_urls: bool, each: _Each) -> list:
        from minigptv2.model.generate import generate, generate_shared_prefix
        from minigptv2.packing import collate

        _check_room(max_new_tokens)
        opened = self._opener(allow_urls)

        def prepare(pair: tuple[Any, str]) -> _Asked:
            exchange, image = _question(pair[1]), opened(pair[0])
            return _Asked(exchange, image, self._encode([exchange], image, max_new_tokens))

        prepared = each(prepare, pairs)
        good = [p for p in prepared if isinstance(p, _Asked)]
        if not good:
            return prepared
        rows, images = [p.row for p in good], [p.image for p in good]
        different = list({id(i): i for i in images}.values())
        if len(different) < len(rows) and all(i is not None for i in different):
            place = {id(i): n for n, i in enumerate(different)}
            owners, visual = [place[id(i)] for i in images], self._visual(different)
            generated = generate_shared_prefix(self.network, self.tokenizer, rows, owners, visual, max_new_tokens)
        else:
            visual = self._visual([image for row in rows for image in row.images])
            batch = collate(rows, left=True).to(self.device)
            generated = generate(self.network, self.tokenizer, batch, visual, max_new_tokens)
        answers = iter([self._answer(g, p.exchange, p.image) for g, p in zip(generated, good)])
        return [next(answers) if isinstance(p, _Asked) else p for p in prepared]

    def _logprobs(self, triples: Sequence[tuple[Any, str, str]], allow_urls: bool, each: _Each) -> list:
        import torch

        from minigptv2.encode import IGNORE_INDEX
        from minigptv2.packing import collate

        opened = self._opener(allow_urls)

        def prepare(triple: tuple[Any, str, str]) -> _Asked:
            image, instruction, answer = triple
            exchange, image = replace(_question(instruction), answer=_given_answer(answer)), opened(image)
            return _Asked(exchange, image, self.encoder.encode(self._turns([exchange], image)))

        prepared = each(prepare, triples)
        rows = [p.row for p in prepared if isinstance(p, _Asked)]
        if not rows:
            return prepared
        visual = self._visual([image for row in rows for image in row.images])
        with torch.inference_mode():
            losses = iter(self.network.token_losses(collate(rows).to(self.device), visual).tolist())
        tokens = iter([[i for i in row.labels if i != IGNORE_INDEX] for row in rows])
        return [
            [TokenLogprob(self.tokenizer.words(i), i, -next(losses)) for i in next(tokens)]
            if isinstance(p, _Asked)
            else p
            for p in prepared
        ]

    def _see(self, images: Sequence[Any], allow_urls: bool, each: _Each) -> list:
        opened = self._opener(allow_urls)
        prepared = each(lambda image: opened(image) or open_image(None), images)  # None is no image here
        fresh = list({id(p): p for p in prepared if isinstance(p, _Opened)}.values())
        if not fresh:
            return prepared
        seen = {id(p): EncodedImage(p.original, v, self) for p, v in zip(fresh, self._visual(fresh))}
        return [seen.get(id(p), p) for p in prepared]

    def _see_one(self, image: Any, allow_urls: bool) -> EncodedImage:
        return self._see([image], allow_urls, _plainly)[0]

    def _opener(self, allow_urls: bool) -> Callable[[Any], _Opened | EncodedImage | None]:
        """What opens one image after another, and the same one once."""
        side, known = self.config.vision.image_size, {}

        def opened(image: Any) -> _Opened | EncodedImage | None:
            if image is None:
                return None
            if isinstance(image, EncodedImage):
                if image.model is self:
                    return image
                raise UserError(
                    f"{image!r} was encoded by another model.",
                    "What `encode_images` gives is for the model that gave it.",
                    "Give the image itself, or let this model see it.",
                )
            key = str(image) if isinstance(image, (str, Path)) else id(image)
            if key not in known:
                upright, original = open_original(image, allow_urls)
                known[key] = _Opened(original, resize_square(upright, side))
            return known[key]

        return opened

    def _encode(
        self, exchanges: Sequence[QuestionAnswer], image: _Opened | EncodedImage | None, room: int
    ) -> EncodedRow:
        return self.encoder.encode(self._turns(exchanges, image), room)

    def _turns(self, exchanges: Sequence[QuestionAnswer], image: _Opened | EncodedImage | None) -> list[Turn]:
        size = image.size if image is not None else (0, 0)
        return render(Sample(image, size, tuple(exchanges)), self.config.box_coding)

    def _visual(self, images: Sequence[_Opened | EncodedImage]) -> torch.Tensor | None:
        """[P, V, D] visual tokens of images, each encoded once; those of a Seen are taken from it."""
        import numpy as np
        import torch

        if not images:
            return None
        different = list({id(i): i for i in images}.values())
        place = {id(i): n for n, i in enumerate(different)}
        fresh = [i for i in different if not isinstance(i, EncodedImage)]
        with torch.inference_mode():
            encoded = iter(())
            if fresh:
                pixels = torch.from_numpy(np.stack([np.asarray(i.squashed) for i in fresh]))
                vision = self.config.vision
                pixels = normalize(pixels, vision.image_mean, vision.image_std)
                encoded = iter(self.network.encode_images(pixels.to(self.device, self.dtype)))
            visual = torch.stack([i.visual if isinstance(i, EncodedImage) else next(encoded) for i in different])
        return visual[[place[id(i)] for i in images]]

    def _answer(self, generated: Generated, exchange: QuestionAnswer, image: _Opened | EncodedImage | None) -> Answer:
        text = self.tokenizer.decode(generated.ids)
        size = image.size if image is not None else (0, 0)
        found = parse(text, *size, self.config.box_coding)
        ends = [len(self.tokenizer.decode(generated.ids[: i + 1])) for i in range(len(generated.ids))]
        boxes = []
        for box, (start, end) in zip(found.boxes, found.spans):
            chances = [
                p
                for i, p, e, s in zip(generated.ids, generated.probabilities, ends, [0, *ends])
                if s < end and e > start and any(c.isdigit() for c in self.tokenizer.piece(i))
            ]
            phrase = box.phrase or (exchange.question if exchange.task == "refer" else "")
            score = float(_geometric_mean(chances))
            boxes.append(Box(*box.xyxy, phrase, round(score, 4)))
        source = None if image is None else image.original
        return Answer(text, tuple(boxes), exchange.task, generated.finish_reason, found.problems, source)


@dataclass(eq=False)
class _Opened:
    """An image that is opened and not yet encoded. squashed: as the vision model sees it; the rest of its pixels is not
    kept."""

    original: Original
    squashed: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.original.size


@dataclass(eq=False)
class _Asked:
    """A question that is ready for the model."""

    exchange: QuestionAnswer
    image: _Opened | EncodedImage | None
    row: EncodedRow


class EncodedImage:
    """An image that is opened and encoded, for many questions: `MiniGPTv2.encode_images` makes it.

    visual: [V, D], what the language model gets of it, on the model's device. The decoded pixels are not kept.
    """

    def __init__(self, original: Original, visual: torch.Tensor, model: MiniGPTv2):
        self.original, self.visual, self.model = original, visual, model

    def __repr__(self) -> str:
        width, height = self.size
        return f"Seen(image of {width} x {height} pixels, {len(self.visual)} visual tokens on {self.visual.device})"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image."""
        return self.original.size

    @property
    def image(self) -> Image.Image:
        """The upright RGB image, opened anew. Raises UserError where its file has gone or changed."""
        return self.original.open()


class Chat:
    """A conversation about one image: it remembers what was said, and the image is encoded once.

    seen: the image, None in a conversation without one. exchanges: what was said.
    """

    def __init__(self, model: MiniGPTv2, seen: EncodedImage | None = None):
        self.model, self.seen = model, seen
        self.history: list[QuestionAnswer] = []

    def __repr__(self) -> str:
        about = "no image" if self.seen is None else "an image of {} x {} pixels".format(*self.seen.size)
        return f"Chat(about {about}, {len(self.history)} turns said)"

    @property
    def image(self) -> Image.Image | None:
        """The upright image, as `EncodedImage.image`."""
        return None if self.seen is None else self.seen.image

    @property
    def visual(self) -> torch.Tensor | None:
        """[1, V, D], what the language model gets of the image."""
        return None if self.seen is None else self.seen.visual[None]

    def ask(self, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
        """Answer in the light of what was said before. Where the context is full, the oldest turns are forgotten."""
        stream = self.stream(instruction, max_new_tokens)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Stream:
        """As `ask`, text as it is written.

        It is asked in the light of what was said when it was opened, and remembered once it has been read to its end:
        one that is abandoned before, or that ends after `reset`, is not. Several at once are remembered in the order in
        which they end.
        """
        return Stream(self, _question(instruction), max_new_tokens)

    def reset(self) -> None:
        """Forget what was said; keep the image."""
        self.history = []


class Stream:
    """Iterate over the text of an answer as it is written; afterwards `answer` holds the whole.

    A second iteration gives the same text from its beginning, and asks nothing again.
    """

    def __init__(self, chat: Chat, exchange: QuestionAnswer, max_new_tokens: int):
        _check_room(max_new_tokens)
        self.chat, self.exchange, self.max_new_tokens = chat, exchange, max_new_tokens
        self.said = chat.history
        self.row = chat.model._encode([*self.said, exchange], chat.seen, max_new_tokens)
        self.answer: Answer | None = None
        self._pieces: list[str] = []
        self._rest: Iterator[str] | None = None

    def __repr__(self) -> str:
        state = "read to its end" if self.answer else f"{len(self._pieces)} pieces read" if self._rest else "not begun"
        asked = f"{TASKS[self.exchange.task].tag} {self.exchange.question}".strip()
        return f"Stream({shorten(asked)}, {state})"

    def __iter__(self) -> Iterator[str]:
        place = 0
        while True:
            while place >= len(self._pieces):
                piece = self._next()
                if piece is None:
                    return
                self._pieces.append(piece)
            yield self._pieces[place]
            place += 1

    def _next(self) -> str | None:
        """The next piece from the model, None after the last. What stops it, such as Ctrl-C, lets it begin anew."""
        self._rest = self._rest or self._write()
        try:
            return next(self._rest, None)
        except BaseException:
            self._rest, self._pieces = None, []
            raise

    def _write(self) -> Iterator[str]:
        import torch

        from minigptv2.model.generate import generate_stepwise
        from minigptv2.packing import collate

        model, shown = self.chat.model, ""
        batch = collate([self.row], left=True).to(model.device)
        written = generate_stepwise(model.network, model.tokenizer, batch, self.chat.visual, self.max_new_tokens)
        while True:
            with torch.inference_mode():  # not around a `yield`, as the caller's own code would run in it
                following = next(written, None)
            if following is None:
                break
            (generated,) = following
            text = model.tokenizer.decode(generated.ids)
            if text.startswith(shown) and not text.endswith("\ufffd"):  # an unfinished character waits for its rest
                if text != shown:
                    yield text[len(shown) :]
                shown = text
        answer = model._answer(generated, self.exchange, self.chat.seen)
        if answer.text[len(shown) :]:
            yield answer.text[len(shown) :]
        said = QuestionAnswer(self.exchange.task, question=self.exchange.question, answer=answer.text, verbatim=True)
        self.said.append(said)
        self.answer = answer


def _plainly(work: Callable[[Any], Any], given: Sequence[Any]) -> list:
    return [work(each) for each in given]


def _each(name: str, errors: str) -> _Each:
    """`_plainly` for the things in the list of this name: a UserError names its place, or stands there."""
    if errors not in ERRORS:
        raise UserError(
            f"errors is {shorten(errors)}.", f"It must be one of {', '.join(ERRORS)}.", 'Try errors="return".'
        )

    def done(work: Callable[[Any], Any], given: Sequence[Any]) -> list:
        out = []
        for place, each in enumerate(given):
            try:
                out.append(work(each))
            except UserError as error:
                if errors == "raise":
                    raise UserError(f"{name}[{place}]: {error.given}", error.allowed, error.advice) from error
                out.append(UserError(error.given, error.allowed, error.advice))  # without the frames it came through
        return out

    return done


def _items(given: Any, name: str, call: str) -> list:
    """Any iterable of things as a list. Raises UserError for what is none, and for one thing in place of several."""
    import numpy as np

    if isinstance(given, np.ndarray) and given.dtype.kind in "OU":  # a table
        given = given.tolist()
    unordered = isinstance(given, AbstractSet) and not isinstance(given, MappingView)
    one = unordered or isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike, Mapping))
    one = one or hasattr(given, "read") or ((isinstance(given, np.ndarray) or is_tensor(given)) and given.ndim < 4)
    try:
        things = iter(() if one else given)
    except TypeError:
        one = True
    if one:
        raise UserError(f"{name} is {shorten(given)}.", "It must be a list, or an iterable in order.", f"Try {call}.")
    return list(things)


def _tuples(given: Any, name: str, call: str, parts: tuple[str, ...]) -> list[tuple]:
    """Any iterable of pairs or triples. Raises UserError that names the place of what is none."""
    form = f"({', '.join(parts)})"
    rows = _items(given, name, f"{call}([{form}])")
    for place, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or len(row) != len(parts):
            held = f"holds {len(row)} things" if isinstance(row, (tuple, list)) else f"is {shorten(row)}"
            raise UserError(
                f"{name}[{place}] {held}.",
                f"Each of them must be a {'pair' if len(parts) == 2 else 'triple'} {form}.",
                f"Give a list of them, also for one: {call}([{form}]).",
            )
    return [tuple(row) for row in rows]


def _check_room(max_new_tokens: Any) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UserError(
            f"max_new_tokens is {shorten(max_new_tokens)}.", "It must be a whole number, 1 or more.", "Leave it away."
        )


def _question(instruction: Any) -> QuestionAnswer:
    return question_of(_text(instruction, "instruction", 'Try "[refer] red balloon".'))


def _given_answer(answer: Any) -> str:
    advice = 'Give the words to judge, such as "red".'
    if not _text(answer, "answer", advice).strip():
        raise UserError("The answer is empty.", "It is the text whose probability is asked for.", advice)
    return answer


def _text(given: Any, name: str, advice: str) -> str:
    if not isinstance(given, str):
        raise UserError(f"The {name} is {shorten(given)}.", "It must be text.", advice)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The {name} holds {given[error.start]!r} at place {error.start}, which is no character.",
            "It must be text in UTF-8.",
            "Type it again, or remove it.",
        ) from None
    return given


def _place(device, dtype, quantize: str | None) -> tuple[torch.device, torch.dtype]:
    """Where and in which numbers to compute; UserError where this machine cannot, or cannot quantise so."""
    device = _device(device)
    dtype = _dtype(dtype, device)
    if quantize is not None:
        from minigptv2.model.quantize import check_quantization

        check_quantization(quantize, device, dtype)
    return device, dtype


def _device(name: str | torch.device | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"The device {name!r} cannot be used.", f"torch says: {str(error).splitlines()[0]}", 'Try device="cpu".'
        ) from None


def _dtype(dtype, device) -> torch.dtype:
    import torch

    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = allowed.get(dtype) if isinstance(dtype, str) else dtype
    if found not in allowed.values():
        raise UserError(f"dtype is {dtype!r}.", f"It must be one of {', '.join(allowed)}.", 'Try dtype="float32".')
    return found


def _geometric_mean(chances: Sequence[float]) -> float:
    from math import exp, log

    return exp(sum(log(max(p, 1e-12)) for p in chances) / len(chances)) if chances else 0.0
