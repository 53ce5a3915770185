"""A model's folder: config.json, model.safetensors, tokenizer.model and, with LoRA, adapter/ in peft's own format.

A large model is stored in several files that model.safetensors.index.json names. Nothing is pickled. Weights are stored
in 16 bits, running statistics in 32. Opening takes the memory of the model in the number format asked for, and one
tensor more.
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
from minigptv2.model.report import LoadReport
from minigptv2.model.skeleton import empty_places, put, without_weights
from minigptv2.model.tensors import Tensors, open_file, open_shards

WEIGHTS, CONFIG, TOKENIZER, ADAPTER = "model.safetensors", "config.json", "tokenizer.model", "adapter"
INDEX, REPORT = "model.safetensors.index.json", "report.json"
SHARD = 2 * 10**9  # bytes
_NEW, _OLD = ".new", ".old"


def save_folder(
    model: GroundingVLM, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float16,
    max_shard: int = SHARD, report: LoadReport | None = None,
) -> None:  # fmt: skip
    """Write the folder, whole or not at all: it is made under another name first. An older one there is replaced.

    max_shard: bytes; a larger model is stored in several files. report: what its loader did, stored as report.json.
    Raises UserError where the folder cannot be written; an older model is then still there.
    """
    from safetensors import SafetensorError

    folder = Path(folder).resolve()
    check_target(folder)
    new, old = folder.with_name(folder.name + _NEW), folder.with_name(folder.name + _OLD)
    try:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        _write(model, tokenizer, new, dtype, max_shard)
        if report is not None:
            (new / REPORT).write_text(report.to_json())
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except (OSError, SafetensorError) as error:  # a full disk is either, whoever writes
        raise UserError(
            f"{folder} cannot be written: {error}", "A model needs a writable folder and room on the disk.",
            "Make room, or choose another place.",
        ) from error  # fmt: skip
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise UserError where `save_folder` would refuse the folder, before any work is done."""
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or not any(folder.iterdir()))):
        raise UserError(
            f"{folder} exists and is no model folder.", "A model is saved to a new folder or over an older model.",
            "Choose another name.",
        )  # fmt: skip


def _write(model: GroundingVLM, tokenizer: Tokenizer, new: Path, dtype: torch.dtype, max_shard: int) -> None:
    from safetensors.torch import save_file

    new.mkdir(parents=True)
    tensors = base_state(model)
    shards = _shards(tensors, dtype, max_shard)
    for file, names in shards.items():
        stored = {name: _stored(name, tensors[name], dtype) for name in names}
        if model.config.language.tie_word_embeddings and HEAD in stored:
            stored[HEAD] = stored[HEAD].clone()  # one tensor under two names, which safetensors refuses
        save_file(stored, new / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(name, t, dtype) for name, t in tensors.items())},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (new / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    (new / TOKENIZER).write_bytes(tokenizer.model)
    if hasattr(model.language, "peft_config"):
        model.language.save_pretrained(new / ADAPTER)
        (new / ADAPTER / "README.md").unlink(missing_ok=True)


HEAD = "language.lm_head.weight"


def _shards(tensors: dict[str, torch.Tensor], dtype: torch.dtype, most: int) -> dict[str, list[str]]:
    """File name -> names of its tensors, in order; no file is larger than `most` bytes unless one tensor is."""
    shards, room = [[]], most
    for name, tensor in tensors.items():
        size = _bytes(name, tensor, dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    stem, suffix = WEIGHTS.split(".")
    return {f"{stem}-{i:05}-of-{len(shards):05}.{suffix}": names for i, names in enumerate(shards, 1)}


def _bytes(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (tensor.dtype if _kept(name, tensor) else dtype).itemsize


def _kept(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is stored in its own number format."""
    return not tensor.is_floating_point() or name.endswith(("running_mean", "running_var"))


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
    if _kept(name, tensor):
        return tensor.detach().cpu().contiguous()
    stored = tensor.detach().cpu().to(dtype).contiguous()
    if not stored.isfinite().all():
        raise UserError(
            f"The tensor {name} is not finite in {dtype}.", "Weights must be finite.", "Train again, more gently.",
        )  # fmt: skip
    return stored


def load_folder(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[GroundingVLM, Tokenizer]:
    """Open a folder that `save_folder` wrote, in `dtype` on the CPU; its adapter, batch norms and buffers in float32.

    Raises UserError that names the first missing, wrong-shaped, unknown or non-finite tensors, or the missing file.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = _open_weights(folder)
    tokenizer = _open_tokenizer(folder / TOKENIZER, config)
    lora, config.lora = config.lora, type(config.lora)()
    with _names(folder / CONFIG), without_weights():
        model = GroundingVLM(config)
    _fill(model, weights, dtype)
    config.lora = lora
    if lora.r:
        with _names(folder / CONFIG):
            model.add_lora()
        _fill_adapter(model, folder / ADAPTER)
    return model.eval(), tokenizer


def open_empty(folder: Path) -> GroundingVLM:
    """The model of a folder, its adapter included, without any weights: for its shapes."""
    config = read_config(Path(folder))
    with _names(Path(folder) / CONFIG), without_weights():
        return GroundingVLM(config)


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder, whose weights are not read. Raises UserError where a file of it is missing."""
    sharded = (folder / INDEX).is_file()
    for name in (CONFIG, *(() if sharded else (WEIGHTS,)), TOKENIZER):
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
    return from_dict(ModelConfig, data, str(folder / CONFIG))


def _open_weights(folder: Path) -> Tensors:
    return open_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else open_shards(folder / INDEX)


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


def _fill(model: GroundingVLM, found: Tensors, dtype: torch.dtype) -> None:
    """Put every tensor into a model without weights, or name those that do not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{k} is missing" for k in wanted if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in wanted]
    problems += [
        f"{k} has shape {list(found.shapes[k])} instead of {list(wanted[k])}"
        for k in wanted if k in found and found.shapes[k] != wanted[k]
    ]  # fmt: skip
    if not problems:
        for name in found:
            if not _finite(put(model, name, found[name], dtype)):
                exact = _finite(found[name])
                problems.append(f"{name} is too large for {dtype}" if exact else f"{name} holds NaN or infinity")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{found.path} does not fit its config: {'; '.join(problems[:3])}{more}.",
            f"All {len(wanted)} tensors of the model must be there, in their shapes, finite.",
            f"Check that {CONFIG} and {WEIGHTS} belong together.",
        )  # fmt: skip
    if model.config.language.tie_word_embeddings:
        model.decoder.tie_weights()
    if left := empty_places(model):
        raise RuntimeError(f"Nothing was put into {left[:3]}.")


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
    tensors = open_file(folder / "adapter_model.safetensors")
    found = {name: tensors[name] for name in tensors}
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
