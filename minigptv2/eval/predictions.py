"""The file of answers, JSON Lines: written as they come, continued after a kill, scored again from any source.

    {"run": {"benchmark": "refcoco testA", "data": "5f..", "questions": "0a..", "model": "c3..", ...}}
    {"index": 0, "text": "{<12><30><55><80>}", "ended": "stop", "scores": [0.81]}

Our own files begin with what was asked of whom, so that two runs are never mixed. A file of another source needs no
first line, and of each row only `index` and `text`; its rows may also be one JSON list. `exchange` reads the forms of
other programs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Benchmark, Prediction, Question
from minigptv2.files import atomic_write, refuse_device

_ENDINGS = ("stop", "length")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LARGE = 1 << 26  # bytes of a file over which its fingerprint is taken of samples
_SAMPLES, _SAMPLE = 64, 1 << 18
_FORM = 'A row is {"index": row of the annotation file from 0, "text": "the raw answer"}, one a line.'
# keys of the first line that must agree before answers are continued, and what differs where they do not
SAME_RUN = {
    "benchmark": "benchmark",
    "data": "annotation file",
    "questions": "prompts or split",
    "model": "model",
    "answering": "number format or longest answer",
}
SAME_DATA = ("benchmark", "data")  # that must agree before answers are scored again


def fingerprint(files: Sequence[Path]) -> str:
    """16 hexadecimal digits that say which files these are: of their bytes; of large ones, of size and samples."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _LARGE:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek(sample * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def model_fingerprint(folder: Path) -> str:
    """Of all files of a model's folder that decide its answers."""
    kinds = ("*.json", "*.safetensors", "*.model")
    return fingerprint(sorted({f for kind in kinds for f in folder.rglob(kind) if f.is_file()}))


def run_header(benchmark: Benchmark, items: Sequence[Question]) -> dict[str, str]:
    """What the first line says of the questions. items: all of them, whatever the limit of the run."""
    asked = hashlib.sha256()
    for i in items:
        asked.update(json.dumps([i.index, i.instruction, i.candidates]).encode())
    return {
        "benchmark": benchmark.name,
        "data": fingerprint(benchmark.files),
        "questions": asked.hexdigest()[:16],
    }


class PredictionsFile:
    """Answers of one run, appended one line at a time by one process or several. head: the first line's content."""

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path, self.head = path, head

    def prepare(self) -> None:
        """Make the file, or make it fit to be continued: a last line that was cut by a kill is dropped.

        To be called by one process before any reads or appends. Raises UserError where the file is of another run.
        """
        if not self.path.exists() or not self.path.stat().st_size:
            self._replace([json.dumps({"run": self.head})])
            return
        with writing_to(self.path):
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        *whole, rest = text.split("\n")
        if not whole:  # killed within its first line
            self._replace([json.dumps({"run": self.head})])
            return
        head = _object(whole[0]).get("run")
        if not isinstance(head, dict):
            raise UserError(
                f"{self.path} holds no answers of this program.",
                "Its first line does not name a run.",
                "Give another output=, or score the file as it is with --predictions.",
            )
        differing = [what for key, what in SAME_RUN.items() if head.get(key) != self.head.get(key)]
        if differing:
            raise UserError(
                f"{self.path} holds answers of another run; what differs: {', '.join(differing)}.",
                f"It was begun for {head.get('benchmark')!r}, model {head.get('title')!r}; two runs are never mixed.",
                "Give another output=, or delete that file.",
            )
        good = [line for line in whole[1:] if _row(line) is not None]
        if rest or len(good) < len(whole) - 1:
            self._replace([whole[0], *good])

    def read(self) -> dict[int, Prediction]:
        """The answers so far, by index; of an index that stands there twice (two runs at once) the first."""
        out: dict[int, Prediction] = {}
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                row = _row(line)
                if row is not None:
                    out.setdefault(row.index, row)
        return out

    @contextmanager
    def appending(self):
        """A function that appends answers. Each line is written whole, also beside other processes.

        Where the disk is full, it raises UserError; what was answered before stays, for a run to go on with.
        """
        with writing_to(self.path):
            file = self.path.open("ab", buffering=0)
        with file:

            def append(predictions: Iterable[Prediction]) -> None:
                lines = "".join(json.dumps(_json(p)) + "\n" for p in predictions).encode()
                advice = "Make room, and give the same command again: it goes on after the answers that are there."
                with writing_to(self.path, advice), _locked(file):
                    while lines:
                        lines = lines[file.write(lines) :]

            yield append

    def _replace(self, lines: list[str]) -> None:
        with writing_to(self.path), atomic_write(self.path) as new:
            new.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def writing_to(path: Path, advice: str = "Give another output=, a folder that you may write to.") -> Iterator[None]:
    """What the system says against writing at this path, as a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be written.", f"The system says: {getattr(error, 'strerror', None) or error}.", advice
        ) from error


def read_text(path: Path) -> str:
    """A file of answers as text. Raises UserError where it cannot be read, is not UTF-8, or holds nothing."""
    advice = "Give a file of answers in UTF-8."
    refuse_device(path)
    try:
        data = path.read_bytes()
        if data.startswith(_UTF_16):
            raise UserError(f"{path} cannot be read.", "It is text in UTF-16.", "Save it as UTF-8.")
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read.", f"The system says: {getattr(error, 'strerror', None) or error}.", advice
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty.", "It holds no answer.", advice)
    return text


def load_external_predictions(
    path: Path, known: set[int], excluded: Iterable[int], head: dict[str, Any]
) -> tuple[dict[int, Prediction], dict[str, int], dict[str, Any]]:
    """The answers of a file to score again; what was set aside, counted by kind; and the file's own first line.

    known: the rows that are asked. excluded: rows of the annotation file that the benchmark left out: answers to them
    are counted. A last line that was cut while a run wrote it is counted, too. Raises UserError for a row that is none,
    an index that is unknown or stands there twice, and a file whose first line names another benchmark or annotation
    file.
    """
    excluded, out, aside = set(excluded), {}, {}
    lines = _lines(path)
    unknown: list[tuple[int, int]] = []
    first: dict[int, int] = {}
    told: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number == 1 and isinstance(run := _object(line).get("run"), dict):
            told = run
            _check_same_data(path, run, head)
            continue
        row = _row(line)
        if row is None:
            if number == len(lines) and (told or first) and not _is_json(line):  # cut while it was written
                aside["half-written last line"] = 1
                continue
            if isinstance(_object(line).get("run"), dict):
                raise UserError(
                    f"{path} line {number} begins another run.",
                    "A file holds the answers of one run.",
                    "Give each run its own file.",
                )
            raise UserError(f"{path} line {number} is no answer: {line[:60]!r}.", _FORM, "Correct or remove that line.")
        if row.index in first:
            raise UserError(
                f"{path} line {number} answers row {row.index}, as line {first[row.index]} does.",
                "Each row of the annotation file has one answer.",
                "Remove one of the two.",
            )
        first[row.index] = number
        if row.index in known:
            out[row.index] = row
        elif row.index in excluded:
            aside["answers to rows left out"] = aside.get("answers to rows left out", 0) + 1
        else:
            unknown.append((number, row.index))
    if unknown:
        number, index = unknown[0]
        more = f", and {len(unknown) - 1} further ones" if len(unknown) > 1 else ""
        raise UserError(
            f"{path} line {number} answers row {index}{more}, which {head['benchmark']} does not ask.",
            f"It asks {len(known)} rows, from {min(known, default=0)} to {max(known, default=0)}.",
            "Count rows of the annotation file from 0, and name the data set and split that were answered.",
        )
    return out, aside, told


def _lines(path: Path) -> list[str]:
    """The rows of a file, a line each; those of one JSON list, too."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return text.split("\n")
    try:
        return [json.dumps(row) for row in json.loads(text)] + [""]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no whole JSON list: {error}.", _FORM, "Correct it, or write it anew.") from None


def _check_same_data(path: Path, run: dict[str, Any], head: dict[str, Any]) -> None:
    differing = [SAME_RUN[key] for key in SAME_DATA if run.get(key) != head[key]]
    if differing:
        raise UserError(
            f"{path} holds answers to other questions; what differs: {', '.join(differing)}.",
            f"It is of {run.get('benchmark')!r}, {run.get('data')}; this is {head['benchmark']!r}, {head['data']}.",
            "Name the data set and split that were answered, and their annotation file as it was.",
        )


def _object(line: str) -> dict:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _row(line: str) -> Prediction | None:
    """The answer on this line, None where it is none."""
    row = _object(line)
    index, text, ended = row.get("index"), row.get("text"), row.get("ended", "stop")
    numbers = [row.get(name, ()) for name in ("scores", "logprobs")]
    good = isinstance(index, int) and not isinstance(index, bool) and isinstance(text, str) and ended in _ENDINGS
    for values in numbers:
        good &= isinstance(values, (list, tuple)) and all(isinstance(v, (int, float)) for v in values)
    return Prediction(index, text, ended, *(tuple(map(float, v)) for v in numbers)) if good else None


def _json(prediction: Prediction) -> dict:
    row: dict[str, Any] = {"index": prediction.index, "text": prediction.text, "ended": prediction.finish_reason}
    if prediction.scores:
        row["scores"] = list(prediction.scores)
    if prediction.logprobs:
        row["logprobs"] = [round(v, 6) for v in prediction.logprobs]
    return row


@contextmanager
def _locked(file):
    """Nobody else appends meanwhile, where the system has such locks."""
    if os.name == "nt":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
