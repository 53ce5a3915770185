import base64
import io
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.eval import plots, report
from minigptv2.eval.benchmark import BenchmarkReport, Figure, Published, ScoredAnswer, ScoringRules

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&\x00"


class Page(HTMLParser):
    """Every start tag with its attributes, and all text by the tag it stands in."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)

    def count(self, tag, **wanted):
        return sum(t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items()) for t, a in self.tags)


def of(cases, **changed):
    published = (Published("MiniGPT-v2", 0.8869, "arXiv 2310.09478v1"),)
    figures = {"accuracy": Figure(0.5, 0.4, 0.6, published), "CIDEr": Figure(1.25)}
    asked = {"name": "refcoco val", "benchmark": "refcoco", "settings": {"split": "val"}, "model": "bundled"}
    counted = {"total": len(cases), "invalid": 3, "missing": 2, "cases": cases}
    return BenchmarkReport(**asked, rules=ScoringRules(), figures=figures, **counted, **changed)


@pytest.fixture
def cases(image):
    """100 questions about an image of 640 x 400: 70 wrong ones, of which the higher numbers are the worse."""
    out = []
    for i in range(100):
        truth = Box(100, 100, 200, 200)
        answer = Box(100 + i, 100, 200 + i, 200) if i < 70 else truth
        out.append(
            ScoredAnswer(
                i, image, f"the red thing {i}", f"answer {i}", "", (truth,), (answer,), float(i >= 70), (640, 400)
            )
        )
    return out


def test_page_is_complete_and_loads_nothing(tmp_path, cases):
    report.write(tmp_path, [of(cases), of(cases[:5])])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and text.lower().startswith("<!doctype html>")
    assert not {t for t, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "use"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith("data:image/jpeg;base64," if tag == "img" else "#b"), (tag, name, value[:40])
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.count("meta", name="viewport") == 1
    assert page.count("title", lang=None) == 1 + 2 * 3  # of the page, and of three plots for each report


def test_fifty_worst_and_twenty_random_cases_are_shown_with_their_boxes(tmp_path, cases):
    report.write(tmp_path, [of(cases)])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.count("article", class_="case") == 70
    assert page.count("img") == 70
    legends = 2  # of the worst answers and of the random ones
    assert page.count("rect", class_="truth") == 70 + legends
    assert page.count("rect", class_="answer") == 70 + legends
    assert len(report.worst_cases(of(cases))) == 50
    assert [c.index for c in report.worst_cases(of(cases))][:3] == [69, 68, 67]
    drawn = [c.index for c in report.random_cases(of(cases))]
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn)
    assert drawn == [c.index for c in report.random_cases(of(cases))]
    assert sum(t == f"#{i}" for t in page.texts for i in range(100)) == 70
    shown = json.loads((tmp_path / "report.json").read_text())["reports"][0]["shown"]
    assert shown["random"] == drawn and shown["worst"][0] == 69


def test_figures_published_ones_and_counts_are_on_the_page_and_in_the_json(tmp_path, cases):
    told = of(cases, counts={"several boxes": 7}, problems=["3 x a box outside: val.json row 1"], absent=4)
    report.write(tmp_path, [told])
    texts = " ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts)
    for wanted in (
        "50.00",
        "40.00\u201360.00",
        "88.69",
        "MiniGPT-v2, arXiv 2310.09478v1",
        "125.00",
        "answers 100",
        "malformed 3",
        "missing 2",
        "several boxes 7",
        "images not on disk 4",
        "val.json row 1",
        "strict",
        "split val",
        "model bundled",
    ):
        assert wanted in texts, wanted
    found = json.loads((tmp_path / "report.json").read_text())["reports"][0]
    assert found["figures"]["accuracy"]["value"] == 0.5 and found["figures"]["accuracy"]["low"] == 0.4
    assert found["figures"]["accuracy"]["published"] == [
        {"model": "MiniGPT-v2", "value": 0.8869, "source": "arXiv 2310.09478v1"}
    ]
    assert found["total"] == 100 and found["invalid"] == 3 and found["rules"]["scoring"] == "strict"
    assert "cases" not in found and not list(tmp_path.glob("*.new"))


def test_hostile_text_is_escaped(tmp_path, image):
    case = ScoredAnswer(
        0, image, HOSTILE, HOSTILE, HOSTILE, (Box(0, 0, 9, 9, HOSTILE),), (Box(0, 0, 9, 9, HOSTILE),), 0.0
    )
    told = of([case], problems=[HOSTILE], counts={HOSTILE: 1})
    told.name = told.model = told.benchmark = HOSTILE
    told.settings, told.figures = (
        {HOSTILE: HOSTILE},
        {HOSTILE: Figure(0.1, published=(Published(HOSTILE, 1, HOSTILE),))},
    )
    report.write(tmp_path, [told])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.count("script") and "<script" not in text
    assert all("evil" not in a.get("src", "") and "onerror" not in a for _, a in page.tags)
    assert page.texts.count(HOSTILE.replace("\x00", " ")) >= 8


def test_questions_without_boxes_show_question_truth_and_answer(tmp_path, image):
    cases = [
        ScoredAnswer(0, image, "what colour?", "blue", "red, maroon", score=0.3),
        ScoredAnswer(1, image, "how many?", "", "2"),
        ScoredAnswer(2, None, "which of these is text?", "both", "both", score=1.0),
    ]
    report.write(tmp_path, [of(cases)])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    texts = " ".join(page.texts)
    assert "asked what colour? truth red, maroon answer blue" in texts and "partly 0.30" in texts
    assert "answer empty" in texts and "no image" in texts and "IoU" not in texts.split("Scores by size")[1]
    assert not page.count("rect", class_="truth") and "truth (solid)" not in texts


def test_an_image_that_cannot_be_opened_is_replaced_by_the_reason(tmp_path):
    gone = tmp_path / "gone <b>.jpg"
    report.write(tmp_path, [of([ScoredAnswer(0, gone, "x", "y", score=0.0)])])
    assert any("gone <b>.jpg does not exist" in t for t in Page((tmp_path / "report.html").read_text()).texts)


@pytest.mark.slow
def test_images_shrink_until_the_page_is_small_enough(tmp_path, monkeypatch):
    """Noise does not compress: 70 images of it would take 25 MB at full size."""
    noise = tmp_path / "noise.png"
    Image.effect_noise((900, 1400), 90).convert("RGB").save(noise)
    cases = [ScoredAnswer(i, noise, "x", "y", score=0.0, truth=(Box(10, 20, 300, 400),)) for i in range(70)]
    monkeypatch.setattr("minigptv2.eval.report._MAX_BYTES", 1_000_000)
    report.write(tmp_path, [of(cases)])
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 1_200_000
    images = [a for t, a in Page(text).tags if t == "img"]
    assert {(a["width"], a["height"]) for a in images} == {("900", "1400")}  # the shape of the place stays
    small = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition(",")[2])))
    assert small.format == "JPEG" and small.height in report._SIDES and abs(small.width / small.height - 9 / 14) < 0.02
    assert 'viewBox="0 0 900 1400"' in text and 'x="10.0" y="20.0" width="290.0" height="380.0"' in text


def test_without_cases_or_figures_there_is_still_a_page(tmp_path):
    empty = of([])
    empty.figures = {}
    report.write(tmp_path / "new" / "folder", [empty])
    page = Page((tmp_path / "new/folder/report.html").read_text())
    assert page.open == [] and not page.count("article") and not page.count("figure")


def test_iou_of_a_case_is_the_scored_one(cases):
    near = ScoredAnswer(0, None, "", "", "", (Box(0, 0, 9, 9),), (Box(5, 0, 14, 9),))
    assert report.case_iou(near, of([])) == pytest.approx(36 / 126)
    compat = of([])
    compat.rules = ScoringRules("compat")
    assert report.case_iou(near, compat) == pytest.approx(1 / 3)
    assert report.case_iou(ScoredAnswer(0, None, "", "", "", (Box(0, 0, 9, 9),)), of([])) == 0.0
    assert report.case_iou(ScoredAnswer(0, None, "", ""), of([])) is None
    assert (
        report.case_iou(ScoredAnswer(0, None, "", "a cat", "a dog", (Box(0, 0, 9, 9),)), of([])) is None
    )  # words were asked for


# ---- plots ----


def case(right, side=10.0, words="x", x=5.0, y=5.0, size=(90, 90)):
    return ScoredAnswer(0, None, words, "", "", (Box(x, y, x + side, y + side),), (), right, size)


def test_bins_hold_every_case_once_with_its_mean():
    bins = plots.by_size([case(1, 31.9), case(0, 32), case(1, 32), case(1, 63.9), case(0, 1000)])
    assert [(b.label, b.count, b.mean) for b in bins] == [
        ("0\u201332", 1, 1),
        ("32\u201364", 3, 2 / 3),
        ("64\u201396", 0, 0),
        ("96\u2013160", 0, 0),
        ("160\u2013256", 0, 0),
        ("256+", 1, 0),
    ]
    words = plots.by_length([case(1, words="a " * n) for n in (1, 2, 4, 5, 6, 7, 9, 10, 40)])
    assert [(b.label, b.count) for b in words] == [
        ("1", 1),
        ("2", 1),
        ("3", 0),
        ("4", 1),
        ("5\u20136", 2),
        ("7\u20139", 2),
        ("10+", 2),
    ]


def test_positions_are_thirds_of_the_image():
    bins = plots.by_position(
        [case(1, 2, x=0, y=0), case(0, 2, x=88, y=0), case(1, 2, x=44, y=88), case(1, 2, x=44, y=88)]
    )
    assert {b.label: (b.count, b.mean) for b in bins if b.count} == {
        "top left": (1, 1),
        "top right": (1, 0),
        "bottom centre": (2, 1),
    }
    assert len(bins) == 9


def test_wilson_interval_of_a_proportion():
    """Known values: 8 of 10 gives .490 to .943; none of 10 gives 0 to .278."""
    assert plots.wilson(0.8, 10) == pytest.approx((0.4901, 0.9433), abs=1e-4)
    assert plots.wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


def test_plots_name_their_axes_and_give_their_numbers():
    text = "".join(plots.plots([case(1), case(0, 50, "two words")]))
    page = Page(text)
    assert [page.count("figure", class_="plot"), page.count("svg", role="img"), page.count("table")] == [3, 3, 3]
    assert sum("Score, %" in t for t in page.texts) == 2
    assert page.count("desc") == 3
    unplaced = "".join(plots.plots([ScoredAnswer(0, None, w, "", "", (Box(0, 0, 9, 9),), (), 1.0) for w in "xy"]))
    assert Page(unplaced).count("figure") == 2  # no position where the image's size is unknown
    assert "".join(plots.plots([ScoredAnswer(0, None, "x", "y")])) == ""


def test_plots_score_several_boxes_one_by_one():
    """A small one that was found, a large one that was not, and a crowd, which is neither."""
    several = (Box(0, 0, 9, 9), Box(40, 40, 80, 80), Box(0, 0, 90, 90))
    listed = ScoredAnswer(0, None, "cat, dog", "", "", several, (), 0.5, (90, 90), (True, False, None))
    text = "".join(plots.plots([listed]))
    assert Page(text).count("figure") == 2  # by size and by position: one question has no plot by its length
    assert text.count("n=1") == 4 and text.count("n=0") > 4


def test_the_score_is_described(tmp_path, cases):
    for description, expected in (("", "Score: accuracy."), ("F1 of lists", "Score: F1 of lists.")):
        report.write(tmp_path, [of(cases, score_description=description)])
        assert expected in (tmp_path / "report.html").read_text()


def test_one_question_asked_of_every_image_has_no_plot_by_its_length():
    asked = [
        ScoredAnswer(n, None, words, "", score=0.5)
        for n, words in enumerate(["describe it", "describe it", "what is it?"])
    ]
    assert list(plots.plots(asked[:2])) == []
    (plot,) = plots.plots(asked)
    assert "By length" in plot
