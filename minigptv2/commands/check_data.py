"""`minigptv2 data check`: problems of a user's own annotation file."""

from __future__ import annotations

import argparse

from minigptv2.commands.options import accept_old_name, whole_number
from minigptv2.commands.printing import escape_control_chars

DESCRIPTION = """\
Check your own file before you train on it: JSON Lines as docs/data.md says, or COCO's detection JSON.

  minigptv2 data check yard.jsonl                      every line and every image: counts and problems
  minigptv2 data check instances_train.json --images images/ --contact-sheet out.png

Exit codes: 0 no problems, 1 problems, 2 nothing of the file can be used.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], help="what to do")
    parser.add_argument("file", metavar="FILE", help="JSON Lines, or COCO's detection JSON")
    parser.add_argument(
        "--images", metavar="FOLDER", default="", help="the folder of the images (default: the folder of FILE)"
    )
    sheet = parser.add_argument(
        "--contact-sheet", metavar="OUT", help="write a PNG that shows images with their labelled boxes"
    )
    number = parser.add_argument(
        "--max-images",
        type=whole_number(1),
        default=16,
        metavar="N",
        help="images on the contact sheet (default: %(default)s)",
    )
    skip = parser.add_argument(
        "--skip-images", action="store_true", help="read only the headers of images; does not find damaged ones"
    )
    parser.add_argument(
        "--orientation",
        choices=["auto", "stored", "upright"],
        default="",
        help="for COCO's JSON: whether boxes are in the image as stored, or turned upright",
    )
    for old, present in (("--sheet", sheet), ("--most", number), ("--quick", skip)):
        accept_old_name(parser, old, present)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from minigptv2.data.validate import check, write_sheet

    report = check(args.file, args.images, args.skip_images, args.orientation)
    for line in report.lines():
        print(escape_control_chars(line))
    if args.contact_sheet and report.drawn:
        sheet, shown = write_sheet(report, Path(args.contact_sheet), args.max_images)
        print(f"sheet: {escape_control_chars(str(sheet))}, {shown} images")
    return report.code
