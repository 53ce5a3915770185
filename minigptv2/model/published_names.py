"""Which tensor of the published files becomes which tensor of the model.

Names are compared without reading a tensor. A tensor that the model does not take must be ignored by one of the rules
here; otherwise it is unknown and the files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigptv2.model.load_report import TensorSource

if TYPE_CHECKING:
    from minigptv2.model.grounding_vlm import GroundingVLM
    from minigptv2.model.weight_files import Shape, Tensors

LORA = re.compile(r"(llama_model\.base_model\.model\.model\.layers\.\d+\.[\w.]+\.lora_[AB])(?:\.default)?(\.weight)")
_ROTARY = re.compile(r".*\.rotary_emb\.inv_freq")
_ROTARY_RULE = "*.rotary_emb.inv_freq: computed from the config"
_TAIL = re.compile(r"(norm|fc_norm|head)\..*")
_TAIL_RULE = "norm.*, fc_norm.*, head.*: the tower ends after its last block"


@dataclass
class Part:
    """One of the three files or folders. targets: for each tensor that fits, its name in the file -> in the model."""

    source: TensorSource
    tensors: Tensors
    targets: dict[str, str]


def tower_part(model: GroundingVLM, tower: Tensors) -> Part:
    """Which tensors of the EVA file become which of the vision tower. Later blocks and the head are ignored."""
    prefix, depth = "vision.trunk.", len(model.vision.trunk.blocks)
    expected = {name: (prefix + name, tuple(t.shape)) for name, t in model.vision.trunk.state_dict().items()}
    expected["pos_embed"] = (expected["pos_embed"][0], tower.shapes["pos_embed"])  # `_fill` of published.py resizes it

    def ignored(name: str) -> str | None:
        block = re.match(r"blocks\.(\d+)\.", name)
        if block and int(block[1]) >= depth:
            return f"blocks.{block[1]}.*: the model uses the first {depth} blocks"
        return _TAIL_RULE if _TAIL.fullmatch(name) else None

    return _compare("EVA file", tower, expected, ignored)


def checkpoint_part(model: GroundingVLM, checkpoint: Tensors) -> Part:
    """Which tensors of the checkpoint become the projector, the LoRA and, if it has one, the tower's last norm."""
    expected = {f"llama_proj.{k}": (f"projector.{k}", tuple(t.shape)) for k, t in model.projector.state_dict().items()}
    for name, tensor in model.language.state_dict().items():
        if "lora_" in name:
            expected["llama_model." + name.replace(".default.", ".")] = (f"language.{name}", tuple(tensor.shape))
    if any(name.startswith("ln_vision.") for name in checkpoint):
        for k, t in model.vision.ln_vision.state_dict().items():
            expected[f"ln_vision.{k}"] = (f"vision.ln_vision.{k}", tuple(t.shape))
    part = _compare("checkpoint", checkpoint, expected, lambda name: None, _peft_0_2_name)
    part.source.renamed = dict(part.targets)
    return part


def _peft_0_2_name(name: str) -> str:
    """The name that peft 0.2 gives a LoRA tensor; later versions write another one."""
    found = LORA.fullmatch(name)
    return found[1] + found[2] if found else name


def llama_part(model: GroundingVLM, llama: Tensors) -> Part:
    """Which tensors of the Llama folder become which of the language model, without the LoRA."""
    expected = {
        name.replace(".base_layer.", "."): (f"language.base_model.model.{name}", tuple(t.shape))
        for name, t in model.decoder.state_dict().items()
        if "lora_" not in name
    }
    return _compare("Llama folder", llama, expected, lambda name: None)


def _compare(
    role: str,
    tensors: Tensors,
    expected: Mapping[str, tuple[str, Shape]],
    ignored: Callable[[str], str | None],
    known_as: Callable[[str], str] = str,
) -> Part:
    """Compare a file with `expected`: name in the file -> (name in the model, shape).

    ignored: the rule by which a tensor of the file is ignored, or None. known_as: the name in `expected` for a name in
    the file. If two names of the file mean the same tensor, the second is unknown.
    """
    source, targets, seen = TensorSource(role, str(tensors.path), len(expected)), {}, set()
    for name, shape in tensors.shapes.items():
        known = known_as(name)
        if known in expected and known not in seen:
            seen.add(known)
            target, expected_shape = expected[known]
            if shape == expected_shape:
                targets[name] = target
            else:
                source.wrong_shape[name] = f"shape {list(shape)} instead of {list(expected_shape)}"
        elif rule := _ROTARY_RULE if _ROTARY.fullmatch(name) and role != "EVA file" else ignored(name):
            source.ignored[name] = rule
        else:
            source.unknown.append(name)
    source.missing = [name for name in expected if name not in seen]
    source.found = len(targets)
    return Part(source, tensors, targets)
