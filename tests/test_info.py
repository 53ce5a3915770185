"""`minigptv2 info`: counts and memory, compared with sums over the real modules."""

import pytest
import torch

from minigptv2 import UserError, cli
from minigptv2.api import BUNDLED
from minigptv2.commands.info import ParameterCounts, activations, count, info, memory_to_answer, memory_to_train
from minigptv2.config import LanguageConfig
from minigptv2.model.model_folder import build_on_meta, load_folder


def test_parameters_are_those_of_the_opened_model(tiny_folder):
    model = load_folder(tiny_folder)[0]
    counts = count(model)
    assert counts == count(build_on_meta(tiny_folder))
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.adapter == 2 * 2 * 2 * 4 * 32  # layers, projections, A and B, r, width
    linear = [
        p
        for name, p in model.decoder.named_parameters()
        if name.endswith("weight") and ".layers." in name and "norm" not in name and "lora_" not in name
    ]
    assert len(linear) == 2 * 7
    assert counts.linear == sum(p.numel() for p in linear) and counts.rows == sum(len(p) for p in linear)


def test_memory_equals_its_formulas():
    language = LanguageConfig(100, 8, 16, 3, 4, 2, 50)
    config = type("Config", (), {"language": language})
    counts = ParameterCounts(tower=1000, projector=200, language=5000, adapter=40, linear=4000, rows=64)
    cache = 2 * 3 * 2 * 2 * 50  # both, layers, key heads, width of a head, context
    assert memory_to_answer(config, counts) == {
        "float32": 4 * 6240 + 4 * cache,
        "16 bits": 2 * 6240 + 2 * cache,
        "language model in 8 bits": 4000 + 4 * 64 + 2 * 2240 + 2 * cache,
        "language model in 4 bits": 4000 * 0.5 + 4000 / 64 * 4 + 2 * 2240 + 2 * cache,
    }
    assert memory_to_train(config, counts) == {
        "LoRA and projector (the stages)": 16 * 240 + 2 * 6000,
        "QLoRA and projector": 16 * 240 + 2 * 2000 + 4000 * 0.5625,
        "projector and whole language model": 16 * 5200 + 2 * 1000,
    }
    assert activations(config, 10) == 10 * (2 * 3 * 8 + 2 * (8 * 8 + 3 * 16) + 10 * 100)


def test_model_without_adapter_is_counted_with_one_for_training(tiny_folder):
    """As large as peft makes one of r 64 on q_proj and v_proj."""
    from minigptv2.config import LoraConfig

    model = build_on_meta(tiny_folder)
    rank_4 = count(model)
    merged = ParameterCounts(rank_4.tower, rank_4.projector, rank_4.language, 0, rank_4.linear, rank_4.rows)
    assert model.config.lora.targets == LoraConfig().targets
    more = memory_to_train(model.config, merged)["QLoRA and projector"]
    assert more - memory_to_train(model.config, rank_4)["QLoRA and projector"] == 16 * (16 - 1) * rank_4.adapter


def test_the_bundled_model_is_the_default(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert out == info(BUNDLED) + "\n"
    for part in ("tower", "projector", "language", "adapter", "together"):
        assert f"\n{part} " in out
    assert "(calculated" in out and " MB" in out


def test_no_weights_are_read(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load"))
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: pytest.fail("safe_open"))
    assert "Llama, width 32, 2 layers" in info(tiny_folder)
    with pytest.raises(UserError, match="has no config.json"):
        info(tmp_path)
