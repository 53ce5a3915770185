"""Validation during training: accuracy of short answers about drawn scenes that no source uses. Not a benchmark."""

from __future__ import annotations

import random

import numpy as np
import torch

from minigptv2.boxes import IOU_THRESHOLD, iou, parse
from minigptv2.data.scenes.questions import scene_questions
from minigptv2.data.scenes.world import DEFAULT_SEED, Scene, draw_scene
from minigptv2.encode import PromptEncoder
from minigptv2.images import normalize
from minigptv2.model.grounding_vlm import GroundingVLM
from minigptv2.packing import collate
from minigptv2.sample import Sample
from minigptv2.tasks import render
from minigptv2.train.precision import best_dtype, call_in_dtype

NUM_HELD_OUT = 96  # the first scenes of the seed, which sources with validation skip
SEED = DEFAULT_SEED
VALIDATION_TASKS = ("refer", "refer_to_class", "refer_to_absent", "identify", "comparison", "statement")


class Validator:
    """Accuracy on `count` held-out scenes, which are drawn and encoded by the frozen tower once."""

    def __init__(self, model: GroundingVLM, encoder: PromptEncoder, count: int = NUM_HELD_OUT):
        self.model, self.encoder, self.count = model, encoder, count
        self.scenes: list[Scene] = []
        self.features: torch.Tensor | None = None  # [count, N, C]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The accuracy of each task. A box is correct from an IoU of 0.5 on; text must be equal."""
        from minigptv2.model.generate import generate

        self.model.eval()
        self._draw()
        tokenizer, coding = self.encoder.tokenizer, self.model.config.box_rounding
        device, out = self.features.device, {}
        for task in VALIDATION_TASKS:
            rng, asked, rows, numbers = random.Random(5), [], [], []
            for number, scene in enumerate(self.scenes):
                found = scene_questions(scene, {task: 1.0}, 1, rng) if scene.objects else []
                if found and (task != "refer" or found[0].phrases[0].boxes):
                    question, expected = render(Sample(number, (scene.side, scene.side), (found[0],)), coding)
                    rows.append(self.encoder.encode([question]))
                    asked.append((expected.pieces[0], scene.side))
                    numbers.append(number)
            visual = self.model.encode_images(None, self.features[numbers])
            with torch.compiler.set_stance("force_eager"):
                answers = generate(self.model, tokenizer, collate(rows, left=True).to(device), visual, 40)
            correct = 0
            for text, (expected, side) in zip((tokenizer.decode(a.ids) for a in answers), asked):
                found, true = (parse(words, side, side, coding).boxes for words in (text, expected))
                if true:
                    correct += bool(found) and iou(found[0], true[0]) >= IOU_THRESHOLD
                else:
                    correct += text == expected
            out[task] = correct / max(1, len(asked))
        self.model.train()
        self.model.vision.eval()
        return out

    def _draw(self) -> None:
        if self.features is not None:
            return
        device = self.model.projector.weight.device
        made = []
        for number in range(self.count):
            scene = draw_scene((SEED, number), self.model.config.vision.image_size)
            self.scenes.append(scene)
            vision = self.model.config.vision
            image = torch.from_numpy(np.array(scene.image))[None]
            pixels = normalize(image, vision.image_mean, vision.image_std).to(device)
            made.append(call_in_dtype(self.model.vision, best_dtype(device), pixels).half())
        self.features = torch.cat(made)
