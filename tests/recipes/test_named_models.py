"""A language model by name, with its own tokenizer, and a timm tower: put together, trained, saved."""

import pytest
import torch
from qwen_files import write_qwen

from minigptv2 import cli
from minigptv2.errors import UserError
from minigptv2.model.language import load_pretrained_lm
from minigptv2.model.model_folder import load_folder
from minigptv2.tokenizer import HFTokenizer

TOWER = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp("qwen"))


def test_control_tokens_in_a_text_stay_text(qwen):
    tokenizer = HFTokenizer(qwen)
    text = "a <|im_end|> é 漢"
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos, tokenizer.eos} & set(ids)
    assert tokenizer.decode([*ids, tokenizer.eos]) == text
    assert tokenizer.bos != tokenizer.eos and tokenizer.size <= 320


@pytest.mark.slow
def test_parts_by_name_are_trained_and_saved(qwen, tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    trunk = timm.create_model(TOWER, depth=1, num_classes=0)  # of 224 pixels, with a norm that the tower lacks
    save_file(trunk.state_dict(), tmp_path / "tower.safetensors")
    (tmp_path / "recipe.yaml").write_text(f"""
output: {tmp_path / "run"}
tower: {tmp_path / "tower.safetensors"}
model:
  language: {{name: {qwen}}}
  vision: {{timm_name: {TOWER}, timm_options: {{depth: 1}}, image_size: 64}}
  lora: {{r: 2}}
trained: [projector, lora]
data: {{sources: [{{name: scenes, options: {{count: 8, side: 64, exchanges: 2}}}}]}}
max_steps: 2
batch: 2
workers: 0
device: cpu
tensorboard: false
""")
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 0
    model, tokenizer = load_folder(tmp_path / "run/model")
    before, _ = load_folder(tmp_path / "run/begin")
    assert isinstance(tokenizer, HFTokenizer) and tokenizer.size < model.config.language.vocab_size == 320
    assert type(model.decoder).__name__ == "Qwen2ForCausalLM"
    assert not model.projector.weight.equal(before.projector.weight)
    kept = trunk.state_dict()["blocks.0.attn.qkv.weight"].half().float()
    assert model.vision.trunk.blocks[0].attn.qkv.weight.equal(kept)
    assert model.vision.trunk.pos_embed.shape[1] == 1 + 16
    original, _ = load_pretrained_lm(qwen)
    own = original.model.layers[0].mlp.up_proj.weight.half().float()
    assert model.decoder.model.layers[0].mlp.up_proj.weight.equal(own)
    answer_with_the_surplus_rows_likeliest(tmp_path / "run/model")


def answer_with_the_surplus_rows_likeliest(folder):
    """Rows that fill the table up are no tokens: they are never written, however likely the model finds them."""
    from PIL import Image

    from minigptv2.api import MiniGPTv2

    opened = MiniGPTv2.from_pretrained(folder, "cpu")
    size = opened.tokenizer.size
    plain = opened.network.decoder.lm_head.forward

    def surplus(states):
        logits = plain(states)
        logits[..., size:] += 1e4
        return logits

    opened.network.decoder.lm_head.forward = surplus
    answer = opened.chat(Image.new("RGB", (64, 64)), "what is this?", 4)
    assert answer.text is not None


def test_unsupported_family_and_missing_folder_raise_user_error(tmp_path):
    from transformers import GPT2Config

    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gpt2"):
        load_pretrained_lm(tmp_path)
    with pytest.raises(UserError, match="cannot be opened"):
        load_pretrained_lm(tmp_path / "nothing")
