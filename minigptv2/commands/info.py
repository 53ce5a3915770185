"""`minigptv2 info`: sizes of a model, parameters of each part, and the memory for inference and training.

All numbers are calculated from config.json; no weights are read. GB: 10^9 bytes.

Memory to answer, for one conversation as long as the context:
    weights  parameters x bytes of their number format. With 8 or 4 bits: the language model's linear layers, and one
             32-bit scale for each row (8 bits) or each 64 weights (4 bits); everything else is in 16 bits.
    cache    2 x layers x key heads x width of a head x context x bytes of a number (2, or 4 in float32)
Memory to train, without activations:
    trained  16 bytes a parameter: weight, gradient and both moments of AdamW in float32
    frozen   2 bytes a parameter; with QLoRA the linear layers of the language model in 4 bits as above
Activations, for each row of `ROW` text tokens and an image, with gradient checkpointing:
    T x (2 x layers x width + 2 x (8 x width + 3 x inner width) + 10 x vocabulary) bytes, T the row's tokens: the inputs
    of all layers, the activations inside one of them, and logits with their gradient.
Python and the GPU's libraries need about 1 GB more.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from minigptv2.bundled import BUNDLED, model_folder
from minigptv2.commands.options import MODEL_HELP
from minigptv2.config import ModelConfig

ROW = 256  # text tokens
PARTS = ("tower", "projector", "language", "adapter")


@dataclass
class ParameterCounts:
    """Parameters of each part. linear: those of the language model's linear layers; rows: outputs of these layers."""

    tower: int
    projector: int
    language: int
    adapter: int
    linear: int
    rows: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help=MODEL_HELP)


def run(args: argparse.Namespace) -> None:
    print(info(args.folder))


def info(folder: str | Path | None = None) -> str:
    """The output of `minigptv2 info`. Raises UserError if the folder is not a model."""
    from minigptv2.model.model_folder import build_on_meta

    folder = BUNDLED if folder is None else model_folder(folder)
    model = build_on_meta(folder)
    config, vision, language = model.config, model.config.vision, model.config.language
    counts = count(model)
    patch, row = vision.image_size // model.vision.grid[0], ROW + model.image_tokens
    depth = "convolutional" if model.vision.is_convolutional else f"{len(model.vision.trunk.blocks)} blocks"
    tower = vision.timm_name or "a convolutional stem and a timm ViT"
    family = type(model.decoder).__name__.removesuffix("ForCausalLM")  # of transformers: Llama, Mistral, Qwen2
    lora = config.lora
    adapter = f"LoRA r {lora.r}, alpha {lora.alpha}, on {', '.join(lora.targets)}" if lora.r else "none"
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    about = [
        ("folder", f"{folder}, {_gb(stored)} on disk"),
        ("knows", config.description or "(its config does not say)"),
        (
            "image",
            f"{vision.image_size} px, {model.vision.patches} patches of {patch} px, "
            f"{model.image_tokens} tokens ({config.patches_per_token} patches each)",
        ),
        ("tower", f"{tower}, width {model.vision.width}, {depth}"),
        (
            "language",
            f"{family}, width {language.hidden_size}, {language.num_hidden_layers} layers, "
            f"{language.num_attention_heads} heads, vocabulary {language.vocab_size}, "
            f"context {language.max_position_embeddings}",
        ),
        ("adapter", adapter),
        ("prompt", f"{config.prompt}; box numbers: {config.box_rounding}"),
    ]
    parameters = [("parameters", ""), *((part, f"{getattr(counts, part):,}") for part in PARTS)]
    answering = [("memory to answer", "(calculated)"), *_in_gb(memory_to_answer(config, counts))]
    training = [
        ("memory to train", "(calculated, without activations)"),
        *_in_gb(memory_to_train(config, counts)),
        *_in_gb({f"activations, a row of {row} tokens": activations(config, row)}),
    ]
    tables = (about, [*parameters, ("together", f"{counts.total:,}")], answering, training)
    return "\n\n".join(_table(rows) for rows in tables)


def count(model) -> ParameterCounts:
    """The parameters of a GroundingVLM, with or without weights. A tensor with two names is counted once."""
    from torch import nn

    def size(module) -> int:
        return sum(p.numel() for p in module.parameters())

    adapter = sum(p.numel() for name, p in model.language.named_parameters() if "lora_" in name)
    layers = [
        module
        for name, module in model.decoder.model.layers.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]
    return ParameterCounts(
        size(model.vision),
        size(model.projector),
        size(model.language) - adapter,
        adapter,
        sum(layer.weight.numel() for layer in layers),
        sum(layer.out_features for layer in layers),
    )


def memory_to_answer(config: ModelConfig, counts: ParameterCounts) -> dict[str, float]:
    """Number format -> bytes."""
    language = config.language
    head = language.hidden_size // language.num_attention_heads
    cached = 2 * language.num_hidden_layers * language.num_key_value_heads * head * language.max_position_embeddings
    others = 2 * (counts.total - counts.linear) + 2 * cached
    return {
        "float32": 4 * (counts.total + cached),
        "16 bits": 2 * (counts.total + cached),
        "language model in 8 bits": counts.linear + 4 * counts.rows + others,
        "language model in 4 bits": _four_bits(counts) + others,
    }


def memory_to_train(config: ModelConfig, counts: ParameterCounts) -> dict[str, float]:
    """Recipe -> bytes, without activations. Without an adapter, one of the published size is counted."""
    language, adapter = config.language, counts.adapter
    if not adapter:
        shared = language.hidden_size // language.num_attention_heads * language.num_key_value_heads
        adapter = 64 * language.num_hidden_layers * (3 * language.hidden_size + shared)
    trained = 16 * (adapter + counts.projector)
    return {
        "LoRA and projector (the stages)": trained + 2 * (counts.tower + counts.language),
        "QLoRA and projector": trained + 2 * (counts.tower + counts.language - counts.linear) + _four_bits(counts),
        "projector and whole language model": 16 * (counts.projector + counts.language) + 2 * counts.tower,
    }


def activations(config: ModelConfig, tokens: int) -> float:
    """Bytes for one row of this many tokens, with gradient checkpointing."""
    language = config.language
    inside = 2 * (8 * language.hidden_size + 3 * language.intermediate_size)
    inputs = 2 * language.num_hidden_layers * language.hidden_size
    return tokens * (inputs + inside + 10 * language.vocab_size)


def _four_bits(counts: ParameterCounts) -> float:
    return counts.linear * (0.5 + 4 / 64)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _in_gb(sizes: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, _gb(size)) for name, size in sizes.items()]


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
