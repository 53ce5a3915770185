"""`minigptv2 show`: samples as the model sees them: the conversation, its tokens, and the annotated boxes.

The first line of tokens is what all questions share, and each question has a line of its own. Supervised tokens are
green, or between « and » without colours.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import count, groupby
from pathlib import Path
from typing import Any

from minigptv2.bundled import BUNDLED, model_folder
from minigptv2.commands.options import accept_old_name, whole_number
from minigptv2.commands.printing import escape_control_chars
from minigptv2.config import ModelConfig
from minigptv2.data.dataset import Dataset, open_dataset
from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID, SHARED_BLOCK, EncodedRow, PromptEncoder
from minigptv2.errors import UserError
from minigptv2.files import shortened
from minigptv2.sample import Sample, Turn
from minigptv2.tasks import render
from minigptv2.tokenizer import HFTokenizer, Tokenizer

_GREEN, _RESET = "\x1b[32m", "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="NAME", help="what to show: scenes, or a data set such as vqav2")
    parser.add_argument(
        "options", nargs="*", metavar="KEY=VALUE", help="options of the data set: root=FOLDER split=val ..."
    )
    parser.add_argument(
        "-n", type=whole_number(1), default=3, metavar="N", help="number of samples (default: %(default)s)"
    )
    start = parser.add_argument(
        "--start",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="number of the first record (default: %(default)s)",
    )
    accept_old_name(parser, "--seed", start)
    parser.add_argument("--out", default="output/show", metavar="FOLDER", help="for the images (default: %(default)s)")
    parser.add_argument(
        "--model", metavar="FOLDER", help="the model whose tokenizer and prompt are used (default: the bundled one)"
    )
    parser.add_argument("--color", action="store_true", help="colours, even if standard output is not a terminal")


def run(args: argparse.Namespace) -> None:
    show(args.data, args.n, args.start, args.out, args.model, args.color or sys.stdout.isatty(), args.options)


def show(
    data: str,
    number: int,
    start: int,
    out: str | Path,
    model: str | Path | None,
    color: bool,
    options: Sequence[str] = (),
) -> None:
    """Print `number` samples of a data set, and save their images with the annotated boxes in `out`.

    data: a name in `DATASETS`, or my_package.module:Class. start: the number of the first record. options: of the data
    set, as key=value.
    """
    from minigptv2.drawing import draw_boxes, save_png
    from minigptv2.images import open_image

    samples = _records(open_dataset(data, parse_options(options)), start)
    encoder, config = open_prompt_encoder(model)
    for _ in range(number):
        sample, boxes, rng = next(samples)
        turns = render(sample, config.box_rounding, rng)
        row = encoder.encode_independent_answers(turns) if sample.side_by_side else encoder.encode(turns)
        print(f"{escape_control_chars(sample.key)}: {len(sample.question_answers)} exchanges")
        print(conversation_text(turns))
        print(tokens_text(row, encoder.tokenizer, color))
        supervised = sum(label != IGNORE_INDEX for label in row.labels)
        print(f"{len(row)} tokens, {row.ids.count(IMAGE_TOKEN_ID)} of them the image, {supervised} supervised")
        if sample.image is None:
            print("no image\n")
            continue
        name = shortened(re.sub(r"[^A-Za-z0-9_.-]+", "-", sample.key).strip("-.") or "sample")
        file = save_png(draw_boxes(open_image(sample.image), boxes), Path(out) / f"{name}.png")
        print(f"image: {escape_control_chars(str(file))}\n")


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Options given as key=value; a value is read as YAML: true, 8, [refer, identify], text."""
    import yaml

    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            if not key.isidentifier() or not equals:
                raise ValueError
            options[key] = "" if not value else yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise UserError(
                f"The option {word!r} cannot be read.",
                "An option is key=value, its value as in a YAML file.",
                "Write it as in root=coco split=val.",
            ) from None
    return options


def _records(dataset: Dataset, first: int) -> Iterator[tuple[Sample, list, random.Random]]:
    """Sample, annotated boxes and random generator of each record from number `first` on; starts over after the last.

    Prints the problems of the data set first. A record without questions, such as an empty scene, is skipped.
    """
    from minigptv2.boxes import Box

    print(f"{len(dataset)} records; {len(dataset.problems.counts) or 'no'} types of problems")
    for line in dataset.problems.lines():
        print(f"  {escape_control_chars(line)}")
    print()
    for number in count(first):
        sample = dataset[number % len(dataset)]
        if not sample.question_answers:
            continue
        boxes = {
            (p.text, b.xyxy): Box(*b.xyxy, p.text) for e in sample.question_answers for p in e.phrases for b in p.boxes
        }
        yield sample, list(boxes.values()), random.Random(number)


def open_prompt_encoder(folder: str | Path | None) -> tuple[PromptEncoder, ModelConfig]:
    """The encoder of a model folder, without reading its weights. Raises UserError if a file of it is missing."""
    from minigptv2.model.model_folder import build_on_meta, open_tokenizer

    folder = BUNDLED if folder is None else model_folder(folder)
    model = build_on_meta(folder)
    config = model.config
    return PromptEncoder.for_model(model, open_tokenizer(folder, config.language)), config


def conversation_text(turns: list[Turn]) -> str:
    lines = []
    for turn in turns:
        words = "".join(piece if isinstance(piece, str) else "(image) " for piece in turn.pieces)
        lines.append(f"  {turn.role + ':':<10} {escape_control_chars(words)}")
    return "\n".join(lines)


def tokens_text(row: EncodedRow, tokenizer: Tokenizer | HFTokenizer, color: bool) -> str:
    """One line per block. The tokens of an image are written as (image x 64)."""
    lines, tokens = [], list(zip(row.blocks, row.labels, row.ids))
    for block, inside in groupby(tokens, key=lambda token: token[0]):
        words = []
        for supervised, run in groupby(inside, key=lambda token: token[1] != IGNORE_INDEX):
            text = " ".join(_pieces([token[2] for token in run], tokenizer))
            words.append((f"{_GREEN}{text}{_RESET}" if color else f"«{text}»") if supervised else text)
        lines.append(f"  {'shared' if block == SHARED_BLOCK else block:>6} | " + " ".join(words))
    return "\n".join(lines)


def _pieces(ids: list[int], tokenizer: Tokenizer | HFTokenizer) -> Iterator[str]:
    for index, run in groupby(ids):
        count = len(list(run))
        if index == IMAGE_TOKEN_ID:
            yield f"(image x {count})"
        else:
            yield from [escape_control_chars(tokenizer.piece(index))] * count
