"""`minigptv2 bench eval`: expressions per second of the evaluation, and of a plain baseline with the same weights.

The baseline encodes the image again for every row, has ten rows in a batch, and runs transformers' `generate` until the
last row has ended. Images are drawn; the number of expressions per image follows RefCOCO's distribution.
"""

from __future__ import annotations

import random
import time
from functools import partial

from minigptv2.eval.benchmark import Prediction, Question
from minigptv2.eval.inference import run_inference

# RefCOCO val: number of expressions of an image -> how many of the 1,500 images have it
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
PLAIN_BATCH_SIZE, BATCH_SIZE, MAX_NEW_TOKENS = 10, 64, 50


def run(
    model: str | None, device: str | None, dtype: str | None, images: int, base: str | None = None
) -> dict[str, float]:
    """Measure and print both. Returns expressions per second ("plain", "ours") and the fraction of "equal" answers."""
    from minigptv2.api import MiniGPTv2

    opened = MiniGPTv2.from_pretrained(model, device, dtype, base=base)
    items = questions(images, opened.config.vision.image_size)
    predictions: list[Prediction] = []
    few = items[: 2 * PLAIN_BATCH_SIZE]  # warm-up
    plain(opened, few)
    run_inference(opened, few, BATCH_SIZE, MAX_NEW_TOKENS, lambda answers: None)
    start = time.perf_counter()
    plain_texts = plain(opened, items)
    middle = time.perf_counter()
    run_inference(opened, items, BATCH_SIZE, MAX_NEW_TOKENS, predictions.extend)
    end = time.perf_counter()
    answers = {p.index: p.text for p in predictions}
    rates = {
        "plain": len(items) / (middle - start),
        "ours": len(items) / (end - middle),
        "equal": sum(answers[i.index].strip() == text.strip() for i, text in zip(items, plain_texts)) / len(items),
    }
    print(f"{len(items)} expressions about {images} images, {opened.device}, {opened.dtype}")
    print(f"plain baseline, batch {PLAIN_BATCH_SIZE}:  {rates['plain']:.1f} expressions/s")
    print(
        f"minigptv2 eval, batch {BATCH_SIZE}: {rates['ours']:.1f} expressions/s, {rates['ours'] / rates['plain']:.2f} x"
    )
    print(f"equal answers: {rates['equal']:.3f}")
    return rates


def questions(images: int, size: int, seed: int = 1) -> list[Question]:
    """Expressions about drawn images, as many for an image as in RefCOCO."""
    from minigptv2.data.scenes.questions import QuestionWriter
    from minigptv2.eval.benchmarks.scenes import held_out
    from minigptv2.tasks import instruction_text

    rng, out = random.Random(seed), []
    for number in range(images):
        (count,) = rng.choices(list(EXPRESSIONS), list(EXPRESSIONS.values()))
        scene = held_out(seed, number, size)
        writer = QuestionWriter(scene, rng)
        for _ in range(count):
            text = instruction_text(writer.refer(), (size, size), "round", rng)
            out.append(Question(len(out), partial(_same, scene.image), (size, size), text, f"scene {number}"))
    return out


def _same(image):
    return image


def plain(model, items: list[Question]) -> list[str]:
    """The answers of the plain baseline."""
    import numpy as np
    import torch

    from minigptv2.encode import stop_ids
    from minigptv2.images import normalize, resize_square
    from minigptv2.packing import PADDING_BLOCK, collate
    from minigptv2.sample import ImagePiece, Turn

    out, side, tokenizer, decoder = [], model.config.vision.image_size, model.tokenizer, model.network.decoder
    attention = decoder.config._attn_implementation
    decoder.config._attn_implementation = "sdpa"  # transformers makes masks only for its own attention
    for start in range(0, len(items), PLAIN_BATCH_SIZE):
        chunk = items[start : start + PLAIN_BATCH_SIZE]
        images = [item.image() for item in chunk]
        rows = [
            model.encoder.encode([Turn("user", (ImagePiece(i), item.instruction))]) for i, item in zip(images, chunk)
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
    decoder.config._attn_implementation = attention
    return out
