"""`minigptv2 chat` with an instruction: the same question about one or many images."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.commands.printing import (
    escape_control_chars,
    json_line,
    print_boxes,
    print_error,
    print_note,
    print_problems,
    save_image,
)
from minigptv2.errors import UserError
from minigptv2.files import is_dir, numbered, shortened
from minigptv2.tasks import question_of

if TYPE_CHECKING:
    from PIL import Image

    from minigptv2.api import MiniGPTv2
    from minigptv2.sample import Answer

STDIN = "-"


@dataclass(frozen=True)
class ImageSource:
    """An image that is not opened yet. given: the input of `images.open_image`, or the error of its folder."""

    name: str
    given: str | bytes | UserError

    @property
    def stem(self) -> str:
        return "stdin" if self.name == STDIN else Path(self.name).stem


def find_sources(words: Sequence[str]) -> list[ImageSource]:
    """Files, the images of folders, and standard input, in the order given."""
    from minigptv2.images import counted, find_images

    if list(words).count(STDIN) > 1:
        raise UserError('"-" was given twice.', "Standard input is one image.", 'Give "-" once.')
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
                print_note(escape_control_chars(f"note: {word}: {counted(others)} skipped."))
        else:
            out.append(ImageSource(word, word))
    return out


def save_paths(save: str, sources: Sequence[ImageSource], several: bool) -> list[Path]:
    """The file to write for each source, under different names, even on a file system that ignores case.

    Raises UserError for a path that cannot be written or is one of the given images, before any work is done.
    """
    out = Path(save)
    if several and not is_dir(out) and (os.path.lexists(out) or out.suffix.lower() == ".png"):
        raise UserError(f"--save {save} is one file.", "Several images are saved to a folder.", "Give a folder's name.")
    if not several and not is_dir(out) and out.suffix.lower() != ".png":
        raise UserError(
            f"--save {save} is not a .png.", "The image is saved as PNG.", f"Try --save {out.with_suffix('.png')}."
        )
    targets = [out]
    if several or is_dir(out):
        used, last_number, targets = set(), Counter(), []
        for source in sources:
            first = out / f"{shortened(source.stem)}.png"
            while True:
                last_number[_folded_name(first)] += 1
                target = numbered(first, last_number[_folded_name(first)])
                if _folded_name(target) not in used:
                    break
            used.add(_folded_name(target))
            targets.append(target)
    _refuse_unwritable(out)
    refuse_overwriting(targets, [s.name for s in sources])
    return targets


def _folded_name(file: Path) -> str:
    """Equal for names that are the same file on some file system."""
    return unicodedata.normalize("NFC", file.name).casefold()


def _refuse_unwritable(out: Path) -> None:
    """Raise UserError if the path shows that nothing can be written to this file or folder."""
    try:
        os.lstat(out)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} cannot be written.",
            f"The system says: {getattr(error, 'strerror', None) or error}.",
            "Choose another path.",
        ) from None
    parent = out if is_dir(out) else out.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not is_dir(parent):
        raise UserError(f"{out} cannot be written.", f"{parent} is not a folder.", "Choose another path.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{out} cannot be written.", f"This user has no permission to write to {parent}.", "Choose another path."
        )


def refuse_overwriting(targets: Sequence[Path], names: Sequence[str]) -> None:
    given = {_identity(name) for name in names} - {None}
    for target in targets:
        if _identity(target) in given:
            raise UserError(
                f"{target} is one of the images asked about.", "It would be overwritten.", "Choose another path."
            )


def _identity(file: str | Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if it does not exist."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


@dataclass
class BatchChat:
    """The same instruction for every image. load: opens the model; called once, when the first image is open."""

    load: Callable[[], MiniGPTv2]
    instruction: str
    max_new_tokens: int
    batch_size: int
    as_json: bool

    def ask(self, words: Sequence[str], save: str | None) -> int:
        """Print an answer or an error for each image. Returns the exit code: 0, 1 some failed, 2 all failed."""
        from tqdm import tqdm

        question_of(self.instruction)
        sources = find_sources(words)
        several = len(sources) > 1 or sources[0].name != words[0]  # a folder with one image counts as several
        targets = save_paths(save, sources, several) if save is not None else [None] * len(sources)
        jobs, model, answered, failed = list(zip(sources, targets)), None, 0, 0
        saved, not_saved = set(), 0
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
                    self._print_answer(source.name, answer, several, answered > 0)
                    answered += 1
                    if target is not None:
                        try:
                            saved.add(save_image(answer.draw(), target, saved))
                        except UserError as error:
                            print_error(error)
                            not_saved += 1
                failed += len(errors)
                bar.update(len(batch))
        if several:
            print_note(f"{answered} answered, {failed} failed" + (f", {not_saved} not saved" if not_saved else ""))
        return 2 if not answered or (not_saved and not several) else 1 if failed or not_saved else 0

    def _print_answer(self, name: str, answer: Answer, several: bool, blank_line: bool) -> None:
        if self.as_json:
            print(json_line(name, answer), flush=True)
        else:
            if several:
                print(("\n" if blank_line else "") + escape_control_chars(name))
            print(escape_control_chars(answer.text))
            print_boxes(answer)
            print_problems(answer)


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
