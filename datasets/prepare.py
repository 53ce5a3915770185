"""Say of a data set what lies on the disk, what is missing, and where to get it; download it where that is asked for.

    python datasets/prepare.py vqav2 --root data/vqa --images data/coco     every part: files, images, counts
    python datasets/prepare.py vqav2 --root data/vqa --split val --quick    the files alone, without reading them
    python datasets/prepare.py refcoco --root data/refcoco --split "refcoco+ testA"
    python datasets/prepare.py vqav2 --root data/vqa --download             fetch what has a fixed address, then look
    python datasets/prepare.py all --root data                              data/vqav2, data/gqa, ...

What belongs to a set stands in its reader (LAYOUT, PAGE, COUNTS, DOWNLOADS, OPTIONS; minigptv2/data/dataset_files.py).
Nothing is downloaded unasked, and nothing that was downloaded is run. Without --quick, every shard is read and gets an
index beside it, that of the reader's default options. Exit codes: 0 all is there, 1 something is missing, 2 bad input.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigptv2.commands.printing import escape_control_chars, print_error  # noqa: E402
from minigptv2.data.annotations import check_choice  # noqa: E402
from minigptv2.data.dataset import DATASETS, open_dataset  # noqa: E402
from minigptv2.data.dataset_files import DatasetFiles, missing, on_disk  # noqa: E402
from minigptv2.errors import UserError  # noqa: E402

KEPT = "downloads"  # below root: the files as they came
_CHUNK = 1 << 20  # bytes
_EXAMPLES = 3


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("prepare.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(prepared())}, or all")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the set; of all: a folder a set in it")
    parser.add_argument("--images", default="", metavar="DIR", help="images that are not below root; of all: COCO's")
    parser.add_argument("--split", default="", help="this part alone")
    parser.add_argument("--quick", action="store_true", help="only whether the files are there")
    parser.add_argument("--download", action="store_true", help="fetch the files that have a fixed address")
    args = parser.parse_args(words)
    try:
        check_choice("name", args.name, (*prepared(), "all"))
        roots = {n: Path(args.root, n) for n in prepared()} if args.name == "all" else {args.name: Path(args.root)}
        whole = [_prepare(name, root, args) for name, root in roots.items()]
    except UserError as error:
        print_error(error)
        return 2
    sys.stdout.flush()
    return 0 if all(whole) else 1


def prepared() -> list[str]:
    """The names of the sets whose readers say what must lie where."""
    return [name for name in DATASETS if on_disk(name)]


def _prepare(name: str, root: Path, args: argparse.Namespace) -> bool:
    """Prints what is there; whether that is all."""
    told = on_disk(name)
    parts = [check_choice("split", args.split, tuple(told.layout))] if args.split else list(told.layout)
    width = max(12, *map(len, parts))
    print(f"{name} in {escape_control_chars(str(root))}, from {told.page}")
    if args.download and (told.downloads or args.name != "all"):
        _download(told, root)
    whole = True
    for part in parts:
        lost = missing(root, told.layout[part])
        if lost:
            lines = ["missing", *lost]
        elif args.quick:
            lines = ["the files are there"]
        else:
            lines = _records(name, told, root, part, args)
        whole = whole and lines[0] != "missing" and not lines[0].startswith("incomplete")
        print(f"  {part:<{width}} {escape_control_chars(lines[0])}", flush=True)
        for line in lines[1:]:
            print(f"  {'':<{width}}   {escape_control_chars(line)}")
    if not whole:
        print(f"  Get what is missing from {told.page}; datasets/{name}.md shows where it belongs.")
        if not args.download and told.downloads:
            print("  With --download these are fetched:")
            for address in told.downloads:
                print(f"    {address}")
    return whole


def _records(name: str, told: DatasetFiles, root: Path, part: str, args: argparse.Namespace) -> list[str]:
    """How many records the reader gives, against those of the published files, and what was wrong with others."""
    options = told.options_of(part, root)
    if args.images and "images" in told.reader_options and (args.name != "all" or "images" not in options):
        options["images"] = args.images
    try:
        data = open_dataset(name, options)
    except UserError as error:
        return ["incomplete", error.given, error.allowed]
    published, problems = told.counts.get(part), list(data.problems.lines())
    count = f"{len(data):,} records" + (f" of {published:,}" if published else ", the published number is not known")
    if lost := data.missing_images() if hasattr(data, "missing_images") else []:
        some = ", ".join(map(str, lost[:_EXAMPLES])) + (", ..." if len(lost) > _EXAMPLES else "")
        return [f"incomplete, {len(lost):,} images are not on disk: {some}", count, *problems]
    if not len(data) or published and len(data) != published:
        return [f"incomplete, {count}", *problems]
    return [f"{'complete' if published else 'readable'}, {count}", *problems]


# ---- download ----


def _download(told: DatasetFiles, root: Path) -> None:
    if not told.downloads:
        raise UserError(
            "This set has no files with fixed addresses.",
            "Its licence or its page asks for a person.",
            f"Get it from {told.page}.",
        )
    for address, folder in told.downloads.items():
        file = root / KEPT / address.rpartition("/")[2]
        if file.is_file():
            print(f"  {file} is there already")
        else:
            _fetch(address, file)
        print(f"  sha256 {_digest(file)}  {file.name}")
        _unpack(file, root / folder)


def _fetch(address: str, file: Path) -> None:
    """Download to `file`; a download that broke off goes on where it was, if the server can do that."""
    from tqdm import tqdm

    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            goes_on = getattr(answer, "status", None) == 206
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            with (
                part.open("ab" if goes_on else "wb") as out,
                tqdm(desc=file.name, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while chunk := answer.read(_CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise OSError(f"{part.stat().st_size} of {total} bytes came")
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise UserError(
            f"{address} could not be downloaded: {getattr(error, 'reason', None) or error}.",
            f"What came so far is kept in {part}.",
            "Run it again to go on, or get the file by hand from the page.",
        ) from None
    os.replace(part, file)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(file: Path, folder: Path) -> None:
    """Archives are unpacked into the folder, never outside it; other files are copied there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    _check_inside(folder, entry.filename)
                archive.extractall(folder)
        elif tarfile.is_tarfile(file):
            with tarfile.open(file) as archive:
                for entry in archive:
                    if entry.isfile():
                        _copy(archive.extractfile(entry), _check_inside(folder, entry.name))
        else:
            with file.open("rb") as content:
                _copy(content, folder / file.name)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{file} cannot be unpacked: {error}.", "It is a zip or tar archive.", "Delete it and download it again."
        ) from None


def _check_inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise OSError(f"{name!r} would lie outside {folder}")
    return path


def _copy(content, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        shutil.copyfileobj(content, out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
