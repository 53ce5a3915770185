"""What every kind of training run does alike: where it computes, and how its checkpoint reaches the disk."""

from pathlib import Path

import torch


def choose_device(name: str) -> torch.device:
    """The device of this name; with an empty one the GPU where there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def save_state(file: Path, state: dict) -> None:
    """Write the checkpoint, whole or not at all."""
    new = file.with_suffix(".new")
    torch.save(state, new)
    new.replace(file)
