"""The reader of Visual Genome's regions on its genuine fragment, and on files that are wrong."""

import json
from pathlib import Path

import pytest

from minigptv2.data.json_files import iter_json_list
from minigptv2.data.readers.visual_genome import IMAGES, REGIONS, VisualGenome
from minigptv2.errors import UserError
from minigptv2.tasks import render

GENUINE = Path(__file__).parent / "data" / "visual_genome"
REGION = {"region_id": 5, "image_id": 1, "phrase": "a green clock", "x": 10, "y": 20, "width": 30, "height": 40}
SIZES = [{"image_id": 1, "width": 100, "height": 80, "url": "VG_100K_2/1.jpg"}]


def _written(folder: Path, regions: list, sizes=SIZES) -> str:
    (folder / REGIONS).write_text(json.dumps([{"id": 1, "regions": regions}]))
    (folder / IMAGES).write_text(json.dumps(sizes))
    return str(folder)


def test_every_genuine_region_is_read():
    """One of the three images has no size in the fragment: its 6 regions are counted, none is guessed."""
    rows = [region for image in json.loads((GENUINE / REGIONS).read_text()) for region in image["regions"]]
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in json.loads((GENUINE / IMAGES).read_text())}
    rows = [row for row in rows if row["image_id"] in sizes]
    dataset = VisualGenome(str(GENUINE), max_area=0)
    assert len(dataset) == len(rows) == 24
    assert dict(dataset.problems.counts) == {f"an 'image_id' that {IMAGES} lacks": 6}
    for index, row in enumerate(rows):
        sample = dataset[index]
        (phrase,) = sample.question_answers[0].phrases
        x, y, w, h = (row[side] for side in ("x", "y", "width", "height"))
        assert phrase.boxes[0].xyxy == (x, y, x + w, y + h) and phrase.text == " ".join(row["phrase"].split())
        assert sample.size == sizes[row["image_id"]] and sample.image.name == f"{row['image_id']}.jpg"
        assert sample.key == f"visual_genome region {row['region_id']}"
        assert x + w <= sample.size[0] and y + h <= sample.size[1]


def test_max_area_defaults_to_the_published_value():
    dataset, everything = VisualGenome(str(GENUINE)), VisualGenome(str(GENUINE), max_area=0)
    areas = [everything[i].question_answers[0].phrases[0].boxes[0].area for i in range(len(everything))]
    assert len(dataset) == sum(area < 16384 for area in areas) == 14
    assert dataset.too_large == len(everything) - len(dataset) == 10


def test_both_tasks_and_image_folders(tmp_path):
    root = _written(tmp_path, [REGION])
    assert VisualGenome(root).missing_images() == [tmp_path / "VG_100K" / "1.jpg"]
    for folder in ("", "VG_100K_2", "VG_100K"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "1.jpg").touch()
        dataset = VisualGenome(root)
        assert dataset[0].image == tmp_path / folder / "1.jpg" and dataset.missing_images() == []
    question, answer = render(VisualGenome(root, task="refer")[0])
    assert "a green clock" in question.pieces[-1]
    back, words = render(VisualGenome(root, task="identify")[-1])
    assert answer.pieces[0] in back.pieces[-1] and words.pieces == ("a green clock",)
    with pytest.raises(IndexError):
        VisualGenome(root)[1]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"width": 0}, "a box without area"),
        ({"x": 100}, "a box outside the image"),
        ({"y": "2"}, "a 'y' of the wrong type"),
        ({"x": float("inf")}, "a box that is not four numbers"),
        ({"x": 10**400}, "a box that is not four numbers"),
        ({"phrase": ""}, "an empty 'phrase'"),
        ({"image_id": 2}, f"an 'image_id' that {IMAGES} lacks"),
        ({"region_id": 1 << 70}, "a 'region_id' of more than 64 bits"),
        ({"region_id": None}, "a 'region_id' of the wrong type"),
    ],
)
def test_malformed_regions_are_counted(tmp_path, change, kind):
    dataset = VisualGenome(_written(tmp_path, [REGION, REGION | change, 7, REGION | {"region_id": 8, "x": -4}]))
    assert dataset.problems.counts == {kind: 1, "a record that is not a JSON object": 1}
    assert [dataset[i].key for i in range(2)] == ["visual_genome region 5", "visual_genome region 8"]
    assert dataset[1].question_answers[0].phrases[0].boxes[0].xyxy == (0, 20, 26, 60)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", '[{"a": 1}, {"b"', '[{"a": 1} x]', "[1e", '["x'])
def test_invalid_or_truncated_list_raises_user_error(tmp_path, text):
    file = tmp_path / "list.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"list\.json is (damaged|not JSON|empty)"):
        list(iter_json_list(file))


def test_long_list_is_read_incrementally(tmp_path, monkeypatch):
    items = [{"number": n, "text": "é{[" * (n % 7)} for n in range(300)] + [[1, [2]], 12345, "a]b", 3.25, None, {}]
    file = tmp_path / "list.json"
    for dumped in (json.dumps(items), json.dumps(items, indent=2, ensure_ascii=False), "\ufeff " + json.dumps(items)):
        file.write_text(dumped, encoding="utf-8")
        for chunk in (1, 7, 64, 1 << 20):
            monkeypatch.setattr("minigptv2.data.json_files._CHUNK", chunk)
            assert list(iter_json_list(file)) == items


def test_missing_files_raise_user_error(tmp_path):
    with pytest.raises(UserError, match=rf"{REGIONS} is missing"):
        VisualGenome(str(tmp_path))
    _written(tmp_path, [REGION])
    (tmp_path / REGIONS).write_text('[{"id": 1, "regions": [')
    with pytest.raises(UserError, match=rf"{REGIONS} is not JSON: it ends in the middle"):
        VisualGenome(str(tmp_path))
    with pytest.raises(UserError, match="task"):
        VisualGenome(str(tmp_path), task="vqa")
