"""The reader of Flickr30k Entities on captions in its form, and on files that are wrong."""

import re
from pathlib import Path

import pytest
from PIL import Image

from minigptv2.data.readers.flickr30k import Flickr30k
from minigptv2.errors import UserError
from minigptv2.images import open_image
from minigptv2.tasks import render

CAPTIONS = (
    "[/EN#1/people A man] 's [/EN#2/clothing/other hat] is on [/EN#0/notvisual the back] of [/EN#3/scene a field] .\n"
    "[/EN#4/people A man] and [/EN#1/people a man] run .\n"
    "Nothing is marked here .\n"
)


def _thing(names, box=None) -> str:
    chains = "".join(f"<name>{name}</name>" for name in names)
    if box is None:
        return f"<object>{chains}<scene>1</scene><nobndbox>0</nobndbox></object>"
    edges = "".join(f"<{edge}>{v}</{edge}>" for edge, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object>{chains}<bndbox>{edges}</bndbox></object>"


def _xml(*things: str, size=(100, 80), head: str = "") -> str:
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>7.jpg</filename>{size}{''.join(things)}</annotation>"


XML = _xml(_thing([1], (1, 1, 50, 80)), _thing([1, 4], (51, 1, 100, 80)), _thing([2], (11, 21, 30, 40)), _thing([3]))


def _written(folder: Path, captions: str = CAPTIONS, xml: str = XML, name: str = "7", split: str = "train") -> str:
    for below, suffix, text in (("Sentences", "txt", captions), ("Annotations", "xml", xml)):
        (folder / below).mkdir(exist_ok=True)
        (folder / below / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    with open(folder / f"{split}.txt", "a") as file:
        file.write(name + "\n")
    return str(folder)


def test_grounded_caption(tmp_path):
    """Two chains share a box, one chain has two; scenes and what is not visible stay plain words."""
    dataset = Flickr30k(_written(tmp_path))
    assert len(dataset) == 2 and not dataset.problems and dataset.captions_without_boxes == 1
    sample = dataset[0]
    (exchange,) = sample.question_answers
    assert exchange.answer == "{}'s {} is on the back of a field."
    assert [p.text for p in exchange.phrases] == ["A man", "hat"]
    assert [b.xyxy for b in exchange.phrases[0].boxes] == [(0, 0, 50, 80), (50, 0, 100, 80)]  # all pixels from 1 to 100
    assert exchange.phrases[1].boxes[0].xyxy == (10, 20, 30, 40)
    assert sample.size == (100, 80) and sample.image == tmp_path / "7.jpg" and sample.key == "flickr30k 7 line 0"
    assert dataset.missing_images() == [tmp_path / "7.jpg"]
    assert (
        render(sample)[1].pieces[0].startswith("<p>A man</p> {<0><0><50><100>}<delim>{<50><0><100><100>}'s <p>hat</p>")
    )


def test_caption_to_phrases(tmp_path):
    dataset = Flickr30k(_written(tmp_path), task="caption_to_phrases")
    question, answer = render(dataset[0])
    assert question.pieces[-1] == "[detection] a man's hat is on the back of a field"
    assert re.findall("<p>(.*?)</p>", answer.pieces[0]) == ["A man", "hat"]


def test_phrase_to_boxes(tmp_path):
    """The same words stand for two chains: what is asked for by them is what either has, each box once."""
    dataset = Flickr30k(_written(tmp_path), task="phrase_to_boxes")
    found = {
        dataset[i].question_answers[0].phrases[0].text: dataset[i].question_answers[0].phrases[0].boxes
        for i in range(2)
    }
    assert len(dataset) == 2 and set(found) == {"a man", "hat"}
    assert [b.xyxy for b in found["a man"]] == [(0, 0, 50, 80), (50, 0, 100, 80)]
    question, answer = render(dataset[0])
    assert question.pieces[-1] == "[detection] a man" and answer.pieces[0].count("<delim>") == 1


def test_captions_of_several_images(tmp_path):
    """Flickr30k's captions may not be passed on: these are written in their form. Each chain's box is its image."""
    sizes = {"1000268201": (50, 40), "36979": (30, 60)}
    images = {
        "1000268201": "[/EN#1/people A girl] in [/EN#2/clothing a pink dress] climbs [/EN#3/scene the stairs] .\n"
        "[/EN#1/people She] goes into [/EN#3/other a playhouse] , made of [/EN#0/notvisual wood] .\n",
        "36979": "[/EN#21/people Two friends] , both with [/EN#23/bodyparts long hair] , "
        "look at [/EN#21/other each other] .\n"
        "[/EN#25/people/other Two men] do n't see [/EN#0/notvisual it] -- [/EN#26/scene a yard] ( green ) .\n",
    }
    for name, captions in images.items():
        Image.new("RGB", sizes[name]).save(tmp_path / f"{name}.jpg")
        chains = sorted(set(re.findall(r"/EN#(\d+)", captions)) - {"0"})
        frame = (1, 1, *sizes[name])
        _written(tmp_path, captions, _xml(_thing(chains, frame), size=sizes[name]), name)
    dataset = Flickr30k(str(tmp_path))
    assert len(dataset) == 4 and not dataset.problems and dataset.missing_images() == []
    assert [len(dataset[i].question_answers[0].phrases) for i in range(4)] == [3, 2, 3, 2]
    captions = [line for block in images.values() for line in block.splitlines()]
    for index, caption in enumerate(captions):
        sample = dataset[index]
        assert sample.size == open_image(sample.image).size
        (exchange,) = sample.question_answers
        words = exchange.answer.replace("{}", "%s") % tuple(p.text for p in exchange.phrases)
        plain = re.sub(r"\[/EN#\S+|\]", "", caption)
        assert words.replace(" ", "") == "".join(plain.split())
        assert "[" not in words and "EN#" not in words
        for box in (b for p in exchange.phrases for b in p.boxes):
            assert 0 <= box.x1 < box.x2 <= sample.size[0] and 0 <= box.y1 < box.y2 <= sample.size[1]


ENTITIES = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("xml", "kind"),
    [
        (_xml(head=ENTITIES), "XML that declares a document type"),
        (_xml(head=OUTSIDE), "XML that declares a document type"),
        (XML[:-20], "XML that is damaged"),
        ("", "XML that is damaged"),
        (_xml(size=(0, 4)), "an image without pixels"),
        (_xml(size=("", 4)), "a size or box without its numbers"),
        ("<annotation></annotation>", "a size or box without its numbers"),
    ],
)
def test_malformed_annotations_are_counted(tmp_path, xml, kind):
    _written(tmp_path, xml=xml, name="8")
    dataset = Flickr30k(_written(tmp_path))
    assert list(dataset.problems.lines()) == [f"1 x {kind}: 8.xml"] and len(dataset) == 2


def test_document_type_is_refused_in_any_encoding(tmp_path):
    _written(tmp_path)
    (tmp_path / "Annotations" / "7.xml").write_bytes(_xml(head=ENTITIES).encode("utf-16"))
    dataset = Flickr30k(str(tmp_path))
    assert len(dataset) == 0 and list(dataset.problems.counts.values()) == [1]


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((30, 1, 20, 80), "a box without area"),
        ((101, 1, 120, 80), "a box outside the image"),
        ((1, 1, "x", 80), "a size or box without its numbers"),
    ],
)
def test_malformed_boxes_are_counted_and_others_kept(tmp_path, box, kind):
    dataset = Flickr30k(_written(tmp_path, xml=_xml(_thing([1], (1, 1, 50, 80)), _thing([2], box))))
    assert dict(dataset.problems.counts) == {kind: 1}
    assert [p.text for p in dataset[0].question_answers[0].phrases] == ["A man"]


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("[/EN#1/people A man runs .", "a caption with unmatched brackets"),
        ("[/EN#1/people ] runs .", "a phrase without words"),
        ("[/EN#1/people A man] runs {} .", "a caption with curly brackets"),
    ],
)
def test_malformed_captions_are_counted(tmp_path, caption, kind):
    dataset = Flickr30k(_written(tmp_path, CAPTIONS + caption))
    assert list(dataset.problems.lines()) == [f"1 x {kind}: 7.txt line 3"] and len(dataset) == 2


def test_splits_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="Sentences and Annotations"):
        Flickr30k(str(tmp_path))
    _written(tmp_path)
    _written(tmp_path, name="10", split="val")
    assert [r[0] for r in Flickr30k(str(tmp_path), "all").records] == ["7", "7", "10", "10"]
    assert [r[0] for r in Flickr30k(str(tmp_path), "val").records] == ["10", "10"]
    with pytest.raises(UserError, match=r"test\.txt cannot be read"):
        Flickr30k(str(tmp_path), "test")
    (tmp_path / "train.txt").write_text("7\n9\n")
    dataset = Flickr30k(str(tmp_path))
    assert len(dataset) == 2 and list(dataset.problems.counts) == ["a missing file"]
