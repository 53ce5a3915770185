"""The published tower and projection, written out in plain torch: full tensors in float32 against ours.

Shapes: B images, N patches, C channels of the tower. Values are small on purpose, so that another epsilon would show.
"""

import math

import pytest
import torch

from minigptv2.config import LanguageConfig, ModelConfig, VisionConfig
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.vision import VisionTower, interpolate_positions

HEADS, DEPTH, SIDE = 4, 3, 56  # pixels: 4 x 4 patches of 14
EVA = VisionConfig(
    "eva_giant_patch14_224", {"embed_dim": 32, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 6144 / 1408}, SIDE
)


def normalised(x: torch.Tensor, w: dict, name: str, eps: float) -> torch.Tensor:
    away = x - x.mean(-1, keepdim=True)
    return away / (away.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def eva_block(x: torch.Tensor, w: dict, at: str, eps: float = 1e-6) -> torch.Tensor:
    """[B, 1 + N, C]: attention with a bias on queries and values but none on keys, then a GELU layer; both pre-norm."""
    n = normalised(x, w, f"{at}.norm1", eps)
    to_q, to_k, to_v = w[f"{at}.attn.qkv.weight"].chunk(3)
    q, k, v = n @ to_q.T + w[f"{at}.attn.q_bias"], n @ to_k.T, n @ to_v.T + w[f"{at}.attn.v_bias"]
    seen = []
    for one, other, told in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1)):
        weight = (one @ other.transpose(1, 2) / math.sqrt(one.shape[-1])).exp()
        seen.append(weight / weight.sum(-1, keepdim=True) @ told)
    x = x + torch.cat(seen, -1) @ w[f"{at}.attn.proj.weight"].T + w[f"{at}.attn.proj.bias"]
    inner = normalised(x, w, f"{at}.norm2", eps) @ w[f"{at}.mlp.fc1.weight"].T + w[f"{at}.mlp.fc1.bias"]
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    return x + inner @ w[f"{at}.mlp.fc2.weight"].T + w[f"{at}.mlp.fc2.bias"]


def tower(pixels: torch.Tensor, w: dict, depth: int = DEPTH, eps: float = 1e-5) -> torch.Tensor:
    """[B, 3, H, W] -> [B, N, C]: patches, class token, positions, blocks, no last norm, ln_vision without the class."""
    patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ w["trunk.patch_embed.proj.weight"].flatten(1).T + w["trunk.patch_embed.proj.bias"]
    x = torch.cat([w["trunk.cls_token"].expand(len(x), -1, -1), x], 1) + w["trunk.pos_embed"]
    for i in range(depth):
        x = eva_block(x, w, f"trunk.blocks.{i}")
    return normalised(x, w, "ln_vision", eps)[:, 1:]


def merged(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[B, N, C] -> [B, N / 4, D]: four tokens that follow each other in a row of the image become one."""
    fours = torch.cat([features[:, first::4] for first in range(4)], -1)
    return fours @ weight.T + bias


def cubic_weights(old: int, new: int) -> torch.Tensor:
    """[new, old]: what each new place takes of the old ones, by Keys' cubic with a = -0.75; edges are repeated."""
    out, a = torch.zeros(new, old, dtype=torch.float64), -0.75
    for place in range(new):
        centre = (place + 0.5) * old / new - 0.5
        for near in range(math.floor(centre) - 1, math.floor(centre) + 3):
            t = abs(centre - near)
            close, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            out[place, min(max(near, 0), old - 1)] += close if t <= 1 else far
    return out


def _random(module: torch.nn.Module, std: float = 0.02) -> dict[str, torch.Tensor]:
    """Every weight drawn anew, biases and norms too; their values by name."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            scales = name.endswith(("norm1.weight", "norm2.weight", "ln_vision.weight"))
            weight.normal_(std=std).add_(1.0 if scales else 0.0)
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_of_the_tower():
    ours = VisionTower(EVA).eval()
    w = _random(ours)
    x = torch.randn(2, 17, 32) * 2e-3
    _close(ours.trunk.blocks[1](x), eva_block(x, w, "trunk.blocks.1"))
    assert (ours.trunk.blocks[1](x) - eva_block(x, w, "trunk.blocks.1", eps=1e-5)).abs().max() > 1e-4


@torch.no_grad()
def test_the_whole_tower():
    ours = VisionTower(EVA).eval()
    w = _random(ours)
    pixels = torch.randn(2, 3, SIDE, SIDE) * 0.05
    _close(ours(pixels), tower(pixels, w))
    for other in (tower(pixels, w, eps=1e-6), tower(pixels, w, depth=DEPTH - 1)):
        assert (ours(pixels) - other).abs().max() > 1e-4


def test_a_fresh_ln_vision_is_the_published_one():
    fresh = VisionTower(EVA).ln_vision
    assert fresh.eps == 1e-5 and bool((fresh.weight == 1).all()) and bool((fresh.bias == 0).all())


@torch.no_grad()
def test_an_image_becomes_visual_tokens():
    ours = GroundingVLM(ModelConfig(EVA, LanguageConfig(60, 48, 64, 1, 4, 4, 64))).eval()
    w = _random(ours.vision)
    _random(ours.projector, 0.1)
    pixels = torch.randn(3, 3, SIDE, SIDE) * 0.05
    visual = ours.encode_images(pixels)
    assert visual.shape == (3, 4, 48)
    _close(visual, merged(tower(pixels, w), ours.projector.weight, ours.projector.bias))


@pytest.mark.parametrize("old, new", [((4, 4), (8, 8)), ((16, 16), (32, 32)), ((4, 4), (7, 7)), ((6, 4), (3, 5))])
def test_positions_are_stretched(old, new):
    torch.manual_seed(0)
    table = torch.randn(1, 1 + old[0] * old[1], 6)
    down, across = cubic_weights(old[0], new[0]), cubic_weights(old[1], new[1])
    places = table[0, 1:].double().reshape(*old, 6)
    stretched = torch.einsum("yr,xc,rcd->yxd", down, across, places).flatten(0, 1).float()
    _close(interpolate_positions(table, old, new), torch.cat([table[:, :1], stretched[None]], 1))
