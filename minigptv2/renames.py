"""Translates old names of keys and values to their current names, so that old recipes and model folders still open.

A class lists its renamed keys in RENAMED, old key -> current key; a dotted current key such as "optim.lr" is a key of a
nested mapping. It lists renamed values in RENAMED_VALUES, current key -> {old value: current value}. The first use of
an old name prints a note with the current name on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from minigptv2.errors import UserError

_printed: set[str] = set()  # the notes that this process has printed


def rename_old_keys(data: dict[str, Any], renamed: Mapping[str, str], where: str = "") -> dict[str, Any]:
    """The mapping with its old keys renamed to the current ones; prints a note for each.

    renamed: old key -> current key. A dotted current key ("optim.lr") is a key of a nested mapping. where: the file or
    key, for messages. Raises UserError where a key is given under both names.
    """
    if not any(key in renamed for key in data):
        return data
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items() if key not in renamed}
    for key, value in data.items():
        if key not in renamed:
            continue
        *parents, last = renamed[key].split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        if last in node:
            raise UserError(
                f"{path_of(where, key)} and {path_of(where, renamed[key])} are both given.",
                f"They are one key: {key} is the old name of {renamed[key]}.",
                f"Remove {key}.",
            )
        node[last] = value
        note_once(f"{where}{': ' if where else ''}{key} is now called {renamed[key]}.")
    return out


def present_value(value: Any, renamed: Mapping[Any, Any], where: str) -> Any:
    """The value, or its present name where it is an old one; that is noted once on standard error."""
    if not isinstance(value, str) or value not in renamed:
        return value
    note_once(f"{where}={value} is now written {renamed[value]}.")
    return renamed[value]


def note_once(line: str) -> None:
    """Print a note on standard error, once per process."""
    if line not in _printed:
        _printed.add(line)
        print(f"note: {line}", file=sys.stderr)


def path_of(where: str, key: str) -> str:
    """A key as messages name it: below the file or key `where`."""
    return f"{where}.{key}" if where else str(key)
