"""docs/finetune.md, step by step, on COCO's boxes of a few images."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from minigptv2 import cli
from minigptv2.api import MiniGPTv2

ROOT = Path(__file__).parents[2]
COCO = ROOT / "tests" / "data" / "coco"


@pytest.mark.slow
def test_finetune_documentation_end_to_end(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/finetune.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(block) for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    train, chat = (next(c for c in commands if c[:2] == ["minigptv2", name]) for name in ("train", "chat"))
    shutil.copy(COCO / "annotations/instances_train2017.json", tmp_path / "train.json")
    (tmp_path / "images").symlink_to(COCO / "images/train2017")
    (tmp_path / "boxes.yaml").write_text(recipe)
    shutil.copy(next((COCO / "images/train2017").glob("*.jpg")), tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*train[1:], "max_steps=2", "optim.global_batch_size=2", "device=cpu", "model.lora.r=4"]) == 0
    capsys.readouterr()
    assert cli.main([*chat[1:], "--device", "cpu", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out.strip()
    model = MiniGPTv2.from_pretrained("output/boxes/model", "cpu", base="bundled")
    assert "projector.weight" in dict(model.network.named_parameters())
