"""Small random weights in the layouts of the published files, and the published names and shapes at full size."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
WIDTH, BLOCKS, MLP, PATCH, GRID = 176, 3, 96, 14, 4
HIDDEN, LAYERS, INNER, RANK, MERGE = 32, 2, 48, 4, 4
IMAGE_SIZE = 8 * PATCH  # so the position table has to grow from 4 x 4 to 8 x 8
WORDS = ["where is the red ball ? it is at {<12><3><100><45>}", "an image of a house and two trees", "yes no"]


def eva_shapes(
    width: int = WIDTH, blocks: int = BLOCKS, mlp: int = MLP, patch: int = PATCH, grid: int = GRID
) -> Shapes:
    """The flat names of eva_vit_g.pth."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid * grid + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    w, m = (width,), (mlp,)
    block: Shapes = {
        "norm1.weight": w,
        "norm1.bias": w,
        "attn.q_bias": w,
        "attn.v_bias": w,
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": w,
        "norm2.weight": w,
        "norm2.bias": w,
        "mlp.fc1.weight": (mlp, width),
        "mlp.fc1.bias": m,
        "mlp.fc2.weight": (width, mlp),
        "mlp.fc2.bias": w,
    }
    for i in range(blocks):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def llama_shapes(vocabulary: int, hidden: int = HIDDEN, layers: int = LAYERS, inner: int = INNER) -> Shapes:
    """A Llama as its hub stores it, without shared key heads."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"model.layers.{i}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"model.layers.{i}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def checkpoint_shapes(
    width: int = WIDTH, hidden: int = HIDDEN, layers: int = LAYERS, rank: int = RANK, newer: bool = False
) -> Shapes:
    """What a published checkpoint holds under "model". newer: the names of a newer peft."""
    shapes: Shapes = {"llama_proj.weight": (hidden, MERGE * width), "llama_proj.bias": (hidden,)}
    middle = ".default" if newer else ""
    for i in range(layers):
        for p in ("q_proj", "v_proj"):
            name = f"llama_model.base_model.model.model.layers.{i}.self_attn.{p}.lora_"
            shapes |= {f"{name}A{middle}.weight": (rank, hidden), f"{name}B{middle}.weight": (hidden, rank)}
    return shapes


def random_tensors(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Numbers that 16 bits hold exactly, whatever the dtype, so that no rounding hides a difference."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator) * 0.15
        if "norm" in name and name.endswith("weight"):
            tensor += 1
        tensors[name] = tensor.half().to(dtype)
    return tensors


def tokenizer_model(more: str = "") -> bytes:
    """A real SentencePiece model of at most 320 pieces. more: text that makes it another one."""
    from minigptv2.train.tokenizer import train_tokenizer

    return train_tokenizer([*WORDS * 5, more], 320 + 10 * bool(more))


def write_eva(file: Path, tensors: dict) -> Path:
    torch.save(tensors, file)
    return file


def write_checkpoint(file: Path, tensors: dict, old_format: bool = False) -> Path:
    """As the published training saves it: with the optimizer's state and the buffers of the rotary positions."""
    rotary = {
        f"llama_model.base_model.model.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4)
        for i in range(LAYERS)
    }
    content = {
        "model": tensors | rotary,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        "config": {"model": {"arch": "minigpt_v2", "lora_r": RANK}},
        "scaler": {"scale": 65536.0},
        "epoch": 49,
    }
    torch.save(content, file, _use_new_zipfile_serialization=not old_format)
    return file


def write_llama(folder: Path, tensors: dict, tokenizer: bytes, layout: str = "safetensors", **changes) -> Path:
    """layout: safetensors or bin, and with "-sharded" in two files and an index. changes: of config.json."""
    kind, _, sharded = layout.partition("-")
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(tokenizer)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "_name_or_path": "meta-llama/Llama-2-7b-chat-hf",
        "model_type": "llama",
        "vocab_size": tensors["lm_head.weight"].shape[0],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = {k: v for k, v in (config | changes).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(LAYERS)}
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    write = save_file if kind == "safetensors" else torch.save
    if not sharded:
        write(tensors, folder / f"{stem}.{suffix}")
        return folder
    names = list(tensors)
    random.Random(0).shuffle(names)
    homes = {}
    for i, part in enumerate((names[:9], names[9:]), 1):
        file = f"{stem}-{i:05}-of-00002.{suffix}"
        write({name: tensors[name] for name in part}, folder / file)
        homes |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return folder


def full_size() -> Iterator[tuple[str, Shapes]]:
    """The names and shapes of the three published files, with what the EVA file probably holds beyond the model."""
    eva = eva_shapes(1408, 40, 6144, 14, 16)
    yield "eva", eva | {"norm.weight": (1408,), "norm.bias": (1408,), "head.weight": (1000, 1408), "head.bias": (1000,)}
    rotary = {f"llama_model.base_model.model.model.layers.{i}.self_attn.rotary_emb.inv_freq": (64,) for i in range(32)}
    yield "checkpoint", checkpoint_shapes(1408, 4096, 32, 64) | rotary
    yield "llama", llama_shapes(32000, 4096, 32, 11008)
