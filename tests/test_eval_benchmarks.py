"""Every benchmark: known answers give the figures that were counted by hand, and real fragments run to the end."""

import hashlib
import json
from pathlib import Path

import pytest

from minigptv2.boxes import Box, format_box
from minigptv2.eval.benchmark import BenchmarkReport, Figure, Prediction, ScoringRules, open_benchmark
from minigptv2.eval.bootstrap import bootstrap
from minigptv2.eval.predictions import fingerprint
from minigptv2.eval.report import page

DATA = Path(__file__).parent / "data"
STRICT, COMPAT = ScoringRules(), ScoringRules("compat")


def scored(name: str, options: dict, texts: list, rules: ScoringRules = STRICT, **more):
    """Figures, and what was scored. texts: by item, None where there is no answer; more: of every Prediction."""
    benchmark = open_benchmark(name, {k: str(v) if isinstance(v, Path) else v for k, v in options.items()})
    items = benchmark.items()
    assert len(items) == len(texts), "one text for each item"
    given = {
        i.index: Prediction(i.index, "", "missing") if text is None else Prediction(i.index, text, **more)
        for i, text in zip(items, texts)
    }
    found = benchmark.score(items, given, rules)
    assert found.total == len(items) == len(found.cases)
    assert len(fingerprint(benchmark.files)) == 16
    figures = found.figures([i.index for i in items])
    assert all(case.score is None or 0 <= case.score <= 1 for case in found.cases)
    assert all(low <= high for low, high in bootstrap(found, items, 9, corpus_resamples=3).values())
    told = {n: Figure(v) for n, v in figures.items()}
    report = BenchmarkReport(
        name,
        name,
        {},
        "a model",
        rules,
        told,
        found.total,
        len(found.invalid),
        score_description=found.score_description,
        cases=found.cases,
    )
    assert page([report]).endswith("</html>\n")
    return figures, found


def lines(file: Path, rows: list) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def write(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


# ---- words ----


def test_vsr_reads_true_and_false_in_any_case_and_nothing_else(tmp_path):
    labels = [1, 1, 0, 0, 1, 1, 0]
    rows = [{"image": "000000000001.jpg", "caption": f"s {n}", "label": label} for n, label in enumerate(labels)]
    lines(tmp_path / "zeroshot" / "test.jsonl", rows)
    texts = ["true", "True.", "the statement is FALSE", "true", "yes", "true or false", None]
    figures, found = scored("vsr", {"root": tmp_path}, texts)
    assert figures == {"accuracy": 3 / 7} and found.invalid == {4, 5}
    benchmark = open_benchmark("vsr", {"root": str(tmp_path)})
    assert benchmark.items()[0].instruction == "[vqa] Based on the image, is this statement true or false? s 0"
    assert [p.value for p in benchmark.published["accuracy"]] == [0.606, 0.633]


@pytest.fixture
def questions(tmp_path) -> dict:
    """Three questions, a second one of the same number, one without an annotation."""
    answers = (["white"] * 3 + ["off white"] * 7, ["two"] * 2 + ["2"] * 2 + ["3"] * 6, ["yes"] * 10)
    kinds = ("other", "number", "yes/no")
    asked = [{"image_id": 7, "question_id": n, "question": f"q {n}"} for n in (1, 2, 3, 3, 4)]
    given = [
        {"image_id": 7, "question_id": n, "answer_type": kind, "answers": [{"answer": a} for a in words]}
        for n, kind, words in zip((1, 2, 3), kinds, answers)
    ]
    write(tmp_path / "q.json", {"questions": asked})
    write(tmp_path / "a.json", {"annotations": given})
    return {"root": tmp_path, "questions": "q.json", "annotations": "a.json"}


def test_vqa_is_the_mean_over_the_ten_subsets_of_nine(questions):
    """ "white" has 3 of 10: each of 3 subsets has 2, of 7 has 3: (3 * 2/3 + 7) / 10 = .9. "Two" has 4 after the
    normalisation: 1. "Yes." has 10."""
    figures, found = scored("vqav2", questions, ["A white", "Two", "Yes."])
    assert figures["accuracy"] == pytest.approx((0.9 + 1 + 1) / 3)
    assert figures["accuracy, other"] == pytest.approx(0.9) and figures["accuracy, number"] == 1
    figures, found = scored("vqav2", questions, ["", None, "no"])
    assert figures["accuracy"] == 0 and found.invalid == {0}
    benchmark = open_benchmark("vqav2", {k: str(v) for k, v in questions.items()})
    assert set(benchmark.excluded) == {3, 4} and len(benchmark.problems.counts) == 2


def test_okvqa_has_its_published_figure_and_vizwiz_its_own_words(tmp_path):
    rows = [
        {
            "image": "VizWiz_val_0.jpg",
            "question": "what?",
            "answer_type": "unanswerable",
            "answers": [{"answer": "unanswerable"}] * 9 + [{"answer": "a can"}],
        }
    ]
    write(tmp_path / "val.json", rows)
    figures, _ = scored("vizwiz", {"root": tmp_path}, ["Unanswerable"])
    assert figures == {"accuracy": 1, "accuracy, unanswerable": 1}
    (item,) = open_benchmark("vizwiz", {"root": str(tmp_path)}).items()
    assert item.instruction.startswith("[vqa] The question is 'what?' Based on")


def test_gqa_reads_both_forms(tmp_path):
    row = {"question": "which side?", "answer": "left"}
    write(tmp_path / "testdev_balanced_questions.json", {"9": row | {"imageId": "n1"}, "8": row | {"imageId": "n2"}})
    write(tmp_path / "flat.json", [row | {"image": "n1.jpg"}, row | {"image": "n2.jpg"}])
    for more in ({}, {"questions": "flat.json"}):
        figures, found = scored("gqa", {"root": tmp_path, **more}, ["Left.", "right"])
        assert figures == {"accuracy": 0.5} and not found.invalid
        assert scored("gqa", {"root": tmp_path, **more}, ["Left.", "LEFT"], COMPAT)[0] == {"accuracy": 0.5}


def test_iconqa_ranks_choices(tmp_path):
    for number, answer in ((2, 0), (10, 1)):
        folder = tmp_path / "val" / "choose_txt" / str(number)
        write(folder / "data.json", {"question": "what time?", "choices": ["6:00", "12:05"], "answer": answer})
    figures, found = scored("iconqa", {"root": tmp_path}, ["6:00", "6:00"])
    assert figures == {"accuracy": 0.5} and not found.invalid
    assert scored("iconqa", {"root": tmp_path}, ["6:00", "noon"])[1].invalid == {1}


def test_hateful_memes_gives_accuracy_and_area(tmp_path):
    rows = [{"id": n, "img": f"img/{n}.png", "label": label, "text": "t"} for n, label in enumerate((0, 0, 1, 1))]
    lines(tmp_path / "dev.jsonl", rows)
    benchmark = open_benchmark("hateful_memes", {"root": str(tmp_path)})
    items = benchmark.items()
    assert items[0].candidates == ("no", "yes") and not items[0].instruction.startswith("[")
    chances = [(-1, -2), (-2, -1), (-2, -1.5), (-3, -1)]  # log-probabilities of no and yes
    given = {i: Prediction(i, ("no", "yes")[y > n], logprobs=(n, y)) for i, (n, y) in enumerate(chances)}
    figures = benchmark.score(items, given, ScoringRules()).figures(range(4))
    assert figures == {"accuracy": 0.75, "AUC": 0.75}  # of 4 pairs one, (1, 2), is the wrong way round
    figures, found = scored("hateful_memes", {"root": tmp_path}, ["No.", "it is not", "yes", None])
    assert figures["accuracy"] == 0.5 and found.invalid == {1}
    assert figures["AUC"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)


def test_pope_counts_yes(tmp_path):
    rows = [
        {"question_id": n, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog?", "label": label}
        for n, label in enumerate(("yes", "yes", "no", "no", "no"))
    ]
    lines(tmp_path / "coco_pope_adversarial.json", rows)
    figures, found = scored("pope", {"root": tmp_path}, ["Yes, there is", "no", "yes", "No.", "perhaps"])
    assert found.invalid == {4} and figures["accuracy"] == 0.4
    assert figures["precision"] == pytest.approx(1 / 3) and figures["recall"] == 0.5
    assert figures["F1"] == pytest.approx(0.4) and figures["yes ratio"] == 0.4
    figures, found = scored("pope", {"root": tmp_path}, ["a dog", "no", "yes", "No.", "there is not"], COMPAT)
    assert not found.invalid and figures["accuracy"] == 0.6


# ---- boxes ----


@pytest.fixture
def instances(tmp_path) -> dict:
    """Two images of 100 x 100 pixels, a cat and two dogs; rows that are wrong."""
    images = [{"id": n, "width": 100, "height": 100} for n in (5, 9, 9)] + [{"id": 11, "width": 0, "height": 9}]
    things = [
        {"id": 1, "image_id": 5, "category_id": 17, "bbox": [10, 10, 40, 40]},
        {"id": 2, "image_id": 9, "category_id": 18, "bbox": [0, 0, 50, 50]},
        {"id": 3, "image_id": 9, "category_id": 18, "bbox": [50, 50, 50, 50]},
        {"id": 4, "image_id": 9, "category_id": 18, "bbox": [200, 0, 50, 50]},
        {"id": 5, "image_id": 77, "category_id": 18, "bbox": [0, 0, 50, 50]},
        {"id": 1, "image_id": 5, "category_id": 17, "bbox": [0, 0, 50, 50]},
        {"id": 7, "image_id": 5, "category_id": 17, "bbox": [0, 0, 50]},
    ]
    kinds = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 19, "name": "traffic light"}]
    write(tmp_path / "instances.json", {"images": images, "annotations": things, "categories": kinds})
    return {"root": tmp_path, "annotations": "instances.json"}


CAT = "<p>cat</p> {<10><10><50><50>}"
DOGS = "<p>dog</p> {<0><0><50><50>}<delim>{<50><50><100><100>}"


def test_detection_is_average_precision_with_the_scores_of_the_boxes(instances):
    figures, found = scored("coco_detection", instances, [CAT, DOGS])
    assert figures == {"AP": 1, "AP50": 1, "AP75": 1} and not found.invalid
    figures, found = scored("coco_detection", instances, [CAT, "There is no dog in the picture."])
    assert figures["AP"] == pytest.approx(0.5) and not found.invalid  # the mean over two kinds
    one_of_two = "<p>dog</p> {<0><0><50><50>}<delim>{<0><60><20><90>}"
    benchmark = open_benchmark("coco_detection", {k: str(v) for k, v in instances.items()})
    items = benchmark.items()
    for scores, wanted in (((0.9, 0.1), 51 / 101), ((0.1, 0.9), 0.5 * 51 / 101)):
        given = {0: Prediction(0, CAT), 1: Prediction(1, one_of_two, scores=scores)}
        figures = benchmark.score(items, given, ScoringRules()).figures([0, 1])
        assert figures["AP50"] == pytest.approx((1 + wanted) / 2)  # recall 0 to .5 is 51 of 101 points
    _, found = scored("coco_detection", instances, [CAT + " {<9", "<p>unicorn</p> {<1><2><3><4>}"])
    assert found.invalid == {0} and found.counts == {"boxes of no known category": 1}


def test_detection_scores_an_image_by_f1_and_each_box_by_itself(instances):
    _, found = scored("coco_detection", instances, [None, "<p>dog</p> {<0><0><50><50>}<delim>{<0><60><20><90>}"])
    assert [(c.score, c.box_found) for c in found.cases] == [(0, (False,)), (0.5, (True, False))]
    file = instances["root"] / "instances.json"
    content = json.loads(file.read_text())
    content["annotations"][2]["iscrowd"] = 1
    write(file, content)
    _, found = scored("coco_detection", instances, [CAT, DOGS])
    assert found.cases[1].box_found == (True, None)  # a crowd is neither found nor missed


def test_detection_asks_for_present_or_all_categories_and_counts_invalid_rows(instances):
    benchmark = open_benchmark("coco_detection", {k: str(v) for k, v in instances.items()})
    assert [i.instruction for i in benchmark.items()] == ["[detection] cat", "[detection] dog"]
    assert set(benchmark.excluded) == {2, 3} and sum(benchmark.problems.counts.values()) == 6
    every = open_benchmark("coco_detection", {k: str(v) for k, v in instances.items()} | {"categories": "all"})
    assert [i.instruction for i in every.items()] == ["[detection] cat, dog, traffic light"] * 2


def test_absent_phrases_are_categories_without_annotation(instances):
    items = open_benchmark("absent", {k: str(v) for k, v in instances.items()}).items()
    assert items[0].truth in ("dog", "traffic light") and items[1].truth in ("cat", "traffic light")
    figures, found = scored("absent", instances, ["There is no dog in the picture.", CAT])
    assert figures == {"refused": 0.5} and not found.invalid
    assert scored("absent", instances, ["", "{<1>"])[1].invalid == {0, 1}


@pytest.fixture
def entities(tmp_path) -> dict:
    sentences = ["[/EN#1/people A man] holds [/EN#2/other a dog] .", "[/EN#1/people The man] waits ."]
    box = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>100</ymax></bndbox>"
    things = "".join(f"<object><name>{n}</name>{box.format(*x)}</object>" for n, x in ((1, (1, 50)), (2, (51, 100))))
    for folder, name, text in (
        ("Sentences", "7.txt", "\n".join(sentences)),
        (
            "Annotations",
            "7.xml",
            f"<annotation><size><width>100</width><height>100</height></size>{things}</annotation>",
        ),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "test.txt").write_text("7\n")
    return {"root": tmp_path}


def test_flickr30k_counts_phrases(entities):
    caption = "<p>A man</p> {<0><0><50><100>} with <p>a cat</p> {<50><0><100><100>}"
    figures, found = scored("flickr30k", entities, [caption])
    assert found.counts == {"phrases": 3}
    assert list(figures.values()) == [1, pytest.approx(2 / 3)]  # the dog's box is found under another name
    texts = ["<p>a man</p> {<0><0><50><100>} <p>a dog</p> {<0><0><10><10>}<delim>{<50><0><100><100>}", "no"]
    figures, found = scored("flickr30k", entities | {"task": "phrases"}, texts)
    assert list(figures.values()) == [pytest.approx(1 / 3)] and found.invalid == {1}


# ---- captions ----


def test_captions_are_rows_of_the_images(tmp_path):
    images = [{"id": n} for n in (4, 2, 2, 9)]
    captions = [
        {"image_id": n, "caption": c}
        for n, c in ((2, "a red bus on the street"), (4, "a man rides a horse"), (4, "a person on a horse"))
    ]
    write(tmp_path / "captions_val2017.json", {"images": images, "annotations": captions})
    options = {"root": tmp_path, "split": "val2017"}
    benchmark = open_benchmark("coco_caption", {"root": str(tmp_path), "split": "val2017"})
    assert [(i.index, len(i.truth)) for i in benchmark.items()] == [(0, 2), (1, 1)]
    assert set(benchmark.excluded) == {2, 3}
    figures, found = scored("coco_caption", options, ["a man rides a horse", "a red bus on the street"])
    assert figures["BLEU-4"] == pytest.approx(1) and figures["ROUGE-L"] == pytest.approx(1) and figures["CIDEr"] > 5
    worse, found = scored("coco_caption", options, ["a red bus on the street", ""])
    assert worse["CIDEr"] < 1 and found.invalid == {1}


def test_karpathy_splits_keep_an_image_without_its_bad_caption(tmp_path):
    """As training does: the caption alone is dropped, and counted; an image without any is excluded by its number."""
    captions = {1: ["a dog", 7], 2: [], 3: ["a cat"]}
    images = [{"cocoid": n, "split": "test", "sentences": [{"raw": c} for c in texts]} for n, texts in captions.items()]
    write(tmp_path / "dataset_coco.json", {"images": [{"cocoid": 9, "split": "val", "sentences": []}, *images]})
    benchmark = open_benchmark("coco_caption", {"root": str(tmp_path)})
    assert [(i.index, i.key, i.truth) for i in benchmark.items()] == [(0, "1", ("a dog",)), (2, "3", ("a cat",))]
    assert benchmark.excluded == {1: "an image without captions"}
    assert list(benchmark.problems.counts) == ["a 'raw' of the wrong type", "an image without captions"]


@pytest.mark.slow
def test_words_for_a_box_are_asked_once_per_object(tmp_path):
    row = {"img_id": "COCO_train2014_000000000001_3", "bbox": [10, 20, 30, 40], "height": 100, "width": 100}
    rows = [row | {"sents": s} for s in ("red ball", "the ball")] + [row | {"sents": "cup", "bbox": [0, 0, 9, 9]}]
    write(tmp_path / "refcoco_val.json", rows)
    benchmark = open_benchmark("reg", {"root": str(tmp_path)})
    assert [(i.index, i.truth[1]) for i in benchmark.items()] == [(0, ("red ball", "the ball")), (2, ("cup",))]
    assert benchmark.items()[0].instruction == "[identify] {<10><20><40><60>}" and set(benchmark.excluded) == {1}
    figures, found = scored("reg", {"root": tmp_path}, ["red ball", ""])
    assert figures["CIDEr"] > 0 and 0 < figures["METEOR"] <= 1 and found.invalid == {2}


# ---- the generated world ----


def test_questions_about_scenes_are_unchanged():
    """The digest is of the questions that the bundled model's figures in README were measured with."""
    items = open_benchmark("scenes", {"count": 60, "size": 112}).items()
    text = json.dumps([i.instruction for i in items])
    assert (len(items), hashlib.sha256(text.encode()).hexdigest()[:16]) == (397, "e31071a2962be972")
    assert {i.image_key for i in items} == {f"scene {n}" for n in range(60)} and items[0].image().size == (112, 112)


def test_correct_answers_about_scenes_score_one():
    from minigptv2.tasks import answer_text

    benchmark = open_benchmark("scenes", {"count": 3, "size": 224})
    items = benchmark.items()
    right = {i.index: Prediction(i.index, answer_text(i.truth[1], i.size, "round")) for i in items}
    figures = benchmark.score(items, right, ScoringRules()).figures([i.index for i in items])
    assert {name for name, value in figures.items() if value != 1} == {"malformed answers"}
    wrong = {i.index: Prediction(i.index, "{<1><2>", "length") for i in items}
    found = benchmark.score(items, wrong, ScoringRules())
    figures = found.figures([i.index for i in items])
    assert figures["malformed answers"] == 1 and len(found.invalid) == len(items)
    assert all(value == 0 for name, value in figures.items() if name != "malformed answers")


# ---- real fragments, to the end, with the bundled model ----

FRAGMENTS = [
    {"benchmark": "refcoco", "root": "refcocog", "images": "refcocog/images", "dataset": "refcocog", "limit": 3},
    {"benchmark": "vsr", "root": "vsr", "images": "vsr/images", "limit": 3},
    {
        "benchmark": "vqav2",
        "root": "coco_text",
        "images": "coco_text/images",
        "limit": 3,
        "questions": "vqa_questions.json",
        "annotations": "vqa_annotations.json",
    },
    {
        "benchmark": "coco_caption",
        "root": "coco_text",
        "images": "coco_text/images",
        "limit": 1,
        "captions": "captions.json",
    },
    {"benchmark": "coco_detection", "root": "coco", "split": "val2017", "limit": 1},
    {"benchmark": "absent", "root": "coco", "split": "val2017", "limit": 1},
]


@pytest.mark.slow
def test_genuine_fragments_end_to_end(tmp_path, capsys):
    from minigptv2.eval import runner

    runs = [{k: str(DATA / v) if k in ("root", "images") else v for k, v in f.items()} for f in FRAGMENTS]
    config = write(tmp_path / "config.yaml", {"output": str(tmp_path / "out"), "device": "cpu", "runs": runs})
    reports = runner.run(config)
    told = capsys.readouterr().out
    for fragment, report in zip(FRAGMENTS, reports, strict=True):
        assert report.total == fragment["limit"] and not report.missing and report.figures
        assert f"| {report.name} | measured |" in told
        assert all(0 <= f.value <= 10 for f in report.figures.values())
    whole = json.loads((tmp_path / "out" / "report.json").read_text())["reports"]
    assert [r["name"] for r in whole] == [r.name for r in reports]
    assert len(list((tmp_path / "out").glob("*/answers.jsonl"))) == len(FRAGMENTS)
    assert (tmp_path / "out" / "report.html").stat().st_size > 5000


def test_every_row_of_a_real_detection_file_scored_with_its_own_boxes():
    """Cut to hundredths, the boxes of COCO still reach most of AP50; every class has its phrase."""
    options = {"root": DATA / "coco", "split": "val2017"}
    benchmark = open_benchmark("coco_detection", {k: str(v) for k, v in options.items()})
    texts = []
    for item in benchmark.items():
        classes: dict[str, list[str]] = {}
        for thing in item.truth[1]:
            x, y, w, h = thing["bbox"]
            box = format_box(Box(x, y, x + w, y + h), *item.size)
            if not thing["iscrowd"]:
                classes.setdefault(benchmark.names[thing["category_id"]], []).append(box)
        texts.append(" ".join(f"<p>{k}</p> " + "<delim>".join(b) for k, b in classes.items()))
    figures, _ = scored("coco_detection", options, texts)
    assert figures["AP50"] == pytest.approx(0.9873987, abs=1e-6) and figures["AP"] == pytest.approx(0.8621558, abs=1e-6)


# ---- names of images ----

NAMES = ("a  b.jpg", " lead.jpg", "no\u00a0break.jpg", "wide\u3000space\u202f.jpg", "sub\\back.jpg", "plain.jpg")
NO_PATHS = ("data:image/png;base64," + "A" * 5000, "x" * 5000, "nul\0.jpg")


@pytest.mark.parametrize("form", ["gqa", "vizwiz", "hateful_memes", "coco_caption"])
def test_image_names_are_kept_exactly_and_invalid_ones_are_counted(tmp_path, form):
    """An image that is not there keeps its row, which the runner tells; a name that is no path loses it, by cause."""
    from PIL import Image

    for name in NAMES[:-1]:
        (tmp_path / "sub").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name.replace("\\", "/"))
    names = [*NAMES, *NO_PATHS]
    if form == "gqa":
        rows = [{"image": n, "question": "q", "answer": "a"} for n in names]
        write(tmp_path / "testdev_balanced_questions.json", rows)
    elif form == "vizwiz":
        write(tmp_path / "val.json", [{"image": n, "question": "q", "answers": [{"answer": "a"}]} for n in names])
    elif form == "hateful_memes":
        lines(tmp_path / "dev.jsonl", [{"id": i, "img": n, "text": "t", "label": 1} for i, n in enumerate(names)])
    else:
        write(
            tmp_path / "captions.json",
            {
                "images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
                "annotations": [{"image_id": i, "caption": "c"} for i in range(len(names))],
            },
        )
    more = {"captions": "captions.json"} if form == "coco_caption" else {"images": str(tmp_path)}
    benchmark = open_benchmark(form, {"root": str(tmp_path), **more})
    items = benchmark.items()
    assert [i.image for i in items] == [tmp_path / n.replace("\\", "/") for n in NAMES]
    assert [i.image.is_file() for i in items] == [True] * 5 + [False]
    assert set(benchmark.excluded) == {6, 7, 8}
    told = "\n".join(benchmark.problems.lines())
    assert "base64" in told and "too long" in told and "NUL" in told and len(told) < 1000


def test_file_name_decides_the_image_of_captions(tmp_path):
    """A COCO name in any release; an id that was numbered anew is not the image's."""
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "000000000007.jpg").write_bytes(b"x")
    (tmp_path / "val2017" / "000000000001.jpg").write_bytes(b"x")
    images = [{"id": 1, "file_name": "COCO_val2014_000000000007.jpg"}]
    write(tmp_path / "c.json", {"images": images, "annotations": [{"image_id": 1, "caption": "c"}]})
    (item,) = open_benchmark("coco_caption", {"root": str(tmp_path), "captions": "c.json"}).items()
    assert item.image == tmp_path / "val2017" / "000000000007.jpg" and item.key == "1"


# ---- answers as other programs list them ----


def read_rows(benchmark, tmp_path, rows, one_a_line=False):
    from minigptv2.eval import formats

    file = tmp_path / "theirs.json"
    file.write_text("\n".join(map(json.dumps, rows)) if one_a_line else json.dumps(rows))
    items = benchmark.items()
    form = formats.form_of(file)
    assert form == ("lines" if one_a_line else "rows")
    found, _, problems = formats.read(form, file, items, items, {}, benchmark.excluded)
    return {index: p.text for index, p in found.items()}, list(problems.lines())


@pytest.mark.parametrize("one_a_line", [False, True])
def test_answers_are_found_by_question_id(questions, tmp_path, one_a_line):
    """Rows 3 and 4 of the questions are left out: a second question 3, and one without an annotation."""
    benchmark = open_benchmark("vqav2", {k: str(v) for k, v in questions.items()})
    rows = [
        {"question_id": 2, "answer": "two"},
        {"answer": "white", "question_id": "1"},
        {"question_id": 2.0, "text": "x"},
        {"question_id": 99, "answer": "z"},
    ]
    found, told = read_rows(benchmark, tmp_path, rows, one_a_line)
    assert found == {0: "white", 1: "two"}
    assert told == [
        "1 x a second answer to a question, where the first counts: row 2, 2",
        "1 x an answer to no question of the set: row 3, 99",
    ]


def test_answers_without_names_are_matched_by_row(tmp_path):
    from minigptv2.errors import UserError

    row = {"question": "which side?", "answer": "left"}
    write(tmp_path / "flat.json", [row | {"image": "n1.jpg"}, {"question": "x"}, row | {"image": "n2.jpg"}])
    flat = open_benchmark("gqa", {"root": str(tmp_path), "questions": "flat.json"})
    rows = [{"pred": "left", "gt": "left"}, {"pred": "a", "gt": "b"}, {"pred": "right", "gt": "Left"}]
    assert read_rows(flat, tmp_path, rows) == ({0: "left", 2: "right"}, ["1 x an answer to a row left out: row 1"])
    with pytest.raises(UserError, match="holds 2 answers that do not name"):
        read_rows(flat, tmp_path, rows[:2])
    with pytest.raises(UserError, match="row 2 says that 'up' is correct"):
        read_rows(flat, tmp_path, [*rows[:2], {"pred": "right", "gt": "up"}])
    with pytest.raises(UserError, match="no such names"):
        read_rows(flat, tmp_path, [{"question_id": 1, "answer": "left"}] * 3)
    lines(tmp_path / "dev.jsonl", [{"id": i, "img": "a.png", "text": "t", "label": n} for i, n in enumerate((0, 1, 1))])
    memes = open_benchmark("hateful_memes", {"root": str(tmp_path)})
    found, _ = read_rows(memes, tmp_path, [{"pred": p, "gt": g} for p, g in ((1, 0), (1, 1), ("maybe", 1))])
    assert found == {0: "yes", 1: "yes", 2: "maybe"}


def test_official_result_files_of_other_sets_are_read(tmp_path):
    row = {"question": "which side?", "answer": "left", "imageId": "n1"}
    write(tmp_path / "testdev_balanced_questions.json", {"07": row, "8": row})
    gqa = open_benchmark("gqa", {"root": str(tmp_path)})
    assert read_rows(gqa, tmp_path, [{"questionId": "07", "prediction": "up"}])[0] == {0: "up"}
    write(tmp_path / "val.json", [{"image": "V 1.jpg", "question": "q", "answers": [{"answer": "a"}]}])
    vizwiz = open_benchmark("vizwiz", {"root": str(tmp_path)})
    assert read_rows(vizwiz, tmp_path, [{"image": "V 1.jpg", "answer": "up"}])[0] == {0: "up"}
    assert read_rows(vizwiz, tmp_path, [{"answer": "up"}])[0] == {0: "up"}
    write(tmp_path / "c.json", {"annotations": [{"image_id": 42, "caption": "c"}]})
    captions = open_benchmark("coco_caption", {"root": str(tmp_path), "captions": "c.json"})
    assert read_rows(captions, tmp_path, [{"image_id": 42, "caption": "a dog"}])[0] == {0: "a dog"}
