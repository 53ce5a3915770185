"""`minigptv2 bench eval`: expressions a second as the evaluation asks them, against the plain way on the same weights.

The plain way: every row has its own image, encoded for it, ten rows a batch, and transformers' `generate` writes
until the last row has ended. Images are drawn; how many expressions each has follows RefCOCO's own distribution.
"""

from __future__ import annotations

import random
import time
from functools import partial

from minigptv2.eval.benchmark import Prediction, Question
from minigptv2.eval.inference import run_inference

# RefCOCO val: how many of its 1,500 images have so many expressions
EXPRESSIONS = {
    2: 41,
    3: 53,
    4: 31,
    5: 177,
    6: 696,
    7: 17,
    8: 80,
    9: 169,
    10: 18,
    11: 57,
    12: 74,
    13: 10,
    14: 12,
    15: 28,
    16: 4,
    17: 11,
    18: 4,
    19: 3,
    20: 5,
    21: 3,
    22: 1,
    24: 3,
    25: 1,
    26: 1,
    27: 1,
}
PLAIN_BATCH, BATCH, MAX_NEW_TOKENS = 10, 64, 50


def run(
    model: str | None, device: str | None, dtype: str | None, images: int, base: str | None = None
) -> dict[str, float]:
    """Measure and print both; expressions a second by way, and the share of equal answers."""
    from minigptv2.api import MiniGPTv2

    opened = MiniGPTv2.from_pretrained(model, device, dtype, base=base)
    items = questions(images, opened.config.vision.image_size)
    kept: list[Prediction] = []
    few = items[: 2 * PLAIN_BATCH]  # what is slow the first time only
    plain(opened, few)
    run_inference(opened, few, BATCH, MAX_NEW_TOKENS, lambda answers: None)
    began = time.perf_counter()
    slow = plain(opened, items)
    between = time.perf_counter()
    run_inference(opened, items, BATCH, MAX_NEW_TOKENS, kept.extend)
    ended = time.perf_counter()
    answers = {p.index: p.text for p in kept}
    rates = {
        "plain": len(items) / (between - began),
        "ours": len(items) / (ended - between),
        "equal": sum(answers[i.index].strip() == text.strip() for i, text in zip(items, slow)) / len(items),
    }
    print(f"{len(items)} expressions about {images} images, {opened.device}, {opened.dtype}")
    print(f"plain way, batch {PLAIN_BATCH}:  {rates['plain']:.1f} expressions/s")
    print(
        f"minigptv2 eval, batch {BATCH}: {rates['ours']:.1f} expressions/s, {rates['ours'] / rates['plain']:.2f} times"
    )
    print(f"equal answers: {rates['equal']:.3f}")
    return rates


def questions(images: int, size: int, seed: int = 1) -> list[Question]:
    """Expressions about drawn images, as many an image as RefCOCO's have."""
    from minigptv2.data.scenes.questions import QuestionWriter
    from minigptv2.eval.benchmarks.scenes import held_out
    from minigptv2.tasks import instruction_text

    rng, out = random.Random(seed), []
    for number in range(images):
        (count,) = rng.choices(list(EXPRESSIONS), list(EXPRESSIONS.values()))
        scene = held_out(seed, number, size)
        talk = QuestionWriter(scene, rng)
        for _ in range(count):
            text = instruction_text(talk.refer(), (size, size), "round", rng)
            out.append(Question(len(out), partial(_same, scene.image), (size, size), text, f"scene {number}"))
    return out


def _same(image):
    return image


def plain(model, items: list[Question]) -> list[str]:
    """The answers, the plain way."""
    import numpy as np
    import torch

    from minigptv2.encode import stop_ids
    from minigptv2.images import normalize, resize_square
    from minigptv2.packing import PADDING_BLOCK, collate
    from minigptv2.sample import ImagePiece, Turn

    out, side, tokenizer, decoder = [], model.config.vision.image_size, model.tokenizer, model.network.decoder
    ours = decoder.config._attn_implementation
    decoder.config._attn_implementation = "sdpa"  # transformers makes masks for its own attention alone
    for start in range(0, len(items), PLAIN_BATCH):
        mine = items[start : start + PLAIN_BATCH]
        images = [item.image() for item in mine]
        rows = [
            model.encoder.encode([Turn("user", (ImagePiece(i), item.instruction))]) for i, item in zip(images, mine)
        ]
        batch = collate(rows, left=True).to(model.device)
        with torch.inference_mode():
            squares = torch.from_numpy(np.stack([np.asarray(resize_square(i, side)) for i in images]))
            pixels = normalize(squares, model.config.vision.image_mean, model.config.vision.image_std)
            visual = model.network.encode_images(pixels.to(model.device, model.dtype))
            written = decoder.generate(
                inputs_embeds=model.network.embed(batch.ids, visual),
                attention_mask=(batch.blocks != PADDING_BLOCK).long(),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=sorted(stop_ids(tokenizer, model.config.prompt)),
                pad_token_id=tokenizer.eos,
            )
        out += [tokenizer.decode(ids) for ids in written.tolist()]
    decoder.config._attn_implementation = ours
    return out
