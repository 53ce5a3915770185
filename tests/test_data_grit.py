"""The reader of GRIT on a whole record, in tar shards and in parquet files, and on records that are wrong."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from minigptv2.data.readers.grit import Grit
from minigptv2.errors import UserError
from minigptv2.images import open_image
from minigptv2.tasks import render

CAPTION = "Two dogs and a cat near a red car"
RECORD = {
    "caption": CAPTION,
    "width": 200,
    "height": 100,
    "key": "000000012",
    "noun_chunks": [
        [0, 8, 0.1, 0.2, 0.3, 0.4, 0.9],
        [0, 8, 0.5, 0.2, 0.7, 0.4, 0.8],
        [13, 18, 0, 0, 0.5, 1, 0.7],
        [24, 33, 0.5, 0, 1, 1, 0.95],
    ],
    "ref_exps": [
        [0, 8, 0.1, 0.2, 0.3, 0.4, 0.9],
        [0, 8, 0.5, 0.2, 0.7, 0.4, 0.8],
        [13, 33, 0, 0, 0.5, 1, 0.7],
        [24, 33, 0.5, 0, 1, 1, 0.95],
    ],
}


def _image(size) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


def _shard(folder: Path, *records, images: bool = True) -> str:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, record in enumerate(records):
            inside = [(".json", json.dumps(record).encode())]
            if images:
                inside.insert(0, (".png", _image((20, 10))))
            for suffix, data in inside:
                info = tarfile.TarInfo(f"{number:09d}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder / "00000.tar")


def test_complete_record(tmp_path):
    """GRIT's records may not be passed on: this one has all their keys, numbers as long as theirs, and made words."""
    record = {
        "key": "373789709",
        "clip_similarity_vitb32": 0.353271484375,
        "clip_similarity_vitl14": 0.2958984375,
        "id": 1795296605919,
        "url": "https://example.org/a-sign.jpg",
        "caption": "a tin sign with a paper note that says open",
        "width": 1024,
        "height": 693,
        "noun_chunks": [
            [16, 28, 0.19644993543624878, 0.12345678911451235, 0.8812349438667297, 0.9123456789, 0.7123456835746765],
            [0, 10, 0.0191234, 0.01300123, 0.9812345051765442, 0.99, 0.8501234650611877],
        ],
        "ref_exps": [
            [16, 43, 0.19644993543624878, 0.12345678911451235, 0.8812349438667297, 0.9123456789, 0.7123456835746765],
            [0, 43, 0.0191234, 0.01300123, 0.9812345051765442, 0.99, 0.8501234650611877],
        ],
    }
    shard = _shard(tmp_path, record)
    caption = Grit(shard)[0]
    assert caption.size == (1024, 693) and not caption.side_by_side and caption.key == "grit 00000.tar 000000000"
    (exchange,) = caption.question_answers
    assert exchange.answer == "{} with {} that says open"
    assert [p.text for p in exchange.phrases] == ["a tin sign", "a paper note"]
    for phrase, item in zip(exchange.phrases, sorted(record["noun_chunks"])):
        (box,) = phrase.boxes
        assert box.xyxy == pytest.approx((item[2] * 1024, item[3] * 693, item[4] * 1024, item[5] * 693))
        assert 0 <= box.x1 < box.x2 <= 1024 and 0 <= box.y1 < box.y2 <= 693
    for task in ("refer", "identify"):
        sample = Grit(shard, task)[0]
        assert sample.side_by_side and [e.phrases[0].text for e in sample.question_answers] == [
            record["caption"],
            "a paper note that says open",
        ]
    assert not Grit(shard).problems


def test_all_tasks(tmp_path):
    shard = _shard(tmp_path, RECORD)
    sample = Grit(shard)[0]
    (exchange,) = sample.question_answers
    assert exchange.answer == "{} and {} near {}" and len(exchange.phrases[0].boxes) == 2
    assert exchange.phrases[1].boxes[0].xyxy == (0, 0, 100, 100)
    assert render(sample)[1].pieces[0].endswith("near <p>a red car</p> {<50><0><100><100>}")
    refer = Grit(shard, "refer")[0]  # two dogs have no one box
    assert [e.phrases[0].text for e in refer.question_answers] == ["a cat near a red car", "a red car"]
    identify = Grit(shard, "identify")[0]
    assert [e.phrases[0].text for e in identify.question_answers] == [
        "Two dogs",
        "Two dogs",
        "a cat near a red car",
        "a red car",
    ]
    assert all(len(e.phrases[0].boxes) == 1 for e in identify.question_answers)
    sure = Grit(shard, "identify", min_score=0.85)[0]
    assert [e.phrases[0].text for e in sure.question_answers] == ["Two dogs", "a red car"]
    assert open_image(sample.image).size == (20, 10)  # made smaller by the download: the boxes are shares


def test_caption_in_a_text_file(tmp_path):
    """img2dataset writes the caption into a .txt of its own."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        bare = {k: v for k, v in RECORD.items() if k != "caption"}
        for suffix, data in (("png", _image((9, 9))), ("txt", CAPTION.encode()), ("json", json.dumps(bare).encode())):
            info = tarfile.TarInfo(f"1.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert Grit(str(tmp_path / "a.tar"))[0].question_answers == Grit(_shard(tmp_path, RECORD))[0].question_answers


def test_ambiguous_expressions_are_not_asked_for(tmp_path):
    record = RECORD | {"caption": "a cat and a cat", "ref_exps": [[0, 5, 0, 0, 0.5, 1, 1], [10, 15, 0.5, 0, 1, 1, 1]]}
    with pytest.raises(UserError, match="no expression for one box"):
        Grit(_shard(tmp_path, record), "refer")
    assert len(Grit(_shard(tmp_path, record), "identify")[0].question_answers) == 2


def test_first_and_longest_of_overlapping_chunks_is_used(tmp_path):
    chunks = [[4, 12, 0, 0, 1, 1, 1], [0, 8, 0, 0, 0.5, 1, 1], [0, 3, 0, 0, 0.1, 1, 1], [13, 18, 0, 0, 1, 1, 1]]
    (exchange,) = Grit(_shard(tmp_path, RECORD | {"noun_chunks": chunks}))[0].question_answers
    assert exchange.answer == "{} and {} near a red car"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"caption": None}, "a 'caption' of the wrong type"),
        ({"caption": CAPTION + " {}"}, "a caption with curly brackets"),
        ({"width": 0}, "an image without pixels"),
        ({"height": "100"}, "a size or position that is not a whole number"),
        ({"noun_chunks": None}, "no list 'noun_chunks'"),
        ({"noun_chunks": "[[0, 8"}, "no list 'noun_chunks'"),
        ({"noun_chunks": []}, "no usable item in 'noun_chunks'"),
    ],
)
def test_malformed_records_are_counted(tmp_path, change, kind):
    dataset = Grit(_shard(tmp_path, RECORD, RECORD | change, RECORD))
    assert len(dataset) == 2 and dataset[1].key.endswith("000000002")
    assert list(dataset.problems.lines()) == [f"1 x {kind}: 00000.tar 000000001"]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ([0, 8, 0.1], "an item of 'noun_chunks' that is not six or seven numbers"),
        ("x", "an item of 'noun_chunks' that is not six or seven numbers"),
        ([0, 99, 0, 0, 1, 1, 1], "an item of 'noun_chunks' outside the caption"),
        ([-3, 3, 0, 0, 1, 1, 1], "an item of 'noun_chunks' outside the caption"),
        ([0.5, 3, 0, 0, 1, 1, 1], "a size or position that is not a whole number"),
        ([0, 8, 0.3, 0, 0.3, 1, 1], "a box without area"),
        ([0, 8, 1.2, 0, 1.3, 1, 1], "a box outside the image"),
        ([0, 8, "0", 0, 1, 1, 1], "a box that is not four numbers"),
    ],
)
def test_malformed_items_are_counted_and_others_kept(tmp_path, item, kind):
    dataset = Grit(_shard(tmp_path, RECORD | {"noun_chunks": [item, *RECORD["noun_chunks"]]}))
    assert dict(dataset.problems.counts) == {kind: 1} and len(dataset[0].question_answers[0].phrases) == 3


def test_records_without_image_are_counted(tmp_path):
    with pytest.raises(UserError, match="1 x no image"):
        Grit(_shard(tmp_path, RECORD, images=False))


def test_parquet_with_images_on_disk(tmp_path):
    """As the annotation is published: whole numbers are floats. What was not downloaded is counted."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {k: [RECORD[k]] * 3 for k in ("caption", "width", "height")} | {"key": ["a", "b", "c"]}
    for name in ("noun_chunks", "ref_exps"):
        columns[name] = [[[float(n) for n in item] for item in RECORD[name]]] * 3
    parquet.write_table(pyarrow.table(columns), tmp_path / "coyo.parquet", row_group_size=2)
    (tmp_path / "pictures").mkdir()
    for name in "ac":
        (tmp_path / "pictures" / f"{name}.jpg").write_bytes(_image((200, 100)))
    for task in ("refer", "identify", "grounding"):
        dataset = Grit(str(tmp_path / "coyo.parquet"), task, images=str(tmp_path / "pictures"), image="key")
        assert [dataset[i].image.name for i in range(len(dataset))] == ["a.jpg", "c.jpg"]
        assert list(dataset.problems.lines()) == ["1 x an image that is not on the disk: coyo.parquet row 1"]
        assert dataset[1].question_answers == Grit(_shard(tmp_path, RECORD), task)[0].question_answers
