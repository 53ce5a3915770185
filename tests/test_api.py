"""MiniGPTv2 from Python: types of images, batches, conversations, streams, errors."""

import io
import json
import pickle
import pydoc
import shutil
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image

import minigptv2
from minigptv2 import MiniGPTv2, UserError
from minigptv2.encode import IMAGE_TOKEN_ID
from minigptv2.images import open_image
from minigptv2.model import generate
from minigptv2.model.generate import Generated
from minigptv2.model.grounding_vlm import attention_bias
from minigptv2.packing import attention_mask

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

    def generate_grounded(network, tokenizer, batch, visual, max_new_tokens):
        ids = tokenizer.encode(GROUNDED)
        return [Generated(ids, [0.5] * len(ids), "stop") for _ in batch.ids]

    monkeypatch.setattr(generate, "generate", generate_grounded)


@pytest.fixture
def other_image(tmp_path):
    file = tmp_path / "other.png"
    Image.effect_noise((90, 300), 80).convert("RGB").save(file)
    return file


@pytest.mark.slow
def test_batch_answers_equal_single_answers(tiny_model, image, other_image):
    questions = [
        (image, "[refer] red balloon"),
        (None, "hello"),
        (other_image, "[detection] " + "a very long list of words, " * 8),
        (image, "[caption]"),
        (None, "and one more question " * 5),
        (other_image, "hi"),
    ]
    together = tiny_model.chat_batch(questions, 12)
    alone = [tiny_model.chat(*question, max_new_tokens=12) for question in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [(a.task, a.finish_reason, [b.xyxy for b in a.boxes]) for a in together] == [
        (a.task, a.finish_reason, [b.xyxy for b in a.boxes]) for a in alone
    ]
    assert len({a.text for a in alone}) > 3, "answers that are all the same prove nothing"


def test_empty_batch_has_no_answers(tiny_model):
    assert tiny_model.chat_batch([]) == []


@pytest.mark.slow
def test_saved_model_answers_the_same(tiny_model, tmp_path, image):
    tiny_model.save_pretrained(tmp_path / "again")
    again = MiniGPTv2.from_pretrained(tmp_path / "again", device="cpu")
    assert again.config == tiny_model.config
    for instruction in ("[refer] red balloon", "hello"):
        assert again.chat(image, instruction, 16) == tiny_model.chat(image, instruction, 16)
    assert not [f for f in (tmp_path / "again").rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_image_may_be_path_bytes_pillow_or_numpy(tiny_model, image):
    opened = Image.open(image)
    images = [image, str(image), image.read_bytes(), opened, np.asarray(opened)]
    answers = tiny_model.chat_batch([(given, "[caption]") for given in images], 8)
    assert all(a.image.size == (640, 400) for a in answers)
    assert {a.text for a in answers} == {tiny_model.chat(image, "[caption]", 8).text}


def test_repeated_image_is_encoded_once(tiny_model, image, monkeypatch):
    encoded = _count_images(tiny_model, monkeypatch)
    tiny_model.chat_batch([(image, "hi"), (image, "[caption]"), (None, "hi")], 2)
    assert encoded == [1]


def test_stream_pieces_join_to_the_text(tiny_model, image):
    stream = tiny_model.stream(image, "[refer] red balloon", 16)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text
    assert stream.answer == tiny_model.chat(image, "[refer] red balloon", 16)


def test_chat_keeps_history_and_encoded_image(tiny_model, image, monkeypatch):
    encoded = _count_images(tiny_model, monkeypatch)
    chat = tiny_model.start_chat(image)
    first = chat.ask("what is this?", 6)
    assert encoded == [1]
    assert first == tiny_model.chat(image, "what is this?", 6)
    encoded.clear()
    rows = []
    for _ in range(3):
        stream = chat.stream("what is this?", 6)
        list(stream)
        rows.append(stream.row)
    assert len(rows[0]) < len(rows[1]) < len(rows[2])
    assert [row.ids.count(tiny_model.tokenizer.bos) for row in rows] == [2, 3, 4]
    assert all(row.ids.count(IMAGE_TOKEN_ID) == tiny_model.network.image_tokens for row in rows)
    assert encoded == []
    chat.reset()
    assert chat.ask("what is this?", 6) == first


@pytest.mark.slow
def test_long_chat_drops_oldest_turns(tiny_model, image):
    chat = tiny_model.start_chat(image)
    for _ in range(5):
        stream = chat.stream("word " * 80, 2)
        list(stream)
        assert len(stream.row) <= tiny_model.encoder.context - 2
        assert stream.row.ids.count(IMAGE_TOKEN_ID) == tiny_model.network.image_tokens


def test_chat_without_image(tiny_model):
    assert tiny_model.start_chat().ask("hello", 6) == tiny_model.chat(None, "hello", 6)


@pytest.mark.slow
@pytest.mark.parametrize("prompt, bos, eos", [("minigptv2-train", [1, 2], [0, 1]), ("minigptv2-eval", [2, 3], [0, 0])])
def test_chat_follows_prompt_template_of_config(tiny_folder, tmp_path, image, prompt, bos, eos):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "prompt": prompt}))
    model = MiniGPTv2.from_pretrained(folder, device="cpu")
    tokenizer, chat, rows = model.tokenizer, model.start_chat(image), []
    for _ in range(2):
        stream = chat.stream("what is this?", 6)
        list(stream)
        rows.append(stream.row.ids)
    assert chat.history[0].answer
    assert [ids.count(tokenizer.bos) for ids in rows] == bos
    assert [ids.count(tokenizer.eos) for ids in rows] == eos
    joined = f"[/INST]{chat.history[0].answer} [INST] what"
    assert (joined in tokenizer.decode([i for i in rows[1] if i != IMAGE_TOKEN_ID])) == (prompt == "minigptv2-eval")


@pytest.mark.parametrize("literal", LITERALS)
def test_control_tokens_in_instruction_stay_text(tiny_model, image, literal):
    tokenizer = tiny_model.tokenizer
    row = tiny_model.start_chat(image).stream(f"what {literal} is it?", 2).row
    assert row.ids.count(tokenizer.bos) == 1
    assert tokenizer.eos not in row.ids
    assert row.ids.count(IMAGE_TOKEN_ID) == tiny_model.network.image_tokens
    assert literal in tokenizer.decode([i for i in row.ids if i != IMAGE_TOKEN_ID])
    assert tiny_model.chat(image, literal, 2).task == "chat"


def test_boxes_are_pixels_with_phrase_and_score(tiny_model, image, says_box):
    answer = tiny_model.chat(image, "[grounding]")
    (box,) = answer.boxes
    assert (str(answer), answer.words, answer.finish_reason) == (GROUNDED, "red ball", "stop")
    assert box.xyxy == pytest.approx((64, 80, 192, 160))
    assert (box.phrase, box.score) == ("red ball", pytest.approx(0.5))


def test_answer_to_dict_is_json(tiny_model, image, says_box):
    as_json = json.loads(json.dumps(tiny_model.chat(image, "[refer] red ball").to_dict()))
    assert as_json["task"] == "refer"
    assert as_json["boxes"] == [{"phrase": "red ball", "xyxy": pytest.approx([64, 80, 192, 160]), "score": 0.5}]


def test_draw_returns_the_upright_image(tiny_model, tmp_path, image, says_box):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.open(image).save(turned, exif=exif)
    drawn = tiny_model.chat(turned, "[refer] red ball").draw()
    assert drawn.size == (400, 640)
    assert tiny_model.chat(image, "[refer] red ball").draw().size == (640, 400)
    with pytest.raises(UserError, match="about no image"):
        tiny_model.chat(None, "hello").draw()


@pytest.mark.slow
def test_dtype_option_sets_parameter_dtype(tiny_folder, image):
    for dtype in ("bfloat16", torch.bfloat16):
        model = MiniGPTv2.from_pretrained(tiny_folder, device="cpu", dtype=dtype)
        norms = [m for m in model.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # these stay in float32
        kept = {id(p) for m in norms for p in m.parameters()}
        assert kept and {p.dtype for p in model.network.parameters() if id(p) not in kept} == {torch.bfloat16}
        assert model.chat(image, "[refer] red balloon", 4).text
    for wrong in ("float8", "int8", torch.int64):
        with pytest.raises(UserError, match="dtype is"):
            MiniGPTv2.from_pretrained(tiny_folder, device="cpu", dtype=wrong)


def test_rotary_frequencies_stay_exact_in_16_bits(tiny_folder, tiny_model):
    exact = tiny_model.network.decoder.model.rotary_emb.inv_freq
    for dtype in ("bfloat16", "float16"):
        rotary = MiniGPTv2.from_pretrained(tiny_folder, "cpu", dtype).network.decoder.model.rotary_emb
        assert torch.equal(rotary.inv_freq, exact)
    assert not torch.equal(exact.bfloat16().float(), exact)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_unusable_device_raises_user_error(tiny_folder, device):
    with pytest.raises(UserError, match="cannot be used"):
        MiniGPTv2.from_pretrained(tiny_folder, device=device)


@pytest.mark.slow
def test_max_new_tokens_limits_the_answer(tiny_model, image, monkeypatch):
    outputs, real = [], generate.generate
    monkeypatch.setattr(generate, "generate", lambda *a: outputs.extend(rows := real(*a)) or rows)
    for limit in (1, 5, 11):
        answer = tiny_model.chat(image, "hello", limit)
        generated = outputs.pop()
        assert len(generated.ids) <= limit
        assert answer.finish_reason == ("length" if len(generated.ids) == limit else "stop")


@pytest.mark.parametrize("limit", [0, -1, 2.5, "10", None])
def test_invalid_max_new_tokens_raises_user_error(tiny_model, image, limit):
    with pytest.raises(UserError, match="max_new_tokens is"):
        tiny_model.chat(image, "hello", limit)


@pytest.mark.parametrize(
    "instruction", ["", "  \n", "[foo] x", "[refer]", "[identify] box", "a\udcff", None, 5, "word " * 600]
)
def test_invalid_instructions_raise_user_error(tiny_model, image, instruction):
    for ask in (tiny_model.chat, tiny_model.stream):
        with pytest.raises(UserError, match="instruction|tag|words|was given") as caught:
            ask(image, instruction)
        assert all((caught.value.given, caught.value.allowed, caught.value.advice))


# ---- log-probabilities of given answers; visual tokens ----


@torch.no_grad()
def _naive_logprobs(model, image, instruction: str, answer: str) -> list[float]:
    """One forward pass a token, of one row, without padding."""
    visual = None if image is None else model.image_features(image)[None]
    prompt, out = model.start_chat(image).stream(instruction, 1).row.ids, []
    for token in (*model.tokenizer.encode(answer), model.tokenizer.eos):
        ids = torch.tensor([prompt])
        bias = attention_bias(attention_mask(torch.zeros_like(ids)), torch.float32)
        decoder, embedded = model.network.decoder, model.network.embed(ids, visual)
        states = decoder.model(inputs_embeds=embedded, attention_mask=bias, use_cache=False).last_hidden_state
        out.append(decoder.lm_head(states[0, -1]).log_softmax(-1)[token].item())
        prompt = [*prompt, token]
    return out


@pytest.mark.slow
def test_logprobs_equal_one_forward_pass_per_token(tiny_model, image, other_image):
    asked = [
        (image, "[vqa] what color is the ball?", "red"),
        (None, "hello", "Hello! Ask me about the picture. " * 3),
        (other_image, "[refer] red balloon", "{<10><20><30><40>}"),
        (image, "[vqa] " + "what color is the ball? " * 6, "é"),
    ]
    together = tiny_model.logprobs_batch(asked)
    for row, question in zip(together, asked):
        assert [t.logprob for t in row] == pytest.approx(_naive_logprobs(tiny_model, *question), abs=1e-4)
        alone = tiny_model.logprobs(*question)
        assert [(t.id, t.text) for t in alone] == [(t.id, t.text) for t in row]
        assert [t.logprob for t in alone] == pytest.approx([t.logprob for t in row], abs=1e-4)
        assert row[-1].id == tiny_model.tokenizer.eos and row[-1].text == "</s>"
        assert tiny_model.tokenizer.decode([t.id for t in row]) == question[2]
        assert all(t.logprob <= 0 for t in row)
    assert "".join(t.text for t in together[0]) == " red</s>"
    assert tiny_model.logprobs_batch([]) == []


def test_logprobs_agree_with_greedy_decoding(tiny_model, image, monkeypatch):
    """Greedy decoding takes the likeliest token each time: its first token beats that of any other answer."""
    outputs, real = [], generate.generate
    monkeypatch.setattr(generate, "generate", lambda *a: outputs.extend(rows := real(*a)) or rows)
    tiny_model.chat(image, "what is this?", 1)
    (first,), (probability,) = outputs[0].ids, outputs[0].probabilities
    for answer in ("red", "A red ball.", "7"):
        logprobs = tiny_model.logprobs(image, "what is this?", answer)[0]
        assert logprobs.logprob <= np.log(probability) + 1e-4
        assert (logprobs.id == first) == (logprobs.logprob == pytest.approx(np.log(probability), abs=1e-4))


@pytest.mark.parametrize(
    "answer, message",
    [
        ("", "empty"),
        (" \n", "empty"),
        (None, "is None"),
        (5, "is 5"),
        ("a\udcff", "not a character"),
        ("word " * 600, "too long"),
    ],
)
def test_invalid_candidate_answers_raise_user_error(tiny_model, image, answer, message):
    with pytest.raises(UserError, match=message) as caught:
        tiny_model.logprobs(image, "what is this?", answer)
    assert all((caught.value.given, caught.value.allowed, caught.value.advice))


def test_logprobs_of_invalid_questions_raise_user_error(tiny_model, image):
    for given, instruction, message in (
        ("nowhere.png", "hi", "nowhere.png"),
        (b"no image", "hi", "bytes"),
        (image, "", "empty"),
        (image, "[foo] x", "foo"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_model.logprobs(given, instruction, "red")


def test_image_features_are_the_visual_tokens(tiny_model, tiny_folder, image):
    visual = tiny_model.image_features(image)
    assert visual.shape == (64, 32) and visual.dtype == torch.float32 and not visual.is_inference()
    assert torch.equal(visual, tiny_model.image_features(np.asarray(Image.open(image))))
    assert torch.equal(visual, tiny_model.start_chat(image).visual[0])
    rough = MiniGPTv2.from_pretrained(tiny_folder, "cpu", "bfloat16").image_features(image)
    assert rough.dtype == torch.float32 and torch.nn.functional.cosine_similarity(rough, visual).min() > 0.98
    for wrong, message in (
        (None, "None"),
        ("nowhere.png", "nowhere.png"),
        (b"no image", "bytes"),
        (torch.zeros(3, 4, 4), "shape"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_model.image_features(wrong)


def _count_images(model, monkeypatch) -> list[int]:
    """Grows by the number of images at each run of the vision tower."""
    encoded, real = [], model.network.encode_images

    def counting(pixels, features=None):
        encoded.append(len(pixels))
        return real(pixels, features)

    monkeypatch.setattr(model.network, "encode_images", counting)
    return encoded


# ---- lists of questions and of images ----


@pytest.mark.slow
def test_batch_may_be_any_ordered_iterable(tiny_model, image):
    pair = (image, "[caption]")
    expected = tiny_model.chat_batch([pair, pair], 2)
    for questions in (
        zip([image] * 2, ["[caption]"] * 2),
        (pair for _ in range(2)),
        (list(pair), pair),
        np.array([[str(image), "[caption]"]] * 2),
    ):
        assert tiny_model.chat_batch(questions, 2) == expected
    logprobs = tiny_model.logprobs_batch(zip([image] * 2, ["hi"] * 2, ["red", "a"]))
    assert [[t.id for t in row][:-1] for row in logprobs] == [tiny_model.tokenizer.encode(w) for w in ("red", "a")]
    assert [s.size for s in tiny_model.encode_images(p for p in (image, str(image)))] == [(640, 400)] * 2
    assert tiny_model.chat_batch(iter(())) == tiny_model.encode_images([]) == []


@pytest.mark.parametrize(
    "questions, message",
    [
        (("a.png", "[caption]"), r"questions\[0\] is 'a.png'"),
        ([("a.png",)], r"\[0\] has 1 parts"),
        ([(None, "hi"), (None, "hi", 5)], r"\[1\] has 3 parts"),
        ([(None, "hi"), "ab"], r"\[1\] is 'ab'"),
        ("hello", "is 'hello'"),
        (None, "is None"),
        (5, "is 5"),
        ({"a.png": "hi"}, "a.png"),
        (b"ab", "questions is"),
    ],
)
def test_invalid_question_lists_raise_user_error(tiny_model, questions, message):
    for errors in ("raise", "return"):
        with pytest.raises(UserError, match=message):
            tiny_model.chat_batch(questions, errors=errors)
    with pytest.raises(UserError, match=r"^questions"):
        tiny_model.logprobs_batch(questions)


def test_invalid_image_lists_raise_user_error(tiny_model, image):
    one = np.zeros((4, 5, 3), np.uint8)
    for images in (image, str(image), b"ab", None, 5, one, torch.from_numpy(one), io.BytesIO(b"a"), {"a": 1}):
        with pytest.raises(UserError, match="images is"):
            tiny_model.encode_images(images)
    with pytest.raises(UserError, match=r"images\[1\]: .*NoneType"):
        tiny_model.encode_images([image, None])


def test_errors_option_raises_or_returns_bad_questions(tiny_model, image):
    good = (image, "[caption]")
    questions = [good, ("nowhere.png", "hi"), (None, "hi"), (image, "[foo] x"), (image, "word " * 600), good]
    with pytest.raises(UserError, match=r"questions\[1\]: nowhere.png"):
        tiny_model.chat_batch(questions, 2)
    with pytest.raises(UserError, match=r"questions\[1\]: The task tag"):
        tiny_model.chat_batch([good, (image, "[foo] x")], 2)
    answers = tiny_model.chat_batch(questions, 2, errors="return")
    bad = {n: a.given for n, a in enumerate(answers) if isinstance(a, UserError)}
    assert list(bad) == [1, 3, 4] and bad[1].startswith("nowhere.png")
    alone = tiny_model.chat(*good, 2)
    assert [answers[0], answers[2], answers[5]] == [alone, tiny_model.chat(None, "hi", 2), alone]
    encoded = tiny_model.encode_images(["nowhere.png", image], errors="return")
    assert isinstance(encoded[0], UserError) and encoded[1].size == (640, 400)
    logprobs = tiny_model.logprobs_batch([(None, "hi", ""), (None, "hi", "red")], errors="return")
    assert isinstance(logprobs[0], UserError) and logprobs[1][0].id == tiny_model.logprobs(None, "hi", "red")[0].id
    assert all(isinstance(a, UserError) for a in tiny_model.chat_batch([(b"x", "hi")] * 2, errors="return"))
    with pytest.raises(UserError, match="errors is"):
        tiny_model.chat_batch([good], errors="ignore")
    with pytest.raises(UserError, match="max_new_tokens"):
        tiny_model.chat_batch([good], 0, errors="return")


def test_encoded_image_is_accepted_wherever_an_image_is(tiny_model, tiny_folder, image):
    (encoded,) = tiny_model.encode_images([image])
    assert tiny_model.start_chat(encoded).ask("hi", 4) == tiny_model.chat(image, "hi", 4)
    assert "".join(tiny_model.stream(encoded, "hi", 4)) == tiny_model.chat(encoded, "hi", 4).text
    assert torch.equal(tiny_model.image_features(encoded), tiny_model.image_features(image))
    assert tiny_model.logprobs(encoded, "hi", "a")[0].id == tiny_model.logprobs(image, "hi", "a")[0].id
    assert tiny_model.encode_images([encoded, image])[0] is encoded
    with pytest.raises(UserError, match="another model"):
        MiniGPTv2.from_pretrained(tiny_folder, device="cpu").chat(encoded, "hi")


def test_dict_views_are_batches(tiny_model, image):
    asked = {image: "[caption]"}
    assert tiny_model.chat_batch(asked.items(), 2) == tiny_model.chat_batch([(image, "[caption]")], 2)
    assert len(tiny_model.encode_images(asked.keys())) == len(tiny_model.encode_images(list(asked))) == 1


def test_error_about_an_array_has_three_lines(tiny_model):
    with pytest.raises(UserError, match="questions") as caught:
        tiny_model.chat_batch((np.zeros((600, 800, 3), np.uint8), "[caption]"))
    assert len(str(caught.value).splitlines()) == 3


def test_files_and_tensors_are_images(tiny_model, image):
    data, array = image.read_bytes(), np.array(Image.open(image).convert("RGB"))
    with image.open("rb") as file:
        images = [io.BytesIO(data), file, torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1) / 255]
        answers = tiny_model.chat_batch([(given, "[caption]") for given in images], 6)
    assert {a.text for a in answers} == {tiny_model.chat(image, "[caption]", 6).text}
    assert all(a.image.size == (640, 400) for a in answers), "also of a file that is closed by now"


def test_answer_keeps_no_pixels(tiny_model, image, tmp_path):
    file, array = tmp_path / "a.png", np.zeros((40, 60, 3), np.uint8)
    shutil.copy(image, file)
    of_file, of_array, of_bytes = tiny_model.chat_batch([(i, "hi") for i in (file, array, file.read_bytes())], 2)
    assert len(pickle.dumps(of_file)) < 2000
    assert of_array.source.source is array and isinstance(of_bytes.source.source, bytes)
    assert of_file.image.tobytes() == open_image(image).tobytes() and of_file.draw().size == (640, 400)
    file.write_bytes(b"another")
    for use in (of_file.draw, lambda: of_file.image):
        with pytest.raises(UserError, match="gone or changed"):
            use()
    file.unlink()
    with pytest.raises(UserError, match="gone or changed"):
        of_file.draw()


# ---- streams ----


def test_stream_generates_once_and_adds_one_turn(tiny_model, image):
    chat = tiny_model.start_chat(image)
    stream = chat.stream("what is this?", 8)
    first = next(iter(stream))
    assert chat.history == [] and stream.answer is None, "not read to its end yet"
    pieces = list(stream)
    assert pieces[0] == first and list(stream) == pieces and "".join(pieces) == stream.answer.text
    assert len(chat.history) == 1
    next(iter(chat.stream("what is this?", 8)))
    assert len(chat.history) == 1


def test_two_streams_add_their_turns_as_they_end(tiny_model, image):
    chat = tiny_model.start_chat(image)
    one, two = chat.stream("what is this?", 4), chat.stream("hello", 4)
    for _ in zip(one, two):
        pass
    list(two), list(one)
    assert sorted(e.question for e in chat.history) == ["hello", "what is this?"]
    assert two.answer == tiny_model.chat(image, "hello", 4), (
        "the prompt holds the turns up to the opening of the stream"
    )
    late = chat.stream("hello", 4)
    chat.reset()
    list(late)
    assert chat.history == []


def test_interrupted_stream_starts_again(tiny_model, image, monkeypatch):
    real = tiny_model.tokenizer.decode
    stream = tiny_model.stream(image, "what is this?", 8)

    def stopped(ids):
        if len(ids) > 3:
            raise KeyboardInterrupt
        return real(ids)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model.tokenizer, "decode", stopped)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    assert stream.chat.history == []
    assert "".join(stream) == stream.answer.text == tiny_model.chat(image, "what is this?", 8).text


def test_stream_leaves_inference_mode_between_pieces(tiny_model, image):
    for _ in tiny_model.stream(image, "hello", 3):
        assert not torch.is_inference_mode_enabled()


# ---- names, paths, processes ----


def test_reprs_describe_the_objects(tiny_model, image):
    count = sum(p.numel() for p in tiny_model.network.parameters())
    assert f"{count:,} parameters" in repr(tiny_model)
    assert all(word in repr(tiny_model) for word in ("448 x 448", "'cpu'", "'float32'", "quantize=None"))
    chat = tiny_model.start_chat(image)
    assert repr(chat) == "Chat(about an image of 640 x 400 pixels, 0 turns)"
    assert "no image" in repr(tiny_model.start_chat())
    assert repr(chat.encoded_image) == "EncodedImage(640 x 400 pixels, 64 visual tokens on cpu)"
    stream = chat.stream("[refer] red balloon", 3)
    assert repr(stream) == "Stream('[refer] red balloon', not started)"
    next(iter(stream))
    assert "1 pieces read" in repr(stream)
    list(stream)
    assert "read to its end" in repr(stream) and "1 turns" in repr(chat)


def test_package_lists_its_public_names():
    assert {"Answer", "Box", "MiniGPTv2", "UserError"} <= set(dir(minigptv2))
    assert "chat_batch(self, questions" in pydoc.plain(pydoc.render_doc(minigptv2))


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "a\ud800b", "iVBORw0KGgo" * 6000, 5, ["a"]])
def test_invalid_paths_raise_user_error(tiny_model, tiny_folder, tmp_path, path):
    for use in (
        lambda: MiniGPTv2.from_pretrained(path, device="cpu"),
        lambda: tiny_model.save_pretrained(path),
        lambda: MiniGPTv2.from_pretrained(tiny_folder, device="cpu", base=path),
        lambda: MiniGPTv2.from_published(path, tmp_path, tmp_path),
        lambda: tiny_model.chat(path, "hi"),
        lambda: tiny_model.encode_images([path]),
        lambda: tiny_model.start_chat(path),
    ):
        with pytest.raises(UserError, match="path|name|image|model|folder|file") as caught:
            use()
        assert len(str(caught.value)) < 600
        str(caught.value).encode()


def _pixels_wide(path) -> int:
    return open_image(path).width


@pytest.mark.slow
def test_user_error_passes_from_worker_process(image):
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(_pixels_wide, (image,)).get(timeout=60) == 640
        with pytest.raises(UserError, match="nowhere.png does not exist"):
            pool.apply_async(_pixels_wide, ("nowhere.png",)).get(timeout=60)
