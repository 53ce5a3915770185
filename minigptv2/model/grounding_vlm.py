"""Vision tower, projector and language model as one module. It takes tensors only, never strings.

Shapes: B rows of L tokens, P images, N patches of C channels, V visual tokens per image, D the language model's width.
Source: MiniGPT-v2 (arXiv 2310.09478) section 2.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from minigptv2.config import ModelConfig
from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID
from minigptv2.errors import UserError
from minigptv2.model.attention import Supervision
from minigptv2.model.language import add_lora, build_language
from minigptv2.model.projector import Projector
from minigptv2.model.vision import VisionTower
from minigptv2.packing import Batch, attention_mask


class Losses(NamedTuple):
    """What a forward pass returns. Scalars, each a sum over the batch divided by the same number of tokens.

    answer: cross-entropy of the supervised tokens. attention: of supervised attention
    (`train/attention_supervision.py`), -log of the attention mass on each query's target, weighted; 0 where the batch
    marks no targets. query_weight: the sum of these weights, so that attention / query_weight is a mean."""

    answer: torch.Tensor
    attention: torch.Tensor
    query_weight: torch.Tensor


class GroundingVLM(nn.Module):
    """The network: frozen vision tower, projector, language model with or without LoRA.

    pixels [P, 3, H, W] -> features [P, N, C] -> visual tokens [P, V, D] -> into the embeddings [B, L, D]
    """

    def __init__(self, config: ModelConfig, language: nn.Module | None = None):
        """language: a causal LM that was loaded by name; else one is built from the config."""
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        if config.patches_per_token < 1 or self.vision.patches % config.patches_per_token:
            patches = self.vision.patches
            divisors = ", ".join(str(n) for n in range(1, min(patches, 64) + 1) if patches % n == 0)
            raise UserError(
                f"{patches} patches cannot be merged by {config.patches_per_token}.",
                f"The patches of one token must divide them: {divisors}.",
                "Choose one of these, or another image_size.",
            )
        self.projector = Projector(self.vision.width, config.patches_per_token, config.language.hidden_size)
        self.language = build_language(config.language) if language is None else language
        if config.lora.r:
            self.add_lora()

    @property
    def image_tokens(self) -> int:
        """V: visual tokens of one image."""
        return self.vision.patches // self.config.patches_per_token

    @property
    def decoder(self) -> nn.Module:
        """The causal LM itself, without the adapter around it."""
        return self.language.get_base_model() if hasattr(self.language, "peft_config") else self.language

    def add_lora(self) -> None:
        """Put the adapter that the config describes around the language model."""
        self.language = add_lora(self.language, self.config.lora)

    def encode_images(self, pixels: torch.Tensor | None, features: torch.Tensor | None = None) -> torch.Tensor:
        """[P, 3, H, W] pixels, or [P, N, C] features of the frozen tower -> [P, V, D] visual tokens."""
        if features is None:
            with torch.no_grad():
                features = self.vision(pixels.to(self.projector.weight.dtype))  # [P, N, C]
        return self.projector(features.to(self.projector.weight.dtype))  # [P, V, D]

    def embed(self, ids: torch.Tensor, visual: torch.Tensor | None) -> torch.Tensor:
        """[B, L] ids -> [B, L, D] embeddings.

        visual: [P, V, D]; these replace the embeddings where ids is IMAGE_TOKEN_ID, in order. Raises ValueError unless
        there are P * V such positions.
        """
        embedded = self.decoder.get_input_embeddings()(ids.clamp(min=0))  # [B, L, D]
        is_visual = (ids == IMAGE_TOKEN_ID)[..., None]  # [B, L, 1]
        tokens = 0 if visual is None else visual.shape[0] * visual.shape[1]
        if int(is_visual.sum()) != tokens:
            raise ValueError(f"The rows have {int(is_visual.sum())} positions for visual tokens, not {tokens}.")
        return embedded if visual is None else embedded.masked_scatter(is_visual, visual.to(embedded.dtype))

    def forward(
        self, batch: Batch, tokens: float | None = None, guidance: float = 0.0, text_only: bool = False
    ) -> Losses:
        """The losses of a batch, which is left as it is.

        tokens: divisor of the losses; default: the number of supervised tokens of the batch. A step of several
        batches gives its own. guidance: 0 to 1, see `attention.Supervision`. text_only: no row has positions for the
        image of the batch; the image passes through the same layers with weight 0, which ZeRO-3 needs.
        """
        visual, features = None, batch.features  # [P, N, C] from a cache, or None
        if features is None and batch.pixels is not None:
            with torch.no_grad():
                features = to_cache_dtype(self.vision(batch.pixels.to(self.projector.weight.dtype)))  # [P, N, C]
        if features is not None:
            visual = self.encode_images(None, features)  # [P, V, D]
        supervision = Supervision(guidance)
        losses = self.token_losses(batch, visual, supervision, text_only)  # [supervised]
        attention, weight = (losses.new_zeros(()) + total for total in supervision.summed())
        return Losses(*(total / max(1, tokens or len(losses)) for total in (losses.sum(), attention, weight)))

    def token_losses(
        self,
        batch: Batch,
        visual: torch.Tensor | None,
        supervision: Supervision | None = None,
        text_only: bool = False,
    ) -> torch.Tensor:
        """[supervised]: cross-entropy of every supervised token, row after row, given all tokens before it.

        visual: [P, V, D] of all images of the batch, in order. supervision: collects the losses of supervised
        attention. text_only: visual is added to the embeddings with weight 0, so that gradients flow through the same
        layers as with an image and ZeRO-3's processes stay in step.
        """
        embedded = self.embed(batch.ids, None if text_only else visual)  # [B, L, D]
        if text_only:
            embedded = embedded + 0 * visual.to(embedded.dtype).sum()
        if batch.layout is None:
            bias = attention_bias(attention_mask(batch.blocks), embedded.dtype)  # [B, 1, L, L]
            attention_kwargs = {"attention_mask": bias}
        else:
            attention_kwargs = {"layout": batch.layout, "supervision": supervision}
        states = self.decoder.model(
            inputs_embeds=embedded, position_ids=batch.positions, use_cache=False, **attention_kwargs
        ).last_hidden_state  # [B, L, D]
        labels = batch.labels[:, 1:]  # the state at position i predicts token i + 1
        supervised = labels != IGNORE_INDEX  # [B, L - 1]
        logits = self.decoder.lm_head(states[:, :-1][supervised])  # [supervised, vocabulary]
        return F.cross_entropy(logits.float(), labels[supervised], reduction="none")


def to_cache_dtype(features: torch.Tensor) -> torch.Tensor:
    """Features of the frozen tower as a feature cache stores them, in 16 bits, so that training without a cache gives
    the same loss."""
    return features.half()


def attention_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as a bias of the attention scores: 0 where a query attends to a key, else the lowest number."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
