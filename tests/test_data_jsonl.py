"""A user's own data: the documented form, COCO's JSON on genuine images, `data check` and `show`."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from minigptv2 import cli
from minigptv2.boxes import Box, parse
from minigptv2.data import box_questions
from minigptv2.data.box_questions import LabelledBoxes
from minigptv2.data.dataset import open_dataset
from minigptv2.data.orientation import SWAPPED_SIZE
from minigptv2.data.readers.coco_detection import CocoDetection
from minigptv2.data.readers.jsonl import JsonlDataset
from minigptv2.data.validate import CELL, TURNED, check
from minigptv2.errors import UserError
from minigptv2.images import image_size, open_image
from minigptv2.tasks import render

ROOT = Path(__file__).parents[1]
COCO = ROOT / "tests" / "data" / "coco" / "annotations"
TINY, POSE = COCO / "instances_train2017.json", COCO / "person_keypoints_val2017.json"


def image(file: Path, size=(640, 480), orientation: int = 1) -> Path:
    """A grey JPEG of this size in the file, with an EXIF orientation."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "grey").save(file, exif=exif)
    return file


def lines(folder: Path, *rows) -> str:
    """A JSON Lines file of these rows; text is a line as it is."""
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / "own.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def said(sample) -> list[str]:
    return ["".join(p for p in turn.pieces if isinstance(p, str)) for turn in render(sample)]


def pairs(data) -> list[tuple[str, str]]:
    texts = [said(data[i]) for i in range(len(data))]
    return [pair for text in texts for pair in zip(text[::2], text[1::2], strict=True)]


# ---- the documented form ----


@pytest.fixture
def documented(tmp_path) -> str:
    """The example of docs/data.md with its images."""
    (example,) = re.findall(r"```jsonl\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    image(tmp_path / "yard.jpg")
    image(tmp_path / "street" / "corner.png")
    return lines(tmp_path, *example.splitlines())


def test_documented_example(documented):
    data = JsonlDataset(documented, questions_per_image=100)
    assert not data.problems
    assert [data[i].key for i in range(len(data))] == [f"own.jsonl line {n}" for n in (1, 1, 2, 3)]
    asked, talked, street, text = (data[i] for i in range(4))
    assert asked.side_by_side and not talked.side_by_side
    assert asked.size == (640, 480)
    answers = dict(zip(said(asked)[::2], said(asked)[1::2], strict=True))
    ball, dogs = "{<6><12><25><38>}", "{<47><42><66><60>}<delim>{<70><44><86><61>}"
    assert answers["[caption] describe the picture."] == "Two dogs run after a ball."
    grounded = f"Two dogs <p>dog</p> {dogs} run after a <p>red ball</p> {ball}."
    assert answers["[grounding] describe the picture with boxes."] == grounded
    assert answers["[vqa] How many dogs are there?"] == "2"
    assert answers["[detection] dog"] == f"<p>dog</p> {dogs}"
    assert answers["[refer] red ball"] == ball
    assert answers[f"[identify] {ball}"] == "red ball"
    assert answers["[refer] cat"] == answers["[detection] cat"] == "There is no cat in the picture."
    assert "[refer] dog" not in answers
    assert said(talked) == [
        "What is there to play with?",
        f"A <p>red ball</p> {ball}, near the fence.",
        "Who wants it?",
        "Both dogs.",
    ]
    assert street.size == (0, 0)
    assert text.image is None
    assert said(text) == ["What can you do?", "I answer questions about images."]


def test_every_key_is_documented():
    from minigptv2.data.readers import jsonl

    text = (ROOT / "docs" / "data.md").read_text()
    for key in (
        *jsonl.KEYS,
        *jsonl.BOX_KEYS,
        *jsonl.QUESTION_KEYS,
        *jsonl.TURN_KEYS,
        "closed",
        "questions_per_image",
        "tasks",
    ):
        assert f"`{key}`" in text, key


def test_xyxy_and_xywh_boxes_are_equal(tmp_path):
    image(tmp_path / "a.jpg", (100, 50))
    one = lines(tmp_path / "1", {"image": "../a.jpg", "boxes": [{"label": "x", "xyxy": [10, 5, 30, 45]}]})
    two = lines(tmp_path / "2", {"image": "a.jpg", "boxes": [{"label": "x", "xywh": [10, 5, 20, 40]}]})
    first, second = JsonlDataset(one), JsonlDataset(two, images=str(tmp_path))
    assert pairs(first) == pairs(second)
    assert first.records[0][0].boxes == {"x": [Box(10, 5, 30, 45)]}


def test_size_is_of_the_upright_image(tmp_path):
    image(tmp_path / "turned.jpg", (60, 100), orientation=6)
    assert image_size(tmp_path / "turned.jpg") == open_image(tmp_path / "turned.jpg").size == (100, 60)
    data = JsonlDataset(lines(tmp_path, {"image": "turned.jpg", "boxes": [{"label": "x", "xyxy": [50, 0, 100, 60]}]}))
    assert data[0].size == (100, 60)
    assert ("[refer] x", "{<50><0><100><100>}") in pairs(data)


def test_options_select_tasks_and_questions(documented):
    assert {q.split()[0] for q, _ in pairs(JsonlDataset(documented, tasks=["refer"]))} == {"[refer]"}
    assert len(JsonlDataset(documented, tasks="chat")) == 2
    assert [len(JsonlDataset(documented, questions_per_image=n)[0].question_answers) for n in (1, 2, 5)] == [1, 2, 5]
    assert pairs(JsonlDataset(documented)) == pairs(JsonlDataset(documented)), "a record is a function of its number"
    with pytest.raises(UserError, match="The option tasks is 'refers'"):
        JsonlDataset(documented, tasks=["refers"])
    with pytest.raises(UserError, match="There is no folder"):
        JsonlDataset(documented, images="nowhere")
    with pytest.raises(UserError, match="The option questions_per_image is 0"):
        JsonlDataset(documented, questions_per_image=0)
    with pytest.raises(UserError, match="The option tasks is empty"):
        JsonlDataset(documented, tasks=[])


@pytest.mark.parametrize(
    "options", [{"file": 2017}, {"file": "x", "questions_per_image": "8"}, {"file": "x", "closed": 1}]
)
def test_options_of_the_wrong_type_are_refused(options):
    with pytest.raises(UserError, match="It must be"):
        open_dataset("own", options)


def test_closed_data_has_absent_labels(tmp_path):
    image(tmp_path / "dog.jpg")
    image(tmp_path / "cat.jpg")
    rows = [{"image": f"{n}.jpg", "boxes": [{"label": n, "xyxy": [0, 0, 99, 99]}]} for n in ("dog", "cat")]
    file = lines(tmp_path, *rows)
    assert not [q for q, a in pairs(JsonlDataset(file, questions_per_image=99)) if "There is no" in a]
    refused = {
        q for q, a in pairs(JsonlDataset(file, questions_per_image=99, closed=True)) if a.startswith("There is no")
    }
    assert refused >= {"[refer] dog", "[refer] cat", "[detection] dog", "[detection] cat"}


GOOD = {"image": "a.jpg", "caption": "fine"}


def _box(**changes) -> dict:
    box = {"label": "dog", "xyxy": [1, 2, 30, 40], **changes}
    return {"image": "a.jpg", "caption": "fine", "boxes": [{k: v for k, v in box.items() if v is not None}]}


@pytest.mark.parametrize(
    ("row", "kind", "where", "kept"),
    [
        ("{oops", "a line that is not JSON", "line 2", 1),
        ("[1]", "a line that is not a JSON object", "line 2", 1),
        ({}, "a line with nothing to learn from", "line 2", 1),
        ({"image": "a.jpg"}, "a line with nothing to learn from", "line 2", 1),
        ({"image": 3, "caption": "x"}, "a 'image' of the wrong type", "line 2", 1),
        ({"image": "none.jpg", "caption": "x"}, "an image that is not on the disk", "line 2", 1),
        (
            {"image": "bad.jpg", "boxes": [{"label": "x", "xyxy": [0, 0, 9, 9]}]},
            "an image that cannot be read",
            "line 2",
            1,
        ),
        ({"caption": "x"}, "boxes, a caption or questions without an image", "line 2", 1),
        ({**GOOD, "size": [100]}, "a 'size' that is not [width, height]", "line 2", 1),
        ({**GOOD, "boxes": 3}, "a 'boxes' of the wrong type", "line 2", 2),
        ({**GOOD, "lable": 3}, "an unknown key 'lable', which was not read (known: ", "line 2", 2),
        ({**GOOD, "captoin": 3}, "an unknown key 'captoin', which was not read (did you mean 'caption'?)", "line 2", 2),
        (_box(xxyy=1), "an unknown key 'xxyy', which was not read (did you mean 'xyxy'?)", "line 2 box", 2),
        (_box(label=None), "no 'label'", "line 2 box 1", 2),
        (_box(label=" "), "an empty 'label'", "line 2 box 1", 2),
        (_box(xyxy=None), "a box without one of 'xyxy' and 'xywh'", "line 2 box 1", 2),
        (_box(xywh=[1, 2, 3, 4]), "a box with both 'xyxy' and 'xywh'", "line 2 box 1", 2),
        (_box(xyxy=[1, 2, 3]), "a box that is not four numbers", "line 2 box 1", 2),
        (_box(xyxy="1 2 3 4"), "a box that is not four numbers", "line 2 box 1", 2),
        (_box(xyxy=[30, 2, 30, 40]), "a box without area", "line 2 box 1", 2),
        (_box(xyxy=[700, 2, 730, 40]), "a box outside the image", "line 2 box 1", 2),
        (
            _box(xyxy=[600, 2, 730, 40]),
            "a box that reaches over the edge of the image, where it is cut off",
            "line 2 'dog'",
            2,
        ),
        ({**_box(), "absent": ["dog"]}, "a label that is both absent and has a box", "line 2 'dog'", 2),
        ({**GOOD, "absent": [3]}, "a 'label' of the wrong type", "line 2 absent", 2),
        ({"image": "a.jpg", "absent": ["x"], "caption": ""}, "an empty 'caption'", "line 2 caption", 2),
        (
            {**_box(), "grounding": "a {dgo}"},
            "a {label} in a text that no box has, did you mean {dog}?",
            "line 2 grounding",
            2,
        ),
        ({**_box(), "grounding": "a dog"}, "a 'grounding' without any {label}", "line 2 grounding", 2),
        ({**_box(), "grounding": "a {dog} {}"}, "a text with {} in addition to a {label}", "line 2 grounding", 2),
        (
            {**GOOD, "questions": [{"question": "why?"}]},
            "a question without one of 'answer' and 'answers'",
            "line 2 question 1",
            2,
        ),
        (
            {**GOOD, "questions": [{"question": "why?", "answers": []}]},
            "an 'answers' of the wrong type",
            "line 2 question 1",
            2,
        ),
        ({**GOOD, "questions": [{"question": "why?", "answer": " "}]}, "an empty 'answer'", "line 2 question 1", 2),
        ({**GOOD, "conversation": []}, "an empty conversation", "line 2 conversation", 2),
        ({**GOOD, "conversation": {}}, "a 'conversation' of the wrong type", "line 2 conversation", 2),
        ({**GOOD, "conversation": [{"user": "hi"}]}, "no 'assistant'", "line 2 conversation", 2),
        ({**GOOD, "conversation": [{"user": "hi", "assistant": ""}]}, "a turn without words", "line 2 conversation", 2),
        (
            {**_box(), "conversation": [{"user": "hi", "assistant": "a {dgo}"}]},
            "a {label} in a text that no box has, did you mean {dog}?",
            "line 2 conversation",
            2,
        ),
        ({**GOOD, "id": "one"}, "an 'id' that an earlier line has", "line 2", 1),
    ],
)
def test_problems_are_reported_with_their_line(tmp_path, row, kind, where, kept, capsys):
    image(tmp_path / "a.jpg")
    (tmp_path / "bad.jpg").write_text("no image")
    file = lines(tmp_path, {**GOOD, "id": "one"}, row)
    data = JsonlDataset(file)
    (found,) = data.problems.counts
    assert found.startswith(kind)
    assert data.problems.examples[found] == [where]
    assert len(data) == kept
    assert cli.main(["data", "check", file]) == 1
    out = capsys.readouterr().out
    assert where in out
    if "cannot be read" not in kind:  # the check opens the image and says more
        assert f"1 x {kind}" in out


def test_label_with_an_invalid_box_is_not_detected(tmp_path):
    image(tmp_path / "a.jpg")
    boxes = [{"label": "dog", "xyxy": [1, 2, 300, 200]}, {"label": "dog", "xyxy": [1, 2, 3]}]
    for order in (boxes, boxes[::-1]):
        data = JsonlDataset(lines(tmp_path, {"image": "a.jpg", "boxes": order}))
        assert [q.split()[0] for q, _ in pairs(data)] == ["[identify]"]


def test_braces_in_conversations_are_text(tmp_path):
    image(tmp_path / "a.jpg")
    turn = {"user": "print {dog} and {}", "assistant": "f'{name}' or {}"}
    data = JsonlDataset(lines(tmp_path, {**_box(), "conversation": [turn]}), tasks="chat")
    assert not data.problems
    assert pairs(data) == [(turn["user"], turn["assistant"])]


def test_file_without_usable_lines_is_refused(tmp_path, capsys):
    file = lines(tmp_path, "{", {"image": "none.jpg", "caption": "x"})
    with pytest.raises(UserError, match="gives no record"):
        JsonlDataset(file)
    assert cli.main(["data", "check", file]) == 2
    assert "nothing of this file can be used" in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path / "none.jsonl")]) == 2
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    (tmp_path / "x.json").write_text('{"a": 1}\n{')
    assert cli.main(["data", "check", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# ---- boxes in words ----


def test_questions_about_boxes():
    boxes = {
        "dog": [Box(0, 0, 50, 50)],
        "cat": [Box(60, 0, 90, 40), Box(0, 60, 50, 90)],
        "pet": [Box(0, 0, 50, 51)],
        "ant": [Box(5, 5, 6, 6)],
        "leaf": [Box(i, 0, i + 10, 9) for i in range(51)],
        "bird": [Box(60, 60, 80, 80)],
    }
    things = LabelledBoxes(boxes, ("cow",), frozenset({"bird"}))
    seen = [
        e
        for seed in range(20)
        for e in box_questions.box_questions(things, (100, 100), box_questions.BOX_TASKS, 99, random.Random(seed))
    ]
    refer = {e.phrases[0].text: e.phrases[0].boxes for e in seen if e.task == "refer"}
    assert refer == {k: tuple(boxes[k]) for k in ("dog", "pet", "ant")} | {"cow": ()}
    identified = {e.phrases[0].text for e in seen if e.task == "identify"}
    assert identified == {"cat", "leaf", "bird"}, "dog and pet are one box, ant is too small to be written"
    detected = [e.phrases for e in seen if e.task == "detection"]
    assert {p.text for phrases in detected for p in phrases} == {"dog", "cat", "pet", "ant", "cow"}
    assert {len(phrases) for phrases in detected} >= {1, 2, 3, 4}
    assert all(p.boxes == tuple(boxes.get(p.text, ())) for phrases in detected for p in phrases)
    few = box_questions.box_questions(things, (100, 100), box_questions.BOX_TASKS, 4, random.Random(0))
    assert Counter(e.task for e in few) == {"detection": 2, "refer": 1, "identify": 1}


# ---- COCO ----


@pytest.mark.parametrize(("file", "images", "crowds"), [(TINY, 8, 1), (POSE, 4, 0)], ids=["instances", "keypoints"])
def test_coco_on_genuine_images(file, images, crowds):
    content = json.loads(file.read_text())
    data = open_dataset("coco_detection", {"annotations": str(file)})
    assert len(data) == images
    assert sum(data.problems.counts.values()) == sum(a["iscrowd"] for a in content["annotations"]) == crowds
    names = {c["id"]: c["name"] for c in content["categories"]}
    there: dict[int, Counter] = {i["id"]: Counter() for i in content["images"]}
    crowded = {(a["image_id"], names[a["category_id"]]) for a in content["annotations"] if a["iscrowd"]}
    for a in content["annotations"]:
        there[a["image_id"]][names[a["category_id"]]] += not a["iscrowd"]
    tasks = Counter()
    for i in range(len(data)):
        sample = data[i]
        number = int(sample.key.split()[1])
        assert sample.side_by_side
        assert 1 <= len(sample.question_answers) <= 8
        assert sample.size == open_image(sample.image).size
        for exchange in sample.question_answers:
            tasks[exchange.task] += 1
            for phrase in exchange.phrases:
                count = there[number][phrase.text]
                assert all(
                    0 <= b.x1 < b.x2 <= sample.size[0] and 0 <= b.y1 < b.y2 <= sample.size[1] for b in phrase.boxes
                )
                if exchange.task == "identify":
                    assert count >= 1
                else:
                    assert len(phrase.boxes) == count
                    assert exchange.task != "refer" or count <= 1
                    assert (number, phrase.text) not in crowded
    assert set(tasks) == {"detection", "refer", "identify"}
    for question, answer in pairs(data):
        assert not parse(answer, 100, 100).problems
        assert question.startswith("[")


def test_coco_without_absent_labels_skips_images_without_boxes():
    without = CocoDetection(str(POSE), absent=False)
    assert not [a for _, a in pairs(without) if a.startswith("There is no")]
    assert len(without) < len(CocoDetection(str(POSE)))


def _coco(folder: Path, **changes) -> str:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "traffic_light"}],
        **changes,
    }
    image(folder / "a.jpg")
    (folder / "x.json").write_text(json.dumps(content))
    return str(folder / "x.json")


SEEN_BY_THE_CHECK = (SWAPPED_SIZE, "a size that is not the image's", "an image that cannot be read")
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40]}
IMAGE = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}


def test_coco_names_without_underscores(tmp_path):
    assert {a for q, a in pairs(CocoDetection(_coco(tmp_path))) if "identify" in q} == {"traffic light"}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"annotations": [{**ANNOTATION, "bbox": [1, 2, 0, 4]}]}, "a box without area"),
        ({"annotations": [{**ANNOTATION, "bbox": [650, 2, 9, 4]}]}, "a box outside the image"),
        ({"annotations": [{**ANNOTATION, "bbox": [600, 2, 90, 4]}]}, "a box that reaches over the edge"),
        ({"annotations": [{**ANNOTATION, "image_id": 7}]}, "an 'image_id' that no image has"),
        ({"annotations": [{**ANNOTATION, "category_id": 7}]}, "a 'category_id' that no category has"),
        ({"annotations": [ANNOTATION, ANNOTATION]}, "an annotation whose 'id' an earlier one has"),
        ({"annotations": ["x"]}, "a record that is not a JSON object"),
        ({"images": [IMAGE, IMAGE]}, "an image that is listed twice"),
        ({"images": [IMAGE, {**IMAGE, "id": 2, "file_name": "b.jpg"}]}, "an image that is not on the disk"),
        ({"images": [IMAGE, {**IMAGE, "id": 2, "file_name": "bad.jpg"}]}, "an image that cannot be read"),
        ({"images": [{**IMAGE, "width": 639}]}, "a size that is not the image's"),
        ({"images": [{**IMAGE, "width": 480, "height": 640}]}, SWAPPED_SIZE),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, "an image without a usable width and height"),
        ({"categories": [{"id": 3, "name": "x"}, {"id": 3, "name": "y"}]}, "a category whose 'id' another"),
    ],
)
def test_check_reports_problems_of_coco(tmp_path, capsys, changes, kind):
    (tmp_path / "bad.jpg").write_text("no image")
    image(tmp_path / "c.jpg", (100, 80))
    spare = {
        "images": [{"id": 8, "file_name": "c.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 4, "name": "dog"}],
        "annotations": [{"id": 50 + n, "image_id": n, "category_id": 4, "bbox": [5, 6, 20, 20]} for n in (1, 8)],
    }
    file = Path(_coco(tmp_path, **changes))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: rows + spare[key] for key, rows in content.items()}))
    assert cli.main(["data", "check", str(file)]) == 1
    out = capsys.readouterr().out
    assert f"1 x {kind}" in out
    told = CocoDetection(str(file)).problems
    assert kind in "".join(told.counts) or kind in SEEN_BY_THE_CHECK


def test_invalid_coco_files_are_refused(tmp_path, capsys):
    file = _coco(tmp_path, categories=3)
    assert cli.main(["data", "check", file]) == 2
    assert "no list 'categories'" in capsys.readouterr().err
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    (tmp_path / "x.json").write_text(json.dumps({"images": [IMAGE], "annotations": [], "categories": []}))
    assert cli.main(["data", "check", file]) == 2
    assert "--images" in capsys.readouterr().err


# ---- the check ----


def test_check_of_a_valid_file_and_its_contact_sheet(documented, tmp_path, capsys):
    sheet = tmp_path / "out" / "sheet.png"
    assert cli.main(["data", "check", documented, "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    for line in (
        "3 lines",
        "2 images",
        "3 boxes",
        "2 labels",
        "2 questions",
        "2 conversations",
        "3 turns in them",
        "1 lines without an image",
        "labels: dog 2, red ball 1",
        "no problems",
    ):
        assert line in out
    assert sheet.is_file()
    with Image.open(sheet) as drawn:
        assert drawn.size[0] == 2 * CELL
        colours = {drawn.getpixel((round(40 * CELL / 640), y)) for y in range(drawn.height)}
    assert (230, 159, 0) in colours, "the left edge of the first box stands at its place"


def test_check_reports_damage_and_orientation(tmp_path):
    cut = image(tmp_path / "cut.jpg", (600, 600))
    Image.effect_noise((600, 600), 80).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])
    image(tmp_path / "turned.jpg", (60, 100), orientation=6)
    rows = [{"image": "cut.jpg", "caption": "x"}, {"image": "turned.jpg", "size": [60, 100], "caption": "x"}]
    report = check(lines(tmp_path, *rows))
    assert report.problems.counts == {"an image that is damaged or cut short": 1, TURNED: 1}
    assert report.problems.examples[TURNED] == ["turned.jpg 60 x 100, upright 100 x 60"]
    assert set(check(lines(tmp_path, *rows), quick=True).problems.counts) == {TURNED}


def test_check_of_genuine_coco(tmp_path, capsys):
    assert cli.main(["data", "check", str(TINY), "--sheet", str(tmp_path / "s.png"), "--most", "5"]) == 0
    out = capsys.readouterr().out
    for line in ("8 images", "44 boxes", "1 crowds, left out", "11 categories with a box", "s.png, 5 images"):
        assert line in out


def test_contact_sheet_overwrites_no_image(tmp_path, capsys):
    sheet = tmp_path / "s.png"
    sheet.write_bytes(b"mine")
    assert cli.main(["data", "check", str(TINY), "--sheet", str(sheet)]) == 0
    assert sheet.read_bytes() == b"mine"
    assert f"sheet: {tmp_path / 's-2.png'}" in capsys.readouterr().out


def test_empty_contact_sheet_is_not_written(tmp_path):
    file = lines(tmp_path, {"conversation": [{"user": "hi", "assistant": "ho"}]})
    assert cli.main(["data", "check", file, "--sheet", str(tmp_path / "s.png")]) == 0
    assert not (tmp_path / "s.png").exists()


# ---- show ----


def test_show_of_own_data(documented, tmp_path, tiny_folder, capsys):
    words = ["show", "own", f"file={documented}", "questions_per_image=2", "-n", "4", "--out", str(tmp_path / "o")]
    assert cli.main([*words, "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 records; no types of problems")
    assert "own.jsonl line 1: 2 exchanges" in out
    assert out.count("(image x 64)") == 3
    assert "no image" in out
    assert len(list((tmp_path / "o").glob("*.png"))) == 3, "also where two have one line"
    assert out.count("  assistant: ") == 2 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["own", "file"], "The option 'file' cannot be read"),
        (["own", "flie=x"], "Did you mean file?"),
        (["scenes", "coumt=3"], "Did you mean count?"),
        (["owm"], "Did you mean own?"),
        (["own", "file=[x"], "cannot be read"),
    ],
)
def test_show_reports_invalid_options(words, told, capsys):
    assert cli.main(["show", *words]) == 2
    assert told in capsys.readouterr().err


# ---- what people's files hold ----


def counted(data) -> dict[str, int]:
    return dict(data.problems.counts)


def test_labels_are_cleaned_and_case_insensitive(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    box = {"xyxy": [64, 48, 320, 240]}
    rows = [
        {"image": "a.jpg", "boxes": [{"label": "ball, red</p>", **box}]},
        {"image": "b.jpg", "boxes": [{"label": "Ball Red", **box}], "absent": ["BALL RED"], "grounding": "{ball red}"},
    ]
    data = JsonlDataset(lines(tmp_path, *rows), questions_per_image=99)
    said_of = pairs(data)
    assert ("[detection] ball red", "<p>ball red</p> {<10><10><50><50>}") in said_of
    assert {q for q, _ in said_of if q.startswith("[refer]")} == {"[refer] ball red"}
    assert not [a for _, a in said_of if "There is no" in a]
    kind = "a label that differs from an earlier one in capitals alone, read as that one"
    assert counted(data) == {
        "a label with a comma or brackets, read without them": 1,
        kind: 2,
        "a label that is both absent and has a box": 1,
    }


def test_label_with_a_box_is_absent_on_no_line_of_the_image(tmp_path):
    image(tmp_path / "a.jpg")
    dog, cat = ({"label": name, "xyxy": [0, 0, 99, 99]} for name in ("dog", "cat"))
    other = {"label": "dog", "xyxy": [300, 0, 400, 99]}
    rows = [
        {"image": "a.jpg", "boxes": [dog]},
        {"image": "./a.jpg", "boxes": [cat, other]},
        {"image": "a.jpg", "absent": ["cat"], "caption": "x"},
    ]
    data = JsonlDataset(
        lines(tmp_path, *rows, {"image": "a.jpg", "caption": "A dog and a cat."}), questions_per_image=99, closed=True
    )
    assert not [a for _, a in pairs(data) if "There is no" in a]
    answers = {frozenset(b.xyxy for b in parse(a, 640, 480).boxes) for q, a in pairs(data) if q == "[detection] dog"}
    assert len(answers) == 1 and len(next(iter(answers))) == 2, "both dogs, asked from either line"
    assert counted(data) == {
        "boxes of one label on several lines of an image, taken together": 2,
        "a label that is absent on one line and has a box on another of the same image": 1,
    }


def test_fractional_and_repeated_boxes_are_counted(tmp_path):
    image(tmp_path / "a.jpg")
    one = {"label": "dog", "xyxy": [10, 10, 50, 50]}
    shares = {"label": "cat", "xywh": [0.1, 0.2, 0.5, 0.25]}
    data = JsonlDataset(lines(tmp_path, {"image": "a.jpg", "boxes": [one, one, shares]}), questions_per_image=99)
    assert counted(data) == {"the same box twice, read once": 1, "a box in fractions of 0..1, not in pixels": 1}
    assert data.records[0][0].boxes == {"dog": [Box(10, 10, 50, 50)]}


def test_labels_with_too_many_boxes_are_counted(tmp_path):
    image(tmp_path / "a.jpg")

    def boxes(count):
        return [{"label": "cell", "xyxy": [8 * i, 0, 8 * i + 7, 40]} for i in range(count)]

    few = JsonlDataset(
        lines(tmp_path, {"image": "a.jpg", "boxes": boxes(box_questions.MAX_BOXES)}), questions_per_image=99
    )
    assert not few.problems and "[detection] cell" in {q for q, _ in pairs(few)}
    file = lines(tmp_path, {"image": "a.jpg", "boxes": boxes(box_questions.MAX_BOXES + 1), "caption": "cells"})
    many = JsonlDataset(file, questions_per_image=99)
    assert counted(many) == {box_questions.TOO_MANY: 1} == dict(check(file).problems.counts)
    assert f"more than {box_questions.MAX_BOXES} boxes" in (ROOT / "docs" / "data.md").read_text()


def test_long_conversation_is_split(tmp_path):
    image(tmp_path / "a.jpg")
    turns = [{"user": f"what is {i}?", "assistant": f"it is {i}, " + "a red ball on a box " * 10} for i in range(40)]
    talk = [{**turns[0], "user": "<image>\nwhat is 0?"}, *turns[1:]]
    file = lines(tmp_path, {"image": "a.jpg", "conversation": talk})
    data = JsonlDataset(file)
    assert len(data) > 1 and counted(data) == dict(check(file).problems.counts)
    assert list(data.problems.counts.values()) == [1]
    assert pairs(data) == [(t["user"], t["assistant"].strip()) for t in turns]
    assert {data[i].image.name for i in range(len(data))} == {"a.jpg"}
    assert data[1].key == "own.jsonl line 1 part 2"
    assert len(JsonlDataset(file, context=100_000)) == 1
    assert "tokens in the longest, by estimate" in "\n".join(check(file).lines())


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        ([("<image> <image> what?", "x")], "several marks of an image"),
        ([("what?", "x"), ("and <image>?", "x")], "a mark of an image, <image>, elsewhere"),
        ([("what?", "<|image|> x")], "a mark of an image, <image>, elsewhere"),
    ],
)
def test_image_mark_is_removed_or_refused(tmp_path, turns, kind):
    image(tmp_path / "a.jpg")
    talk = [{"user": q, "assistant": a} for q, a in turns]
    data = JsonlDataset(lines(tmp_path, {"image": "a.jpg", "conversation": talk, "caption": "x"}))
    assert next(iter(counted(data))).startswith(kind) and len(data) == 1
    good = JsonlDataset(
        lines(tmp_path, {"image": "a.jpg", "conversation": [{"user": "what is\n<image>", "assistant": "x"}]})
    )
    assert pairs(good) == [("what is", "x")] and not good.problems


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("data:image/png;base64," + "A" * 5000, "an image given as data (base64)"),
        ("x" * 5000, "an image name that is too long"),
        ("a\0.jpg", "an image name with a NUL"),
        ("C:\\Users\\me\\a.jpg", "an image given as a path of a Windows computer"),
        ("https://x.org/a.jpg", "an image given as a web address"),
        ("sub\new.jpg", "an image name with a line break"),
    ],
)
def test_invalid_file_names_cost_one_line(tmp_path, name, kind, capsys):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b\u202f c" / " d.jpg")
    rows = [{"image": n, "caption": "x"} for n in (name, "a.jpg", "b\u202f c\\ d.jpg")]
    file = lines(tmp_path, *rows)
    data = JsonlDataset(file)
    assert len(data) == 2 and [k for k in counted(data) if k.startswith(kind)]
    assert cli.main(["data", "check", file]) == 1
    out = capsys.readouterr().out
    assert kind in out and len(out) < 2000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": 1}'.encode("utf-16"), "is text in UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "is text in UTF-16"),
        ('{"a": "é"}'.encode("latin1"), "is not text in UTF-8"),
        (b"image,label\na.jpg,dog\n", r"is a table \(CSV\)"),
        (b"images:\n  - a.jpg\n", "is YAML"),
        (b'[{"image": "a.jpg"}]', "holds one JSON list"),
        (b'[\n{"image": "a.jpg"},\n]', "holds one JSON list"),
        (b"\x1f\x8b\x08\0", "is a compressed file"),
        (b"<!DOCTYPE html>", "is a web page"),
    ],
)
def test_file_of_another_format_is_named(tmp_path, content, told):
    file = tmp_path / "own.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        JsonlDataset(str(file))
    assert "ownload" not in str(error.value) and "datasets/" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('{"image": "a.jpg", }', "an extra comma"),
        ("{'image': 'a.jpg'}", "single or curly quotation marks"),
        ('{"image": "a.jpg" // x\n', "a comment"),
        (r'{"image": "C:\Users"}', "a single backslash"),
        ('{"caption": None}', "None, which is not JSON"),
        ('{"image": "a.jp', "it ends in the middle"),
    ],
)
def test_json_mistake_is_named(tmp_path, line, mistake):
    image(tmp_path / "a.jpg")
    data = JsonlDataset(lines(tmp_path, "\ufeff" + json.dumps(GOOD), line))
    (kind,) = counted(data)
    assert kind.startswith(f"a line that is not JSON ({mistake}")
    (tmp_path / "x.json").write_text(line)
    with pytest.raises(UserError, match=f"is not JSON: {mistake}") as error:
        CocoDetection(str(tmp_path / "x.json"))
    assert "datasets/" not in str(error.value)


def test_swapped_size_is_not_reported_as_exif(tmp_path):
    image(tmp_path / "a.jpg", (200, 100))
    report = check(lines(tmp_path, {"image": "a.jpg", "size": [100, 200], "caption": "x"}))
    assert dict(report.problems.counts) == {"a size whose width and height are swapped": 1}
