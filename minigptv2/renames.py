"""Keys and values of older versions, under their present names, so that old recipes and model folders still open.

A class that has renamed keys says so in RENAMED, old key -> present key, where a dotted present key leads into a nested
mapping; and in RENAMED_VALUES, present key -> {old value: present value}. Each old name that is met is named once, on
standard error, beside the present one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from minigptv2.errors import UserError

_told: set[str] = set()  # the lines that this process has written


def rename_old_keys(data: dict[str, Any], renamed: Mapping[str, str], where: str = "") -> dict[str, Any]:
    """The mapping with the keys of older versions under their present names; each is named once, on standard error.

    renamed: old key -> present key. A dotted present key ("optim.lr") leads into a nested mapping. where: the file or
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
        tell(f"{path_of(where, key)} is now called {renamed[key]}.")
    return out


def present_value(value: Any, renamed: Mapping[Any, Any], where: str) -> Any:
    """The value, or its present name where it is an old one; that is noted once on standard error."""
    if not isinstance(value, str) or value not in renamed:
        return value
    tell(f"{where}={value} is now written {renamed[value]}.")
    return renamed[value]


def tell(line: str) -> None:
    """Print a note on standard error, once in this process."""
    if line not in _told:
        _told.add(line)
        print(f"note: {line}", file=sys.stderr)


def path_of(where: str, key: str) -> str:
    """A key as messages name it: below the file or key `where`."""
    return f"{where}.{key}" if where else str(key)
