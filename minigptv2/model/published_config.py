"""The sizes of the published model, read from names and shapes of tensors and from the Llama folder's config.json.

Sizes that fit no model, and files of other models that are known to be confused with these, are refused with the likely
cause. Nothing heavy is imported here, so that the command line can show the defaults.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.boxes import BoxRounding
from minigptv2.config import LanguageConfig, LoraConfig, VisionConfig, from_dict
from minigptv2.errors import UserError
from minigptv2.files import refuse_device
from minigptv2.model.published_names import LORA

if TYPE_CHECKING:
    from minigptv2.model.weight_files import Shape, Tensors

# the defaults of load_published, convert and MiniGPTv2.from_published
PROMPT = "minigptv2-eval"
BOX_ROUNDING: BoxRounding = "center"
IMAGE_SIZE = VisionConfig.image_size  # pixels of a side
LORA_ALPHA = LoraConfig.alpha

HEAD_WIDTH = 88  # of EVA ViT-g; no tensor shows the number of heads
# the language model that the published checkpoints were trained with
WIDTH_7B = 4096
LLAMA_2_7B = LanguageConfig(32000, WIDTH_7B, 11008, 32, 32, 32, 4096, 1e-5)
ADVICE = "docs/weights.md names the files that belong together."


def vision_config(tower: Tensors, options: dict[str, int], image_size: int) -> tuple[VisionConfig, tuple[int, int]]:
    """The tower's config, and the grid (rows, columns) of the position table in the file.

    options: num_heads and depth, where given. image_size: pixels of a side. Raises UserError.
    """
    _check_options(options, image_size)
    shapes = tower.shapes
    ranks = {"pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    wrong = [name for name, rank in ranks.items() if len(shapes.get(name, ())) != rank]
    blocks = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    side = 0 if wrong else math.isqrt(max(0, shapes["pos_embed"][1] - 1))
    if wrong or shapes["pos_embed"][:2] != (1, side * side + 1):
        raise UserError(
            f"{tower.path} has no {wrong[0]} of {ranks[wrong[0]]} dimensions."
            if wrong
            else f"{tower.path} has a position table of {shapes['pos_embed'][1]} places, not a square plus one.",
            "Likely cause: this is not the EVA-CLIP ViT-g file eva_vit_g.pth.",
            ADVICE,
        )
    width, patch = shapes["pos_embed"][2], shapes["patch_embed.proj.weight"][2]
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    count = 1 + max(blocks)
    if count != len(blocks):
        raise UserError(
            f"{tower.path} has {len(blocks)} blocks, but the last one has the number {max(blocks)}.",
            "Blocks are numbered from 0. Likely cause: tensors were removed, or this is another file.",
            ADVICE,
        )
    depth = options.get("depth", 39 if (count, width) == (40, 1408) else count)
    if depth > count:
        raise UserError(f"vision depth is {depth}.", f"{tower.path} has {count} blocks.", "Give a smaller depth.")
    heads = options.get("num_heads", width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0)
    if not heads or width % heads:
        raise UserError(
            f"A tower of width {width} cannot have {heads or 'heads of width ' + str(HEAD_WIDTH)}"
            f"{' heads' if heads else ''}.",
            "No tensor shows the number of heads; the width must be a multiple of it.",
            'Give it with vision={"num_heads": n} or --vision-heads n.',
        )
    if image_size % patch:
        raise UserError(
            f"image_size is {image_size}.",
            f"It must be a multiple of the patch, {patch} pixels.",
            f"The published size is {IMAGE_SIZE}.",
        )
    ratio = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width
    sizes = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    return VisionConfig("eva_giant_patch14_224", sizes, image_size), (side, side)


def _check_options(options: Mapping[str, int], image_size: int) -> None:
    known = ("num_heads", "depth")
    for name, value in [*options.items(), ("image_size", image_size)]:
        if name not in (*known, "image_size") or isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{name} is {value!r}.",
                f"vision may hold {' and '.join(known)}; they and image_size are whole numbers.",
                'Try vision={"num_heads": 16}.',
            )


def lora_config(shapes: Mapping[str, Shape], alpha: int) -> LoraConfig:
    """The rank and the targets, from names and shapes; the published ones if there are no LoRA tensors."""
    if isinstance(alpha, bool) or not isinstance(alpha, int) or alpha < 1:
        raise UserError(
            f"lora_alpha is {alpha!r}.", "It must be a whole number of 1 or more.", f"Published: {LORA_ALPHA}."
        )
    names = [name for name in shapes if LORA.fullmatch(name)]
    ranks = [shapes[name][0] for name in names if ".lora_A" in name and shapes[name]]
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})
    return LoraConfig(max(1, ranks[0]) if ranks else 64, alpha, 0.05, tuple(targets) or LoraConfig.targets)


def patches_per_token(shapes: Mapping[str, Shape], width: int) -> int:
    """How many visual tokens the projection joins; 4, as published, if its shape does not show it (refused later)."""
    shape = shapes.get("llama_proj.weight", ())
    return shape[1] // width if len(shape) == 2 and shape[1] and shape[1] % width == 0 else 4


def language_config(file: Path, shapes: Mapping[str, Shape]) -> tuple[LanguageConfig, list[str]]:
    """The sizes of config.json, and notes about what looks doubtful. Raises UserError if the tensors have others."""
    refuse_device(file)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it is not a mapping")
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{file} cannot be read: {error}",
            "A Llama folder has a config.json.",
            "Copy the whole folder again.",
        ) from None
    rope = data.get("rope_parameters") or {}
    names = LanguageConfig.__dataclass_fields__
    given = {name: data[name] for name in names if data.get(name) is not None}
    given.setdefault("num_key_value_heads", data.get("num_attention_heads"))
    given.setdefault("rms_norm_eps", 1e-6)
    given.setdefault("rope_theta", rope.get("rope_theta", 10000.0) if isinstance(rope, dict) else 10000.0)
    missing = [
        name
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        )
        if name not in given
    ]
    if missing:
        raise UserError(
            f"{file} lacks {', '.join(missing)}.", "It must be the config of a Llama.", "Copy the folder again."
        )
    config = from_dict(LanguageConfig, given, str(file))
    if min(config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers) < 1:
        raise UserError(f"{file} holds a size below 1.", "Sizes are positive.", "Copy the folder again.")
    _refuse_other_architectures(file, data, rope, config)
    notes = _refuse_other_llamas(file, data, config)
    _refuse_other_sizes(file, config, shapes)
    return config, notes


def _refuse_other_architectures(file: Path, data: dict, rope: object, config: LanguageConfig) -> None:
    """Raise UserError for options of a transformers config that this model does not compute."""
    unsupported = {
        "model_type": data.get("model_type", "llama") != "llama",
        "hidden_act": data.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(data.get("attention_bias")),
        "mlp_bias": bool(data.get("mlp_bias")),
        "tie_word_embeddings": config.tie_word_embeddings,
        "quantization_config": data.get("quantization_config") is not None,
        "rope_scaling": data.get("rope_scaling") is not None,
        "rope_parameters": not isinstance(rope, dict) or rope.get("rope_type", "default") != "default",
        "head_dim": data.get("head_dim") not in (None, config.hidden_size // config.num_attention_heads),
    }
    wrong = [name for name, is_set in unsupported.items() if is_set]
    if wrong:
        raise UserError(
            f"{file} has {wrong[0]} = {str(data.get(wrong[0]))[:100]}.",
            "Likely cause: another language model; LLaMA-2-7b-chat does not use this.",
            ADVICE,
        )


def _refuse_other_llamas(file: Path, data: dict, config: LanguageConfig) -> list[str]:
    """Raise UserError if config.json shows another Llama than LLaMA-2-7b; less certain signs are returned as notes.

    Vicuna 1.5 and the base LLaMA-2 have the same sizes. Only the name in the file can tell them apart, and it may be
    wrong, so it gives a note.
    """
    notes = []
    name = str(data.get("_name_or_path") or "")
    if re.search(r"vicuna|alpaca", name, re.IGNORECASE):
        notes.append(f"{file} calls itself {name!r}: likely a Vicuna or Alpaca and not LLaMA-2-chat")
    elif re.search(r"llama-?2", name, re.IGNORECASE) and "chat" not in name.lower():
        notes.append(f"{file} calls itself {name!r}: likely the base LLaMA-2 and not LLaMA-2-chat")
    if config.hidden_size != WIDTH_7B:
        return notes
    sizes = (
        "vocab_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rope_theta",
    )
    other = [s for s in sizes if getattr(config, s) != getattr(LLAMA_2_7B, s)]
    is_llama_1 = config.max_position_embeddings == 2048 and config.rms_norm_eps == 1e-6
    if other:
        added = other == ["vocab_size"] and LLAMA_2_7B.vocab_size < config.vocab_size < 32100
        cause = "a Vicuna with added tokens" if added else "another Llama"
        differences = ", ".join(f"{s} {getattr(config, s)} instead of {getattr(LLAMA_2_7B, s)}" for s in other)
        raise UserError(f"{file} has {differences}.", f"Likely cause: this is {cause} and not LLaMA-2-7b-chat.", ADVICE)
    if is_llama_1:
        raise UserError(
            f"{file} has max_position_embeddings 2048 and rms_norm_eps 1e-06.",
            "Likely cause: this is LLaMA-1, or a Vicuna trained from it; LLaMA-2-7b-chat has 4096 and 1e-05.",
            "Get Llama-2-7b-chat-hf. If it is that, in an early conversion, correct the two values.",
        )
    for s in ("max_position_embeddings", "rms_norm_eps"):
        if getattr(config, s) != getattr(LLAMA_2_7B, s):
            notes.append(f"{file} has {s} {getattr(config, s)}; LLaMA-2-7b-chat has {getattr(LLAMA_2_7B, s)}")
    return notes


def _refuse_other_sizes(file: Path, config: LanguageConfig, shapes: Mapping[str, Shape]) -> None:
    """Compare config.json with the tensors of the first layer, before a model of its sizes is built."""
    layers = {int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    first = "model.layers.0."
    key_width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    expected = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "lm_head.weight": (config.vocab_size, config.hidden_size),
        f"{first}mlp.gate_proj.weight": (config.intermediate_size, config.hidden_size),
        f"{first}self_attn.k_proj.weight": (key_width, config.hidden_size),
    }
    wrong = [
        f"{k} has shape {list(shapes[k])} instead of {list(v)}"
        for k, v in expected.items()
        if k in shapes and shapes[k] != v
    ]
    if len(layers) != config.num_hidden_layers or max(layers) != len(layers) - 1:
        wrong.insert(0, f"there are {len(layers)} layers instead of {config.num_hidden_layers}")
    if wrong:
        raise UserError(
            f"The weights next to {file} do not fit it: {'; '.join(wrong[:3])}.",
            "Likely cause: files of two models, a language model with added tokens, or an incomplete copy.",
            "Copy the whole folder of one model again.",
        )
