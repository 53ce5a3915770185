"""MiniGPTv2: open a model, ask it about pictures, get answers with boxes in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.boxes import Box, Coding, parse
from minigptv2.bundled import BUNDLED, model_folder
from minigptv2.errors import UserError
from minigptv2.images import open_image, squash, to_pixels
from minigptv2.sample import Answer, Exchange, Sample, TokenLogprob, Turn
from minigptv2.tasks import question_of, render

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from minigptv2.encode import Encoded
    from minigptv2.model.generate import Generated
    from minigptv2.model.report import LoadReport

MAX_NEW_TOKENS = 300


class MiniGPTv2:
    """One model, ready to answer. Build it with `from_pretrained`.

    A picture is a path, bytes, a PIL image, a numpy array ([H, W, 3] uint8), what `see` gave for one, or None for a
    question without one.
    report: what `from_published` did with every tensor, None otherwise.
    """

    report: LoadReport | None = None

    def __init__(
        self, network, tokenizer, device: str | None = None, dtype: torch.dtype | str | None = None,
        quantize: str | None = None,
    ):  # fmt: skip
        from minigptv2.encode import Encoder
        from minigptv2.model.skeleton import cast

        self.device, self.dtype = _place(device, dtype, quantize)
        self.quantize = quantize
        if quantize is not None:
            from minigptv2.model.quantize import quantize_language

            quantize_language(network.decoder, quantize, self.device, self.dtype)
        self.network = cast(network.eval(), self.dtype).to(self.device)
        self.tokenizer, self.config = tokenizer, network.config
        context = self.config.language.max_position_embeddings
        self.encoder = Encoder(tokenizer, self.config.prompt, network.image_tokens, context)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, device: str | None = None, dtype: torch.dtype | str | None = None,
        quantize: str | None = None, base: str | Path | None = None,
    ) -> MiniGPTv2:  # fmt: skip
        """Open a model folder, or the bundled small model where none, or "bundled", is named.

        device: "cpu", "cuda", ...; default: a GPU where there is one. dtype: "float32", "bfloat16", "float16"; default:
        float32 on a CPU, bfloat16 on a GPU. quantize: "8bit" or "4bit" (a GPU, with bitsandbytes) or "int8" (a CPU)
        keep the language model's layers so; see `model/quantize.py`. base: for a folder that holds only what was
        trained, the whole model folder that it was trained from. Raises UserError where the folder is no whole,
        fitting model, and where this machine cannot quantise so.
        """
        from minigptv2.model.checkpoint import load_folder

        device, dtype = _place(device, dtype, quantize)  # before the weights are read
        folder = BUNDLED if folder is None else model_folder(folder)
        opened = load_folder(folder, dtype, base and model_folder(base))
        return cls(*opened, device, dtype, quantize)

    @classmethod
    def from_published(
        cls, checkpoint: str | Path, eva: str | Path, llama: str | Path, prompt: str = "published",
        vision: dict[str, int] | None = None, device: str | None = None, dtype: torch.dtype | str | None = None,
        quantize: str | None = None, image_size: int = 448, lora_alpha: int = 16, box_coding: Coding = "center",
    ) -> MiniGPTv2:  # fmt: skip
        """Open the published files as they are: a checkpoint's .pth, eva_vit_g.pth, a LLaMA-2-7b-chat folder.

        prompt: "published", the form of the published numbers, or "training", the form of the training. vision:
        num_heads and depth where they are not those of ViT-g. device, dtype, quantize: of `from_pretrained`.
        box_coding: "center", or "floor" for the very boxes of the published code. No code of a file is run. `.report`
        says what became of each tensor; print it. Raises UserError, with the likely cause, where anything is missing or
        does not fit.
        """
        from minigptv2.model.published import load_published

        device, dtype = _place(device, dtype, quantize)  # before the weights are read
        network, tokenizer, report = load_published(
            Path(checkpoint), Path(eva), Path(llama), prompt, vision, image_size, lora_alpha, dtype,
            box_coding,
        )  # fmt: skip
        model = cls(network, tokenizer, device, dtype, quantize)
        model.report = report
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write safetensors (16 bits), config.json, the tokenizer and the adapter: what `from_pretrained` opens.

        Raises UserError for a quantised model, whose 16-bit weights are gone.
        """
        from minigptv2.model.checkpoint import save_folder

        if self.quantize is not None:
            raise UserError(
                f"This model is quantised ({self.quantize}).", "A folder holds weights of 16 bits.",
                "Copy the folder that it was opened from, and give quantize again when you open the copy.",
            )  # fmt: skip
        save_folder(self.network, self.tokenizer, Path(folder))

    def chat(self, image: Any, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
        """Answer one instruction about one picture. Raises UserError for a bad picture or instruction."""
        return self.chat_batch([(image, instruction)], max_new_tokens)[0]

    def chat_batch(self, questions: Sequence[tuple[Any, str]], max_new_tokens: int = MAX_NEW_TOKENS) -> list[Answer]:
        """Answer many (image, instruction) at once: the same answers as one at a time, in the same order.

        A picture that stands in several questions is opened and encoded once, and read once by the language model.
        """
        from minigptv2.encode import collate
        from minigptv2.model.generate import generate, generate_about

        if not questions:
            return []
        upright = self._open_all([image for image, _ in questions])
        exchanges = [_question(instruction) for _, instruction in questions]
        rows = [self._encode([e], i, max_new_tokens) for e, i in zip(exchanges, upright)]
        different = list({id(i): i for i in upright}.values())
        if len(different) < len(rows) and all(i is not None for i in different):
            place = {id(i): n for n, i in enumerate(different)}
            owners, visual = [place[id(i)] for i in upright], self._visual(different)
            generated = generate_about(self.network, self.tokenizer, rows, owners, visual, max_new_tokens)
        else:
            visual = self._visual([image for row in rows for image in row.images])
            batch = collate(rows, left=True).to(self.device)
            generated = generate(self.network, self.tokenizer, batch, visual, max_new_tokens)
        return [self._answer(g, e, i) for g, e, i in zip(generated, exchanges, upright)]

    def see(self, images: Sequence[Any]) -> list[Seen]:
        """Open and encode pictures once, to ask about them in several calls: give a Seen in a picture's place.

        Raises UserError for a bad picture.
        """
        upright = self._open_all([open_image(i) if i is None else i for i in images])  # None is no picture here
        visual = self._visual(upright)
        return [i if isinstance(i, Seen) else Seen(i, visual[n]) for n, i in enumerate(upright)]

    def stream(self, image: Any, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Stream:
        """The answer to one instruction as it is written: iterate over its text; `.answer` is there at the end."""
        return self.start_chat(image).stream(instruction, max_new_tokens)

    def start_chat(self, image: Any = None) -> Chat:
        """A conversation with memory about one picture, which is opened and encoded once."""
        return Chat(self, image)

    def logprobs(self, image: Any, instruction: str, answer: str) -> list[TokenLogprob]:
        """How likely the model finds this answer: each token's log-probability, and that of the end after it.

        Nothing is generated: every token is judged with the right ones before it. Their sum ranks candidates.
        Raises UserError for an empty answer, a bad picture or instruction, and for what does not fit the context.
        """
        return self.logprobs_batch([(image, instruction, answer)])[0]

    def logprobs_batch(self, asked: Sequence[tuple[Any, str, str]]) -> list[list[TokenLogprob]]:
        """As `logprobs` for many (image, instruction, answer) at once: no result depends on the others."""
        import torch

        from minigptv2.encode import IGNORED, collate

        if not asked:
            return []
        upright = self._open_all([image for image, _, _ in asked])
        exchanges = [replace(_question(instruction), answer=_given_answer(answer)) for _, instruction, answer in asked]
        rows = [self.encoder.encode(self._turns([e], i)) for e, i in zip(exchanges, upright)]
        visual = self._visual([image for row in rows for image in row.images])
        with torch.inference_mode():
            losses = iter(self.network.token_losses(collate(rows).to(self.device), visual).tolist())
        tokens = [[i for i in row.labels if i != IGNORED] for row in rows]
        return [[TokenLogprob(self.tokenizer.words(i), i, -next(losses)) for i in ids] for ids in tokens]

    def encode_image(self, image: Any) -> torch.Tensor:
        """[V, D] float32 on the CPU: a picture as the language model gets it, V visual tokens of its width D.

        V is 256 at the published sizes and 64 in the bundled model. Raises UserError for a bad picture.
        """
        return self._visual([open_image(image)])[0].float().cpu()

    # ---- one question on its way through the model ----

    def _open_all(self, images: Sequence[Any]) -> list[Image.Image | Seen | None]:
        opened: dict[Any, Image.Image | None] = {None: None}
        out = []
        for image in images:
            if isinstance(image, Seen):
                out.append(image)
                continue
            key = str(image) if isinstance(image, (str, Path)) else None if image is None else id(image)
            if key not in opened:
                opened[key] = open_image(image)
            out.append(opened[key])
        return out

    def _encode(self, exchanges: Sequence[Exchange], image: Image.Image | None, room: int) -> Encoded:
        if not isinstance(room, int) or room < 1:
            raise UserError(f"max_new_tokens is {room!r}.", "It must be a whole number, 1 or more.", "Leave it away.")
        return self.encoder.encode(self._turns(exchanges, image), room)

    def _turns(self, exchanges: Sequence[Exchange], image: Image.Image | None) -> list[Turn]:
        size = image.size if image is not None else (0, 0)
        return render(Sample(image, size, tuple(exchanges)), self.config.box_coding)

    def _visual(self, images: Sequence[Image.Image | Seen]) -> torch.Tensor | None:
        """[P, V, D] visual tokens of upright pictures, each encoded once; those of a Seen are taken from it."""
        import numpy as np
        import torch

        if not images:
            return None
        different = list({id(i): i for i in images}.values())
        place = {id(i): n for n, i in enumerate(different)}
        fresh = [i for i in different if not isinstance(i, Seen)]
        side = self.config.vision.image_size
        with torch.inference_mode():
            encoded = iter(())
            if fresh:
                arrays = np.stack([np.asarray(squash(i, side)) for i in fresh])
                pixels = to_pixels(torch.from_numpy(arrays)).to(self.device, self.dtype)
                encoded = iter(self.network.encode_images(pixels))
            visual = torch.stack([i.visual if isinstance(i, Seen) else next(encoded) for i in different])
        return visual[[place[id(i)] for i in images]]

    def _answer(self, generated: Generated, exchange: Exchange, image: Image.Image | None) -> Answer:
        text = self.tokenizer.decode(generated.ids)
        size = image.size if image is not None else (0, 0)
        found = parse(text, *size, self.config.box_coding)
        ends = [len(self.tokenizer.decode(generated.ids[: i + 1])) for i in range(len(generated.ids))]
        boxes = []
        for box, (start, end) in zip(found.boxes, found.spans):
            chances = [
                p for i, p, e, s in zip(generated.ids, generated.probabilities, ends, [0, *ends])
                if s < end and e > start and any(c.isdigit() for c in self.tokenizer.piece(i))
            ]  # fmt: skip
            phrase = box.phrase or (exchange.question if exchange.task == "refer" else "")
            score = float(_geometric_mean(chances))
            boxes.append(Box(*box.xyxy, phrase, round(score, 4)))
        picture = image.image if isinstance(image, Seen) else image
        return Answer(text, tuple(boxes), exchange.task, generated.ended, found.problems, picture)


class Seen:
    """A picture that is opened and encoded, for many questions: `MiniGPTv2.see` makes it.

    image: upright. visual: [V, D], what the language model gets of it, on the model's device.
    """

    def __init__(self, image: Image.Image, visual: torch.Tensor):
        self.image, self.visual = image, visual

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright picture."""
        return self.image.size


class Chat:
    """A conversation about one picture: it remembers what was said, and encodes the picture once."""

    def __init__(self, model: MiniGPTv2, image: Any = None):
        self.model = model
        self.image = open_image(image) if image is not None else None
        self.visual = model._visual([self.image]) if self.image is not None else None
        self.exchanges: list[Exchange] = []

    def ask(self, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
        """Answer in the light of what was said before. Where the context is full, the oldest turns are forgotten."""
        stream = self.stream(instruction, max_new_tokens)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, instruction: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Stream:
        """As `ask`, text as it is written. The turn is remembered once the stream has been read to its end."""
        return Stream(self, _question(instruction), max_new_tokens)

    def reset(self) -> None:
        """Forget what was said; keep the picture."""
        self.exchanges.clear()


class Stream:
    """Iterate once over the text of an answer as it is written; afterwards `answer` holds the whole."""

    def __init__(self, chat: Chat, exchange: Exchange, max_new_tokens: int):
        self.chat, self.exchange, self.max_new_tokens = chat, exchange, max_new_tokens
        self.row = chat.model._encode([*chat.exchanges, exchange], chat.image, max_new_tokens)
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        import torch

        from minigptv2.encode import collate
        from minigptv2.model.generate import steps

        model, shown = self.chat.model, ""
        batch = collate([self.row], left=True).to(model.device)
        with torch.inference_mode():
            for (generated,) in steps(model.network, model.tokenizer, batch, self.chat.visual, self.max_new_tokens):
                text = model.tokenizer.decode(generated.ids)
                if text.startswith(shown) and not text.endswith("\ufffd"):  # an unfinished character waits for its rest
                    if text != shown:
                        yield text[len(shown) :]
                    shown = text
        self.answer = model._answer(generated, self.exchange, self.chat.image)
        if self.answer.text[len(shown) :]:
            yield self.answer.text[len(shown) :]
        said = Exchange(self.exchange.task, question=self.exchange.question, answer=self.answer.text, verbatim=True)
        self.chat.exchanges.append(said)


def _question(instruction: Any) -> Exchange:
    return question_of(_text(instruction, "instruction", 'Try "[refer] red balloon".'))


def _given_answer(answer: Any) -> str:
    advice = 'Give the words to judge, such as "red".'
    if not _text(answer, "answer", advice).strip():
        raise UserError("The answer is empty.", "It is the text whose probability is asked for.", advice)
    return answer


def _text(given: Any, name: str, advice: str) -> str:
    if not isinstance(given, str):
        raise UserError(f"The {name} is {given!r}.", "It must be text.", advice)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The {name} holds {given[error.start]!r} at place {error.start}, which is no character.",
            "It must be text in UTF-8.", "Type it again, or remove it.",
        ) from None  # fmt: skip
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
