"""Feature cache: the same loss as without it, damaged and interrupted shards, several processes, other towers."""

import copy
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from minigptv2 import files as files_module
from minigptv2.config import VisionConfig
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.mixture import DataConfig, Mixture, SourceConfig
from minigptv2.data.scenes.dataset import Scenes
from minigptv2.encode import PromptEncoder
from minigptv2.errors import UserError
from minigptv2.images import load_square, normalize
from minigptv2.model.vision import VisionTower
from minigptv2.sample import QuestionAnswer, Sample
from minigptv2.train import feature_cache
from minigptv2.train.dataloader import open_dataloader
from minigptv2.train.feature_cache import CacheConfig, FeatureCache, build_cache, image_key
from minigptv2.train.precision import best_dtype, call_in_dtype

TALK = (QuestionAnswer("vqa", question="what is this?", answer="an image"),)
ROW = 16 * 32 * 2  # bytes of one image's features: 16 patches, 32 channels


class Files:
    """One image for each record; the fixture `files` writes only some of them."""

    def __init__(self, folder, count: int):
        self.folder, self.count, self.problems = folder, count, ProblemCounter()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.folder / f"{index}.png", (0, 0), TALK, f"number {index}")


class Text(Files):
    def __getitem__(self, index: int) -> Sample:
        return Sample(None, (0, 0), TALK)


@pytest.fixture
def tower() -> VisionTower:
    torch.manual_seed(0)
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    return VisionTower(VisionConfig("vit_tiny_patch16_224", small, 64)).eval()


@pytest.fixture
def files(tmp_path) -> Files:
    """12 images; number 12 is missing and 13 is not an image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 255, (70, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "13.png").write_bytes(b"not an image")
    return Files(folder, 14)


@pytest.fixture
def few_rows(monkeypatch):
    """Shards of three images; returns the list of the keys that were written."""
    written = []
    compute, write = feature_cache._compute, feature_cache._write_shard

    def small(folder, tower, images, rows, *rest):
        compute(folder, tower, images, 3, *rest)

    def recorded(folder, keys, features, unreadable):
        write(folder, keys, features, unreadable)
        written.extend([*keys, *unreadable])

    monkeypatch.setattr(feature_cache, "_compute", small)
    monkeypatch.setattr(feature_cache, "_write_shard", recorded)
    return written


def config(tmp_path, **more) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), **more)


def computed(tower: VisionTower, source) -> torch.Tensor:
    side, mean, std = tower.config.image_size, tower.config.image_mean, tower.config.image_std
    pixels = normalize(torch.from_numpy(load_square(source, side))[None], mean, std)
    with torch.no_grad():
        return call_in_dtype(tower, best_dtype(torch.device("cpu")), pixels)[0].half()


# ---- cached features equal computed ones ----


def test_cached_features_equal_computed_features(tower, files, tmp_path):
    scenes = Scenes(3, image_size=64)
    cache = build_cache(config(tmp_path), tower, [files, scenes, Text(None, 5), files])
    assert len(cache) == 12 + 3
    for sample in (files[0], files[11], scenes[2]):
        torch.testing.assert_close(
            cache[sample.image].float(), computed(tower, sample.image).float(), atol=2e-2, rtol=0
        )
        assert cache[sample.image].shape == (16, 32) and cache[sample.image].dtype == torch.float16
    for number, reason in ((12, "does not exist"), (13, "not an image")):
        with pytest.raises(UserError, match=reason):
            cache[files[number].image]
    with pytest.raises(UserError, match="not in the feature cache"):
        cache[Scenes(4, image_size=64)[3].image]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_same_with_and_without_cache(tiny_model, files, tmp_path, dtype):
    network, datasets = tiny_model.network, [files, Text(None, 3), Scenes(3, questions_per_scene=3, tasks={"refer": 1})]
    cache = build_cache(config(tmp_path), network.vision, datasets, batch=4, dtype=dtype)
    encoder = PromptEncoder(tiny_model.tokenizer, "llama2", network.image_tokens, 512)
    data = DataConfig([SourceConfig(f"source{i}") for i in range(3)])
    losses, failures = [], []
    for given in (None, cache):
        micros = open_dataloader(
            data,
            encoder,
            "round",
            network.config.vision,
            seed=3,
            batch=4,
            samples_per_step=4,
            cache=given,
            opened=(datasets, Mixture(datasets, [1, 1, 1], 3)),
        )
        found = [next(micros) for _ in range(3)]
        assert all((m.batch.pixels is None) == (given is not None) for m in found if m.batch.ids.min() < 0)
        with torch.no_grad():
            losses.append([call_in_dtype(network, dtype, m.on("cpu")).answer.item() for m in found])
        failures.append([f.split(":")[0] for m in found for f in m.failures])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert failures[0] == failures[1] != []


@pytest.mark.slow
def test_cached_image_is_not_opened(tower, tmp_path, monkeypatch):
    scenes = Scenes(2, image_size=64, cache_dir=str(tmp_path / "things"))
    cache = build_cache(config(tmp_path), tower, [scenes])
    monkeypatch.setattr("minigptv2.data.scenes.dataset.draw_scene", None)
    assert cache[scenes[1].image].shape == (16, 32)


# ---- other towers and folders ----


def test_cache_of_another_tower_raises_user_error(tower, files, tmp_path):
    build_cache(config(tmp_path), tower, [files])
    written = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()}
    build_cache(config(tmp_path), copy.deepcopy(tower).half().float(), [files])
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()} == written
    with pytest.raises(UserError, match="another tower"):
        build_cache(config(tmp_path), copy.deepcopy(tower).bfloat16(), [files])
    with pytest.raises(UserError, match="fast_decode"):
        build_cache(config(tmp_path), tower, [files], fast_decode=True)
    with torch.no_grad():  # the same numbers in another order
        weight = tower.trunk.blocks[0].mlp.fc1.weight
        weight.copy_(weight.flip(0))
    with pytest.raises(UserError, match="another tower"):
        build_cache(config(tmp_path), tower, [files])


def test_foreign_folder_is_left_alone(tower, files, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "precious.npy").write_bytes(b"mine")
    with pytest.raises(UserError, match="precious|npy"):
        build_cache(config(tmp_path), tower, [files])
    (tmp_path / "cache" / "about.json").write_text("[]")
    with pytest.raises(UserError, match="another tower"):
        build_cache(config(tmp_path), tower, [files])
    assert (tmp_path / "cache" / "precious.npy").read_bytes() == b"mine"
    with pytest.raises(UserError, match="cannot be written"):
        build_cache(CacheConfig(str(files.folder / "0.png")), tower, [files])


# ---- shards ----


def test_shard_size_is_limited(tower, files, tmp_path, monkeypatch):
    build_cache(config(tmp_path, shard_megabytes=0), tower, [files])  # less than one image: one each
    shards = list((tmp_path / "cache").glob("*.npy"))
    assert len(shards) >= 12 and all(np.load(s).shape in ((1, 16, 32), (0, 0, 0)) for s in shards)
    assert not list((tmp_path / "cache").glob("*.new"))


@pytest.mark.parametrize("damage", ["bit", "cut", "removed", "json"])
def test_damaged_shard_is_reported_and_computed_again(tower, files, tmp_path, few_rows, capsys, damage):
    before = build_cache(config(tmp_path), tower, [files])
    expected = {n: before[files[n].image] for n in range(12)}
    few_rows.clear()
    keys_of = {f: json.loads(f.read_text())["keys"] for f in before.folder.glob("*.json") if f.name != "about.json"}
    about, keys = next((f, keys) for f, keys in keys_of.items() if keys)
    shard = about.with_suffix(".npy")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 16
    if damage == "removed":
        shard.unlink()
    elif damage == "json":
        shard.with_suffix(".json").write_text('{"keys": [')
    else:
        shard.write_bytes(content if damage == "bit" else content[:-40])
    capsys.readouterr()
    cache = build_cache(config(tmp_path), tower, [files])
    assert f"{shard} is damaged" in capsys.readouterr().out
    assert set(keys) <= set(few_rows) and len(few_rows) <= len(keys) + 2  # and those that could not be read
    assert all(torch.equal(cache[files[n].image], expected[n]) for n in range(12))
    few_rows.clear()
    build_cache(config(tmp_path), tower, [files])
    assert few_rows == [] and "damaged" not in capsys.readouterr().out


def test_killed_build_resumes(tower, files, tmp_path, few_rows, monkeypatch):
    class Killed(BaseException):
        pass

    write, count = feature_cache._write, [0]

    def dies(file, data):
        count[0] += 1
        if count[0] == 6:  # about.json, two shards of two files, and then half of one
            (file.parent / f"{file.name}.1.new").write_bytes(b"half")
            raise Killed
        write(file, data)

    monkeypatch.setattr(feature_cache, "_write", dies)
    with pytest.raises(Killed):
        build_cache(config(tmp_path), tower, [files])
    monkeypatch.setattr(feature_cache, "_write", write)
    first = list(few_rows)
    assert 5 < len(first) < 10
    few_rows.clear()
    cache = build_cache(config(tmp_path), tower, [files])
    assert set(first) & set(few_rows) == set() and len(first) + len(few_rows) == 14
    torch.testing.assert_close(cache[files[5].image], computed(tower, files[5].image), atol=2e-2, rtol=0)


def test_new_and_replaced_images_are_computed(tower, files, tmp_path, few_rows):
    cache = build_cache(config(tmp_path), tower, [Files(files.folder, 12)])
    old = cache[files[3].image]
    few_rows.clear()
    Image.new("RGB", (33, 20), "red").save(files.folder / "3.png")
    Image.new("RGB", (20, 33), "blue").save(files.folder / "12.png")
    cache = build_cache(config(tmp_path), tower, [files])
    assert sorted(few_rows) == sorted(image_key(files[n].image) for n in (3, 12, 13))
    assert not torch.equal(cache[files[3].image], old)
    torch.testing.assert_close(cache[files[3].image], computed(tower, files[3].image), atol=2e-2, rtol=0)


def test_ranks_divide_the_work_and_return_all_features(tower, files, tmp_path, few_rows):
    found: dict[int, FeatureCache] = {}

    def build(rank: int) -> None:
        own = copy.deepcopy(tower)
        found[rank] = build_cache(config(tmp_path), own, [files], rank=rank, world=3)

    ranks = [threading.Thread(target=build, args=(rank,), daemon=True) for rank in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(20)
    assert sorted(found) == [0, 1, 2] and all(len(cache) == 12 for cache in found.values())
    assert len(few_rows) == len(set(few_rows)) == 14, "no image is computed twice"


def test_waiting_for_a_missing_rank_ends(tower, files, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "STALLED", 0)
    with pytest.raises(UserError, match="other processes"):
        build_cache(config(tmp_path), tower, [files], rank=0, world=2)


def test_features_do_not_depend_on_the_number_of_workers(tower, files, tmp_path):
    caches = [
        build_cache(CacheConfig(str(tmp_path / f"cache{workers}")), tower, [files], workers=workers)
        for workers in (0, 2)
    ]
    assert all(torch.equal(caches[0][files[n].image], caches[1][files[n].image]) for n in range(12))


def test_second_run_waits_for_the_first_and_computes_nothing(tower, files, tmp_path, monkeypatch, capfd):
    """The first run is a process that holds the folder's lock; its features appear while the second waits."""
    other, folder = tmp_path / "other", tmp_path / "cache"
    build_cache(CacheConfig(str(other)), tower, [files])
    script = "import sys, pathlib; from minigptv2.files import file_lock\n" + (
        "with file_lock(pathlib.Path(sys.argv[1]), 'build'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"

    def other_ends(_seconds: float) -> None:
        for file in [*other.glob("*.npy"), *other.glob("*.json")]:
            shutil.copy(file, folder)
        holder.communicate()

    monkeypatch.setattr(files_module.time, "sleep", other_ends)
    monkeypatch.setattr(feature_cache, "_compute", None)
    assert len(build_cache(CacheConfig(str(folder)), tower, [files])) == 12
    assert f"waiting for process {holder.pid} on" in capfd.readouterr().err
