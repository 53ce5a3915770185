"""Cached features: the same as computed ones, known again after a save, refused for another tower."""

import copy

import pytest
import torch

from minigptv2.config import VisionConfig
from minigptv2.errors import UserError
from minigptv2.images import to_pixels
from minigptv2.model.vision import VisionTower
from minigptv2.train.feature_cache import _Drawn, build_cache
from minigptv2.train.precision import best_dtype, call_in


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return VisionTower(VisionConfig(width=32, depth=1, heads=2, stem_channels=(8,) * 7)).eval()


def test_cached_equals_computed_and_a_stored_tower_is_known(tower, tmp_path):
    cache = build_cache(tower, tmp_path, seed=3, count=3, workers=0)
    image, _ = _Drawn(3, 448, 0, 3)[1]
    with torch.inference_mode():
        computed = call_in(tower, best_dtype(torch.device("cpu")), to_pixels(torch.from_numpy(image)[None]))[0]
    assert torch.allclose(cache[1].float(), computed.float(), atol=2e-2)
    stored = copy.deepcopy(tower).half().float()
    again = build_cache(stored, tmp_path, seed=3, count=3, workers=0)
    assert again.scenes == cache.scenes
    assert len(again.scenes) == 3


def test_another_tower_is_refused(tower, tmp_path):
    build_cache(tower, tmp_path, seed=3, count=2, workers=0)
    with torch.no_grad():
        tower.trunk.pos_embed.add_(1)
    with pytest.raises(UserError, match="another tower"):
        build_cache(tower, tmp_path, seed=3, count=2, workers=0)
