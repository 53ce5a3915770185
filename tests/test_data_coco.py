"""COCO's detection JSON as tools and people write it: one parser for training, evaluation and `data check`."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from minigptv2.boxes import Box
from minigptv2.data.readers.coco_detection import CocoDetection
from minigptv2.data.validate import check
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import open_benchmark
from minigptv2.tasks import render

NAMES = ("a.jpg", "b.jpg", "c.jpg")


def image(file: Path, size=(200, 100), orientation: int = 1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image, exif = Image.new("RGB", size, "white"), Image.Exif()
    ImageDraw.Draw(image).rectangle((20, 10, 79, 59), fill="red")
    exif[0x0112] = orientation
    image.save(file, exif=exif)


def coco(folder: Path, names=NAMES, **options) -> dict:
    for name in names:
        image(folder / name, **options)
    return {
        "images": [{"id": i, "file_name": n, "width": 200, "height": 100} for i, n in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10, 60, 50], "area": 3000, "iscrowd": 0}
            for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "cat"}],
    }


def written(folder: Path, content: dict) -> str:
    file = folder / "ann.json"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(file)


def taught(data) -> dict[str, str]:
    """Name of each image -> all answers about it."""
    samples = [data[i] for i in range(len(data))]
    return {Path(s.image).name: " | ".join(str(t.pieces[-1]) for t in render(s)) for s in samples}


def every(content: dict, **changes) -> None:
    for row in content["annotations"]:
        row |= changes


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda c: every(c, area=None), "an 'area'"),
        (lambda c: every(c, area="3000"), "an 'area'"),
        (lambda c: every(c, iscrowd="0"), ""),
        (lambda c: every(c, iscrowd="maybe"), "an 'iscrowd'"),
        (lambda c: [r.update(id=str(r["id"])) for r in c["images"]], ""),
        (lambda c: [r.update(id=float(r["id"])) for r in c["categories"]], ""),
        (lambda c: [r.update(image_id=f"{r['image_id']}") for r in c["annotations"]], ""),
        (lambda c: [r.pop("width") for r in c["images"]], "an image without a usable width"),
        (lambda c: [r.update(width="200", height=100.0) for r in c["images"]], ""),
        (lambda c: c["annotations"].append(c["annotations"][0] | {"id": 9}), "the same box twice"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "an annotation whose 'id'"),
        (lambda c: every(c, bbox=["20", "10", "60", "50"]), "a box whose numbers are text"),
        (lambda c: every(c, bbox=[0.1, 0.1, 0.3, 0.5]), "a box in fractions of 0..1"),
        (lambda c: every(c, bbox=[120, 60, 180, 90]), "a file whose boxes all fit as x1"),
        (lambda c: c["categories"][0].update(name="ball, red</p>"), "a category name with a comma"),
    ],
)
def test_training_and_check_handle_quirks_alike(tmp_path, change, kind):
    content = coco(tmp_path)
    change(content)
    file = written(tmp_path, content)
    report = check(file)
    try:
        data, told = CocoDetection(file), ""
    except UserError as error:
        data, told = None, str(error)
    assert (report.code == 2) == (data is None)
    told = told or " ".join(data.problems.counts)
    assert kind in told and kind in " ".join(report.problems.counts)
    if not kind:
        assert not report.problems and taught(data).keys() == set(NAMES)


def test_ambiguous_ids_are_not_used(tmp_path):
    content = coco(tmp_path, (*NAMES, "d.jpg"))
    content["images"][3]["id"] = 2
    assert taught(CocoDetection(written(tmp_path, content))).keys() == {"a.jpg", "c.jpg"}
    content = coco(tmp_path)
    content["categories"].append({"id": 1, "name": "cup"})
    with pytest.raises(UserError, match="gives no record"):
        CocoDetection(written(tmp_path, content))


@pytest.mark.parametrize(
    ("more", "absent"),
    [
        ([{"id": 0, "name": "toys", "supercategory": "none"}], "toys"),
        ([{"id": 3, "name": "Ball"}], "Ball"),
        ([{"id": 3, "name": "balls"}], "balls"),
        ([{"id": 3, "name": "orb", "synonyms": ["ball"]}], "orb"),
        ([{"id": 3, "name": "red ball", "supercategory": "ball"}], "red ball"),
    ],
)
def test_label_under_another_spelling_is_not_absent(tmp_path, more, absent):
    content = coco(tmp_path)
    content["categories"] += more
    answers = taught(CocoDetection(written(tmp_path, content), questions_per_image=99))
    assert all(f"no {absent} in" not in text and "no cat in" in text for text in answers.values())


def test_image_listed_twice_is_one_record(tmp_path):
    content = coco(tmp_path)
    content["images"].append({"id": 9, "file_name": "./a.jpg", "width": 200, "height": 100})
    content["annotations"].append({"id": 9, "image_id": 9, "category_id": 2, "bbox": [100, 10, 60, 50]})
    data = CocoDetection(written(tmp_path, content), questions_per_image=99)
    assert len(data) == 3 and "no cat" not in taught(data)["a.jpg"] and "no ball" not in taught(data)["a.jpg"]


@pytest.mark.parametrize("name", [" a.jpg", "a  b.jpg", "a\u00a0b.jpg", "a\u3000b.jpg", "a\u202fb.jpg", "sub/a.jpg"])
def test_file_names_are_kept_exactly(tmp_path, name):
    file = written(tmp_path, coco(tmp_path, (name,)))
    assert Path(CocoDetection(file)[0].image) == tmp_path / name
    (item,) = open_benchmark("coco_detection", {"root": str(tmp_path), "annotations": "ann.json"}).items()
    assert Path(item.image) == tmp_path / name


def test_backslashes_and_unicode_forms_of_file_names(tmp_path):
    content = coco(tmp_path, ("sub/a.jpg", "caf\u00e9.jpg"))
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "sub\\a.jpg", "cafe\u0301.jpg"
    assert taught(CocoDetection(written(tmp_path, content))).keys() == {"a.jpg", "caf\u00e9.jpg"}


def test_evaluation_uses_the_image_of_file_name(tmp_path):
    names = ("000000000002.jpg", "000000000001.jpg")
    written(tmp_path, coco(tmp_path, names))
    items = open_benchmark("coco_detection", {"root": str(tmp_path), "annotations": "ann.json"}).items()
    assert [(i.truth[0], Path(i.image).name) for i in items] == [(1, names[0]), (2, names[1])]


@pytest.mark.parametrize("given", [(200, 100), (100, 200)])
def test_external_results_are_in_the_frame_of_the_file(tmp_path, given):
    from minigptv2.eval import runner

    content = coco(tmp_path, ("a.jpg", "b.jpg"), orientation=6)
    for row in content["images"]:
        row |= {"width": given[0], "height": given[1], "id": f"image-{row['id']}"}
    for row in content["annotations"]:
        row["image_id"] = f"image-{row['image_id']}"
    written(tmp_path, content)
    file, out = tmp_path / "results.json", tmp_path / "back.json"
    rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in content["annotations"]]
    file.write_text(json.dumps(rows))
    options = [f"root={tmp_path}", "annotations=ann.json", f"output={tmp_path / 'o'}"]
    config = Path(__file__).parents[1] / "eval_configs" / "detection.yaml"
    (report,) = runner.run(config, options, predictions=str(file), export_coco=str(out))
    assert report.figures["AP"].value == 1
    assert json.loads(out.read_text()) == rows


@pytest.mark.parametrize(("given", "box"), [((200, 100), Box(40, 20, 90, 80)), ((100, 200), Box(20, 10, 80, 60))])
def test_training_and_evaluation_rotate_boxes_alike(tmp_path, given, box):
    """Orientation 6: the stored 200 x 100 image is 100 x 200 once upright; (20, 10, 80, 60) is (40, 20, 90, 80)."""
    content = coco(tmp_path, ("a.jpg",), orientation=6)
    content["images"][0] |= {"width": given[0], "height": given[1]}
    file = written(tmp_path, content)
    sample = CocoDetection(file)[0]
    assert sample.size == (100, 200)
    assert {b for e in sample.question_answers for p in e.phrases for b in p.boxes} == {box}
    (item,) = open_benchmark("coco_detection", {"root": str(tmp_path), "annotations": "ann.json"}).items()
    assert item.size == (100, 200)
    assert item.truth.objects[0]["bbox"] == [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
    assert check(file).code == 0
    wrong = check(file, orientation="upright" if given == (200, 100) else "stored")
    assert any("`orientation` says" in kind for kind in wrong.problems.counts)
