"""The language model in 8 bits on a CPU: layers within their bound, answers well-formed; and who is refused."""

import sys

import pytest
import torch
from torch import nn

from minigptv2 import MiniGPTv2, UserError
from minigptv2.model.quantize import REQUIREMENTS, Int8Linear, check_quantization, quantize_language

ASKED = [("[refer] red balloon", "{<10><20><30><40>}"), ("[vqa] what color is the ball?", "red"), ("hello", "Hello!")]


@pytest.fixture(scope="module")
def small(tiny_folder) -> MiniGPTv2:
    return MiniGPTv2.from_pretrained(tiny_folder, device="cpu", quantize="int8")


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_as_near_as_its_rounding_allows(bias):
    """Each weight and each input is off by half a step at most; the steps are those of the largest in its row."""
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


def test_the_blocks_layers_alone_are_quantised(small, tiny_model):
    layers = {name for name, m in small.network.named_modules() if isinstance(m, Int8Linear)}
    blocks = small.config.language.num_hidden_layers
    assert len(layers) == 7 * blocks and all(".layers." in name for name in layers)
    assert sum("base_layer" in name for name in layers) == 2 * blocks  # LoRA's own matrices stay
    before = tiny_model.network.state_dict()
    after = {name: t for name, t in small.network.state_dict().items() if name.rpartition(".")[0] not in layers}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert any("lora_A" in name for name in after) and "vision.ln_vision.weight" in after
    assert {small.network.get_submodule(name).weight.dtype for name in layers} == {torch.int8}


def test_int8_thinks_nearly_the_same(small, tiny_model, image):
    for instruction, answer in ASKED:
        exact, rough = (m.logprobs(image, instruction, answer) for m in (tiny_model, small))
        away = [abs(a.logprob - b.logprob) for a, b in zip(exact, rough, strict=True)]
        assert 0 < max(away) < 1.0, away


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
    "how, device, dtype, said",
    [
        ("3bit", "cpu", torch.float32, "It must be one of 8bit, 4bit, int8"),
        ("", "cpu", torch.float32, "It must be one of"),
        ("8bit", "cpu", torch.float32, "runs on cpu"),
        ("4bit", "cpu", torch.bfloat16, "4bit needs a CUDA GPU"),
        ("int8", "cpu", torch.bfloat16, "on cpu in bfloat16"),
        ("int8", "cuda", torch.float32, "on cuda in float32"),
        ("8bit", "cuda", torch.bfloat16, r"minigptv2\[quantize\]"),
        ("4bit", "cuda", torch.bfloat16, r"minigptv2\[quantize\]"),
    ],
)
def test_what_this_machine_cannot_is_told(monkeypatch, how, device, dtype, said):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(UserError, match=said) as caught:
        check_quantization(how, torch.device(device), dtype)
    assert all((caught.value.given, caught.value.allowed, caught.value.advice))


def test_a_wrong_way_is_told_before_the_weights_are_read(tmp_path):
    with pytest.raises(UserError, match="quantize is '2bit'"):
        MiniGPTv2.from_pretrained(tmp_path / "nowhere", device="cpu", quantize="2bit")


@pytest.mark.parametrize("how", [how for how in REQUIREMENTS if how != "int8"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bitsandbytes_thinks_nearly_the_same(image, monkeypatch, device, how):
    """The bundled model, since 4 bits come in blocks of 64. On a CPU users are given int8, which is faster there; that
    these run there, too, is how this is tested without a GPU."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if device == "cpu":
        monkeypatch.setattr("minigptv2.model.quantize.check_quantization", lambda *_: None)
    exact = MiniGPTv2.from_pretrained(None, device, "bfloat16")
    rough = MiniGPTv2.from_pretrained(None, device, "bfloat16", how)
    kind = {"8bit": bitsandbytes.nn.Linear8bitLt, "4bit": bitsandbytes.nn.Linear4bit}[how]
    assert sum(isinstance(m, kind) for m in rough.network.modules()) == 7 * rough.config.language.num_hidden_layers
    assert {p.dtype for p in rough.network.vision.trunk.blocks.parameters()} == {torch.bfloat16}
    for instruction, answer in ASKED:
        pairs = zip(*(m.logprobs(image, instruction, answer) for m in (exact, rough)), strict=True)
        away = [abs(a.logprob - b.logprob) for a, b in pairs]
        assert 0 < max(away) and sum(away) / len(away) < 2.0, away
    assert rough.chat(image, "[refer] red balloon", 24).text


def test_quantising_twice_finds_nothing_left(small):
    before = [type(m) for m in small.network.modules()]
    quantize_language(small.network.decoder, "int8", small.device, small.dtype)
    assert [type(m) for m in small.network.modules()] == before
