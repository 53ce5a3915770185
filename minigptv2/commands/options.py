"""Options that several commands share, and the old names of options that were renamed."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from minigptv2.renames import note_once

MODEL_HELP = "a saved model (default: the bundled small one)"
BASE_HELP = "full model folder that --model was fine-tuned from, if --model holds only the trained weights"


def whole_number(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number of `minimum` or more."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+").isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more")
        return int(text)

    return parse


def accept_old_name(parser: argparse.ArgumentParser, old: str, action: argparse.Action) -> None:
    """Accept `old`, hidden from --help, as another name of the option of `action`; a note names the new one.

    action: what `parser.add_argument` returned for the present name.
    """
    parser.add_argument(old, dest=action.dest, action=_OldName, present=action)


class _OldName(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, present: argparse.Action):
        super().__init__(
            option_strings,
            dest,
            nargs=present.nargs,
            default=argparse.SUPPRESS,
            type=present.type,
            choices=present.choices,
            help=argparse.SUPPRESS,
        )
        self._present = present

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        name = self._present.option_strings[0]
        note_once(f"{option_string} is now called {name}.")
        self._present(parser, namespace, values, name)
