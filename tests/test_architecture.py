"""The code keeps to ARCHITECTURE.md: imports follow the flow, heavy libraries wait, one fact has one home."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minigptv2"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "peft",
    "PIL",
    "numpy",
    "safetensors",
    "sentencepiece",
    "yaml",
    "tqdm",
}

# room: the rooms it may import, anywhere in its code. A room is a module or folder right below the package;
# "minigptv2" is the package's own __init__.py. A new room needs a line here and one in ARCHITECTURE.md.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "renames": {"errors"},
    "bundled": {"errors", "files", "renames"},
    "devices": {"errors"},
    "boxes": {"errors"},
    "config": {"boxes", "conversation", "errors", "renames"},
    "drawing": {"boxes", "errors", "files"},
    "sample": {"boxes", "drawing", "errors", "images"},
    "tasks": {"boxes", "errors", "sample"},
    "conversation": {"errors", "sample"},
    "images": {"errors", "files", "web_image"},
    "web_image": {"errors", "files"},
    "tokenizer": {"errors"},
    "encode": {"conversation", "errors", "sample", "tokenizer"},
    "packing": {"encode"},
    "data": {"boxes", "bundled", "drawing", "errors", "files", "images", "renames", "sample", "tasks"},
    "model": {"boxes", "config", "devices", "encode", "errors", "files", "packing", "renames", "tokenizer"},
    "train": {
        "boxes",
        "bundled",
        "config",
        "conversation",
        "data",
        "devices",
        "encode",
        "errors",
        "files",
        "images",
        "model",
        "packing",
        "renames",
        "sample",
        "tasks",
        "tokenizer",
    },
    "api": {
        "boxes",
        "bundled",
        "config",
        "devices",
        "encode",
        "errors",
        "files",
        "images",
        "model",
        "packing",
        "sample",
        "tasks",
        "tokenizer",
    },
    "eval": {
        "api",
        "boxes",
        "bundled",
        "config",
        "data",
        "devices",
        "encode",
        "errors",
        "files",
        "images",
        "model",
        "packing",
        "renames",
        "sample",
        "tasks",
        "tokenizer",
    },
    "integrations": {"api", "errors", "sample", "tasks"},
    "bench": {
        "api",
        "boxes",
        "config",
        "data",
        "devices",
        "encode",
        "errors",
        "eval",
        "files",
        "images",
        "model",
        "packing",
        "sample",
        "tasks",
        "tokenizer",
        "train",
    },
    "commands": {
        "api",
        "bench",
        "boxes",
        "bundled",
        "config",
        "data",
        "devices",
        "drawing",
        "encode",
        "errors",
        "files",
        "images",
        "model",
        "packing",
        "renames",
        "sample",
        "tasks",
        "tokenizer",
        "train",
    },
    "cli": {"bundled", "commands", "config", "errors", "eval", "minigptv2", "train"},
    "__main__": {"cli"},
    "minigptv2": set(),
}
PURE = ("errors", "files", "renames", "bundled", "devices", "boxes", "config", "sample", "tasks", "conversation")

# what a string literal may hold in its home alone; `examples`: modules whose messages and help show it to a user
HOMES = (
    ("box text", r"\{\\?<", "boxes", ("tasks", "api")),
    ("phrase tags and delimiter", r"<delim>|</?p>", "boxes", ()),
    ("turn wrapper", r"\[/?INST\]|<\|im_", "conversation", ()),
    ("image wrapper", r"</?Img>", "conversation", ()),
    (
        "task tags",
        r"\[(vqa|caption|grounding|refer|identify|detection)\]",
        "tasks",
        ("commands.chat", "commands.interactive_chat", "api"),
    ),
)


def module_of(file: Path) -> str:
    """minigptv2/model/vision.py -> model.vision; the package's own __init__.py -> minigptv2."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "minigptv2"


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Full names of the modules a file imports, and whether at its top. What only type checkers read is left out."""
    package = ["minigptv2", *file.relative_to(PACKAGE).parts[:-1]]

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                source = ".".join([*base, *filter(None, [child.module])])
                for alias in child.names:
                    inner = f"{source}.{alias.name}"
                    yield (inner if is_module(inner) else source), top
            yield from visit(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    yield from visit(ast.parse(file.read_text(encoding="utf-8")), True)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def own(name: str) -> str | None:
    """minigptv2.model.vision -> model.vision; None where it is not of this package."""
    if name.split(".")[0] != "minigptv2":
        return None
    return name.removeprefix("minigptv2.")


def strings_of(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string literal that is no docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.lineno, node.value


def test_the_package_was_found():
    assert len(FILES) > 30


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_follow_the_flow(file):
    room = room_of(module_of(file))
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT and ARCHITECTURE.md what it may import"
    rooms = {room_of(name) for full, _ in imports_of(file) if (name := own(full))} - {room}
    assert rooms <= MAY_IMPORT[room]


def test_every_room_of_the_table_is_a_dag():
    """No two rooms may import each other, not even by a detour."""
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        if room not in done:
            for other in MAY_IMPORT[room]:
                visit(other, (*path, room))
            done.add(room)

    for room in MAY_IMPORT:
        visit(room, ())


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_nothing_heavy_at_their_top(module):
    assert not {name.split(".")[0] for name, top in imports_of(PACKAGE / f"{module}.py") if top} & HEAVY


def test_the_command_line_imports_nothing_heavy_before_a_command_needs_it():
    """Followed through all modules that `cli` and they import at their top."""
    files = {module_of(file): file for file in FILES}
    seen, waiting = set(), ["minigptv2", "cli"]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, top in imports_of(files[module]):
            if top:
                assert name.split(".")[0] not in HEAVY, f"{module} imports {name} at its top"
                if (inner := own(name)) is not None:
                    waiting.append(inner)
    assert {"cli", "commands.chat", "tasks", "boxes"} <= seen


@pytest.mark.parametrize(("fact", "pattern", "home", "examples"), HOMES, ids=[h[0] for h in HOMES])
def test_one_fact_has_one_home(fact, pattern, home, examples):
    found = {
        f"{module_of(file)}:{line} {text!r}"
        for file in FILES
        if module_of(file) not in (home, *examples)
        for line, text in strings_of(file)
        if re.search(pattern, text)
    }
    assert not found, f"{fact} belongs to {home}.py alone"
    assert any(re.search(pattern, text) for _, text in strings_of(PACKAGE / f"{home}.py"))


def test_no_file_is_a_drawer_for_anything():
    drawers = re.compile(r"utils?|commons?|core|helpers?|base(_.*)?|.*_base|managers?|.*_manager|misc")
    assert [str(f) for f in [*FILES, *ROOT.joinpath("tests").rglob("*.py")] if drawers.fullmatch(f.stem)] == []


def test_the_data_cards_are_no_package():
    assert (ROOT / "datasets").is_dir()
    assert not (ROOT / "datasets" / "__init__.py").exists()
