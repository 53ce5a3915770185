"""A recipe, a run and a model folder of version 0.1.0 still work. The numbers are those of that version."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from minigptv2 import MiniGPTv2, cli, renames
from minigptv2.config import ModelConfig
from minigptv2.errors import UserError
from minigptv2.train.recipe import Recipe, read_recipe

OLD = Path(__file__).parents[1] / "data" / "version_0_1"
PARK = Path(__file__).parents[2] / "minigptv2" / "examples" / "park.png"


@pytest.fixture(autouse=True)
def no_line_was_written_yet(monkeypatch):
    monkeypatch.setattr(renames, "_printed", set())


def test_every_old_key_of_a_recipe_is_read_and_named_once(capsys):
    recipe = read_recipe(OLD / "recipe.yaml")
    lines = capsys.readouterr().err.splitlines()
    old = {*yaml.safe_load((OLD / "recipe.yaml").read_text())} & {*Recipe.RENAMED}
    assert len(old) > 15
    for key in old:
        assert [line for line in lines if line.endswith(f": {key} is now called {Recipe.RENAMED[key]}.")], key
    assert len(lines) == len(set(lines))
    assert (recipe.task, recipe.init, recipe.checkpoint.save) == ("finetune", "random", "full")
    assert (recipe.optim.lr, recipe.optim.warmup_steps, recipe.optim.attention_guidance_steps) == (3e-3, 1, 1)
    assert (recipe.data.num_workers, recipe.data.max_failure_rate, recipe.cache.shard_megabytes) == (0, 0.1, 1)
    assert recipe.model.description == "a model of version 0.1.0, for tests; it knows nothing"


def test_an_old_override_changes_the_present_key(capsys):
    recipe = read_recipe(OLD / "recipe.yaml", ["lr=1", "optim.min_lr=0.5", "data.max_bad_share=0.2", "model.merge=1"])
    assert (recipe.optim.lr, recipe.optim.min_lr, recipe.data.max_failure_rate) == (1, 0.5, 0.2)
    assert recipe.model.patches_per_token == 1


def test_a_key_under_both_names_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("output: x\nlr: 1.0\noptim: {lr: 2.0}\n")
    with pytest.raises(UserError, match=r"a.yaml.lr and .*a.yaml.optim.lr are both given"):
        read_recipe(tmp_path / "a.yaml")


def test_an_old_run_resumes_as_its_own_version_would_have(tmp_path):
    output = shutil.copytree(OLD / "run", tmp_path / "run")
    assert cli.main(["train", str(OLD / "recipe.yaml"), f"output={output}", "max_steps=4"]) == 0
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows[2:]] == pytest.approx([6.92922, 6.94315], abs=2e-4)
    assert [row["attention_loss"] for row in rows[2:]] == pytest.approx([3.40148, 3.38035], abs=2e-4)


def test_an_old_run_resumes_under_present_names(tmp_path, capsys):
    """The recipe as --print-config prints it, with the present names of the reader's options and tasks, too."""
    assert cli.main(["train", str(OLD / "recipe.yaml"), "--print-config"]) == 0
    printed = capsys.readouterr().out
    for old, new in (
        ("most", "max_objects"),
        ("first", "start"),
        ("side", "image_size"),
        ("exchanges", "questions_per_scene"),
        ("dialogues", "dialogue_fraction"),
        ("repeats", "repeat_prob"),
        ("seek", "refer_to_class"),
        ("near_miss", "refer_to_absent"),
        ("name: sums", "name: arithmetic"),
    ):
        printed, count = re.subn(rf"\b{old}\b", new, printed)
        assert count, old
    (tmp_path / "new.yaml").write_text(printed)
    output = shutil.copytree(OLD / "run", tmp_path / "run")
    assert cli.main(["train", str(tmp_path / "new.yaml"), f"output={output}", "max_steps=3"]) == 0
    assert "is now" not in capsys.readouterr().err


def test_an_old_run_is_still_compared_with_the_recipe(tmp_path, capsys):
    output = shutil.copytree(OLD / "run", tmp_path / "run")
    assert cli.main(["train", str(OLD / "recipe.yaml"), f"output={output}", "lr=0.5"]) == 2
    assert "optim.lr was 0.003 and is 0.5" in capsys.readouterr().err


def test_an_old_model_folder_gives_the_same_numbers(capsys):
    folder = OLD / "run" / "model"
    model = MiniGPTv2.from_pretrained(folder, device="cpu")
    lines = capsys.readouterr().err.splitlines()
    old = {*json.loads((folder / "config.json").read_text())} & {*ModelConfig.RENAMED}
    assert old == {*ModelConfig.RENAMED}
    for key in old:
        assert len([line for line in lines if re.search(rf"config.json: {key} is now called", line)]) == 1, key
    tokens = model.logprobs(str(PARK), "[refer] red balloon", "a ball")
    assert [t.logprob for t in tokens] == pytest.approx([-6.950114, -6.950208, -6.976881], abs=2e-4)
