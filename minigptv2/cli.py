"""The command line: `minigptv2 chat | info | convert | show | data | train | eval | bench`.

This file runs a command and prints its errors; each command is a module of `commands/`, and those of `train` and `eval`
stand below. Nothing heavy is imported before a command needs it. Exit codes: 0 success, 1 some images failed, 2 bad
input and nothing was done, 130 interrupted, 141 the reader of the output closed it, 143 SIGTERM stopped a training run.
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
from minigptv2.commands import bench, chat, check_data, convert, info, show
from minigptv2.commands.printing import print_error
from minigptv2.errors import UserError, unknown

_BAD_INPUT, _INTERRUPTED, _PIPE_CLOSED, _STOPPED = 2, 130, 141, 143
_ADVICE = {
    errno.ENOSPC: "Free some disk space, or choose another path.",
    errno.EACCES: "Get the permission (chmod).",
    errno.ENAMETOOLONG: "Give a path, not the content of a file.",
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
    """An argparse parser that raises UserError, with the nearest option if one was mistyped."""

    def __init__(self, command: str, description: str):
        super().__init__(
            f"minigptv2 {command}".strip(),
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        every = [o for action in self._actions for o in action.option_strings]
        shown = [o for action in self._actions if action.help != argparse.SUPPRESS for o in action.option_strings]
        wrong = next((w for w in message.split() if w.startswith("-") and w not in every), "")
        usage = " ".join(self.format_usage().split())
        given = message[0].upper() + message[1:] + "."
        raise unknown(given, wrong, shown, f"Run {self.prog} --help.", usage[0].upper() + usage[1:])


@dataclass(frozen=True)
class Command:
    """help: one line. add_arguments: adds its options to a parser. run: returns the exit code, None for 0."""

    help: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None]
    description: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Bad input gives three lines on standard error and no traceback."""
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
        print_error(_system_error(error))
        return _BAD_INPUT
    finally:
        sys.stdout = stdout or sys.stdout
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)


class Output:
    """Standard output. An error of writing to it is reported as such, not as an error of some file."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._try(self.stream.write, text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable, *given: str) -> int | None:
        try:
            return action(*given)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                "Standard output cannot be written.",
                f"The system says: {error.strerror or error}.",
                "Free some disk space, or redirect it to another file.",
            ) from None


def _prepare() -> None:
    """Before any heavy import: libraries stay offline and silent, and the standard streams work."""
    for name, value in _OFFLINE_AND_SILENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it if it is installed
    streams = ("stdin", "stdout", "stderr")
    closed = [name for name in streams if getattr(getattr(sys, name), "closed", getattr(sys, name) is None)]
    for name in closed:  # in the order of their file descriptors, so that each gets its own
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # any bytes in, any terminal out
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    if "stdout" in closed:
        raise UserError(
            "Standard output is closed.", "Answers and results are written there.", "Redirect it to a file: > out.txt."
        )


def _flush(stream: TextIO) -> None:
    """Flush. If that fails, redirect the stream to nowhere, so that Python's own flush at exit does not fail."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _system_error(error: OSError) -> UserError:
    """An error of the operating system that no other code has explained."""
    given = f"{error.filename} cannot be used." if error.filename else "A file cannot be read or written."
    says = f"The system says: {error.strerror or str(error) or type(error).__name__}."
    return UserError(given, says, _ADVICE.get(error.errno, "Check the paths that were given."))


def _run(argv: list[str]) -> int:
    if argv and argv[0].startswith("--local_rank=") and "LOCAL_RANK" in os.environ:
        argv = argv[1:]  # the deepspeed launcher gives it as an option and as a variable
    for word in argv:
        if "\0" in word:
            raise UserError(
                f"The argument {word!r} contains a NUL character.", "No path and no text has one.", "Remove it."
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
    parser.epilog = "minigptv2 COMMAND --help lists the options of a command."
    parser.add_argument("--version", action="version", version=f"minigptv2 {__version__}")
    parser.parse_args(argv)
    parser.print_help(sys.stderr)
    return 2


# ---- train and eval ----


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
  minigptv2 eval refcoco --predictions answers.jsonl    answers of any source, without a model

A missing image is an error at the start. A damaged image is not: its questions count as wrong, the table names it, and
the exit code is 1. With --allow-missing, both are left out and counted. A run that was stopped resumes with the same
command. --predictions also takes the files of the published evaluation, COCO results, and JSON lists that name
questions as their data set does.
"""


def _train_arguments(parser: Parser) -> None:
    _recipe_arguments(parser, "train")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the resolved recipe, with the documentation of every key, and train nothing",
    )


def _eval_arguments(parser: Parser) -> None:
    _recipe_arguments(parser, "eval")
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="full model folder that the model was fine-tuned from, if it holds only the trained weights",
    )
    parser.add_argument("--predictions", "--rescore", metavar="FILE", help="score these answers; no model is opened")
    parser.add_argument("--export-coco", metavar="FILE", help="write the boxes as COCO results (coco_detection)")
    parser.add_argument("--export-lmms", metavar="FILE", help="write the boxes with lmms-lab's columns (refcoco)")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out and count questions whose image is missing or cannot be opened",
    )


def _train(args: argparse.Namespace) -> int:
    if args.print_config:
        from minigptv2.config import documented_yaml
        from minigptv2.train.recipe import read_recipe

        print(documented_yaml(read_recipe(args.config, args.overrides, args.smoke)))
        return 0
    from minigptv2.train.loop import run

    result = run(args.config, args.overrides, args.smoke)
    if result is None:
        return _STOPPED
    if os.environ.get("RANK", "0") == "0":
        print(f"done: {result}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from minigptv2.eval.runner import run

    keys = ("base", "predictions", "export_coco", "export_lmms", "allow_missing")  # of runner.EvalConfig
    options = {key: value for key in keys if (value := getattr(args, key))}
    reports = run(args.config, args.overrides, args.smoke, **options)
    return 1 if any(report.failed for report in reports) else 0


COMMANDS: dict[str, Command] = {
    "chat": Command("ask about images, once or in a conversation", chat.add_arguments, chat.run, chat.DESCRIPTION),
    "info": Command(
        "sizes of a model and the memory it needs",
        info.add_arguments,
        info.run,
        "Sizes, parameters of each part, and memory for inference and training: calculated, not measured.",
    ),
    "convert": Command(
        "convert the published weights to a model folder", convert.add_arguments, convert.run, convert.DESCRIPTION
    ),
    "show": Command(
        "look at the data as the model sees it",
        show.add_arguments,
        show.run,
        "Print conversations and their tokens, supervised ones marked, and draw the annotated boxes.",
    ),
    "data": Command("check your own data", check_data.add_arguments, check_data.run, check_data.DESCRIPTION),
    "train": Command("train a model with a recipe", _train_arguments, _train),
    "eval": Command("evaluate a model with a recipe", _eval_arguments, _eval, _EVAL),
    "bench": Command("measure how fast this machine is", bench.add_arguments, bench.run),
}
