"""List which files of a data set are on the disk, what is missing and where to get it; download it on request.

    python datasets/prepare.py vqav2 --root data/vqa --images data/coco     every split: files, images, counts
    python datasets/prepare.py vqav2 --root data/vqa --split val --quick    only whether the files exist
    python datasets/prepare.py refcoco --root data/refcoco --split "refcoco+ testA"
    python datasets/prepare.py vqav2 --root data/vqa --download             download fixed addresses, then check
    python datasets/prepare.py all --root data                              data/vqav2, data/gqa, ...

The reader of a set names its files (LAYOUT, PAGE, COUNTS, DOWNLOADS, OPTIONS; minigptv2/data/dataset_files.py).
Nothing is downloaded without --download, and nothing downloaded is run. Without --quick, every shard is read and gets
an index file, for the reader's default options. Exit codes: 0 complete, 1 something is missing, 2 bad input.
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
from minigptv2.data.dataset_files import DatasetFiles, missing_paths, on_disk  # noqa: E402
from minigptv2.errors import UserError  # noqa: E402
from minigptv2.files import hash_file  # noqa: E402

ARCHIVES = "downloads"  # folder in root for the downloaded files
_CHUNK = 1 << 20  # bytes
_MAX_EXAMPLES = 3


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("prepare.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(prepared())}, or all")
    parser.add_argument(
        "--root", required=True, metavar="DIR", help="folder of the set; with all: it holds one folder per set"
    )
    parser.add_argument("--images", default="", metavar="DIR", help="images that are not in root; with all: COCO's")
    parser.add_argument("--split", default="", help="only this split")
    parser.add_argument("--quick", action="store_true", help="only check that the files exist")
    parser.add_argument("--download", action="store_true", help="download the files that have a fixed address")
    args = parser.parse_args(words)
    try:
        check_choice("name", args.name, (*prepared(), "all"))
        roots = {n: Path(args.root, n) for n in prepared()} if args.name == "all" else {args.name: Path(args.root)}
        complete = [_prepare(name, root, args) for name, root in roots.items()]
    except UserError as error:
        print_error(error)
        return 2
    sys.stdout.flush()
    return 0 if all(complete) else 1


def prepared() -> list[str]:
    """The names of the sets whose readers list their files."""
    return [name for name in DATASETS if on_disk(name)]


def _prepare(name: str, root: Path, args: argparse.Namespace) -> bool:
    """Print what is there. Returns whether it is complete."""
    files = on_disk(name)
    parts = [check_choice("split", args.split, tuple(files.layout))] if args.split else list(files.layout)
    width = max(12, *map(len, parts))
    print(f"{name} in {escape_control_chars(str(root))}, from {files.page}")
    if args.download and (files.downloads or args.name != "all"):
        _download(files, root)
    complete = True
    for part in parts:
        absent = missing_paths(root, files.layout[part])
        if absent:
            lines = ["missing", *absent]
        elif args.quick:
            lines = ["the files are there"]
        else:
            lines = _records(name, files, root, part, args)
        complete = complete and lines[0] != "missing" and not lines[0].startswith("incomplete")
        print(f"  {part:<{width}} {escape_control_chars(lines[0])}", flush=True)
        for line in lines[1:]:
            print(f"  {'':<{width}}   {escape_control_chars(line)}")
    if not complete:
        print(f"  Get what is missing from {files.page}; datasets/{name}.md shows where it belongs.")
        if not args.download and files.downloads:
            print("  With --download these are downloaded:")
            for address in files.downloads:
                print(f"    {address}")
    return complete


def _records(name: str, files: DatasetFiles, root: Path, part: str, args: argparse.Namespace) -> list[str]:
    """The number of records, compared with the published one, and the problems of the others."""
    options = files.options_of(part, root)
    if args.images and "images" in files.reader_options and (args.name != "all" or "images" not in options):
        options["images"] = args.images
    try:
        data = open_dataset(name, options)
    except UserError as error:
        return ["incomplete", error.given, error.allowed]
    published, problems = files.counts.get(part), list(data.problems.lines())
    count = f"{len(data):,} records" + (f" of {published:,}" if published else ", the published number is not known")
    if absent := data.missing_images() if hasattr(data, "missing_images") else []:
        some = ", ".join(map(str, absent[:_MAX_EXAMPLES])) + (", ..." if len(absent) > _MAX_EXAMPLES else "")
        return [f"incomplete, {len(absent):,} images are not on disk: {some}", count, *problems]
    if not len(data) or published and len(data) != published:
        return [f"incomplete, {count}", *problems]
    return [f"{'complete' if published else 'readable'}, {count}", *problems]


# ---- download ----


def _download(files: DatasetFiles, root: Path) -> None:
    if not files.downloads:
        raise UserError(
            "This set has no files with fixed addresses.",
            "Its licence or its page requires a person.",
            f"Get it from {files.page}.",
        )
    for address, folder in files.downloads.items():
        file = root / ARCHIVES / address.rpartition("/")[2]
        if file.is_file():
            print(f"  {file} is there already")
        else:
            _fetch(address, file)
        print(f"  sha256 {hash_file(file, hashlib.sha256())}  {file.name}")
        _unpack(file, root / folder)


def _fetch(address: str, file: Path) -> None:
    """Download to `file`; an interrupted download resumes where it stopped, if the server supports that."""
    from tqdm import tqdm

    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumed = getattr(answer, "status", None) == 206
            have = have if resumed else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            with (
                part.open("ab" if resumed else "wb") as out,
                tqdm(desc=file.name, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while chunk := answer.read(_CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise OSError(f"{part.stat().st_size} of {total} bytes arrived")
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise UserError(
            f"{address} could not be downloaded: {getattr(error, 'reason', None) or error}.",
            f"The part that arrived is kept in {part}.",
            "Run it again to resume, or download the file by hand from the page.",
        ) from None
    os.replace(part, file)


def _unpack(file: Path, folder: Path) -> None:
    """Unpack an archive into the folder, never outside it; copy any other file there."""
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
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
