"""The predictions file, JSON Lines: answers are appended as they come; a stopped run resumes; any source is scored.

    {"run": {"benchmark": "refcoco testA", "data": "5f..", "questions": "0a..", "model": "c3..", ...}}
    {"index": 0, "text": "{<12><30><55><80>}", "ended": "stop", "scores": [0.81]}

The first line of our own files says which model was asked which questions, so that two runs are never mixed. A file of
another source needs no such line, and only `index` and `text` in each row; its rows may also be one JSON list. The
formats of other programs: `formats`.
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
_LARGE = 1 << 26  # bytes; the fingerprint of a larger file is of samples
_SAMPLES, _SAMPLE = 64, 1 << 18
_ROW_FORM = 'A row is {"index": row of the annotation file from 0, "text": "the raw answer"}, one a line.'
# keys of the first line that must be equal before a run resumes -> what differs if they are not
SAME_RUN = {
    "benchmark": "benchmark",
    "data": "annotation file",
    "questions": "prompts or split",
    "model": "model",
    "answering": "dtype, quantisation or maximum length of an answer",
}
SAME_DATA = ("benchmark", "data")  # the keys that must be equal before answers are scored


def fingerprint(files: Sequence[Path]) -> str:
    """16 hexadecimal digits that identify these files: a hash of their bytes; for large files of size and samples."""
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
    """The fingerprint of all files of a model folder that determine its answers."""
    patterns = ("*.json", "*.safetensors", "*.model")
    return fingerprint(sorted({f for pattern in patterns for f in folder.rglob(pattern) if f.is_file()}))


def run_header(benchmark: Benchmark, items: Sequence[Question]) -> dict[str, str]:
    """What the first line says about the questions. items: all of the benchmark, also if the run has a limit."""
    digest = hashlib.sha256()
    for i in items:
        digest.update(json.dumps([i.index, i.instruction, i.candidates]).encode())
    return {
        "benchmark": benchmark.name,
        "data": fingerprint(benchmark.files),
        "questions": digest.hexdigest()[:16],
    }


class PredictionsFile:
    """The answers of one run, appended line by line by one process or several. head: the content of the first line."""

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path, self.head = path, head

    def prepare(self) -> None:
        """Create the file, or repair it so that the run can resume: a last line that was cut off is dropped.

        One process calls this before any process reads or appends. Raises UserError if the file is of another run.
        """
        if not self.path.exists() or not self.path.stat().st_size:
            self._replace([json.dumps({"run": self.head})])
            return
        with writing_to(self.path):
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        *lines, rest = text.split("\n")
        if not lines:  # stopped within its first line
            self._replace([json.dumps({"run": self.head})])
            return
        head = _object(lines[0]).get("run")
        if not isinstance(head, dict):
            raise UserError(
                f"{self.path} holds no answers of this program.",
                "Its first line does not name a run.",
                "Give another output=, or score the file as it is with --predictions.",
            )
        differing = [what for key, what in SAME_RUN.items() if head.get(key) != self.head.get(key)]
        if differing:
            raise UserError(
                f"{self.path} holds answers of another run; these differ: {', '.join(differing)}.",
                f"It was written for {head.get('benchmark')!r}, model {head.get('title')!r}; two runs are never mixed.",
                "Give another output=, or delete that file.",
            )
        good = [line for line in lines[1:] if _row(line) is not None]
        if rest or len(good) < len(lines) - 1:
            self._replace([lines[0], *good])

    def read(self) -> dict[int, Prediction]:
        """The answers so far, by index; the first one of an index that occurs twice."""
        out: dict[int, Prediction] = {}
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                row = _row(line)
                if row is not None:
                    out.setdefault(row.index, row)
        return out

    @contextmanager
    def appending(self):
        """Gives a function that appends answers. Lines of several processes never mix.

        The function raises UserError if the disk is full. Earlier answers stay, so that the run can resume.
        """
        with writing_to(self.path):
            file = self.path.open("ab", buffering=0)
        with file:

            def append(predictions: Iterable[Prediction]) -> None:
                lines = "".join(json.dumps(_json(p)) + "\n" for p in predictions).encode()
                advice = "Make room, and give the same command again: it resumes after the answers that are there."
                with writing_to(self.path, advice), _locked(file):
                    while lines:
                        lines = lines[file.write(lines) :]

            yield append

    def _replace(self, lines: list[str]) -> None:
        with writing_to(self.path), atomic_write(self.path) as new:
            new.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def writing_to(path: Path, advice: str = "Give another output=, a folder that you may write to.") -> Iterator[None]:
    """Turns an error of the system in the block, which writes to this path, into a UserError with this advice."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be written.", f"The system says: {getattr(error, 'strerror', None) or error}.", advice
        ) from error


def read_text(path: Path) -> str:
    """A file of answers as text. Raises UserError if it cannot be read, is not UTF-8, or is empty."""
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
    """The answers of a file to score; counts of what was skipped, by type; and the run of the file's first line.

    known: the rows that are asked. excluded: rows of the annotation file that the benchmark left out; answers to them
    are skipped and counted, as is a last line that was cut off. head: of the benchmark, see `run_header`. Raises
    UserError for a row that is not an answer, an index that is unknown or occurs twice, and a file whose first line
    names another benchmark or annotation file.
    """
    excluded, out, skipped = set(excluded), {}, {}
    lines = _lines(path)
    unknown: list[tuple[int, int]] = []
    line_of: dict[int, int] = {}
    file_head: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number == 1 and isinstance(run := _object(line).get("run"), dict):
            file_head = run
            _check_same_data(path, run, head)
            continue
        row = _row(line)
        if row is None:
            if number == len(lines) and (file_head or line_of) and not _is_json(line):  # cut off
                skipped["half-written last line"] = 1
                continue
            if isinstance(_object(line).get("run"), dict):
                raise UserError(
                    f"{path} line {number} begins another run.",
                    "A file holds the answers of one run.",
                    "Give each run its own file.",
                )
            raise UserError(
                f"{path} line {number} is not an answer: {line[:60]!r}.", _ROW_FORM, "Correct or remove that line."
            )
        if row.index in line_of:
            raise UserError(
                f"{path} line {number} answers row {row.index}, as line {line_of[row.index]} does.",
                "Each row of the annotation file has one answer.",
                "Remove one of the two.",
            )
        line_of[row.index] = number
        if row.index in known:
            out[row.index] = row
        elif row.index in excluded:
            skipped["answers to rows left out"] = skipped.get("answers to rows left out", 0) + 1
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
    return out, skipped, file_head


def _lines(path: Path) -> list[str]:
    """The rows of a file, one line each; also of a file that is one JSON list."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return text.split("\n")
    try:
        return [json.dumps(row) for row in json.loads(text)] + [""]
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a complete JSON list: {error}.", _ROW_FORM, "Correct it, or write it anew."
        ) from None


def _check_same_data(path: Path, run: dict[str, Any], head: dict[str, Any]) -> None:
    differing = [SAME_RUN[key] for key in SAME_DATA if run.get(key) != head[key]]
    if differing:
        raise UserError(
            f"{path} holds answers to other questions; these differ: {', '.join(differing)}.",
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
    """The answer on this line; None if there is none."""
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
    """Keeps other processes of the run from appending, on systems with such locks. `files.file_lock` is not used here:
    the run itself holds it, and it waits in steps of a second."""
    if os.name == "nt":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
