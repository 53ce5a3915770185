"""The vision tower: pixels -> one vector for each patch. Built from timm; frozen in all three stages.

Shapes: B images, H = W pixels of the image resized to a square, N patches in raster order, C channels of the tower.
Source: MiniGPT-v2 (arXiv 2310.09478) section 2; the tower is EVA-CLIP ViT-g/14 (arXiv 2211.07636).
"""

import difflib
import re
from functools import lru_cache, partial
from math import isqrt
from pathlib import Path

import torch
from torch import nn

from minigptv2.config import CLIP_MEAN, CLIP_STD, VisionConfig
from minigptv2.errors import UserError
from minigptv2.model.weight_files import open_file


class VisionTower(nn.Module):
    """A timm model and `ln_vision`, a LayerNorm: pixels [B, 3, H, W] -> [B, N, C].

    The pixels are normalised by the config's `image_mean` and `image_std`. Two types of timm model fit:

        a vision transformer   its last norm, class token and register tokens are dropped; N patches
        a convolutional net    its last feature map [B, C, rows, columns]; each position is a patch, N = rows * columns

    `ln_vision` has eps 1e-5 and stays at weight 1, bias 0 unless a file holds it: the published model never trained it.
    """

    def __init__(self, config: VisionConfig):
        """config: its image_mean and image_std are filled in where they are empty."""
        super().__init__()
        self.config = config
        if not config.image_mean:
            config.image_mean, config.image_std = pretrained_normalization(config.timm_name)
        self.trunk = _build_trunk(config)
        self.ln_vision = nn.LayerNorm(self.width, eps=1e-5)

    @property
    def is_convolutional(self) -> bool:
        return hasattr(self.trunk, "feature_info") and not hasattr(self.trunk, "patch_embed")

    @property
    def width(self) -> int:
        """C."""
        return self.trunk.feature_info.channels()[-1] if self.is_convolutional else self.trunk.embed_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        if self.is_convolutional:
            side = self.config.image_size // self.trunk.feature_info.reduction()[-1]
            return side, side
        return self.trunk.patch_embed.grid_size

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix_positions(self) -> int | None:
        """Number of position embeddings before those of the patches: 1 if the class token has one. None if the model
        has no position embeddings."""
        table = getattr(self.trunk, "pos_embed", None)
        return None if table is None else table.shape[1] - self.patches

    def forward(self, pixels: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """pixels [B, 3, H, W] -> [B, N, C].

        places: [B, 2] int64, if pixels are square crops of images of the tower's size: row and column of the crop's
        first patch in the patch grid of the whole image. Patches get the position embeddings of the whole image.
        """
        trunk = self.trunk
        if self.is_convolutional:
            maps = trunk(pixels)[-1]  # [B, C, rows, columns]
            return self.ln_vision(maps.flatten(2).transpose(1, 2))  # [B, N, C]
        if places is None:
            tokens = trunk.forward_features(pixels)  # [B, prefix + N, C]
        else:
            tokens = trunk.blocks(trunk.norm_pre(self._embed_crops(pixels, places)))
        return self.ln_vision(tokens[:, trunk.num_prefix_tokens :])  # [B, N, C]

    def _embed_crops(self, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The input of the first block for crops: [B, 1 + N, C], the class token first."""
        trunk = self.trunk
        trunk.patch_embed.strict_img_size = False
        patches = trunk.patch_embed(pixels)  # [B, N, C]
        steps = torch.arange(isqrt(patches.shape[1]), device=places.device)
        rows, columns = (places[:, i, None] + steps for i in (0, 1))  # [B, side] each
        index = (rows[:, :, None] * self.grid[1] + columns[:, None]).flatten(1)  # [B, N]
        class_position, table = trunk.pos_embed[0].split([1, trunk.pos_embed.shape[1] - 1])
        class_token = (trunk.cls_token + class_position).expand(len(patches), -1, -1)
        return torch.cat([class_token, patches + table[index]], dim=1)

    def resize(self, image_size: int) -> None:
        """Take images of another size. A position table is interpolated; its entry for a class token is kept."""
        if self.is_convolutional:
            _check_reduction(self.config.timm_name, self.trunk, image_size)
        else:
            table, grid = self.trunk.pos_embed, self.grid
            with next(self.trunk.parameters()).device:  # timm 1.0.29 runs the stem on an image made on the CPU
                self.trunk.set_input_size(image_size)
            if table is not None:
                resized = interpolate_positions(table.detach(), grid, self.grid)
                self.trunk.pos_embed = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.config.image_size = image_size


def pretrained_normalization(timm_name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of red, green and blue with which timm's weights of this model were trained;
    CLIP's for a model that timm does not know, and for an empty name."""
    import timm

    found = timm.get_pretrained_cfg(timm_name) if timm_name and timm.is_model(timm_name) else None
    return (tuple(found.mean), tuple(found.std)) if found else (CLIP_MEAN, CLIP_STD)


def normalization_notice(config: VisionConfig) -> str:
    """What to print where a config normalises otherwise than timm's weights of its tower expect; else empty."""
    own = pretrained_normalization(config.timm_name)
    if not (config.timm_name and config.image_mean) or (config.image_mean, config.image_std) == own:
        return ""
    return (
        f"image_mean is {list(config.image_mean)} and image_std is {list(config.image_std)}. "
        f"timm's weights of {config.timm_name} were trained with {list(own[0])} and {list(own[1])}. "
        "Remove both from model.vision, unless the tower's weights are your own and were trained with these."
    )


# timm's modules after the last block of a vision transformer: the last norm, pooling of the patches, classifiers
_AFTER_BLOCKS = ("norm", "fc_norm", "attn_pool", "head", "head_drop", "head_dist", "pre_logits")


def fill_tower(tower: VisionTower, file: Path) -> None:
    """Fill the tower with a file of its timm model's weights: safetensors or a torch file, in timm's names, flat, such
    as `eva_vit_g.pth`. The position table may be of another image size.

    Weights of layers that the tower lacks are ignored: blocks after its last one, poolings, classifiers.
    Raises UserError where the file cannot be read, and one that names what else is missing or unknown.
    """
    found = dict(open_file(file))
    trunk = tower.trunk.state_dict()
    norm = {"weight": found.pop("ln_vision.weight", None), "bias": found.pop("ln_vision.bias", None)}
    found = _used_weights(tower, found)
    if "pos_embed" in trunk and "pos_embed" in found and found["pos_embed"].shape != trunk["pos_embed"].shape:
        side = round((found["pos_embed"].shape[1] - tower.prefix_positions) ** 0.5)
        found["pos_embed"] = interpolate_positions(found["pos_embed"], (side, side), tower.grid)
    wrong = [f"{k} is missing" for k in trunk if k not in found and not k.endswith(("k_bias", "num_batches_tracked"))]
    wrong += [f"{k} is unknown" for k in found if k not in trunk]
    wrong += [f"{k} has shape {list(v.shape)}" for k, v in found.items() if k in trunk and v.shape != trunk[k].shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{file} does not fit the tower {tower.config.timm_name}: {'; '.join(wrong[:3])}{more}.",
            f"All {len(trunk)} tensors of the tower must be there, in timm's names.",
            "Check model.vision in the recipe.",
        )
    # not strict: k_bias, a buffer of zeros that is never trained, and counters of batch norms may be missing
    tower.trunk.load_state_dict(found, strict=False)
    if norm["weight"] is not None:
        tower.ln_vision.load_state_dict(norm)


def _used_weights(tower: VisionTower, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a file that are not of layers which the tower lacks, in float32, by the names in its trunk."""
    trunk = tower.trunk.state_dict()
    if tower.is_convolutional:
        # features_only flattens sequences: stages.0 of the file is stages_0 of the trunk
        found = {flat if (flat := k.replace(".", "_", 1)) in trunk else k: v for k, v in found.items()}
        dropped = {k for k in _full_model_names(tower.config) if k not in trunk}
    else:
        depth, after = len(tower.trunk.blocks), re.compile(rf"(blocks\.(\d+)|{'|'.join(_AFTER_BLOCKS)})\.")
        dropped = {k for k in found if (m := after.match(k)) and (m[2] is None or int(m[2]) >= depth)} - trunk.keys()
    return {k: v.float() for k, v in found.items() if k not in dropped}


def _full_model_names(config: VisionConfig) -> list[str]:
    """Names of all weights of the timm model, classifier included."""
    import timm

    options = {k: v for k, v in config.timm_options.items() if k not in ("features_only", "out_indices")}
    with torch.device("meta"):
        return list(timm.create_model(config.timm_name, pretrained=False, **options).state_dict())


def interpolate_positions(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """[1, prefix + N, C] positions of an old grid (rows, columns) -> of a new one; the prefix is kept.

    Bicubic with corners not aligned and no antialiasing, as the published model: timm's own filter is another one.
    """
    prefix, places = table.split([table.shape[1] - old[0] * old[1], old[0] * old[1]], dim=1)
    map_ = places.unflatten(1, old).permute(0, 3, 1, 2)  # [1, C, rows, columns]
    map_ = nn.functional.interpolate(map_.float(), size=new, mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat([prefix, map_.flatten(2).transpose(1, 2)], dim=1)


_PADDING = 1  # pixels around the input of each of the stem's convolutions


def _stem_side(config: VisionConfig) -> int:
    """Places of a side after the stem. timm would try an image out, which needs weights."""
    side = config.image_size
    for kernel, stride in zip(config.stem_kernels, config.stem_strides):
        side = (side + 2 * _PADDING - kernel) // stride + 1
        if side < 1:
            raise ValueError(f"an image of {config.image_size} pixels is smaller than the stem's kernels")
    return side


def _build_named(config: VisionConfig) -> nn.Module:
    """A timm vision transformer without its last norm, or the feature maps of a timm convolutional network.

    Raises UserError where timm has no model of that name, or where it is of another type.
    """
    import timm

    name, options = config.timm_name, config.timm_options
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 3)
        raise UserError(
            f"timm has no model {name!r}.",
            f"The nearest names: {', '.join(near) or 'none'}.",
            "Correct model.vision.timm_name; timm.list_models() gives all names.",
        )
    weights = {"pretrained": False, "checkpoint_path": ""}
    try:
        if _is_convolutional(name):
            trunk = timm.create_model(name, **weights, **{**options, "features_only": True})
            _check_reduction(name, trunk, config.image_size)
            return trunk
        trunk = timm.create_model(name, **weights, img_size=config.image_size, num_classes=0, global_pool="", **options)
        if isinstance(getattr(trunk, "blocks", None), nn.Sequential | nn.ModuleList) and hasattr(trunk, "pos_embed"):
            trunk.norm = nn.Identity()
            return trunk
        problem = f"it is a {type(trunk).__name__}"
    except UserError:
        raise
    except Exception as error:  # each of timm's models refuses options in its own way
        problem = " ".join(str(error).split())[:200]
    raise UserError(
        f"The timm model {name!r} cannot be the vision tower: {problem}.",
        "It must be a plain vision transformer or a convolutional network, with options that timm knows.",
        "Choose another model.vision.timm_name, such as vit_base_patch16_siglip_384, or correct timm_options.",
    )


def _check_reduction(name: str, trunk: nn.Module, image_size: int) -> None:
    """Raise UserError unless the last feature map has a whole number of positions along a side of the image."""
    reduction = trunk.feature_info.reduction()[-1]
    if image_size % reduction or image_size < reduction:
        near = max(1, round(image_size / reduction)) * reduction
        raise UserError(
            f"image_size is {image_size}, and {name} makes one patch of {reduction} x {reduction} pixels.",
            f"It must be a multiple of {reduction}.",
            f"Try model.vision.image_size={near}.",
        )


@lru_cache
def _is_convolutional(name: str) -> bool:
    """Whether timm's model, without options, has convolutions and no attention."""
    import timm

    with torch.device("meta"):
        modules = [type(module).__name__ for module in timm.create_model(name, pretrained=False).modules()]
    return any("Conv" in m for m in modules) and not any("Attention" in m or "Attn" in m for m in modules)


def _build_trunk(config: VisionConfig) -> nn.Module:
    from timm.layers import HybridEmbed, build_sincos2d_pos_embed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    if config.timm_name:
        if ":" in config.timm_name:
            raise ValueError(f"timm_name {config.timm_name!r} names a place; it must be one that timm builds itself")
        return _build_named(config)
    stem = ConvStem(
        depth=len(config.stem_channels),
        channels=tuple(config.stem_channels),
        kernel_size=tuple(config.stem_kernels),
        stride=tuple(config.stem_strides),
        padding=(_PADDING,) * len(config.stem_channels),
    )
    stem.num_features = config.stem_channels[-1]
    side = _stem_side(config)
    trunk = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.stem_patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=0,
        global_pool="",
        embed_layer=partial(HybridEmbed, stem, feature_size=side, feature_ratio=config.image_size // side),
    )
    trunk.norm = nn.Identity()
    # as large as the stem's output, and neighbours alike: what is learned of one place is half learned of the next
    waves = build_sincos2d_pos_embed(trunk.patch_embed.grid_size, config.width, temperature=30.0)
    nn.init.trunc_normal_(trunk.pos_embed, std=0.02)
    trunk.pos_embed.data[0, 1:] += 0.28 * waves.to(trunk.pos_embed.device)
    return trunk
