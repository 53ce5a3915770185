"""MiniGPT-v2: one vision-language model that captions, answers, refers, grounds, identifies and detects."""

from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = ["Answer", "Box", "Chat", "EncodedImage", "MiniGPTv2", "Stream", "TokenLogprob", "UserError"]

if TYPE_CHECKING:  # type checkers and editors see plain imports
    from minigptv2.api import Chat, EncodedImage, MiniGPTv2, Stream
    from minigptv2.boxes import Box
    from minigptv2.errors import UserError
    from minigptv2.sample import Answer, TokenLogprob
else:
    _MODULES = {
        "Answer": "sample",
        "Box": "boxes",
        "Chat": "api",
        "EncodedImage": "api",
        "MiniGPTv2": "api",
        "Stream": "api",
        "TokenLogprob": "sample",
        "UserError": "errors",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used, so that `import minigptv2` is fast."""
        if name not in _MODULES:
            raise AttributeError(f"module 'minigptv2' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"minigptv2.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
