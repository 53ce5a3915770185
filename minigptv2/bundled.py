"""Files of the package: the recipes of `train` and `eval` by name, and the bundled model."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal

from minigptv2.errors import UserError
from minigptv2.files import is_dir, is_file, refuse_device, to_path
from minigptv2.renames import note_once

_PACKAGE = Path(__file__).parent
BUNDLED = _PACKAGE / "weights"
_RENAMED = {("train", "tiny/backbone"): "tiny/pretrain_vision"}  # recipes of older versions
_MIXTURES = "data"  # the folder of files that recipes include
_MODEL_NAMES = ("bundled", "minigptv2/weights")


def config_folder(command: Literal["train", "eval"]) -> Path:
    """The folder of a command's recipes: inside an installed package; next to it in a checkout."""
    inside = _PACKAGE / f"{command}_configs"
    return inside if inside.is_dir() else _PACKAGE.parent / inside.name


def list_recipes(command: Literal["train", "eval"]) -> dict[str, Path]:
    """Every recipe by its name, such as "stage3" and "tiny/stage1"."""
    folder = config_folder(command)
    files = (f for f in sorted(folder.rglob("*.yaml")) if f.parent.name != _MIXTURES)
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in files}


def find_recipe(command: Literal["train", "eval"], given: str | os.PathLike) -> Path:
    """The file of a recipe. given: a file; or a name, with or without `train_configs/` (`eval_configs/`) and `.yaml`.

    An existing file has priority. Raises UserError, with the most similar names, if there is neither.
    """
    path, known = Path(given), list_recipes(command)
    if is_file(path):
        return path
    name = path.as_posix().removeprefix(f"{command}_configs/").removesuffix(".yaml")
    if (command, name) in _RENAMED:
        note_once(f"The recipe {name} is now called {_RENAMED[command, name]}.")
        name = _RENAMED[command, name]
    if name in known:
        return known[name]
    refuse_device(path)
    if os.path.exists(path):  # a pipe; a folder, which its reader refuses
        return path
    near = difflib.get_close_matches(name, known, 3) or difflib.get_close_matches(path.stem, known, 3)
    raise UserError(
        f"{given} does not exist, and no recipe of minigptv2 {command} has this name.",
        f"Give a YAML file, or one of: {', '.join(known)}.",
        f"Did you mean {' or '.join(near)}?" if near else f"minigptv2 {command} --help says what each recipe does.",
    )


def find_mixture(given: str, recipe: Path) -> Path:
    """A file with sources that a recipe includes: `given`, below the recipe's folder, or below the bundled recipes'."""
    places = (recipe.parent / given, config_folder("train") / given, Path(given))
    found = next(filter(is_file, places), None)
    if found is None:
        raise UserError(
            f"data.include names {given}, which does not exist.",
            f"Looked for {places[0]} and {places[1]}.",
            "Correct the name in the recipe.",
        )
    return found


def find_deepspeed(given: str, recipe: Path) -> str:
    """DeepSpeed's JSON file: the first that exists of `given`, a file of its name in `deepspeed/` next to the recipe,
    and the bundled one; otherwise `given`."""
    name = Path(given).name
    places = (Path(given), recipe.parent / "deepspeed" / name, config_folder("train") / "deepspeed" / name)
    return str(next(filter(is_file, places), given))


def document(name: str, otherwise: str) -> str:
    """The path of a document of the repository in a checkout; `otherwise`, such as the address of a web page with the
    same content, if the package was installed without it. name: the path in the repository."""
    file = _PACKAGE.parent / name
    return str(file) if is_file(file) else otherwise


def model_folder(given: str | os.PathLike, what: str = "model folder") -> Path:
    """The folder of a model: `given`, or the folder of the bundled model for the name "bundled".

    An existing folder has priority. `minigptv2/weights`, the folder in a checkout, is understood from any folder. what:
    names the argument in the UserError for an invalid path.
    """
    path = to_path(given, what)
    return BUNDLED if path.as_posix() in _MODEL_NAMES and not is_dir(path) else path


def summaries(command: Literal["train", "eval"]) -> str:
    """One line for each recipe: its name, and the first sentence of the comment in its file."""
    known = list_recipes(command)
    width = max(map(len, known), default=0)
    return "\n".join(f"  {name:<{width}}  {_summary(file)}" for name, file in known.items())


def _summary(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()[2:]  # after the command and an empty comment
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment).partition(". ")[0].removesuffix(".")
