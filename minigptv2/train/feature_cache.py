"""Features of the frozen tower for the images of any source, written to disk once and read in place of the images.

A folder: about.json says which tower made it; each shard is NAME.npy, [n, N, C] float16, and NAME.json, written last,
with the keys of its images, those that could not be read, and a checksum. N: patches, C: channels of the tower.
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
from typing import Any

import numpy as np
import torch

from minigptv2.config import CLIP_MEAN, CLIP_STD
from minigptv2.data.dataset import Dataset
from minigptv2.errors import UserError
from minigptv2.files import TMP_SUFFIX, atomic_write, file_lock
from minigptv2.images import LazyImage, load_square, normalize, open_image
from minigptv2.model.grounding_vlm import to_cache_dtype
from minigptv2.model.vision import VisionTower
from minigptv2.train.precision import best_dtype, call_in_dtype

ABOUT = "about.json"
FORMAT = 1  # of the folder
ABANDONED = 3600  # seconds after which such a file is what a killed build left
STALLED = 3600  # seconds without a new shard after which other processes are no longer waited for


@dataclass
class CacheConfig:
    """dir: folder of the features; empty: none are written, and the tower runs at every step. shard_mb: size of one
    file in 2**20 bytes: what a killed build has to compute again. verify: checksums are compared whenever a run begins,
    which reads the whole cache once."""

    dir: str = ""
    shard_mb: int = 256
    verify: bool = True


@dataclass
class Shard:
    """What NAME.json says. keys: of the images, row by row; unreadable: key -> why; checksum: of NAME.npy."""

    name: str
    keys: list[str]
    unreadable: dict[str, str]
    checksum: str


class FeatureCache:
    """An open cache, which `build_cache` returns."""

    def __init__(self, folder: Path, shards: Sequence[Shard] = ()):
        self.folder = folder
        self._names: list[str] = []
        self._places: dict[str, tuple[int, int]] = {}  # key -> shard, row
        self._unreadable: dict[str, str] = {}
        self._open: dict[int, np.ndarray] = {}
        for shard in shards:
            self._add(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._unreadable

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, image: Any) -> torch.Tensor:
        """[N, C] float16 of an image as `Sample.image` gives it. Raises UserError where it could not be read."""
        key = image_key(image)
        if key not in self._places:
            raise UserError(
                self._unreadable.get(key, f"{key} is not in the feature cache {self.folder}."),
                "The cache is built when a run begins, from the images that are there then.",
                "Begin the run again.",
            )
        shard, row = self._places[key]
        if shard not in self._open:
            self._open[shard] = np.load(self.folder / f"{self._names[shard]}.npy", mmap_mode="r")
        return torch.from_numpy(self._open[shard][row].copy())

    def __getstate__(self) -> dict:
        return {**vars(self), "_open": {}}

    def _add(self, shard: Shard) -> None:
        if shard.name not in self._names:
            self._names.append(shard.name)
            self._places |= {key: (len(self._names) - 1, row) for row, key in enumerate(shard.keys)}
            self._unreadable |= shard.unreadable


def image_key(image: Any) -> str:
    """What names an image in the cache: another image, another key.

    A file is its path, its size and when it was written, so that one that was replaced is computed anew.
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
    """Of the tower's shape and of its weights as they are stored, so that a saved tower is known again."""
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
    """The features of every image of these data sets; what the folder lacks is computed first, with its rate and ETA.

    Ranks share the work, through a folder that all of them see, and return when the cache is complete; a killed build
    goes on with the next shard. Two runs do not build one folder at once: the second waits, and computes what the first
    did not. A damaged shard is reported and made anew. dtype: of the tower's products, as in
    training; if not given, what this device multiplies fastest. Raises UserError for a folder that another tower wrote.
    """
    folder = Path(config.dir)
    _begin(folder, tower, fast_decode)
    cache = FeatureCache(folder, _sound(folder, config.verify))
    wanted = _images(datasets)
    own = {k: v for k, v in wanted.items() if _owner(k, world) == rank}
    rows = max(1, config.shard_mb * 2**20 // (2 * tower.patches * tower.width))
    tower, dtype = tower.eval().to(device), dtype or best_dtype(torch.device(device))
    building = rank == 0 and any(key not in cache for key in wanted)
    with file_lock(folder, "build of a feature cache", wait=True) if building else nullcontext():
        for shard in _sound(folder, verify=False):  # also what another run built while this one waited for it
            cache._add(shard)
        waiting, since = None, time.time()
        while missing := [key for key in wanted if key not in cache]:
            todo = [key for key in missing if key in own]
            if todo:
                images = {key: own[key] for key in todo}
                _compute(folder, tower, images, rows, batch, workers, fast_decode, device, dtype)
            elif len(missing) != waiting:
                waiting, since = len(missing), time.time()
                print(f"feature cache: waiting for {waiting} images of other processes", flush=True)
            elif time.time() - since > STALLED:
                raise UserError(
                    f"{folder} still lacks {waiting} images that other processes were to compute.",
                    f"None was added for {STALLED // 60} minutes. All processes must see the same folder.",
                    "Look into their output, and begin the run again: what is there is kept.",
                )
            if not todo:
                time.sleep(1)
            for shard in _sound(folder, verify=False):
                cache._add(shard)
    return cache


def _begin(folder: Path, tower: VisionTower, fast_decode: bool) -> None:
    """Write what the folder's features are of, or compare with it."""
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
        _sweep(folder)
        if not file.exists():
            if any(folder.glob("*.npy")):
                raise UserError(
                    f"{folder} holds .npy files, but no {ABOUT}.",
                    "It is not a folder that a feature cache made.",
                    "Choose another with cache.dir=...",
                )
            _write(file, json.dumps(about, indent=2).encode())
        found = json.loads(file.read_text())
    except OSError as error:
        raise UserError(
            f"The feature cache {folder} cannot be written: {error}",
            "It needs a writable folder.",
            "Choose another with cache.dir=..., or leave it away.",
        ) from error
    except ValueError:
        found = {}
    if found != about:
        other = [k for k in about if found.get(k) != about[k]] if isinstance(found, dict) else [ABOUT]
        raise UserError(
            f"{folder} holds features of another tower or of other settings: {', '.join(other)} differs.",
            "Features can only be read by a run with the tower that wrote them.",
            "Delete the folder, or choose another with cache.dir=...",
        )


def _sweep(folder: Path) -> None:
    """Remove what a killed build left half written."""
    for left in folder.glob(f"*{TMP_SUFFIX}"):
        try:
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
        except FileNotFoundError:
            continue  # another process has just finished it, or removed it


def _images(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Every image of the data sets once: key -> image."""
    found: dict[str, Any] = {}
    for dataset in {id(d): d for d in datasets}.values():
        open_record = getattr(dataset, "image", None) or (lambda i, d=dataset: d[i].image)
        for index in range(len(dataset)):
            try:
                image = open_record(index)
            except UserError:
                continue  # training meets it again, counts it and says so
            if image is not None:
                found.setdefault(image_key(image), image)
    return found


def _owner(key: str, world: int) -> int:
    """The rank that computes this image, whenever the ranks begin and whatever is there already."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") % world


# ---- shards ----


def _sound(folder: Path, verify: bool) -> Iterator[Shard]:
    """The shards of the folder. A damaged one is reported and removed, so that it is made anew."""
    for file in sorted(folder.glob("*.json")):
        if file.name == ABOUT:
            continue
        data = file.with_suffix(".npy")
        try:
            shard = Shard(name=file.stem, **json.loads(file.read_text()))
            good = data.is_file() and (not verify or shard.checksum == _checksum(data))
        except FileNotFoundError:
            continue  # another process has just removed it
        except (ValueError, TypeError):
            good = False
        if good:
            yield shard
        else:
            print(f"feature cache: {data} is damaged; its images are computed again", flush=True)
            file.unlink(missing_ok=True)
            data.unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    made = blake2b(digest_size=16)
    with open(file, "rb") as data:
        while part := data.read(1 << 22):
            made.update(part)
    return made.hexdigest()


def _write(file: Path, data: bytes | np.ndarray) -> None:
    with atomic_write(file, shared=True) as new, open(new, "wb") as out:
        out.write(data) if isinstance(data, bytes) else np.save(out, data)


class _Decoded(torch.utils.data.Dataset):
    """Number -> (number, [H, W, 3] uint8) or (number, why it cannot be read)."""

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
    """Compute and write the features of these images, `rows` a shard."""
    from tqdm import tqdm

    keys = list(images)
    loaded = torch.utils.data.DataLoader(
        _Decoded(list(images.values()), tower.config.image_size, fast),
        batch,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    done: list[np.ndarray] = []  # features of the shard to come, [N, C] each
    named: list[str] = []
    unreadable: dict[str, str] = {}
    with tqdm(total=len(keys), desc="feature cache", unit=" images") as bar, torch.inference_mode():
        for group in loaded:
            good = [(keys[i], image) for i, image in group if not isinstance(image, str)]
            unreadable |= {keys[i]: why for i, why in group if isinstance(why, str)}
            if good:
                squares = torch.from_numpy(np.stack([image for _, image in good])).to(device)
                pixels = normalize(squares, tower.config.image_mean, tower.config.image_std)
                features = to_cache_dtype(call_in_dtype(tower, dtype, pixels)).cpu().numpy()  # [B, N, C]
                named += [key for key, _ in good]
                done += list(features)
            bar.update(len(group))
            while len(done) >= rows:
                _write_shard(folder, named[:rows], done[:rows], unreadable)
                named, done, unreadable = named[rows:], done[rows:], {}
    if named or unreadable:
        _write_shard(folder, named, done, unreadable)


def _write_shard(folder: Path, keys: list[str], features: list[np.ndarray], unreadable: dict[str, str]) -> None:
    name = blake2b("\n".join([*keys, *unreadable]).encode(), digest_size=8).hexdigest()
    data = folder / f"{name}.npy"
    _write(data, np.stack(features) if features else np.zeros((0, 0, 0), np.float16))
    about = {"keys": keys, "unreadable": unreadable, "checksum": _checksum(data)}
    _write(folder / f"{name}.json", json.dumps(about).encode())
