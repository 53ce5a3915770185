"""Model folders: written atomically, read strictly; a failed save leaves the older model unchanged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigptv2.errors import UserError
from minigptv2.model import model_folder
from minigptv2.model.meta_init import cast
from minigptv2.model.model_folder import load_folder, save_folder


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def _config(**changes) -> Callable[[Path], None]:
    """a__b=c sets the key b of a."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            node = data
            for key in parents:
                node = node[key]
            node[last] = value
        (folder / "config.json").write_text(json.dumps(data))

    return change


def _bytes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100]) and None


def _tensors(change: Callable[[dict], object], name: str = "model.safetensors") -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return changed


A_LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "has no tokenizer.model"),
    "no adapter": (lambda f: shutil.rmtree(f / "adapter"), "has no adapter_model.safetensors"),
    "config not UTF-8": (_bytes("config.json", b'{"knows": "\xff\xfe"}'), "config.json is not JSON"),
    "config no JSON": (_bytes("config.json", b"{"), "config.json is not JSON"),
    "config too deep": (_bytes("config.json", b"[" * 100_000), "config.json is not JSON"),
    "endless number": (_bytes("config.json", b'{"merge": ' + b"9" * 5000 + b"}"), "config.json is not JSON"),
    "config a list": (_bytes("config.json", b"[]"), "config.json is .*mapping"),
    "unknown key": (_config(language__hiden_size=3), "Did you mean hidden_size"),
    "unknown prompt": (_config(prompt="alpaca"), "prompt is 'alpaca'.*'llama2'"),
    "vision heads": (_config(vision__heads=3), "No model can be built from .*config.json"),
    "language heads": (_config(language__num_attention_heads=3), "built from .*config.json.*3 heads"),
    "key heads": (_config(language__num_key_value_heads=3), "built from .*config.json.*2 heads, and they by 3"),
    "no heads": (_config(language__num_attention_heads=0), "built from .*config.json"),
    "negative width": (_config(language__hidden_size=-32), "built from .*config.json"),
    "zero width": (_config(vision__width=0), "config.json"),
    "negative depth": (_config(vision__image_size=-1), "built from .*config.json"),
    "merge of nothing": (_config(patches_per_token=0), "built from .*config.json.*merged by 0"),
    "merge that does not divide": (_config(patches_per_token=7), "built from .*config.json.*merged by 7"),
    "stem too short": (_config(vision__stem_strides=[7]), "built from .*config.json"),
    "unknown tower": (_config(vision__timm_name="no_such_vit"), "built from .*config.json.*no_such_vit"),
    "tower from a hub": (_config(vision__timm_name="hf-hub:timm/x"), "built from .*config.json.*names a place"),
    "tower with a pickle": (
        _config(vision__timm_name="vit_tiny_patch16_224", vision__timm_options={"checkpoint_path": "x.pth"}),
        "built from .*config.json.*checkpoint_path",
    ),
    "LoRA on nothing": (_config(lora__targets=["nothing"]), "built from .*config.json.*nothing"),
    "LoRA of negative rank": (_config(lora__r=-1), "built from .*config.json"),
    "LoRA of another rank": (_config(lora__r=8), "adapter does not fit"),
    "other sizes": (_config(language__hidden_size=64), "does not fit its config.*has shape"),
    "more layers": (_config(language__num_hidden_layers=3), "is missing"),
    "fewer layers": (_config(language__num_hidden_layers=1), "is unknown"),
    "other vocabulary": (_config(language__vocab_size=50), "vocab_size 50"),
    "cut weights": (_cut("model.safetensors"), "model.safetensors cannot be read"),
    "empty weights": (_bytes("model.safetensors", b""), "model.safetensors cannot be read"),
    "cut adapter": (_cut("adapter/adapter_model.safetensors"), "cannot be read"),
    "a tensor less": (_tensors(lambda t: t.pop("projector.weight")), "projector.weight is missing"),
    "a tensor more": (_tensors(lambda t: t.update(x=torch.ones(1))), "x is unknown"),
    "NaN": (_tensors(lambda t: t["projector.bias"].fill_(float("nan"))), "projector.bias holds NaN"),
    "NaN in the adapter": (
        _tensors(lambda t: t[A_LORA].fill_(float("inf")), "adapter/adapter_model.safetensors"),
        "not finite",
    ),
    "adapter without a tensor": (_tensors(lambda t: t.pop(A_LORA), "adapter/adapter_model.safetensors"), "lora_A"),
    "empty tokenizer": (_bytes("tokenizer.model", b""), "tokenizer.model cannot be read: it is empty"),
    "no tokenizer at all": (_bytes("tokenizer.model", b"\x00\x01nonsense"), "tokenizer.model cannot be read"),
}


@pytest.mark.parametrize("bad", BAD)
def test_invalid_folders_raise_user_error(folder, bad, capfd):
    change, message = BAD[bad]
    change(folder)
    with pytest.raises(UserError, match="(?s)" + message):
        load_folder(folder)
    if bad == "empty tokenizer":
        assert capfd.readouterr() == ("", "")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_save_and_load_roundtrip(folder, tmp_path):
    model, tokenizer = load_folder(folder)
    save_folder(model, tokenizer, tmp_path / "again")
    again, other = load_folder(tmp_path / "again")
    assert other.model == tokenizer.model and again.config == model.config
    state, saved = model.state_dict(), again.state_dict()
    assert state.keys() == saved.keys() and any("lora_B" in k for k in state)
    for name, tensor in state.items():
        assert torch.equal(tensor, saved[name]), name  # it had been rounded to 16 bits before
    stored = {k: v.dtype for k, v in load_file(tmp_path / "again/model.safetensors").items()}
    assert {torch.float16} == {v for k, v in stored.items() if "running" not in k and "num_batches" not in k}
    assert all(v == torch.float32 for k, v in stored.items() if "running_" in k)
    assert not [f for f in (tmp_path / "again").rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_weights_have_same_file_mode_as_config(folder, tmp_path):
    save_folder(*load_folder(folder), tmp_path / "shared")
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "shared").rglob("*") if file.is_file()}
    assert {"model.safetensors", "adapter_model.safetensors"} < modes.keys() and len(set(modes.values())) == 1


def test_saved_weights_equal_the_weights_in_16_bits(folder, tmp_path):
    model, tokenizer = load_folder(folder)
    with torch.no_grad():
        model.projector.weight.add_(torch.randn_like(model.projector.weight) * 1e-3)
    for dtype in (torch.float16, torch.bfloat16):
        save_folder(model, tokenizer, tmp_path / "again", dtype)
        again = load_folder(tmp_path / "again")[0]
        assert torch.equal(again.projector.weight, model.projector.weight.to(dtype).float())


@pytest.fixture
def shards(folder, tmp_path) -> Path:
    """The tiny model in several files."""
    model, tokenizer = load_folder(folder)
    save_folder(model, tokenizer, tmp_path / "shards", max_shard=50_000)
    return tmp_path / "shards"


def test_sharded_model_equals_the_model_in_one_file(folder, shards):
    files = sorted(f.name for f in shards.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert not (shards / "model.safetensors").exists()
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    stored = {name: shards / file for name, file in index["weight_map"].items()}
    assert set(files) == {file.name for file in stored.values()}
    assert all(name in load_file(file) for name, file in stored.items())
    sizes = [sum(t.nbytes for t in load_file(shards / f).values()) for f in files]
    assert sum(sizes) == index["metadata"]["total_size"]
    largest = max(t.nbytes for f in files for t in load_file(shards / f).values())
    assert max(sizes) <= max(50_000, largest)
    one, several = (load_folder(f)[0].state_dict() for f in (folder, shards))
    assert one.keys() == several.keys() and all(torch.equal(one[k], several[k]) for k in one)


SHARD = "model-00002-of-00"
BAD_SHARDS = {
    "a shard less": (lambda f: next(f.glob(SHARD + "*")).unlink(), "lacks " + SHARD),
    "cut shard": (lambda f: _cut(next(f.glob(SHARD + "*")).name)(f), SHARD + ".* cannot be read"),
    "a shard of another model": (
        lambda f: save_file({"x": torch.ones(1)}, next(f.glob(SHARD + "*"))),
        SHARD + ".* does not hold",
    ),
    "a shard twice": (
        lambda f: shutil.copy(next(f.glob(SHARD + "*")), next(f.glob("model-00001-of-00*"))),
        "is in model-00001.* and",
    ),
    "index no JSON": (_bytes("model.safetensors.index.json", b"{"), "index.json cannot be read"),
    "index of nothing": (_bytes("model.safetensors.index.json", b"[]"), "index.json cannot be read"),
    "empty index": (_bytes("model.safetensors.index.json", b'{"weight_map": {}}'), "index.json cannot be read"),
    "index that leads away": (
        _bytes("model.safetensors.index.json", b'{"weight_map": {"x": "../x.safetensors"}}'),
        "json cannot be read",
    ),
}


@pytest.mark.parametrize("bad", BAD_SHARDS)
def test_invalid_shards_raise_user_error(shards, bad):
    change, message = BAD_SHARDS[bad]
    change(shards)
    with pytest.raises(UserError, match="(?s)" + message):
        load_folder(shards)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_loaded_in_16_bits_equals_the_rounded_one(folder, dtype):
    """Batch norms, the adapter and what is not saved stay in float32; `cast` then copies the adapter alone."""
    exact, rounded = load_folder(folder)[0], load_folder(folder, dtype)[0]
    norms = {n for n, m in exact.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert norms
    for name, tensor in exact.state_dict().items():
        kept = name.rpartition(".")[0] in norms or "lora_" in name
        found = rounded.state_dict()[name]
        assert torch.equal(found, tensor if kept or not tensor.is_floating_point() else tensor.to(dtype)), name
    places = {name: p.data_ptr() for name, p in rounded.named_parameters()}
    cast(rounded, dtype)
    moved = {name for name, p in rounded.named_parameters() if p.data_ptr() != places[name]}
    assert moved and all("lora_" in name for name in moved)
    assert rounded.decoder.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        features = rounded.vision(torch.zeros(1, 3, 448, 448, dtype=dtype))
    assert features.dtype == dtype and features.isfinite().all()


def test_build_on_meta_allocates_no_weights(folder):
    model = model_folder.build_on_meta(folder)
    assert all(p.is_meta for p in model.parameters()) and not any(b.is_meta for b in model.buffers())
    expected = {name: t.shape for name, t in load_folder(folder)[0].state_dict().items()}
    assert {name: t.shape for name, t in model.state_dict().items()} == expected
    assert not any(p.is_meta for p in torch.nn.Linear(2, 2).parameters())  # what is built afterwards is as ever


@pytest.mark.parametrize("broken", ["save_file", "adapter", "write_bytes", "rename"])
def test_full_disk_leaves_the_older_model(folder, monkeypatch, broken):
    import safetensors.torch

    model, tokenizer = load_folder(folder)
    before = _contents(folder)
    with torch.no_grad():
        model.projector.bias.add_(1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def full_in_safetensors(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    rename = Path.rename
    with monkeypatch.context() as patch:
        if broken == "save_file":
            patch.setattr(safetensors.torch, "save_file", full_in_safetensors)
        elif broken == "adapter":
            patch.setattr("peft.peft_model.safe_save_file", full_in_safetensors)
        elif broken == "write_bytes":
            patch.setattr(Path, "write_bytes", full)
        else:
            patch.setattr(Path, "rename", lambda f, to: full() if f.name.endswith(".new") else rename(f, to))
        with pytest.raises(UserError, match="No space left"):
            save_folder(model, tokenizer, folder)
    assert _contents(folder) == before
    assert [f.name for f in folder.parent.iterdir()] == ["model"]


def test_an_interrupted_save_leaves_the_older_model(folder, monkeypatch):
    model, tokenizer = load_folder(folder)
    before = _contents(folder)
    monkeypatch.setattr(model_folder, "base_state", lambda model: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_folder(model, tokenizer, folder)
    assert _contents(folder) == before and [f.name for f in folder.parent.iterdir()] == ["model"]


def test_saving_replaces_only_a_model_folder(folder, tmp_path):
    model, tokenizer = load_folder(folder)
    with torch.no_grad():
        model.projector.bias.fill_(2)
    save_folder(model, tokenizer, folder)
    assert load_folder(folder)[0].projector.bias.eq(2).all()
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    for place in ("notes", "notes/mine.txt"):
        with pytest.raises(UserError, match="is not a model folder"):
            save_folder(model, tokenizer, tmp_path / place)
    with pytest.raises(UserError, match="cannot be written"):
        save_folder(model, tokenizer, tmp_path / "notes/mine.txt/model")
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"


def test_non_finite_weights_are_not_saved(folder, tmp_path):
    model, tokenizer = load_folder(folder)
    with torch.no_grad():
        model.projector.bias[0] = 1e6  # over the largest float16
    with pytest.raises(UserError, match="projector.bias is not finite"):
        save_folder(model, tokenizer, tmp_path / "new")
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
