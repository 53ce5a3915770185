"""Towers by timm's names: their weights, pixels and features against timm's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from minigptv2.config import CLIP_MEAN, CLIP_STD, VisionConfig
from minigptv2.errors import UserError
from minigptv2.images import load_square, normalize
from minigptv2.model.model_folder import CONFIG, read_config
from minigptv2.model.vision import VisionTower, fill_tower, normalization_notice
from minigptv2.train.feature_cache import fingerprint

HALF = (0.5, 0.5, 0.5)
SIGLIP_OPTIONS = {"depth": 1, "embed_dim": 24, "num_heads": 2}


def siglip(**more) -> VisionConfig:
    return VisionConfig("vit_base_patch16_siglip_384", SIGLIP_OPTIONS, image_size=32, **more)


def timm_siglip(folder):
    """timm's own model of random weights, and its file."""
    import timm

    torch.manual_seed(0)
    full = timm.create_model("vit_base_patch16_siglip_384", img_size=32, **SIGLIP_OPTIONS).eval()
    save_file(full.state_dict(), folder / "siglip.safetensors")
    return full, folder / "siglip.safetensors"


def test_siglip_pixels_and_features_are_those_of_timm(tmp_path):
    import timm

    full, file = timm_siglip(tmp_path)
    tower = VisionTower(siglip()).eval()
    fill_tower(tower, file)
    assert (tower.config.image_mean, tower.config.image_std) == (HALF, HALF)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    data = timm.data.resolve_model_data_config(full)
    assert data["interpolation"] == "bicubic"
    data |= {"input_size": (3, 32, 32), "crop_mode": "squash", "crop_pct": 1.0}
    theirs = timm.data.create_transform(**data)(image)[None]
    square = torch.from_numpy(load_square(image, 32))[None]
    ours = normalize(square, tower.config.image_mean, tower.config.image_std)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    full.norm = torch.nn.Identity()  # the tower ends before it
    with torch.inference_mode():
        torch.testing.assert_close(tower(ours), tower.ln_vision(full.forward_features(theirs)), rtol=0, atol=1e-5)


def test_given_normalization_is_kept_and_a_contradiction_with_timm_is_noted():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    config = siglip(image_mean=mean, image_std=std)
    VisionTower(config)
    assert (config.image_mean, config.image_std) == (mean, std)
    notice = normalization_notice(config)
    assert "[0.1, 0.2, 0.3]" in notice and "[0.5, 0.5, 0.5]" in notice and "model.vision" in notice
    assert not normalization_notice(siglip()) and not normalization_notice(siglip(image_mean=HALF, image_std=HALF))
    assert not normalization_notice(VisionConfig(image_mean=mean, image_std=std))


def test_a_tower_without_a_timm_name_has_clip_normalization():
    config = VisionConfig(width=16, depth=1, heads=2, stem_channels=(8,) * 9)
    VisionTower(config)
    assert (config.image_mean, config.image_std) == (CLIP_MEAN, CLIP_STD)


def test_an_old_folder_keeps_clip_normalization(tmp_path):
    old = '{"vision": {"timm_name": "vit_base_patch16_siglip_384", "image_size": 32}}'
    (tmp_path / CONFIG).write_text(old)
    for name in ("model.safetensors", "tokenizer.model"):
        (tmp_path / name).touch()
    vision = read_config(tmp_path).vision
    assert (vision.image_mean, vision.image_std) == (CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize(
    "given",
    [
        {"image_mean": HALF},
        {"image_std": HALF},
        {"image_mean": (0.5,), "image_std": (0.5,)},
        {"image_mean": HALF, "image_std": (0.5, 0.0, 0.5)},
    ],
)
def test_a_mean_and_standard_deviation_that_are_none_raise_user_error(given):
    with pytest.raises(UserError, match="Both have three numbers"):
        VisionConfig(**given)


def test_fingerprint_of_a_clip_tower_is_that_of_older_versions():
    torch.manual_seed(0)
    tower = VisionTower(VisionConfig("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 16, "num_heads": 2}, 32))
    for tensor in tower.state_dict().values():
        torch.nn.init.constant_(tensor, 0.5)
    tower.config.image_mean, tower.config.image_std = CLIP_MEAN, CLIP_STD
    assert fingerprint(tower) == "0268d4b594479c6caa585ef441e4b26f"
    tower.config.image_mean = HALF
    assert fingerprint(tower) != "0268d4b594479c6caa585ef441e4b26f"


def test_a_siglip_tower_is_filled_without_its_pooling_head(tmp_path):
    whole, file = timm_siglip(tmp_path)
    assert any(name.startswith("attn_pool.") for name in whole.state_dict())
    tower = VisionTower(siglip())
    fill_tower(tower, file)
    trunk = tower.trunk.state_dict()
    assert all(whole.state_dict()[name].equal(tensor) for name, tensor in trunk.items())
    assert tower(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 24)
    save_file(whole.state_dict() | {"strange.weight": torch.zeros(2)}, tmp_path / "strange.safetensors")
    with pytest.raises(UserError, match="strange.weight is unknown"):
        fill_tower(VisionTower(siglip()), tmp_path / "strange.safetensors")


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("vit_base_patch16_siglp_384", {}, "vit_base_patch16_siglip_384"),
        ("convnext_tiny", {}, "it is a convolutional network"),
        ("resnet18", {}, "it is a convolutional network"),
        ("vit_tiny_patch16_224", {"dept": 1}, "dept"),
        ("swin_tiny_patch4_window7_224", {}, "must be a plain vision transformer"),
    ],
)
def test_a_timm_name_that_is_no_tower_is_told(name, options, problem):
    with pytest.raises(UserError, match=problem):
        VisionTower(VisionConfig(name, options, image_size=224))
