"""The reader of RefCOCO on its genuine rows, on the genuine pickle, and on files that are wrong."""

import json
import os
import pickle
from pathlib import Path

import pytest

from minigptv2.data.dataset import open_dataset
from minigptv2.data.readers.refcoco import RefCoco, read_pickle
from minigptv2.errors import UserError
from minigptv2.images import open_image
from minigptv2.tasks import render

FLAT = Path(__file__).parent / "data" / "refcocog"
ORIGINAL = FLAT / "original"

# refs(unc).p as Python 2 writes it at protocol 0: byte strings, one of them not ASCII, unicode and a long number
PYTHON2 = (
    b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'ref_id'\np4\nL7L\nsS'ann_id'\np5\nI11\nsS'image_id'\np6\nI9\n"
    b"sS'sentences'\np7\n(lp8\n(dp9\nS'sent'\np10\nS'caf\\xe9 sign'\np11\nsa(dp12\ng10\nVthe left one\np13\nsa"
    b"sS'file_name'\np14\nS'COCO_train2014_000000000009_3.jpg'\np15\nsa."
)
INSTANCES = {
    "images": [{"id": 9, "width": 100, "height": 80}],
    "annotations": [{"id": 11, "image_id": 9, "bbox": [10, 20, 30.5, 40], "segmentation": []}],
}
ROW = {
    "img_id": "COCO_train2014_000000000009_3",
    "sents": "the left one",
    "bbox": [10, 20, 30, 40],
    "height": 80,
    "width": 100,
}


def _original(folder: Path, references: bytes, instances=INSTANCES, by: str = "unc") -> Path:
    (folder / f"refs({by}).p").write_bytes(references)
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder


def _flat(folder: Path, rows, name: str = "refcoco_val.json") -> Path:
    (folder / name).write_text(json.dumps(rows))
    return folder


def numbers(dataset: RefCoco) -> list[int]:
    """The row number of each sample."""
    return [row.number for row in dataset.records]


@pytest.mark.parametrize(("split", "count", "missing"), [("val", 28, 13), ("test", 25, 12)])
def test_every_genuine_row_is_read(split, count, missing):
    dataset = RefCoco(str(FLAT), "refcocog", split)
    assert len(dataset) == count and numbers(dataset) == list(range(count))
    assert not dataset.problems and dataset.excluded == []
    assert len(dataset.missing_images()) == missing
    rows = json.loads((FLAT / f"refcocog_{split}.json").read_text())
    for row, record in zip(rows, dataset.records, strict=True):
        x, y, w, h = row["bbox"]
        assert record.words == row["sents"] and record.size == (row["width"], row["height"])
        assert record.image.name == row["img_id"][:27] + ".jpg"
        assert record.box.xyxy == pytest.approx((x, y, x + w, y + h), abs=1)  # clipped by less than a pixel
        assert (
            0 <= record.box.x1 < record.box.x2 <= row["width"] and 0 <= record.box.y1 < record.box.y2 <= row["height"]
        )


@pytest.mark.parametrize(
    ("name", "split"), [(n, s) for n in ("refcoco", "refcoco+") for s in ("val", "testA", "testB")]
)
def test_each_data_set_and_split_reads_its_file(tmp_path, name, split):
    for file in ("refcoco", "refcoco+"):
        for part in ("val", "testA", "testB"):
            _flat(tmp_path, [ROW | {"sents": f"{file} {part}"}], f"{file}_{part}.json")
    assert [record.words for record in RefCoco(str(tmp_path), name, split).records] == [f"{name} {split}"]


@pytest.mark.parametrize(("split", "rows"), [("val", 4), ("test", 2)])
def test_images_have_the_annotated_size(split, rows):
    dataset = open_dataset("refcoco", {"root": str(FLAT), "name": "refcocog", "split": split})
    for index in range(rows):
        assert open_image(dataset[index].image).size == dataset[index].size


def test_prompts_of_both_tasks():
    row = json.loads((FLAT / "refcocog_val.json").read_text())[17]
    asked = RefCoco(str(FLAT), "refcocog", "val")[17]
    assert asked.key == "refcocog val row 17"
    question, answer = render(asked)
    assert row["sents"] in question.pieces[-1]
    named = RefCoco(str(FLAT), "refcocog", "val", task="identify")[17]
    back_question, back_answer = render(named)
    assert back_answer.pieces == (row["sents"],)
    assert answer.pieces[0] in back_question.pieces[-1]  # the same box text


def test_original_and_flat_format_agree():
    """Ten of the fifteen references of the genuine fragment are in the flat files too."""
    flat = {
        (record.image.name, record.words.replace(" ", "")): record.box
        for split in ("val", "test")
        for record in RefCoco(str(FLAT), "refcocog", split).records
    }
    counts, agreeing = [], 0
    for split in ("train", "val", "test"):
        dataset = RefCoco(str(ORIGINAL), "refcocog", split)
        assert not dataset.problems and numbers(dataset) == list(range(len(dataset)))
        counts.append(len(dataset))
        for record in dataset.records:
            words = "".join(c for c in record.words if c.isalnum())
            if (record.image.name, words) in flat:
                assert record.box.xyxy == pytest.approx(flat[record.image.name, words].xyxy, abs=0.01)
                agreeing += 1
    assert counts == [9, 10, 9] and agreeing == 16


def test_python_2_pickle_is_read(tmp_path):
    dataset = RefCoco(str(_original(tmp_path, PYTHON2)), split="val")
    assert [r.words for r in dataset.records] == ["café sign", "the left one"]
    assert dataset.records[0].box.xyxy == (10, 20, 40.5, 60) and dataset.records[0].size == (100, 80)
    assert dataset.missing_images() == [tmp_path / "train2014" / "COCO_train2014_000000000009.jpg"]


class _Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_refused(tmp_path, protocol):
    _original(tmp_path, pickle.dumps([{"split": "val", "bad": _Code()}], protocol))
    with pytest.raises(UserError, match=rf"{os.system.__module__}\.system"):
        RefCoco(str(tmp_path), split="val")


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'exit 1'\ntR.",
        b"(S'exit 1'\nios\nsystem\n.",
        b"Pwhat\n.",
        b"\x80\x02\x82\x01.",
        b"c__builtin__\neval\n.",
        b"c__builtin__\nset\n.",
    ],
)
def test_every_opcode_that_loads_code_is_refused(tmp_path, data):
    (tmp_path / "refs.p").write_bytes(data)
    with pytest.raises(UserError, match="would load|is damaged"):
        read_pickle(tmp_path / "refs.p")


@pytest.mark.parametrize("cut", [0, 1, 5, 60, len(PYTHON2) - 1])
def test_truncated_pickle_raises_user_error(tmp_path, cut):
    with pytest.raises(UserError, match=r"refs\(unc\)\.p is damaged"):
        RefCoco(str(_original(tmp_path, PYTHON2[:cut])), split="val")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [10, 20, 0, 40]}, "a box without area"),
        ({"bbox": [10, 20, -5, 40]}, "a box without area"),
        ({"bbox": [100, 20, 5, 5]}, "a box outside the image"),
        ({"bbox": [10, 20, 30]}, "a box that is not four numbers"),
        ({"bbox": [10, 20, 30, "40"]}, "a box that is not four numbers"),
        ({"bbox": [10, 20, 30, float("nan")]}, "a box that is not four numbers"),
        ({"bbox": None}, "a 'bbox' of the wrong type"),
        ({"sents": "  "}, "an empty 'sents'"),
        ({"sents": 3}, "a 'sents' of the wrong type"),
        ({"width": 0}, "an image without pixels"),
        ({"height": True}, "a 'height' of the wrong type"),
        ({"img_id": "9"}, "an 'img_id' that is not one of COCO"),
    ],
)
def test_malformed_rows_are_counted(tmp_path, change, kind):
    dataset = RefCoco(str(_flat(tmp_path, [ROW, ROW | change, ROW])), split="val")
    assert numbers(dataset) == [0, 2] and dataset.excluded == [(1, kind)]
    assert list(dataset.problems.lines()) == [f"1 x {kind}: refcoco_val.json row 1"]
    assert dataset[1].key == "refcoco val row 2"


@pytest.mark.parametrize("row", [None, [], "x", {}, {k: v for k, v in ROW.items() if k != "sents"}])
def test_rows_with_missing_keys_are_counted(tmp_path, row):
    dataset = RefCoco(str(_flat(tmp_path, [row, ROW])), split="val")
    assert numbers(dataset) == [1] and dataset.excluded[0][0] == 0 and len(list(dataset.problems.lines())) == 1


def test_duplicate_rows_of_the_flat_format_are_kept(tmp_path):
    assert len(RefCoco(str(_flat(tmp_path, [ROW, ROW])), split="val")) == 2


def test_box_over_the_edge_is_clipped(tmp_path):
    dataset = RefCoco(str(_flat(tmp_path, [ROW | {"bbox": [-5, 60, 50, 40]}])), split="val")
    assert dataset.records[0].box.xyxy == (0, 60, 45, 80)


def _reference(**change) -> dict:
    sentences = [{"sent": "a cup"}, {"sent": "the cup"}]
    return {"split": "val", "ref_id": 1, "ann_id": 11, "image_id": 9, "sentences": sentences} | change


@pytest.mark.parametrize(
    ("change", "kind", "excluded"),
    [
        ({"ref_id": 0}, "a second reference of the same 'ref_id'", 2),
        ({"ann_id": 12}, "an 'ann_id' that instances.json lacks", 2),
        ({"image_id": 8}, "an 'image_id' that instances.json lacks", 2),
        ({"image_id": 10}, "a box of another image", 2),
        ({"ann_id": 13}, "a box without area", 2),
        ({"sentences": []}, "a reference without sentences", 0),
        ({"sentences": [{"sent": ""}, {"sent": "it"}]}, "an empty 'sent'", 1),
    ],
)
def test_malformed_reference_keeps_other_row_numbers(tmp_path, change, kind, excluded):
    instances = {
        "images": [*INSTANCES["images"], {"id": 10, "width": 50, "height": 50}],
        "annotations": [*INSTANCES["annotations"], {"id": 13, "image_id": 9, "bbox": [1, 1, 0, 0]}],
    }
    references = [_reference(ref_id=0), _reference(split="train"), _reference(**change), _reference(ref_id=2)]
    dataset = RefCoco(str(_original(tmp_path, pickle.dumps(references, 2), instances)), split="val")
    assert [e[1] for e in dataset.excluded] == [kind] * excluded and kind in dataset.problems.counts
    everything = sorted(numbers(dataset) + [row for row, _ in dataset.excluded])
    assert everything == list(range(4 + len(references[2]["sentences"])))


def test_missing_files_raise_user_error(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        RefCoco(str(tmp_path / "nowhere"), split="val")
    with pytest.raises(UserError, match=r"holds neither refcoco_val\.json nor refs\(unc\)\.p"):
        RefCoco(str(tmp_path), split="val")
    _original(tmp_path, PYTHON2)
    with pytest.raises(UserError, match="has no split 'testA'") as caught:
        RefCoco(str(tmp_path), split="testA")
    assert "val" in caught.value.allowed
    with pytest.raises(UserError, match="task"):
        RefCoco(str(tmp_path), split="val", task="detection")
    with pytest.raises(UserError, match="dataset"):
        RefCoco(str(tmp_path), dataset="refcocoplus", split="val")
    with pytest.raises(UserError, match="not a folder"):
        RefCoco(str(tmp_path), split="val", images=str(tmp_path / "pictures"))
    (tmp_path / "instances.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"instances\.json is not JSON: it ends in the middle"):
        RefCoco(str(tmp_path), split="val")


@pytest.mark.parametrize("place", ["", "train2014", "images", "train2017", "images/mscoco/images/train2014"])
def test_images_are_found_in_common_layouts(tmp_path, place):
    _flat(tmp_path, [ROW])
    folder = tmp_path / "coco"
    name = "000000000009.jpg" if "2017" in place else "COCO_train2014_000000000009.jpg"
    (folder / place).mkdir(parents=True)
    (folder / place / name).touch()
    dataset = RefCoco(str(tmp_path), split="val", images=str(folder))
    assert dataset[0].image == folder / place / name and dataset.missing_images() == []
