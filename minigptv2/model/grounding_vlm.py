"""Vision tower, projector and language model as one module. It sees tensors only, never strings.

Shapes: B rows of L tokens, P images, N patches, C channels of the tower, V visual tokens an image, D the language
model's width.
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
    """What a forward pass gives, each summed over the batch and divided by one number of tokens; no dimensions.

    answer: -log of the probability of every supervised token. attention: of supervised attention
    (`train/attention_supervision.py`), -log of the attention mass on each query's target, weighted; 0 where the batch
    marks no targets. query_weight: the sum of these weights, so that attention / query_weight is a mean."""

    answer: torch.Tensor
    attention: torch.Tensor
    query_weight: torch.Tensor


class GroundingVLM(nn.Module):
    """The whole network: frozen vision tower, projector, language model with or without LoRA."""

    def __init__(self, config: ModelConfig, language: nn.Module | None = None):
        """language: the causal LM, where it is one that was chosen by name; else it is built as the config says."""
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        if config.merge < 1 or self.vision.patches % config.merge:
            patches = self.vision.patches
            divisors = ", ".join(str(n) for n in range(1, min(patches, 64) + 1) if patches % n == 0)
            raise UserError(
                f"{patches} patches cannot be merged by {config.merge}.",
                f"The patches of one token must divide them: {divisors}.",
                "Choose one of these, or another image_size.",
            )
        self.projector = Projector(self.vision.width, config.merge, config.language.hidden_size)
        self.language = build_language(config.language) if language is None else language
        if config.lora.r:
            self.add_lora()

    @property
    def image_tokens(self) -> int:
        """V: places that one image takes in a row."""
        return self.vision.patches // self.config.merge

    @property
    def decoder(self) -> nn.Module:
        """The causal LM itself, an adapter around it or not."""
        return self.language.get_base_model() if hasattr(self.language, "peft_config") else self.language

    def add_lora(self) -> None:
        self.language = add_lora(self.language, self.config.lora)

    def encode_images(self, pixels: torch.Tensor | None, features: torch.Tensor | None = None) -> torch.Tensor:
        """[P, 3, H, W] pixels, or [P, N, C] features of the frozen tower -> [P, V, D] visual tokens."""
        if features is None:
            with torch.no_grad():
                features = self.vision(pixels.to(self.projector.weight.dtype))
        return self.projector(features.to(self.projector.weight.dtype))

    def embed(self, ids: torch.Tensor, visual: torch.Tensor | None) -> torch.Tensor:
        """[B, L] ids -> [B, L, D]; visual tokens take the places of IMAGE_TOKEN_ID, in order."""
        embedded = self.decoder.get_input_embeddings()(ids.clamp(min=0))
        places = (ids == IMAGE_TOKEN_ID)[..., None]  # [B, L, 1]
        given = 0 if visual is None else visual.shape[0] * visual.shape[1]
        if int(places.sum()) != given:
            raise ValueError(f"The rows have {int(places.sum())} places for visual tokens, but {given} were given.")
        return embedded if visual is None else embedded.masked_scatter(places, visual.to(embedded.dtype))

    def forward(
        self, batch: Batch, tokens: float | None = None, guidance: float = 0.0, text_only: bool = False
    ) -> Losses:
        """The losses of a batch.

        tokens: what they are divided by; the number of supervised tokens of the batch, unless the batch is one part of
        a larger step. guidance: 0 to 1, see `attention.Supervision`. text_only: no row has a place for
        the image of the batch; it passes through the same layers, as ZeRO-3 needs it, and changes nothing. Nothing of
        the batch is changed.
        """
        visual, features = None, batch.features
        if features is None and batch.pixels is not None:
            with torch.no_grad():
                features = to_cache_dtype(self.vision(batch.pixels.to(self.projector.weight.dtype)))
        if features is not None:
            visual = self.encode_images(None, features)
        supervision = Supervision(guidance)
        losses = self.token_losses(batch, visual, supervision, text_only)
        attention, weight = (losses.new_zeros(()) + total for total in supervision.summed())
        return Losses(*(total / max(1, tokens or len(losses)) for total in (losses.sum(), attention, weight)))

    def token_losses(
        self,
        batch: Batch,
        visual: torch.Tensor | None,
        supervision: Supervision | None = None,
        text_only: bool = False,
    ) -> torch.Tensor:
        """[supervised]: -log of the probability of every supervised token, row after row, given all before it.

        visual: [P, V, D] of all images of the batch, in order. supervision: gets the losses of supervised attention.
        text_only: visual enters with weight 0, as part of the embeddings: then gradients flow through the same layers
        as with an image, and ZeRO-3's processes move them in step.
        """
        embedded = self.embed(batch.ids, None if text_only else visual)
        if text_only:
            embedded = embedded + 0 * visual.to(embedded.dtype).sum()
        if batch.layout is None:
            visibility = {"attention_mask": attention_bias(attention_mask(batch.blocks), embedded.dtype)}
        else:
            visibility = {"layout": batch.layout, "supervision": supervision}
        states = self.decoder.model(
            inputs_embeds=embedded, position_ids=batch.positions, use_cache=False, **visibility
        ).last_hidden_state  # [B, L, D]
        wanted = batch.labels[:, 1:] != IGNORE_INDEX
        logits = self.decoder.lm_head(states[:, :-1][wanted])  # [supervised, vocabulary]
        return F.cross_entropy(logits.float(), batch.labels[:, 1:][wanted], reduction="none")


def to_cache_dtype(features: torch.Tensor) -> torch.Tensor:
    """Features of the frozen tower in the 16 bits that a feature cache holds: training without one is the same."""
    return features.half()


def attention_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as what is added to the attention scores: 0 where a query may look, else the lowest number."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
