"""A model's folder: config.json, model.safetensors, tokenizer.model and, with LoRA, adapter/ in peft's own format.

A large model is stored in several files that model.safetensors.index.json names. Nothing is pickled. Weights are stored
in 16 bits, running statistics in 32. Opening takes the memory of the model in the number format asked for, and one
tensor more. A language model that was chosen by name brings language/ with its own config and tokenizer. A folder may
also hold only what was trained; its config then names the whole model folder, its base, that the rest comes from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path

import torch

from minigptv2.config import CLIP_MEAN, CLIP_STD, ModelConfig, from_dict
from minigptv2.errors import UserError
from minigptv2.files import TMP_SUFFIX, is_file, to_path
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.language import load_pretrained_lm
from minigptv2.model.load_report import LoadReport
from minigptv2.model.meta_init import on_meta_device, set_tensor, unfilled_tensors
from minigptv2.model.weight_files import Tensors, open_file, open_shards, overlay
from minigptv2.tokenizer import HFTokenizer, Tokenizer

WEIGHTS, CONFIG, TOKENIZER, ADAPTER = "model.safetensors", "config.json", "tokenizer.model", "adapter"
INDEX, REPORT = "model.safetensors.index.json", "report.json"
LANGUAGE = "language"  # a named language model's config and tokenizer
HEAD, EMBEDDING = "language.lm_head.weight", "language.model.embed_tokens.weight"
SHARD = 2 * 10**9  # bytes
_OLD = ".old"


def save_folder(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    folder: Path,
    dtype: torch.dtype = torch.float16,
    max_shard: int = SHARD,
    report: LoadReport | None = None,
) -> None:
    """Write the folder, whole or not at all: it is made under another name first. An older one there is replaced.

    max_shard: bytes; a larger model is stored in several files. report: what its loader did, stored as report.json.
    Raises UserError where the folder cannot be written; an older model is then still there.
    """
    config = replace(model.config, base="", base_mark="")

    def write(new: Path) -> None:
        _write(model, config, base_state(model), None, tokenizer, new, dtype, max_shard)
        if report is not None:
            (new / REPORT).write_text(report.to_json())

    _replaced(folder, write)


def save_trained(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    folder: Path,
    trained: dict[str, torch.Tensor],
    frozen: dict[str, torch.Tensor],
    base: Path | None,
    small: bool,
    dtype: torch.dtype = torch.float16,
) -> None:
    """As `save_folder`, for a model in training, whose own tensors may be divided among processes or in few bits.

    trained, frozen: its tensors by their names in the model. base: the model folder that it began from, which keeps the
    frozen ones in 16 bits. small: write only the trained ones and say that the rest is in the base.
    """
    adapter = {name: t for name, t in (frozen | trained).items() if "lora_" in name}
    own = {_plain(name): t for name, t in trained.items() if "lora_" not in name}
    if model.config.language.tie_word_embeddings and EMBEDDING in own:
        own[HEAD] = own[EMBEDDING]
    config = replace(model.config, base="", base_mark="")
    if small:
        config = replace(config, base=str(base), base_mark=fingerprint(base))
    else:
        rest = _open_weights(base) if base else {_plain(n): t for n, t in frozen.items() if "lora_" not in n}
        own = {**rest, **own}
    _replaced(folder, lambda new: _write(model, config, own, adapter, tokenizer, new, dtype, SHARD))


def _plain(name: str) -> str:
    """The name of a tensor of a model with an adapter -> its name without one."""
    return name.replace("language.base_model.model.", "language.").replace(".base_layer.", ".")


def fingerprint(folder: Path) -> str:
    """What the weights of a folder are known by: the size of each file and 64 pieces of it."""
    made = blake2b(digest_size=8)
    for file in sorted(folder.glob("model*.safetensors")):
        size = file.stat().st_size
        made.update(f"{file.name} {size}".encode())
        with open(file, "rb") as data:
            for place in range(64):
                data.seek(size * place // 64)
                made.update(data.read(4096))
    return made.hexdigest()


def _replaced(folder: Path, write: Callable[[Path], None]) -> None:
    from safetensors import SafetensorError

    folder = to_path(folder, "model folder").resolve()
    check_target(folder)
    new, old = folder.with_name(folder.name + TMP_SUFFIX), folder.with_name(folder.name + _OLD)
    try:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        write(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except (OSError, SafetensorError) as error:  # a full disk is either, whoever writes
        raise UserError(
            f"{folder} cannot be written: {error}",
            "A model needs a writable folder and room on the disk.",
            "Make room, or choose another place.",
        ) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise UserError where `save_folder` would refuse the folder, before any work is done."""
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or not any(folder.iterdir()))):
        raise UserError(
            f"{folder} exists and is no model folder.",
            "A model is saved to a new folder or over an older model.",
            "Choose another name.",
        )


def _write(
    model: GroundingVLM,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    adapter: dict[str, torch.Tensor] | None,
    tokenizer: Tokenizer | HFTokenizer,
    new: Path,
    dtype: torch.dtype,
    max_shard: int,
) -> None:
    """adapter: its tensors by their names in the model; None: as the model holds them."""
    from safetensors.torch import save_file

    shards = _shards(tensors, dtype, max_shard)
    for file, names in shards.items():
        stored = {name: _stored(name, tensors[name], dtype) for name in names}
        if config.language.tie_word_embeddings and HEAD in stored:
            stored[HEAD] = stored[HEAD].clone()  # one tensor under two names, which safetensors refuses
        save_file(stored, new / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(name, t, dtype) for name, t in tensors.items())},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (new / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
    if config.language.name:
        model.decoder.config.save_pretrained(new / LANGUAGE)
    tokenizer.save(new / (TOKENIZER if isinstance(tokenizer, Tokenizer) else LANGUAGE))
    if hasattr(model.language, "peft_config"):
        own = None if adapter is None else {n.removeprefix("language."): t for n, t in adapter.items()}
        model.language.save_pretrained(new / ADAPTER, state_dict=own)
        (new / ADAPTER / "README.md").unlink(missing_ok=True)
    for file in new.rglob("*.safetensors"):  # safetensors lets only the owner read what it writes
        shutil.copymode(new / CONFIG, file)


def _shards(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, most: int) -> dict[str, list[str]]:
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
            f"The tensor {name} is not finite in {dtype}.",
            "Weights must be finite.",
            "Train again, more gently.",
        )
    return stored


def load_folder(
    folder: Path, dtype: torch.dtype | None = torch.float32, base: Path | None = None
) -> tuple[GroundingVLM, Tokenizer | HFTokenizer]:
    """Open a folder that `save_folder` wrote, in `dtype` on the CPU; its adapter, batch norms and buffers in float32.

    dtype: None for the 16 bits in which the folder holds each weight.
    base: the whole model folder that one which holds only what was trained was trained from. Raises UserError that
    names the first missing, wrong-shaped, unknown or non-finite tensors, or the missing file.
    """
    folder = to_path(folder, "model folder")
    config = read_config(folder)
    weights, whole = _open_weights(folder), _base_of(folder, config, base)
    if whole is not None:
        weights = overlay(weights, _open_weights(whole))
    tokenizer = open_tokenizer(folder, config)
    lora, config.lora = config.lora, type(config.lora)()
    model = _without_weights(folder, config)
    _fill(model, weights, dtype)
    config.lora = lora
    if lora.r:
        with _names(folder / CONFIG):
            model.add_lora()
        _fill_adapter(model, folder / ADAPTER)
    return model.eval(), tokenizer


def build_on_meta(folder: Path) -> GroundingVLM:
    """The model of a folder, its adapter included, without any weights: for its shapes."""
    folder = to_path(folder, "model folder")
    return _without_weights(folder, read_config(folder))


def _without_weights(folder: Path, config: ModelConfig) -> GroundingVLM:
    language = None
    with on_meta_device():
        if config.language.name:
            with _names(folder / LANGUAGE / CONFIG):
                language, _ = load_pretrained_lm(folder / LANGUAGE, weights=False)
        with _names(folder / CONFIG):
            return GroundingVLM(config, language)


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder, whose weights are not read. Raises UserError where a file of it is missing."""
    for names in ((CONFIG,), (WEIGHTS, INDEX), (TOKENIZER, f"{LANGUAGE}/tokenizer_config.json")):
        if not any(is_file(folder / name) for name in names):
            raise UserError(
                f"{folder} has no {names[0]}.",
                f"A model folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER}.",
                "Check the path; save_pretrained(folder) writes such a folder.",
            )
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # ValueError: no UTF-8, no JSON, an endless number
        raise UserError(
            f"{folder / CONFIG} is no JSON: {error}",
            "It is written by save_pretrained.",
            "Save the model again.",
        ) from None
    config = from_dict(ModelConfig, data, str(folder / CONFIG))
    if not config.vision.image_mean:  # a folder of an older version, which normalised every image with CLIP's
        config.vision.image_mean, config.vision.image_std = CLIP_MEAN, CLIP_STD
    return config


def _open_weights(folder: Path) -> Tensors:
    return open_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else open_shards(folder / INDEX)


def _base_of(folder: Path, config: ModelConfig, base: Path | None) -> Path | None:
    """The folder of the weights that this one lacks; None where it lacks none."""
    if not config.base:
        if base is not None:
            raise UserError(
                f"{folder} is a whole model, and base is {base}.",
                "Only a folder of what was trained has a base.",
                "Leave base away.",
            )
        return None
    if base is None:
        raise UserError(
            f"{folder} holds only what was trained; the rest is in its base.",
            f"Its base was {config.base}.",
            f"Name that folder: from_pretrained(folder, base={config.base!r}), or --base {config.base}.",
        )
    base = to_path(base, "base")
    if read_config(base).base:
        raise UserError(
            f"The base {base} holds only what was trained.",
            "A base is a whole model folder.",
            f"{folder} was trained from {config.base}.",
        )
    if fingerprint(base) != config.base_mark:
        raise UserError(
            f"The weights of {base} are not those that {folder} was trained from.",
            f"Its base was {config.base}.",
            "Name that folder, or a copy of it.",
        )
    return base


@contextmanager
def _names(file: Path) -> Iterator[None]:
    """What torch, timm, transformers or peft say to sizes and names that fit nothing, as an error about the file."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"No model can be built from {file}: {type(error).__name__}: {said}",
            "Its sizes and names must be those that the model was saved with.",
            "Copy the whole model folder again.",
        ) from error


def _fill(model: GroundingVLM, found: Tensors, dtype: torch.dtype | None) -> None:
    """Put every tensor into a model without weights, or name those that do not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{k} is missing" for k in wanted if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in wanted]
    problems += [
        f"{k} has shape {list(found.shapes[k])} instead of {list(wanted[k])}"
        for k in wanted
        if k in found and found.shapes[k] != wanted[k]
    ]
    if not problems:
        for name in found:
            if not _finite(set_tensor(model, name, found[name], dtype)):
                too_large = dtype and _finite(found[name])
                problems.append(f"{name} is too large for {dtype}" if too_large else f"{name} holds NaN or infinity")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{found.path} does not fit its config: {'; '.join(problems[:3])}{more}.",
            f"All {len(wanted)} tensors of the model must be there, in their shapes, finite.",
            f"Check that {CONFIG} and {WEIGHTS} belong together.",
        )
    if model.config.language.tie_word_embeddings:
        model.decoder.tie_weights()
    if left := unfilled_tensors(model):
        raise RuntimeError(f"Nothing was put into {left[:3]}.")


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _fill_adapter(model: GroundingVLM, folder: Path) -> None:
    import peft

    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} has no adapter_model.safetensors.",
            "The config asks for a LoRA adapter in peft's format.",
            "Copy the whole model folder.",
        )
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
        )
    peft.set_peft_model_state_dict(model.language, found)


def open_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | HFTokenizer:
    file = folder / TOKENIZER
    try:
        tokenizer = Tokenizer.load(file) if file.is_file() else HFTokenizer(folder / LANGUAGE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{file} cannot be read: {error}",
            "It must be a SentencePiece model with <s> and </s>.",
            "Copy it again.",
        ) from None
    named = bool(config.language.name)  # whose table of tokens may be filled up to a round number
    if tokenizer.size > config.language.vocab_size or (tokenizer.size != config.language.vocab_size and not named):
        raise UserError(
            f"{file} has {tokenizer.size} pieces, the model {config.language.vocab_size}.",
            "They must be equal.",
            "Use the tokenizer that was saved with the model.",
        )
    return tokenizer
