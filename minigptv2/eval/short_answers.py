"""What benchmarks of short answers share: cleaning, counting, and the account of rows that were left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from minigptv2.data.annotations import Malformed, NotThere, Row, find_image
from minigptv2.data.dataset import Problems
from minigptv2.data.layout import Layout, Place, find
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import Case, Item, Prediction, Published, Rules, Scored
from minigptv2.files import is_dir, is_file


class ShortAnswers(ABC):
    """A benchmark whose answers are judged one by one; a subclass fills `rows` and says how to `judge`."""

    max_new_tokens = 20

    def __init__(self, name: str, files: Iterable[Path]):
        self.name, self.files = name, tuple(files)
        self.problems, self.excluded = Problems(), {}
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self.rows: list[Item] = []

    def leave_out(self, number: int, kind: object, where: str) -> None:
        """Count a row that cannot be asked. number: from 0."""
        self.problems.add(str(kind), where)
        self.excluded[number] = str(kind)

    def usable(
        self, rows: Iterable[Row], images: Callable[[Row], Path], where: Callable[[Row], str] | None = None
    ) -> Iterator[tuple[Row, Path]]:
        """The rows that can be asked, each with its image's path; the others are counted. images: may raise Malformed.
        where: the place of a row in words, else its number in the first file."""
        for row in rows:
            try:
                if row.problem:
                    raise Malformed(row.problem)
                path = images(row)
            except Malformed as error:
                place = where(row) if where else f"{self.files[0].name} row {row.number}"
                self.leave_out(row.number, error, place)
                continue
            yield row, path

    def items(self) -> list[Item]:
        return list(self.rows)

    @abstractmethod
    def judge(self, item: Item, answer: str, rules: Rules) -> dict[str, float] | None:
        """The outcome of a cleaned answer by metric, the main one first; None where it is malformed."""

    def wanted(self, item: Item) -> str:
        """The right answer in words, for a person."""
        return str(item.truth)

    def wrong(self, item: Item) -> dict[str, float]:
        """The outcomes of no answer."""
        return {"accuracy": 0.0}

    def score(self, items: Sequence[Item], predictions: Mapping[int, Prediction], rules: Rules) -> Scored:
        scored, invalid = Scored(len(items)), set()
        for item in items:
            prediction = predictions[item.index]
            answer = cleaned(prediction.text)
            outcome = None if prediction.ended == "missing" or not answer else self.judge(item, answer, rules)
            if outcome is None:
                outcome = self.wrong(item)
                if prediction.ended != "missing":
                    invalid.add(item.index)
            for metric, value in outcome.items():
                scored.outcomes.setdefault(metric, {})[item.index] = value
            first = next(iter(outcome.values()), None)
            scored.cases.append(
                Case(item.index, item.image, item.words or item.instruction, prediction.text, self.wanted(item),
                     right=first)
            )  # fmt: skip
        scored.invalid = frozenset(invalid)
        return scored


def cleaned(text: str) -> str:
    """Without the unknown-token mark, which the published evaluation takes out too, and without outer space."""
    return text.replace("<unk>", "").strip()


def annotation_files(root: str, layout: Layout, split: str, page: str, given: Sequence[str] = ()) -> list[Path]:
    """The annotation files of a split below root, without its folders of pictures; or those that are given by name.

    Raises UserError that names what is not there.
    """
    if any(given):
        paths = [Path(root, name) for name in given if name]
        for path in paths:
            if not is_file(path):
                raise UserError(f"{path} does not exist.", "It was named as an annotation file.", "Check its name.")
        return paths
    if split not in layout:
        raise UserError(f"The split is {split!r}.", f"Known: {', '.join(layout)}.", "Choose one of them.")
    places = [place for place in layout[split] if not _is_folder(place)]
    lost = [place for place in places if find(root, place) is None]
    if lost:
        names = ", ".join(place if isinstance(place, str) else " or ".join(place) for place in lost)
        raise UserError(f"{root} has no {names}.", f"The split {split!r} needs it.", f"Get it from {page}.")
    return [path for place in places if (path := find(root, place)) is not None]


def picture_folder(root: str, images: str, *names: str) -> Path:
    """The folder of pictures: `images` where it is given, else the first of these names below root, else root."""
    if images:
        return Path(images)
    return next((Path(root, n) for n in names if is_dir(Path(root, n))), Path(root))


def image_path(folder: Path, name: str) -> Path:
    """Where the image of this name lies below the folder, or is expected. Raises Malformed for what can be no path."""
    try:
        return find_image(folder, name)
    except NotThere:
        return folder / name


def _is_folder(place: Place) -> bool:
    return (place if isinstance(place, str) else place[0]).endswith("/")
