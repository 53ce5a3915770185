"""`minigptv2 chat` without an instruction: a conversation about one image, read from standard input."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.commands.batch_chat import STDIN, refuse_overwriting
from minigptv2.commands.printing import (
    escape_control_chars,
    json_line,
    print_boxes,
    print_error,
    print_note,
    print_problems,
    save_image,
    task_lines,
)
from minigptv2.errors import UserError, unknown
from minigptv2.tasks import TASKS, known_tags, split_tag

if TYPE_CHECKING:
    from minigptv2.api import MiniGPTv2
    from minigptv2.sample import Answer


def converse(
    load: Callable[[], MiniGPTv2], words: Sequence[str], max_new_tokens: int, as_json: bool, save: str | None
) -> int:
    """A conversation about one image, until /quit or the end of standard input. Returns the exit code."""
    from minigptv2.images import open_image

    if STDIN in words:
        raise UserError(
            '"-" was given without an instruction.',
            "Standard input cannot be both the image and the conversation.",
            'Give the instruction too, as in minigptv2 chat - "[caption]", or give a file.',
        )
    if save is not None:
        raise UserError(
            "--save was given without an instruction.",
            "It draws one answer.",
            "Give an instruction, or use /save in the conversation.",
        )
    for word in words:
        if not os.path.exists(word):
            open_image(word)  # raises the error about the path
    if len(words) > 1:
        raise UserError(
            f"{len(words)} images were given without an instruction.",
            "A conversation is about one image.",
            'Give an instruction with -i, as in -i "[caption]".',
        )
    if os.path.isdir(words[0]):
        raise UserError(
            f"{words[0]} is a folder, and no instruction was given.",
            "A conversation is about one image.",
            'Give an instruction with -i, as in -i "[caption]".',
        )
    image = open_image(words[0])
    return InteractiveChat(load(), words[0], image, max_new_tokens, as_json).run()


class InteractiveChat:
    """Reads lines: a line is a question to the model, or a command that begins with a slash."""

    def __init__(self, model: MiniGPTv2, name: str, image: Any, max_new_tokens: int, as_json: bool = False):
        self.model, self.max_new_tokens, self.as_json = model, max_new_tokens, as_json
        self.name, self.chat = name, model.start_chat(image)
        self.task = ""
        self.answer: Answer | None = None
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/task": ("NAME", "put [NAME] before lines without a tag; /task none ends it", self._set_task),
            "/image": ("PATH", "another image, with an empty history", self._set_image),
            "/reset": ("", "forget the conversation so far", self._reset),
            "/save": ("OUT.png", "save the image with the boxes of the last answer", self._save),
            "/help": ("", "this list", self._help),
            "/quit": ("", "leave; so does Ctrl-D", lambda _: None),
        }

    def run(self) -> int:
        description = self.model.config.description.rstrip()
        hint = f"Ask about {self.name}; commands: {' '.join(self.commands)}"
        print_note(escape_control_chars(f"{description} {hint}" if description else hint))
        for line in _lines():
            try:
                if line.split()[0] == "/quit":
                    break
                if line.startswith("/"):
                    self._command(line)
                else:
                    self._ask(line)
            except UserError as error:
                print_error(error)
        return 0

    def _ask(self, line: str) -> None:
        if self.task and split_tag(line)[0] == "chat":
            line = f"{TASKS[self.task].tag} {line}"
        stream = self.chat.stream(line, self.max_new_tokens)
        for text in stream:
            if not self.as_json:
                print(escape_control_chars(text), end="", flush=True)
        self.answer = stream.answer
        if self.as_json:
            print(json_line(self.name, self.answer), flush=True)
        else:
            print()
            print_boxes(self.answer)
            print_problems(self.answer)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise unknown(
                f"The command {name} is unknown.",
                name,
                self.commands,
                "A question does not begin with a slash.",
                f"Known commands: {' '.join(self.commands)}.",
            )
        self.commands[name][2](rest.strip())

    def _set_task(self, name: str) -> None:
        name = name.strip("[] ").lower()
        tagged = [k for k, t in TASKS.items() if t.tag]
        if name and name != "none" and name not in tagged:
            raise unknown(
                f"The task {name!r} is unknown.",
                name,
                tagged,
                "Try /task refer.",
                f"Known tasks: {known_tags()}, or none.",
                "/task {}",
            )
        if name:
            self.task = "" if name == "none" else name
        print_note(f"task: {TASKS[self.task].tag} {TASKS[self.task].help}" if self.task else "task: none")

    def _set_image(self, path: str) -> None:
        path = _parse_path(path, "/image park.png")
        self.chat = self.model.start_chat(path)
        self.name, self.answer = path, None
        print_note(escape_control_chars(f"image: {path}, {self.chat.image.width} x {self.chat.image.height}"))

    def _reset(self, _: str) -> None:
        self.chat.reset()
        self.answer = None
        print_note("history cleared; the image stays")

    def _save(self, path: str) -> None:
        if self.answer is None:
            raise UserError("There is no answer to draw yet.", "/save draws the last answer.", "Ask first.")
        target = Path(_parse_path(path, "/save out.png"))
        if target.suffix.lower() != ".png":
            raise UserError(
                f"{target} is not a .png.", "The image is saved as PNG.", f"Try /save {target.stem or 'out'}.png."
            )
        refuse_overwriting([target], [self.name])
        save_image(self.answer.draw(), target)

    def _help(self, _: str) -> None:
        for name, (argument, help_line, _run) in self.commands.items():
            print_note(f"  {name + ' ' + argument:<15} {help_line}")
        print_note("tasks, as a tag at the start of a line or with /task:")
        for line in task_lines():
            print_note(line)


def _parse_path(text: str, example: str) -> str:
    """The path after a command, with or without quotes; ~ is expanded."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = shlex.split(text)[0] if text.count(text[0]) == 2 else text
    if not text:
        raise UserError("No path was given.", "The command takes one path.", f"Try {example}.")
    return os.path.expanduser(text)


def _lines() -> Iterator[str]:
    """Lines that are not blank. On a terminal a prompt is shown."""
    while True:
        if sys.stdin.isatty():
            try:
                line = _input("> ")
            except EOFError:
                print_note("")
                return
        else:
            line = sys.stdin.readline()
            if not line:
                return
        if line.strip():
            yield line.strip()


def _input(prompt: str) -> str:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history
    return input(prompt)
