"""The one exception that a user's input can cause."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, told in three parts: what was given, what is allowed or was found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, given: str, allowed: str, advice: str):
        super().__init__(f"{given}\n  {allowed}\n  {advice}")
        self.given, self.allowed, self.advice = given, allowed, advice

    def __reduce__(self):
        return type(self), (self.given, self.allowed, self.advice)  # so that it passes from one process to another


def unknown(
    what: str, name: object, known: Iterable[str], advice: str, allowed: str = "", form: str = "{}"
) -> UserError:
    """The error for a name that is none of the known ones; it suggests the nearest one, where one is near.

    what: a sentence that says what is unknown. advice: what to do where no known name is near. allowed: a sentence with
    the known names, where "Known: ..." does not do. form: how the suggested name is written, "{}" being the name.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 1)
    return UserError(
        what, allowed or f"Known: {', '.join(known)}.", f"Did you mean {form.format(near[0])}?" if near else advice
    )
