"""Random access into tar shards and parquet files: whole, damaged, changed, and read by several processes at once."""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.data.annotations import InvalidRecord
from minigptv2.data.shards import Record, Shards
from minigptv2.data.tar import TarImage
from minigptv2.errors import UserError
from minigptv2.images import open_image

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


def image(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number * 5 % 256, 100, 50)).save(buffer, kind)
    return buffer.getvalue()


def members(first: int, count: int) -> list[tuple[str, bytes]]:
    found = []
    for n in range(first, first + count):
        found += [
            (f"{n:05d}.jpg", image(n, "JPEG")),
            (f"{n:05d}.json", json.dumps({"n": n}).encode()),
            (f"{n:05d}.txt", f"caption {n}".encode()),
        ]
    return found


def write_tar(file: Path, inside: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as tar:
        for name, data in inside:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def all_of(record: Record) -> tuple:
    return ()


def numbers(shards: Shards) -> list[int]:
    return [shards[i].fields["n"] for i in range(len(shards))]


def test_records_by_number(tmp_path):
    write_tar(tmp_path / "00000.tar", members(0, 3))
    write_tar(tmp_path / "00001.tar", members(3, 4))
    shards = Shards(str(tmp_path / "{00000..00001}.tar"), all_of, "test")
    assert len(shards) == 7 and not shards.problems
    for n in (6, 0, 3, 2, 5, 1, 4):
        record = shards[n]
        assert (record.fields, record.text) == ({"n": n}, f"caption {n}")
        assert record.key == f"0000{n // 3 if n < 6 else 1}.tar {n:05d}"
        assert open_image(record.image).size == (20 + n, 10)
    assert shards[-1].fields == {"n": 6}
    with pytest.raises(IndexError):
        shards[7]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(tmp_path, form):
    """Folders, names too long for a header, letters beyond ASCII, members apart from each other, other files."""
    long = "a" * 90 + "/" + ("b" * 60 if form == tarfile.USTAR_FORMAT else "b" * 150)
    inside = [
        ("./x/1.jpg", image(1)),
        (f"{long}.webp", image(2, "WEBP")),
        ("x/2.é.json", b"{}"),
        ("1.cls", b"7"),
        (f"{long}.json", b'{"n": 2}'),
        ("./x/1.json", b'{"n": 1}'),
        ("ü.PNG", image(3)),
        ("ü.json", b'{"n": 3}'),
    ]
    shards = Shards(str(write_tar(tmp_path / "a.tar", inside, form)), all_of, "test")
    assert numbers(shards) == [1, 2, 3]
    assert shards.problems.counts == {"a member of a type that is not read": 1, "no image": 1}
    assert [open_image(shards[i].image).width for i in range(3)] == [21, 22, 23]


def _words(shards) -> dict[str, tuple[str, int]]:
    records = [shards[i] for i in range(len(shards))]
    return {r.key: (r.text, open_image(r.image).width) for r in records}


def test_names_with_dots_are_samples_of_their_own(tmp_path):
    """Ten images of one name up to the first dot, with dots and without, and words beside each."""
    inside = []
    for n in range(10):
        name = "photo" if n == 0 else f"photo.{n}.v2"
        inside += [(f"{name}.jpg", image(n, "JPEG")), (f"{name}.txt", f"caption {n}".encode())]
    shards = Shards(str(write_tar(tmp_path / "a.tar", inside)), all_of, "p")
    assert not shards.problems
    names = ["photo", *(f"photo.{n}.v2" for n in range(1, 10))]
    assert _words(shards) == {f"a.tar {name}": (f"caption {n}", 20 + n) for n, name in enumerate(names)}


def test_members_of_one_sample_by_the_first_dot(tmp_path):
    inside = [
        ("7.image.jpg", image(7, "JPEG")),
        ("7.caption.txt", b"seven"),
        ("8.jpg", image(8, "JPEG")),
        ("8.seg.png", image(9)),
        ("8.long.txt", b"eight"),
        ("8.cls", b"3"),
        ("._8.jpg", b"x"),
        ("9.heic", b"x"),
        ("s.1.jpg", image(1, "JPEG")),
        ("s.2.txt", b"not of s.1"),
    ]
    shards = Shards(str(write_tar(tmp_path / "a.tar", inside)), all_of, "p")
    assert {text: width for text, width in _words(shards).values()} == {"seven": 27, "eight": 28, "": 21}
    assert shards.problems.counts == {
        "a further member of a sample that has one of its type": 1,
        "a member of a type that is not read": 1,
        "a hidden file, as macOS leaves them in archives": 1,
        "no image": 1,
    }


def test_a_column_of_lists_is_counted(tmp_path):
    lists = [[{"bytes": image(1), "path": ""}], None]
    file = write_parquet(tmp_path / "a.parquet", 2, 2, jpg=lists)
    with pytest.raises(UserError, match="neither bytes nor the name of a file"):
        Shards(str(file), all_of, "p")


def test_invalid_image_names_are_counted(tmp_path):
    image_file = tmp_path / "a.png"
    image_file.write_bytes(image(1))
    places = ["a.png", "x" * 5000, "data:image/png;base64," + "A" * 5000, "a\0b.png"]
    file = write_parquet(tmp_path / "a.parquet", 4, 4, where=places)
    shards = Shards(str(file), all_of, "p", images=str(tmp_path), image="where")
    assert [shards[i].image for i in range(len(shards))] == [image_file]
    assert sorted(shards.problems.counts) == [
        "an image given as data (base64) instead of a file name",
        "an image name that is too long for a file",
        "an image name with a NUL character, which no file has",
    ]


def test_filtered_records_are_counted_and_dropped(tmp_path):
    def record_filter(record):
        if record.fields["n"] % 3 == 0:
            raise InvalidRecord("a multiple of three")
        return ["an even number"] if record.fields["n"] % 2 == 0 else []

    for _ in range(2):  # made, then read back
        shards = Shards(str(write_tar(tmp_path / "a.tar", members(0, 10))), record_filter, "odd")
        assert numbers(shards) == [1, 2, 4, 5, 7, 8]
        assert list(shards.problems.lines()) == [
            "4 x a multiple of three: a.tar 00000, a.tar 00003, a.tar 00006, ...",
            "3 x an even number: a.tar 00002, a.tar 00004, a.tar 00008",
        ]
    assert len(Shards(str(tmp_path / "a.tar"), all_of, "other purpose")) == 10
    assert len(list(tmp_path.glob("*.index"))) == 2
    with pytest.raises(UserError, match="None of the 1 shards"):
        Shards(str(tmp_path / "a.tar"), lambda record: [][0:0] if record.fields["n"] > 99 else _refuse(), "none")


def _refuse():
    raise InvalidRecord("too small")


def test_an_index_is_reused_until_the_shard_changes(tmp_path):
    file = write_tar(tmp_path / "a.tar", members(0, 2))
    seen = []

    def record_filter(record):
        seen.append(record.key)
        return ()

    folder = tmp_path / "indexes"
    for _ in range(2):
        assert numbers(Shards(str(file), record_filter, "p", index=str(folder))) == [0, 1]
    assert len(seen) == 2 and list(tmp_path.glob("*.index")) == [] and len(list(folder.iterdir())) == 1
    write_tar(file, members(5, 3))
    assert numbers(Shards(str(file), record_filter, "p", index=str(folder))) == [5, 6, 7] and len(seen) == 5
    for damage in (b"", b"{}\n", b'{"of": 1}\n', next(folder.iterdir()).read_bytes()[:-1]):
        next(folder.iterdir()).write_bytes(damage)
        assert numbers(Shards(str(file), record_filter, "p", index=str(folder))) == [5, 6, 7]
    assert len(seen) == 17 and len(list(folder.iterdir())) == 1


def test_a_truncated_tar_gives_its_complete_records(tmp_path):
    inside = members(0, 3)
    data = write_tar(tmp_path / "whole.tar", inside).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [m.offset_data + m.size for m in tar.getmembers()]
        whole = tar.getmembers()[-1].offset_data + 512  # of the blocks of the last member
    assert len(Shards(str(tmp_path / "whole.tar"), all_of, "p")) == 3
    for cut in sorted({*range(512, whole, 301), *ends, *(e - 1 for e in ends), 513, 700}):
        file = tmp_path / f"{cut}.tar"
        file.write_bytes(data[:cut])
        good = write_tar(tmp_path / "good.tar", members(7, 1))
        shards = Shards([str(file), str(good)], all_of, "p")
        complete = sum(end <= cut for end in ends)
        assert len(shards) == -(-complete // 3) + 1, cut
        assert shards.problems.counts == {"a shard that is damaged or cut short": 1}, cut
        for i in range(complete // 3):
            assert shards[i].text == f"caption {i}"


@pytest.mark.parametrize("damage", ["header", "gzip", "text", "empty"])
def test_a_damaged_shard_is_counted_and_the_others_are_read(tmp_path, damage):
    file = write_tar(tmp_path / "a.tar", members(0, 3))
    data = file.read_bytes()
    if damage == "header":
        with tarfile.open(file) as tar:
            at = tar.getmembers()[6].offset  # of the third sample's image
        data = data[:at] + b"\x07" * 512 + data[at + 512 :]
    else:
        data = {"gzip": __import__("gzip").compress(data), "text": b"no tar " * 200, "empty": b""}[damage]
    file.write_bytes(data)
    write_tar(tmp_path / "b.tar", members(9, 1))
    shards = Shards([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")], all_of, "p")
    assert numbers(shards) == ([0, 1, 9] if damage == "header" else [9])
    (kind,) = shards.problems.counts
    assert kind == (
        "a shard that is damaged or cut short" if damage == "header" else "a shard that is not an uncompressed tar"
    )
    assert "a.tar" in shards.problems.examples[kind][0]


def test_invalid_text_and_json_are_counted(tmp_path):
    inside = [
        ("1.json", b"{"),
        ("2.json", b"[]"),
        ("3.json", b"\xff"),
        ("4.txt", b"\xff"),
        ("5.jpg", image(5, "JPEG")),
        ("5.json", b'{"n": 5}'),
        ("5.json", b'{"n": 6}'),
        ("6.json", b"[" * 100000),
    ]
    shards = Shards(str(write_tar(tmp_path / "a.tar", inside)), all_of, "p")
    assert numbers(shards) == [5]
    assert shards.problems.counts == {
        "JSON that cannot be read": 2,
        "JSON that is not an object": 1,
        "text that is not in UTF-8": 2,
        "a second member of the same type and name": 1,
    }


def test_patterns_expand_to_shards(tmp_path):
    for name in ("s-008", "s-009", "s-010", "t-008", "other"):
        write_tar(tmp_path / f"{name}.tar", members(int(name[2:]) if name[2:].isdigit() else 50, 1))
    at = lambda pattern: numbers(Shards(f"{tmp_path}/{pattern}", all_of, "p"))  # noqa: E731
    assert at("s-{008..010}.tar") == [8, 9, 10] and at("{t,s}-008.tar") == [8, 8]
    assert at("s-*.tar") == [8, 9, 10] and at("{s,t}-{008..008}.tar") == [8, 8]
    assert len(Shards([f"{tmp_path}/*.tar", f"{tmp_path}/s-008.tar"], all_of, "p")) == 5  # each once
    for pattern, message in (
        ("s-{008..012}.tar", r"no shard .*s-011\.tar"),
        ("*.zip", r"no shard .*\*\.zip"),
        ("{3..1}.tar", "before it begins"),
    ):
        with pytest.raises(UserError, match=message):
            at(pattern)


def test_an_image_is_read_only_when_it_is_opened(tmp_path, monkeypatch):
    shards = Shards(str(write_tar(tmp_path / "a.tar", members(0, 2))), all_of, "p")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
        record = shards[1]
    copy = pickle.loads(pickle.dumps(record.image))
    assert copy == record.image and hash(copy) == hash(record.image) and str(copy).startswith(str(tmp_path / "a.tar"))
    assert copy.read() == copy.open() == image(1, "JPEG")
    assert copy.key == record.image.key != shards[0].image.key
    before = copy.key
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert copy.key != before  # written anew, it may hold other images
    os.truncate(tmp_path / "a.tar", record.image.offset + 5)
    with pytest.raises(UserError, match="ends after 5 of"):
        open_image(record.image)
    os.remove(tmp_path / "a.tar")
    with pytest.raises(UserError, match="cannot be read"):
        open_image(record.image)


def test_a_shard_that_changed_raises_user_error(tmp_path):
    shards = Shards(str(write_tar(tmp_path / "a.tar", members(0, 2))), all_of, "p")
    (tmp_path / "a.tar").write_bytes(b"\xff" * (tmp_path / "a.tar").stat().st_size)
    with pytest.raises(UserError, match="changed since"):
        shards[1]
    next(tmp_path.glob("*.index")).write_bytes(b"")
    with pytest.raises(UserError, match="has become shorter"):
        shards[1]


def test_invalid_images_raise_user_error(tmp_path):
    (tmp_path / "a").write_bytes(b"no image!!")
    with pytest.raises(UserError, match="at byte 0 is not an image"):
        open_image(TarImage(str(tmp_path / "a"), 0, 10))
    with (tmp_path / "a").open() as text, pytest.raises(UserError, match="is open as text"):
        open_image(text)


def _read_some(shards, count, answers):
    order = np.random.default_rng(os.getpid()).permutation(len(shards))[:count]
    answers.put(all(open_image(shards[int(i)].image).width == 20 + shards[int(i)].fields["n"] for i in order))


def _open_and_count(pattern, answers):
    shards = Shards(pattern, all_of, "p")
    answers.put(numbers(shards))


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_workers_read_in_parallel(tmp_path, way, kind):
    if kind == "tar":
        write_tar(tmp_path / "a.tar", members(0, 40))
    else:
        write_parquet(tmp_path / "a.parquet", 40, 7)
    shards = Shards(str(tmp_path / f"a.{kind}"), all_of, "p")
    assert numbers(shards)[:2] == [0, 1] and open_image(shards[3].image).width == 23  # whatever is kept, is kept now
    context = multiprocessing.get_context(way)
    answers = context.Queue()
    workers = [context.Process(target=_read_some, args=(shards, 30, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [True, True]
    for worker in workers:
        worker.join()


def test_processes_share_the_work_of_indexing(tmp_path):
    for n in range(4):
        write_tar(tmp_path / f"{n}.tar", members(n * 10, 10))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_open_and_count, args=(str(tmp_path / "*.tar"), answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [list(range(40))] * 4
    for worker in workers:
        worker.join()
    assert len(list(tmp_path.glob("*.index"))) == 4 and list(tmp_path.glob("*.part")) == []


# ---- parquet ----


def write_parquet(file: Path, count: int, group: int, **columns) -> Path:
    values = {"n": list(range(count)), "jpg": [image(n) for n in range(count)]} | columns
    pyarrow.parquet.write_table(pyarrow.table(values), file, row_group_size=group)
    return file


def test_parquet_with_images_inside(tmp_path):
    shards = Shards(str(write_parquet(tmp_path / "a.parquet", 10, 4)), all_of, "p")
    assert numbers(shards) == list(range(10)) and shards[5].key == "a.parquet row group 1 row 1"
    assert "jpg" not in shards[9].fields and open_image(shards[9].image).width == 29
    copy = pickle.loads(pickle.dumps(shards[9].image))
    assert copy.read() == copy.open() == image(9) and copy == shards[9].image
    assert copy.key == shards[9].image.key != shards[8].image.key


def test_parquet_as_the_datasets_library_writes_it(tmp_path):
    """The image is a struct of bytes and path."""
    values = [{"bytes": image(n), "path": f"{n}.png"} for n in range(3)]
    file = write_parquet(tmp_path / "a.parquet", 3, 2, jpg=["", "", ""], image=values)
    shards = Shards(str(file), all_of, "p", image="image")
    assert [open_image(shards[n].image).width for n in range(3)] == [20, 21, 22]
    none = Shards(str(write_parquet(tmp_path / "b.parquet", 1, 1, jpg=[{"bytes": None, "path": "x"}])), all_of, "p")
    with pytest.raises(UserError, match="holds no bytes of an image"):
        open_image(none[0].image)


def test_parquet_with_images_on_disk(tmp_path):
    places = ["a/1.png", "http://somewhere/b/2.png?size=3", "3", "", None, "4"]
    file = write_parquet(tmp_path / "a.parquet", 6, 2, where=places)
    there = [tmp_path / name for name in ("a/1.png", "2.png", "3.jpg")]
    (tmp_path / "a").mkdir()
    for image_file in there:
        image_file.write_bytes(b"")
    shards = Shards(str(file), all_of, "p", images=str(tmp_path), image="where")
    assert [shards[i].image for i in range(len(shards))] == there
    assert shards.problems.counts == {"no image": 2, "an image that is not on the disk": 1}
    with pytest.raises(UserError, match="has no column 'place'"):
        Shards(str(file), all_of, "q", image="place")


def test_damaged_parquet_is_counted(tmp_path):
    data = write_parquet(tmp_path / "a.parquet", 8, 4).read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-9])
    (tmp_path / "c.parquet").write_bytes(b"")
    shards = Shards(str(tmp_path / "*.parquet"), all_of, "p")
    assert len(shards) == 8 and shards.problems.counts == {"a file that is not a complete parquet file": 2}
    write_parquet(tmp_path / "d.parquet", 8, 4, words=["some words to fill a page " + str(n) for n in range(8)])
    data = bytearray((tmp_path / "d.parquet").read_bytes())
    with pyarrow.parquet.ParquetFile(tmp_path / "d.parquet") as file:
        chunk = file.metadata.row_group(1).column(0)
    data[chunk.dictionary_page_offset or chunk.data_page_offset] ^= 0xFF
    (tmp_path / "d.parquet").write_bytes(data)
    shards = Shards(str(tmp_path / "d.parquet"), all_of, "p")
    assert numbers(shards) == [0, 1, 2, 3]
    assert shards.problems.counts == {"a damaged row group of a parquet file": 1}
