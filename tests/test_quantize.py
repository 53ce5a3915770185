"""The language model in 8 or 4 bits: errors within their bounds, answers well-formed, and what is refused."""

import sys

import pytest
import torch
from torch import nn

from minigptv2 import MiniGPTv2, UserError, renames
from minigptv2.model.quantize import (
    BNB_INT8,
    BNB_NF4,
    DYNAMIC_INT8,
    REQUIREMENTS,
    Int8Linear,
    check_quantization,
    quantize_language,
)

ASKED = [("[refer] red balloon", "{<10><20><30><40>}"), ("[vqa] what color is the ball?", "red"), ("hello", "Hello!")]


@pytest.fixture(scope="module")
def small(tiny_folder) -> MiniGPTv2:
    return MiniGPTv2.from_pretrained(tiny_folder, device="cpu", quantize="dynamic-int8")


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_error_of_an_int8_layer_is_within_its_rounding(bias):
    """Each weight and each input has an error of at most half a step; a step is the largest value of its row / 127."""
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 20, bias=bias), torch.randn(3, 7, 48) * torch.logspace(-3, 2, 7)[:, None]
    layer.weight[3] *= 1000
    layer.weight[4] = 0
    x[1, 2] = 0
    made = Int8Linear(layer)
    step_x, step_w = x.abs().amax(-1, keepdim=True) / 127, layer.weight.abs().amax(1) / 127
    bound = x.abs().sum(-1, keepdim=True) * step_w / 2 + layer.weight.abs().sum(1) * step_x / 2 + 12 * step_x * step_w
    error = (made(x) - layer(x)).abs()
    assert made(x).shape == (3, 7, 20) and bool((error <= bound + 1e-4 * layer(x).abs() + 1e-6).all())
    assert error.max() > 0
    assert torch.equal(made(x)[1, 2:3], made(x[1, 2:3])) and torch.equal(made(x)[2], made(x[2]))


def test_only_linear_layers_of_the_blocks_are_quantised(small, tiny_model):
    layers = {name for name, m in small.network.named_modules() if isinstance(m, Int8Linear)}
    blocks = small.config.language.num_hidden_layers
    assert len(layers) == 7 * blocks and all(".layers." in name for name in layers)
    assert sum("base_layer" in name for name in layers) == 2 * blocks  # LoRA's own matrices stay
    before = tiny_model.network.state_dict()
    after = {name: t for name, t in small.network.state_dict().items() if name.rpartition(".")[0] not in layers}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert any("lora_A" in name for name in after) and "vision.ln_vision.weight" in after
    assert {small.network.get_submodule(name).weight.dtype for name in layers} == {torch.int8}


def test_int8_logprobs_are_close_to_float32(small, tiny_model, image):
    for instruction, answer in ASKED:
        exact, quantised = (m.logprobs(image, instruction, answer) for m in (tiny_model, small))
        differences = [abs(a.logprob - b.logprob) for a, b in zip(exact, quantised, strict=True)]
        assert 0 < max(differences) < 1.0, differences


def test_int8_answers_are_well_formed_and_do_not_depend_on_the_batch(small, image):
    questions = [(image, "[refer] red balloon"), (None, "hello"), (image, "[grounding] " + "tell me more " * 9)]
    together = small.chat_batch(questions, 24)
    assert [a.text for a in together] == [small.chat(*question, max_new_tokens=24).text for question in questions]
    for answer in together:
        assert answer.text and (answer.finish_reason == "length" or not answer.problems)


def test_a_quantised_model_is_not_saved(small, tmp_path):
    with pytest.raises(UserError, match="quantised"):
        small.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "how, device, dtype, message",
    [
        ("3bit", "cpu", torch.float32, "It must be one of bnb-int8, bnb-nf4, dynamic-int8"),
        ("", "cpu", torch.float32, "It must be one of"),
        ("bnb-int8", "cpu", torch.float32, "runs on cpu"),
        ("bnb-nf4", "cpu", torch.bfloat16, "bnb-nf4 needs a CUDA GPU"),
        ("dynamic-int8", "cpu", torch.bfloat16, "on cpu in bfloat16"),
        ("dynamic-int8", "cuda", torch.float32, "on cuda in float32"),
        ("bnb-int8", "cuda", torch.bfloat16, r"minigptv2\[quantize\]"),
        ("bnb-nf4", "cuda", torch.bfloat16, r"minigptv2\[quantize\]"),
    ],
)
def test_unsupported_quantization_raises_user_error(monkeypatch, how, device, dtype, message):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(UserError, match=message) as caught:
        check_quantization(how, torch.device(device), dtype)
    assert all((caught.value.given, caught.value.allowed, caught.value.advice))


def test_unknown_quantization_is_refused_before_weights_are_read(tmp_path):
    with pytest.raises(UserError, match="quantize is '2bit'"):
        MiniGPTv2.from_pretrained(tmp_path / "nowhere", device="cpu", quantize="2bit")


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in REQUIREMENTS if how != DYNAMIC_INT8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bitsandbytes_logprobs_are_close_to_float(image, monkeypatch, device, how):
    """With the bundled model, since 4-bit weights come in blocks of 64. bitsandbytes also runs on a CPU, where this is
    tested without a GPU; users get dynamic-int8 there, which is faster."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if device == "cpu":
        monkeypatch.setattr("minigptv2.model.quantize.check_quantization", lambda *_: None)
    exact = MiniGPTv2.from_pretrained(None, device, "bfloat16")
    quantised = MiniGPTv2.from_pretrained(None, device, "bfloat16", how)
    kind = {BNB_INT8: bitsandbytes.nn.Linear8bitLt, BNB_NF4: bitsandbytes.nn.Linear4bit}[how]
    layers = [m for m in quantised.network.modules() if isinstance(m, kind)]
    assert len(layers) == 7 * quantised.config.language.num_hidden_layers
    assert {p.dtype for p in quantised.network.vision.trunk.blocks.parameters()} == {torch.bfloat16}
    for instruction, answer in ASKED:
        pairs = zip(*(m.logprobs(image, instruction, answer) for m in (exact, quantised)), strict=True)
        differences = [abs(a.logprob - b.logprob) for a, b in pairs]
        assert 0 < max(differences) and sum(differences) / len(differences) < 2.0, differences
    assert quantised.chat(image, "[refer] red balloon", 24).text


def test_quantising_twice_changes_nothing(small):
    before = [type(m) for m in small.network.modules()]
    quantize_language(small.network.decoder, DYNAMIC_INT8, small.device, small.dtype)
    assert [type(m) for m in small.network.modules()] == before


@pytest.mark.parametrize(("old", "present"), [("8bit", BNB_INT8), ("4bit", BNB_NF4), ("int8", DYNAMIC_INT8)])
def test_old_names_are_accepted_with_a_note(old, present, monkeypatch, capsys):
    monkeypatch.setattr(renames, "_printed", set())
    with pytest.raises(UserError, match=f"quantize is '{present}'"):
        check_quantization(old, torch.device("cpu"), torch.bfloat16)
    assert capsys.readouterr().err == f"note: quantize={old} is now written {present}.\n"


def test_a_model_opened_by_an_old_name_reports_the_present_one(tiny_folder):
    assert MiniGPTv2.from_pretrained(tiny_folder, device="cpu", quantize="int8").quantize == DYNAMIC_INT8
