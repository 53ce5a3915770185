"""The command line: `minigptv2 chat | info | convert | show | data | train | eval | bench`.

This file parses and tells errors; the work is elsewhere. Nothing heavy is imported before a command needs it. Exit
codes: 0 all went well, 1 some images failed, 2 nothing was done because of bad input, 130 interrupted, 141 whoever
read the output is gone, 143 SIGTERM stopped a training run.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TextIO

from minigptv2 import __version__
from minigptv2.bundled import config_folder, summaries
from minigptv2.commands.chat import print_error, task_lines
from minigptv2.errors import UserError, unknown

_BAD_INPUT, _INTERRUPTED, _PIPE_CLOSED, _STOPPED = 2, 130, 141, 143
_ADVICE = {
    errno.ENOSPC: "Make room on the disk, or choose another place.",
    errno.EACCES: "Get the permission (chmod).",
    errno.ENAMETOOLONG: "Give a path; it is no place for the content of a file.",
}
_OFFLINE_AND_SILENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a UserError, with the nearest option where one was mistyped."""

    def __init__(self, command: str, description: str):
        super().__init__(
            f"minigptv2 {command}".strip(),
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        options = [o for action in self._actions for o in action.option_strings]
        wrong = next((w for w in message.split() if w.startswith("-") and w not in options), "")
        usage = " ".join(self.format_usage().split())
        told = message[0].upper() + message[1:] + "."
        raise unknown(told, wrong, options, f"Run {self.prog} --help.", usage[0].upper() + usage[1:])


@dataclass(frozen=True)
class Command:
    """help: one line. add_arguments: to its parser. run: does it and gives the exit code."""

    help: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None]
    description: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Bad input ends in three lines on standard error, never in a traceback."""
    stdout = sys.stdout
    try:
        try:
            _prepare()
            stdout, sys.stdout = sys.stdout, Output(sys.stdout)
            code = _run(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as stop:  # argparse after --help and --version
            code = int(stop.code or 0)
        sys.stdout.flush()
        return code
    except UserError as error:
        print_error(error)
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _PIPE_CLOSED
    except OSError as error:
        print_error(_told(error))
        return _BAD_INPUT
    finally:
        sys.stdout = stdout or sys.stdout
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


class Output:
    """Standard output. What it does not take is told as that, and is no error of some file."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._told(self.stream.write, text)

    def flush(self) -> None:
        self._told(self.stream.flush)

    def _told(self, action: Callable, *given: str) -> int | None:
        try:
            return action(*given)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                "Standard output cannot be written.",
                f"The system says: {error.strerror or error}.",
                "Make room, or send it to another place.",
            ) from None


def _prepare() -> None:
    """Before any heavy import: no hub is asked, and a user sees our output alone."""
    for name, value in _OFFLINE_AND_SILENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it wherever it is installed
    streams = ("stdin", "stdout", "stderr")
    closed = [name for name in streams if getattr(getattr(sys, name), "closed", getattr(sys, name) is None)]
    for name in closed:  # in the order of their numbers, so that each takes its own
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # any bytes in, any terminal out
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    if "stdout" in closed:
        raise UserError("Standard output is closed.", "Answers and results go there.", "Send it to a file: > out.txt.")


def _settle(stream: TextIO) -> None:
    """Write what is buffered. What cannot be written goes nowhere, so that Python's own flush at the end has nothing to
    complain about."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _told(error: OSError) -> UserError:
    """What the system refused, where the code that met it does not say it better."""
    given = f"{error.filename} cannot be used." if error.filename else "A file cannot be read or written."
    says = f"The system says: {error.strerror or str(error) or type(error).__name__}."
    return UserError(given, says, _ADVICE.get(error.errno, "Check the paths that were given."))


def _run(argv: list[str]) -> int:
    if argv and argv[0].startswith("--local_rank=") and "LOCAL_RANK" in os.environ:
        argv = argv[1:]  # the deepspeed launcher says it twice
    for word in argv:
        if "\0" in word:
            raise UserError(
                f"The argument {word!r} holds a NUL.", "No path and no text has one.", "Give it without the NUL."
            )
    if not argv or argv[0].startswith("-"):
        return _without_command(argv)
    name, *rest = argv
    if name not in COMMANDS:
        raise unknown(
            f"The command {name!r} is unknown.",
            name,
            COMMANDS,
            "Run minigptv2 --help.",
            f"Known commands: {', '.join(COMMANDS)}.",
            "minigptv2 {}",
        )
    command = COMMANDS[name]
    parser = Parser(name, command.description or command.help)
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_intermixed_args(rest)) or 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == __package__:
            raise
        extra = f"[{name}]" if name in ("train", "eval") else ""
        raise UserError(
            f"The package {error.name} is not installed.",
            f"minigptv2 {name} needs it.",
            f'Run pip install "minigptv2{extra}".',
        ) from None


def _without_command(argv: list[str]) -> int:
    lines = "\n".join(f"  {name:<8} {command.help}" for name, command in COMMANDS.items())
    parser = Parser("", f"MiniGPT-v2: ask an image, get text and boxes.\n\ncommands:\n{lines}")
    parser.usage = "minigptv2 COMMAND ..."
    parser.epilog = "minigptv2 COMMAND --help tells what a command takes."
    parser.add_argument("--version", action="version", version=f"minigptv2 {__version__}")
    parser.parse_args(argv)
    parser.print_help(sys.stderr)
    return 2


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.strip().lstrip("+").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return parse


# ---- the commands ----

_CHAT = """\
Ask about images: the answer, then a table of its boxes in pixels of the upright image (x1 y1 x2 y2).

  minigptv2 chat park.png "[refer] red balloon"        one image
  minigptv2 chat a.png b.png holiday/ "[caption]"      several, and all images of a folder
  minigptv2 chat - "what is this?" < park.png          an image from standard input
  minigptv2 chat park.png                              a conversation about one image

The last argument is the instruction, unless it is an existing file or folder, is "-", stands alone, or looks like a
path (ends in a suffix such as .png or in /, or begins with / ./ ../ ~). With -i every argument is an image.

--save replaces no file: where the name is taken by something else, the image gets the next free one, as in park-2.png.

An instruction may begin with a task tag:
""" + "\n".join(task_lines())


def _chat_arguments(parser: Parser) -> None:
    number = _whole_number(1)
    parser.add_argument(
        "words", nargs="*", metavar="IMAGE... [INSTRUCTION]", help='files, folders or "-", then the instruction'
    )
    parser.add_argument("-i", "--instruction", metavar="TEXT", help="the instruction; all other arguments are images")
    parser.add_argument("--save", metavar="OUT", help="write the image with its boxes: a .png, for several a folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object an image, one a line")
    parser.add_argument("--model", metavar="FOLDER", help="a saved model (default: the small one that comes along)")
    parser.add_argument("--base", metavar="FOLDER", help="of a model that holds only what was trained: the one before")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32 on a CPU)")
    parser.add_argument(
        "--quantize", metavar="HOW", help="language model in few bits: int8 on a CPU, 8bit or 4bit on a GPU"
    )
    parser.add_argument("--max-new-tokens", type=number, metavar="N", help="longest answer")
    parser.add_argument(
        "--batch-size",
        type=number,
        default=4,
        metavar="N",
        help="images answered at once; more needs more memory (default: %(default)s)",
    )


def _chat(args: argparse.Namespace) -> int:
    from minigptv2.api import MAX_NEW_TOKENS, MiniGPTv2
    from minigptv2.commands import chat as chat_command

    def load() -> MiniGPTv2:
        return MiniGPTv2.from_pretrained(args.model, args.device, args.dtype, args.quantize, args.base)

    longest = args.max_new_tokens or MAX_NEW_TOKENS
    images, instruction = chat_command.images_and_instruction(args.words, args.instruction)
    if instruction is None:
        return chat_command.converse(load, images, longest, args.json, args.save)
    run = chat_command.BatchChat(load, instruction, longest, args.batch_size, args.json)
    return run.ask(images, args.save)


def _info_arguments(parser: Parser) -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="a saved model (default: the bundled one)")


def _info(args: argparse.Namespace) -> None:
    from minigptv2.commands.info import info

    print(info(args.folder))


_CONVERT = """\
Write the published files as one model folder, which chat --model and from_pretrained open without them:

  minigptv2 convert checkpoint.pth --eva eva_vit_g.pth --llama Llama-2-7b-chat-hf --out minigptv2-7b

What became of every tensor is printed, and stored in the folder as report.json; nothing is written where one is missing
or does not fit. docs/weights.md tells where the files are from.
"""


def _convert_arguments(parser: Parser) -> None:
    number = _whole_number(1)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a MiniGPT-v2 checkpoint, .pth")
    parser.add_argument("--eva", required=True, metavar="FILE", help="the vision tower, eva_vit_g.pth")
    parser.add_argument("--llama", required=True, metavar="DIR", help="LLaMA-2-7b-chat in the layout of its hub")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the model folder to write")
    parser.add_argument("--merge", action="store_true", help="fold the LoRA into the language model's weights")
    parser.add_argument(
        "--prompt",
        default="published",
        metavar="NAME",
        help="published, as the published numbers, or training (default: %(default)s)",
    )
    parser.add_argument(
        "--boxes",
        default="center",
        choices=("center", "floor"),
        help="how box numbers are read; floor: as published (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        default="float16",
        choices=("float16", "bfloat16", "float32"),
        help="of the stored weights (default: %(default)s)",
    )
    parser.add_argument("--image-size", type=number, default=448, metavar="N", help="pixels (default: %(default)s)")
    parser.add_argument("--vision-heads", type=number, metavar="N", help="of the tower (default: its width / 88)")
    parser.add_argument("--vision-depth", type=number, metavar="N", help="blocks of the tower (default: 39 of 40)")
    parser.add_argument("--lora-alpha", type=number, default=16, metavar="N", help="(default: %(default)s)")


def _convert(args: argparse.Namespace) -> None:
    from minigptv2.model.published import convert

    vision = {"num_heads": args.vision_heads, "depth": args.vision_depth}
    report = convert(
        args.checkpoint,
        args.eva,
        args.llama,
        args.out,
        args.merge,
        args.dtype,
        prompt=args.prompt,
        vision={k: v for k, v in vision.items() if v},
        image_size=args.image_size,
        lora_alpha=args.lora_alpha,
        box_rounding=args.boxes,
    )
    print(report, file=sys.stderr)
    print(f"done: {args.out}")


def _show_arguments(parser: Parser) -> None:
    parser.add_argument("data", metavar="NAME", help="what to look at: scenes, or a data set such as vqav2")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="of the data set: root=FOLDER split=val ...")
    parser.add_argument("-n", type=_whole_number(1), default=3, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=_whole_number(0),
        default=0,
        help="of the first scene, or number of the first record (default: %(default)s)",
    )
    parser.add_argument("--out", default="output/show", metavar="FOLDER", help="for the images (default: %(default)s)")
    parser.add_argument("--model", metavar="FOLDER", help="whose tokenizer and prompt (default: the bundled model)")
    parser.add_argument("--color", action="store_true", help="colours although standard output is no terminal")


def _show(args: argparse.Namespace) -> None:
    from minigptv2.commands.show import show

    show(args.data, args.n, args.seed, args.out, args.model, args.color or sys.stdout.isatty(), args.options)


_DATA = """\
Check a file of your own before you train on it: JSON Lines as docs/data.md says, or COCO's detection JSON.

  minigptv2 data check yard.jsonl                      every line, every image: counts, and what is wrong
  minigptv2 data check instances_train.json --images images/ --sheet out.png

Exit codes: 0 no problems, 1 problems, 2 nothing of the file can be used.
"""


def _data_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=["check"], help="what to do")
    parser.add_argument("file", metavar="FILE", help="JSON Lines, or COCO's detection JSON")
    parser.add_argument("--images", metavar="FOLDER", default="", help="of the images (default: that of the file)")
    parser.add_argument("--sheet", metavar="OUT", help="write a PNG of images with their labelled boxes")
    parser.add_argument(
        "--most", type=_whole_number(1), default=16, metavar="N", help="images in the sheet (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="read the images' headers alone: damage is not seen")
    parser.add_argument(
        "--orientation",
        choices=["auto", "stored", "upright"],
        default="",
        help="of COCO's JSON: whether boxes are of images as stored, or upright",
    )


def _data(args: argparse.Namespace) -> int:
    from pathlib import Path

    from minigptv2.commands.chat import escape_control_chars
    from minigptv2.data.validate import check, write_sheet

    report = check(args.file, args.images, args.quick, args.orientation)
    for line in report.lines():
        print(escape_control_chars(line))
    if args.sheet and report.drawn:
        sheet, shown = write_sheet(report, Path(args.sheet), args.most)
        print(f"sheet: {escape_control_chars(str(sheet))}, {shown} images")
    return report.code


def _recipe_arguments(parser: Parser, command: Literal["train", "eval"]) -> None:
    parser.epilog = (
        f"recipes, by name from any folder; their files are in {config_folder(command)}:\n{summaries(command)}"
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe below")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace those of the file")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few samples, to see that it runs")


_EVAL = """\
Measure a model, as a config says: a table, and answers.jsonl, report.json and report.html in its output.

  minigptv2 eval refcoco images=data/coco
  minigptv2 eval refcoco --rescore answers.jsonl    answers of any source, without a model

An image that is not on disk ends the run before it begins. One that turns out to be damaged does not: its questions
count as wrong, the table names it, and the exit code is 1. With --allow-missing both kinds are left out and counted.
A run that was stopped goes on with the same command; --rescore also takes the files of the published evaluation,
COCO results, and JSON lists that name questions as their set does.
"""


def _train_arguments(parser: Parser) -> None:
    _recipe_arguments(parser, "train")


def _eval_arguments(parser: Parser) -> None:
    _recipe_arguments(parser, "eval")
    parser.add_argument(
        "--base", metavar="FOLDER", help="of a model that holds only what was trained: the model it was trained from"
    )
    parser.add_argument("--rescore", metavar="FILE", help="score these answers instead of asking a model")
    parser.add_argument("--export-coco", metavar="FILE", help="write the boxes as COCO results (coco_detection)")
    parser.add_argument("--export-lmms", metavar="FILE", help="write the boxes with lmms-lab's columns (refcoco)")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out and count questions whose image is missing or cannot be opened",
    )


def _train(args: argparse.Namespace) -> int:
    from minigptv2.train.loop import run

    result = run(args.config, args.overrides, args.smoke)
    if result is None:
        return _STOPPED
    if os.environ.get("RANK", "0") == "0":
        print(f"done: {result}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from minigptv2.eval.runner import run

    reports = run(
        args.config,
        args.overrides,
        args.smoke,
        args.rescore,
        args.allow_missing,
        args.export_coco,
        args.export_lmms,
        args.base,
    )
    return 1 if any(report.failed for report in reports) else 0


def _bench_arguments(parser: Parser) -> None:
    parser.add_argument("what", choices=tuple(BENCHES), help="; ".join(f"{k}: {v.help}" for k, v in BENCHES.items()))
    parser.add_argument("--model", metavar="FOLDER", help="a saved model (default: the small one that comes along)")
    parser.add_argument("--base", metavar="FOLDER", help="of a model that holds only what was trained: the one before")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", help="float32 or bfloat16; for eval also float16 (default: as they choose)")
    parser.add_argument(
        "--images",
        type=_whole_number(1),
        metavar="N",
        help="how much is measured (default: 40 for eval, 24 for train)",
    )


def _bench(args: argparse.Namespace) -> None:
    BENCHES[args.what].run(args)


def _bench_eval(args: argparse.Namespace) -> None:
    from minigptv2.bench.eval import run

    run(args.model, args.device, args.dtype, args.images or 40, args.base)


def _bench_train(args: argparse.Namespace) -> None:
    from functools import partial

    from minigptv2.bench.train import bench_cache, bench_data, bench_loop, bench_packing, dtype_of
    from minigptv2.bundled import model_folder
    from minigptv2.train.distributed import choose_device

    device, dtype = str(choose_device(args.device or "")), dtype_of(args.dtype)
    model, count = model_folder(args.model or "bundled"), args.images or 24
    print("| ours against the plain way | samples/s | plain | ratio |\n|---|---|---|---|")
    base = None if args.base is None else model_folder(args.base, "base")
    steps = (partial(bench, device=device, dtype=dtype) for bench in (bench_cache, bench_packing, bench_loop))
    for measure in (bench_data, *steps):
        found = measure(model, count, base=base)
        print(f"| {found.what} | {found.rate:.2f} | {found.plain:.2f} | {found.ratio:.3f} |", flush=True)


@dataclass(frozen=True)
class Bench:
    """One thing to measure. help: a few words. run: measures and prints."""

    help: str
    run: Callable[[argparse.Namespace], None]


BENCHES: dict[str, Bench] = {
    "train": Bench("what packing, the cache, the data pipeline and the loop gain or cost", _bench_train),
    "eval": Bench("expressions a second, against the plain way", _bench_eval),
}

COMMANDS: dict[str, Command] = {
    "chat": Command("ask about images, once or in a conversation", _chat_arguments, _chat, _CHAT),
    "info": Command(
        "sizes of a model and the memory it needs",
        _info_arguments,
        _info,
        "Sizes, parameters of each part, and memory to answer and to train: calculated, not measured.",
    ),
    "convert": Command("make a model folder of the published weights", _convert_arguments, _convert, _CONVERT),
    "show": Command(
        "look at the data as the model sees it",
        _show_arguments,
        _show,
        "Print conversations and their tokens, supervised ones marked, and draw the annotated boxes.",
    ),
    "data": Command("check data of your own", _data_arguments, _data, _DATA),
    "train": Command("train a stage, as a config says", _train_arguments, _train),
    "eval": Command("measure a model, as a config says", _eval_arguments, _eval, _EVAL),
    "bench": Command("measure how fast this machine is", _bench_arguments, _bench),
}
