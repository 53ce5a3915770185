"""Typed configs: dataclasses filled from YAML and `a.b=c` overrides; an unknown key is an error with a suggestion."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from minigptv2.boxes import BoxRounding
from minigptv2.conversation import Prompt
from minigptv2.errors import UserError, unknown
from minigptv2.renames import path_of, present_value, rename_old_keys, tell

T = TypeVar("T")

_EXAMPLES = "minigptv2 train --help and minigptv2 eval --help say where examples are."

# ---- the model: what config.json of a saved folder holds ----


# Source: https://github.com/openai/CLIP/blob/main/clip/clip.py
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class VisionConfig:
    """The vision tower.

    timm_name: a vision transformer or a convolutional network of timm, such as eva_giant_patch14_224, built with
    `timm_options`. Empty: a timm VisionTransformer of the sizes below after a convolutional stem; one patch is then
    product(stem_strides) * stem_patch pixels wide. image_size: pixels of a side.
    image_mean, image_std: of red, green and blue, 0 to 1; pixels are normalised as (value / 255 - mean) / std. Empty:
    those that timm gives for `timm_name`, or CLIP's without one; the tower fills them in when it is built."""

    timm_name: str = ""
    timm_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 448
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    width: int = 256
    depth: int = 8
    heads: int = 4
    mlp_ratio: float = 4.0
    stem_channels: tuple[int, ...] = (192, 128, 128, 128, 256, 256, 256, 256, 256)
    stem_kernels: tuple[int, ...] = (9, 3, 3, 3, 3, 3, 3, 3, 3)
    stem_strides: tuple[int, ...] = (7, 1, 1, 2, 1, 1, 2, 1, 1)
    stem_patch: int = 1

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
    """A Llama causal language model; the names are those of transformers' LlamaConfig.

    rope_theta: base of the rotary position embedding. name: a folder or a hub's name of a Llama, Mistral or Qwen model
    to use instead, with its weights and tokenizer; it then gives the sizes. system_message: text before the first turn
    of every conversation; only the prompt chatml has one."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 7
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    name: str = ""
    system_message: str = ""


@dataclass
class LoraConfig:
    """r = 0: no adapter."""

    r: int = 0
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass
class ModelConfig:
    """merge: visual tokens that become one. prompt: a key of `conversation.PROMPT_TEMPLATES`. box_coding: how box
    numbers are rounded and decoded, one of `boxes.BOX_ROUNDINGS`; "center" for the published weights. knows: one line
    that tells a user what the weights know. base, base_mark: of a folder that holds only what was trained: where the
    rest is, and what its weights file is known by."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    merge: int = 4
    prompt: Prompt = "llama2"
    box_coding: BoxRounding = "round"
    knows: str = ""
    base: str = ""
    base_mark: str = ""


# ---- filling a dataclass ----


def from_dict(kind: type[T], data: dict[str, Any], where: str = "") -> T:
    """Fill the dataclass `kind`, nested ones too. where: the file or key, for messages.

    Raises UserError for an unknown key (with the nearest known one) and for a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'The config'} is {data!r}.", "It must be a mapping of keys.", _EXAMPLES)
    data = rename_old_keys(data, getattr(kind, "RENAMED", {}), where)
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            told, allowed = f"{path_of(where, key)} is not a known key.", f"Known here: {', '.join(known)}."
            raise unknown(told, key, known, "Remove it.", allowed)
    old_values = getattr(kind, "RENAMED_VALUES", {})
    data = {key: present_value(value, old_values.get(key, {}), path_of(where, key)) for key, value in data.items()}
    values = {key: _value(hints[key], value, path_of(where, key)) for key, value in data.items()}
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(
            f"{where or 'The config'} lacks {', '.join(missing)}.",
            f"Known keys: {', '.join(known)}.",
            "Add it.",
        )
    return kind(**values)


# ---- keys of older versions ----


def present_path(kind: Any, path: str) -> str:
    """The dotted path of an override with old keys under their present names: "lr" -> "optim.lr" of a recipe."""
    out: list[str] = []
    parts = path.split(".")
    while parts:
        part = parts.pop(0)
        present = getattr(kind, "RENAMED", {}).get(part, part)
        if present != part:
            tell(f"{part} is now called {present}.")
        for name in present.split("."):
            out.append(name)
            kind = _kind_below(kind, name)
    return ".".join(out)


def _kind_below(kind: Any, key: str) -> Any:
    """The type of what stands under this key, as far as it is known."""
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind).get(key)
    arguments = typing.get_args(kind)
    return arguments[0] if arguments and key.isdecimal() else None


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


def read_yaml(file: Path, overrides: list[str] = ()) -> dict[str, Any]:
    """The file's mapping with `a.b=c` overrides applied; each c is read as YAML."""
    import yaml

    advice = "It must be a YAML config.", _EXAMPLES
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist.", *advice) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", *advice) from None
    if not isinstance(data, dict):
        raise UserError(f"{file} holds no mapping.", *advice)
    return overridden(data, overrides)


def overridden(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The mapping itself, changed by `a.b=c` overrides; each c is read as YAML."""
    import yaml

    for override in overrides:
        path, sign, value = override.partition("=")
        if not sign or not path:
            raise UserError(f"{override!r} is no override.", "An override is key=value or a.b=c.", "Try seed=2.")
        node = data
        *parents, last = path.split(".")
        for key in parents:
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                node = node.setdefault(key, {}) if isinstance(node, dict) else None
            if not isinstance(node, (dict, list)) or (isinstance(node, list) and key == parents[-1]):
                raise UserError(
                    f"{override!r}: {key} is no mapping.",
                    "Only mappings have keys below them.",
                    "Check the path.",
                )
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = str(error).splitlines()[0]
            raise UserError(
                f"{override!r} has a value that is no YAML: {problem}.",
                "A value is a number, a text, true, [a, b] or {a: b}.",
                "Close its brackets and quotes.",
            ) from None
    return data
