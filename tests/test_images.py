"""Every odd image opens upright and RGB, or is refused in three sentences."""

import csv
import io
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigptv2 import images
from minigptv2.errors import UserError
from minigptv2.images import SUFFIXES, find_images, normalize, open_image, resize_square

ODD = Path(__file__).parent / "data" / "odd_images"


def index() -> list[dict[str, str]]:
    with (ODD / "INDEX.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def refused(source, *words: str) -> UserError:
    with pytest.raises(UserError, match="(?s)" + "".join(f"(?=.*{re.escape(str(word))})" for word in words)) as caught:
        open_image(source)
    error = caught.value
    assert all(part.strip().endswith(".") for part in (error.given, error.allowed, error.advice))
    return error


def pixel(source, xy=(0, 0)) -> tuple[int, int, int]:
    return open_image(source).getpixel(xy)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def distance(a: Image.Image, b: Image.Image) -> float:
    a, b = (np.asarray(resize_square(i, 64), dtype=float) for i in (a, b))
    return float(np.abs(a - b).mean())


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """An image that no turn or flip leaves as it is."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], 2).astype(np.uint8))


def test_the_index_is_not_empty():
    assert len(index()) == 27


@pytest.mark.parametrize("row", index(), ids=lambda row: row["file"])
@pytest.mark.filterwarnings("error")
def test_every_odd_file_opens_upright_or_is_refused(row, capfd):
    path = ODD / row["file"]
    if row["load_result"] != "ok":
        refused(path, path.name)
    else:
        image = open_image(path)
        size = tuple(int(n) for n in row["size"].split("x"))
        # Pillow gives the size of a turned TIFF as it will be
        turned = row["exif_orientation"] in ("5", "6", "7", "8") and row["format"] != "TIFF"
        assert image.mode == "RGB"
        assert image.size == (size[::-1] if turned else size)
        assert not image.info and not image.getexif()
    assert capfd.readouterr() == ("", "")


def test_orientations_of_one_photograph_look_alike():
    opened = [open_image(path) for path in sorted(ODD.glob("hopper_orientation_*"))]
    assert len(opened) == 4
    # their compression differs; a turned or flipped one is over 25 away
    assert max(distance(opened[0], other) for other in opened) < 12
    assert distance(opened[0], opened[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 20


# how an upright [H, W, 3] lies in a file of each EXIF orientation
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_in_each_format(format, orientation):
    upright = gradient()
    stored = Image.fromarray(STORED[orientation](np.asarray(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(stored, format, exif=exif))
    assert opened.size == upright.size
    assert distance(opened, upright) < 6


def test_opening_again_changes_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_image(encoded(gradient(), exif=exif))
    again = open_image(once)
    assert once.size == (24, 40)
    assert again.tobytes() == once.tobytes() and again is not once


def test_path_text_and_bytes_give_the_same(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient()))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path)):
        assert open_image(source).tobytes() == gradient().tobytes()


def test_a_given_image_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    mine = Image.open(io.BytesIO(encoded(gradient().convert("RGBA"), exif=exif)))
    open_image(mine)
    assert (mine.mode, mine.size, mine.getexif()[0x0112]) == ("RGBA", (40, 24), 6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_alpha_becomes_white(mode):
    image = Image.new("LA" if "L" in mode else "RGBA", (1, 1), (0, 128) if "L" in mode else (0, 0, 0, 128))
    assert pixel(image.convert(mode)) == (127, 127, 127)
    clear = Image.new("LA" if "L" in mode else "RGBA", (1, 1), (9, 0) if "L" in mode else (9, 9, 9, 0))
    assert pixel(clear.convert(mode)) == (255, 255, 255)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_transparent_palette_colour_becomes_white(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putpixel((1, 0), 1)
    data = encoded(image, transparency=transparency)
    assert [pixel(data, (x, 0)) for x in (0, 1)] == [(200, 10, 10), (255, 255, 255)]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (7, 8, 9)), ("L", 8), ("1", 0), ("I;16", 2000)])
def test_transparent_colour_of_other_modes_becomes_white(mode, colour):
    assert pixel(encoded(Image.new(mode, (3, 3), colour), transparency=colour)) == (255, 255, 255)


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((3, 3), value, np.uint16))


def test_sixteen_bits_are_scaled_not_clipped():
    for value, grey in ((0, 0), (300, 1), (32768, 128), (65535, 255)):
        assert pixel(encoded(grey16(value))) == pixel(encoded(grey16(value), "TIFF")) == (grey,) * 3
        assert pixel(grey16(value)) == (grey,) * 3


def test_mode_i_and_f_are_scaled():
    assert pixel(Image.new("I", (2, 2), 32768)) == (128,) * 3
    assert pixel(encoded(Image.new("I", (2, 2), 2**30), "TIFF")) == (128,) * 3
    for value in (0.5, 127.5, 32767.5):
        image = Image.new("F", (2, 1), value)
        image.putpixel((1, 0), value * 2)
        assert pixel(image) == pixel(encoded(image, "TIFF")) == (128,) * 3
    refused(Image.new("F", (2, 2), float("nan")), "NaN")


def test_twelve_bits_are_scaled_by_twelve():
    samples = bytes.fromhex("fff800")  # 4095 and 2048
    fields = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(samples)}  # TIFF 6.0, section 8
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    image = open_image(struct.pack("<2sHI", b"II", 42, 12) + samples + bytes(1) + directory)
    assert np.asarray(image)[0, :, 0].tolist() == [255, round(2048 / 4095 * 255)]


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("L", 90, (90, 90, 90)),
        ("YCbCr", (90, 128, 128), (90, 90, 90)),
        ("HSV", (0, 0, 90), (90, 90, 90)),
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
    ],
)
def test_other_colour_spaces(mode, colour, rgb):
    image = Image.new(mode, (4, 4), colour)
    assert np.abs(np.subtract(pixel(image), rgb)).max() <= 1
    if mode in ("CMYK", "LAB", "1", "L"):
        assert np.abs(np.subtract(pixel(encoded(image, "TIFF")), rgb)).max() <= 1


def test_cmyk_jpeg():
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(np.subtract(pixel(red), (255, 0, 0))).max() < 4


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_many(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    assert pixel(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("value", "dtype", "grey"),
    [
        (90, np.uint8, 90),
        (32768, np.uint16, 128),
        (32768, ">u2", 128),
        (True, bool, 255),
        (0.5, np.float16, 128),
        (0.5, np.float32, 128),
        (0.5, np.float64, 128),
        (1.0004, np.float32, 255),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3)])
def test_arrays_of_any_dtype_become_rgb(value, dtype, grey, shape):
    image = open_image(np.full(shape, value, dtype))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (grey,) * 3)


def test_array_with_alpha_and_views():
    assert pixel(np.array([[[0, 0, 0, 0]]], np.uint8)) == (255, 255, 255)
    assert pixel(np.array([[[0.0, 0.5, 1.0, 1.0]]])) == (0, 128, 255)
    array = np.asarray(gradient())
    assert open_image(array[::-1, ::-1]).tobytes() == array[::-1, ::-1].tobytes()


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((3, 20, 20), np.uint8), "transpose"),
        (np.zeros((1, 20, 20, 3), np.uint8), "batch"),
        (np.zeros(5, np.uint8), "shape"),
        (np.zeros((5, 5, 2), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "5 x 0"),
        (np.zeros((5, 0)), "0 x 5"),
        (np.zeros((5, 5), np.int64), "int64"),
        (np.zeros((5, 5), complex), "complex"),
        (np.full((5, 5), "a"), "type"),
        (np.full((5, 5), np.nan), "nan"),
        (np.full((5, 5), np.inf), "inf"),
        (np.full((5, 5), 255.0), "255"),
        (np.full((5, 5), -0.5), "-0.5"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_that_are_no_images(array, word):
    refused(array, word)


@pytest.mark.parametrize("dtype, scale", [("uint8", 1), ("float32", 1 / 255), ("float64", 1 / 255)])
def test_tensors(dtype, scale):
    import torch

    array = np.asarray(gradient())
    tensor = (torch.from_numpy(array.copy()) * scale).to(getattr(torch, dtype)).requires_grad_(dtype != "uint8")
    for form in (tensor, tensor.permute(2, 0, 1)):
        assert open_image(form).tobytes() == array.tobytes()
    assert open_image(tensor[:, :, 0]).getpixel((20, 3)) == (array[3, 20, 0],) * 3
    half = open_image(tensor.to(torch.bfloat16)) if dtype != "uint8" else gradient()
    assert distance(half, gradient()) < 2


def test_tensors_that_are_no_images():
    import torch

    refused(torch.zeros(3, 20, 3), "channels first or last")
    refused(torch.zeros(1, 3, 20, 20), "batch")
    refused(torch.zeros(5), "not have the shape")
    refused(torch.zeros(2, 5, 5), "not have the shape")
    refused(torch.full((3, 20, 20), 255.0), "255")
    refused(torch.full((3, 20, 20), float("nan")), "nan")
    refused(torch.zeros(3, 20, 20, dtype=torch.int64), "int64")
    refused(torch.zeros(3, 20, 20, device="meta"), "cannot be read")


def test_file_objects(tmp_path):
    path, data = tmp_path / "a.png", encoded(gradient())
    path.write_bytes(data)
    written = io.BytesIO()
    gradient().save(written, "PNG")  # stands at its end now
    with path.open("rb") as file:
        for given in (io.BytesIO(data), written, file, io.BufferedReader(io.BytesIO(data))):
            place = given.tell()
            assert open_image(given).tobytes() == open_image(given).tobytes() == gradient().tobytes()
            assert given.tell() == place
    refused(file, "a.png", "cannot be read")
    with path.open() as text:
        refused(text, "a.png", "open as text", '"rb"')
    refused(io.StringIO("a"), "open as text")
    refused(io.BytesIO(), "empty")
    refused(io.BytesIO(b"nothing"), "BytesIO")


def test_objects_that_name_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(gradient()))

    class Named:
        def __init__(self, path):
            self.path = path

        def __fspath__(self):
            return self.path

    for path in (str(tmp_path / "a.png"), bytes(tmp_path / "a.png")):
        assert open_image(Named(path)).size == (40, 24)
    refused(Named(5), "not a path")
    refused("a\ud800b.png", "not a path")
    assert len(str(refused("iVBORw0KGgo" * 9000, "base64"))) < 500


def test_views_of_bytes():
    data = encoded(gradient())
    doubled = bytes(b for pair in zip(data, data) for b in pair)
    assert open_image(memoryview(doubled)[::2]).size == (40, 24)


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "a.png", "a.png", "no such file")
    refused(tmp_path / "b" / "a.png", "no folder")
    refused(tmp_path, "folder")
    refused("", "folder")
    refused("a\0b.png", "cannot be opened")
    refused("a" * 5000, "cannot be opened")
    refused("https://example.com/a.jpg", "downloaded")
    refused("/dev/null", "not an ordinary file")


def test_not_permitted(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient()))

    def deny(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    refused(path, "a.png", "permission")


@pytest.mark.parametrize(
    "content", [b"", b"hello, no image", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_not_an_image(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    refused(path, "a.png", "formats" if content else "empty")
    refused(content, str(len(content)))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM"])
def test_truncated(tmp_path, format):
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), format)
    path = tmp_path / "half.png"
    path.write_bytes(data[: len(data) // 2])
    refused(path, "half.png")


def test_zero_sized_and_wrong_type():
    refused(Image.new("RGB", (0, 5)), "0 x 5")
    refused(None, "NoneType")
    refused(7, "int")
    refused([[1]], "list")


def test_an_image_whose_file_is_closed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient()))
    with Image.open(path) as image:
        pass
    refused(image, "Pillow image")


def png_of_size(width: int, height: int) -> bytes:
    """A one-pixel PNG whose header claims another size."""
    data = bytearray(encoded(Image.new("1", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("pillows_own_limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.filterwarnings("error")
def test_decompression_bomb(monkeypatch, pillows_own_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own_limit)
    refused(png_of_size(20_000, 20_000), "178 megapixels")
    refused(png_of_size(images.MAX_PIXELS + 1, 1), "178 megapixels")
    # between Pillow's warning and its error: no warning, and the damage is what is reported
    refused(png_of_size(10_000, 10_000), "damaged")
    assert pillows_own_limit == Image.MAX_IMAGE_PIXELS


def test_the_callers_warnings_still_work():
    filters = list(warnings.filters)
    open_image(encoded(gradient()))
    refused(b"nothing")
    assert warnings.filters == filters


STARTS = [b"", b"GIF89a", b"\xff\xd8\xff", b"BM", b"II*\0", b"P6 9 9 255 ", b"\0\0\1\0"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STARTS), st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(start, noise):
    opens_or_is_refused(start + noise)


SMALL = [
    encoded(gradient(12, 9), "PNG"),
    encoded(gradient(12, 9), "JPEG"),
    encoded(gradient(12, 9), "WEBP"),
    encoded(gradient(12, 9), "TIFF", compression="tiff_lzw"),
    encoded(gradient(12, 9).quantize(8), "GIF"),
    encoded(gradient(12, 9), "JPEG2000"),
    encoded(gradient(12, 9), "ICO"),
    encoded(grey16(77), "TIFF"),
    encoded(gradient(12, 9), "AVIF"),
    encoded(gradient(12, 9), "BMP"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SMALL), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))
def test_damaged_images_raise_nothing_else(data, changes):
    damaged = bytearray(data)
    for where, value in changes:
        damaged[int(where * len(data))] = value
    opens_or_is_refused(bytes(damaged))


def opens_or_is_refused(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert open_image(data).mode == "RGB"
        except UserError as error:
            assert error.given and error.allowed and error.advice


@pytest.mark.parametrize("data", SMALL, ids=lambda data: ascii(data[:4]))
def test_an_image_cut_anywhere_raises_nothing_else(data):
    for end in range(0, len(data), max(1, len(data) // 150)):
        opens_or_is_refused(data[:end])


def test_squash_shows_the_whole_image():
    small = resize_square(gradient(300, 100), 32)
    assert (small.mode, small.size) == ("RGB", (32, 32))
    corners = [small.getpixel(xy)[:2] for xy in ((0, 0), (31, 0), (0, 31), (31, 31))]
    assert np.abs(np.subtract(corners, [(0, 0), (255, 0), (0, 255), (255, 255)])).max() < 8
    assert small.tobytes() == gradient(300, 100).resize((32, 32), Image.Resampling.BICUBIC).tobytes()


def test_normalize():
    import torch

    batch = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.75, 1.0)
    pixels = normalize(batch, mean, std)  # [2, 3, 4, 5]
    assert pixels.shape == (2, 3, 4, 5) and pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        expected = (int(batch[1, 2, 3, channel]) / 255 - mean[channel]) / std[channel]
        assert pixels[1, channel, 2, 3].item() == pytest.approx(expected, abs=1e-5)


def test_images_are_opened_without_torch():
    code = "import sys, numpy, minigptv2.images as i; i.open_image(numpy.eye(2)); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_find_images(tmp_path):
    for name in ("b.JPG", "a.png", "c.Tiff", "note.txt", ".hidden.png", "noend"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "below.png").write_bytes(b"")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.JPG", "c.Tiff"]
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_a_folder_without_images_names_the_suffixes(tmp_path):
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(UserError, match="holds no images") as caught:
        find_images(tmp_path)
    assert all(suffix in caught.value.allowed for suffix in SUFFIXES)
    for wrong in (tmp_path / "absent", tmp_path / "note.txt", "a\0b"):
        with pytest.raises(UserError, match="cannot be listed"):
            find_images(wrong)


def test_every_suffix_of_a_format_that_is_read_is_looked_for():
    Image.init()
    known = {suffix for suffix, name in Image.EXTENSION.items() if name in images.FORMATS}
    assert known <= set(SUFFIXES)
    assert {".jif", ".jfi", ".dib"} <= set(SUFFIXES)


def test_skipped_files_are_counted(tmp_path):
    from collections import Counter

    for name in ("a.jfif", "b.HEIC", "c.heic", "note.txt", ".hidden.png", "noend"):
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    others = Counter()
    assert [p.name for p in find_images(tmp_path, others)] == ["a.jfif", "gone.png"]
    assert others == {".heic": 2, ".txt": 1, "hidden": 1, "without a suffix": 1, "a folder": 1}


def test_closed_image_error_says_so(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    image, opened = Image.open(file), open(file, "rb")
    of_file = Image.open(opened)
    image.close()
    opened.close()
    for closed in (image, of_file):
        with pytest.raises(UserError, match="is closed") as told:
            open_image(closed)
        assert "download" not in told.value.advice
