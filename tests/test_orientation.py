"""EXIF orientation of image files, and boxes of stored images turned upright, compared pixel by pixel."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from minigptv2.boxes import Box, stored_box, upright_box
from minigptv2.data.annotations import InvalidRecord
from minigptv2.data.dataset import open_dataset
from minigptv2.data.orientation import SWAPPED_SIZE, boxes_orientation
from minigptv2.data.validate import check
from minigptv2.errors import UserError
from minigptv2.images import image_header, image_size, open_image, upright_size

STORED, RED = (60, 40), Box(5, 3, 21, 13)
FORMATS = ("jpg", "png", "webp", "tif")


def turned(folder, suffix: str, orientation: int):
    """A file with a white image, a red box and an EXIF orientation."""
    image, exif = Image.new("RGB", STORED, "white"), Image.Exif()
    ImageDraw.Draw(image).rectangle((5, 3, 20, 12), fill="red")
    exif[0x0112] = orientation
    file = folder / f"{orientation}.{suffix}"
    quality = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    image.save(file, exif=exif, **quality)
    return file


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_box_covers_the_same_pixels_as_the_stored_one(tmp_path, suffix, orientation):
    file = turned(tmp_path, suffix, orientation)
    opened = open_image(file)
    assert image_header(file) == (STORED, orientation)
    assert image_size(file) == upright_size(STORED, orientation) == opened.size
    pixels = np.asarray(opened).astype(int)
    rows, columns = np.nonzero((pixels[:, :, 0] > 200) & (pixels[:, :, 1] < 100))
    red = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    box = upright_box(RED, STORED, orientation)
    assert box.xyxy == red
    assert stored_box(box, STORED, orientation) == RED


def test_invalid_orientation_is_ignored(tmp_path):
    assert image_header(turned(tmp_path, "jpg", 9)) == (STORED, 1)


@pytest.mark.parametrize(
    ("given", "stored", "orientation", "choice", "turn", "contradicts"),
    [
        ((60, 40), (60, 40), 6, "auto", 6, False),
        ((40, 60), (60, 40), 6, "auto", 1, False),
        ((120, 80), (60, 40), 6, "auto", 6, False),
        ((80, 120), (60, 40), 8, "auto", 1, False),
        (None, (60, 40), 6, "auto", 6, False),
        ((60, 40), (60, 40), 3, "auto", 3, False),
        ((50, 50), (50, 50), 6, "auto", 6, False),
        ((60, 40), (60, 40), 3, "upright", 1, False),
        ((60, 40), (60, 40), 6, "upright", 1, True),
        ((40, 60), (60, 40), 6, "stored", 6, True),
        ((40, 60), (60, 40), 6, "upright", 1, False),
        ((60, 40), (60, 40), 1, "auto", 1, False),
        ((61, 40), (60, 40), 1, "auto", 1, False),
    ],
)
def test_the_size_decides_the_frame_of_the_boxes(given, stored, orientation, choice, turn, contradicts):
    found, words = boxes_orientation(given, stored, orientation, choice)
    assert found == turn and bool(words) == contradicts


def test_swapped_size_without_an_orientation_is_invalid():
    with pytest.raises(InvalidRecord, match=SWAPPED_SIZE):
        boxes_orientation((40, 60), (60, 40), 1)


@pytest.mark.parametrize("choice", ["upright", "stored", "auto"])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_json_lines_cover_the_object_for_every_orientation(tmp_path, orientation, sized, choice):
    stored_size, red = (200, 100), Box(20, 10, 80, 60)
    image = Image.new("RGB", stored_size, "white")
    ImageDraw.Draw(image).rectangle((20, 10, 79, 59), fill="red")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    turned = upright_box(red, stored_size, orientation)
    box, size = (turned, upright_size(stored_size, orientation)) if choice == "upright" else (red, stored_size)
    row = {"image": "a.png", "boxes": [{"label": "ball", "xyxy": list(box.xyxy)}]} | ({"size": size} if sized else {})
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    sample = open_dataset("own", {"file": str(tmp_path / "a.jsonl"), "orientation": choice})[0]
    assert sample.size == open_image(tmp_path / "a.png").size
    assert {b.xyxy for e in sample.question_answers for p in e.phrases for b in p.boxes} == {turned.xyxy}
    report = check(tmp_path / "a.jsonl", orientation=choice)
    assert not report.problems and [b.xyxy for b in report.drawn[0][2]] == [turned.xyxy]


def test_size_of_the_other_frame_is_refused_in_training_and_check(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png", exif=exif)
    row = {"image": "a.png", "size": [200, 100], "boxes": [{"label": "ball", "xyxy": [20, 10, 80, 60]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    data = open_dataset("own", {"file": str(tmp_path / "a.jsonl")})
    with pytest.raises(UserError, match="a size that is of the stored image"):
        data[0]
    assert check(tmp_path / "a.jsonl").code == 2
    assert check(tmp_path / "a.jsonl", orientation="stored").code == 0
