"""The initial model of finetune: a model folder, a pre-trained tower, parts by name or random weights; what is
trained."""

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
from minigptv2.data.scenes.dataset import checked_tasks
from minigptv2.data.scenes.questions import QuestionWriter, scene_questions
from minigptv2.data.scenes.world import DEFAULT_SEED, draw_scene
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
from minigptv2.train.pretrain_vision import WEIGHTS as TOWER
from minigptv2.train.recipe import RANDOM, Recipe
from minigptv2.train.tokenizer import train_tokenizer

VOCAB_SIZE = 1024
EMBEDDING_INIT_STD = 1.0  # with Llama's 0.02 the embeddings become negligible beside the first layers' output


def load_initial_model(
    recipe: Recipe, world: World, begun: bool = False
) -> tuple[GroundingVLM, Tokenizer, Path | None]:
    """The initial model on the CPU, its tokenizer, and the model folder that holds the frozen weights, if there is one.

    All processes call it. begun: the run has written checkpoints, so that a model that it assembled from parts is used
    again. Weights are float32; those of a folder that go to a GPU stay in the folder's 16 bits until
    `place_on_device`, since eight processes would otherwise hold eight times the 31 GB of a 7B model.
    """
    if not recipe.init and recipe.model.language.name:
        recipe.init = str(_assemble(recipe, world, begun))
    folder = model_folder(recipe.init)
    if recipe.init and (folder / CONFIG).is_file():
        model, tokenizer = load_folder(folder, None if world.device.type == "cuda" else torch.float32)
        model.config.description = recipe.model.description or model.config.description
        return model, tokenizer, folder
    weights = folder / TOWER
    if recipe.init != RANDOM and not (recipe.init and weights.is_file()):
        raise UserError(
            f"init is {recipe.init!r}, which holds neither a model nor a pre-trained tower.",
            f"It must be bundled, a model folder ({CONFIG}), the output of a pretrain_vision run "
            f"({TOWER}), or {RANDOM}; or be empty where model.language.name and vision_weights name the parts.",
            "Run the stage before this one first, or give init=FOLDER.",
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


def _assemble(recipe: Recipe, world: World, begun: bool) -> Path:
    """The model folder output/begin: the named language model, the tower's weights and a new projection."""
    folder = Path(recipe.output) / "begin"
    if world.rank == 0 and not (begun and (folder / CONFIG).is_file()):
        name = Path(recipe.model.language.name)
        language, sizes = load_pretrained_lm(recipe.model.language.name)
        sizes.system_message = recipe.model.language.system_message
        config = replace(recipe.model, language=sizes, lora=LoraConfig())
        if not recipe.vision_weights:
            raise UserError(
                "vision_weights is empty.",
                "A model that is assembled from parts needs the weights of its vision tower.",
                "Give vision_weights=FILE, such as eva_vit_g.pth, for the timm model of model.vision.timm_name.",
            )
        if notice := normalization_notice(config.vision):
            print(notice, file=sys.stderr)
        model = GroundingVLM(config, language)
        fill_tower(model.vision, Path(recipe.vision_weights))
        pieces = name / TOKENIZER
        tokenizer = Tokenizer.load(pieces) if pieces.is_file() else HFTokenizer(recipe.model.language.name)
        save_folder(model, tokenizer, folder)
    world.barrier()
    return folder


def scene_texts(recipe: Recipe) -> Iterator[str]:
    """The training text of the tokenizer: questions and answers about scenes, in the prompt template."""
    options = next((s.options for s in recipe.data.sources if s.name == "scenes"), {})
    tasks = checked_tasks(options.get("tasks"))
    for number in range(recipe.tokenizer_scenes):
        scene, rng = draw_scene((options.get("seed", DEFAULT_SEED), number), 112), random.Random(number)
        if scene.objects:
            talk = scene_questions(scene, tasks, 10, rng) + QuestionWriter(scene, rng).dialogue()
            turns = render(Sample(number, (scene.side, scene.side), tuple(talk)), rng=rng)
            yield from (s.text for s in segments(turns, PROMPT_TEMPLATES[recipe.model.prompt]) if s.text)


def set_trainable(model: GroundingVLM, recipe: Recipe) -> None:
    """Freeze everything except the parts that the recipe names; "lora" adds an adapter where the model has none."""
    if PROMPT_TEMPLATES[model.config.prompt].answers_in_prompt:
        raise UserError(
            f"The model's prompt is {model.config.prompt!r}.",
            "In this prompt earlier answers are part of the next question, so they would not be learned.",
            f'Set "prompt" to "minigptv2-train" in the {CONFIG} of its folder.',
        )
    if recipe.quantize and "language" in recipe.trainable:
        raise UserError(
            f"trainable is {recipe.trainable}, and quantize is {recipe.quantize!r}.",
            "Quantized weights are frozen.",
            "Give trainable=[projector,lora], or omit quantize.",
        )
    if not recipe.trainable:
        raise UserError("trainable is empty.", "It names the parts to train.", "Try trainable=[projector,lora].")
    if "lora" in recipe.trainable and not hasattr(model.language, "peft_config"):
        if not recipe.model.lora.r:
            raise UserError(
                "trainable names lora, but neither the model nor the recipe has one.",
                "model.lora.r is its rank, 1 or more.",
                "Try model.lora.r=64.",
            )
        model.config.lora = recipe.model.lora
        model.add_lora()
    model.requires_grad_(False)
    if "projector" in recipe.trainable:
        model.projector.requires_grad_(True)
    for name, parameter in model.language.named_parameters():
        parameter.requires_grad_(("lora_" in name) if "lora" in recipe.trainable else "language" in recipe.trainable)


def place_on_device(
    model: GroundingVLM, recipe: Recipe, device: torch.device, dtype: torch.dtype, has_base: bool
) -> None:
    """Move the model to the device, trainable weights in float32.

    has_base: a folder holds the frozen weights, so that on a GPU they may be in `dtype`, or quantized, without loss.
    """
    if recipe.quantize:
        quantize_language(model.decoder, recipe.quantize, device, dtype)
    frozen = dtype if device.type == "cuda" and has_base else torch.float32
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not stays_float32(module):
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    model.to(device)
