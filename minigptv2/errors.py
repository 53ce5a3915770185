"""The exception for bad input, and functions that build it."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. Its message has three parts: what was given, what is allowed or was found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, given: str, allowed: str, advice: str):
        super().__init__(f"{given}\n  {allowed}\n  {advice}")
        self.given, self.allowed, self.advice = given, allowed, advice

    def __reduce__(self):
        return type(self), (self.given, self.allowed, self.advice)  # pickled between processes


def unknown(
    what: str, name: object, known: Iterable[str], advice: str, allowed: str = "", form: str = "{}"
) -> UserError:
    """The error for a name that is not among the known ones. It suggests the most similar known name.

    what: a sentence that says what is unknown. advice: what to do if no known name is similar. allowed: a sentence with
    the known names, by default "Known: a, b, c.". form: how the suggestion is written; "{}" stands for the name.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 1)
    return UserError(
        what, allowed or f"Known: {', '.join(known)}.", f"Did you mean {form.format(near[0])}?" if near else advice
    )


def system_error(given: str, error: BaseException, advice: str) -> UserError:
    """The error for a file operation that failed. given: a sentence that says which. error: what it raised."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(given, f"The system says: {reason}.", advice)


@contextmanager
def as_user_error(given: str, advice: str) -> Iterator[None]:
    """Turns an OSError or ValueError of the block into a `system_error`.

    ValueError: a path with a NUL character, or text that is not in UTF-8.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise system_error(given, error, advice) from error
