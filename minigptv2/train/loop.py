"""The training loop of all three stages: one recipe in, one model folder out.

`minigptv2 train CONFIG`: prepares what the recipe begins from, draws and caches features of the frozen tower, trains,
logs to output/log.jsonl, and resumes from output/checkpoint.pt after a kill.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from minigptv2.boxes import Coding, iou, parse
from minigptv2.config import LanguageConfig, LoraConfig, VisionConfig, from_dict, read_yaml
from minigptv2.conversation import WRAPPERS, segments
from minigptv2.data.scene_talk import Talk, exchanges
from minigptv2.data.scenes import draw_scene
from minigptv2.encode import Batch, Encoded, Encoder, Tokenizer, collate, pack
from minigptv2.errors import UserError
from minigptv2.model.checkpoint import load_folder, save_folder
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.sample import Sample
from minigptv2.tasks import render
from minigptv2.train.backbone import WEIGHTS as BACKBONE
from minigptv2.train.backbone import pretrain
from minigptv2.train.feature_cache import FeatureCache, build_cache
from minigptv2.train.optim import build_optimizers, learning_rate, set_learning_rate
from minigptv2.train.precision import best_dtype, call_in
from minigptv2.train.recipe import Recipe
from minigptv2.train.state import choose_device, save_state
from minigptv2.train.tokenizer import train_tokenizer

VOCABULARY = 1024
TEXT_SCENES = 2500  # scenes whose conversations the tokenizer is trained on


def run(config: str | Path, overrides: list[str] = (), smoke: bool = False) -> Path:
    """Train what the config says; returns the folder of the result. smoke: a minute of the same on a tiny model."""
    recipe = from_dict(Recipe, read_yaml(Path(config), list(overrides)), str(config))
    if smoke:
        recipe = _smoke(recipe)
        shutil.rmtree(recipe.output, ignore_errors=True)
        shutil.rmtree(recipe.cache, ignore_errors=True)
    torch.manual_seed(recipe.seed)
    if recipe.kind == "backbone":
        return pretrain(recipe)
    return train_stage(recipe)


def _smoke(recipe: Recipe) -> Recipe:
    """The same recipe on a model of a few thousand weights, a few scenes and two steps."""
    model = replace(
        recipe.model, vision=VisionConfig(width=32, depth=1, heads=2, stem_channels=(8,) * 7),
        language=LanguageConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                num_key_value_heads=2), lora=LoraConfig(r=2),
    )  # fmt: skip
    phases = [replace(p, steps=2, batch=2) for p in recipe.phases]
    data = replace(recipe.data, scenes=16, exchanges=4)
    return replace(
        recipe, model=model, phases=phases, data=data, output=recipe.output + "-smoke", cache=recipe.cache + "-smoke",
        init=_smoke_name(recipe.init),
        steps=2, batch=2, warmup=1, log_every=1, check_every=0, save_every=1, workers=0, compile=False,
    )  # fmt: skip


def _smoke_name(init: str) -> str:
    """Where the smoke run of the stage before left its result."""
    run, model = init.removesuffix("/model"), "/model" if init.endswith("/model") else ""
    return run + "-smoke" + model if init else ""


# ---- where a stage begins ----


def _begin(recipe: Recipe) -> tuple[GroundingVLM, Tokenizer]:
    """The model of the stage before, or a new language model and tokenizer on a pre-trained backbone."""
    folder = Path(recipe.init)
    if (folder / "config.json").is_file():
        model, tokenizer = load_folder(folder)
        model.config.knows = recipe.model.knows or model.config.knows
        return model, tokenizer
    weights = folder / BACKBONE
    if not weights.is_file():
        raise UserError(
            f"init is {recipe.init!r}, which holds neither a model nor a backbone.",
            f"It must be a model folder (config.json) or the output of a backbone run ({BACKBONE}).",
            "Train the stage before first: minigptv2 train train_configs/tiny/backbone.yaml, then stage1, stage2.",
        )  # fmt: skip
    from safetensors.torch import load_file

    tokenizer = Tokenizer(train_tokenizer(scene_texts(recipe), VOCABULARY))
    recipe.model.language.vocab_size = tokenizer.size
    model = GroundingVLM(replace(recipe.model, lora=LoraConfig()))
    model.vision.load_state_dict({
        k.removeprefix("tower."): v for k, v in load_file(weights).items() if k.startswith("tower.")
    })  # fmt: skip
    return model, tokenizer


def scene_texts(recipe: Recipe):
    """What is said about scenes, wrapped as the model reads it: the tokenizer's training text."""
    for number in range(TEXT_SCENES):
        scene, rng = draw_scene((recipe.data.seed, number), 112), random.Random(number)
        if scene.things:
            talk = exchanges(scene, recipe.data.tasks, 10, rng) + Talk(scene, rng).dialogue()
            turns = render(Sample(number, (scene.side, scene.side), tuple(talk)), rng=rng)
            yield from (s.text for s in segments(turns, WRAPPERS[recipe.model.prompt]) if s.text)


# ---- rows ----


class SceneRows(torch.utils.data.IterableDataset):
    """An endless stream of (row, scene number), a function of the seed and the position alone."""

    def __init__(self, cache: FeatureCache, encoder: Encoder, coding: Coding, recipe: Recipe, start: int):
        self.scenes, self.encoder, self.coding = cache.scenes, encoder, coding
        self.recipe, self.start = recipe, start

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = self.recipe.batch
        step = self.start + index
        while True:
            yield [self._row(step * batch + n, step) for n in range(batch)]
            step += stride

    def _row(self, position: int, step: int) -> tuple[Encoded, int]:
        data = self.recipe.data
        rng = random.Random(f"{self.recipe.seed}/{position}")
        most = max((m for m in data.most if m[0] <= step), key=lambda m: m[0])[1]
        while True:
            number = rng.randrange(checked(len(self.scenes)), len(self.scenes))
            scene = self.scenes[number]
            if not 1 <= len(scene.things) <= most:
                continue
            memory = rng.random() < data.dialogues
            talk = exchanges(scene, data.tasks, data.exchanges, rng)
            if memory:
                told = Talk(scene, rng).dialogue()
                talk = told if told and rng.random() < 0.6 else talk[: rng.randint(1, 6)]
            turns = render(Sample(number, (scene.side, scene.side), tuple(talk)), self.coding, rng)
            if not memory:
                return self.encoder.encode_side_by_side(turns), number
            try:
                return self.encoder.encode(turns), number
            except UserError:
                continue  # one conversation too long for the context: another scene takes its place


def checked(scenes: int) -> int:
    """How many of the first cached scenes are kept for the readings during training."""
    return min(96, scenes // 8)


def train_stage(recipe: Recipe) -> Path:
    from tqdm import tqdm

    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    device = choose_device(recipe.device)
    dtype = best_dtype(device)
    model, tokenizer = _begin(recipe)
    if WRAPPERS[model.config.prompt].joined_history and recipe.data.dialogues:
        raise UserError(
            f"The model's prompt is {model.config.prompt!r}, and data.dialogues is {recipe.data.dialogues}.",
            "In that prompt an answer of the history is part of the next question: it would not be learned.",
            'Set "prompt" to "training" in the config.json of its folder, or give data.dialogues=0.',
        )  # fmt: skip
    _choose_trained(model, recipe)
    model.to(device)
    cache = build_cache(model.vision, Path(recipe.cache), recipe.data.seed, recipe.data.scenes, str(device))
    encoder = Encoder(tokenizer, model.config.prompt, model.image_tokens, model.config.language.max_position_embeddings)
    optimizers = build_optimizers(model, recipe.optimizer, recipe.lr, recipe.weight_decay)
    step = _resume(output / "checkpoint.pt", model, optimizers)
    rows = SceneRows(cache, encoder, model.config.box_coding, recipe, step)
    batches = iter(
        torch.utils.data.DataLoader(
            rows, batch_size=None, num_workers=recipe.workers, prefetch_factor=4 if recipe.workers else None
        )
    )
    bar = tqdm(total=recipe.steps, initial=step, desc=output.name, smoothing=0.05)
    if recipe.compile:
        for layer in model.decoder.model.layers:
            layer.compile(dynamic=True)
    model.train()
    model.vision.eval()
    with open(output / "log.jsonl", "a") as log:
        while step < recipe.steps:
            began = time.perf_counter()
            batch = _batch(next(batches), cache).to(device)
            waited = time.perf_counter() - began
            rate = learning_rate(step, recipe.steps, recipe.lr, recipe.lowest_lr, recipe.warmup)
            set_learning_rate(optimizers, rate)
            loss = call_in(model, dtype, batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            bar.update()
            if step % recipe.log_every == 0:
                spent = time.perf_counter() - began
                row = {"step": step, "loss": loss.item(), "norm": float(norm), "lr": rate, "wait_share": waited / spent,
                       "tokens_per_s": batch.ids.numel() / spent, "time": round(time.time())}  # fmt: skip
                _log(log, row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{rate:.1e}", tokens_s=f"{row['tokens_per_s']:.0f}")
            if recipe.check_every and step % recipe.check_every == 0:
                with torch.compiler.set_stance("force_eager"):
                    readings = _check(model, encoder, cache)
                _log(log, {"step": step, **readings})
                bar.write(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in readings.items()))
            if step % recipe.save_every == 0 or step == recipe.steps:
                _save(output / "checkpoint.pt", step, model, optimizers)
    model.eval()
    save_folder(model.cpu(), tokenizer, output / "model")
    return output / "model"


def _log(file, row: dict) -> None:
    file.write(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
    file.flush()


def _batch(rows: list[tuple[Encoded, int]], cache: FeatureCache) -> Batch:
    batch = pack([row for row, _ in rows])
    batch.features = torch.stack([cache[number] for _, number in rows])
    return batch


def _choose_trained(model: GroundingVLM, recipe: Recipe) -> None:
    """Freeze everything but what the recipe names; "lora" adds an adapter where the model has none yet."""
    if "lora" in recipe.trained and not hasattr(model.language, "peft_config"):
        model.config.lora = recipe.model.lora
        model.add_lora()
    model.requires_grad_(False)
    if "projector" in recipe.trained:
        model.projector.requires_grad_(True)
    for name, parameter in model.language.named_parameters():
        parameter.requires_grad_(("lora_" in name) if "lora" in recipe.trained else "language" in recipe.trained)


def _save(file: Path, step: int, model: GroundingVLM, optimizers) -> None:
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    state = {"step": step, "trained": trained, "optimizers": [o.state_dict() for o in optimizers]}
    save_state(file, state)


def _resume(file: Path, model: GroundingVLM, optimizers) -> int:
    if not file.exists():
        return 0
    saved = torch.load(file, weights_only=True)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in saved["trained"].items()}:
        raise UserError(
            f"{file} is of another model or trains other weights.", "A run resumes with the recipe that it began with.",
            "Delete the folder to begin again, or choose another with output=...",
        )  # fmt: skip
    with torch.no_grad():
        for name, tensor in saved["trained"].items():
            parameters[name].copy_(tensor)
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"]


@torch.no_grad()
def _check(model: GroundingVLM, encoder: Encoder, cache: FeatureCache) -> dict[str, float]:
    """Accuracy of short answers about the cached scenes that are not trained on: a reading, no benchmark."""
    from minigptv2.model.generate import generate

    tokenizer, coding = encoder.tokenizer, model.config.box_coding
    device, out = next(model.parameters()).device, {}
    model.eval()
    for task in ("refer", "identify", "statement"):
        rng, asked, rows, numbers = random.Random(5), [], [], []
        for number, scene in enumerate(cache.scenes[: checked(len(cache.scenes))]):
            found = exchanges(scene, {task: 1.0}, 1, rng) if scene.things else []
            if found and (task != "refer" or found[0].phrases[0].boxes):
                question, wanted = render(Sample(number, (scene.side, scene.side), (found[0],)), coding)
                rows.append(encoder.encode([question]))
                asked.append((wanted.pieces[0], scene.side))
                numbers.append(number)
        visual = model.encode_images(None, torch.stack([cache[n] for n in numbers]).to(device))
        texts = [
            tokenizer.decode(g.ids) for g in generate(model, tokenizer, collate(rows, left=True).to(device), visual, 40)
        ]
        right = 0
        for text, (wanted, side) in zip(texts, asked):
            if task == "refer":
                found, true = (parse(words, side, side, coding).boxes for words in (text, wanted))
                right += bool(found) and iou(found[0], true[0]) >= 0.5
            else:
                right += text == wanted
        out[task] = right / len(asked)
    model.train()
    model.vision.eval()
    return out
