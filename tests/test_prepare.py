"""datasets/prepare.py through its command line, and the cards against what the readers say."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from minigptv2.data.dataset import DATASETS, open_dataset
from minigptv2.data.dataset_files import find, missing_paths, on_disk
from minigptv2.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "datasets" / "prepare.py"
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def _okvqa(root: Path, images: Path, count: int = 3) -> None:
    """Both splits of OK-VQA with `count` questions each."""
    root.mkdir(parents=True)
    (images / "val2014").mkdir(parents=True)
    for number in range(count):
        (images / "val2014" / f"COCO_val2014_{number:012d}.jpg").touch()
    questions = [{"image_id": i, "question_id": i, "question": "why?"} for i in range(count)]
    answers = [{"image_id": i, "question_id": i, "answers": [{"answer": "so"}]} for i in range(count)]
    for split in ("train", "val"):
        (root / f"OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps({"questions": questions}))
        (root / f"mscoco_{split}2014_annotations.json").write_text(json.dumps({"annotations": answers}))


def test_empty_folder_lists_missing_files(tmp_path):
    code, out, _ = run("okvqa", "--root", tmp_path)
    assert code == 1
    assert out.count("missing") >= 2
    for name in ("OpenEnded_mscoco_train2014_questions.json", "mscoco_val2014_annotations.json"):
        assert name in out
    assert "https://okvqa.allenai.org/download.html" in out
    assert "--download" in out
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_reported(tmp_path):
    _okvqa(tmp_path / "okvqa", tmp_path / "coco")
    assert run("okvqa", "--root", tmp_path / "okvqa", "--quick")[:2] == (
        0,
        f"okvqa in {tmp_path / 'okvqa'}, from https://okvqa.allenai.org/download.html\n"
        "  train        the files are there\n  val          the files are there\n",
    )
    code, out, _ = run("okvqa", "--root", tmp_path / "okvqa", "--images", tmp_path / "coco", "--split", "val")
    assert code == 1
    assert "val          incomplete, 3 records of 5,046" in out
    code, out, _ = run("okvqa", "--root", tmp_path / "okvqa", "--split", "val")
    assert code == 1
    assert "3 x an image that is not on the disk" in out


def test_complete_set_exits_with_0(tmp_path, prepare, monkeypatch, capsys):
    _okvqa(tmp_path / "okvqa", tmp_path / "okvqa")
    monkeypatch.setattr("minigptv2.data.readers.okvqa.COUNTS", {"train": 3, "val": 3})
    assert prepare.main(["okvqa", "--root", str(tmp_path / "okvqa")]) == 0
    out = capsys.readouterr().out
    assert "train        complete, 3 records of 3" in out
    assert "missing" not in out


@pytest.mark.slow
def test_all_sets_and_invalid_arguments(tmp_path):
    code, out, _ = run("all", "--root", tmp_path)
    assert code == 1
    for name in DATASETS:
        if on_disk(name):
            assert f"{name} in {tmp_path / name}, from https://" in out
    code, _, err = run("okvqqa", "--root", tmp_path)
    assert code == 2
    assert "okvqa" in err
    assert run("okvqa", "--root", tmp_path, "--split", "tset")[0] == 2
    assert run("okvqa")[0] == 2


# ---- the forms that differ ----


def test_refcoco_without_images(tmp_path):
    """Rows are compared with the published number, and missing images are counted."""
    for file in (DATA / "refcocog").glob("*.json"):
        shutil.copy(file, tmp_path)
    code, out, _ = run("refcoco", "--root", tmp_path)
    assert code == 1
    for part, there, count in (("val", 28, 4896), ("test", 25, 9602)):
        missing_images = {"val": 14, "test": 13}[part]
        row = rf"^  refcocog {part} +incomplete, {missing_images} images are not on disk: .*train2014.*, \.\.\.$\n +"
        assert re.search(rf"{row}{there} records of {count:,}$", out, re.M), part
    assert re.search(
        r"^  refcocog train +missing\n.*refcocog/refs\(umd\)\.p or refs\(umd\)\.p or refcocog_train", out, re.M
    )
    for images, absent in (((), 14), (("--images", DATA / "refcocog" / "images"), 13)):
        told = run("refcoco", "--root", tmp_path, "--split", "refcocog val", *images)[1]
        assert f"{absent} images are not on disk" in told


def test_vsr_splits(tmp_path):
    code, out, _ = run("vsr", "--root", DATA / "vsr", "--split", "zeroshot dev")
    assert code == 1 and "1 images are not on disk" in out and "2 records of 340" in out
    code, out, _ = run("vsr", "--root", DATA / "vsr", "--split", "zeroshot test")
    assert code == 1 and "zeroshot test incomplete, 4 records of 1,222" in out and "not on disk" not in out


def test_code_in_a_pickle_is_not_run(tmp_path, prepare, capsys):
    (tmp_path / "refs(unc).p").write_bytes(b"cos\nmkdir\n(S'" + os.fsencode(tmp_path / "evil") + b"'\ntR.")
    (tmp_path / "instances.json").write_text("{}")
    assert prepare.main(["refcoco", "--root", str(tmp_path), "--split", "refcoco val"]) == 1
    assert re.search("incomplete\n.*would load .*mkdir", capsys.readouterr().out)
    assert not (tmp_path / "evil").exists()


def _shard(file: Path, count: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            for suffix, content in (("png", buffer.getvalue()), ("txt", b"a red square")):
                entry = tarfile.TarInfo(f"{number:05d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("name", ["laion", "cc3m", "sbu"])
def test_shards_in_a_folder_with_special_characters(tmp_path, prepare, capsys, name):
    """Next to its tars img2dataset leaves parquet files without images, which are not shards."""
    root = tmp_path / "web [1]*"
    root.mkdir()
    assert prepare.main([name, "--root", str(root)]) == 1
    assert "*.tar or *.parquet" in capsys.readouterr().out
    _shard(root / "00000.tar", 2)
    _shard(root / "00001.tar", 3)
    (root / "00000.parquet").write_bytes(b"no shard")
    assert prepare.main([name, "--root", str(root), "--quick"]) == 0
    assert {file.name for file in root.iterdir()} == {"00000.tar", "00001.tar", "00000.parquet"}, "nothing is written"
    assert prepare.main([name, "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert f"from {on_disk(name).page}\n" in out and "readable, 5 records, the published number is not known" in out


def test_sets_without_their_images(tmp_path, prepare, monkeypatch, capsys):
    """Visual Genome and Flickr30k keep rows without an image, COCO detection does not. With all, --images is COCO's."""
    for name in ("visual_genome", "flickr30k/Sentences", "flickr30k/Annotations", "coco_detection/annotations"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    genome, flickr, detection = (tmp_path / "sets" / n for n in ("visual_genome", "flickr30k", "coco_detection"))
    region = {"region_id": 5, "image_id": 1, "phrase": "a clock", "x": 0, "y": 0, "width": 300, "height": 200}
    (genome / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": [region]}]))
    (genome / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 400, "height": 300}]))
    (flickr / "test.txt").write_text("7\n")
    (flickr / "Sentences" / "7.txt").write_text("[/EN#1/people A man] .\n")
    (flickr / "Annotations" / "7.xml").write_text(
        "<annotation><size><width>9</width><height>9</height></size><object><name>1</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 9, "height": 9} for n in (1, 2)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0} for n in (1, 2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
    (detection / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    coco = tmp_path / "coco"
    (coco / "val2017").mkdir(parents=True)
    (coco / "val2017" / f"{1:012d}.jpg").touch()
    monkeypatch.setattr("minigptv2.data.readers.coco_detection.COUNTS", {"val2017": 2})

    words = ["all", "--root", str(tmp_path / "sets"), "--images", str(coco)]
    assert prepare.main(words) == 1
    out = capsys.readouterr().out
    assert f"regions      incomplete, 1 images are not on disk: {genome / 'VG_100K' / '1.jpg'}\n" in out
    assert f"test         incomplete, 1 images are not on disk: {flickr / '7.jpg'}\n" in out
    assert "val2017      incomplete, 1 records of 2\n" in out and "1 x an image that is not on the disk" in out

    for file in (coco / "val2017" / f"{2:012d}.jpg", genome / "1.jpg", flickr / "7.jpg"):
        file.touch()
    prepare.main(words)
    out = capsys.readouterr().out
    assert "regions      readable, 1 records" in out and "test         readable, 1 records" in out
    assert "val2017      complete, 2 records of 2" in out
    (flickr / "test.txt").write_text("")
    assert prepare.main(["flickr30k", "--root", str(flickr), "--split", "test"]) == 1
    assert "test         incomplete, 0 records" in capsys.readouterr().out


def test_find_and_missing_of_a_layout(tmp_path):
    (tmp_path / "b.tar").touch()
    (tmp_path / "a.tar").touch()
    (tmp_path / "c.tar").mkdir()
    assert find(tmp_path, "*.tar") == tmp_path / "a.tar"
    assert find(tmp_path, ("*.parquet", "c.tar/")) == tmp_path / "c.tar"
    assert find(tmp_path, "*.parquet") is None and find(tmp_path / "none", "*.tar") is None
    assert missing_paths(tmp_path, ("*.tar", ("*.parquet", "x/"))) == ["*.parquet or x/"]


@pytest.mark.parametrize("form", ["zip", "tar", "plain"])
def test_download_unpacks_and_then_checks(tmp_path, prepare, monkeypatch, capsys, form):
    """The addresses are file URLs, downloaded by the same code as web addresses."""
    _okvqa(tmp_path / "made", tmp_path / "coco")
    addresses, server = {}, tmp_path / "server"
    server.mkdir()
    for file in (tmp_path / "made").iterdir():
        content = file.read_bytes()
        if form == "zip":
            file = server / f"{file.name}.zip"
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(file.name.removesuffix(".zip"), content)
        elif form == "tar":
            name, file = file.name, server / f"{file.name}.tar.gz"
            with tarfile.open(file, "w:gz") as archive:
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        addresses[file.as_uri()] = ""
    monkeypatch.setattr("minigptv2.data.readers.okvqa.DOWNLOADS", addresses)
    words = ["okvqa", "--root", str(tmp_path / "new"), "--quick"]
    assert prepare.main(words) == 1
    assert not (tmp_path / "new").exists(), "nothing is downloaded unasked"
    assert prepare.main([*words, "--download"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"sha256 [0-9a-f]{64}  ", out)) == 4
    assert len(open_dataset("okvqa", {"root": str(tmp_path / "new"), "images": str(tmp_path / "coco")})) == 3
    assert prepare.main([*words, "--download"]) == 0
    assert capsys.readouterr().out.count("is there already") == 4
    assert not list((tmp_path / "new").rglob("*.part"))


def test_failed_download_exits_with_2(tmp_path, prepare, monkeypatch, capsys):
    monkeypatch.setattr("minigptv2.data.readers.okvqa.DOWNLOADS", {(tmp_path / "none.zip").as_uri(): ""})
    assert prepare.main(["okvqa", "--root", str(tmp_path / "new"), "--download"]) == 2
    assert "could not be downloaded" in capsys.readouterr().err
    assert prepare.main(["hateful_memes", "--root", str(tmp_path / "new"), "--download"]) == 2
    assert "no files with fixed addresses" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil_of_prepare.txt", "a/../../evil.txt"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archive_cannot_write_outside_its_folder(tmp_path, prepare, form, name):
    file, folder = tmp_path / "x.archive", tmp_path / "in" / "side"
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, "evil")
    else:
        with tarfile.open(file, "w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="would lie outside"):
        prepare._unpack(file, folder)
    assert not list(tmp_path.rglob("evil.txt")) and not os.path.exists("/tmp/evil_of_prepare.txt")


def test_links_in_an_archive_are_skipped(tmp_path, prepare):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    prepare._unpack(tmp_path / "x.tar", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ---- the cards ----


def test_every_public_data_set_has_a_card():
    cards = {file.stem for file in (ROOT / "datasets").glob("*.md")}
    assert set(DATASETS) - cards == {"own", "scenes", "arithmetic"}


@pytest.mark.parametrize("name", list(filter(on_disk, DATASETS)))
def test_card_has_its_sections(name):
    text = (ROOT / "datasets" / f"{name}.md").read_text(encoding="utf-8")
    told = on_disk(name)
    assert "Licence" in text and "Size" in text and "## On disk" in text
    assert told.page in text
    for count in told.counts.values():
        assert re.search(rf"(?<![\d,]){count:,}(?![\d,]*\d)", text), count
    (use,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (source,) = yaml.safe_load(use)
    assert source["name"] == name
    # the options are known; the files are not there
    with pytest.raises(UserError, match="no |not a folder|missing|cannot be opened|neither") as error:
        open_dataset(name, source["options"])
    assert "has no option" not in str(error.value)
    tree = text.split("```text\n")[1].split("```")[0]
    for places in told.layout.values():
        for place in places:
            first = place if isinstance(place, str) else place[0]
            folder_of_each = [part for part in re.split(r"[/ ]", first) if part]
            assert folder_of_each[-1] in tree, first


def test_every_public_data_set_has_a_layout():
    assert [name for name in DATASETS if not on_disk(name)] == ["own", "scenes", "arithmetic"]


@pytest.mark.parametrize("name", list(filter(on_disk, DATASETS)))
def test_layouts_are_well_formed(name, tmp_path):
    told = on_disk(name)
    assert told.page.startswith("https://")
    assert told.layout and set(told.counts) <= set(told.layout)
    assert set(told.options) in (set(), set(told.layout))
    assert all(address.startswith("http") for address in told.downloads)
    for part in told.layout:  # the reader knows the options of every part
        with pytest.raises(UserError, match="no |not a folder|missing|cannot be opened|neither") as error:
            open_dataset(name, told.options_of(part, tmp_path))
        assert not re.search("has no option|must be|cannot be understood", str(error.value)), error.value
