"""VQA v2 and the finding of COCO images, on genuine questions."""

import json
import shutil
from pathlib import Path

import pytest

from minigptv2.data.annotations import by_frequency
from minigptv2.data.coco_images import CocoImages
from minigptv2.data.dataset import open_dataset
from minigptv2.errors import UserError
from minigptv2.tasks import render

MICRO = Path(__file__).parent / "data" / "coco_text"


@pytest.fixture
def root(tmp_path) -> Path:
    shutil.copy(MICRO / "vqa_questions.json", tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json")
    shutil.copy(MICRO / "vqa_annotations.json", tmp_path / "v2_mscoco_val2014_annotations.json")
    return tmp_path


def test_questions_and_ten_answers(root):
    data = open_dataset("vqav2", {"root": str(root), "split": "val", "images": str(MICRO)})
    assert len(data) == 9
    assert not data.problems
    first = data[0]
    assert first.image == MICRO / "images" / "000000006818.jpg"
    (exchange,) = first.question_answers
    assert (exchange.task, exchange.question) == ("vqa", "What color is the wall?")
    assert len(exchange.references) == 10
    assert exchange.references[0] == "white"
    assert first.key == "v2_OpenEnded_mscoco_val2014_questions.json question 6818000"
    for i in range(len(data)):
        given = data[i].question_answers[0].references
        assert list(given) == sorted(given, key=lambda a: (-given.count(a), given.index(a)))
        assert data[i].image.is_file()
    assert [t.role for t in render(first)] == ["user", "assistant"]


def test_invalid_records_are_counted(root):
    questions = json.loads((root / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    rows = questions["questions"]
    rows[0]["image_id"] = 424242
    del rows[1]["question"]
    rows[2]["question_id"] = 99
    rows[3] = "text"
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
    data = open_dataset("vqav2", {"root": str(root), "split": "val", "images": str(MICRO)})
    assert len(data) == 5
    assert data.problems.counts == {
        "an image that is not on the disk": 1,
        "no 'question'": 1,
        "a record that is not a JSON object": 1,
        "a question without an answer": 1,
    }
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    assert data.problems.examples["an image that is not on the disk"] == [f"{name} row 0"]


def test_test_split_has_no_answers(root):
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").rename(root / "v2_OpenEnded_mscoco_test2015_questions.json")
    data = open_dataset("vqav2", {"root": str(root), "split": "test", "images": str(MICRO)})
    assert len(data) == 9
    assert data[0].question_answers[0].references == ()
    assert [t.role for t in render(data[0])] == ["user"]


def test_missing_files_are_all_named(tmp_path):
    with pytest.raises(UserError, match="visualqa.org") as error:
        open_dataset("vqav2", {"root": str(tmp_path)})
    assert "v2_OpenEnded_mscoco_train2014_questions.json, no v2_mscoco_train2014_annotations.json" in str(error.value)
    with pytest.raises(UserError, match="There is no folder"):
        open_dataset("vqav2", {"root": str(tmp_path / "none")})
    with pytest.raises(UserError, match="The option split is 'tset'"):
        open_dataset("vqav2", {"root": str(tmp_path), "split": "tset"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "ends in the middle"),
        ("[]", "no list 'annotations'"),
        ('{"questions": 3}', "no list 'annotations'"),
        (b"\xff\xfe", "UTF-16"),
    ],
)
def test_file_of_another_format_raises_user_error(tmp_path, content, said):
    (tmp_path / "000000000009.jpg").touch()
    for name in ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        open_dataset("vqav2", {"root": str(tmp_path), "split": "val"})


def test_the_most_common_answer_comes_first():
    assert by_frequency(["b", "a", "a ", "c", ""]) == ("a", "a", "b", "c")


@pytest.mark.parametrize(
    "place",
    [
        "train2014/COCO_train2014_000000000009.jpg",
        "val2017/000000000009.jpg",
        "images/val2014/COCO_val2014_000000000009.jpg",
        "images/000000000009.jpg",
        "000000000009.jpg",
        "coco/images/train2017/000000000009.jpg",
    ],
)
def test_images_are_found_in_every_layout(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    (file.parent / "notes.txt").touch()
    images = CocoImages(tmp_path)
    assert images.find(9).samefile(file)
    assert 9 in images
    assert 8 not in images
    assert 10 not in images
    assert images.find(8) == tmp_path / "train2014" / "COCO_train2014_000000000008.jpg"


def test_missing_images_raise_user_error(root):
    with pytest.raises(UserError, match="9 x an image that is not on the disk"):
        open_dataset("vqav2", {"root": str(root), "split": "val"})
