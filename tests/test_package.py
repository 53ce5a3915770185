"""The installed package is complete and works from any folder: recipes by name, the bundled model."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from minigptv2 import __version__, bundled, cli
from minigptv2.bench import eval as speed
from minigptv2.bench import train as bench
from minigptv2.bundled import BUNDLED, find_deepspeed, find_recipe, list_recipes, model_folder
from minigptv2.data.dataset import open_dataset
from minigptv2.errors import UserError
from minigptv2.model.model_folder import load_folder
from minigptv2.train.recipe import read_recipe

ROOT = Path(__file__).parents[1]
IN_THE_SOURCES = (  # of the repository; everything else is not included
    "LICENSE",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "MANIFEST.in",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
    "minigptv2",
    "train_configs",
    "eval_configs",
    "datasets",
    "docs",
    "tests",
)
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(what: str, source: Path, target: Path) -> Path:
    """The sdist or wheel of a folder, without a network or an environment of its own."""
    done = subprocess.run([sys.executable, "-c", BUILD, what, target], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The unpacked source distribution."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sdist")
    for name in IN_THE_SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "all" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "all").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "all")
    shutil.unpack_archive(build("sdist", folder / "all", folder), folder, "gztar")
    (unpacked,) = folder.glob("minigptv2-*/")
    return unpacked


@pytest.fixture(scope="module")
def installed(sources, tmp_path_factory) -> Path:
    """The files of the wheel that was built from the source distribution, in a folder for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", sources, folder)) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "minigptv2", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )


def files_of(folder: Path) -> set[str]:
    files = (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc")
    return {f.relative_to(folder).as_posix() for f in files}


def test_source_distribution_contains_everything_to_build_and_test(sources):
    for name in IN_THE_SOURCES:
        there = sources / name
        assert there.exists(), name
        if there.is_dir():
            assert files_of(there) == files_of(ROOT / name), name


def test_wheel_contains_only_the_package_and_its_recipes(installed):
    expected = files_of(ROOT / "minigptv2")
    assert {"weights/adapter/adapter_model.safetensors", "weights/tokenizer.model", "examples/park.png"} <= expected
    for folder in ("train_configs", "eval_configs"):
        expected |= {f"{folder}/{name}" for name in files_of(ROOT / folder)}
    assert files_of(installed / "minigptv2") == expected
    assert {f.name for f in installed.iterdir()} == {"minigptv2", f"minigptv2-{__version__}.dist-info"}


def test_the_metadata_is_complete(installed):
    folder = installed / f"minigptv2-{__version__}.dist-info"
    metadata = message_from_bytes((folder / "METADATA").read_bytes())
    assert metadata["Version"] == __version__ and metadata["Requires-Python"] == ">=3.10"
    assert (
        metadata["License-Expression"] == "BSD-3-Clause"
        and metadata["Author"]
        and metadata["Keywords"]
        and metadata["Project-URL"]
    )
    assert metadata["Description-Content-Type"] == "text/markdown" and "# MiniGPT-v2" in metadata.get_payload()
    assert len(metadata.get_all("Classifier")) > 5
    assert {"train", "eval", "quantize", "parquet", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert (folder / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "minigptv2 = minigptv2.cli:main" in (folder / "entry_points.txt").read_text()


@pytest.mark.slow
def test_the_installed_command_works_from_another_folder(installed, tmp_path):
    assert run(installed, tmp_path, "--version").stdout == f"minigptv2 {__version__}\n"
    trained = run(installed, tmp_path, "train", "stage3", "--smoke", "device=cpu")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "output/stage3-smoke/model/config.json").is_file()
    measured = run(
        installed,
        tmp_path,
        "eval",
        "eval_configs/scenes.yaml",
        "--smoke",
        "count=1",
        "device=cpu",
        "model=output/stage3-smoke/model",
    )
    assert measured.returncode == 0, measured.stderr
    assert (tmp_path / "output/eval/report.json").is_file()
    shown = run(installed, tmp_path, "train", "--help").stdout
    assert f"{installed}/minigptv2/train_configs" in shown and "tiny/stage1 " in shown


@pytest.mark.parametrize("command", ["train", "eval"])
def test_every_recipe_is_found_by_its_name_and_its_path(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = ROOT / f"{command}_configs"
    files = sorted(file for file in folder.rglob("*.yaml") if file.parent.name != "data")
    assert sorted(list_recipes(command).values()) == files
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        name = file.relative_to(folder).as_posix().removesuffix(".yaml")
        for given in (name, f"{name}.yaml", path, path.removesuffix(".yaml"), f"./{path}", Path(path), file):
            assert find_recipe(command, given) == file


def test_existing_file_is_preferred_to_a_recipe_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage1").mkdir()
    assert find_recipe("train", "stage1") == ROOT / "train_configs/stage1.yaml"
    (tmp_path / "stage3.yaml").write_text("output: here\n")
    assert read_recipe("stage3.yaml").output == "here"
    assert read_recipe("stage3").output == "output/stage3"


def test_a_recipe_may_come_through_a_pipe():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        file.write("output: here\n")
    assert read_recipe(f"/dev/fd/{reading}").output == "here"
    os.close(reading)


@pytest.mark.parametrize(
    ("command", "given", "near"),
    [
        ("train", "stge3", "stage3"),
        ("train", "train_configs/stage4.yaml", "stage3"),
        ("train", "pretrain_vision", "tiny/pretrain_vision"),
        ("train", "/nowhere/stage2.yml", "stage2"),
        ("eval", "refcocog", "refcoco"),
        ("eval", "Scenes", "scenes"),
        ("train", "x" * 5000, "train --help"),
        ("eval", "../eval_configs", "eval --help"),
    ],
)
def test_unknown_recipe_name_suggests_the_nearest(command, given, near, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "does not exist, and no recipe" in lines[0]
    assert all(name in lines[1] for name in list_recipes(command))
    assert near in lines[2]


def test_help_lists_every_recipe(capsys):
    for command in ("train", "eval"):
        assert cli.main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in list_recipes(command))


@pytest.mark.parametrize("given", ["zero2.json", "train_configs/deepspeed/zero2.json"])
@pytest.mark.parametrize("recipe", ["stage2", "tiny/stage3", "own.yaml"])
def test_bundled_deepspeed_files_are_found_from_any_recipe(recipe, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("output: here\n")
    expected = ROOT / "train_configs/deepspeed/zero2.json"
    assert Path(read_recipe(recipe, [f"deepspeed={given}"]).deepspeed) == expected
    (tmp_path / "zero2.json").write_text("{}")
    assert find_deepspeed("zero2.json", expected) == "zero2.json"


def test_bundled_is_a_name_of_the_bundled_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_folder("bundled") == model_folder("minigptv2/weights") == BUNDLED
    assert model_folder("other") == Path("other")
    (tmp_path / "bundled").mkdir()
    assert model_folder("bundled") == Path("bundled")
    with pytest.raises(UserError, match="has no config.json"):
        load_folder(model_folder("bundled"))


@pytest.mark.slow
def test_commands_accept_bundled_as_a_model_name(tmp_path, monkeypatch, capsys, image):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(
        "output: own\ninit: bundled\ntrained: [projector, lora]\nsave: small\ndevice: cpu\nmax_steps: 1\nbatch: 1\n"
        "data: {sources: [{name: scenes, options: {count: 2, exchanges: 1}}]}\nworkers: 0\ntensorboard: false\n"
    )
    assert cli.main(["train", "own.yaml"]) == 0
    words = ["chat", str(image), "[caption]", "--device", "cpu", "--max-new-tokens", "4"]
    assert cli.main([*words, "--model", "own/model", "--base", "bundled"]) == 0
    assert cli.main(["info", "bundled"]) == 0
    assert cli.main(["eval", "scenes", "model=bundled", "count=1", "limit=2", "device=cpu"]) == 0
    monkeypatch.setattr(speed, "EXPRESSIONS", {2: 1})
    measure = ["--device", "cpu", "--images", "1"]
    assert cli.main(["bench", "eval", "--model", "own/model", "--base", "bundled", *measure]) == 0
    assert bench._open(Path("own/model"), base=model_folder("bundled"))


@pytest.mark.parametrize(
    ("name", "options", "card"),
    [
        ("refcoco", {"root": "nowhere"}, "refcoco"),
        ("refcoco", {"root": "."}, "refcoco"),
        ("vsr", {"root": "."}, "vsr"),
        ("visual_genome", {"root": "."}, "visual_genome"),
        ("flickr30k", {"root": "."}, "flickr30k"),
    ],
)
def test_errors_name_a_document_only_if_it_exists(name, options, card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(ROOT / "datasets" / f"{card}.md"))):
        open_dataset(name, options)
    monkeypatch.setattr(bundled, "_PACKAGE", tmp_path / "minigptv2")  # as where it was installed
    with pytest.raises(UserError, match="https://") as error:
        open_dataset(name, options)
    assert "datasets/" not in error.value.advice
