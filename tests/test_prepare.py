"""datasets/prepare.py through its command line, and the cards against what the readers say."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from minigptv2.data.dataset import DATASETS, open_dataset
from minigptv2.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "datasets" / "prepare.py"


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


def test_an_empty_folder(tmp_path):
    code, out, _ = run("okvqa", "--root", tmp_path)
    assert code == 1
    assert out.count("missing") >= 2
    for name in ("OpenEnded_mscoco_train2014_questions.json", "mscoco_val2014_annotations.json"):
        assert name in out
    assert "https://okvqa.allenai.org/download.html" in out
    assert "--download" in out
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there(tmp_path):
    _okvqa(tmp_path / "okvqa", tmp_path / "coco")
    assert run("okvqa", "--root", tmp_path / "okvqa", "--quick")[:2] == (
        0, f"okvqa in {tmp_path / 'okvqa'}, from https://okvqa.allenai.org/download.html\n"
           "  train        the files are there\n  val          the files are there\n",
    )  # fmt: skip
    code, out, _ = run("okvqa", "--root", tmp_path / "okvqa", "--images", tmp_path / "coco", "--split", "val")
    assert code == 1
    assert "val          incomplete, 3 records of 5,046" in out
    code, out, _ = run("okvqa", "--root", tmp_path / "okvqa", "--split", "val")
    assert code == 1
    assert "3 x a picture that is not on the disk" in out


def test_a_complete_set(tmp_path, prepare, monkeypatch, capsys):
    _okvqa(tmp_path / "okvqa", tmp_path / "okvqa")
    monkeypatch.setattr("minigptv2.data.okvqa.COUNTS", {"train": 3, "val": 3})
    assert prepare.main(["okvqa", "--root", str(tmp_path / "okvqa")]) == 0
    out = capsys.readouterr().out
    assert "train        complete, 3 records of 3" in out
    assert "missing" not in out


def test_all_sets_and_wrong_words(tmp_path):
    code, out, _ = run("all", "--root", tmp_path)
    assert code == 1
    for name in DATASETS:
        if hasattr(module_of(name), "LAYOUT"):
            assert f"{name} in {tmp_path / name}, from https://" in out
    code, _, err = run("okvqqa", "--root", tmp_path)
    assert code == 2
    assert "okvqa" in err
    assert run("okvqa", "--root", tmp_path, "--split", "tset")[0] == 2
    assert run("okvqa")[0] == 2


@pytest.mark.parametrize("form", ["zip", "tar", "plain"])
def test_download_unpacks_and_then_looks(tmp_path, prepare, monkeypatch, capsys, form):
    """The addresses are files of this machine: the code that fetches is the one that a web address uses."""
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
    monkeypatch.setattr("minigptv2.data.okvqa.DOWNLOADS", addresses)
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


def test_a_download_that_fails(tmp_path, prepare, monkeypatch, capsys):
    monkeypatch.setattr("minigptv2.data.okvqa.DOWNLOADS", {(tmp_path / "none.zip").as_uri(): ""})
    assert prepare.main(["okvqa", "--root", str(tmp_path / "new"), "--download"]) == 2
    assert "could not be downloaded" in capsys.readouterr().err
    assert prepare.main(["hateful_memes", "--root", str(tmp_path / "new"), "--download"]) == 2
    assert "no files with fixed addresses" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil_of_prepare.txt", "a/../../evil.txt"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_an_archive_cannot_write_outside(tmp_path, prepare, form, name):
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


def test_a_link_in_an_archive_is_left_out(tmp_path, prepare):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    prepare._unpack(tmp_path / "x.tar", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ---- the cards ----


def module_of(name: str):
    return importlib.import_module(DATASETS[name].partition(":")[0])


def test_every_data_set_of_others_has_a_card():
    cards = {file.stem for file in (ROOT / "datasets").glob("*.md")}
    assert set(DATASETS) - cards == {"own", "scenes", "sums"}


@pytest.mark.parametrize("name", [n for n in DATASETS if hasattr(module_of(n), "LAYOUT") or n == "coco_detection"])
def test_the_card_of_a_data_set(name):
    text = (ROOT / "datasets" / f"{name}.md").read_text(encoding="utf-8")
    module = module_of(name)
    assert "Licence" in text and "Size" in text and "## On disk" in text
    if page := getattr(module, "PAGE", ""):
        assert page in text
    for count in getattr(module, "COUNTS", {}).values():
        assert f"{count:,}" in text
    (use,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (source,) = yaml.safe_load(use)
    assert source["name"] == name
    with pytest.raises(UserError) as error:  # the options are known; the files are not there
        open_dataset(name, source["options"])
    assert "has no option" not in str(error.value)
    tree = text.split("```text\n")[1].split("```")[0]
    for places in getattr(module, "LAYOUT", {}).values():
        for place in places:
            first = place if isinstance(place, str) else place[0]
            folder_of_each = [part for part in re.split(r"[/ ]", first) if part]
            assert folder_of_each[-1] in tree, first


def test_the_layouts_are_well_formed():
    seen = 0
    for name in DATASETS:
        module = module_of(name)
        if hasattr(module, "LAYOUT"):
            seen += 1
            assert module.PAGE.startswith("https://")
            assert set(module.COUNTS) <= set(module.LAYOUT), name
            assert all(address.startswith("http") for address in module.DOWNLOADS)
    assert seen >= 13
