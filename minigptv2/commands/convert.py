"""`minigptv2 convert`: the published files as one model folder."""

from __future__ import annotations

import argparse
import sys

from minigptv2.commands.options import accept_old_name, whole_number
from minigptv2.devices import DTYPES
from minigptv2.model.published_config import BOX_ROUNDING, IMAGE_SIZE, LORA_ALPHA, PROMPT

DESCRIPTION = """\
Convert the published files to one model folder, which chat --model and from_pretrained open without these files:

  minigptv2 convert checkpoint.pth --eva eva_vit_g.pth --llama Llama-2-7b-chat-hf --out minigptv2-7b

A report of every tensor is printed, and stored in the folder as report.json. Nothing is written if a tensor is missing
or does not fit. docs/weights.md says where to get the files.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = whole_number(1)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a MiniGPT-v2 checkpoint, .pth")
    parser.add_argument("--eva", required=True, metavar="FILE", help="the vision tower, eva_vit_g.pth")
    parser.add_argument("--llama", required=True, metavar="DIR", help="LLaMA-2-7b-chat in the Hugging Face layout")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the model folder to write")
    parser.add_argument("--merge", action="store_true", help="fold the LoRA into the language model's weights")
    template = parser.add_argument(
        "--prompt-template",
        default=PROMPT,
        metavar="NAME",
        help="minigptv2-eval: as for the published results; minigptv2-train: as in training (default: %(default)s)",
    )
    accept_old_name(parser, "--prompt", template)
    rounding = parser.add_argument(
        "--box-rounding",
        default=BOX_ROUNDING,
        choices=("center", "floor"),
        help="how box numbers are read; floor: as in the published code (default: %(default)s)",
    )
    accept_old_name(parser, "--boxes", rounding)
    parser.add_argument(
        "--dtype", default="float16", choices=DTYPES, help="of the stored weights (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size", type=number, default=IMAGE_SIZE, metavar="N", help="pixels of a side (default: %(default)s)"
    )
    parser.add_argument("--vision-heads", type=number, metavar="N", help="of the tower (default: its width / 88)")
    parser.add_argument("--vision-depth", type=number, metavar="N", help="blocks of the tower (default: 39 of 40)")
    parser.add_argument(
        "--lora-alpha", type=number, default=LORA_ALPHA, metavar="N", help="of the LoRA (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    from minigptv2.model.published import convert

    vision = {"num_heads": args.vision_heads, "depth": args.vision_depth}
    report = convert(
        args.checkpoint,
        args.eva,
        args.llama,
        args.out,
        args.merge,
        args.dtype,
        prompt=args.prompt_template,
        vision={k: v for k, v in vision.items() if v},
        image_size=args.image_size,
        lora_alpha=args.lora_alpha,
        box_rounding=args.box_rounding,
    )
    print(report, file=sys.stderr)
    print(f"done: {args.out}")
