"""A model's folder: config.json, model.safetensors, tokenizer.model and, with LoRA, adapter/ in peft's own format.

Nothing in it is pickled. Weights are stored in 16 bits, running statistics in 32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from minigptv2.config import ModelConfig, from_dict
from minigptv2.encode import Tokenizer
from minigptv2.errors import UserError
from minigptv2.model.grounding_vlm import GroundingVLM

WEIGHTS, CONFIG, TOKENIZER, ADAPTER = "model.safetensors", "config.json", "tokenizer.model", "adapter"
_NEW, _OLD = ".new", ".old"


def save_folder(model: GroundingVLM, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the folder, whole or not at all: it is made under another name first. An older one there is replaced.

    Raises UserError where the folder cannot be written; an older model is then still there.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or not any(folder.iterdir()))):
        raise UserError(
            f"{folder} exists and is no model folder.", "A model is saved to a new folder or over an older model.",
            "Choose another name.",
        )  # fmt: skip
    new, old = folder.with_name(folder.name + _NEW), folder.with_name(folder.name + _OLD)
    try:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        _write(model, tokenizer, new, dtype)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error}", "A model needs a writable folder and room on the disk.",
            "Make room, or choose another place.",
        ) from error  # fmt: skip
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(model: GroundingVLM, tokenizer: Tokenizer, new: Path, dtype: torch.dtype) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    new.mkdir(parents=True)
    tensors = {name: _stored(name, t, dtype) for name, t in base_state(model).items()}
    if model.config.language.tie_word_embeddings:  # one tensor under two names, which safetensors refuses
        tensors["language.lm_head.weight"] = tensors["language.lm_head.weight"].clone()
    try:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(str(error)) from error
    (new / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    (new / TOKENIZER).write_bytes(tokenizer.model)
    if hasattr(model.language, "peft_config"):
        model.language.save_pretrained(new / ADAPTER)
        (new / ADAPTER / "README.md").unlink(missing_ok=True)


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
        raise UserError(
            f"The tensor {name} is not finite in {dtype}.", "Weights must be finite.", "Train again, more gently.",
        )  # fmt: skip
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
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # ValueError: no UTF-8, no JSON, an endless number
        raise UserError(
            f"{folder / CONFIG} is no JSON: {error}", "It is written by save_pretrained.", "Save the model again.",
        ) from None  # fmt: skip
    config = from_dict(ModelConfig, data, str(folder / CONFIG))
    tokenizer = _open_tokenizer(folder / TOKENIZER, config)
    lora, config.lora = config.lora, type(config.lora)()
    with _names(folder / CONFIG):
        model = GroundingVLM(config)
    _fill(model, _read(folder / WEIGHTS), folder / WEIGHTS)
    config.lora = lora
    if lora.r:
        with _names(folder / CONFIG):
            model.add_lora()
        _fill_adapter(model, folder / ADAPTER)
    return model.eval(), tokenizer


@contextmanager
def _names(file: Path) -> Iterator[None]:
    """What torch, timm, transformers or peft say to sizes and names that fit nothing, as an error about the file."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"No model can be built from {file}: {type(error).__name__}: {said}",
            "Its sizes and names must be those that the model was saved with.", "Copy the whole model folder again.",
        ) from error  # fmt: skip


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", "It must be a complete safetensors file.", "Copy it again.",
        ) from None  # fmt: skip


def _fill(model: GroundingVLM, found: dict[str, torch.Tensor], file: Path) -> None:
    wanted = model.state_dict()
    problems = [f"{k} is missing" for k in wanted if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in wanted]
    problems += [
        f"{k} has shape {list(found[k].shape)} instead of {list(wanted[k].shape)}"
        for k in wanted if k in found and found[k].shape != wanted[k].shape
    ]  # fmt: skip
    problems += [f"{k} holds NaN or infinity" for k, v in found.items() if not _finite(v)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{file} does not fit its config: {'; '.join(problems[:3])}{more}.",
            f"All {len(wanted)} tensors of the model must be there, in their shapes, finite.",
            "Check that config.json and model.safetensors belong together.",
        )  # fmt: skip
    model.load_state_dict(found)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _fill_adapter(model: GroundingVLM, folder: Path) -> None:
    import peft

    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} has no adapter_model.safetensors.", "The config asks for a LoRA adapter in peft's format.",
            "Copy the whole model folder.",
        )  # fmt: skip
    wanted = model.config.lora
    found = _read(folder / "adapter_model.safetensors")
    needed = peft.get_peft_model_state_dict(model.language)
    wrong = [k for k in needed if k not in found or found[k].shape != needed[k].shape or not _finite(found[k])]
    wrong += [k for k in found if k not in needed]
    if wrong:
        raise UserError(
            f"{folder} does not fit the model: {', '.join(wrong[:3])} missing, unknown, not finite or misshapen.",
            f"It must be an adapter with r = {wanted.r} on {', '.join(wanted.targets)}.",
            "Copy the whole model folder.",
        )  # fmt: skip
    peft.set_peft_model_state_dict(model.language, found)


def _open_tokenizer(file: Path, config: ModelConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(file)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", "It must be a SentencePiece model with <s> and </s>.", "Copy it again.",
        ) from None  # fmt: skip
    if tokenizer.size != config.language.vocab_size:
        raise UserError(
            f"{file} has {tokenizer.size} pieces, the model {config.language.vocab_size}.", "They must be equal.",
            "Use the tokenizer that was saved with the model.",
        )  # fmt: skip
    return tokenizer
