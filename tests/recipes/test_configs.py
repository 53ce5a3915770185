"""Every file under train_configs is loaded, whatever its folder, and what it names exists."""

import inspect
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from minigptv2 import cli
from minigptv2.config import ModelConfig, VisionConfig, field_docs
from minigptv2.data.dataset import DATASETS
from minigptv2.data.mixture import DataConfig
from minigptv2.errors import UserError
from minigptv2.train.deepspeed import read_deepspeed
from minigptv2.train.feature_cache import CacheConfig
from minigptv2.train.recipe import CheckpointConfig, LogConfig, OptimConfig, Recipe, micro_batches, read_recipe

CONFIGS = Path(__file__).parents[2] / "train_configs"
RECIPES = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "data")


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
    assert {s.name for s in smoke.data.sources} <= {"scenes", "arithmetic"}


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_sources_and_their_options_exist(file):
    for source in read_recipe(file).data.sources:
        module, _, name = DATASETS[source.name].partition(":")
        assert set(source.options) <= set(inspect.signature(getattr(import_module(module), name)).parameters)


@pytest.mark.parametrize("file", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda f: f.stem)
def test_deepspeed_files_leave_the_rest_to_the_recipe(file):
    assert f"zero{read_deepspeed(file)['zero_optimization']['stage']}" in file.stem


def test_deepspeed_file_with_keys_of_the_recipe_raises(tmp_path):
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
    recipe = read_recipe(
        CONFIGS / "stage3.yaml", [f"optim.global_batch_size={batch}", f"optim.micro_batch_size={micro}"]
    )
    assert micro_batches(recipe, processes) == expected


def test_indivisible_batch_size_is_reported():
    with pytest.raises(UserError, match="global_batch_size is 24, with 5 processes"):
        micro_batches(read_recipe(CONFIGS / "stage3.yaml"), 5)


def test_attention_is_supervised_in_packed_rows_alone():
    with pytest.raises(UserError, match="packed rows"):
        read_recipe(CONFIGS / "stage1.yaml", ["optim.attention_loss_weight=1", "data.pack=false"])


def test_attention_that_is_not_supervised_is_not_guided():
    with pytest.raises(UserError, match="attention_guidance_steps is 5; optim.attention_loss_weight is 0"):
        read_recipe(CONFIGS / "stage2.yaml", ["optim.attention_loss_weight=0", "optim.attention_guidance_steps=5"])


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


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_print_config_prints_a_recipe_that_reads_back(file, tmp_path, capsys):
    assert cli.main(["train", str(file), "seed=7", "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert read_recipe(tmp_path / "again.yaml") == read_recipe(file, ["seed=7"])
    for kind in (Recipe, OptimConfig, CheckpointConfig, LogConfig, DataConfig, CacheConfig, ModelConfig, VisionConfig):
        for name, doc in field_docs(kind).items():
            assert f"{name}:" in printed and doc.split()[0] in printed


def _configs_below(kind: type) -> set[type]:
    """The dataclass, and every dataclass in a field below it."""
    found = {kind}
    for hint in get_type_hints(kind).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                found |= _configs_below(part)
    return found


@pytest.mark.parametrize("kind", sorted(_configs_below(Recipe), key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_every_key_is_documented_under_its_field(kind):
    assert kind.__doc__ and set(field_docs(kind)) == {f.name for f in fields(kind)}
    assert all(doc.endswith(".") for doc in field_docs(kind).values())


def test_included_sources_stand_before_the_own_ones(tmp_path):
    (tmp_path / "mixtures").mkdir()
    (tmp_path / "mixtures/a.yaml").write_text("- {name: scenes, weight: 2}\n- {name: gqa}\n")
    (tmp_path / "r.yaml").write_text("output: o\ndata: {include: [mixtures/a.yaml], sources: [{name: vsr}]}\n")
    recipe = read_recipe(tmp_path / "r.yaml", ["data.sources.1.weight=3"])
    assert [(s.name, s.weight) for s in recipe.data.sources] == [("scenes", 2), ("gqa", 3), ("vsr", 1)]
    assert recipe.data.include == []


@pytest.mark.parametrize(
    ("include", "match"),
    [("a.yaml", "data.include is 'a.yaml'"), ("[none.yaml]", "none.yaml, which does not exist"), ("[3]", r"is \[3\]")],
)
def test_a_wrong_include_is_refused(tmp_path, include, match):
    (tmp_path / "r.yaml").write_text(f"output: o\ndata: {{include: {include}}}\n")
    with pytest.raises(UserError, match=match):
        read_recipe(tmp_path / "r.yaml")


def test_an_included_file_that_is_not_a_list_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("name: scenes\n")
    (tmp_path / "r.yaml").write_text("output: o\ndata: {include: [a.yaml]}\n")
    with pytest.raises(UserError, match=r"a.yaml does not hold a list"):
        read_recipe(tmp_path / "r.yaml")
