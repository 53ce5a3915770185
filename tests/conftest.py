"""What all tests share: no network, a tiny model with random weights, an image."""

import random
import socket
from collections import Counter
from pathlib import Path

import pytest

TALK = {"caption": 1, "grounding": 1, "refer": 3, "identify": 2, "detection": 2, "statement": 1, "vqa": 2, "chat": 2}


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Only sockets of this machine's own file system may be connected."""

    def guarded(connect):
        def checked(self, address):
            if self.family != socket.AF_UNIX:
                raise RuntimeError(f"A test tried to connect to {address}.")
            return connect(self, address)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A saved model of the real architecture with random weights, about 100,000 parameters, LoRA included."""
    import torch

    from minigptv2.api import MiniGPTv2
    from minigptv2.config import LanguageConfig, LoraConfig, ModelConfig, VisionConfig
    from minigptv2.model.grounding_vlm import GroundingVLM
    from minigptv2.tokenizer import Tokenizer
    from minigptv2.train.tokenizer import train_tokenizer

    torch.set_num_threads(2)
    tokenizer = Tokenizer(train_tokenizer(_spoken(60), 600))
    stem = {"stem_channels": (16,) * 7, "stem_kernels": (9, 3, 3, 3, 3, 3, 3), "stem_strides": (7, 1, 2, 1, 2, 1, 1)}
    config = ModelConfig(
        vision=VisionConfig(width=32, depth=1, heads=2, **stem),  # its own: tests hold tolerances for its weights
        language=LanguageConfig(tokenizer.size, 32, 64, 2, 2, 2, 512),
        lora=LoraConfig(4),
        description="A tiny model for tests; it knows nothing.",
    )
    torch.manual_seed(0)
    network = GroundingVLM(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:  # zero at the start, when the adapter changes nothing
                weight.normal_(std=0.5)
            elif "language" in name and weight.ndim > 1:  # far from uniform, so that answers depend on what is asked
                weight.mul_(10)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    MiniGPTv2(network, tokenizer, device="cpu").save_pretrained(folder)
    return folder


def _spoken(scenes: int) -> list[str]:
    from minigptv2.data.scenes.questions import scene_questions
    from minigptv2.data.scenes.world import draw_scene
    from minigptv2.sample import Sample
    from minigptv2.tasks import render

    texts = []
    for seed in range(scenes):
        scene, rng = draw_scene(seed, 112), random.Random(seed)
        if scene.objects:
            turns = render(Sample(None, scene.image.size, tuple(scene_questions(scene, TALK, 16, rng))), rng=rng)
            texts += [piece for turn in turns for piece in turn.pieces]
    return texts


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    import torch

    from minigptv2.api import MiniGPTv2

    torch.set_num_threads(2)
    return MiniGPTv2.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def image(tmp_path_factory) -> Path:
    """A drawn scene of 640 x 400 pixels as a PNG file."""
    from minigptv2.data.scenes.world import draw_scene

    file = tmp_path_factory.mktemp("pictures") / "scene.png"
    draw_scene(5).image.resize((640, 400)).save(file)
    return file


def pytest_terminal_summary(terminalreporter):
    """How many tests were skipped, and why: by reason, so that a clone that lacks something says so."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = Counter(report.longrepr[2] if isinstance(report.longrepr, tuple) else "" for report in skipped)
    terminalreporter.section(f"{len(skipped)} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4} x {reason.removeprefix('Skipped: ')}")
