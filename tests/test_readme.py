"""The claims of README, ARCHITECTURE and the configs: make targets, files, commands, the lines of Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minigptv2.bundled import find_recipe
from minigptv2.cli import COMMANDS, Parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    *(f"docs/{n}.md" for n in ("bundled_model", "data", "finetune", "integrations", "weights")),
)
CONFIGS = [
    file
    for folder in ("train_configs", "eval_configs")
    for file in sorted((ROOT / folder).rglob("*.y*ml"))
    if file.parent.name != "data"  # lists of sources, which configs include
]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def fenced(document: str, language: str) -> list[str]:
    """The code blocks of this language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def tree_paths(tree: str) -> list[str]:
    """The paths of a file tree in which two spaces are one level and the first word of a line is the name."""
    paths, parents = [], []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [line.split()[0]]
        paths.append("".join(parents))
    return paths


def commands() -> list[list[str]]:
    """The arguments of every `minigptv2` command in the documents' sh blocks, without redirections."""
    lines = [line for document in DOCUMENTS for block in fenced(document, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1 : w.index("<")] if "<" in w else w[1:] for w in words if w and Path(w[0]).name == "minigptv2"]


def test_make_targets_in_documents_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set()
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_paths_of_the_file_tree_exist():
    (tree,) = fenced("ARCHITECTURE.md", "text")
    paths = tree_paths(tree)
    assert len(paths) > 20
    assert [p for p in paths if not (ROOT / p).exists()] == []


def test_every_module_is_in_the_file_tree():
    (tree,) = fenced("ARCHITECTURE.md", "text")
    listed = set(tree_paths(tree))
    files = [f.relative_to(ROOT) for f in (ROOT / "minigptv2").rglob("*.py") if f.parent.name != "objects"]
    missing = [
        f.as_posix()
        for f in files
        if f.as_posix() not in listed and (f.name != "__init__.py" or f.parent.name == "minigptv2")
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_documents_lead_to_files(document):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / document).read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    folder = (ROOT / document).parent
    assert [link for link in local if not (folder / link).exists()] == []


def test_commands_of_documents_parse():
    found = commands()
    assert len(found) > 5
    for name, *rest in found:
        parser = Parser(name, COMMANDS[name].help)
        COMMANDS[name].add_arguments(parser)
        args = parser.parse_intermixed_args(rest)
        if name in ("train", "eval"):
            is_written_by_reader = args.config == "boxes.yaml"  # in docs/finetune.md
            assert is_written_by_reader or find_recipe(name, args.config).is_file(), args.config


def test_python_lines_print_the_documented_output(capsys, monkeypatch):
    (block,), (output,) = fenced("README.md", "python"), fenced("README.md", "output")
    assert len([line for line in block.splitlines() if line]) == 4
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", output)
    for actual, documented in zip(NUMBER.findall(printed), NUMBER.findall(output), strict=True):
        tolerance = 0.05 if abs(float(documented)) <= 1 else 10  # of a score; of pixels: over a hundredth of the side
        assert abs(float(actual) - float(documented)) <= tolerance


def test_make_lists_its_targets():
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make demo" in done.stdout
    assert "make test" in done.stdout


def test_configs_were_found():
    assert {file.relative_to(ROOT).parts[0] for file in CONFIGS} == {"train_configs", "eval_configs"}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_config_loads_and_its_header_has_its_command(file):
    text = file.read_text(encoding="utf-8")
    head = "\n".join(text.partition("\n\n")[0].splitlines())
    assert head.startswith("#"), "a config begins with its command, hardware, time and expected result"
    assert file.relative_to(ROOT).as_posix() in head, "the header names the command that runs the config"
    assert isinstance(yaml.safe_load(text), dict)


def test_python_m_minigptv2_runs():
    done = subprocess.run([sys.executable, "-m", "minigptv2", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("minigptv2 ")
