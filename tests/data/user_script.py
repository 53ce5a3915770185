"""A user's script over the whole public API. mypy checks it in strict mode; it is not run.

Each `type: ignore` stands on a line that must be an error: mypy reports one that is not needed.
"""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from typing_extensions import assert_type

import minigptv2
from minigptv2 import Answer, Box, Chat, EncodedImage, MiniGPTv2, Stream, TokenLogprob, UserError
from minigptv2.boxes import format_box, iou, parse
from minigptv2.sample import Phrase, QuestionAnswer, Sample


def opens() -> MiniGPTv2:
    model = MiniGPTv2.from_pretrained()
    assert_type(model, MiniGPTv2)
    for folder in ("model", Path("model"), None):
        MiniGPTv2.from_pretrained(folder, device="cpu", dtype="float32", quantize="dynamic-int8", base=None)
    MiniGPTv2.from_pretrained(dtype="float8")  # type: ignore[arg-type]
    MiniGPTv2.from_pretrained("model", quantise="dynamic-int8")  # type: ignore[call-arg]
    published = MiniGPTv2.from_published("a.pth", Path("eva.pth"), "llama", box_rounding="floor", vision={"depth": 2})
    print(published.report)
    model.save_pretrained(Path("copy"))
    assert_type(model.parameters, int)
    print(model.config.vision.image_size, model.device, model.dtype, model.quantize, model)
    return model


def asks(model: MiniGPTv2, path: Path) -> None:
    answer = model.chat(path, "[refer] red balloon", max_new_tokens=50, allow_urls=True)
    assert_type(answer, Answer)
    assert_type(answer.text, str)
    assert_type(answer.words, str)
    assert_type(answer.task, str)
    assert_type(answer.finish_reason, Literal["stop", "length"])
    assert_type(answer.boxes, tuple[Box, ...])
    assert_type(answer.problems, tuple[str, ...])
    assert_type(answer.to_dict(), dict[str, Any])
    for box in answer.boxes:
        assert_type(box, Box)
        assert_type(box.xyxy, tuple[float, float, float, float])
        assert_type(box.score, float | None)
        assert_type(box.phrase, str)
        assert_type(box.area + sum(box.center) + iou(box, box), float)
    answer.draw().save("annotated.png")
    assert_type(answer.draw(), Image.Image)
    assert_type(answer.image, Image.Image | None)
    print(answer.image.size)  # type: ignore[union-attr]
    print(answer.txt)  # type: ignore[attr-defined]
    for image in (str(path), path.read_bytes(), io.BytesIO(b""), Image.open(path), np.zeros((4, 4, 3), np.uint8), None):
        assert_type(model.chat(image, "[caption]"), Answer)
    with path.open("rb") as file:
        model.chat(file, "[caption]")
    model.chat(path)  # type: ignore[call-arg]
    model.chat(path, 5)  # type: ignore[arg-type]


def asks_many(model: MiniGPTv2, paths: list[Path], errors: Literal["raise", "return"]) -> None:
    questions = [(path, "[caption]") for path in paths]
    assert_type(model.chat_batch(questions, 20), list[Answer])
    assert_type(model.chat_batch(((path, "hello") for path in paths), errors="raise"), list[Answer])
    answers = model.chat_batch(questions, errors="return", allow_urls=True)
    assert_type(answers, list[Answer | UserError])
    print(answers[0].text)  # type: ignore[union-attr]
    for answer in answers:
        if isinstance(answer, UserError):
            print(answer.given, answer.allowed, answer.advice)
        else:
            print(answer.text)
    assert_type(model.chat_batch(questions, errors=errors), list[Answer | UserError])
    model.chat_batch(questions, errors="ignore")  # type: ignore[call-overload]
    encoded = model.encode_images(paths)
    assert_type(encoded, list[EncodedImage])
    assert_type(model.encode_images(paths, errors="return"), list[EncodedImage | UserError])
    model.encode_images([None])  # type: ignore[list-item]
    assert_type(encoded[0].size, tuple[int, int])
    assert_type(encoded[0].image, Image.Image)
    print(encoded[0].visual.shape, model.image_features(encoded[0]).shape)
    assert_type(model.chat(encoded[0], "[vqa] what is it?"), Answer)
    model.chat_batch([(encoded[0], "hello"), (None, "hello")])


def talks(model: MiniGPTv2, path: Path) -> None:
    stream = model.stream(path, "[grounding]", 20)
    assert_type(stream, Stream)
    for piece in stream:
        assert_type(piece, str)
    assert_type(stream.answer, Answer | None)
    assert_type(model.start_chat(), Chat)
    chat = model.start_chat(path, allow_urls=False)
    assert_type(chat.ask("what is it?", max_new_tokens=20), Answer)
    assert_type(chat.stream("where?"), Stream)
    assert_type(chat.image, Image.Image | None)
    assert_type(chat.history, list[QuestionAnswer])
    chat.reset()


def scores(model: MiniGPTv2, path: Path) -> float:
    tokens = model.logprobs(path, "[vqa] what colour is it?", "red")
    assert_type(tokens, list[TokenLogprob])
    triples = [(path, "[vqa] what colour is it?", word) for word in ("red", "green")]
    assert_type(model.logprobs_batch(triples), list[list[TokenLogprob]])
    assert_type(model.logprobs_batch(triples, errors="return"), list[list[TokenLogprob] | UserError])
    print(tokens[0].text, tokens[0].id)
    return sum(token.logprob for token in tokens)


def reads(path: Path) -> Sample:
    """What a reader of one's own data set returns."""
    box = Box(10, 20, 30, 40, phrase="cat")
    assert_type(format_box(box, 100, 100), str)
    assert_type(parse("{<10><20><30><40>}", 640, 480).boxes, tuple[Box, ...])
    question = QuestionAnswer("refer", (Phrase("cat", (box,)),))
    return Sample(path, (100, 100), (question,), key="cat 1")


def main() -> None:
    model = opens()
    print(minigptv2.__version__, minigptv2.MiniGPTv2 is MiniGPTv2)
    print(minigptv2.nothing)  # type: ignore[attr-defined]
    try:
        asks(model, Path("park.png"))
        asks_many(model, [Path("park.png")], "return")
        talks(model, Path("park.png"))
        print(scores(model, Path("park.png")), reads(Path("park.png")))
    except UserError as error:
        assert_type(error.given, str)
        print(error.given, error.allowed, error.advice)
