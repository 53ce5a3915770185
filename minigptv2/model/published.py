"""The published 7B weights as one of our models: a checkpoint of projection and LoRA, the EVA file, a Llama folder.

Sizes are read from the tensors, so other files of the same layout open too. Every required tensor must be there, in its
shape and finite, and nothing is ignored but by a rule that is written here; `LoadReport` says what became of each.
Source: MiniGPT-v2 (arXiv 2310.09478) section 2; the layout of the files as its public code writes and reads them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from minigptv2.boxes import BoxRounding
from minigptv2.config import LanguageConfig, LoraConfig, ModelConfig, VisionConfig, from_dict
from minigptv2.errors import UserError
from minigptv2.files import is_file, refuse_device
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.language import merge_lora
from minigptv2.model.load_report import LoadReport, TensorSource, UnfitError
from minigptv2.model.meta_init import on_meta_device, set_tensor, unfilled_tensors
from minigptv2.model.model_folder import CONFIG, TOKENIZER, check_target, save_folder
from minigptv2.model.vision import interpolate_positions
from minigptv2.model.weight_files import Shape, Tensors, open_file, open_shards
from minigptv2.tokenizer import Tokenizer

KNOWS = "Photographs, as far as the published MiniGPT-v2 weights know them."
HEAD_WIDTH = 88  # of EVA ViT-g; no tensor tells the number of heads
Q_FORMER = 768  # what MiniGPT-4's projection takes
# what the published checkpoints were trained on, for a Llama of this width
WIDTH_7B = 4096
LLAMA_2_7B = LanguageConfig(32000, WIDTH_7B, 11008, 32, 32, 32, 4096, 1e-5)
_LORA = re.compile(r"(llama_model\.base_model\.model\.model\.layers\.\d+\.[\w.]+\.lora_[AB])(?:\.default)?(\.weight)")
_ROTARY = re.compile(r".*\.rotary_emb\.inv_freq")
_ROTARY_RULE = "*.rotary_emb.inv_freq: computed from the config"
_TAIL = re.compile(r"(norm|fc_norm|head)\..*")
_TAIL_RULE = "norm.*, fc_norm.*, head.*: the tower ends after its last block"
_LLAMA_FILES = (
    ("model.safetensors.index.json", open_shards),
    ("model.safetensors", open_file),
    ("pytorch_model.bin.index.json", open_shards),
    ("pytorch_model.bin", open_file),
)
_READ_AS: dict[BoxRounding, str] = {
    "center": "boxes are read as the middle of their hundredths (center): the weights were trained on cut numbers",
    "floor": "boxes are read as in the published code (floor): half a hundredth too far left and up on the average",
    "round": "boxes are read as rounded numbers (round), which the published weights were not trained on",
}
_ADVICE = "docs/weights.md names the files that belong together."


def load_published(
    checkpoint: Path,
    eva: Path,
    llama: Path,
    prompt: str = "published",
    vision: Mapping[str, int] | None = None,
    image_size: int = 448,
    lora_alpha: int = 16,
    dtype: torch.dtype = torch.float32,
    box_coding: BoxRounding = "center",
) -> tuple[GroundingVLM, Tokenizer, LoadReport]:
    """The model in `dtype` on the CPU (its adapter in float32), the tokenizer, and what became of each tensor.

    vision: num_heads (default: width / 88) and depth (default: all blocks, but 39 of the 40 of ViT-g). image_size:
    pixels of a side, to which the position table is interpolated. box_coding: see `boxes`. Memory: the model's, and
    one more tensor.
    Raises UserError for a file that cannot be read and UnfitError, which carries the report, for files that do not fit.
    """
    tower, trained, base = open_file(Path(eva)), open_file(Path(checkpoint), "model"), _open_llama(Path(llama))
    language, notes = _language_config(Path(llama) / CONFIG, base.shapes)
    tokenizer = _open_tokenizer(Path(llama) / TOKENIZER, language)
    fitted = fit(tower, trained, base, language, prompt, vision, image_size, lora_alpha, box_coding)
    fitted.report.notes += [*notes, _READ_AS[box_coding]]
    _fill(fitted, dtype)
    return fitted.model.eval(), tokenizer, fitted.report


@dataclass
class Part:
    """One file or folder of the three. places: name in the file -> in the model, of all tensors that fit."""

    source: TensorSource
    tensors: Tensors
    places: dict[str, str]


@dataclass
class Fitted:
    """A model without weights, and what will fill it. grid: (rows, columns) of the EVA file's position table."""

    model: GroundingVLM
    parts: list[Part]
    report: LoadReport
    grid: tuple[int, int]


def fit(
    tower: Tensors,
    trained: Tensors,
    base: Tensors,
    language: LanguageConfig,
    prompt: str = "published",
    vision: Mapping[str, int] | None = None,
    image_size: int = 448,
    lora_alpha: int = 16,
    box_coding: BoxRounding = "center",
) -> Fitted:
    """The model that these names and shapes make: no tensor is read. Raises UnfitError where they make none."""
    sizes, grid = _vision_config(tower, dict(vision or {}), image_size)
    merge = _merge(trained.shapes, sizes.timm_options["embed_dim"])
    config = ModelConfig(sizes, language, _lora_config(trained.shapes, lora_alpha), merge, prompt, box_coding, KNOWS)
    config = from_dict(ModelConfig, asdict(config))
    patches = (image_size // sizes.timm_options["patch_size"]) ** 2
    if patches % merge:
        raise UserError(
            f"image_size is {image_size}: {patches} patches, which cannot be joined by {merge}.",
            f"The projection joins {merge} neighbouring patches.",
            "The published size is 448.",
        )
    try:
        with on_meta_device():
            model = GroundingVLM(config)
    except Exception as error:  # what timm, transformers or peft say to sizes that fit nothing
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"No model has the sizes of these files: {type(error).__name__}: {said}",
            f"A tower of {sizes.timm_options}, a language model of {asdict(language)}.",
            _ADVICE,
        ) from error
    parts = [_tower_part(model, tower), _trained_part(model, trained), _base_part(model, base)]
    fitted = Fitted(model, parts, LoadReport([part.source for part in parts]), grid)
    if (new := model.vision.patches) != math.prod(grid):
        how = f"{math.prod(grid)} -> {new} places, bicubic, and the class position as it is"
        parts[0].source.resized["pos_embed"] = how
    _refuse_problems(fitted)
    return fitted


def _fill(fitted: Fitted, dtype: torch.dtype) -> None:
    model, report = fitted.model, fitted.report
    new_grid = model.vision.trunk.patch_embed.grid_size
    for part in fitted.parts:
        source = part.source
        for name, place in part.places.items():
            tensor = part.tensors[name]
            if name in source.resized:
                tensor = interpolate_positions(tensor.float(), fitted.grid, new_grid)
            copy = set_tensor(model, place, tensor, torch.float32 if "lora_" in place else dtype)
            if not tensor.is_floating_point():
                source.wrong_shape[name] = f"whole numbers ({tensor.dtype}), as quantised weights have"
                source.found -= 1
            elif not copy.isfinite().all():
                _refuse_overflow(tensor, f"{name} of {source.path}", dtype)
                source.non_finite.append(name)
                source.found -= 1
            del tensor, copy
        part.tensors.release()
    _refuse_problems(fitted)
    norm = model.vision.ln_vision
    if norm.weight.is_meta:
        set_tensor(model, "vision.ln_vision.weight", torch.ones(norm.normalized_shape), dtype)
        set_tensor(model, "vision.ln_vision.bias", torch.zeros(norm.normalized_shape), dtype)
        report.notes.append("ln_vision is not in the checkpoint: weight 1 and bias 0, as it was trained with")
    if left := unfilled_tensors(model):
        raise RuntimeError(f"Nothing was put into {left[:3]}.")


def convert(
    checkpoint: Path,
    eva: Path,
    llama: Path,
    out: Path,
    merge: bool = False,
    dtype: torch.dtype | Literal["float16", "bfloat16", "float32"] = "float16",
    **options: Any,
) -> LoadReport:
    """Write the published files as one model folder, whole or not at all, with the report in it as report.json.

    merge: fold the LoRA into the base, so that the folder needs no adapter. dtype: of what is written; the adapter is
    float32. options: of `load_published`.
    """
    dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    check_target(Path(out))
    network, tokenizer, report = load_published(checkpoint, eva, llama, dtype=dtype, **options)
    if merge:
        network.language, network.config.lora = merge_lora(network.language), LoraConfig()
        report.notes.append("the LoRA was folded into the base")
    save_folder(network, tokenizer, Path(out), dtype, report=report)
    return report


# ---- sizes ----


def _vision_config(tower: Tensors, options: dict[str, int], image_size: int) -> tuple[VisionConfig, tuple[int, int]]:
    """The tower's config, and the grid (rows, columns) of the file's position table."""
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
            else f"{tower.path} has a position table of {shapes['pos_embed'][1]} places, which are no square and one.",
            "Likely cause: this is not the EVA-CLIP ViT-g file eva_vit_g.pth.",
            _ADVICE,
        )
    width, patch = shapes["pos_embed"][2], shapes["patch_embed.proj.weight"][2]
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    count = 1 + max(blocks)
    if count != len(blocks):
        raise UserError(
            f"{tower.path} has {len(blocks)} blocks, but the last one has the number {max(blocks)}.",
            "Blocks are numbered from 0 on. Likely cause: tensors were removed, or this is another file.",
            _ADVICE,
        )
    depth = options.get("depth", 39 if (count, width) == (40, 1408) else count)
    if depth > count:
        raise UserError(f"vision depth is {depth}.", f"{tower.path} has {count} blocks.", "Give a smaller depth.")
    heads = options.get("num_heads", width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0)
    if not heads or width % heads:
        raise UserError(
            f"A tower of width {width} cannot have {heads or 'heads of width ' + str(HEAD_WIDTH)}"
            f"{' heads' if heads else ''}.",
            "No tensor tells how many heads there are; the width must divide by them.",
            'Give it with vision={"num_heads": n} or --vision-heads n.',
        )
    if image_size % patch:
        raise UserError(
            f"image_size is {image_size}.",
            f"It must be a multiple of the patch, {patch} pixels.",
            "The published size is 448.",
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


def _lora_config(shapes: Mapping[str, Shape], alpha: int) -> LoraConfig:
    """r and the targets as the names and shapes tell them; the published ones where there are no LoRA tensors."""
    if isinstance(alpha, bool) or not isinstance(alpha, int) or alpha < 1:
        raise UserError(f"lora_alpha is {alpha!r}.", "It must be a whole number of 1 or more.", "Published: 16.")
    names = [name for name in shapes if _LORA.fullmatch(name)]
    ranks = [shapes[name][0] for name in names if ".lora_A" in name and shapes[name]]
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})
    return LoraConfig(max(1, ranks[0]) if ranks else 64, alpha, 0.05, tuple(targets) or LoraConfig.targets)


def _merge(shapes: Mapping[str, Shape], width: int) -> int:
    """How many tokens the projection joins; 4 as published where its shape tells none, which is refused later."""
    taken = shapes.get("llama_proj.weight", ())
    return taken[1] // width if len(taken) == 2 and taken[1] and taken[1] % width == 0 else 4


def _open_llama(folder: Path) -> Tensors:
    for name, opener in _LLAMA_FILES:
        if is_file(folder / name):
            return opener(folder / name)
    own = any(is_file(folder / name) for name in ("params.json", "consolidated.00.pth"))
    raise UserError(
        f"{folder} holds Meta's own files." if own else f"{folder} has no weights.",
        "A Llama folder holds config.json, tokenizer.model, and model.safetensors or pytorch_model.bin, whole or in "
        "shards with their index.",
        "Get Llama-2-7b-chat-hf, the same model in that layout.",
    )


def _language_config(file: Path, shapes: Mapping[str, Shape]) -> tuple[LanguageConfig, list[str]]:
    """The sizes of config.json, held against the tensors, and what looks doubtful about it."""
    refuse_device(file)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no mapping")
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
    lacking = [
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
    if lacking:
        raise UserError(
            f"{file} lacks {', '.join(lacking)}.", "It must be the config of a Llama.", "Copy the folder again."
        )
    config = from_dict(LanguageConfig, given, str(file))
    if min(config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers) < 1:
        raise UserError(f"{file} holds a size below 1.", "Sizes are positive.", "Copy the folder again.")
    _refuse_other_kinds(file, data, rope, config)
    notes = _judge(file, data, config)
    _refuse_other_sizes(file, config, shapes)
    return config, notes


def _refuse_other_kinds(file: Path, data: dict, rope: object, config: LanguageConfig) -> None:
    """What transformers can say of a Llama and this model does not compute."""
    odd = {
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
    wrong = [name for name, is_odd in odd.items() if is_odd]
    if wrong:
        raise UserError(
            f"{file} has {wrong[0]} = {str(data.get(wrong[0]))[:100]}.",
            "Likely cause: another language model; LLaMA-2-7b-chat has nothing of the kind.",
            _ADVICE,
        )


def _judge(file: Path, data: dict, config: LanguageConfig) -> list[str]:
    """Refuse what config.json shows to be no LLaMA-2-7b; doubts that it leaves are notes.

    A Vicuna 1.5 or the LLaMA-2 that is no chat model has the same sizes: only a name can tell, and names may be wrong.
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
    first_llama = config.max_position_embeddings == 2048 and config.rms_norm_eps == 1e-6
    if other:
        added = other == ["vocab_size"] and LLAMA_2_7B.vocab_size < config.vocab_size < 32100
        cause = "a Vicuna with added tokens" if added else "another Llama"
        said = ", ".join(f"{s} {getattr(config, s)} instead of {getattr(LLAMA_2_7B, s)}" for s in other)
        raise UserError(f"{file} has {said}.", f"Likely cause: this is {cause} and not LLaMA-2-7b-chat.", _ADVICE)
    if first_llama:
        raise UserError(
            f"{file} has max_position_embeddings 2048 and rms_norm_eps 1e-06.",
            "Likely cause: this is LLaMA-1, or a Vicuna made of it; LLaMA-2-7b-chat has 4096 and 1e-05.",
            "Get Llama-2-7b-chat-hf. If it is that, in an early conversion, correct the two values.",
        )
    for s in ("max_position_embeddings", "rms_norm_eps"):
        if getattr(config, s) != getattr(LLAMA_2_7B, s):
            notes.append(f"{file} has {s} {getattr(config, s)}; LLaMA-2-7b-chat has {getattr(LLAMA_2_7B, s)}")
    return notes


def _refuse_other_sizes(file: Path, config: LanguageConfig, shapes: Mapping[str, Shape]) -> None:
    """config.json against the first tensors of each kind, before a model of its sizes is built."""
    layers = {int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    first = "model.layers.0."
    shared = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    wanted = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "lm_head.weight": (config.vocab_size, config.hidden_size),
        f"{first}mlp.gate_proj.weight": (config.intermediate_size, config.hidden_size),
        f"{first}self_attn.k_proj.weight": (shared, config.hidden_size),
    }
    wrong = [
        f"{k} has shape {list(shapes[k])} instead of {list(v)}"
        for k, v in wanted.items()
        if k in shapes and shapes[k] != v
    ]
    if len(layers) != config.num_hidden_layers or max(layers) != len(layers) - 1:
        wrong.insert(0, f"there are {len(layers)} layers instead of {config.num_hidden_layers}")
    if wrong:
        raise UserError(
            f"The weights beside {file} do not fit it: {'; '.join(wrong[:3])}.",
            "Likely cause: files of two models, a language model with added tokens, or an incomplete copy.",
            "Copy the whole folder of one model again.",
        )


def _open_tokenizer(file: Path, config: LanguageConfig) -> Tokenizer:
    refuse_device(file)
    try:
        tokenizer = Tokenizer.load(file)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{file} cannot be read: {error}",
            "A Llama folder has the SentencePiece model tokenizer.model.",
            "Copy the whole folder again.",
        ) from None
    if tokenizer.size != config.vocab_size:
        raise UserError(
            f"{file} has {tokenizer.size} pieces, its config.json says vocab_size {config.vocab_size}.",
            "Likely cause: a language model with added tokens, such as a Vicuna, or a tokenizer of another model.",
            _ADVICE,
        )
    return tokenizer


# ---- names ----


def _tower_part(model: GroundingVLM, tower: Tensors) -> Part:
    prefix, depth = "vision.trunk.", len(model.vision.trunk.blocks)
    wanted = {name: (prefix + name, tuple(t.shape)) for name, t in model.vision.trunk.state_dict().items()}
    wanted["pos_embed"] = (wanted["pos_embed"][0], tower.shapes["pos_embed"])  # resized while it is filled in

    def ignored(name: str) -> str | None:
        block = re.match(r"blocks\.(\d+)\.", name)
        if block and int(block[1]) >= depth:
            return f"blocks.{block[1]}.*: the model uses the first {depth} blocks"
        return _TAIL_RULE if _TAIL.fullmatch(name) else None

    return _compare("EVA file", tower, wanted, ignored)


def _trained_part(model: GroundingVLM, trained: Tensors) -> Part:
    wanted = {f"llama_proj.{k}": (f"projector.{k}", tuple(t.shape)) for k, t in model.projector.state_dict().items()}
    for name, tensor in model.language.state_dict().items():
        if "lora_" in name:
            wanted["llama_model." + name.replace(".default.", ".")] = (f"language.{name}", tuple(tensor.shape))
    if any(name.startswith("ln_vision.") for name in trained):
        for k, t in model.vision.ln_vision.state_dict().items():
            wanted[f"ln_vision.{k}"] = (f"vision.ln_vision.{k}", tuple(t.shape))
    part = _compare("checkpoint", trained, wanted, lambda name: None, _older_name)
    part.source.renamed = dict(part.places)
    return part


def _older_name(name: str) -> str:
    """The name that peft 0.2 gives a LoRA tensor, whichever peft wrote it."""
    found = _LORA.fullmatch(name)
    return found[1] + found[2] if found else name


def _base_part(model: GroundingVLM, base: Tensors) -> Part:
    wanted = {
        name.replace(".base_layer.", "."): (f"language.base_model.model.{name}", tuple(t.shape))
        for name, t in model.decoder.state_dict().items()
        if "lora_" not in name
    }
    return _compare("Llama folder", base, wanted, lambda name: None)


def _compare(
    role: str,
    tensors: Tensors,
    wanted: Mapping[str, tuple[str, Shape]],
    ignored: Callable[[str], str | None],
    known_as: Callable[[str], str] = str,
) -> Part:
    """What of `wanted` (name -> place in the model, shape) is in a file, and the place of each tensor that fits.

    known_as: the name in `wanted` for a name in the file. A tensor that is there twice is unknown the second time.
    """
    source, places, seen = TensorSource(role, str(tensors.path), len(wanted)), {}, set()
    for name, shape in tensors.shapes.items():
        known = known_as(name)
        if known in wanted and known not in seen:
            seen.add(known)
            place, right = wanted[known]
            if shape == right:
                places[name] = place
            else:
                source.wrong_shape[name] = f"shape {list(shape)} instead of {list(right)}"
        elif rule := _ROTARY_RULE if _ROTARY.fullmatch(name) and role != "EVA file" else ignored(name):
            source.ignored[name] = rule
        else:
            source.unknown.append(name)
    source.missing = [name for name in wanted if name not in seen]
    source.found = len(places)
    return Part(source, tensors, places)


# ---- refusals ----


def _refuse_problems(fitted: Fitted) -> None:
    tower, checkpoint, base = fitted.report.sources
    for source in (checkpoint, tower, base):
        problems = source.problems()
        if not problems:
            continue
        if source.non_finite:
            cause = "a damaged file, or a training that diverged"
        elif source is checkpoint:
            shapes, sizes = fitted.parts[1].tensors.shapes, fitted.model.config
            cause = _cause(checkpoint, shapes, fitted.model.vision.width, sizes.language.hidden_size)
        elif source is tower:
            cause = "this is not the EVA-CLIP ViT-g file eva_vit_g.pth"
        else:
            cause = "an incomplete copy, or another model than its config.json says"
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UnfitError(
            f"{source.path} does not fit: {'; '.join(problems[:3])}{more}.",
            f"Likely cause: {cause}.",
            _ADVICE,
            fitted.report,
        )


def _cause(source: TensorSource, shapes: Mapping[str, Shape], width: int, hidden: int) -> str:
    """Why a checkpoint does not fit, as far as its names and shapes tell."""
    projection = shapes.get("llama_proj.weight", ())
    adapter = [name for name in shapes if _LORA.fullmatch(name)]
    if len(projection) != 2:
        return "this is no checkpoint of MiniGPT-v2, which has a llama_proj"
    if projection[1] == Q_FORMER != width:
        return f"a checkpoint of MiniGPT-4, whose llama_proj takes the {Q_FORMER} numbers of a Q-Former"
    if projection[1] % width:
        return f"llama_proj takes {projection[1]} numbers, no multiple of the EVA file's {width}: another tower"
    if not adapter:
        return "a checkpoint of MiniGPT-4 or of a stage that trained the projection alone: it has no LoRA"
    wide = {shapes[name][1] for name in adapter if ".lora_A" in name and len(shapes[name]) == 2}
    if projection[0] != hidden or wide - {hidden}:
        made_for = projection[0] if projection[0] != hidden else max(wide - {hidden})
        size = " (13B)" if 5120 in (made_for, hidden) else ""
        return f"it was trained with another Llama: made for width {made_for}, the folder's is {hidden}{size}"
    if source.wrong_shape or any(_LORA.fullmatch(name) for name in source.unknown):
        return "it was trained with another Llama, or its LoRA has several ranks"
    return "it was made by changed code, or tensors were removed from it"


def _refuse_overflow(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    if tensor.isfinite().all():
        raise UserError(
            f"{name} holds numbers that are too large for {dtype}.",
            "bfloat16 and float32 hold larger ones.",
            "Open or convert it with dtype bfloat16.",
        )
