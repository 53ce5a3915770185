"""`minigptv2 chat` on a terminal: many images and one instruction, or one image and a conversation.

Standard output holds answers and nothing else; progress, notes and errors go to standard error.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.errors import UserError, unknown
from minigptv2.files import is_dir, numbered, shortened
from minigptv2.tasks import TASKS, known_tags, question_of, split_tag

if TYPE_CHECKING:
    from PIL import Image

    from minigptv2.api import MiniGPTv2
    from minigptv2.sample import Answer

STDIN = "-"
_PATH_START = ("/", "./", "../", "~")
_LONGEST_WORD = 400  # characters of a word in a message; longer ones, such as an image in base64, are cut

# ---- how things look on a terminal ----


def escape_control_chars(text: str) -> str:
    """The text with control characters spelled out, so that no answer and no file name can steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_error(error: UserError) -> None:
    """Three lines on standard error."""
    parts = (re.sub(r"\s*\n\s*", " ", part) for part in (error.given, error.allowed, error.advice))
    _note("error: " + "\n  ".join(escape_control_chars(_cut(part)) for part in parts))


def _cut(text: str) -> str:
    long = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
    return long.sub(lambda word: f"{word[0][:80]}...{word[0][-20:]} ({len(word[0]):,} characters)", text)


def _note(text: str) -> None:
    """A line for the person. Where standard error takes nothing, there is nobody to tell, and the work goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def table(answer: Answer) -> str:
    """Phrase, box in pixels and score of every box, a line each; "" where there is no box."""
    if not answer.boxes:
        return ""
    rows = [("phrase", "x1", "y1", "x2", "y2", "score")]
    for box in answer.boxes:
        score = "" if box.score is None else f"{box.score:.2f}"
        rows.append(
            (escape_control_chars(box.phrase).replace("\n", " ") or "-", *(str(round(v)) for v in box.xyxy), score)
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows
    )


def _print_boxes(answer: Answer) -> None:
    if answer.boxes:
        print("\n" + table(answer))
    sys.stdout.flush()


def _print_doubts(answer: Answer) -> None:
    if answer.finish_reason == "length":
        _note("note: the answer was cut; --max-new-tokens allows a longer one.")
    for problem in answer.problems:
        _note(f"note: {escape_control_chars(problem)}.")


def _json_line(image: str, answer: Answer) -> str:
    return json.dumps({"picture": image, **answer.to_dict()})


def _write_image(image: Image.Image, file: Path, taken: Collection[Path] = ()) -> Path:
    from minigptv2.drawing import save_png

    saved = save_png(image, file, taken)
    _note(escape_control_chars(f"saved {saved}" + (f"; {file.name} was there and is kept" if saved != file else "")))
    return saved


def task_lines() -> Iterator[str]:
    """The task tags, each with what it asks for."""
    for task in TASKS.values():
        yield f"  {task.tag or '(none)':<15} {task.help}"


# ---- what was given ----


def images_and_instruction(words: Sequence[str], explicit: str | None) -> tuple[list[str], str | None]:
    """The images, and the instruction or None; `minigptv2 chat --help` has the rule."""
    if not words:
        raise _no_image("No image was given.")
    if explicit is not None:
        return list(words), explicit
    *others, last = words
    if last == STDIN or os.path.exists(last):
        return list(words), None
    if others:
        return (list(words), None) if _looks_like_path(last) else (others, last)
    if not _looks_like_path(last) and (last.startswith("[") or len(last.split()) > 1):
        raise _no_image(f"No image was given, only the words {last!r}.")
    return [last], None


def _no_image(given: str) -> UserError:
    return UserError(
        given,
        'An image is a file, a folder of images, or "-" for standard input.',
        'Try minigptv2 chat park.png "[refer] red balloon".',
    )


def _looks_like_path(word: str) -> bool:
    from minigptv2.images import SUFFIXES

    if word.lower().endswith(SUFFIXES) or word.startswith(_PATH_START) or word.endswith(os.sep):
        return True
    return re.fullmatch(r"\S+\.[A-Za-z][A-Za-z0-9]{1,4}", word) is not None


@dataclass(frozen=True)
class ImageSource:
    """One image to come. given: what `images.open_image` takes, or why there is none."""

    name: str
    given: str | bytes | UserError

    @property
    def stem(self) -> str:
        return "stdin" if self.name == STDIN else Path(self.name).stem


def find_sources(words: Sequence[str]) -> list[ImageSource]:
    """Files, the images of folders, and standard input, in the order given."""
    from minigptv2.images import counted, find_images

    if list(words).count(STDIN) > 1:
        raise UserError('"-" was given twice.', "Standard input holds one image.", 'Give "-" once.')
    out = []
    for word in words:
        if word == STDIN:
            out.append(ImageSource(word, sys.stdin.buffer.read()))
        elif os.path.isdir(word):
            others: Counter[str] = Counter()
            try:
                out += [ImageSource(str(file), str(file)) for file in find_images(word, others)]
            except UserError as error:
                out.append(ImageSource(word, error))
                continue
            if others:
                _note(escape_control_chars(f"note: {word}: {counted(others)} passed over."))
        else:
            out.append(ImageSource(word, word))
    return out


def save_paths(save: str, sources: Sequence[ImageSource], several: bool) -> list[Path]:
    """The file to write for each source, no two alike, also where a file system takes a and A for the same. Refuses
    what cannot be written and what would overwrite a given image, before any work is done."""
    out = Path(save)
    if several and not is_dir(out) and (os.path.lexists(out) or out.suffix.lower() == ".png"):
        raise UserError(f"--save {save} is one file.", "Several images are saved to a folder.", "Give a folder's name.")
    if not several and not is_dir(out) and out.suffix.lower() != ".png":
        raise UserError(
            f"--save {save} is no .png.", "The image is saved as PNG.", f"Try --save {out.with_suffix('.png')}."
        )
    targets = [out]
    if several or is_dir(out):
        taken, last, targets = set(), Counter(), []
        for source in sources:
            wanted = out / f"{shortened(source.stem)}.png"
            while True:
                last[_one_name(wanted)] += 1
                target = numbered(wanted, last[_one_name(wanted)])
                if _one_name(target) not in taken:
                    break
            taken.add(_one_name(target))
            targets.append(target)
    _refuse_closed(out)
    _refuse_overwriting(targets, [s.name for s in sources])
    return targets


def _one_name(file: Path) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", file.name).casefold()


def _refuse_closed(out: Path) -> None:
    """UserError where nothing can be written to this file or folder, as far as its path alone tells."""
    try:
        os.lstat(out)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} cannot be written.",
            f"The system says: {getattr(error, 'strerror', None) or error}.",
            "Choose another place.",
        ) from None
    there = out if is_dir(out) else out.absolute().parent
    while not os.path.lexists(there):
        there = there.parent
    if not is_dir(there):
        raise UserError(f"{out} cannot be written.", f"{there} is no folder.", "Choose another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{out} cannot be written.", f"This user has no permission to write to {there}.", "Choose another place."
        )


def _refuse_overwriting(targets: Sequence[Path], names: Sequence[str]) -> None:
    asked = {_identity(name) for name in names} - {None}
    for target in targets:
        if _identity(target) in asked:
            raise UserError(
                f"{target} is one of the images asked about.", "It would be overwritten.", "Choose another place."
            )


def _identity(file: str | Path) -> tuple[int, int] | None:
    """Device and number of the file that a path leads to; None where it leads to none."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


# ---- many images, one instruction ----


@dataclass
class BatchChat:
    """One instruction put to every image. load: opens the model, called when the first image is there."""

    load: Callable[[], MiniGPTv2]
    instruction: str
    max_new_tokens: int
    batch_size: int
    as_json: bool

    def ask(self, words: Sequence[str], save: str | None) -> int:
        """Answer what can be answered, tell what cannot; the exit code."""
        from tqdm import tqdm

        question_of(self.instruction)
        sources = find_sources(words)
        several = len(sources) > 1 or sources[0].name != words[0]  # a folder of one image is a folder
        targets = save_paths(save, sources, several) if save is not None else [None] * len(sources)
        jobs, model, answered, failed = list(zip(sources, targets)), None, 0, 0
        saved, unsaved = set(), 0
        with tqdm(total=len(jobs), unit="image", disable=not (several and sys.stderr.isatty())) as bar:
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                opened, errors = _open_each(batch)
                if opened and model is None:
                    model = self.load()
                answers = (
                    model.chat_batch([(i, self.instruction) for *_, i in opened], self.max_new_tokens) if opened else []
                )
                bar.clear()
                for error in errors:
                    print_error(error)
                for (source, target, _), answer in zip(opened, answers):
                    self._give(source.name, answer, several, answered > 0)
                    answered += 1
                    if target is not None:
                        try:
                            saved.add(_write_image(answer.draw(), target, saved))
                        except UserError as error:
                            print_error(error)
                            unsaved += 1
                failed += len(errors)
                bar.update(len(batch))
        if several:
            _note(f"{answered} answered, {failed} failed" + (f", {unsaved} not saved" if unsaved else ""))
        return 2 if not answered or (unsaved and not several) else 1 if failed or unsaved else 0

    def _give(self, name: str, answer: Answer, several: bool, gap: bool) -> None:
        if self.as_json:
            print(_json_line(name, answer), flush=True)
        else:
            if several:
                print(("\n" if gap else "") + escape_control_chars(name))
            print(escape_control_chars(answer.text))
            _print_boxes(answer)
            _print_doubts(answer)


def _open_each(batch) -> tuple[list[tuple[ImageSource, Path | None, Image.Image]], list[UserError]]:
    from minigptv2.images import open_image

    opened, errors = [], []
    for source, target in batch:
        try:
            if isinstance(source.given, UserError):
                raise source.given
            opened.append((source, target, open_image(source.given)))
        except UserError as error:
            errors.append(error)
    return opened, errors


# ---- one image, a conversation ----


def converse(
    load: Callable[[], MiniGPTv2], words: Sequence[str], max_new_tokens: int, as_json: bool, save: str | None
) -> int:
    """A conversation on standard input about one image, until /quit or its end."""
    from minigptv2.images import open_image

    if STDIN in words:
        raise UserError(
            '"-" was given without an instruction.',
            "Standard input cannot hold an image and a conversation.",
            'Give the instruction too, as in minigptv2 chat - "[caption]", or give a file.',
        )
    if save is not None:
        raise UserError(
            "--save was given without an instruction.",
            "It draws one answer.",
            "Give one, or use /save in the conversation.",
        )
    for word in words:
        if not os.path.exists(word):
            open_image(word)  # says what is wrong with the path
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
    """What a person types, line by line: questions go to the model, /commands are done here."""

    def __init__(self, model: MiniGPTv2, name: str, image: Any, max_new_tokens: int, as_json: bool = False):
        self.model, self.max_new_tokens, self.as_json = model, max_new_tokens, as_json
        self.name, self.chat = name, model.start_chat(image)
        self.task = ""
        self.answer: Answer | None = None
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/task": ("NAME", "begin lines that have no tag with [NAME]; none ends that", self._set_task),
            "/image": ("PATH", "another image, with a new history", self._set_image),
            "/reset": ("", "forget what was said", self._reset),
            "/save": ("OUT.png", "the image with the boxes of the last answer", self._save),
            "/help": ("", "this list", self._help),
            "/quit": ("", "the end; Ctrl-D too", lambda _: None),
        }

    def run(self) -> int:
        knows = self.model.config.description
        _note(
            escape_control_chars(
                (knows.rstrip() + " " if knows else "") + f"Ask about {self.name}; commands: {' '.join(self.commands)}"
            )
        )
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
            print(_json_line(self.name, self.answer), flush=True)
        else:
            print()
            _print_boxes(self.answer)
            _print_doubts(self.answer)

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
        _note(f"task: {TASKS[self.task].tag} {TASKS[self.task].help}" if self.task else "task: none")

    def _set_image(self, path: str) -> None:
        path = _one_path(path, "/image park.png")
        self.chat = self.model.start_chat(path)
        self.name, self.answer = path, None
        _note(escape_control_chars(f"image: {path}, {self.chat.image.width} x {self.chat.image.height}"))

    def _reset(self, _: str) -> None:
        self.chat.reset()
        self.answer = None
        _note("forgotten; the image stays")

    def _save(self, path: str) -> None:
        if self.answer is None:
            raise UserError("There is no answer to draw yet.", "/save draws the last answer.", "Ask first.")
        target = Path(_one_path(path, "/save out.png"))
        if target.suffix.lower() != ".png":
            raise UserError(
                f"{target} is no .png.", "The image is saved as PNG.", f"Try /save {target.stem or 'out'}.png."
            )
        _refuse_overwriting([target], [self.name])
        _write_image(self.answer.draw(), target)

    def _help(self, _: str) -> None:
        for name, (takes, what, _run) in self.commands.items():
            _note(f"  {name + ' ' + takes:<15} {what}")
        _note("tasks, as a tag before a line or with /task:")
        for line in task_lines():
            _note(line)


def _one_path(text: str, example: str) -> str:
    """The path a person typed, in quotes or not, ~ resolved."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = shlex.split(text)[0] if text.count(text[0]) == 2 else text
    if not text:
        raise UserError("No path was given.", "The command takes one path.", f"Try {example}.")
    return os.path.expanduser(text)


def _lines() -> Iterator[str]:
    """Lines that are not blank, from a person with a prompt, or from a pipe without one."""
    while True:
        if sys.stdin.isatty():
            try:
                line = _input("> ")
            except EOFError:
                _note("")
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
