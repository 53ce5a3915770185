"""The published 7B weights as one of our models: a checkpoint of projection and LoRA, the EVA file, a Llama folder.

Sizes are read from the tensors, so other files of the same layout open as well (`published_config`). Every required
tensor must be there, with its shape and finite; a tensor is ignored only by a rule (`published_names`). `LoadReport`
lists what was done with each one. A file of weights never runs code.
Source: MiniGPT-v2 (arXiv 2310.09478) section 2; the layout of the files as its public code writes and reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minigptv2.boxes import BoxRounding
from minigptv2.config import LanguageConfig, LoraConfig, ModelConfig, from_dict
from minigptv2.devices import Dtype
from minigptv2.errors import UserError
from minigptv2.files import is_file
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.language import merge_lora
from minigptv2.model.load_report import LoadReport, TensorSource, UnfitError
from minigptv2.model.meta_init import on_meta_device, set_tensor, unfilled_tensors
from minigptv2.model.model_folder import CONFIG, check_target, open_tokenizer, save_folder
from minigptv2.model.published_config import (
    ADVICE,
    BOX_ROUNDING,
    IMAGE_SIZE,
    LORA_ALPHA,
    PROMPT,
    language_config,
    lora_config,
    patches_per_token,
    vision_config,
)
from minigptv2.model.published_names import LORA, Part, checkpoint_part, llama_part, tower_part
from minigptv2.model.vision import interpolate_positions
from minigptv2.model.weight_files import Shape, Tensors, open_file, open_shards
from minigptv2.tokenizer import HFTokenizer, Tokenizer

DESCRIPTION = "Photographs, as far as the published MiniGPT-v2 weights know them."
Q_FORMER = 768  # the input width of MiniGPT-4's projection
_LLAMA_FILES = (
    ("model.safetensors.index.json", open_shards),
    ("model.safetensors", open_file),
    ("pytorch_model.bin.index.json", open_shards),
    ("pytorch_model.bin", open_file),
)
_ROUNDING_NOTES: dict[BoxRounding, str] = {
    "center": "boxes are read as the middle of their hundredths (center): training rounded numbers down",
    "floor": "boxes are read as in the published code (floor): half a hundredth too far left and up on the average",
    "round": "boxes are read as rounded numbers (round), which the published weights were not trained on",
}


def load_published(
    checkpoint: Path,
    eva: Path,
    llama: Path,
    prompt: str = PROMPT,
    vision: Mapping[str, int] | None = None,
    image_size: int = IMAGE_SIZE,
    lora_alpha: int = LORA_ALPHA,
    dtype: torch.dtype = torch.float32,
    box_rounding: BoxRounding = BOX_ROUNDING,
) -> tuple[GroundingVLM, Tokenizer | HFTokenizer, LoadReport]:
    """The model in `dtype` on the CPU (its adapter in float32), the tokenizer, and a report of each tensor.

    checkpoint: the projection and the LoRA. eva: the vision tower. llama: the folder of the language model.
    vision: num_heads (default: width / 88) and depth (default: all blocks, but 39 of the 40 of ViT-g). image_size:
    pixels of a side; the position embeddings are interpolated to it. box_rounding: see `boxes`. Needs the memory of the
    model and of one more tensor.
    Raises UserError for a file that cannot be read, and UnfitError, which carries the report, for files that do not
    fit.
    """
    tower, trained, base = open_file(Path(eva)), open_file(Path(checkpoint), "model"), _open_llama(Path(llama))
    language, notes = language_config(Path(llama) / CONFIG, base.shapes)
    tokenizer = open_tokenizer(Path(llama), language)
    fitted = fit(tower, trained, base, language, prompt, vision, image_size, lora_alpha, box_rounding)
    fitted.report.notes += [*notes, _ROUNDING_NOTES[box_rounding]]
    _fill(fitted, dtype)
    return fitted.model.eval(), tokenizer, fitted.report


@dataclass
class Fitted:
    """A model without weights, and the tensors for it. grid: (rows, columns) of the EVA file's positions."""

    model: GroundingVLM
    parts: list[Part]
    report: LoadReport
    grid: tuple[int, int]


def fit(
    tower: Tensors,
    trained: Tensors,
    base: Tensors,
    language: LanguageConfig,
    prompt: str = PROMPT,
    vision: Mapping[str, int] | None = None,
    image_size: int = IMAGE_SIZE,
    lora_alpha: int = LORA_ALPHA,
    box_rounding: BoxRounding = BOX_ROUNDING,
) -> Fitted:
    """Build the model of these names and shapes, without reading a tensor. Raises UnfitError if they do not fit."""
    sizes, grid = vision_config(tower, dict(vision or {}), image_size)
    joined = patches_per_token(trained.shapes, sizes.timm_options["embed_dim"])
    lora = lora_config(trained.shapes, lora_alpha)
    config = ModelConfig(sizes, language, lora, joined, prompt, box_rounding, DESCRIPTION)
    config = from_dict(ModelConfig, asdict(config))
    patches = (image_size // sizes.timm_options["patch_size"]) ** 2
    if patches % joined:
        raise UserError(
            f"image_size is {image_size}: {patches} patches, which cannot be joined by {joined}.",
            f"The projection joins {joined} neighbouring patches.",
            f"The published size is {IMAGE_SIZE}.",
        )
    try:
        with on_meta_device():
            model = GroundingVLM(config)
    except Exception as error:  # timm, transformers and peft raise many kinds for sizes that do not fit
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"No model has the sizes of these files: {type(error).__name__}: {reason}",
            f"A tower of {sizes.timm_options}, a language model of {asdict(language)}.",
            ADVICE,
        ) from error
    parts = [tower_part(model, tower), checkpoint_part(model, trained), llama_part(model, base)]
    fitted = Fitted(model, parts, LoadReport([part.source for part in parts]), grid)
    if (new := model.vision.patches) != math.prod(grid):
        change = f"{math.prod(grid)} -> {new} positions, bicubic; that of the class token is unchanged"
        parts[0].source.resized["pos_embed"] = change
    _refuse_problems(fitted)
    return fitted


def _fill(fitted: Fitted, dtype: torch.dtype) -> None:
    model, report = fitted.model, fitted.report
    new_grid = model.vision.trunk.patch_embed.grid_size
    for part in fitted.parts:
        source = part.source
        for name, target in part.targets.items():
            tensor = part.tensors[name]
            if name in source.resized:
                tensor = interpolate_positions(tensor.float(), fitted.grid, new_grid)
            copy = set_tensor(model, target, tensor, torch.float32 if "lora_" in target else dtype)
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
        raise RuntimeError(f"{left[:3]} have no values.")


def convert(
    checkpoint: Path,
    eva: Path,
    llama: Path,
    out: Path,
    merge: bool = False,
    dtype: torch.dtype | Dtype = "float16",
    **options: Any,
) -> LoadReport:
    """Convert the published files to one model folder, written atomically, with the report in it as report.json.

    merge: fold the LoRA into the base, so that the folder needs no adapter. dtype: of the stored weights; the adapter
    is float32. options: of `load_published`.
    """
    dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    check_target(Path(out))
    network, tokenizer, report = load_published(checkpoint, eva, llama, dtype=dtype, **options)
    if merge:
        network.language, network.config.lora = merge_lora(network.language), LoraConfig()
        report.notes.append("the LoRA was folded into the base")
    save_folder(network, tokenizer, Path(out), dtype, report=report)
    return report


def _open_llama(folder: Path) -> Tensors:
    for name, opener in _LLAMA_FILES:
        if is_file(folder / name):
            return opener(folder / name)
    metas = any(is_file(folder / name) for name in ("params.json", "consolidated.00.pth"))
    raise UserError(
        f"{folder} holds Meta's own files." if metas else f"{folder} has no weights.",
        "A Llama folder holds config.json, tokenizer.model, and model.safetensors or pytorch_model.bin, in one file or "
        "in shards with their index.",
        "Get Llama-2-7b-chat-hf, the same model in that layout.",
    )


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
            ADVICE,
            fitted.report,
        )


def _cause(source: TensorSource, shapes: Mapping[str, Shape], width: int, hidden: int) -> str:
    """Why a checkpoint does not fit, as far as its names and shapes show."""
    projection = shapes.get("llama_proj.weight", ())
    adapter = [name for name in shapes if LORA.fullmatch(name)]
    if len(projection) != 2:
        return "this is not a checkpoint of MiniGPT-v2, which has a llama_proj"
    if projection[1] == Q_FORMER != width:
        return f"a checkpoint of MiniGPT-4, whose llama_proj takes the {Q_FORMER} numbers of a Q-Former"
    if projection[1] % width:
        return f"llama_proj takes {projection[1]} numbers, not a multiple of the EVA file's {width}: another tower"
    if not adapter:
        return "a checkpoint of MiniGPT-4 or of a stage that trained the projection alone: it has no LoRA"
    widths = {shapes[name][1] for name in adapter if ".lora_A" in name and len(shapes[name]) == 2}
    if projection[0] != hidden or widths - {hidden}:
        made_for = projection[0] if projection[0] != hidden else max(widths - {hidden})
        size = " (13B)" if 5120 in (made_for, hidden) else ""
        return f"it was trained with another Llama: made for width {made_for}, the folder's is {hidden}{size}"
    if source.wrong_shape or any(LORA.fullmatch(name) for name in source.unknown):
        return "it was trained with another Llama, or its LoRA has several ranks"
    return "it was written by modified code, or tensors were removed from it"


def _refuse_overflow(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    if tensor.isfinite().all():
        raise UserError(
            f"{name} holds numbers that are too large for {dtype}.",
            "bfloat16 and float32 hold larger ones.",
            "Open or convert it with dtype bfloat16.",
        )
