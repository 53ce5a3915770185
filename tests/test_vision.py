"""Towers by timm's names: their weights, pixels and features against timm's own."""

import json

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
        ("resnet18", {"dept": 1}, "dept"),
        ("vit_tiny_patch16_224", {"features_only": True}, "it is a FeatureGetterNet"),
        ("vit_tiny_patch16_224", {"dept": 1}, "dept"),
        ("swin_tiny_patch4_window7_224", {}, "must be a plain vision transformer or a convolutional network"),
    ],
)
def test_timm_name_that_is_not_a_tower_raises_user_error(name, options, problem):
    with pytest.raises(UserError, match=problem):
        VisionTower(VisionConfig(name, options, image_size=224))


# ---- vision transformers without a class token, and with registers ----


def test_a_tower_without_class_token_keeps_all_patches_and_is_resized(tmp_path):
    import timm

    full, file = timm_siglip(tmp_path)
    tower = VisionTower(siglip()).eval()
    fill_tower(tower, file)
    assert (tower.prefix_positions, tower.grid, tower.patches, tower.width) == (0, (2, 2), 4, 24)
    table = full.pos_embed.detach()
    tower.resize(64)
    assert (tower.grid, tower.patches, tower.config.image_size) == ((4, 4), 16, 64)
    expected = torch.nn.functional.interpolate(
        table.unflatten(1, (2, 2)).permute(0, 3, 1, 2), size=(4, 4), mode="bicubic"
    )
    torch.testing.assert_close(tower.trunk.pos_embed.detach(), expected.flatten(2).transpose(1, 2))
    larger = VisionTower(VisionConfig("vit_base_patch16_siglip_384", SIGLIP_OPTIONS, image_size=64)).eval()
    fill_tower(larger, file)  # the file's table is of 32 pixels
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(larger(pixels), tower(pixels), rtol=0, atol=0)
        model = timm.create_model("vit_base_patch16_siglip_384", img_size=64, global_pool="", **SIGLIP_OPTIONS).eval()
        model.load_state_dict(tower.trunk.state_dict(), strict=False)
        model.norm = torch.nn.Identity()
        torch.testing.assert_close(tower(pixels), tower.ln_vision(model.forward_features(pixels)), rtol=0, atol=1e-6)


def test_a_table_without_positions_of_registers_is_interpolated(tmp_path):
    import timm

    options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    torch.manual_seed(0)
    full = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=28, **options).eval()
    save_file(full.state_dict(), tmp_path / "dino.safetensors")
    tower = VisionTower(VisionConfig("vit_small_patch14_reg4_dinov2", options, image_size=56)).eval()
    fill_tower(tower, tmp_path / "dino.safetensors")
    assert (tower.prefix_positions, tower.patches) == (0, 16)
    assert tower(torch.zeros(1, 3, 56, 56)).shape == (1, 16, 24)


# ---- convolutional networks ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_a_convolutional_tower_gives_the_last_feature_map_of_timm(name, tmp_path):
    import timm

    torch.manual_seed(0)
    full = timm.create_model(name).eval()
    for module in full.modules():  # statistics that a batch norm has after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    save_file(full.state_dict(), tmp_path / "net.safetensors")
    tower = VisionTower(VisionConfig(name, image_size=96)).eval()
    fill_tower(tower, tmp_path / "net.safetensors")
    features = timm.create_model(name, features_only=True).eval()
    features.load_state_dict(tower.trunk.state_dict())
    assert all(t.equal(full.state_dict()[k]) for k, t in features.state_dict().items() if k in full.state_dict())
    pixels = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        ours = tower(pixels)
        last = features(pixels)[-1]  # [2, C, 3, 3]
        rows = torch.stack([last[:, :, y, x] for y in range(3) for x in range(3)], 1)  # raster order
        torch.testing.assert_close(ours, tower.ln_vision(rows), rtol=0, atol=0)
        theirs = full.forward_intermediates(pixels, intermediates_only=True)[-1]  # of the model that is not cut
        torch.testing.assert_close(last, theirs, rtol=0, atol=1e-6)
    assert (tower.grid, tower.patches, tower.width) == ((3, 3), 9, last.shape[1])
    tower.resize(128)
    assert tower(torch.zeros(1, 3, 128, 128)).shape == (1, tower.patches, tower.width) == (1, 16, last.shape[1])
    with pytest.raises(UserError, match="multiple of 32"):
        tower.resize(100)


def test_a_convolutional_tower_of_unfitting_size_or_weights_raises_user_error(tmp_path):
    import timm

    with pytest.raises(UserError, match="test_resnet makes one patch of 32 x 32 pixels"):
        VisionTower(VisionConfig("test_resnet", image_size=80))
    weights = timm.create_model("test_resnet").state_dict()
    save_file(weights | {"strange.weight": torch.zeros(2)}, tmp_path / "strange.safetensors")
    with pytest.raises(UserError, match="strange.weight is unknown"):
        fill_tower(VisionTower(VisionConfig("test_resnet", image_size=64)), tmp_path / "strange.safetensors")


def test_an_earlier_feature_map_is_chosen_by_out_indices():
    tower = VisionTower(VisionConfig("test_resnet", {"out_indices": [2]}, image_size=64)).eval()
    assert tower.grid == (8, 8) and tower(torch.zeros(1, 3, 64, 64)).shape == (1, 64, tower.width)


def test_patches_that_cannot_be_merged_raise_user_error():
    from minigptv2.config import LanguageConfig, ModelConfig
    from minigptv2.model.grounding_vlm import GroundingVLM

    config = ModelConfig(VisionConfig("test_resnet", image_size=96), LanguageConfig(60, 32, 64, 1, 4, 2, 64))
    with pytest.raises(UserError, match="9 patches cannot be merged by 4.\n.*: 1, 3, 9"):
        GroundingVLM(config)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_384", "test_resnet"])
def test_pretraining_on_scenes_refuses_a_tower_without_class_position(name):
    from minigptv2.train.pretrain_vision import build_dense
    from minigptv2.train.recipe import Recipe

    recipe = Recipe("", task="pretrain_vision")
    recipe.model.vision = VisionConfig(name, SIGLIP_OPTIONS if "vit" in name else {}, image_size=32)
    with pytest.raises(UserError, match="cannot be pre-trained on scenes"):
        build_dense(recipe, torch.device("cpu"))


# ---- through the command line ----

RECIPE = """
output: {folder}/run
init: nothing
model:
  vision: {{timm_name: {name}, timm_options: {options}, image_size: 64}}
  language:
    hidden_size: 32
    intermediate_size: 64
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 2
data: {{sources: [{{name: scenes, options: {{count: 8, side: 64, exchanges: 2}}}}]}}
tokenizer_scenes: 40
attention: 1
max_steps: 2
batch: 2
workers: 0
device: cpu
tensorboard: false
cache: {{dir: '{cache}'}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "cached", "patches", "mean"),
    [
        ("vit_base_patch16_siglip_384", "{depth: 1, embed_dim: 24, num_heads: 2}", False, 16, [0.5, 0.5, 0.5]),
        ("test_resnet", "{}", True, 4, [0.5, 0.5, 0.5]),
    ],
)
def test_a_recipe_with_such_a_tower_trains_and_its_model_answers(name, options, cached, patches, mean, tmp_path):
    from minigptv2 import MiniGPTv2, cli
    from minigptv2.commands.info import info

    cache = tmp_path / "cache" if cached else ""
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path, name=name, options=options, cache=cache))
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 0
    model = MiniGPTv2.from_pretrained(tmp_path / "run/model", "cpu")
    assert model.network.image_tokens == patches // 4
    assert json.loads((tmp_path / "run/model/config.json").read_text())["vision"]["image_mean"] == mean
    assert isinstance(model.chat(Image.new("RGB", (80, 60), "red"), "[refer] red ball", 4).text, str)
    assert f"{name}, width {model.network.vision.width}, " in info(tmp_path / "run/model")
