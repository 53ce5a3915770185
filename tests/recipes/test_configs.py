"""Every file under train_configs is loaded, whatever its folder, and what it names exists."""

import inspect
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from minigptv2 import cli
from minigptv2.data.dataset import DATASETS
from minigptv2.errors import UserError
from minigptv2.train.deepspeed import read_deepspeed
from minigptv2.train.recipe import micro_batches, read_recipe

CONFIGS = Path(__file__).parents[2] / "train_configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def test_recipes_were_found():
    assert len(RECIPES) >= 10
    assert {"stage1.yaml", "tiny/stage1.yaml"} <= set(map(name_of, RECIPES))


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_a_recipe_loads_and_says_how_it_is_run(file):
    assert f"train train_configs/{name_of(file)}" in file.read_text().splitlines()[0]
    recipe = read_recipe(file)
    assert not recipe.deepspeed or read_deepspeed(recipe.deepspeed)
    smoke = read_recipe(file, smoke=True)
    assert smoke.output != recipe.output and smoke.max_steps == 2 and not smoke.deepspeed
    assert {s.name for s in smoke.data.sources} <= {"scenes", "sums"}


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_sources_and_their_options_exist(file):
    for source in read_recipe(file).data.sources:
        module, _, name = DATASETS[source.name].partition(":")
        assert set(source.options) <= set(inspect.signature(getattr(import_module(module), name)).parameters)


@pytest.mark.parametrize("file", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda f: f.stem)
def test_deepspeed_files_leave_the_rest_to_the_recipe(file):
    assert f"zero{read_deepspeed(file)['zero_optimization']['stage']}" in file.stem


def test_a_deepspeed_file_that_says_what_the_recipe_says_is_refused(tmp_path):
    (tmp_path / "own.json").write_text('{"gradient_clipping": 2, "zero_optimization": {"stage": 2}}')
    with pytest.raises(UserError, match="gradient_clipping"):
        read_deepspeed(tmp_path / "own.json")


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [
        (24, 0, 4, (6, 1)),
        (24, 6, 1, (6, 4)),
        (24, 6, 8, (3, 1)),
        (24, 5, 1, (4, 6)),
        (7, 3, 1, (1, 7)),
    ],
)
def test_a_batch_is_divided_evenly(batch, micro, processes, expected):
    recipe = read_recipe(CONFIGS / "stage3.yaml", [f"batch={batch}", f"micro_batch={micro}"])
    assert micro_batches(recipe, processes) == expected


def test_a_batch_that_does_not_divide_is_told():
    with pytest.raises(UserError, match="batch is 24, with 5 processes"):
        micro_batches(read_recipe(CONFIGS / "stage3.yaml"), 5)


def test_attention_is_supervised_in_packed_rows_alone():
    with pytest.raises(UserError, match="packed rows"):
        read_recipe(CONFIGS / "stage1.yaml", ["attention=1", "pack=false"])


def test_attention_that_is_not_supervised_is_not_guided():
    with pytest.raises(UserError, match="guided_steps is 5, and attention is 0"):
        read_recipe(CONFIGS / "stage2.yaml", ["attention=0", "guided_steps=5"])


def test_overrides_reach_into_lists_and_hold_against_smoke():
    given = ["data.sources.0.weight=7", "max_steps=5", "output=here"]
    recipe = read_recipe(CONFIGS / "stage3.yaml", given, smoke=True)
    assert (recipe.data.sources[0].weight, recipe.max_steps, recipe.output) == (7, 5, "here")
    again = asdict(read_recipe(CONFIGS / "stage3.yaml"))
    assert again["max_steps"] == 35000
    with pytest.raises(UserError, match="nine"):
        read_recipe(CONFIGS / "stage3.yaml", ["data.sources.nine.weight=1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage1", "finetune_lm"])
def test_full_size_recipes_run_anywhere_with_smoke(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(CONFIGS / f"{name}.yaml"), "--smoke"]) == 0
    assert (tmp_path / f"output/{name}-smoke/model/config.json").is_file()
