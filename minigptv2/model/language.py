"""The language model: a Llama causal LM of transformers, and LoRA through peft.

Mistral and Qwen models have the same modules under the same names, so they can replace it.
"""

from dataclasses import fields
from pathlib import Path

from torch import nn

from minigptv2.config import LanguageConfig, LoraConfig
from minigptv2.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # transformers' model_type


def build_language(config: LanguageConfig) -> nn.Module:
    """A Llama of the config's sizes, with random weights. Raises ValueError for sizes that do not divide."""
    from dataclasses import asdict

    from transformers import LlamaConfig, LlamaForCausalLM

    from minigptv2.model.attention import ATTENTION_IMPLEMENTATION

    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % heads or heads % shared:
        raise ValueError(f"hidden_size {config.hidden_size} must divide by {heads} heads, and they by {shared}")
    sizes = {k: v for k, v in asdict(config).items() if k not in ("name", "rope_theta", "system_message")}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope, attn_implementation=ATTENTION_IMPLEMENTATION))


def load_pretrained_lm(name: str | Path, weights: bool = True) -> tuple[nn.Module, LanguageConfig]:
    """A causal LM by its folder or hub name, in float32 on the CPU, and its sizes. weights: False for random ones.

    Raises UserError where nothing of that name is found, or a model of another family.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from minigptv2.model.attention import ATTENTION_IMPLEMENTATION

    try:
        found = AutoConfig.from_pretrained(name)
        if found.model_type in FAMILIES:
            if weights:
                language = AutoModelForCausalLM.from_pretrained(
                    name, dtype=torch.float32, attn_implementation=ATTENTION_IMPLEMENTATION
                )
            else:
                language = AutoModelForCausalLM.from_config(
                    found, dtype=torch.float32, attn_implementation=ATTENTION_IMPLEMENTATION
                )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The language model {str(name)!r} cannot be opened: {' '.join(str(error).split())[:300]}",
            "It is a folder with config.json and weights, or a hub's name.",
            "Check the name. Nothing is downloaded unless HF_HUB_OFFLINE=0 and TRANSFORMERS_OFFLINE=0 are set.",
        ) from None
    if found.model_type not in FAMILIES:
        raise UserError(
            f"{name} is of the family {found.model_type!r}.",
            f"These fit: {', '.join(FAMILIES)}.",
            "Choose one of them.",
        )
    own = {f.name: getattr(found, f.name) for f in fields(LanguageConfig) if hasattr(found, f.name)}
    return language, LanguageConfig(**{**own, "name": str(name)})


def add_lora(language: nn.Module, config: LoraConfig) -> nn.Module:
    """The model with a trainable adapter on the config's projections; all other weights are frozen."""
    import warnings

    import peft

    lora = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return peft.get_peft_model(language, lora)


def merge_lora(language: nn.Module) -> nn.Module:
    """The model without the adapter: B @ A is added to the weights that it adapted."""
    plain = language.merge_and_unload()
    if hasattr(plain, "peft_config"):  # older versions of peft keep it
        del plain.peft_config
    return plain
