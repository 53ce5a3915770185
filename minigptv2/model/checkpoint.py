"""A model's folder: config.json, model.safetensors, tokenizer.model and, with LoRA, adapter/ in peft's own format.

Nothing in it is pickled. Weights are stored in 16 bits, running statistics in 32.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from minigptv2.config import ModelConfig, from_dict
from minigptv2.encode import Tokenizer
from minigptv2.errors import UserError
from minigptv2.model.grounding_vlm import GroundingVLM

WEIGHTS, CONFIG, TOKENIZER, ADAPTER = "model.safetensors", "config.json", "tokenizer.model", "adapter"
_NEW = ".new"


def save_folder(model: GroundingVLM, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the folder, whole or not at all: it is made under another name first. An older one there is replaced."""
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or not any(folder.iterdir()))):
        raise UserError(
            f"{folder} exists and is no model folder.", "A model is saved to a new folder or over an older model.",
            "Choose another name.",
        )  # fmt: skip
    new = folder.with_name(folder.name + _NEW)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    tensors = {name: _stored(name, t, dtype) for name, t in base_state(model).items()}
    save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
    (new / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    (new / TOKENIZER).write_bytes(tokenizer.model)
    if hasattr(model.language, "peft_config"):
        model.language.save_pretrained(new / ADAPTER)
        (new / ADAPTER / "README.md").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def base_state(model: GroundingVLM) -> dict[str, torch.Tensor]:
    """All tensors but the adapter's, under the names they have in a model without one."""
    state = {k: v for part in ("vision", "projector") for k, v in _named(getattr(model, part), part)}
    for name, tensor in model.decoder.state_dict().items():
        if "lora_" not in name:
            state["language." + name.replace(".base_layer.", ".")] = tensor
    return state


def _named(module: torch.nn.Module, prefix: str):
    return ((f"{prefix}.{k}", v) for k, v in module.state_dict().items())


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point() or name.endswith(("running_mean", "running_var")):
        return tensor.detach().cpu().contiguous()
    stored = tensor.detach().cpu().to(dtype).contiguous()
    if not stored.isfinite().all():
        raise UserError(f"The tensor {name} is not finite in {dtype}.", "Weights must be finite.", "Train again, more gently.")
    return stored


def load_folder(folder: Path) -> tuple[GroundingVLM, Tokenizer]:
    """Open a folder that `save_folder` wrote, in float32 on the CPU.

    Raises UserError that names the first missing, wrong-shaped, unknown or non-finite tensors, or the missing file.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}.", f"A model folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER}.",
                "Check the path; save_pretrained(folder) writes such a folder.",
            )  # fmt: skip
    try:
        config = from_dict(ModelConfig, json.loads((folder / CONFIG).read_text()), str(folder / CONFIG))
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / CONFIG} is no JSON: {error}", "It is written by save_pretrained.", "Save the model again.") from None
    lora, config.lora = config.lora, type(config.lora)()
    model = GroundingVLM(config)
    _fill(model, _read(folder / WEIGHTS), folder / WEIGHTS)
    config.lora = lora
    if lora.r:
        _open_adapter(model, folder / ADAPTER)
    return model.eval(), _open_tokenizer(folder / TOKENIZER, config)


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", "It must be a complete safetensors file.", "Copy it again.") from None


def _fill(model: GroundingVLM, found: dict[str, torch.Tensor], file: Path) -> None:
    wanted = model.state_dict()
    problems = [f"{k} is missing" for k in wanted if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in wanted]
    problems += [
        f"{k} has shape {list(found[k].shape)} instead of {list(wanted[k].shape)}"
        for k in wanted if k in found and found[k].shape != wanted[k].shape
    ]  # fmt: skip
    problems += [f"{k} holds NaN or infinity" for k, v in found.items() if v.is_floating_point() and not v.isfinite().all()]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{file} does not fit its config: {'; '.join(problems[:3])}{more}.",
            f"All {len(wanted)} tensors of the model must be there, in their shapes, finite.",
            "Check that config.json and model.safetensors belong together.",
        )  # fmt: skip
    model.load_state_dict(found)


def _open_adapter(model: GroundingVLM, folder: Path) -> None:
    import peft

    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} has no adapter_model.safetensors.", "The config asks for a LoRA adapter in peft's format.",
            "Copy the whole model folder.",
        )  # fmt: skip
    wanted = model.config.lora
    model.add_lora()
    found = _read(folder / "adapter_model.safetensors")
    needed = peft.get_peft_model_state_dict(model.language)
    wrong = [k for k in needed if k not in found or found[k].shape != needed[k].shape] + [k for k in found if k not in needed]
    if wrong:
        raise UserError(
            f"{folder} does not fit the model: {', '.join(wrong[:3])} missing, unknown or of another shape.",
            f"It must be an adapter with r = {wanted.r} on {', '.join(wanted.targets)}.", "Copy the whole model folder.",
        )  # fmt: skip
    peft.set_peft_model_state_dict(model.language, found)


def _open_tokenizer(file: Path, config: ModelConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(file)
    except RuntimeError as error:
        raise UserError(f"{file} cannot be read: {error}", "It must be a SentencePiece model.", "Copy it again.") from None
    if tokenizer.size != config.language.vocab_size:
        raise UserError(
            f"{file} has {tokenizer.size} pieces, the model {config.language.vocab_size}.", "They must be equal.",
            "Use the tokenizer that was saved with the model.",
        )  # fmt: skip
    return tokenizer
