"""Typed configs: dataclasses filled from YAML and `a.b=c` overrides; an unknown key is an error with a suggestion."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from minigptv2.boxes import BoxRounding
from minigptv2.conversation import Prompt
from minigptv2.errors import UserError, unknown
from minigptv2.renames import note_once, path_of, present_value, rename_old_keys

T = TypeVar("T")

_WIDTH = 100  # of a line of documentation in a printed config

_EXAMPLES = "minigptv2 train --help and minigptv2 eval --help say where examples are."

# ---- the model: what config.json of a saved folder holds ----


# Source: https://github.com/openai/CLIP/blob/main/clip/clip.py
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class VisionConfig:
    """The vision tower: a timm model by its name, or a small ViT of timm behind a convolutional stem."""

    timm_name: str = ""
    """A vision model of timm such as eva_giant_patch14_224; empty: the small ViT of the sizes below."""
    timm_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm.create_model, such as {depth: 39}."""
    image_size: int = 448
    """Side of the square image that the tower sees, in pixels."""
    image_mean: tuple[float, ...] = ()
    """Mean of red, green and blue, each 0 to 1: pixels become (value / 255 - image_mean) / image_std. Empty: what timm
    gives for timm_name, or CLIP's without one; the tower fills it in when it is built."""
    image_std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue; empty: as for image_mean."""
    width: int = 256
    """Channels of a patch."""
    depth: int = 8
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of a block."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, relative to width."""
    stem_channels: tuple[int, ...] = (192, 128, 128, 128, 256, 256, 256, 256, 256)
    """Output channels of each convolution of the stem."""
    stem_kernels: tuple[int, ...] = (9, 3, 3, 3, 3, 3, 3, 3, 3)
    """Kernel sizes of these convolutions."""
    stem_strides: tuple[int, ...] = (7, 1, 1, 2, 1, 1, 2, 1, 1)
    """Strides of these convolutions. A patch is product(stem_strides) * stem_patch pixels wide."""
    stem_patch: int = 1
    """Patch size of the ViT behind the stem, in cells of the stem's output."""

    def __post_init__(self) -> None:
        sizes = len(self.image_mean), len(self.image_std)
        if sizes not in ((0, 0), (3, 3)) or any(value <= 0 for value in self.image_std):
            raise UserError(
                f"image_mean is {list(self.image_mean)} and image_std is {list(self.image_std)}.",
                "Both have three numbers, those of image_std over 0; or both are empty.",
                "Correct them, or remove both to take those of the tower's timm model.",
            )


@dataclass
class LanguageConfig:
    """The causal language model. The sizes have the names of transformers' LlamaConfig."""

    vocab_size: int = 1024
    """Tokens of the vocabulary."""
    hidden_size: int = 256
    """Width of the model."""
    intermediate_size: int = 704
    """Width of the MLP."""
    num_hidden_layers: int = 7
    """Layers."""
    num_attention_heads: int = 4
    """Attention heads."""
    num_key_value_heads: int = 4
    """Heads of keys and values; fewer than num_attention_heads: grouped-query attention."""
    max_position_embeddings: int = 1024
    """Context length in tokens, visual tokens included."""
    rms_norm_eps: float = 1e-5
    """Epsilon of the RMS norms."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output matrix, too."""
    rope_theta: float = 10000.0
    """Base of the rotary position embeddings."""
    name: str = ""
    """A folder, or a hub name, of a Llama, Mistral or Qwen to use with its weights and tokenizer; the sizes are then
    its own."""
    system_message: str = ""
    """Text before the first turn of every conversation. Of the prompts only chatml has one."""


@dataclass
class LoraConfig:
    """The LoRA adapter of the language model."""

    r: int = 0
    """Rank; 0: no adapter."""
    alpha: int = 16
    """The adapter's output is scaled by alpha / r."""
    dropout: float = 0.05
    """Dropout of the adapter's input, in training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """The linear layers that get an adapter."""


@dataclass
class ModelConfig:
    """A model: what config.json of a model folder holds."""

    RENAMED: ClassVar[dict[str, str]] = {
        "merge": "patches_per_token",
        "box_coding": "box_rounding",
        "knows": "description",
        "base_mark": "base_fingerprint",
    }
    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {
        "prompt": {"published": "minigptv2-eval", "training": "minigptv2-train"}
    }

    vision: VisionConfig = field(default_factory=VisionConfig)
    """The vision tower."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """The language model."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The LoRA adapter of the language model."""
    patches_per_token: int = 4
    """Adjacent patches of the image that become one visual token."""
    prompt: Prompt = "llama2"
    """The text around a turn: a key of conversation.PROMPT_TEMPLATES."""
    box_rounding: BoxRounding = "round"
    """How a pixel becomes a hundredth in box text: round, floor or center (see boxes.py); center for the published
    weights."""
    description: str = ""
    """One line for users: what the model was trained on."""
    base: str = ""
    """If the folder holds only trained weights: the full model folder with the other weights. Set when it is saved."""
    base_fingerprint: str = ""
    """If the folder holds only trained weights: the hash of the weights in base. Set when it is saved."""


# ---- filling a dataclass ----


def from_dict(config_type: type[T], data: dict[str, Any], where: str = "") -> T:
    """Fill the dataclass `config_type`, nested ones too. where: the file or key, for messages.

    Raises UserError for an unknown key (with the nearest known one) and for a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'The config'} is {data!r}.", "It must be a mapping of keys.", _EXAMPLES)
    data = rename_old_keys(data, getattr(config_type, "RENAMED", {}), where)
    hints = typing.get_type_hints(config_type)
    known = [f.name for f in dataclasses.fields(config_type)]
    for key in data:
        if key not in known:
            what, allowed = f"{path_of(where, key)} is not a known key.", f"Known here: {', '.join(known)}."
            raise unknown(what, key, known, "Remove it.", allowed)
    old_values = getattr(config_type, "RENAMED_VALUES", {})
    data = {key: present_value(value, old_values.get(key, {}), path_of(where, key)) for key, value in data.items()}
    values = {key: _value(hints[key], value, path_of(where, key)) for key, value in data.items()}
    missing = [
        f.name
        for f in dataclasses.fields(config_type)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(
            f"{where or 'The config'} lacks {', '.join(missing)}.",
            f"Known keys: {', '.join(known)}.",
            "Add it.",
        )
    return config_type(**values)


# ---- keys of older versions ----


def present_keys(config_type: Any, data: Any, where: str = "") -> Any:
    """The data of a config with the keys of older versions under their present names, nested ones too."""
    if dataclasses.is_dataclass(config_type) and isinstance(data, dict):
        hints = typing.get_type_hints(config_type)
        data = rename_old_keys(data, getattr(config_type, "RENAMED", {}), where)
        return {key: present_keys(hints.get(key), value, path_of(where, key)) for key, value in data.items()}
    arguments = typing.get_args(config_type)
    if typing.get_origin(config_type) in (list, tuple) and isinstance(data, list):
        return [present_keys(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(data)]
    return data


def present_overrides(config_type: Any, overrides: Sequence[str]) -> list[str]:
    """`a.b=c` overrides with old keys under their present names: lr=1 -> optim.lr=1 of a recipe."""
    out = []
    for override in overrides:
        path, sign, value = override.partition("=")
        out.append(present_path(config_type, path) + sign + value)
    return out


def present_path(config_type: Any, path: str, quiet: bool = False) -> str:
    """A dotted path with old keys under their present names: "lr" -> "optim.lr" of a recipe.

    quiet: without a line on standard error, for what the program itself wrote.
    """
    out: list[str] = []
    for part in path.split("."):
        present = getattr(config_type, "RENAMED", {}).get(part, part)
        if present != part and not quiet:
            note_once(f"{part} is now called {present}.")
        for name in present.split("."):
            out.append(name)
            config_type = _type_below(config_type, name)
    return ".".join(out)


def _type_below(config_type: Any, key: str) -> Any:
    """The type of what stands under this key, as far as it is known."""
    if dataclasses.is_dataclass(config_type):
        return typing.get_type_hints(config_type).get(key)
    arguments = typing.get_args(config_type)
    return arguments[0] if arguments and key.isdecimal() else None


# ---- showing a config with the documentation of its fields ----


def field_docs(config_type: type) -> dict[str, str]:
    """The documentation of each field of a dataclass: the string that stands under it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config_type))).body[0].body
    out = {}
    for statement, below in pairwise(body):
        documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and documented and isinstance(below.value.value, str):
            out[statement.target.id] = " ".join(below.value.value.split())
    return out


def documented_yaml(config: Any, indent: int = 0) -> str:
    """A config dataclass as YAML that `minigptv2 train` reads again, with the documentation above each key."""
    docs, out, margin = field_docs(type(config)), [], " " * indent
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        out += [f"{margin}# {line}" for line in textwrap.wrap(docs.get(f.name, ""), _WIDTH - indent)]
        if dataclasses.is_dataclass(value):
            out += [f"{margin}{f.name}:", documented_yaml(value, indent + 2)]
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for key, doc in field_docs(type(value[0])).items():
                out += textwrap.wrap(f"{margin}#   {key}: {doc}", _WIDTH, subsequent_indent=f"{margin}#     ")
            out += [f"{margin}{f.name}:", *(f"{margin}  - {_flow(_without_defaults(item))}" for item in value)]
        else:
            out.append(f"{margin}{f.name}: {_flow(value)}")
    return "\n".join(out)


def _without_defaults(item: Any) -> dict[str, Any]:
    return {
        f.name: value
        for f in dataclasses.fields(item)
        if (value := getattr(item, f.name)) != f.default
        and not (f.default_factory is not dataclasses.MISSING and value == f.default_factory())
    }


def _flow(value: Any) -> str:
    """One line of YAML."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = UserError(
        f"{where} is {value!r}.",
        f"It must be {_described(hint)}.",
        "Correct it in the file or on the command line.",
    )
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise wrong
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise wrong
        return origin(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise wrong
        return {k: _value(args[1], v, path_of(where, k)) for k, v in value.items()} if args else value
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            raise wrong from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise wrong
    return value


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def read_yaml(file: Path, overrides: Sequence[str] = (), expected: type = dict) -> Any:
    """What a YAML file holds: a mapping, with `a.b=c` overrides applied, each c being read as YAML; or a list.

    expected: dict or list, which it must be. Raises UserError.
    """
    import yaml

    advice = "It must be a YAML config.", _EXAMPLES
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist.", *advice) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", *advice) from None
    if not isinstance(data, expected):
        raise UserError(f"{file} does not hold a {'mapping' if expected is dict else expected.__name__}.", *advice)
    return overridden(data, overrides) if overrides else data


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping itself, changed by `a.b=c` overrides; each c is read as YAML."""
    import yaml

    for override in overrides:
        path, sign, value = override.partition("=")
        if not sign or not path:
            raise UserError(f"{override!r} is not an override.", "An override is key=value or a.b=c.", "Try seed=2.")
        node = data
        *parents, last = path.split(".")
        for key in parents:
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                node = node.setdefault(key, {}) if isinstance(node, dict) else None
            if not isinstance(node, (dict, list)) or (isinstance(node, list) and key == parents[-1]):
                raise UserError(
                    f"{override!r}: {key} is not a mapping.",
                    "Only mappings have keys below them.",
                    "Check the path.",
                )
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = str(error).splitlines()[0]
            raise UserError(
                f"{override!r} has a value that is not YAML: {problem}.",
                "A value is a number, a text, true, [a, b] or {a: b}.",
                "Close its brackets and quotes.",
            ) from None
    return data
