"""The language model: a Llama causal LM of transformers, with LoRA through peft where the config asks for it."""

from torch import nn

from minigptv2.config import LanguageConfig, LoraConfig


def build_language(config: LanguageConfig) -> nn.Module:
    from dataclasses import asdict

    from transformers import LlamaConfig, LlamaForCausalLM

    from minigptv2.model.attention import NAME

    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % heads or heads % shared:
        raise ValueError(f"hidden_size {config.hidden_size} must divide by {heads} heads, and they by {shared}")
    sizes = asdict(config)
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    return LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope, attn_implementation=NAME))


def add_lora(language: nn.Module, config: LoraConfig) -> nn.Module:
    """The same model with a trainable adapter on the named projections; everything else is frozen."""
    import warnings

    import peft

    wanted = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out: not the user's business
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return peft.get_peft_model(language, wanted)


def merge_lora(language: nn.Module) -> nn.Module:
    """The plain model again, the adapter's product added to the weights it adapted, one after the other."""
    plain = language.merge_and_unload()
    if hasattr(plain, "peft_config"):  # older versions of peft leave it there
        del plain.peft_config
    return plain
