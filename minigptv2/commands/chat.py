"""`minigptv2 chat`: its options, and which of its arguments are images.

With an instruction it asks about every image (`batch_chat`), without one it opens a conversation (`interactive_chat`).
Nothing heavy is imported before the model is needed.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigptv2.commands.batch_chat import STDIN, BatchChat
from minigptv2.commands.interactive_chat import converse
from minigptv2.commands.options import BASE_HELP, MODEL_HELP, whole_number
from minigptv2.commands.printing import task_lines
from minigptv2.errors import UserError

if TYPE_CHECKING:
    from minigptv2.api import MiniGPTv2

_PATH_START = ("/", "./", "../", "~")

DESCRIPTION = """\
Ask about images: the answer, then a table of its boxes in pixels of the upright image (x1 y1 x2 y2).

  minigptv2 chat park.png "[refer] red balloon"        one image
  minigptv2 chat a.png b.png holiday/ "[caption]"      several, and all images of a folder
  minigptv2 chat - "what is this?" < park.png          an image from standard input
  minigptv2 chat park.png                              a conversation about one image

The last argument is the instruction, unless it is an existing file or folder, is "-", is the only argument, or looks
like a path (ends in a suffix such as .png or in /, or begins with / ./ ../ ~). With -i every argument is an image.

--save replaces no file: if the name is taken by something else, the image gets the next free one, as in park-2.png.

An instruction may begin with a task tag:
""" + "\n".join(task_lines())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = whole_number(1)
    parser.add_argument(
        "words", nargs="*", metavar="IMAGE... [INSTRUCTION]", help='files, folders or "-", then the instruction'
    )
    parser.add_argument("-i", "--instruction", metavar="TEXT", help="the instruction; all other arguments are images")
    parser.add_argument(
        "--save", metavar="OUT", help="write the image with its boxes: a .png, or a folder for several images"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each image")
    parser.add_argument("--model", metavar="FOLDER", help=MODEL_HELP)
    parser.add_argument("--base", metavar="FOLDER", help=BASE_HELP)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument(
        "--quantize",
        metavar="HOW",
        help="bits of the language model: dynamic-int8 on a CPU, bnb-int8 or bnb-nf4 on a GPU",
    )
    parser.add_argument("--max-new-tokens", type=number, metavar="N", help="maximum length of an answer")
    parser.add_argument(
        "--batch-size",
        type=number,
        default=4,
        metavar="N",
        help="images answered at once; more needs more memory (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    from minigptv2.api import MAX_NEW_TOKENS, MiniGPTv2

    def load() -> MiniGPTv2:
        return MiniGPTv2.from_pretrained(args.model, args.device, args.dtype, args.quantize, args.base)

    max_new_tokens = args.max_new_tokens or MAX_NEW_TOKENS
    images, instruction = images_and_instruction(args.words, args.instruction)
    if instruction is None:
        return converse(load, images, max_new_tokens, args.json, args.save)
    return BatchChat(load, instruction, max_new_tokens, args.batch_size, args.json).ask(images, args.save)


def images_and_instruction(words: Sequence[str], explicit: str | None) -> tuple[list[str], str | None]:
    """Split the arguments into images and the instruction, or None. `minigptv2 chat --help` states the rule."""
    if not words:
        raise _no_image("No image was given.")
    if explicit is not None:
        return list(words), explicit
    *others, last = words
    if last == STDIN or os.path.exists(last):
        return list(words), None
    if others:
        return (list(words), None) if _looks_like_path(last) else (others, last)
    if not _looks_like_path(last) and (last.startswith("[") or len(last.split()) > 1):
        raise _no_image(f"No image was given, only the text {last!r}.")
    return [last], None


def _no_image(given: str) -> UserError:
    return UserError(
        given,
        'An image is a file, a folder of images, or "-" for standard input.',
        'Try minigptv2 chat park.png "[refer] red balloon".',
    )


def _looks_like_path(word: str) -> bool:
    from minigptv2.images import SUFFIXES

    if word.lower().endswith(SUFFIXES) or word.startswith(_PATH_START) or word.endswith(os.sep):
        return True
    return re.fullmatch(r"\S+\.[A-Za-z][A-Za-z0-9]{1,4}", word) is not None
