"""The readers of questions and answers: GQA on genuine questions, the others on small records of the genuine form."""

import json
from pathlib import Path

import pytest

from minigptv2.data import json_files
from minigptv2.data.dataset import open_dataset
from minigptv2.errors import UserError
from minigptv2.eval.benchmark import open_benchmark
from minigptv2.tasks import render

GQA = Path(__file__).parent / "data" / "gqa" / "val_balanced_questions.json"


def put(root: Path, files: dict) -> str:
    """Writes the files: bytes and text as they are, other values as JSON, None as an empty file."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("" if content is None else content if isinstance(content, str) else json.dumps(content))
    return str(root)


def opened(name: str, root: Path, files: dict, **options):
    return open_dataset(name, {"root": put(root, files), **options})


def said(sample) -> list[str]:
    return ["".join(p for p in turn.pieces if isinstance(p, str)) for turn in render(sample)]


# ---- GQA ----


@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_gqa_on_genuine_questions(tmp_path, monkeypatch, chunk):
    """Read in pieces of any size, the questions are those of the whole file."""
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    rows = json.loads(GQA.read_text())
    files = {f"images/{row['imageId']}.jpg": None for row in rows.values()}
    data = opened("gqa", tmp_path, {**files, "val_balanced_questions.json": GQA.read_text()}, split="val")
    assert len(data) == len(rows) == 9
    assert not data.problems
    for sample, (number, row) in zip((data[i] for i in range(9)), rows.items()):
        (exchange,) = sample.question_answers
        assert (exchange.task, exchange.question, exchange.answer) == ("vqa", row["question"], row["answer"])
        assert sample.image == tmp_path / "images" / f"{row['imageId']}.jpg"
        assert sample.key == f"val_balanced_questions.json question {number}"


def test_gqa_reads_the_flat_list_of_the_published_evaluation(tmp_path):
    rows = [{"image": "n7.jpg", "question": "which?", "answer": "left"}, {"image": "n7.jpg", "question": "why?"}]
    data = opened("gqa", tmp_path, {"images/n7.jpg": None, "val_balanced_questions.json": rows}, split="val")
    assert len(data) == 1 and data[0].question_answers[0].answer == "left"
    assert data[0].image == tmp_path / "images" / "n7.jpg"
    assert data.problems.counts == {"no 'answer'": 1}


def test_gqa_in_another_encoding_raises_user_error(tmp_path):
    opened_files = {"images/7.jpg": None, "val_balanced_questions.json": []}
    with pytest.raises(UserError, match="gives no record"):
        opened("gqa", tmp_path, opened_files, split="val")
    (tmp_path / "val_balanced_questions.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        opened("gqa", tmp_path, {}, split="val")


def test_gqa_counts_invalid_records_and_has_no_test_answers(tmp_path):
    row = {"imageId": "7", "question": "is it  red?", "answer": "no"}
    files = {
        "images/7.jpg": None,
        "questions/train_balanced_questions.json": {
            "1": row,
            "2": {**row, "imageId": "8"},
            "3": {"imageId": "7"},
            "4": [],
        },
        "questions/test_balanced_questions.json": {"1": {"imageId": "7", "question": "why?"}},
    }
    data = opened("gqa", tmp_path, files)
    assert said(data[0]) == ["[vqa] is it red?", "no"]
    assert len(data) == 1
    assert data.problems.counts == {
        "an image that is not on the disk": 1,
        "no 'question'": 1,
        "a record that is not a JSON object": 1,
    }
    assert said(opened("gqa", tmp_path, {}, split="test")[0]) == ["[vqa] why?"]


@pytest.mark.parametrize("text", ["", "[]", '{"1"', '{"1": {"a": 1}', '{"1" {}}', "{1: {}}", '{"1": tru'])
def test_truncated_gqa_raises_user_error(tmp_path, text):
    with pytest.raises(UserError, match="damaged|is not JSON|is empty"):
        opened("gqa", tmp_path, {"images/7.jpg": None, "train_balanced_questions.json": text})


@pytest.mark.parametrize("text", ["[1.5e3, 12 ,[]]", "  [ ]", '["a", {"b": -1.25}]'])
def test_incremental_list_equals_json_load(tmp_path, monkeypatch, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    for chunk in (1, 2, 3, 1000):
        monkeypatch.setattr(json_files, "_CHUNK", chunk)
        assert list(json_files.iter_json_list(file)) == json.loads(text)


@pytest.mark.parametrize("text", ['{"a": 12, "b": {"c": [1]} }', ' {"a":1.5e3 ,"\\u00e9":"x"}\n', "{}"])
def test_incremental_object_equals_json_load(tmp_path, monkeypatch, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    for chunk in (1, 2, 3, 1000):
        monkeypatch.setattr(json_files, "_CHUNK", chunk)
        assert dict(json_files.iter_json_object(file)) == json.loads(text)


def test_braces_in_an_answer_are_text(tmp_path):
    rows = {"1": {"imageId": "7", "question": "what is written?", "answer": "{} {a} {}"}}
    data = opened("gqa", tmp_path, {"images/7.jpg": None, "train_balanced_questions.json": rows})
    assert said(data[0]) == ["[vqa] what is written?", "{} {a} {}"]


# ---- OK-VQA, A-OKVQA ----


def test_okvqa(tmp_path):
    answers = ["pony tail"] * 4 + ["braid"] * 6
    files = {
        "OpenEnded_mscoco_val2014_questions.json": {
            "questions": [{"image_id": 51606, "question": "What is the hairstyle called?", "question_id": 516065}]
        },
        "mscoco_val2014_annotations.json": {
            "annotations": [
                {
                    "image_id": 51606,
                    "question_id": 516065,
                    "confidence": 3,
                    "answers": [
                        {"answer_id": i, "raw_answer": "x", "answer_confidence": "yes", "answer": a}
                        for i, a in enumerate(answers)
                    ],
                }
            ]
        },
        "val2014/COCO_val2014_000000051606.jpg": None,
    }
    data = opened("okvqa", tmp_path, files, split="val")
    assert data[0].question_answers[0].references == ("braid",) * 6 + ("pony tail",) * 4
    assert data[0].image.name == "COCO_val2014_000000051606.jpg"


A_OKVQA = {
    "split": "train",
    "image_id": 299207,
    "question_id": "22MexNkBPpdZGX6sxbxVBH",
    "question": "What is the man by the bags awaiting?",
    "choices": ["skateboarder", "train", "delivery", "cab"],
    "correct_choice_idx": 3,
    "direct_answers": ["ride"] * 2 + ["bus"] * 3 + ["taxi"] * 5,
    "difficult_direct_answer": False,
    "rationales": ["He has bags.", "He waits at the road.", "He looks for a car."],
}


def test_aokvqa(tmp_path):
    files = {"aokvqa_v1p0_train.json": [A_OKVQA], "train2017/000000299207.jpg": None}
    (exchange,) = opened("aokvqa", tmp_path, files)[0].question_answers
    assert exchange.references == ("taxi",) * 5 + ("bus",) * 3 + ("ride",) * 2
    sample = opened("aokvqa", tmp_path, {}, rationale=True)[0]
    assert said(sample) == ["[vqa] What is the man by the bags awaiting?", "taxi", "Why?", "He has bags."]
    assert not sample.side_by_side


def test_aokvqa_without_answers(tmp_path):
    bare = {k: v for k, v in A_OKVQA.items() if k not in ("direct_answers", "rationales", "correct_choice_idx")}
    files = {"aokvqa_v1p0_test.json": [bare], "aokvqa_v1p0_train.json": [bare, A_OKVQA], "000000299207.jpg": None}
    assert said(opened("aokvqa", tmp_path, files, split="test")[0]) == ["[vqa] What is the man by the bags awaiting?"]
    data = opened("aokvqa", tmp_path, {})
    assert len(data) == 1
    assert data.problems.counts == {"no 'direct_answers'": 1}


# ---- OCR-VQA ----


def _book(split: int, **changes) -> dict:
    return {
        "imageURL": "a.jpg",
        "questions": ["Who wrote this book?", "Is this a comic?"],
        "answers": ["S. Boynton", "No"],
        "title": "t",
        "authorName": "S. Boynton",
        "genre": "Calendars",
        "split": split,
        **changes,
    }


def test_ocrvqa(tmp_path):
    books = {
        "761183272": _book(1),
        "1": _book(2),
        "2": _book(1, answers=["x"]),
        "3": _book(1),
        "4": _book(1, answers=["x", " "]),
    }
    files = {"dataset.json": books, "images/761183272.gif": None, "images/1.jpg": None, "images/4.jpg": None}
    data = opened("ocrvqa", tmp_path, files)
    assert [said(data[i]) for i in range(len(data))] == [
        ["[vqa] Who wrote this book?", "S. Boynton"],
        ["[vqa] Is this a comic?", "No"],
        ["[vqa] Who wrote this book?", "x"],
    ]
    assert data[0].image.name == "761183272.gif"
    assert data.problems.counts == {
        "not as many answers as questions": 1,
        "an image that is not on the disk": 1,
        "an empty question or answer": 1,
    }
    assert len(opened("ocrvqa", tmp_path, {}, split="val")) == 2
    with pytest.raises(UserError, match="gives no record"):
        opened("ocrvqa", tmp_path, {}, split="test")


# ---- for evaluation: VizWiz, IconQA, Hateful Memes ----


def test_vizwiz(tmp_path):
    answers = [{"answer": a, "answer_confidence": "yes"} for a in ["unanswerable"] * 7 + ["soup"] * 3]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What is it?", "answers": answers, "answerable": 0}
    files = {"Annotations/val.json": [row, {**row, "image": "no.jpg"}], f"val/{row['image']}": None}
    data = opened("vizwiz", tmp_path, files)
    assert data[0].question_answers[0].references == ("unanswerable",) * 7 + ("soup",) * 3
    assert data.problems.counts == {"an image that is not on the disk": 1}


def test_iconqa(tmp_path):
    row = {"question": "What time is it?", "choices": ["6:00", "12:05"], "answer": 1, "ques_type": "choose_txt"}
    place = "iconqa_data/iconqa/val/choose_txt"
    files = {
        f"{place}/10/data.json": row,
        f"{place}/10/image.png": None,
        f"{place}/9/data.json": {**row, "answer": 0},
        f"{place}/9/image.png": None,
        f"{place}/11/data.json": {**row, "answer": 2},
        f"{place}/11/image.png": None,
        f"{place}/12/data.json": row,
        f"{place}/13/data.json": "{",
        f"{place}/notes.txt": None,
    }
    data = opened("iconqa", tmp_path, files)
    assert [data[i].question_answers[0].answer for i in range(len(data))] == ["6:00", "12:05"]
    assert data[1].image == tmp_path / place / "10" / "image.png"
    assert data.problems.counts == {
        "an 'answer' that is none of the choices": 1,
        "an image that is not on the disk": 1,
        "a data.json that cannot be read": 1,
    }


def test_hateful_memes(tmp_path):
    row = {"id": 8291, "img": "img/08291.png", "label": 1, "text": "some words"}
    others = [{"label": 2}, {"img": "../08291.png"}, {"label": 0}]
    lines = [row, *({**row, "id": number, **other} for number, other in enumerate(others))]
    text = "\n".join(map(json.dumps, lines)) + "\nnot json\n"
    data = opened("hateful_memes", tmp_path, {"dev.jsonl": text, "img/08291.png": None})
    assert [data[i].question_answers[0].answer for i in range(len(data))] == ["yes", "no"]
    assert data[1].key == "dev.jsonl line 4"
    assert data.problems.counts == {
        "a 'label' other than 0 and 1": 1,
        "an image that is not on the disk": 1,
        "a line that is not JSON": 1,
    }


def test_training_and_evaluation_leave_out_the_same_records(tmp_path):
    """The same questions stand twice, each annotation a second time."""
    question = {"image_id": 7, "question": "why?", "question_id": 70}
    annotation = {"question_id": 70, "answers": [{"answer": "so"}]}
    other = {**annotation, "answers": [{"answer": "not so"}]}
    root = {
        "OpenEnded_mscoco_val2014_questions.json": {"questions": [question, question, {**question, "question_id": 71}]},
        "mscoco_val2014_annotations.json": {"annotations": [annotation, other]},
        "000000000007.jpg": None,
    }
    data = opened("okvqa", tmp_path, root, split="val")
    benchmark = open_benchmark("okvqa", {"root": str(tmp_path)})
    assert [data[i].question_answers[0].references for i in range(len(data))] == [("so",)]
    assert [item.truth[0] for item in benchmark.items()] == [("so",)]
    assert data.problems.counts == benchmark.problems.counts and len(data.problems.counts) == 3
    assert set(benchmark.excluded) == {1, 2}


# ---- names of images ----

NO_NAMES = {
    "data:image/png;base64," + "A" * 5000: "an image given as data (base64) instead of a file name",
    "x" * 5000: "an image name that is too long for a file",
    "a\0b": "an image name with a NUL character, which no file has",
}
GOOD_NAME = "a\u202f \u3000b"


@pytest.mark.parametrize("name", [*NO_NAMES, GOOD_NAME])
@pytest.mark.parametrize("reader", ["gqa", "vizwiz", "textcaps", "hateful_memes"])
def test_file_names_are_kept_exactly_and_invalid_ones_cost_one_record(tmp_path, reader, name):
    def row(given: str) -> dict:
        return {
            "imageId": given,
            "image": f"{given}.jpg",
            "image_id": given,
            "img": f"img/{given}.jpg",
            "question": "what?",
            "answer": "x",
            "answers": [{"answer": "x"}],
            "caption_str": "a cap",
            "text": "a",
            "label": 0,
        }

    if reader == "hateful_memes" and name.startswith("data:"):
        name = name.removeprefix("data:")  # it begins with the folder, so it is only too long
    rows = [row(name), row("good")]
    folder, file, content = {
        "gqa": ("images", "val_balanced_questions.json", dict(enumerate(rows))),
        "vizwiz": ("val", "val.json", rows),
        "textcaps": ("train_images", "TextCaps_0.1_val.json", {"data": rows}),
        "hateful_memes": ("img", "dev.jsonl", "\n".join(map(json.dumps, rows))),
    }[reader]
    files = {f"{folder}/{n}.jpg": None for n in ("good", GOOD_NAME)}
    data = opened(reader, tmp_path, {**files, file: content}, split="dev" if reader == "hateful_memes" else "val")
    names = [data[i].image.name for i in range(len(data))]
    if name == GOOD_NAME:
        assert names == [f"{GOOD_NAME}.jpg", "good.jpg"] and not data.problems
    else:
        kind = NO_NAMES.get(name, "an image name that is too long for a file")
        assert names == ["good.jpg"] and data.problems.counts == {kind: 1}
