"""What a stage begins from: a model folder, a backbone, parts by name, or nothing; what of it is trained."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from minigptv2.bundled import model_folder
from minigptv2.config import LoraConfig
from minigptv2.conversation import PROMPT_TEMPLATES, segments
from minigptv2.data.scenes.dataset import TASKS
from minigptv2.data.scenes.questions import QuestionWriter, scene_questions
from minigptv2.data.scenes.world import draw_scene
from minigptv2.errors import UserError
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.model.language import load_pretrained_lm
from minigptv2.model.meta_init import stays_float32
from minigptv2.model.model_folder import CONFIG, TOKENIZER, load_folder, save_folder
from minigptv2.model.quantize import quantize_language
from minigptv2.model.vision import fill_tower, normalization_notice
from minigptv2.sample import Sample
from minigptv2.tasks import render
from minigptv2.tokenizer import HFTokenizer, Tokenizer
from minigptv2.train.distributed import World
from minigptv2.train.pretrain_vision import WEIGHTS as BACKBONE
from minigptv2.train.recipe import RANDOM, Recipe
from minigptv2.train.tokenizer import train_tokenizer

VOCAB_SIZE = 1024
EMBEDDING_INIT_STD = (
    1.0  # standard deviation of embeddings at random: Llama's .02 drown in what the first layers soon add to all
)


def load_initial_model(
    recipe: Recipe, world: World, begun: bool = False
) -> tuple[GroundingVLM, Tokenizer, Path | None]:
    """The model and tokenizer that the recipe begins with, on the CPU, and the folder that keeps the frozen weights,
    where there is one. All processes call it. begun: the run has written checkpoints, so that what it put together
    from parts is still what it begins with.

    Weights are float32. Those of a folder that go to a GPU stay in the folder's 16 bits until `place_on_device`: eight
    processes would else hold eight times 31 GB of a 7B model."""
    if not recipe.init and recipe.model.language.name:
        recipe.init = str(_put_together(recipe, world, begun))
    folder = model_folder(recipe.init)
    if recipe.init and (folder / CONFIG).is_file():
        model, tokenizer = load_folder(folder, None if world.device.type == "cuda" else torch.float32)
        model.config.knows = recipe.model.knows or model.config.knows
        return model, tokenizer, folder
    weights = folder / BACKBONE
    if recipe.init != RANDOM and not (recipe.init and weights.is_file()):
        raise UserError(
            f"init is {recipe.init!r}, which holds neither a model nor a backbone.",
            f"It must be bundled, a model folder ({CONFIG}), the output of a backbone run ({BACKBONE}), or {RANDOM}; "
            "or be empty where model.language.name and tower name the parts.",
            "Train the stage before first, or give init=FOLDER.",
        )
    made = train_tokenizer(scene_texts(recipe), VOCAB_SIZE) if world.rank == 0 else b""
    tokenizer = Tokenizer(world.broadcast(made))
    recipe.model.language.vocab_size = tokenizer.size
    model = GroundingVLM(replace(recipe.model, lora=LoraConfig()))
    torch.nn.init.normal_(model.decoder.get_input_embeddings().weight, std=EMBEDDING_INIT_STD)
    if recipe.init != RANDOM:
        from safetensors.torch import load_file

        found = load_file(weights).items()
        model.vision.load_state_dict({k.removeprefix("tower."): v for k, v in found if k.startswith("tower.")})
    return model, tokenizer, None


def _put_together(recipe: Recipe, world: World, begun: bool) -> Path:
    """A model folder of the named language model, the tower's weights and a new projection, made once for a run."""
    folder = Path(recipe.output) / "begin"
    if world.rank == 0 and not (begun and (folder / CONFIG).is_file()):
        name = Path(recipe.model.language.name)
        language, sizes = load_pretrained_lm(recipe.model.language.name)
        sizes.system_message = recipe.model.language.system_message
        config = replace(recipe.model, language=sizes, lora=LoraConfig())
        if not recipe.tower:
            raise UserError(
                "tower is empty.",
                "A model that is put together needs the weights of its vision tower.",
                "Give tower=FILE, such as eva_vit_g.pth, for the timm model that model.vision.timm_name names.",
            )
        if notice := normalization_notice(config.vision):
            print(notice, file=sys.stderr)
        model = GroundingVLM(config, language)
        fill_tower(model.vision, Path(recipe.tower))
        pieces = name / TOKENIZER
        tokenizer = Tokenizer.load(pieces) if pieces.is_file() else HFTokenizer(recipe.model.language.name)
        save_folder(model, tokenizer, folder)
    world.barrier()
    return folder


def scene_texts(recipe: Recipe) -> Iterator[str]:
    """What is said about scenes, wrapped as the model reads it: the tokenizer's training text."""
    options = next((s.options for s in recipe.data.sources if s.name == "scenes"), {})
    tasks = options.get("tasks") or dict.fromkeys(TASKS, 1.0)
    for number in range(recipe.tokenizer_scenes):
        scene, rng = draw_scene((options.get("seed", 11), number), 112), random.Random(number)
        if scene.things:
            talk = scene_questions(scene, tasks, 10, rng) + QuestionWriter(scene, rng).dialogue()
            turns = render(Sample(number, (scene.side, scene.side), tuple(talk)), rng=rng)
            yield from (s.text for s in segments(turns, PROMPT_TEMPLATES[recipe.model.prompt]) if s.text)


def set_trainable(model: GroundingVLM, recipe: Recipe) -> None:
    """Freeze everything but what the recipe names; "lora" adds an adapter where the model has none yet."""
    if PROMPT_TEMPLATES[model.config.prompt].answers_in_prompt:
        raise UserError(
            f"The model's prompt is {model.config.prompt!r}.",
            "In that prompt an answer of the history is part of the next question: it would not be learned.",
            f'Set "prompt" to "training" in the {CONFIG} of its folder.',
        )
    if recipe.quantize and "language" in recipe.trained:
        raise UserError(
            f"trained is {recipe.trained}, and quantize is {recipe.quantize!r}.",
            "Weights in few bits are frozen.",
            "Train [projector, lora], or leave quantize away.",
        )
    if not recipe.trained:
        raise UserError("trained is empty.", "It names what is not frozen.", "Try trained=[projector, lora].")
    if "lora" in recipe.trained and not hasattr(model.language, "peft_config"):
        if not recipe.model.lora.r:
            raise UserError(
                "trained names lora, but neither the model nor the recipe has one.",
                "model.lora.r is its rank, 1 or more.",
                "Try model.lora.r=64.",
            )
        model.config.lora = recipe.model.lora
        model.add_lora()
    model.requires_grad_(False)
    if "projector" in recipe.trained:
        model.projector.requires_grad_(True)
    for name, parameter in model.language.named_parameters():
        parameter.requires_grad_(("lora_" in name) if "lora" in recipe.trained else "language" in recipe.trained)


def place_on_device(model: GroundingVLM, recipe: Recipe, device: torch.device, dtype: torch.dtype, kept: bool) -> None:
    """Move the model to the device, what is trained in float32. kept: its frozen weights are in a folder, so that on a
    GPU it may hold them in `dtype`, or the language model's in few bits, and nothing is lost."""
    if recipe.quantize:
        quantize_language(model.decoder, recipe.quantize, device, dtype)
    frozen = dtype if device.type == "cuda" and kept else torch.float32
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not stays_float32(module):
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    model.to(device)
