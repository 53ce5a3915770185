"""Features of the frozen tower for a fixed number of drawn scenes, written once and read by every stage.

A folder: features.npy [scenes, N, C] float16, memory-mapped; scenes.jsonl, a line of things for each. A build that was
interrupted goes on where it stopped. N: patches, C: channels of the tower.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from minigptv2.boxes import Box
from minigptv2.data.scenes import Scene, Thing, draw_scene
from minigptv2.errors import UserError
from minigptv2.images import to_pixels
from minigptv2.model.vision import VisionTower
from minigptv2.train.precision import best_dtype, call_in


class _Drawn(torch.utils.data.Dataset):
    def __init__(self, seed: int, size: int, start: int, count: int):
        self.seed, self.size, self.start, self.count = seed, size, start, count

    def __len__(self) -> int:
        return self.count - self.start

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        scene = draw_scene((self.seed, self.start + index), self.size)
        return np.array(scene.image), json.dumps([[t.kind, t.color, *t.box.xyxy] for t in scene.things])


class FeatureCache:
    """Open a cache that `build_cache` made. Index it for a scene's features; `scenes` holds the annotations."""

    def __init__(self, folder: Path):
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        about = json.loads((folder / "about.json").read_text())
        lines = (folder / "scenes.jsonl").read_text().splitlines()
        if len(lines) < about["count"]:
            raise UserError(
                f"{folder} holds {len(lines)} of {about['count']} scenes.",
                "It must be complete.",
                "Run the command again.",
            )
        self.scenes = [
            Scene(tuple(Thing(kind, color, Box(*box)) for kind, color, *box in json.loads(line)), about["side"])
            for line in lines[: about["count"]]
        ]

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.features[index].copy())


def build_cache(
    tower: VisionTower, folder: Path, seed: int, count: int, device: str = "cpu", workers: int = 2
) -> FeatureCache:
    """Draw `count` scenes of this seed, encode them with the tower and return the open cache; complete ones are reused.

    A cache of another tower, seed or count in the folder is an error, not silently used.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    side = tower.config.image_size
    # of the weights as they are stored, so that a saved tower is known again
    print_of_tower = float(sum(p.detach().half().double().abs().sum() for p in tower.parameters()))
    about = {"seed": seed, "count": count, "side": side, "tower": round(print_of_tower, 3)}
    file = folder / "about.json"
    if file.exists() and json.loads(file.read_text()) != about:
        raise UserError(
            f"{folder} holds features of another tower, seed or number of scenes.", f"This run needs {about}.",
            "Delete the folder, or choose another with cache=...",
        )  # fmt: skip
    if not file.exists():
        shape = (count, tower.patches, tower.width)
        np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape).flush()
        (folder / "scenes.jsonl").write_text("")
        file.write_text(json.dumps(about))
    done = len((folder / "scenes.jsonl").read_text().splitlines())
    if done < count:
        features = np.lib.format.open_memmap(folder / "features.npy", "r+")
        dtype = best_dtype(torch.device(device))
        tower = tower.eval().to(device)
        drawn = torch.utils.data.DataLoader(_Drawn(seed, side, done, count), 32, num_workers=workers)
        with open(folder / "scenes.jsonl", "a") as lines, torch.inference_mode():
            for images, things in tqdm(
                drawn, "feature cache", initial=done // 32, total=-(-count // 32), unit_scale=32, unit=" pictures"
            ):
                encoded = call_in(tower, dtype, to_pixels(images.to(device)))
                features[done : done + len(images)] = encoded.half().cpu().numpy()
                lines.write("".join(t + "\n" for t in things))
                lines.flush()
                done += len(images)
        features.flush()
    return FeatureCache(folder)
