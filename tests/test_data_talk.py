"""The readers of captions, conversations and plain text: captions on genuine files, the others on the genuine form."""

import json
import random
from pathlib import Path

import pytest
from test_data_questions import opened, said

from minigptv2.boxes import parse
from minigptv2.data.dataset import open_dataset
from minigptv2.errors import UserError
from minigptv2.images import open_image
from minigptv2.sample import ImagePiece
from minigptv2.tasks import render

MICRO = Path(__file__).parent / "data" / "coco_text"


# ---- COCO captions ----


def test_official_captions_on_genuine_rows(tmp_path):
    text = (MICRO / "captions.json").read_text()
    given = json.loads(text)["annotations"]
    files = {"annotations/captions_train2017.json": text, "annotations/captions_val2017.json": text}
    train = opened("coco_caption", tmp_path, files, split="train2017", images=str(MICRO))
    val = opened("coco_caption", tmp_path, {}, split="val2017", images=str(MICRO))
    assert (len(train), len(val)) == (53, len({a["image_id"] for a in given}))
    assert not train.problems
    assert sorted(w for i in range(53) for w in train[i].question_answers[0].references) == sorted(
        " ".join(a["caption"].split()) for a in given
    )
    assert {len(train[i].question_answers[0].references) for i in range(53)} == {1}
    first = val[0]
    of_first = [" ".join(a["caption"].split()) for a in given if a["image_id"] == given[0]["image_id"]]
    assert list(first.question_answers[0].references) == of_first
    assert open_image(first.image).size > (1, 1)
    assert said(first) == ["[caption] describe the picture.", of_first[0]]
    assert {said(s)[1] for s in [first]} == {of_first[0]}
    chosen = {render(first, rng=random.Random(i))[1].pieces[0] for i in range(40)}
    assert chosen == set(of_first)


def test_captions_whose_images_are_missing(tmp_path):
    text = (MICRO / "captions.json").read_text()
    files = {"captions_train2014.json": text, "train2014/COCO_train2014_000000000009.jpg": None}
    with pytest.raises(UserError, match="53 x an image that is not on the disk"):
        opened("coco_caption", tmp_path, files, split="train2014")


def test_karpathy_splits(tmp_path):
    def image(number: int, split: str, *captions: str) -> dict:
        sentences = [{"tokens": c.split(), "raw": c, "imgid": 0, "sentid": i} for i, c in enumerate(captions)]
        name = f"COCO_val2014_{number:012d}.jpg"
        return {"filepath": "val2014", "filename": name, "cocoid": number, "split": split, "sentences": sentences}

    images = [
        image(1, "train", "a dog", "one dog"),
        image(2, "restval", "a cat", " "),
        image(3, "test", "a", "b", "c"),
        image(4, "test", "no image"),
        {"split": "val"},
    ]
    files = {"dataset_coco.json": {"images": images, "dataset": "coco"}}
    files |= {f"val2014/COCO_val2014_{n:012d}.jpg": None for n in (1, 2, 3)}
    train = opened("coco_caption", tmp_path, files)
    assert [said(train[i])[1] for i in range(len(train))] == ["a dog", "one dog", "a cat"]
    assert train.problems.counts == {"an empty 'raw'": 1}
    test = opened("coco_caption", tmp_path, {}, split="test")
    assert [test[i].question_answers[0].references for i in range(len(test))] == [("a", "b", "c")]
    assert test.problems.counts == {"an image that is not on the disk": 1}
    assert len(opened("coco_caption", tmp_path, {}, split="test", group_by="caption")) == 3
    assert len(opened("coco_caption", tmp_path, {}, split="train", group_by="image")) == 2
    assert len(opened("coco_caption", tmp_path, {}, split="train", per="picture")) == 2  # as older recipes write it
    with pytest.raises(UserError, match="The option group_by is 'word'"):
        opened("coco_caption", tmp_path, {}, group_by="word")


def test_textcaps(tmp_path):
    rows = [
        {"image_id": "4be9", "caption_id": i, "caption_str": words, "image_width": 1024, "set_name": "train"}
        for i, words in enumerate(["a sign that says stop", "a red stop sign", ""])
    ]
    files = {
        "TextCaps_0.1_train.json": {"data": [*rows, {**rows[0], "image_id": "none"}]},
        "TextCaps_0.1_val.json": {"data": rows[:2]},
        "TextCaps_0.1_test.json": {"data": [{"image_id": "5c"}]},
        "train_images/4be9.jpg": None,
        "test_images/5c.jpg": None,
    }
    train = opened("textcaps", tmp_path, files)
    assert [said(train[i])[1] for i in range(len(train))] == ["a sign that says stop", "a red stop sign"]
    assert train.problems.counts == {"an empty 'caption_str'": 1, "an image that is not on the disk": 1}
    val = opened("textcaps", tmp_path, {}, split="val")
    assert val[0].question_answers[0].references == ("a sign that says stop", "a red stop sign")
    assert said(opened("textcaps", tmp_path, {}, split="test")[0]) == ["[caption] describe the picture."]


# ---- conversations ----


def _turns(*words: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": w} for i, w in enumerate(words)]


@pytest.mark.parametrize(
    ("split", "file"),
    [
        ("conversation", "conversation_58k.json"),
        ("detail", "detail_23k.json"),
        ("reasoning", "complex_reasoning_77k.json"),
    ],
)
def test_llava(tmp_path, split, file):
    asked = ["What is it?\n<image>", "A Plaza,\nwith 2 cars!", "Why?", "It's busy; see {the sign}."]
    rows = [
        {"id": "000000442786", "image": "000000442786.jpg", "conversations": _turns(*asked)},
        {"id": "442786", "conversations": _turns("<image>\nWhy?", "So.")},
        {"id": "000000442786", "image": "000000442786.jpg", "conversations": _turns("a", "b", "c")},
        {"id": "000000442786", "image": "000000442786.jpg", "conversations": _turns("<image>", "b")},
        {"id": "000000442786", "image": "000000442786.jpg", "conversations": _turns("a", "b")[::-1]},
        {"id": "9", "image": "000000000009.jpg", "conversations": _turns("a", "b")},
        {"id": "9", "image": "cat.png", "conversations": _turns("a", "b")},
        [],
    ]
    data = opened("llava", tmp_path, {file: rows, "train2017/000000442786.jpg": None}, split=split)
    assert len(data) == 2
    assert said(data[0]) == ["What is it?", "A Plaza,\nwith 2 cars!", "Why?", "It's busy; see {the sign}."]
    assert isinstance(render(data[0])[0].pieces[0], ImagePiece)
    assert said(data[1]) == ["Why?", "So."]
    assert data.problems.counts == {
        "a conversation that is not pairs of question and answer": 1,
        "a turn without words": 1,
        "a conversation in which two turns of one speaker follow each other": 1,
        "an image that is not on the disk": 1,
        "an 'image' that is not one of COCO": 1,
        "a record that is not a JSON object": 1,
    }
    assert data.problems.examples["a turn without words"] == [f"{file} row 3"]


def test_multitask_conversation(tmp_path):
    words = [
        "<image>\n[grounding] describe it",
        "<p>a man</p> {<10><20><54><98>} walks",
        "[refer] his hat",
        "{<12><20><30><31>}",
        "thanks",
        "You are welcome.",
    ]
    rows = [{"id": "000000111222", "conversations": _turns(*words)}]
    files = {"multitask_conversation.json": rows, "train2014/COCO_train2014_000000111222.jpg": None}
    data = opened("multitask_conversation", tmp_path, files)
    sample = data[0]
    assert said(sample) == ["[grounding] describe it", *words[1:]]
    assert sample.image.name == "COCO_train2014_000000111222.jpg"
    (box,) = parse(said(sample)[1], 100, 100).boxes
    assert (box.phrase, box.xyxy) == ("a man", (10, 20, 54, 98))


def _instance(**changes) -> dict:
    return {
        "instruction_with_input": "Say it: Tom",
        "input": "Tom",
        "constraints": "None.",
        "output": "Tom!",
        **changes,
    }


def test_unnatural_instructions(tmp_path):
    rows = [
        {
            "instruction": "Say it",
            "instances": [_instance(), _instance(output=" "), _instance(constraints="In 1 word.")],
        },
        {"instruction": "Say it"},
        {"instruction": "x", "instances": [_instance(constraints=None)], "reformulations": [_instance(input="r")]},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n{\n"
    data = opened("unnatural_instructions", tmp_path, {"data/core_data.jsonl": text})
    assert [said(data[i]) for i in range(len(data))] == [
        ["Say it: Tom", "Tom!"],
        ["Say it: Tom In 1 word.", "Tom!"],
        ["Say it: Tom", "Tom!"],
        ["Say it: Tom", "Tom!"],
    ]
    assert data[0].image is None
    assert data.problems.counts == {
        "an empty instruction or output": 1,
        "no 'instances'": 1,
        "a line that is not JSON (it ends in the middle)": 1,
    }
    filtered = opened(
        "unnatural_instructions", tmp_path, {"filtered_unnatural_instruction.json": rows[:1]}, split="filtered"
    )
    assert len(filtered) == 2


def test_reading_opens_no_image(tmp_path):
    """The images of these tests are empty files: opening one would fail."""
    data = open_dataset("textcaps", {"root": _textcaps(tmp_path)})
    with pytest.raises(UserError, match="empty"):
        open_image(data[0].image)


def _textcaps(root: Path) -> str:
    (root / "train_images").mkdir()
    (root / "train_images" / "a.jpg").touch()
    (root / "TextCaps_0.1_train.json").write_text('{"data": [{"image_id": "a", "caption_str": "a dog"}]}')
    return str(root)
