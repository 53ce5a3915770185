"""What every reader of boxes and of web data owes to the rest: a pure function of the index that opens no image."""

import builtins
import io
import json
import pickle
import re
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.data.dataset import DATASETS, ProblemCounter, open_dataset
from minigptv2.errors import UserError
from minigptv2.sample import Sample
from minigptv2.tasks import TASKS, render

CAPTION = "a dog on a red sofa"
ITEMS = [[0, 5, 0.1, 0.1, 0.4, 0.6, 0.9], [9, 19, 0.0, 0.4, 1.0, 1.0, 0.8]]


def _refcoco(folder: Path) -> list[dict]:
    row = {"img_id": "COCO_train2014_000000000009_3", "sents": "left", "bbox": [1, 2, 3, 4], "height": 80, "width": 90}
    rows = [row, row | {"sents": "the right one", "bbox": [50, 2, 30.5, 60]}]
    (folder / "refcoco+_testA.json").write_text(json.dumps(rows))
    options = {"root": str(folder), "dataset": "refcoco+", "split": "testA"}
    return [options | {"task": task} for task in ("refer", "identify")]


def _vsr(folder: Path) -> list[dict]:
    row = {"image": "000000000009.jpg", "caption": "The dog is on the sofa.", "label": 1}
    (folder / "random").mkdir()
    (folder / "random" / "dev.jsonl").write_text("\n".join(json.dumps(row | {"label": n}) for n in (1, 0)))
    return [{"root": str(folder), "variant": "random", "split": "dev"}]


def _visual_genome(folder: Path) -> list[dict]:
    region = {"region_id": 5, "image_id": 1, "phrase": "a clock", "x": 10, "y": 20, "width": 30, "height": 40}
    regions = [region, region | {"region_id": 6, "phrase": "Café"}]
    (folder / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": regions}]))
    (folder / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 100, "height": 80}]))
    return [{"root": str(folder), "task": task} for task in ("refer", "identify")]


def _flickr30k(folder: Path) -> list[dict]:
    thing = (
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object>"
    )
    size = "<size><width>50</width><height>40</height></size>"
    for below, name, text in (
        ("Sentences", "7.txt", "[/EN#1/people A man] sees [/EN#2/other a dog] .\n[/EN#2/other The dog] sleeps .\n"),
        ("Annotations", "7.xml", f"<a>{size}{thing.format(1, 1, 20)}{thing.format(2, 30, 50)}</a>"),
        ("", "val.txt", "7\n"),
    ):
        (folder / below).mkdir(exist_ok=True)
        (folder / below / name).write_text(text)
    return [
        {"root": str(folder), "split": "val", "task": t} for t in ("grounding", "caption_to_phrases", "phrase_to_boxes")
    ]


def _shards(folder: Path) -> str:
    image = io.BytesIO()
    Image.new("RGB", (40, 30)).save(image, "PNG")
    record = {"caption": CAPTION, "width": 40, "height": 30, "noun_chunks": ITEMS, "ref_exps": ITEMS}
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(3):
            for suffix, data in (("png", image.getvalue()), ("json", json.dumps(record).encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder / "00000.tar")


def _grit(folder: Path) -> list[dict]:
    return [{"shards": _shards(folder), "task": task} for task in ("refer", "identify", "grounding")]


def _web_captions(folder: Path) -> list[dict]:
    return [{"shards": [_shards(folder)]}]


MADE = {
    "refcoco": _refcoco,
    "vsr": _vsr,
    "visual_genome": _visual_genome,
    "flickr30k": _flickr30k,
    "grit": _grit,
    "laion": _web_captions,
    "cc3m": _web_captions,
    "sbu": _web_captions,
}


@pytest.fixture(params=MADE)
def opened(request, tmp_path):
    return [open_dataset(request.param, options) for options in MADE[request.param](tmp_path)]


def test_readers_are_registered_and_have_a_card():
    cards = {file.stem for file in (Path(__file__).parents[1] / "datasets").glob("*.md")}
    assert set(MADE) <= set(DATASETS) and set(MADE) <= cards


@pytest.mark.parametrize("name", MADE)
def test_yaml_of_a_card_uses_options_of_the_reader(name):
    card = (Path(__file__).parents[1] / "datasets" / f"{name}.md").read_text(encoding="utf-8")
    ((source,),) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", card, re.DOTALL))
    assert source["name"] == name
    with pytest.raises(UserError, match="no |not a folder|missing") as caught:  # but every option is known
        open_dataset(name, source["options"])
    assert "option" not in caught.value.given


def test_samples_are_well_formed(opened):
    for dataset in opened:
        assert len(dataset) > 0 and isinstance(dataset.problems, ProblemCounter) and not dataset.problems
        for sample in map(dataset.__getitem__, range(len(dataset))):
            assert isinstance(sample, Sample) and sample.key and sample.question_answers
            for exchange in sample.question_answers:
                assert exchange.task in TASKS
                for box in (box for phrase in exchange.phrases for box in phrase.boxes):
                    width, height = sample.size
                    assert isinstance(box, Box) and all(type(v) is float for v in box.xyxy)
                    assert 0 <= box.x1 < box.x2 <= width and 0 <= box.y1 < box.y2 <= height
            turns = render(sample)
            assert [t.role for t in turns] == ["user", "assistant"] * len(sample.question_answers)
            assert all("{}" not in piece for t in turns for piece in t.pieces if isinstance(piece, str))


def test_records_depend_on_their_index_only(opened):
    for dataset in opened:
        there = [dataset[i] for i in range(len(dataset))]
        back = [dataset[i] for i in reversed(range(len(dataset)))][::-1]
        copy = pickle.loads(pickle.dumps(dataset))
        assert there == back == [copy[i] for i in range(len(copy))]
        assert len({sample.key for sample in there}) == len(there)
        assert dataset[-1] == there[-1] and list(copy.problems.lines()) == list(dataset.problems.lines())
        with pytest.raises(IndexError):
            dataset[len(dataset)]
        assert pickle.loads(pickle.dumps(there)) == there  # samples travel from workers


def test_no_image_is_opened(opened, monkeypatch):
    """Pillow is never asked, and no file that is an image is opened."""
    real = builtins.open

    def guarded(file, *args, **kwargs):
        assert not str(file).endswith((".jpg", ".png")), f"{file} was opened"
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was decoded"))
    monkeypatch.setattr(builtins, "open", guarded)
    for dataset in opened:
        assert [dataset[i].image is not None for i in range(len(dataset))] == [True] * len(dataset)


def test_missing_images_are_listed_and_their_rows_kept(opened):
    for dataset in opened:
        if not hasattr(dataset, "missing_images"):  # of shards: such records are left out and counted
            continue
        lost = dataset.missing_images()
        held = {dataset[i].image for i in range(len(dataset)) if isinstance(dataset[i].image, Path)}
        assert set(lost) == held and lost == sorted(held)


@pytest.mark.parametrize("name", MADE)
def test_missing_root_raises_user_error(name, tmp_path):
    where = (
        {"shards": f"{tmp_path}/no/*.tar"} if name in ("grit", "laion", "cc3m", "sbu") else {"root": f"{tmp_path}/no"}
    )
    with pytest.raises(UserError, match=f"{tmp_path}/no"):
        open_dataset(name, where)
