"""A cache on disk of the frozen vision tower's features, for the images of any source.

Its folder holds about.json, which identifies the tower, and shards. A shard is NAME.npy, [n, N, C] float16, and
NAME.json, which is written last: the keys of its n images, those that could not be read, and a checksum.

Shapes: N patches, C channels of the tower.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from minigptv2.config import CLIP_MEAN, CLIP_STD
from minigptv2.data.dataset import Dataset
from minigptv2.errors import UserError
from minigptv2.files import TMP_SUFFIX, atomic_write, file_lock, hash_file
from minigptv2.images import LazyImage, load_square, normalize, open_image
from minigptv2.model.grounding_vlm import to_cache_dtype
from minigptv2.model.vision import VisionTower
from minigptv2.train.precision import best_dtype, call_in_dtype

ABOUT = "about.json"
FORMAT = 1  # version of the folder's layout
ABANDONED = 3600  # seconds; older temporary files are left over from a killed build
STALLED = 3600  # seconds without a new shard from other processes before the build gives up


@dataclass
class CacheConfig:
    """Features of the frozen vision tower, computed once and kept on the disk."""

    RENAMED: ClassVar[dict[str, str]] = {"shard_mb": "shard_megabytes"}

    dir: str = ""
    """Folder of the features; empty: none are kept, and the tower runs at every step."""
    shard_megabytes: int = 256
    """Size of one file, in 2**20 bytes. A killed build computes at most one file again."""
    verify: bool = True
    """Compare checksums when a run begins, which reads the whole cache once."""


@dataclass
class Shard:
    """The contents of NAME.json. keys: of the images, in the order of the rows. unreadable: key of an image -> reason.
    checksum: of NAME.npy."""

    name: str
    keys: list[str]
    unreadable: dict[str, str]
    checksum: str


class FeatureCache:
    """An open cache; `build_cache` returns it."""

    def __init__(self, folder: Path, shards: Sequence[Shard] = ()):
        self.folder = folder
        self._names: list[str] = []
        self._rows: dict[str, tuple[int, int]] = {}  # key -> index of the shard, row in it
        self._unreadable: dict[str, str] = {}
        self._open: dict[int, np.ndarray] = {}
        for shard in shards:
            self._add(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._rows or key in self._unreadable

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, image: Any) -> torch.Tensor:
        """[N, C] float16, the features of an image of a `Sample`. Raises UserError if it could not be read."""
        key = image_key(image)
        if key not in self._rows:
            raise UserError(
                self._unreadable.get(key, f"{key} is not in the feature cache {self.folder}."),
                "The cache is built when a run starts, from the images that exist then.",
                "Start the run again.",
            )
        shard, row = self._rows[key]
        if shard not in self._open:
            self._open[shard] = np.load(self.folder / f"{self._names[shard]}.npy", mmap_mode="r")
        return torch.from_numpy(self._open[shard][row].copy())

    def __getstate__(self) -> dict[str, Any]:
        """Without the open memory maps: each worker process opens its own."""
        return {**vars(self), "_open": {}}

    def _add(self, shard: Shard) -> None:
        if shard.name not in self._names:
            self._names.append(shard.name)
            self._rows |= {key: (len(self._names) - 1, row) for row, key in enumerate(shard.keys)}
            self._unreadable |= shard.unreadable


def image_key(image: Any) -> str:
    """The key of an image in the cache; different images have different keys.

    A file's key is its path, size and modification time, so that the features of a replaced file are computed again.
    """
    if isinstance(image, str | os.PathLike):
        try:
            about = os.stat(image)
        except (OSError, ValueError):
            return f"{os.fspath(image)}, which cannot be found"
        return f"{os.fspath(image)}, {about.st_size} bytes, {about.st_mtime_ns}"
    if isinstance(image, LazyImage):
        return image.key
    data = image if isinstance(image, bytes) else open_image(image).tobytes()
    return f"{len(data)} bytes, {blake2b(data, digest_size=16).hexdigest()}"


def fingerprint(tower: VisionTower) -> str:
    """A hash of the tower's config and of its weights in float16, in which they are saved."""
    config = dict(vars(tower.config))
    if (tuple(config["image_mean"]), tuple(config["image_std"])) == (CLIP_MEAN, CLIP_STD):
        del config["image_mean"], config["image_std"]  # a cache of an older version has the same fingerprint
    made = blake2b(json.dumps(config, default=str, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tower.state_dict().items()):
        if tensor.is_floating_point():
            tensor = tensor.half()
        made.update(name.encode())
        made.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return made.hexdigest()


def build_cache(
    config: CacheConfig,
    tower: VisionTower,
    datasets: Sequence[Dataset],
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    dtype: torch.dtype | None = None,
    fast_decode: bool = False,
    batch: int = 32,
) -> FeatureCache:
    """The features of every image of these data sets; those that the folder lacks are computed first.

    datasets: every image of each is cached, once.
    device, dtype: of the tower's products, as in training; default: the dtype that the device multiplies fastest.
    workers: processes that decode images. batch: images in a forward pass of the tower.
    rank, world: ranks divide the work through a folder that all of them see, and return when the cache is complete.
    fast_decode: as `DataConfig.fast_decode`.

    A killed build resumes with the next shard. A second run that builds the same folder waits for the first, and
    computes the features that are still missing. A damaged shard is reported and computed again.

    Raises UserError for a folder that another tower or other settings wrote.
    """
    folder = Path(config.dir)
    _open_folder(folder, tower, fast_decode)
    cache = FeatureCache(folder, _intact_shards(folder, config.verify))
    images = _images(datasets)
    own = {k: v for k, v in images.items() if _owner(k, world) == rank}
    rows = max(1, config.shard_megabytes * 2**20 // (2 * tower.patches * tower.width))
    tower, dtype = tower.eval().to(device), dtype or best_dtype(torch.device(device))
    building = rank == 0 and any(key not in cache for key in images)
    with file_lock(folder, "build of a feature cache", wait=True) if building else nullcontext():
        for shard in _intact_shards(folder, verify=False):  # also those of the run that this one waited for
            cache._add(shard)
        waiting, since = None, time.time()
        while missing := [key for key in images if key not in cache]:
            todo = {key: own[key] for key in missing if key in own}
            if todo:
                _compute(folder, tower, todo, rows, batch, workers, fast_decode, device, dtype)
            elif len(missing) != waiting:
                waiting, since = len(missing), time.time()
                print(f"feature cache: waiting for {waiting} images of other processes", flush=True)
            elif time.time() - since > STALLED:
                raise UserError(
                    f"{folder} still lacks {waiting} images that other processes should compute.",
                    f"None was added for {STALLED // 60} minutes. All processes must see the same folder.",
                    "Look at their output, and start the run again: finished shards are kept.",
                )
            if not todo:
                time.sleep(1)
            for shard in _intact_shards(folder, verify=False):
                cache._add(shard)
    return cache


def _open_folder(folder: Path, tower: VisionTower, fast_decode: bool) -> None:
    """Create the folder with about.json. Raises UserError if the folder exists and its about.json differs."""
    about = {
        "format": FORMAT,
        "tower": fingerprint(tower),
        "image_size": tower.config.image_size,
        "patches": tower.patches,
        "channels": tower.width,
        "fast_decode": fast_decode,
    }
    file = folder / ABOUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        if not file.exists():
            if any(folder.glob("*.npy")):
                raise UserError(
                    f"{folder} holds .npy files, but no {ABOUT}.",
                    "It is not the folder of a feature cache.",
                    "Choose another with cache.dir=...",
                )
            _write(file, json.dumps(about, indent=2).encode())
        found = json.loads(file.read_text())
    except OSError as error:
        raise UserError(
            f"The feature cache {folder} cannot be written: {error}",
            "It needs a writable folder.",
            "Choose another with cache.dir=..., or omit it.",
        ) from error
    except ValueError:
        found = {}
    if found != about:
        differing = [k for k in about if found.get(k) != about[k]] if isinstance(found, dict) else [ABOUT]
        raise UserError(
            f"{folder} holds features of another tower or of other settings: {', '.join(differing)} differs.",
            "A run can only read features of its own tower and settings.",
            "Delete the folder, or choose another with cache.dir=...",
        )


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed builds."""
    for temporary in folder.glob(f"*{TMP_SUFFIX}"):
        try:
            if time.time() - temporary.stat().st_mtime > ABANDONED:
                temporary.unlink()
        except FileNotFoundError:
            continue  # another process has just renamed or removed it


def _images(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Key -> image, for every image of the data sets."""
    found: dict[str, Any] = {}
    for dataset in {id(d): d for d in datasets}.values():
        open_record = getattr(dataset, "image", None) or (lambda i, d=dataset: d[i].image)
        for index in range(len(dataset)):
            try:
                image = open_record(index)
            except UserError:
                continue  # training reads it again, counts and reports it
            if image is not None:
                found.setdefault(image_key(image), image)
    return found


def _owner(key: str, world: int) -> int:
    """The rank that computes this image: a function of the key alone, so that the ranks need not agree."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") % world


# ---- shards ----


def _intact_shards(folder: Path, verify: bool) -> Iterator[Shard]:
    """The shards of the folder. A damaged one is reported and removed, so that it is computed again.

    verify: also compare the checksum.
    """
    for file in sorted(folder.glob("*.json")):
        if file.name == ABOUT:
            continue
        data = file.with_suffix(".npy")
        try:
            shard = Shard(name=file.stem, **json.loads(file.read_text()))
            intact = data.is_file() and (not verify or shard.checksum == _checksum(data))
        except FileNotFoundError:
            continue  # another process has just removed it
        except (ValueError, TypeError):
            intact = False
        if intact:
            yield shard
        else:
            print(f"feature cache: {data} is damaged; its images are computed again", flush=True)
            file.unlink(missing_ok=True)
            data.unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    return hash_file(file, blake2b(digest_size=16))


def _write(file: Path, data: bytes | np.ndarray) -> None:
    with atomic_write(file, shared=True) as new, open(new, "wb") as out:
        out.write(data) if isinstance(data, bytes) else np.save(out, data)


class _Decoded(torch.utils.data.Dataset):
    """Index -> (index, [size, size, 3] uint8), or (index, reason) of an image that cannot be read."""

    def __init__(self, images: list[Any], size: int, fast: bool):
        self.images, self.size, self.fast = images, size, fast

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str]:
        try:
            return index, load_square(self.images[index], self.size, self.fast)
        except UserError as error:
            return index, error.given


def _compute(
    folder: Path,
    tower: VisionTower,
    images: dict[str, Any],
    rows: int,
    batch: int,
    workers: int,
    fast: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Compute the features of these images and write them, `rows` images in a shard."""
    from tqdm import tqdm

    keys = list(images)
    loaded = torch.utils.data.DataLoader(
        _Decoded(list(images.values()), tower.config.image_size, fast),
        batch,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    computed: list[np.ndarray] = []  # features of the next shard, [N, C] each
    computed_keys: list[str] = []
    unreadable: dict[str, str] = {}
    with tqdm(total=len(keys), desc="feature cache", unit=" images") as bar, torch.inference_mode():
        for group in loaded:
            good = [(keys[i], image) for i, image in group if not isinstance(image, str)]
            unreadable |= {keys[i]: why for i, why in group if isinstance(why, str)}
            if good:
                squares = torch.from_numpy(np.stack([image for _, image in good])).to(device)
                pixels = normalize(squares, tower.config.image_mean, tower.config.image_std)
                features = to_cache_dtype(call_in_dtype(tower, dtype, pixels)).cpu().numpy()  # [B, N, C]
                computed_keys += [key for key, _ in good]
                computed += list(features)
            bar.update(len(group))
            while len(computed) >= rows:
                _write_shard(folder, computed_keys[:rows], computed[:rows], unreadable)
                computed_keys, computed, unreadable = computed_keys[rows:], computed[rows:], {}
    if computed_keys or unreadable:
        _write_shard(folder, computed_keys, computed, unreadable)


def _write_shard(folder: Path, keys: list[str], features: list[np.ndarray], unreadable: dict[str, str]) -> None:
    name = blake2b("\n".join([*keys, *unreadable]).encode(), digest_size=8).hexdigest()
    data = folder / f"{name}.npy"
    _write(data, np.stack(features) if features else np.zeros((0, 0, 0), np.float16))
    about = {"keys": keys, "unreadable": unreadable, "checksum": _checksum(data)}
    _write(folder / f"{name}.json", json.dumps(about).encode())
