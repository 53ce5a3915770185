"""The bundled model's recipes through the real command line, on a model of a few thousand weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_recipe import stop_after_two_steps

from minigptv2 import cli
from minigptv2.encode import PromptEncoder
from minigptv2.model.model_folder import load_folder
from minigptv2.train.init_model import place_on_device
from minigptv2.train.recipe import read_recipe
from minigptv2.train.validation import NUM_HELD_OUT, SEED, Validator

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train_configs" / "tiny"
STAGES = re.findall(r"train_configs/tiny/(\w+)\.yaml", (ROOT / "Makefile").read_text())  # what `make model` runs
EVAL = ROOT / "eval_configs" / "scenes.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which all recipes have run with --smoke, one after the other."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in STAGES:
            assert cli.main(["train", str(CONFIGS / f"{name}.yaml"), "--smoke"]) == 0
    return folder


@pytest.mark.slow
def test_every_stage_logs_its_losses(trained):
    for name in STAGES:
        steps = 6 if name == "pretrain_vision" else 2  # two of each phase
        rows = [json.loads(line) for line in open(trained / f"output/tiny/{name}-smoke/log.jsonl")]
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert all(0 < row["loss"] < 30 for row in rows)


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_from_which_the_run_resumes(tmp_path):
    output = tmp_path / "stopped"
    recipe = ["train", str(CONFIGS / "pretrain_vision.yaml"), "--smoke", f"output={output}"]
    phases = "phases=[{{image_size: 112, steps: {}, batch: 2, crowded: 0.5}}]"
    recipe.append("optim.warmup_steps=100000")
    stop_after_two_steps([*recipe, phases.format(100000), "checkpoint.save_every=100000", "data.num_workers=2"], output)
    files = {".lock", "backbone.safetensors", "checkpoints", "log.jsonl", "run.json"}
    assert {f.name for f in output.iterdir()} - {"tensorboard"} == files
    log = output / "log.jsonl"
    done = log.read_text().count("\n")
    assert cli.main([*recipe, phases.format(done + 1)]) == 0
    assert [json.loads(line)["step"] for line in open(log)] == list(range(1, done + 2))


def test_a_backbone_does_not_resume_a_run_of_another_recipe(trained, tmp_path, capsys):
    output = shutil.copytree(trained / "output/tiny/pretrain_vision-smoke", tmp_path / "other")
    recipe = ["train", str(CONFIGS / "pretrain_vision.yaml"), "--smoke", f"output={output}"]
    kept = output / "checkpoints" / "step-00000006" / "weights.safetensors"
    left = kept.read_bytes()
    for other in ("optim.name=adamw", "model.vision.width=64", "optim.lr=0.5"):
        assert cli.main([*recipe, other]) == 2
        assert "another recipe" in capsys.readouterr().err
    assert cli.main(recipe) == 0
    assert "is finished after step 6: nothing was changed" in capsys.readouterr().err
    (output / "run.json").unlink()  # as it was before runs were known by their recipe
    assert cli.main([*recipe, "model.vision.width=64"]) == 2
    assert "is of another model or trains other weights" in capsys.readouterr().err
    assert kept.read_bytes() == left


@pytest.mark.parametrize("sizes", ["image_size: 100", "image_size: 224, frame: 112", "image_size: 112, frame: 450"])
def test_a_phase_that_does_not_divide_into_patches_is_refused(sizes, tmp_path, capsys):
    recipe = ["train", str(CONFIGS / "pretrain_vision.yaml"), "--smoke", f"output={tmp_path / 'none'}"]
    assert cli.main([*recipe, f"phases=[{{{sizes}, steps: 2, batch: 2}}]"]) == 2
    assert "multiples of 28" in capsys.readouterr().err


def test_make_model_runs_every_recipe():
    assert STAGES[0] == "pretrain_vision" and sorted(STAGES) == sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def test_the_tower_stays_frozen_and_the_language_model_does_not(trained):
    before = load_file(trained / "output/tiny/pretrain_vision-smoke/backbone.safetensors")
    first, *_, second, third = (
        load_file(trained / f"output/tiny/{stage}-smoke/model/model.safetensors") for stage in STAGES[1:]
    )
    tower = "trunk.blocks.0.attn.qkv.weight"
    assert first[f"vision.{tower}"].equal(before[f"tower.{tower}"].to(first[f"vision.{tower}"].dtype))
    assert third[f"vision.{tower}"].equal(first[f"vision.{tower}"])
    base = "language.model.layers.0.self_attn.q_proj.weight"
    assert not second[base].equal(first[base])
    assert third[base].equal(second[base]), "stage 3 trains the adapter, not the base"
    assert not third["projector.weight"].equal(second["projector.weight"])
    adapter = load_file(trained / "output/tiny/stage3-smoke/model/adapter/adapter_model.safetensors")
    assert any(t.abs().sum() > 0 for name, t in adapter.items() if "lora_B" in name)


def test_a_stage_knows_the_features_of_the_stage_before_where_its_tower_is_rounded(trained, tmp_path, monkeypatch):
    """On a GPU `place_on_device` rounds a frozen tower to bfloat16."""

    def rounded(model, *given):
        place_on_device(model, *given)
        model.vision.bfloat16()

    cache = shutil.copytree(trained / "output/tiny/features-smoke", tmp_path / "features")
    made = sorted(f.name for f in cache.glob("*.npy"))
    monkeypatch.setattr("minigptv2.train.loop.place_on_device", rounded)
    monkeypatch.chdir(trained)
    recipe = ["train", str(CONFIGS / "stage3.yaml"), "--smoke", f"output={tmp_path / 'stage3'}", f"cache.dir={cache}"]
    assert cli.main(recipe) == 0
    assert sorted(f.name for f in cache.glob("*.npy")) == made != []


def test_eval_writes_a_report_with_invalid_and_total(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    arguments = ["eval", str(EVAL), "model=output/tiny/stage3-smoke/model", "count=2"]
    assert cli.main(arguments) == 0
    assert "| malformed answers |" in capsys.readouterr().out
    (report,) = json.loads((trained / "output/eval/report.json").read_text())["reports"]
    rows = (trained / "output/eval/answers.jsonl").read_text().splitlines()
    assert report["total"] == len(rows) - 1 > 8
    assert 0 <= report["invalid"] <= report["total"]


def test_a_stage_without_the_one_before_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(CONFIGS / "stage2.yaml")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_every_step_has_a_source_and_none_has_the_scenes_of_the_readings():
    for stage in STAGES[1:]:
        recipe = read_recipe(CONFIGS / f"{stage}.yaml")
        begins = {0, *(s.last_step + 1 for s in recipe.data.sources if s.last_step is not None)}
        for step in begins | {recipe.max_steps - 1}:
            drawn = [s for s in recipe.data.sources if s.first_step <= step <= (s.last_step or recipe.max_steps)]
            assert drawn, f"{stage}, step {step}"
        for source in recipe.data.sources:
            assert source.options.get("seed", SEED) != SEED or source.options["first"] == NUM_HELD_OUT


def test_a_reading_counts_right_answers(trained):
    model, tokenizer = load_folder(trained / "output/tiny/stage3-smoke/model")
    encoder = PromptEncoder(tokenizer, model.config.prompt, model.image_tokens, 512)
    readings = Validator(model, encoder, count=3).evaluate()
    assert set(readings) == {"refer", "refer_to_class", "refer_to_absent", "identify", "comparison", "statement"}
    assert all(0 <= share <= 1 for share in readings.values())
    assert model.training and not model.vision.training


def test_a_prompt_that_would_not_teach_the_history_is_refused(tmp_path, tiny_folder, monkeypatch, capsys):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "prompt": "minigptv2-eval"}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(CONFIGS / "stage2.yaml"), f"init={model}"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3 and "'minigptv2-eval'" in told[0] and '"minigptv2-train"' in told[2]
