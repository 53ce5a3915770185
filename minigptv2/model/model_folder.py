"""A model folder: config.json, model.safetensors, tokenizer.model and, with LoRA, adapter/ in peft's format.

A large model is stored in several files, which model.safetensors.index.json lists. Nothing is pickled. Weights are
stored in 16 bits, running statistics in 32. Opening needs the memory of the model in the given number format, and of
one more tensor. A folder whose language model was chosen by name also has language/, with the config and tokenizer of
that model. A folder may hold only the trained weights; its config then names its base, the full model folder with the
other weights.
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

from minigptv2.config import CLIP_MEAN, CLIP_STD, LanguageConfig, ModelConfig, from_dict
from minigptv2.errors import UserError
from minigptv2.files import TMP_SUFFIX, is_file, refuse_device, to_path
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.language import load_pretrained_lm
from minigptv2.model.load_report import LoadReport
from minigptv2.model.meta_init import on_meta_device, set_tensor, unfilled_tensors
from minigptv2.model.weight_files import Tensors, open_file, open_shards, overlay
from minigptv2.tokenizer import HFTokenizer, Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.model"
ADAPTER, ADAPTER_WEIGHTS = "adapter", "adapter_model.safetensors"  # a folder, and the file in it; peft's names
INDEX, REPORT = "model.safetensors.index.json", "report.json"
LANGUAGE = "language"  # config and tokenizer of a language model that was chosen by name
HEAD, EMBEDDING = "language.lm_head.weight", "language.model.embed_tokens.weight"
MAX_SHARD = 2 * 10**9  # bytes
_OLD = ".old"


def save_folder(
    model: GroundingVLM,
    tokenizer: Tokenizer | HFTokenizer,
    folder: Path,
    dtype: torch.dtype = torch.float16,
    max_shard: int = MAX_SHARD,
    report: LoadReport | None = None,
) -> None:
    """Write the folder atomically: it gets its name when it is complete. An older model of this name is replaced.

    max_shard: bytes; a larger model is stored in several files. report: of its loader, stored as report.json.
    Raises UserError if the folder cannot be written; an older model then stays.
    """
    config = replace(model.config, base="", base_fingerprint="")

    def write(new: Path) -> None:
        _write(model, config, base_state(model), None, tokenizer, new, dtype, max_shard)
        if report is not None:
            (new / REPORT).write_text(report.to_json())

    _write_atomically(folder, write)


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
    """As `save_folder`, for a model in training, whose tensors may be sharded over processes or quantised.

    trained, frozen: its tensors by their names in the model. base: the model folder that training started from; it
    keeps the frozen tensors in 16 bits. small: write only the trained tensors, and the path of the base.
    """
    adapter = {name: t for name, t in (frozen | trained).items() if "lora_" in name}
    own = {_plain(name): t for name, t in trained.items() if "lora_" not in name}
    if model.config.language.tie_word_embeddings and EMBEDDING in own:
        own[HEAD] = own[EMBEDDING]
    config = replace(model.config, base="", base_fingerprint="")
    if small:
        config = replace(config, base=str(base), base_fingerprint=fingerprint(base))
    else:
        rest = _open_weights(base) if base else {_plain(n): t for n, t in frozen.items() if "lora_" not in n}
        own = {**rest, **own}
    _write_atomically(folder, lambda new: _write(model, config, own, adapter, tokenizer, new, dtype, MAX_SHARD))


def _plain(name: str) -> str:
    """The name of a tensor in a model with an adapter -> in one without."""
    return name.replace("language.base_model.model.", "language.").replace(".base_layer.", ".")


def fingerprint(folder: Path) -> str:
    """A hash of a folder's weights: of the size of each file, and of 64 pieces of it."""
    digest = blake2b(digest_size=8)
    for file in sorted(folder.glob("model*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as data:
            for piece in range(64):
                data.seek(size * piece // 64)
                digest.update(data.read(4096))
    return digest.hexdigest()


def _write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
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
    except (OSError, SafetensorError) as error:  # which one a full disk raises depends on the writer
        raise UserError(
            f"{folder} cannot be written: {error}",
            "A model needs a writable folder and enough disk space.",
            "Free some disk space, or choose another path.",
        ) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise UserError if `save_folder` would refuse the folder, before any work is done."""
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or not any(folder.iterdir()))):
        raise UserError(
            f"{folder} exists and is not a model folder.",
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
    """adapter: its tensors by their names in the model; None: those of the model."""
    from safetensors.torch import save_file

    shards = _shards(tensors, dtype, max_shard)
    for file, names in shards.items():
        stored = {name: _stored(name, tensors[name], dtype) for name in names}
        if config.language.tie_word_embeddings and HEAD in stored:
            stored[HEAD] = stored[HEAD].clone()  # safetensors refuses one tensor under two names
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
    for file in new.rglob("*.safetensors"):  # safetensors makes its files readable by the owner alone
        shutil.copymode(new / CONFIG, file)


def _shards(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, max_size: int) -> dict[str, list[str]]:
    """File name -> names of its tensors, in order. A file has at most `max_size` bytes, unless one tensor has more."""
    shards, free = [[]], max_size
    for name, tensor in tensors.items():
        size = _bytes(name, tensor, dtype)
        if size > free and shards[-1]:
            shards.append([])
            free = max_size
        shards[-1].append(name)
        free -= size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    stem, suffix = WEIGHTS.split(".")
    return {f"{stem}-{i:05}-of-{len(shards):05}.{suffix}": names for i, names in enumerate(shards, 1)}


def _bytes(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (tensor.dtype if _keeps_dtype(name, tensor) else dtype).itemsize


def _keeps_dtype(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is stored in its own number format: integers and running statistics."""
    return not tensor.is_floating_point() or name.endswith(("running_mean", "running_var"))


def base_state(model: GroundingVLM) -> dict[str, torch.Tensor]:
    """All tensors except the adapter's, under their names in a model without an adapter."""
    state = {k: v for part in ("vision", "projector") for k, v in _prefixed(getattr(model, part), part)}
    for name, tensor in model.decoder.state_dict().items():
        if "lora_" not in name:
            state["language." + name.replace(".base_layer.", ".")] = tensor
    return state


def _prefixed(module: torch.nn.Module, prefix: str):
    return ((f"{prefix}.{k}", v) for k, v in module.state_dict().items())


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if _keeps_dtype(name, tensor):
        return tensor.detach().cpu().contiguous()
    stored = tensor.detach().cpu().to(dtype).contiguous()
    if not stored.isfinite().all():
        raise UserError(
            f"The tensor {name} is not finite in {dtype}.",
            "Weights must be finite.",
            "Train again with a lower learning rate.",
        )
    return stored


def load_folder(
    folder: Path, dtype: torch.dtype | None = torch.float32, base: Path | None = None
) -> tuple[GroundingVLM, Tokenizer | HFTokenizer]:
    """Open a folder of `save_folder` in `dtype` on the CPU. Its adapter, batch norms and buffers are float32.

    dtype: None for the 16-bit format in which each weight is stored.
    base: for a folder with trained weights only, the full model folder that it was trained from.
    Raises UserError that names a missing file, or the first missing, unknown, non-finite or wrongly shaped tensors.
    """
    folder = to_path(folder, "model folder")
    config = read_config(folder)
    weights, rest = _open_weights(folder), _base_of(folder, config, base)
    if rest is not None:
        weights = overlay(weights, _open_weights(rest))
    tokenizer = open_tokenizer(folder, config.language)
    lora, config.lora = config.lora, type(config.lora)()
    model = _build_on_meta(folder, config)
    _fill(model, weights, dtype)
    config.lora = lora
    if lora.r:
        with _errors_about(folder / CONFIG):
            model.add_lora()
        _fill_adapter(model, folder / ADAPTER)
    return model.eval(), tokenizer


def build_on_meta(folder: Path) -> GroundingVLM:
    """The model of a folder, with its adapter, on the meta device: shapes without weights."""
    folder = to_path(folder, "model folder")
    return _build_on_meta(folder, read_config(folder))


def _build_on_meta(folder: Path, config: ModelConfig) -> GroundingVLM:
    language = None
    with on_meta_device():
        if config.language.name:
            with _errors_about(folder / LANGUAGE / CONFIG):
                language, _ = load_pretrained_lm(folder / LANGUAGE, weights=False)
        with _errors_about(folder / CONFIG):
            return GroundingVLM(config, language)


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder, without reading its weights. Raises UserError if a file is missing."""
    for names in ((CONFIG,), (WEIGHTS, INDEX), (TOKENIZER, f"{LANGUAGE}/tokenizer_config.json")):
        if not any(is_file(folder / name) for name in names):
            raise UserError(
                f"{folder} has no {names[0]}.",
                f"A model folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER}.",
                "Check the path; save_pretrained(folder) writes such a folder.",
            )
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # ValueError: not UTF-8, not JSON, a number too long
        raise UserError(
            f"{folder / CONFIG} is not JSON: {error}",
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
    """The folder with the weights that this one lacks; None if it lacks none."""
    if not config.base:
        if base is not None:
            raise UserError(
                f"{folder} is a full model, and base is {base}.",
                "Only a folder with trained weights alone needs a base.",
                "Omit base.",
            )
        return None
    if base is None:
        raise UserError(
            f"{folder} holds only trained weights; the others are in its base.",
            f"Its base was {config.base}.",
            f"Give that folder: from_pretrained(folder, base={config.base!r}), or --base {config.base}.",
        )
    base = to_path(base, "base")
    if read_config(base).base:
        raise UserError(
            f"The base {base} holds only trained weights.",
            "A base is a full model folder.",
            f"{folder} was trained from {config.base}.",
        )
    if fingerprint(base) != config.base_fingerprint:
        raise UserError(
            f"The weights of {base} are not those that {folder} was trained from.",
            f"Its base was {config.base}.",
            "Give that folder, or a copy of it.",
        )
    return base


@contextmanager
def _errors_about(file: Path) -> Iterator[None]:
    """Turn any error of torch, timm, transformers or peft about sizes and names into a UserError about the file."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"No model can be built from {file}: {type(error).__name__}: {reason}",
            "Its sizes and names must be those that the model was saved with.",
            "Copy the whole model folder again.",
        ) from error


def _fill(model: GroundingVLM, found: Tensors, dtype: torch.dtype | None) -> None:
    """Set every tensor of a model on the meta device. Raises UserError that names those that do not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{k} is missing" for k in expected if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in expected]
    problems += [
        f"{k} has shape {list(found.shapes[k])} instead of {list(expected[k])}"
        for k in expected
        if k in found and found.shapes[k] != expected[k]
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
            f"All {len(expected)} tensors of the model must be there, with their shapes, and finite.",
            f"Check that {CONFIG} and {WEIGHTS} belong together.",
        )
    if model.config.language.tie_word_embeddings:
        model.decoder.tie_weights()
    if left := unfilled_tensors(model):
        raise RuntimeError(f"{left[:3]} have no values.")


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _fill_adapter(model: GroundingVLM, folder: Path) -> None:
    import peft

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{folder} has no {ADAPTER_WEIGHTS}.",
            "The config asks for a LoRA adapter in peft's format.",
            "Copy the whole model folder.",
        )
    lora = model.config.lora
    tensors = open_file(folder / ADAPTER_WEIGHTS)
    found = {name: tensors[name] for name in tensors}
    needed = peft.get_peft_model_state_dict(model.language)
    wrong = [k for k in needed if k not in found or found[k].shape != needed[k].shape or not _finite(found[k])]
    wrong += [k for k in found if k not in needed]
    if wrong:
        raise UserError(
            f"{folder} does not fit the model: {', '.join(wrong[:3])} missing, unknown, not finite or wrongly shaped.",
            f"It must be an adapter with r = {lora.r} on {', '.join(lora.targets)}.",
            "Copy the whole model folder.",
        )
    peft.set_peft_model_state_dict(model.language, found)


def open_tokenizer(folder: Path, config: LanguageConfig) -> Tokenizer | HFTokenizer:
    """The tokenizer of a model folder, or of a Llama folder: tokenizer.model, or else transformers' files in language/.

    Raises UserError if it cannot be read or has another vocabulary than the language model.
    """
    file = folder / TOKENIZER
    refuse_device(file)
    try:
        hf = (folder / LANGUAGE).is_dir() and not file.exists()
        tokenizer = HFTokenizer(folder / LANGUAGE) if hf else Tokenizer.load(file)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{folder / LANGUAGE if hf else file} cannot be read: {error}",
            "It must be a tokenizer with a token for the end of a text; tokenizer.model is a SentencePiece model.",
            "Copy the whole folder again.",
        ) from None
    padded = bool(config.name) and tokenizer.size < config.vocab_size  # many families round their vocabulary up
    if tokenizer.size != config.vocab_size and not padded:
        raise UserError(
            f"{folder / LANGUAGE if hf else file} has {tokenizer.size} pieces, its config.json says vocab_size "
            f"{config.vocab_size}.",
            "They must be equal. Likely cause: the tokenizer of another model, or a language model with added tokens, "
            "such as a Vicuna.",
            "Use the tokenizer that belongs to these weights.",
        )
    return tokenizer
