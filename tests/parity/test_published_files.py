"""From files in the published layouts to log-probabilities of an answer: the formulas over the files' own tensors
against the opened model, and against the folder that it is converted to."""

import numpy as np
import published_files as made
import pytest
import torch
from PIL import Image
from test_language_formulas import answer_losses
from test_vision_formulas import cubic_weights, merged, tower

from minigptv2 import MiniGPTv2
from minigptv2.images import open_image
from minigptv2.model.published import convert
from minigptv2.sample import ImagePiece, Turn

HEADS, ALPHA, SCALE = 4, 16, 16 / made.RANK
ASKED = [("[refer] where is the red ball", "{<12><3><100><45>}"), ("[vqa] a house ?", "yes")]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """The three files, their tensors, and an image that is no square."""
    folder = tmp_path_factory.mktemp("parity")
    tokenizer = made.tokenizer_model()
    vocabulary = made.random_tensors(made.llama_shapes(_size(tokenizer)), 1)
    # small enough that float32 itself is not the difference: its rounding grows from block to block
    eva = {k: t if "norm" in k else t / 4 for k, t in made.random_tensors(made.eva_shapes(), 2).items()}
    trained = made.random_tensors(made.checkpoint_shapes(), 3, torch.float32)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)).save(folder / "image.png")
    return {
        "paths": (
            made.write_checkpoint(folder / "checkpoint.pth", trained),
            made.write_eva(folder / "eva.pth", eva),
            made.write_llama(folder / "llama", vocabulary, tokenizer),
        ),
        "eva": eva,
        "trained": trained,
        "llama": vocabulary,
        "picture": folder / "image.png",
    }


def _size(tokenizer: bytes) -> int:
    from minigptv2.tokenizer import Tokenizer

    return Tokenizer(tokenizer).size


def _visual(files: dict) -> torch.Tensor:
    """[1, N / 4, D] by the formulas."""
    side = made.IMAGE_SIZE
    squashed = Image.open(files["picture"]).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(np.array(squashed)) / 255 - mean) / std).permute(2, 0, 1)[None]
    w = {f"trunk.{name}": tensor.float() for name, tensor in files["eva"].items()}
    new = side // made.PATCH
    grow = cubic_weights(made.GRID, new)
    places = w["trunk.pos_embed"][0, 1:].double().reshape(made.GRID, made.GRID, made.WIDTH)
    grown = torch.einsum("yr,xc,rcd->yxd", grow, grow, places).flatten(0, 1).float()
    w["trunk.pos_embed"] = torch.cat([w["trunk.pos_embed"][:, :1], grown[None]], 1)
    w |= {"ln_vision.weight": torch.ones(made.WIDTH), "ln_vision.bias": torch.zeros(made.WIDTH)}
    trained = files["trained"]
    return merged(tower(pixels, w, made.BLOCKS), trained["llama_proj.weight"], trained["llama_proj.bias"])


def _language(files: dict) -> dict[str, torch.Tensor]:
    """The files' tensors under the names that the formulas take; the LoRA is scaled here."""
    w = {}
    for name, tensor in files["llama"].items():
        adapted = "q_proj" in name or "v_proj" in name
        w[name.replace("_proj.weight", "_proj.base_layer.weight") if adapted else name] = tensor.float()
    for name, tensor in files["trained"].items():
        short = name.removeprefix("llama_model.base_model.model.").replace(".weight", ".default.weight")
        # the formulas of the neighbouring file scale by a quarter
        w[short] = tensor * SCALE * 4 if "lora_B" in name else tensor
    return w


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["minigptv2-eval", "minigptv2-train"])
@pytest.mark.parametrize("converted", [False, True, "merged"])
def test_log_probabilities_are_those_of_the_formulas(files, tmp_path, prompt, converted):
    options = {"prompt": prompt, "vision": {"num_heads": HEADS}, "image_size": made.IMAGE_SIZE, "lora_alpha": ALPHA}
    if converted:
        convert(*files["paths"], tmp_path / "model", converted == "merged", "float32", **options)
        model = MiniGPTv2.from_pretrained(tmp_path / "model", device="cpu")
    else:
        model = MiniGPTv2.from_published(*files["paths"], **options, device="cpu")
    visual, w = _visual(files), _language(files)
    torch.testing.assert_close(model.image_features(files["picture"]), visual[0], atol=1e-5, rtol=1e-5)
    for instruction, answer in ASKED:
        turns = [Turn("user", (ImagePiece(open_image(files["picture"])), instruction)), Turn("assistant", (answer,))]
        row = model.encoder.encode(turns)
        expected = torch.stack(answer_losses(row, visual, w))
        found = model.logprobs(files["picture"], instruction, answer)
        assert [token.text for token in found][-1] == "</s>" and len(found) == len(expected) > 1
        torch.testing.assert_close(torch.tensor([-t.logprob for t in found]), expected, atol=1e-5, rtol=1e-5)
