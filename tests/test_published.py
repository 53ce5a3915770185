"""The published files: loaded and converted tensor by tensor, or refused with the likely cause."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import published_files as made
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from minigptv2 import MiniGPTv2, UserError, cli
from minigptv2.commands.info import activations, count, memory_to_answer, memory_to_train
from minigptv2.model import published, published_config
from minigptv2.model.grounding_vlm import attention_bias
from minigptv2.model.load_report import UnfitError
from minigptv2.model.published import convert, fit, load_published
from minigptv2.packing import attention_mask
from minigptv2.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TOKENIZER = made.tokenizer_model()
VOCABULARY = Tokenizer(TOKENIZER).size


SIZES = {"prompt": "minigptv2-train", "image_size": made.IMAGE_SIZE}
EVA = made.random_tensors(made.eva_shapes(), 1)
CHECKPOINT = made.random_tensors(made.checkpoint_shapes(), 2, torch.float32)
NEWER = {name: CHECKPOINT[old] for name, old in zip(made.checkpoint_shapes(newer=True), made.checkpoint_shapes())}
LLAMA = made.random_tensors(made.llama_shapes(VOCABULARY), 3)
ROTARY = made.LAYERS


class Files:
    """The three files in a folder of their own. Each is written with the changes that a test asks for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.eva = made.write_eva(folder / "eva_vit_g.pth", EVA)
        self.checkpoint = made.write_checkpoint(folder / "checkpoint.pth", CHECKPOINT)
        self.llama = made.write_llama(folder / "llama", LLAMA, TOKENIZER)

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.checkpoint, self.eva, self.llama

    def load(self, **changes):
        return load_published(*self.paths, **SIZES | changes)

    def command(self, out: Path, *more: str) -> list[str]:
        words = ["convert", self.checkpoint, "--eva", self.eva, "--llama", self.llama, "--out", out, *more]
        return [*map(str, words), "--image-size", str(made.IMAGE_SIZE), "--prompt-template", "minigptv2-train"]

    def rewrite_llama(self, name: str = "again", tensors: dict | None = None, **changes) -> None:
        self.llama = made.write_llama(self.folder / name, tensors or LLAMA, TOKENIZER, **changes)


@pytest.fixture
def files(tmp_path) -> Files:
    (tmp_path / "files").mkdir()
    return Files(tmp_path / "files")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(files, network, tokenizer, report), opened once and not to be changed."""
    torch.set_num_threads(2)
    given = Files(tmp_path_factory.mktemp("published"))
    return given, *given.load()


def _logits(network, seed: int = 0) -> torch.Tensor:
    """[1, L, vocabulary] for a random image and some ids after it."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 3, made.IMAGE_SIZE, made.IMAGE_SIZE, generator=generator)
    ids = torch.cat([torch.full((1, network.image_tokens), -1), torch.arange(5, 25)[None]], dim=1)
    with torch.no_grad():
        embedded = network.embed(ids, network.encode_images(pixels))
        mask = attention_bias(attention_mask(torch.zeros_like(ids)), embedded.dtype)
        states = network.decoder.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
        return network.decoder.lm_head(states).float()


def _same(one, other) -> None:
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---- what is opened is what the files hold ----


def test_every_tensor_is_copied_to_its_name_in_the_model(opened):
    _, network, _, _ = opened
    state = network.state_dict()
    seen = {"vision.ln_vision.weight", "vision.ln_vision.bias", "vision.trunk.pos_embed"}
    for name, tensor in EVA.items():
        if name != "pos_embed":
            assert torch.equal(state[f"vision.trunk.{name}"], tensor.float()), name
            seen.add(f"vision.trunk.{name}")
    for name, tensor in LLAMA.items():
        inside = name.replace("q_proj.", "q_proj.base_layer.").replace("v_proj.", "v_proj.base_layer.")
        assert torch.equal(state[f"language.base_model.model.{inside}"], tensor.float()), name
        seen.add(f"language.base_model.model.{inside}")
    for name, tensor in NEWER.items():
        inside = name.replace("llama_proj", "projector").replace("llama_model", "language")
        assert torch.equal(state[inside], tensor), name
        seen.add(inside)
    assert seen == state.keys()
    norm = network.vision.ln_vision
    assert norm.eps == 1e-5 and norm.weight.eq(1).all() and norm.bias.eq(0).all()


def test_position_table_is_resized_bicubic_except_for_the_class_position(opened):
    table = opened[1].vision.trunk.pos_embed
    places = EVA["pos_embed"][:, 1:].float().reshape(1, made.GRID, made.GRID, made.WIDTH).permute(0, 3, 1, 2)
    places = torch.nn.functional.interpolate(places, size=(8, 8), mode="bicubic", align_corners=False)
    assert torch.equal(table[:, 1:], places.permute(0, 2, 3, 1).reshape(1, 64, made.WIDTH))
    assert torch.equal(table[:, :1], EVA["pos_embed"][:, :1].float())


def test_the_config_is_read_from_the_files(opened):
    config = opened[1].config
    assert config.vision.timm_name == "eva_giant_patch14_224" and config.vision.image_size == made.IMAGE_SIZE
    sizes = {"patch_size": 14, "embed_dim": 176, "depth": 3, "num_heads": 2, "mlp_ratio": 96 / 176}
    assert config.vision.timm_options == pytest.approx(sizes)
    assert (config.lora.r, config.lora.alpha, config.lora.targets) == (4, 16, ("q_proj", "v_proj"))
    assert (config.patches_per_token, config.prompt, config.box_rounding) == (4, "minigptv2-train", "center")
    assert config.language.rope_theta == 10000 and config.language.max_position_embeddings == 256


def test_box_rounding_option_is_used_and_reported(files, tmp_path):
    assert any("(center)" in note for note in files.load()[2].notes)
    model = MiniGPTv2.from_published(*files.paths, image_size=made.IMAGE_SIZE, device="cpu", box_rounding="floor")
    assert model.config.box_rounding == "floor" and any("(floor)" in note for note in model.report.notes)
    assert cli.main(files.command(tmp_path / "model", "--box-rounding", "floor")) == 0
    assert MiniGPTv2.from_pretrained(tmp_path / "model", device="cpu").config.box_rounding == "floor"


def test_lora_changes_the_layers_by_its_formula(opened):
    """With alpha 16 and r 4 the product counts four times; without it the logits are others."""
    _, network, _, _ = opened
    layer = network.decoder.model.layers[1].self_attn.v_proj
    states = torch.randn(1, 3, made.HIDDEN, generator=torch.Generator().manual_seed(5))
    name = "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_"
    a, b = (CHECKPOINT[f"{name}{x}.weight"] for x in "AB")
    base = LLAMA["model.layers.1.self_attn.v_proj.weight"].float()
    with torch.no_grad():
        expected = states @ base.T + 16 / made.RANK * (states @ a.T @ b.T)
        torch.testing.assert_close(layer(states), expected, atol=1e-5, rtol=1e-5)
    with_adapter = _logits(network)
    with network.language.disable_adapter():
        assert not torch.allclose(_logits(network), with_adapter, atol=1e-2)


def test_positions_of_the_language_model_are_computed_and_never_rounded(opened):
    files, network, _, _ = opened
    head = made.HIDDEN // 4
    expected = 10000.0 ** (-torch.arange(0, head, 2).float() / head)
    torch.testing.assert_close(network.decoder.model.rotary_emb.inv_freq, expected)
    model = MiniGPTv2.from_published(
        *files.paths, "minigptv2-train", image_size=made.IMAGE_SIZE, device="cpu", dtype="bfloat16"
    )
    torch.testing.assert_close(model.network.decoder.model.rotary_emb.inv_freq, expected)
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert _logits(model.network).isfinite().all()


def test_rope_theta_is_read_from_the_config(files):
    files.rewrite_llama(rope_theta=5e5)
    network = files.load()[0]
    head = made.HIDDEN // 4
    expected = 5e5 ** (-torch.arange(0, head, 2).float() / head)
    torch.testing.assert_close(network.decoder.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("layout", ["bin", "bin-sharded", "safetensors-sharded"])
def test_every_layout_of_a_llama_gives_the_same_model(files, opened, layout):
    files.rewrite_llama(layout=layout)
    _same(files.load()[0], opened[1])


@pytest.mark.parametrize("old_format", [False, True])
def test_lora_names_of_every_peft_and_formats_of_every_torch_give_the_same_model(files, opened, old_format):
    made.write_checkpoint(files.checkpoint, NEWER, old_format)
    network, _, report = files.load()
    _same(network, opened[1])
    assert report.counts() == opened[3].counts()


def test_large_pickle_that_is_mapped_again_gives_the_same_model(files, opened, monkeypatch):
    from minigptv2.model import weight_files as tensors

    monkeypatch.setattr(tensors, "_REMAP_AFTER", 1000)
    files.rewrite_llama(layout="bin-sharded")
    _same(files.load()[0], opened[1])


def test_ln_vision_of_a_checkpoint_is_used(files):
    own = {"ln_vision.weight": torch.full((made.WIDTH,), 2.0), "ln_vision.bias": torch.full((made.WIDTH,), 3.0)}
    made.write_checkpoint(files.checkpoint, CHECKPOINT | own)
    network, _, report = files.load()
    assert network.vision.ln_vision.weight.eq(2).all() and network.vision.ln_vision.bias.eq(3).all()
    assert report.sources[1].required == len(CHECKPOINT) + 2 and not any("ln_vision" in n for n in report.notes)


def test_unused_blocks_and_final_layers_are_ignored_by_a_rule(files):
    more = {
        "norm.weight": torch.ones(4),
        "norm.bias": torch.ones(4),
        "fc_norm.weight": torch.ones(4),
        "head.weight": torch.ones(4),
        "head.bias": torch.ones(4),
    }
    made.write_eva(files.eva, EVA | more)
    network, _, report = files.load(vision={"num_heads": 4, "depth": 2})
    assert len(network.vision.trunk.blocks) == 2 and network.vision.trunk.blocks[0].attn.num_heads == 4
    rules = list(report.sources[0].ignored.values())
    assert len(rules) == 13 + len(more) and rules.count("blocks.2.*: the model uses the first 2 blocks") == 13


# ---- folders ----


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_converted_folder_opens_without_the_files_and_equals_them(files, opened, tmp_path, dtype):
    """In 16 bits, too: all but the stretched position table is of 16 bits in these files."""
    report = convert(*files.paths, tmp_path / "model", dtype=dtype, **SIZES)
    for path in (files.checkpoint, files.eva):
        path.unlink()
    files.llama.rename(tmp_path / "away")
    again = MiniGPTv2.from_pretrained(tmp_path / "model", device="cpu")
    table = again.network.vision.trunk.pos_embed.data
    expected = opened[1].vision.trunk.pos_embed.data
    assert torch.equal(table, expected.half().float() if dtype == "float16" else expected)
    again.network.vision.trunk.pos_embed.data = expected
    _same(again.network, opened[1])
    assert torch.equal(_logits(again.network), _logits(opened[1]))
    assert again.config == opened[1].config and again.tokenizer.model == TOKENIZER
    stored = json.loads((tmp_path / "model/report.json").read_text())
    assert stored["counts"] == report.counts() == opened[3].counts()
    assert {v.dtype for v in load_file(tmp_path / "model/model.safetensors").values()} == {getattr(torch, dtype)}
    answer = again.chat(None, "where is the red ball ?", 3)
    assert isinstance(answer.text, str)


def test_merged_model_has_the_logits_of_the_unmerged_one(files, opened, tmp_path):
    convert(*files.paths, tmp_path / "model", merge=True, dtype=torch.float32, **SIZES)
    merged = MiniGPTv2.from_pretrained(tmp_path / "model", device="cpu").network
    assert not (tmp_path / "model/adapter").exists() and not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(_logits(merged), _logits(opened[1]), atol=1e-5, rtol=1e-5)


def test_from_published_keeps_its_report(files, opened):
    model = MiniGPTv2.from_published(*files.paths, "minigptv2-train", image_size=made.IMAGE_SIZE, device="cpu")
    assert model.report.counts() == opened[3].counts()
    assert torch.equal(_logits(model.network), _logits(opened[1]))


def test_convert_command_writes_a_folder_and_its_report(files, tmp_path, capsys):
    assert cli.main(files.command(tmp_path / "model", "--vision-heads", "2", "--merge")) == 0
    out, err = capsys.readouterr()
    assert out == f"done: {tmp_path / 'model'}\n"
    assert "together" in err and "EVA file, resized: pos_embed, 16 -> 64 positions" in err
    assert "note: the LoRA was folded into the base" in err
    assert (tmp_path / "model/report.json").is_file()
    assert cli.main(["info", str(tmp_path / "model")]) == 0
    assert "eva_giant_patch14_224, width 176, 3 blocks" in capsys.readouterr().out


# ---- the report ----


def test_the_report_counts_every_tensor(opened):
    tower, trained, base = opened[3].sources
    assert (tower.required, tower.found, len(tower.resized), len(tower.renamed)) == (len(EVA), len(EVA), 1, 0)
    assert (trained.required, trained.found, len(trained.renamed)) == (10, 10, 10)
    assert (base.required, base.found, len(base.ignored)) == (len(LLAMA), len(LLAMA), ROTARY)
    assert len(trained.ignored) == ROTARY
    total = opened[3].counts()
    assert total["required"] == total["found"] == len(EVA) + len(CHECKPOINT) + len(LLAMA)
    assert total["ignored"] == 2 * ROTARY
    assert not any(total[k] for k in ("missing", "unknown", "wrong_shape", "non_finite"))
    lines = str(opened[3]).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["EVA", "checkpoint", "Llama", "together"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[-1].startswith("note: ln_vision is not in the checkpoint")


# ---- refusals ----


def _nan(tensors: dict, name: str) -> dict:
    changed = tensors[name].clone()
    changed.view(-1)[3] = float("nan")
    return tensors | {name: changed}


def _without(tensors: dict, *parts: str) -> dict:
    return {k: v for k, v in tensors.items() if not any(p in k for p in parts)}


def _checkpoint(tensors: dict):
    return lambda f: made.write_checkpoint(f.checkpoint, tensors)


def _eva(tensors: dict):
    return lambda f: made.write_eva(f.eva, tensors)


def _cut(name: str):
    def change(f: Files) -> None:
        file = getattr(f, name)
        file.write_bytes(file.read_bytes()[:-5000])

    return change


def _drop_shard(layout: str):
    def change(f: Files) -> None:
        f.rewrite_llama(layout=layout)
        next(f.llama.glob("*-00002-of-00002.*")).unlink()

    return change


LORA = "llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
OTHER_LLAMA = made.random_tensors(made.checkpoint_shapes(hidden=40), 4)
Q_FORMER = {"llama_proj.weight": torch.zeros(made.HIDDEN, 768), "llama_proj.bias": torch.zeros(made.HIDDEN)}
# (what is done to the files, what the error says)
UNFIT = {
    "MiniGPT-4": (_checkpoint(Q_FORMER), "a checkpoint of MiniGPT-4, whose llama_proj takes the 768"),
    "another tower": (
        _checkpoint(CHECKPOINT | {"llama_proj.weight": torch.zeros(made.HIDDEN, 700)}),
        "not a multiple of the EVA file's",
    ),
    "no LoRA": (_checkpoint(_without(CHECKPOINT, "lora")), "the projection alone: it has no LoRA"),
    "one LoRA tensor less": (_checkpoint(_without(CHECKPOINT, LORA)), f"{LORA} is missing"),
    "no projection": (_checkpoint(_without(CHECKPOINT, "llama_proj")), "not a checkpoint of MiniGPT-v2"),
    "another Llama": (_checkpoint(OTHER_LLAMA), "made for width 40, the folder's is 32"),
    "more layers": (_checkpoint(made.random_tensors(made.checkpoint_shapes(layers=3), 5)), "another Llama"),
    "two ranks": (_checkpoint(CHECKPOINT | {LORA: torch.zeros(made.HIDDEN, 8)}), "several ranks"),
    "a LoRA tensor under both names": (_checkpoint(CHECKPOINT | NEWER), "is unknown"),
    "something else": (_checkpoint(CHECKPOINT | {"query_tokens": torch.zeros(3)}), "query_tokens is unknown"),
    "NaN in the checkpoint": (_checkpoint(_nan(CHECKPOINT, LORA)), f"{LORA} holds NaN"),
    "NaN in the tower": (_eva(_nan(EVA, "blocks.1.attn.v_bias")), "v_bias holds NaN or infinity.*damaged"),
    "NaN in the Llama": (lambda f: f.rewrite_llama(tensors=_nan(LLAMA, "model.norm.weight")), "norm.weight holds NaN"),
    "whole numbers": (
        lambda f: f.rewrite_llama(tensors=LLAMA | {"model.norm.weight": torch.ones(made.HIDDEN, dtype=torch.int8)}),
        "whole numbers .torch.int8",
    ),
    "a tower's tensor less": (_eva(_without(EVA, "blocks.1.attn.q_bias")), "q_bias is missing.*eva_vit_g.pth"),
    "a tower's tensor more": (_eva(EVA | {"blocks.1.attn.k_bias": torch.ones(176)}), "k_bias is unknown"),
    "norm inside a block": (_eva(EVA | {"blocks.1.norm3.weight": torch.ones(176)}), "norm3.weight is unknown"),
    "a Llama's tensor less": (
        lambda f: f.rewrite_llama(tensors=_without(LLAMA, "1.mlp.up_proj")),
        "up_proj.weight is missing.*incomplete",
    ),
    "a Llama's tensor more": (lambda f: f.rewrite_llama(tensors=LLAMA | {"x": torch.ones(1)}), "x is unknown"),
}
REFUSED = {
    "cut checkpoint": (_cut("checkpoint"), "checkpoint.pth cannot be read"),
    "cut tower": (_cut("eva"), "eva_vit_g.pth cannot be read"),
    "text": (lambda f: f.checkpoint.write_text("<html>not found</html>\n"), "checkpoint.pth cannot be read"),
    "empty": (lambda f: f.checkpoint.write_bytes(b""), "checkpoint.pth cannot be read"),
    "no file": (lambda f: f.checkpoint.unlink(), "checkpoint.pth is not a file"),
    "no dictionary": (lambda f: torch.save([1, 2], f.checkpoint), "has nothing under 'model'; it holds: list"),
    "no model": (lambda f: torch.save({"state": 1}, f.checkpoint), "has nothing under 'model'; it holds: state"),
    "model of numbers": (lambda f: torch.save({"model": {"a": 1}}, f.checkpoint), "'a', which is not a plain tensor"),
    "tower of tensors in a mapping": (
        lambda f: torch.save({"model": EVA}, f.eva),
        "'model', which is not a plain tensor",
    ),
    "no tower": (_eva(LLAMA), "has no pos_embed of 3 dimensions.*eva_vit_g.pth"),
    "positions of no square": (
        _eva(EVA | {"pos_embed": torch.zeros(1, 16, made.WIDTH)}),
        "16 position embeddings, not 1",
    ),
    "a gap between blocks": (
        _eva(EVA | {"blocks.999999999.norm1.bias": torch.ones(made.WIDTH)}),
        "the last one has the number 999999999",
    ),
    "no Llama": (lambda f: setattr(f, "llama", f.folder), "has no weights.*Llama-2-7b-chat-hf"),
    "Meta's layout": (
        lambda f: [(f.llama / "model.safetensors").unlink(), (f.llama / "params.json").touch()],
        "Meta's own files",
    ),
    "missing shard": (_drop_shard("safetensors-sharded"), "lacks model-00002-of-00002.safetensors"),
    "missing bin": (_drop_shard("bin-sharded"), "lacks pytorch_model-00002-of-00002.bin"),
    "no config": (lambda f: (f.llama / "config.json").unlink(), "config.json cannot be read"),
    "config of nothing": (lambda f: (f.llama / "config.json").write_text("{}"), "lacks vocab_size, hidden_size"),
    "no tokenizer": (lambda f: (f.llama / "tokenizer.model").unlink(), "tokenizer.model cannot be read"),
    "another tokenizer": (
        lambda f: (f.llama / "tokenizer.model").write_bytes(made.tokenizer_model("quick brown fox")),
        "pieces, its config.json says",
    ),
    "added tokens": (
        lambda f: f.rewrite_llama(
            tensors=LLAMA
            | {
                name: torch.zeros(VOCABULARY + 1, made.HIDDEN)
                for name in ("model.embed_tokens.weight", "lm_head.weight")
            }
        ),
        "such as a Vicuna",
    ),
    "fewer layers": (lambda f: f.rewrite_llama(num_hidden_layers=1), "2 layers instead of 1"),
    "endless layers": (lambda f: f.rewrite_llama(num_hidden_layers=10**9), "2 layers instead of 1000000000"),
    "other sizes": (lambda f: f.rewrite_llama(intermediate_size=64), "instead of .64, 32"),
    "fewer key heads": (lambda f: f.rewrite_llama(num_key_value_heads=2), "k_proj.weight has shape .32, 32. instead"),
    "no heads": (lambda f: f.rewrite_llama(num_attention_heads=0), "holds a size below 1"),
    "another kind": (lambda f: f.rewrite_llama(model_type="mistral"), "model_type = mistral"),
    "stretched positions": (lambda f: f.rewrite_llama(rope_scaling={"type": "linear", "factor": 2}), "rope_scaling"),
    "quantised": (lambda f: f.rewrite_llama(quantization_config={"bits": 4}), "quantization_config"),
    "a Vicuna of full size": (
        lambda f: f.rewrite_llama(**FULL | {"vocab_size": 32001}),
        "vocab_size 32001 instead of 32000.*a Vicuna",
    ),
    "a CodeLlama": (lambda f: f.rewrite_llama(**FULL | {"rope_theta": 1e6}), "rope_theta 1000000.0 instead.*another"),
    "a first LLaMA": (
        lambda f: f.rewrite_llama(**FULL | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
        "LLaMA-1, or a",
    ),
}
FULL = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize("bad", [*UNFIT, *REFUSED])
def test_files_that_do_not_fit_are_refused_with_the_likely_cause(files, bad):
    change, message = (UNFIT | REFUSED)[bad]
    change(files)
    with pytest.raises(UserError, match="(?s)" + message) as error:
        files.load()
    assert len(str(error.value).splitlines()) == 3
    if bad in UNFIT:
        counts = error.value.report.counts()
        assert isinstance(error.value, UnfitError)
        assert sum(counts[k] for k in ("missing", "unknown", "wrong_shape", "non_finite")) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"heads": 2}}, "heads is 2.*num_heads and depth"),
        ({"vision": {"num_heads": 3}}, "cannot have 3 heads"),
        ({"vision": {"depth": 4}}, "has 3 blocks"),
        ({"image_size": 100}, "multiple of the patch, 14"),
        ({"image_size": 70}, "25 patches, which cannot be joined by 4"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"prompt": "alpaca"}, "prompt is 'alpaca'.*'minigptv2-eval'"),
    ],
)
def test_options_that_do_not_fit_are_refused(opened, changes, message):
    with pytest.raises(UserError, match="(?s)" + message):
        opened[0].load(**changes)


def test_width_that_fits_no_known_head_size_asks_for_num_heads(files):
    made.write_eva(files.eva, made.random_tensors(made.eva_shapes(width=96), 6))
    with pytest.raises(UserError, match="(?s)width 96 cannot have heads of width 88.*--vision-heads"):
        files.load()


def test_overflow_in_16_bits_raises_user_error(files):
    made.write_checkpoint(files.checkpoint, CHECKPOINT | {"llama_proj.bias": torch.full((made.HIDDEN,), 1e6)})
    with pytest.raises(UserError, match="(?s)llama_proj.bias of .* too large for torch.float16.*bfloat16"):
        files.load(dtype=torch.float16)
    assert files.load(dtype=torch.bfloat16)[0].projector.bias.dtype == torch.bfloat16


class _Bomb:
    """Would make a file where a pickle is loaded by its own rules."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "eva", "shard"])
def test_code_in_a_pickle_is_never_run(files, tmp_path, how, capsys):
    mark = tmp_path / "mark"
    content = {"model": CHECKPOINT | {"x": _Bomb(mark)}}
    if how == "pickle":
        files.checkpoint.write_bytes(pickle.dumps({"model": {"x": _Bomb(mark)}}, protocol=2))
    elif how == "eva":
        torch.save(EVA | {"x": _Bomb(mark)}, files.eva)
    elif how == "shard":
        files.rewrite_llama(layout="bin")
        torch.save(LLAMA | {"x": _Bomb(mark)}, files.llama / "pytorch_model.bin")
    else:
        torch.save(content, files.checkpoint, _use_new_zipfile_serialization=how == "torch")
    assert cli.main(files.command(tmp_path / "model")) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 3
    assert "weights_only=False" not in err and "mkdir" in err
    assert not mark.exists() and not (tmp_path / "model").exists()


def test_full_disk_leaves_no_folder(files, tmp_path, monkeypatch, capsys):
    def full(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    place = tmp_path / "models"
    place.mkdir()
    assert cli.main(files.command(place / "model")) == 2
    assert "No space left" in capsys.readouterr().err and list(place.iterdir()) == []


def test_invalid_output_folder_is_refused_before_files_are_read(files, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    monkeypatch.setattr(published, "load_published", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="is not a model folder"):
        convert(*files.paths, tmp_path / "notes")


def test_suspicious_model_names_give_notes(files):
    for name, doubt in (("lmsys/vicuna-7b-v1.5", "a Vicuna"), ("meta-llama/Llama-2-7b-hf", "the base LLaMA-2")):
        files.rewrite_llama(name.split("/")[0], _name_or_path=name)
        notes = files.load()[2].notes
        assert any(doubt in note and name in note for note in notes), notes
    assert published_config._refuse_other_llamas(Path("c"), {}, published_config.LLAMA_2_7B) == []


# ---- the published size ----


def test_published_names_and_shapes_fit_the_published_model():
    """Shapes only: every name is known, none is missing, and the parameters are as many as published."""
    fitted = fit(*(_Shapes(name, shapes) for name, shapes in made.full_size()), published_config.LLAMA_2_7B)
    model, (eva, checkpoint, llama) = fitted.model, fitted.report.sources
    assert (eva.required, eva.found, len(eva.ignored)) == (4 + 39 * 13, 4 + 39 * 13, 13 + 4)
    assert (checkpoint.required, checkpoint.found, len(checkpoint.ignored)) == (130, 130, 32)
    assert (llama.required, llama.found) == (291, 291)
    assert eva.resized == {"pos_embed": "256 -> 1024 positions, bicubic; that of the class token is unchanged"}
    counts = count(model)
    assert sum(p.numel() for p in model.vision.trunk.parameters()) == 986_975_872
    assert counts.projector + counts.adapter == 56_627_200
    assert counts.language == 6_738_415_616
    assert all(p.is_meta for p in model.parameters()) and model.image_tokens == 256
    assert model.config.lora.r == 64 and model.config.vision.timm_options["num_heads"] == 16
    document = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert str(fitted.report) in document
    for sizes in (memory_to_answer(model.config, counts), memory_to_train(model.config, counts)):
        assert all(f" {size / 1e9:.2f} GB |" in document for size in sizes.values())
    assert f" {activations(model.config, 512) / 1e9:.2f} GB " in document
    filled = {target for part in fitted.parts for target in part.targets.values()}
    assert model.state_dict().keys() - filled == {"vision.ln_vision.weight", "vision.ln_vision.bias"}


class _Shapes:
    """What `fit` needs of the tensors of a file."""

    def __init__(self, name: str, shapes: dict):
        self.path, self.shapes = Path(name), shapes

    def __iter__(self):
        return iter(self.shapes)


PEAK = """
import sys
from pathlib import Path
import torch
from minigptv2.model.model_folder import load_folder
from minigptv2.model.published import load_published

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

small, large = map(Path, sys.argv[1:])
torch.set_num_threads(1)

def load(folder):
    if (folder / "config.json").exists():
        return load_folder(folder, torch.float16)[0]
    files = (folder / name for name in ("checkpoint.pth", "eva_vit_g.pth", "llama"))
    return load_published(*files, image_size=112, dtype=torch.float16)[0]

load(small)  # all libraries are imported now
open("/proc/self/clear_refs", "w").write("5")  # the highest so far is forgotten
before = status("VmRSS")
model = load(large)
size = 2 * sum(p.numel() for p in model.parameters())
print(size, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to measure memory")
@pytest.mark.parametrize("layout", ["bin", "safetensors", "folder"])
def test_opening_takes_little_more_memory_than_the_model(files, tmp_path, layout):
    """A model of 250 MB in 16 bits. The highest use of memory while it is opened, over what was in use before."""
    hidden, layers, inner = 512, 9, 8192
    (tmp_path / "large").mkdir()
    large = Files(tmp_path / "large")
    llama = {
        k: torch.zeros(v, dtype=torch.float16) for k, v in made.llama_shapes(VOCABULARY, hidden, layers, inner).items()
    }
    (large.llama / "model.safetensors").unlink()
    large.llama.rename(tmp_path / "old")
    kind = layout if layout != "folder" else "safetensors"
    made.write_llama(
        large.llama, llama, TOKENIZER, kind, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers
    )
    trained = made.random_tensors(made.checkpoint_shapes(hidden=hidden, layers=layers), 7, torch.float32)
    made.write_checkpoint(large.checkpoint, trained)
    small, opened = files.folder, large.folder
    if layout == "folder":
        from minigptv2.model.model_folder import save_folder

        for given, name in ((files, "small-model"), (large, "large-model")):
            network, tokenizer, _ = given.load(dtype=torch.float16)
            save_folder(network, tokenizer, tmp_path / name, max_shard=50_000_000)
        small, opened = tmp_path / "small-model", tmp_path / "large-model"
        assert len(list(opened.glob("model-*-of-*.safetensors"))) > 4
    command = [sys.executable, "-c", PEAK, str(small), str(opened)]
    # tensors as large as those of a 7B model are given back to the system when freed; here smaller ones are, too
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    size, peak = map(int, done.stdout.split())
    assert size > 230e6
    assert peak < 1.2 * size, f"{peak / size:.2f} of the model's size"
