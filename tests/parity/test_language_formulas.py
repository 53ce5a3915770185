"""LLaMA with LoRA and the loss over answers, written out in plain torch: full tensors in float32 against ours.

Shapes: L tokens of one row, D the width, C channels of the tower. Embeddings are small, so that another epsilon shows.
"""

import pytest
import torch

from minigptv2.config import LanguageConfig, LoraConfig, ModelConfig, VisionConfig
from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID, EncodedRow
from minigptv2.model.grounding_vlm import GroundingVLM, attention_bias
from minigptv2.packing import attention_mask, collate

HEADS, LAYERS, RANK, ALPHA, EPS = 4, 2, 8, 2, 1e-5  # the published scale: 16 / 64 = 2 / 8
CONFIG = ModelConfig(
    VisionConfig("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2}, 64),
    LanguageConfig(60, 32, 48, LAYERS, HEADS, HEADS, 64, EPS),
    LoraConfig(RANK, ALPHA),
)


def normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: torch.Tensor) -> torch.Tensor:
    """[L, D of a head]: number n of the first half and of the second are one complex number, turned by its position."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    number = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([number.real, number.imag], -1)


def projected(x: torch.Tensor, w: dict, name: str, scale: float) -> torch.Tensor:
    if f"{name}.weight" in w:
        return x @ w[f"{name}.weight"].T
    low = x @ w[f"{name}.lora_A.default.weight"].T
    return x @ w[f"{name}.base_layer.weight"].T + scale * (low @ w[f"{name}.lora_B.default.weight"].T)


def llama_block(x: torch.Tensor, w: dict, at: str, scale: float = ALPHA / RANK, eps: float = EPS) -> torch.Tensor:
    """[L, D]: causal attention with turned queries and keys, then SwiGLU; both pre-norm."""
    n = normalised(x, w[f"{at}.input_layernorm.weight"], eps)
    q, k, v = (projected(n, w, f"{at}.self_attn.{p}_proj", scale).chunk(HEADS, -1) for p in "qkv")
    future = torch.ones(len(x), len(x)).triu(1).bool()
    seen = []
    for one, other, told in zip(q, k, v):
        score = turned(one) @ turned(other).T / one.shape[-1] ** 0.5
        seen.append(score.masked_fill(future, -torch.inf).softmax(-1) @ told)
    x = x + torch.cat(seen, -1) @ w[f"{at}.self_attn.o_proj.weight"].T
    n = normalised(x, w[f"{at}.post_attention_layernorm.weight"], eps)
    gate = n @ w[f"{at}.mlp.gate_proj.weight"].T
    return x + (gate * gate.sigmoid() * (n @ w[f"{at}.mlp.up_proj.weight"].T)) @ w[f"{at}.mlp.down_proj.weight"].T


def answer_losses(row: EncodedRow, visual: torch.Tensor, w: dict) -> list[torch.Tensor]:
    """-log p of every supervised token: the logits of the place before it, over the whole vocabulary."""
    images = iter(visual.flatten(0, 1))
    x = torch.stack([next(images) if i == IMAGE_TOKEN_ID else w["model.embed_tokens.weight"][i] for i in row.ids])
    for i in range(LAYERS):
        x = llama_block(x, w, f"model.layers.{i}")
    logits = normalised(x, w["model.norm.weight"], EPS) @ w["lm_head.weight"].T
    wanted = [(place, label) for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
    return [logits[place - 1].logsumexp(-1) - logits[place - 1, label] for place, label in wanted]


@pytest.fixture(scope="module")
def ours() -> GroundingVLM:
    """A model whose every weight is drawn, norms and both halves of the adapter too."""
    torch.manual_seed(0)
    model = GroundingVLM(CONFIG).eval().requires_grad_(False)
    for name, weight in model.decoder.named_parameters():
        weight.normal_(std=0.01 if "embed" in name else 0.3).add_(1.0 if "norm" in name else 0.0)
    return model


def _weights(ours: GroundingVLM) -> dict[str, torch.Tensor]:
    return dict(ours.decoder.state_dict())


def _close(one, other) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_block_with_its_adapter(ours):
    w, x = _weights(ours), torch.randn(11, 32) * 0.01
    positions = torch.arange(11)[None]
    bias = attention_bias(attention_mask(torch.zeros(1, 11, dtype=torch.int64)), torch.float32)
    around = ours.decoder.model.rotary_emb(x[None], positions)
    found = ours.decoder.model.layers[1](x[None], attention_mask=bias, position_embeddings=around)[0]
    _close(found, llama_block(x, w, "model.layers.1"))
    for other in (llama_block(x, w, "model.layers.1", scale=1.0), llama_block(x, w, "model.layers.1", eps=1e-6)):
        assert (found - other).abs().max() > 1e-3


def test_the_adapter_is_on_queries_and_values_alone(ours):
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in _weights(ours) if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_the_loss_over_answers(ours):
    """Rows of different lengths, one without an image and one with two answers, padded to one batch."""
    torch.manual_seed(1)
    drawn = iter(torch.randint(3, 60, (200,)).tolist())
    rows = []
    for images, answers in ((1, 1), (0, 1), (2, 2)):
        row = EncodedRow()
        for _ in range(images):
            row.add([next(drawn) for _ in range(3)])
            row.add([IMAGE_TOKEN_ID] * ours.image_tokens)
        for _ in range(answers):
            row.add([next(drawn) for _ in range(2 + 3 * images)])
            row.add([next(drawn) for _ in range(2 + images)], supervised=True)
        rows.append(row)
    batch = collate(rows)
    batch.features = torch.randn(3, ours.vision.patches, ours.vision.width) * 0.05
    visual = ours.encode_images(None, batch.features)
    w = _weights(ours)
    expected = [answer_losses(r, v, w) for r, v in zip(rows, (visual[:1], visual[:0], visual[1:]))]
    _close(ours.token_losses(batch, visual), torch.stack(sum(expected, [])))
    _close(ours(batch).answer, torch.stack(sum(expected, [])).mean())
