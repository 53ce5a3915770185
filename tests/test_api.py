"""MiniGPTv2 from Python: every kind of picture, batches, conversations, streams, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from minigptv2 import MiniGPTv2, UserError
from minigptv2.encode import IMAGE_ID
from minigptv2.model import generate
from minigptv2.model.generate import Generated

LITERALS = (
    "</s>",
    "<s>",
    "<Img>",
    "</Img>",
    "[INST]",
    "[/INST]",
    "<unk>",
    "<ImageHere>",
    "a\x00b\x1b[31m\x7f",
    "é ✓ 猫",
)
GROUNDED = "<p>red ball</p> {<10><20><30><40>}"


@pytest.fixture
def says_box(monkeypatch):
    """Whatever is asked, the model says GROUNDED, each token with probability 0.5."""

    def said(network, tokenizer, batch, visual, max_new_tokens):
        ids = tokenizer.encode(GROUNDED)
        return [Generated(ids, [0.5] * len(ids), "stop") for _ in batch.ids]

    monkeypatch.setattr(generate, "generate", said)


@pytest.fixture
def other_picture(tmp_path):
    file = tmp_path / "other.png"
    Image.effect_noise((90, 300), 80).convert("RGB").save(file)
    return file


def test_a_batch_gives_the_answers_of_one_at_a_time(tiny_model, picture, other_picture):
    questions = [
        (picture, "[refer] red balloon"),
        (None, "hello"),
        (other_picture, "[detection] " + "a very long list of words, " * 8),
        (picture, "[caption]"),
        (None, "and one more question " * 5),
        (other_picture, "hi"),
    ]
    together = tiny_model.chat_batch(questions, 12)
    alone = [tiny_model.chat(*question, max_new_tokens=12) for question in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [(a.task, a.ended, [b.xyxy for b in a.boxes]) for a in together] == [
        (a.task, a.ended, [b.xyxy for b in a.boxes]) for a in alone
    ]
    assert len({a.text for a in alone}) > 3, "answers that are all the same prove nothing"


def test_an_empty_batch_has_no_answers(tiny_model):
    assert tiny_model.chat_batch([]) == []


def test_a_saved_model_answers_the_same(tiny_model, tmp_path, picture):
    tiny_model.save_pretrained(tmp_path / "again")
    again = MiniGPTv2.from_pretrained(tmp_path / "again", device="cpu")
    assert again.config == tiny_model.config
    for instruction in ("[refer] red balloon", "hello"):
        assert again.chat(picture, instruction, 16) == tiny_model.chat(picture, instruction, 16)
    assert not [f for f in (tmp_path / "again").rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_a_picture_is_a_path_bytes_pil_or_numpy(tiny_model, picture):
    image = Image.open(picture)
    kinds = [picture, str(picture), picture.read_bytes(), image, np.asarray(image)]
    answers = tiny_model.chat_batch([(kind, "[caption]") for kind in kinds], 8)
    assert all(a.image.size == (640, 400) for a in answers)
    assert {a.text for a in answers} == {tiny_model.chat(picture, "[caption]", 8).text}


def test_a_picture_asked_twice_is_encoded_once(tiny_model, picture, monkeypatch):
    encoded = _count_pictures(tiny_model, monkeypatch)
    tiny_model.chat_batch([(picture, "hi"), (picture, "[caption]"), (None, "hi")], 2)
    assert encoded == [1]


def test_a_stream_joins_to_the_text(tiny_model, picture):
    stream = tiny_model.stream(picture, "[refer] red balloon", 16)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text
    assert stream.answer == tiny_model.chat(picture, "[refer] red balloon", 16)


def test_a_conversation_keeps_its_history_and_its_picture(tiny_model, picture, monkeypatch):
    encoded = _count_pictures(tiny_model, monkeypatch)
    chat = tiny_model.start_chat(picture)
    first = chat.ask("what is this?", 6)
    assert encoded == [1]
    assert first == tiny_model.chat(picture, "what is this?", 6)
    encoded.clear()
    rows = []
    for _ in range(3):
        stream = chat.stream("what is this?", 6)
        list(stream)
        rows.append(stream.row)
    assert len(rows[0]) < len(rows[1]) < len(rows[2])
    assert [row.ids.count(tiny_model.tokenizer.bos) for row in rows] == [2, 3, 4]
    assert all(row.ids.count(IMAGE_ID) == tiny_model.network.image_tokens for row in rows)
    assert encoded == []
    chat.reset()
    assert chat.ask("what is this?", 6) == first


def test_a_long_conversation_forgets_its_oldest_turns(tiny_model, picture):
    chat = tiny_model.start_chat(picture)
    for _ in range(5):
        stream = chat.stream("word " * 80, 2)
        list(stream)
        assert len(stream.row) <= tiny_model.encoder.context - 2
        assert stream.row.ids.count(IMAGE_ID) == tiny_model.network.image_tokens


def test_a_conversation_needs_no_picture(tiny_model):
    assert tiny_model.start_chat().ask("hello", 6) == tiny_model.chat(None, "hello", 6)


@pytest.mark.parametrize("literal", LITERALS)
def test_control_tokens_in_the_text_stay_text(tiny_model, picture, literal):
    tokenizer = tiny_model.tokenizer
    row = tiny_model.start_chat(picture).stream(f"what {literal} is it?", 2).row
    assert row.ids.count(tokenizer.bos) == 1
    assert tokenizer.eos not in row.ids
    assert row.ids.count(IMAGE_ID) == tiny_model.network.image_tokens
    assert literal in tokenizer.decode([i for i in row.ids if i != IMAGE_ID])
    assert tiny_model.chat(picture, literal, 2).task == "chat"


def test_boxes_are_pixels_with_phrase_and_score(tiny_model, picture, says_box):
    answer = tiny_model.chat(picture, "[grounding]")
    (box,) = answer.boxes
    assert (str(answer), answer.words, answer.ended) == (GROUNDED, "red ball", "stop")
    assert box.xyxy == pytest.approx((64, 80, 192, 160))
    assert (box.phrase, box.score) == ("red ball", pytest.approx(0.5))


def test_an_answer_is_json(tiny_model, picture, says_box):
    told = json.loads(json.dumps(tiny_model.chat(picture, "[refer] red ball").to_dict()))
    assert told["task"] == "refer"
    assert told["boxes"] == [{"phrase": "red ball", "xyxy": pytest.approx([64, 80, 192, 160]), "score": 0.5}]


def test_an_answer_draws_the_upright_picture(tiny_model, tmp_path, picture, says_box):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.open(picture).save(turned, exif=exif)
    drawn = tiny_model.chat(turned, "[refer] red ball").draw()
    assert drawn.size == (400, 640)
    assert tiny_model.chat(picture, "[refer] red ball").draw().size == (640, 400)
    with pytest.raises(UserError, match="about no picture"):
        tiny_model.chat(None, "hello").draw()


def test_dtypes(tiny_folder, picture):
    for dtype in ("bfloat16", torch.bfloat16):
        model = MiniGPTv2.from_pretrained(tiny_folder, device="cpu", dtype=dtype)
        norms = [m for m in model.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # these stay in float32
        kept = {id(p) for m in norms for p in m.parameters()}
        assert kept and {p.dtype for p in model.network.parameters() if id(p) not in kept} == {torch.bfloat16}
        assert model.chat(picture, "[refer] red balloon", 4).text
    for wrong in ("float8", "int8", torch.int64):
        with pytest.raises(UserError, match="dtype is"):
            MiniGPTv2.from_pretrained(tiny_folder, device="cpu", dtype=wrong)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_cannot_be_used(tiny_folder, device):
    with pytest.raises(UserError, match="cannot be used"):
        MiniGPTv2.from_pretrained(tiny_folder, device=device)


def test_an_answer_has_at_most_max_new_tokens(tiny_model, picture, monkeypatch):
    seen, real = [], generate.generate
    monkeypatch.setattr(generate, "generate", lambda *a: seen.extend(rows := real(*a)) or rows)
    for most in (1, 5, 11):
        answer = tiny_model.chat(picture, "hello", most)
        generated = seen.pop()
        assert len(generated.ids) <= most
        assert answer.ended == ("length" if len(generated.ids) == most else "stop")


@pytest.mark.parametrize("most", [0, -1, 2.5, "10", None])
def test_max_new_tokens_must_be_a_number(tiny_model, picture, most):
    with pytest.raises(UserError, match="max_new_tokens is"):
        tiny_model.chat(picture, "hello", most)


@pytest.mark.parametrize(
    "instruction", ["", "  \n", "[foo] x", "[refer]", "[identify] box", "a\udcff", None, 5, "word " * 600]
)
def test_instructions_that_are_refused(tiny_model, picture, instruction):
    for ask in (tiny_model.chat, tiny_model.stream):
        with pytest.raises(UserError) as caught:
            ask(picture, instruction)
        assert all((caught.value.given, caught.value.allowed, caught.value.advice))


def _count_pictures(model, monkeypatch) -> list[int]:
    """Grows by the number of pictures at each run of the vision tower."""
    encoded, real = [], model.network.encode_images

    def counting(pixels, features=None):
        encoded.append(len(pixels))
        return real(pixels, features)

    monkeypatch.setattr(model.network, "encode_images", counting)
    return encoded
