"""MiniGPT-v2: one vision-language model that captions, answers, refers, grounds, identifies and detects."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Answer", "Box", "MiniGPTv2", "UserError"]

if TYPE_CHECKING:
    from minigptv2.api import MiniGPTv2
    from minigptv2.boxes import Box
    from minigptv2.errors import UserError
    from minigptv2.sample import Answer

_HOMES = {"MiniGPTv2": "api", "Answer": "sample", "Box": "boxes", "UserError": "errors"}


def __getattr__(name: str):
    """Public names are imported when first used, so that `import minigptv2` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'minigptv2' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"minigptv2.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
