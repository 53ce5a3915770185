"""MiniGPTv2: open a model, ask it about images, get answers with boxes in pixels.

Shapes: P images, V visual tokens of an image, D the language model's width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload
from typing import cast as cast_type

from minigptv2.boxes import Box, BoxRounding, parse
from minigptv2.bundled import BUNDLED, model_folder
from minigptv2.devices import choose_device, choose_dtype
from minigptv2.errors import UserError
from minigptv2.files import shorten, to_path
from minigptv2.images import Original, is_tensor, normalize, open_image, open_original, resize_square
from minigptv2.model import published_config
from minigptv2.sample import Answer, QuestionAnswer, Sample, TokenLogprob, Turn
from minigptv2.tasks import TASKS, question_of, render

if TYPE_CHECKING:
    from typing import BinaryIO, TypeAlias

    import numpy as np
    import torch
    from PIL import Image

    from minigptv2.encode import EncodedRow
    from minigptv2.images import LazyImage
    from minigptv2.model.generate import Generated
    from minigptv2.model.grounding_vlm import GroundingVLM
    from minigptv2.model.load_report import LoadReport
    from minigptv2.tokenizer import HFTokenizer, Tokenizer

    _ImageData: TypeAlias = (
        bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray[Any, Any] | torch.Tensor
    )
    ImageInput: TypeAlias = str | os.PathLike[str] | _ImageData | LazyImage | "EncodedImage"
    DType: TypeAlias = torch.dtype | Literal["float32", "bfloat16", "float16"]
    Quantization: TypeAlias = Literal["bnb-int8", "bnb-nf4", "dynamic-int8"]
    OnError: TypeAlias = Literal["raise", "return"]

MAX_NEW_TOKENS = 300
ERRORS = ("raise", "return")
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class MiniGPTv2:
    """One model, ready to answer. Build it with `from_pretrained`.

    Arguments that several methods share:

    image: a path; the bytes of an image file or a binary file object; a Pillow image; a numpy array, [H, W, 3] RGB,
        uint8 0..255 or floats 0..1; a torch tensor, [3, H, W] or [H, W, 3], same types; a result of `encode_images`; or
        None for a question without an image. `images.open_image` lists more shapes and types.
    instruction: a question, or a task tag and its words, such as "[refer] red balloon"; `tasks.TASKS` lists the tags.
    max_new_tokens: the answer ends after this many tokens, 1 or more.
    allow_urls: an image may also be an http or https address of a public host.
    errors: "raise" raises the UserError of the first bad question or image and names its index in the list. "return"
        puts that error at its index among the results, and the others are answered. An argument that is not a list of
        the expected form is always raised.

    Attributes: device, dtype, quantize: as resolved from the arguments. parameters: number of parameters, before
    quantisation. config: of the model folder. network, tokenizer, encoder: the parts. report: what `from_published`
    did with each tensor, None otherwise.
    """

    report: LoadReport | None = None

    def __init__(
        self,
        network: GroundingVLM,
        tokenizer: Tokenizer | HFTokenizer,
        device: str | torch.device | None = None,
        dtype: DType | None = None,
        quantize: Quantization | None = None,
    ) -> None:
        """network, tokenizer: what `model_folder.load_folder` returns. The others: see `from_pretrained`."""
        from minigptv2.encode import PromptEncoder
        from minigptv2.model.meta_init import cast

        self.device, self.dtype = _device_and_dtype(device, dtype, quantize)
        self.parameters: int = sum(p.numel() for p in network.parameters())
        if quantize is not None:
            from minigptv2.model.quantize import present_name, quantize_language

            quantize = cast_type("Quantization", present_name(quantize))
            quantize_language(network.decoder, quantize, self.device, self.dtype)
        self.quantize: Quantization | None = quantize
        self.network: GroundingVLM = cast(network.eval(), self.dtype).to(self.device)
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
        folder: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: DType | None = None,
        quantize: Quantization | None = None,
        base: str | os.PathLike[str] | None = None,
    ) -> MiniGPTv2:
        """Open a model folder.

        folder: as `save_pretrained` or training wrote it. None or "bundled": the small model of this package.
        device: "cpu", "cuda", "cuda:1", ...; default: a GPU where there is one.
        dtype: "float32", "bfloat16" or "float16"; default: float32 on a CPU, bfloat16 on a GPU.
        quantize: "bnb-int8" or "bnb-nf4" (on a GPU, needs bitsandbytes) or "dynamic-int8" (on a CPU) quantises the
            linear layers of the language model; see `model/quantize.py`.
        base: the full model folder that `folder` was fine-tuned from, where `folder` holds trained weights only.

        Raises UserError if a file is missing, damaged or does not fit the config, and if this machine does not support
        the device, the dtype or the quantisation.
        """
        from minigptv2.model.model_folder import load_folder

        device, dtype = _device_and_dtype(device, dtype, quantize)  # before the weights are read
        opened = BUNDLED if folder is None else model_folder(folder)
        network, tokenizer = load_folder(opened, dtype, None if base is None else model_folder(base, "base"))
        return cls(network, tokenizer, device, dtype, quantize)

    @classmethod
    def from_published(
        cls,
        checkpoint: str | os.PathLike[str],
        eva: str | os.PathLike[str],
        llama: str | os.PathLike[str],
        prompt: str = published_config.PROMPT,
        vision: dict[str, int] | None = None,
        device: str | torch.device | None = None,
        dtype: DType | None = None,
        quantize: Quantization | None = None,
        image_size: int = published_config.IMAGE_SIZE,
        lora_alpha: int = published_config.LORA_ALPHA,
        box_rounding: BoxRounding = published_config.BOX_ROUNDING,
    ) -> MiniGPTv2:
        """Open the published files as they are. `.report` says what became of each tensor; print it.

        checkpoint: a MiniGPT-v2 checkpoint, .pth. eva: eva_vit_g.pth. llama: the folder of LLaMA-2-7b-chat.
        prompt: a key of `conversation.PROMPT_TEMPLATES`; "minigptv2-eval" gives the published numbers.
        vision: num_heads and depth, where they differ from ViT-g's.
        device, dtype, quantize: see `from_pretrained`.
        image_size: side in pixels of the square that images are resized to.
        lora_alpha: of the checkpoint's LoRA; the file does not hold it.
        box_rounding: "center", or "floor" to reproduce the boxes of the published code; see `boxes`.

        No code in a file is run. Raises UserError, with the likely cause, where something is missing or does not fit.
        """
        from minigptv2.model.published import load_published

        device, dtype = _device_and_dtype(device, dtype, quantize)  # before the weights are read
        network, tokenizer, report = load_published(
            to_path(checkpoint, "checkpoint"),
            to_path(eva, "EVA file"),
            to_path(llama, "LLaMA folder"),
            prompt,
            vision,
            image_size,
            lora_alpha,
            dtype,
            box_rounding,
        )
        model = cls(network, tokenizer, device, dtype, quantize)
        model.report = report
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder for `from_pretrained`: weights (safetensors, 16 bits), config.json, tokenizer and adapter.

        Raises UserError for a quantised model, whose 16-bit weights are gone, and where the folder cannot be written.
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
        self,
        image: ImageInput | None,
        instruction: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        allow_urls: bool = False,
    ) -> Answer:
        """Answer one instruction about one image. Raises UserError for a bad image or instruction."""
        return _only(self._chat([(image, instruction)], max_new_tokens, allow_urls, _plainly))

    @overload
    def chat_batch(
        self,
        questions: Iterable[tuple[ImageInput | None, str]],
        max_new_tokens: int = ...,
        *,
        errors: Literal["raise"] = ...,
        allow_urls: bool = ...,
    ) -> list[Answer]: ...
    @overload
    def chat_batch(
        self,
        questions: Iterable[tuple[ImageInput | None, str]],
        max_new_tokens: int = ...,
        *,
        errors: OnError,
        allow_urls: bool = ...,
    ) -> list[Answer | UserError]: ...
    def chat_batch(
        self,
        questions: Iterable[tuple[ImageInput | None, str]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        errors: OnError = "raise",
        allow_urls: bool = False,
    ) -> list[Answer] | list[Answer | UserError]:
        """Answer many questions at once. The answers are those of `chat`, in the order of the questions.

        questions: any iterable of (image, instruction). An image of several questions is opened and encoded once, and
            the language model reads it once.

        Raises UserError as `errors` says; see the class.
        """
        pairs = _tuples(questions, "questions", "chat_batch", ("image", "instruction"))
        return self._chat(pairs, max_new_tokens, allow_urls, _each("questions", errors))

    @overload
    def encode_images(
        self, images: Iterable[ImageInput], *, errors: Literal["raise"] = ..., allow_urls: bool = ...
    ) -> list[EncodedImage]: ...
    @overload
    def encode_images(
        self, images: Iterable[ImageInput], *, errors: OnError, allow_urls: bool = ...
    ) -> list[EncodedImage | UserError]: ...
    def encode_images(
        self, images: Iterable[ImageInput], *, errors: OnError = "raise", allow_urls: bool = False
    ) -> list[EncodedImage] | list[EncodedImage | UserError]:
        """Open and encode images once, to ask about them in several calls: give the result in place of the image.

        images: any iterable of images; None is not one here.

        Raises UserError for a bad image, as `errors` says; see the class.
        """
        return self._encode_images(
            _items(images, "images", "encode_images([image])"), allow_urls, _each("images", errors)
        )

    def stream(
        self,
        image: ImageInput | None,
        instruction: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        allow_urls: bool = False,
    ) -> Stream:
        """As `chat`, while the text is written: iterate over its pieces; `.answer` is the Answer at the end."""
        return self.start_chat(image, allow_urls=allow_urls).stream(instruction, max_new_tokens)

    def start_chat(self, image: ImageInput | None = None, *, allow_urls: bool = False) -> Chat:
        """A conversation with memory about one image, which is opened and encoded once, or about none."""
        return Chat(self, None if image is None else self._encode_image(image, allow_urls))

    def logprobs(
        self, image: ImageInput | None, instruction: str, answer: str, *, allow_urls: bool = False
    ) -> list[TokenLogprob]:
        """How likely the model finds a given answer: the log-probability of each of its tokens and of the end token.

        Each token is predicted from the answer's own tokens before it; nothing is generated. The sum of the
        log-probabilities ranks candidate answers. Raises UserError for an empty answer, a bad image or instruction, and
        for what does not fit the context.
        """
        return _only(self._logprobs([(image, instruction, answer)], allow_urls, _plainly))

    @overload
    def logprobs_batch(
        self,
        questions: Iterable[tuple[ImageInput | None, str, str]],
        *,
        errors: Literal["raise"] = ...,
        allow_urls: bool = ...,
    ) -> list[list[TokenLogprob]]: ...
    @overload
    def logprobs_batch(
        self,
        questions: Iterable[tuple[ImageInput | None, str, str]],
        *,
        errors: OnError,
        allow_urls: bool = ...,
    ) -> list[list[TokenLogprob] | UserError]: ...
    def logprobs_batch(
        self,
        questions: Iterable[tuple[ImageInput | None, str, str]],
        *,
        errors: OnError = "raise",
        allow_urls: bool = False,
    ) -> list[list[TokenLogprob]] | list[list[TokenLogprob] | UserError]:
        """As `logprobs`, for many (image, instruction, answer) at once. No result depends on the others."""
        triples = _tuples(questions, "questions", "logprobs_batch", ("image", "instruction", "answer"))
        return self._logprobs(triples, allow_urls, _each("questions", errors))

    def image_features(self, image: ImageInput, *, allow_urls: bool = False) -> torch.Tensor:
        """[V, D] float32 on the CPU: the visual tokens that the language model gets of an image.

        V is 256 at the published sizes and 64 in the bundled model. Raises UserError for a bad image, and for None.
        """
        return self._encode_image(image, allow_urls).visual.float().cpu()

    # ---- the steps of an answer; Chat and Stream, below, take them one by one ----

    def _chat(
        self, pairs: Sequence[tuple[Any, str]], max_new_tokens: int, allow_urls: bool, each: _Each
    ) -> list[Answer | UserError]:
        from minigptv2.model.generate import generate, generate_shared_prefix
        from minigptv2.packing import collate

        _check_max_new_tokens(max_new_tokens)
        open_once = self._opener(allow_urls)

        def prepare(pair: tuple[Any, str]) -> _Prepared:
            qa, image = _question(pair[1]), open_once(pair[0])
            return _Prepared(qa, image, self._encode_prompt([qa], image, max_new_tokens))

        prepared = each(prepare, pairs)
        valid = [p for p in prepared if isinstance(p, _Prepared)]
        if not valid:
            return _in_order(prepared, [])
        rows, images = [p.row for p in valid], [p.image for p in valid]
        distinct = list({id(i): i for i in images if i is not None}.values())
        if len(distinct) < len(rows) and None not in images:
            index = {id(i): n for n, i in enumerate(distinct)}
            owners, visual = [index[id(i)] for i in images], self._visual_tokens(distinct)
            generated = generate_shared_prefix(self.network, self.tokenizer, rows, owners, visual, max_new_tokens)
        else:
            visual = self._visual_tokens([image for image in images if image is not None])
            batch = collate(rows, left=True).to(self.device)
            generated = generate(self.network, self.tokenizer, batch, visual, max_new_tokens)
        return _in_order(prepared, [self._to_answer(g, p.qa, p.image) for g, p in zip(generated, valid)])

    def _logprobs(
        self, triples: Sequence[tuple[Any, str, str]], allow_urls: bool, each: _Each
    ) -> list[list[TokenLogprob] | UserError]:
        import torch

        from minigptv2.encode import IGNORE_INDEX
        from minigptv2.packing import collate

        open_once = self._opener(allow_urls)

        def prepare(triple: tuple[Any, str, str]) -> _Prepared:
            given, instruction, answer = triple
            qa, image = replace(_question(instruction), answer=_given_answer(answer)), open_once(given)
            return _Prepared(qa, image, self._encode_prompt([qa], image))

        prepared = each(prepare, triples)
        valid = [p for p in prepared if isinstance(p, _Prepared)]
        if not valid:
            return _in_order(prepared, [])
        rows, visual = [p.row for p in valid], self._visual_tokens([p.image for p in valid if p.image is not None])
        with torch.inference_mode():
            losses = iter(self.network.token_losses(collate(rows).to(self.device), visual).tolist())
        tokens = [[i for i in row.labels if i != IGNORE_INDEX] for row in rows]
        return _in_order(
            prepared, [[TokenLogprob(self.tokenizer.words(i), i, -next(losses)) for i in ids] for ids in tokens]
        )

    def _encode_images(self, images: Sequence[Any], allow_urls: bool, each: _Each) -> list[EncodedImage | UserError]:
        open_once = self._opener(allow_urls)

        def prepare(image: Any) -> _OpenedImage | EncodedImage:
            opened = open_once(image)
            if opened is None:
                open_image(None)  # raises: None is not an image here
                raise AssertionError
            return opened

        prepared = each(prepare, images)
        new = list({id(p): p for p in prepared if isinstance(p, _OpenedImage)}.values())
        visual = self._visual_tokens(new)
        encoded = {} if visual is None else {id(p): EncodedImage(p.original, v, self) for p, v in zip(new, visual)}
        return [encoded[id(p)] if isinstance(p, _OpenedImage) else p for p in prepared]

    def _encode_image(self, image: Any, allow_urls: bool) -> EncodedImage:
        return _only(self._encode_images([image], allow_urls, _plainly))

    def _opener(self, allow_urls: bool) -> Callable[[Any], _OpenedImage | EncodedImage | None]:
        """A function that opens an image, and opens the same path or object only once."""
        side = self.config.vision.image_size
        known: dict[str | int, _OpenedImage] = {}

        def open_once(image: Any) -> _OpenedImage | EncodedImage | None:
            if image is None:
                return None
            if isinstance(image, EncodedImage):
                if image.model is self:
                    return image
                raise UserError(
                    f"{image!r} was encoded by another model.",
                    "A result of `encode_images` works only with the model that encoded it.",
                    "Give the image itself, or call `encode_images` of this model.",
                )
            key = str(image) if isinstance(image, (str, Path)) else id(image)
            if key not in known:
                upright, original = open_original(image, allow_urls)
                known[key] = _OpenedImage(original, resize_square(upright, side))
            return known[key]

        return open_once

    def _encode_prompt(
        self, qas: Sequence[QuestionAnswer], image: _OpenedImage | EncodedImage | None, room: int = 0
    ) -> EncodedRow:
        """The conversation as tokens, with `room` tokens of the context left for the answer."""
        sample = Sample(image, image.size if image is not None else (0, 0), tuple(qas))
        turns: list[Turn] = render(sample, self.config.box_rounding)
        return self.encoder.encode(turns, room)

    def _visual_tokens(self, images: Sequence[_OpenedImage | EncodedImage]) -> torch.Tensor | None:
        """[P, V, D] visual tokens of P images, each distinct image encoded once; None without images."""
        import numpy as np
        import torch

        if not images:
            return None
        distinct = list({id(i): i for i in images}.values())
        index = {id(i): n for n, i in enumerate(distinct)}
        new = [i for i in distinct if not isinstance(i, EncodedImage)]
        with torch.inference_mode():
            encoded: Iterator[torch.Tensor] = iter(())
            if new:
                vision = self.config.vision
                pixels = torch.from_numpy(np.stack([np.asarray(i.square) for i in new]))
                pixels = normalize(pixels, vision.image_mean, vision.image_std)
                encoded = iter(self.network.encode_images(pixels.to(self.device, self.dtype)))
            visual = torch.stack([i.visual if isinstance(i, EncodedImage) else next(encoded) for i in distinct])
        return visual[[index[id(i)] for i in images]]

    def _to_answer(self, generated: Generated, qa: QuestionAnswer, image: _OpenedImage | EncodedImage | None) -> Answer:
        """The generated tokens as text, with its boxes in pixels. A box's score: the geometric mean of the
        probabilities of its digits."""
        text = self.tokenizer.decode(generated.ids)
        size = image.size if image is not None else (0, 0)
        found = parse(text, *size, self.config.box_rounding)
        ends = [len(self.tokenizer.decode(generated.ids[: i + 1])) for i in range(len(generated.ids))]
        boxes = []
        for box, (start, end) in zip(found.boxes, found.spans):
            probabilities = [
                p
                for i, p, e, s in zip(generated.ids, generated.probabilities, ends, [0, *ends])
                if s < end and e > start and any(c.isdigit() for c in self.tokenizer.piece(i))
            ]
            phrase = box.phrase or (qa.question if qa.task == "refer" else "")
            score = float(_geometric_mean(probabilities))
            boxes.append(Box(*box.xyxy, phrase, round(score, 4)))
        source = None if image is None else image.original
        return Answer(text, tuple(boxes), qa.task, generated.finish_reason, found.problems, source)


@dataclass(eq=False)
class _OpenedImage:
    """An image that is opened and not yet encoded. square: its pixels, resized for the vision model."""

    original: Original
    square: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.original.size


@dataclass(eq=False)
class _Prepared:
    """A question that is ready for the model."""

    qa: QuestionAnswer
    image: _OpenedImage | EncodedImage | None
    row: EncodedRow


class EncodedImage:
    """An image that is opened and encoded, for many questions; `MiniGPTv2.encode_images` makes it.

    visual: [V, D] visual tokens, on the model's device and in its dtype. model: the one that encoded it. The decoded
    pixels are not kept.
    """

    def __init__(self, original: Original, visual: torch.Tensor, model: MiniGPTv2) -> None:
        self.original, self.visual, self.model = original, visual, model

    def __repr__(self) -> str:
        width, height = self.size
        tokens = f"{len(self.visual)} visual tokens on {self.visual.device}"
        return f"EncodedImage({width} x {height} pixels, {tokens})"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image."""
        return self.original.size

    @property
    def image(self) -> Image.Image:
        """The upright RGB image, opened again at each use. Raises UserError if its file is gone or has changed."""
        return self.original.open()


class Chat:
    """A conversation about one image: it remembers its turns, and the image is encoded once.

    encoded_image: None in a conversation without an image. history: the questions and answers so far, oldest first.
    """

    def __init__(self, model: MiniGPTv2, encoded_image: EncodedImage | None = None) -> None:
        self.model, self.encoded_image = model, encoded_image
        self.history: list[QuestionAnswer] = []

    def __repr__(self) -> str:
        size = None if self.encoded_image is None else self.encoded_image.size
        about = "no image" if size is None else "an image of {} x {} pixels".format(*size)
        return f"Chat(about {about}, {len(self.history)} turns)"

    @property
    def image(self) -> Image.Image | None:
        """The upright RGB image, as `EncodedImage.image`."""
        return None if self.encoded_image is None else self.encoded_image.image

    @property
    def visual(self) -> torch.Tensor | None:
        """[1, V, D] visual tokens of the image."""
        return None if self.encoded_image is None else self.encoded_image.visual[None]

    def ask(self, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
        """Answer, given the turns so far. Where the context is full, the oldest turns are dropped from the prompt.

        Raises UserError for a bad instruction.
        """
        stream = self.stream(instruction, max_new_tokens)
        for _ in stream:
            pass
        assert stream.answer is not None
        return stream.answer

    def stream(self, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Stream:
        """As `ask`, while the text is written.

        The prompt holds the turns up to this call. The new turn is added to the history when the stream has been read
        to its end; a stream that is abandoned, or that ends after `reset`, adds none. Several open streams are added in
        the order in which they end.
        """
        return Stream(self, _question(instruction), max_new_tokens)

    def reset(self) -> None:
        """Forget the turns; keep the image."""
        self.history = []


class Stream:
    """An answer while it is written: iterate over the pieces of its text.

    answer: the Answer once the text has been read to its end, None before. A second iteration gives the same pieces
    from the first one on, without generating again.
    """

    def __init__(self, chat: Chat, qa: QuestionAnswer, max_new_tokens: int) -> None:
        """qa: the question. `Chat.stream` and `MiniGPTv2.stream` call this."""
        _check_max_new_tokens(max_new_tokens)
        self.chat, self.qa, self.max_new_tokens = chat, qa, max_new_tokens
        self.history = chat.history  # the same list, so that a `reset` of the chat in between is noticed
        self.row = chat.model._encode_prompt([*self.history, qa], chat.encoded_image, max_new_tokens)
        self.answer: Answer | None = None
        self._pieces: list[str] = []
        self._generator: Iterator[str] | None = None

    def __repr__(self) -> str:
        read = f"{len(self._pieces)} pieces read" if self._generator else "not started"
        instruction = f"{TASKS[self.qa.task].tag} {self.qa.question}".strip()
        return f"Stream({shorten(instruction)}, {'read to its end' if self.answer else read})"

    def __iter__(self) -> Iterator[str]:
        index = 0
        while True:
            while index >= len(self._pieces):
                piece = self._next()
                if piece is None:
                    return
                self._pieces.append(piece)
            yield self._pieces[index]
            index += 1

    def _next(self) -> str | None:
        """The next piece from the model, None after the last. After an exception, such as Ctrl-C, it starts again."""
        self._generator = self._generator or self._generate()
        try:
            return next(self._generator, None)
        except BaseException:
            self._generator, self._pieces = None, []
            raise

    def _generate(self) -> Iterator[str]:
        import torch

        from minigptv2.model.generate import generate_stepwise
        from minigptv2.packing import collate

        model, shown = self.chat.model, ""
        batch = collate([self.row], left=True).to(model.device)
        steps = generate_stepwise(model.network, model.tokenizer, batch, self.chat.visual, self.max_new_tokens)
        while True:
            with torch.inference_mode():  # not around a `yield`, as the caller's own code would run in it
                step = next(steps, None)
            if step is None:
                break
            (generated,) = step
            text = model.tokenizer.decode(generated.ids)
            if text.startswith(shown) and not text.endswith("\ufffd"):  # the last character may still be incomplete
                if text != shown:
                    yield text[len(shown) :]
                shown = text
        answer = model._to_answer(generated, self.qa, self.chat.encoded_image)
        if answer.text[len(shown) :]:
            yield answer.text[len(shown) :]
        turn = QuestionAnswer(self.qa.task, question=self.qa.question, answer=answer.text, verbatim=True)
        self.history.append(turn)
        self.answer = answer


class _Each(Protocol):
    """Calls a function with each item of a list; a UserError is raised, or is the result of its item."""

    def __call__(self, work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out | UserError]: ...


def _plainly(work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out | UserError]:
    """For calls with one question: a UserError is raised as it is."""
    return [work(item) for item in items]


def _each(name: str, errors: str) -> _Each:
    """For calls with a list: a UserError is raised with `name` and the index before it, or returned."""
    if errors not in ERRORS:
        raise UserError(
            f"errors is {shorten(errors)}.", f"It must be one of {', '.join(ERRORS)}.", 'Try errors="return".'
        )

    def each(work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out | UserError]:
        results: list[_Out | UserError] = []
        for index, item in enumerate(items):
            try:
                results.append(work(item))
            except UserError as error:
                if errors == "raise":
                    raise UserError(f"{name}[{index}]: {error.given}", error.allowed, error.advice) from error
                results.append(UserError(error.given, error.allowed, error.advice))  # a copy without its traceback
        return results

    return each


def _in_order(prepared: Sequence[_Prepared | UserError], results: Iterable[_Out]) -> list[_Out | UserError]:
    """The results of the prepared questions, in order, and the errors of the others at their index."""
    following = iter(results)
    return [p if isinstance(p, UserError) else next(following) for p in prepared]


def _only(results: Sequence[_Out | UserError]) -> _Out:
    """The result of a call with one question, whose UserError `_plainly` would have raised."""
    (result,) = results
    assert not isinstance(result, UserError)
    return result


def _items(given: Any, name: str, call: str) -> list[Any]:
    """Any ordered iterable as a list. Raises UserError for another type, and for a single image or question."""
    import numpy as np

    if isinstance(given, np.ndarray) and given.dtype.kind in "OU":  # a table
        given = given.tolist()
    unordered = isinstance(given, AbstractSet) and not isinstance(given, MappingView)
    single = unordered or isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike, Mapping))
    single = (
        single or hasattr(given, "read") or ((isinstance(given, np.ndarray) or is_tensor(given)) and given.ndim < 4)
    )
    try:
        items = iter(() if single else given)
    except TypeError:
        single = True
    if single:
        raise UserError(f"{name} is {shorten(given)}.", "It must be a list, or an iterable in order.", f"Try {call}.")
    return list(items)


def _tuples(given: Any, name: str, call: str, parts: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Any ordered iterable of pairs or triples. Raises UserError that names the index of what is not one."""
    form = f"({', '.join(parts)})"
    rows = _items(given, name, f"{call}([{form}])")
    for index, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or len(row) != len(parts):
            found = f"has {len(row)} parts" if isinstance(row, (tuple, list)) else f"is {shorten(row)}"
            raise UserError(
                f"{name}[{index}] {found}.",
                f"Each of them must be a {'pair' if len(parts) == 2 else 'triple'} {form}.",
                f"Give a list of them, also for one: {call}([{form}]).",
            )
    return [tuple(row) for row in rows]


def _check_max_new_tokens(max_new_tokens: Any) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UserError(
            f"max_new_tokens is {shorten(max_new_tokens)}.", "It must be a whole number, 1 or more.", "Omit it."
        )


def _question(instruction: Any) -> QuestionAnswer:
    return question_of(_text(instruction, "instruction", 'Try "[refer] red balloon".'))


def _given_answer(answer: Any) -> str:
    advice = 'Give the answer to score, such as "red".'
    text = _text(answer, "answer", advice)
    if not text.strip():
        raise UserError("The answer is empty.", "It is the text whose probability is computed.", advice)
    return text


def _text(given: Any, name: str, advice: str) -> str:
    if not isinstance(given, str):
        raise UserError(f"The {name} is {shorten(given)}.", "It must be text.", advice)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The {name} holds {given[error.start]!r} at position {error.start}, which is not a character.",
            "It must be text in UTF-8.",
            "Type it again, or remove it.",
        ) from None
    return given


def _device_and_dtype(device: Any, dtype: Any, quantize: Any) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to compute with. Raises UserError where this machine does not support them or `quantize`."""
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    if quantize is not None:
        from minigptv2.model.quantize import check_quantization

        check_quantization(quantize, device, dtype)
    return device, dtype


def _geometric_mean(probabilities: Sequence[float]) -> float:
    from math import exp, log

    return exp(sum(log(max(p, 1e-12)) for p in probabilities) / len(probabilities)) if probabilities else 0.0
