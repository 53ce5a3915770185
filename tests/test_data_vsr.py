"""The reader of VSR on its genuine files, and on lines that are wrong."""

import json
from pathlib import Path

import pytest

from minigptv2.data.readers.vsr import VSR
from minigptv2.errors import UserError
from minigptv2.images import open_image
from minigptv2.tasks import STATEMENT, render

GENUINE = Path(__file__).parent / "data" / "vsr"
ROW = {"image": "000000000009.jpg", "caption": "The dog is on the surfboard.", "label": 1, "relation": "on"}


def _written(folder: Path, *rows) -> Path:
    (folder / "zeroshot").mkdir()
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "zeroshot" / "test.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("variant", "split", "count", "true", "relations"),
    [
        ("random", "train", 5, 2, 5),
        ("random", "dev", 4, 1, 4),
        ("random", "test", 3, 0, 3),
        ("zeroshot", "train", 5, 2, 4),
        ("zeroshot", "dev", 2, 0, 2),
        ("zeroshot", "test", 4, 1, 4),
    ],
)
def test_every_genuine_statement_is_read(variant, split, count, true, relations):
    dataset = VSR(str(GENUINE), variant, split)
    answers = [dataset[i].question_answers[0].answer for i in range(len(dataset))]
    assert len(answers) == count and answers.count("true") == true and answers.count("false") == count - true
    assert len({record[4] for record in dataset.records}) == relations
    assert not dataset.problems and dataset.excluded == []


def test_images_are_found_and_prompts_are_the_published_ones():
    dataset = VSR(str(GENUINE), "random", "train")
    assert len(dataset) == 5 and dataset.missing_images() == []
    rows = [json.loads(line) for line in (GENUINE / "random" / "train.jsonl").read_text().splitlines()]
    for row, sample in zip(rows, map(dataset.__getitem__, range(5)), strict=True):
        assert sample.image.name == row["image"]
        question, answer = render(sample)
        assert STATEMENT.format(row["caption"]) in question.pieces[-1]
        assert answer.pieces == ("true" if row["label"] else "false",)
    assert open_image(dataset[0].image).width > 100


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"label": 2}, "a 'label' other than 0 and 1"),
        ({"label": "1"}, "a 'label' of the wrong type"),
        ({"label": True}, "a 'label' of the wrong type"),
        ({"caption": " "}, "an empty 'caption'"),
        ({"image": "dog.jpg"}, "an 'image' that is not a COCO number"),
        ({"image": None}, "a 'image' of the wrong type"),
    ],
)
def test_malformed_lines_are_counted(tmp_path, change, kind):
    dataset = VSR(str(_written(tmp_path, ROW, ROW | change, "", "{cut", [1], ROW)))
    assert [record[0] for record in dataset.records] == [0, 5]
    assert dataset.excluded[0] == (1, kind) and [number for number, _ in dataset.excluded] == [1, 3, 4]
    assert dataset.problems.counts["a line that is not JSON"] == 1
    assert dataset.problems.counts["a record that is not a JSON object"] == 1
    assert dataset[1].key == "vsr zeroshot test line 5"


def test_missing_files_raise_user_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no zeroshot/test\.jsonl"):
        VSR(str(tmp_path))
    with pytest.raises(UserError, match="variant"):
        VSR(str(tmp_path), variant="few")
    with pytest.raises(UserError, match="split"):
        VSR(str(tmp_path), split="val")
    (_written(tmp_path, ROW) / "zeroshot" / "test.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-16"):
        VSR(str(tmp_path))
