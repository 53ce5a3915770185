"""Pictures: any source -> upright RGB -> a square of pixels -> the vision model's tensor.

Pillow decodes. torch is imported by `to_pixels` alone, so that the command line can look at pictures without it.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from minigptv2.errors import UserError

if TYPE_CHECKING:
    import torch

# CLIP's, https://github.com/openai/CLIP/blob/main/clip/clip.py
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# Pillow's name of each format read -> its suffixes. EPS is left out on purpose: Pillow runs Ghostscript on it.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".mpo"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",),
    "BMP": (".bmp",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",), "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "ICO": (".ico",),
}  # fmt: skip
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# where Pillow's default settings stop; checked here too, as a program may have switched Pillow's own check off
MAX_PIXELS = 2 * (1024**3 // 4 // 3)

# what Pillow's decoders raise on corrupt data; UnidentifiedImageError is an OSError
_CORRUPT_METADATA = (
    OSError, ValueError, TypeError, SyntaxError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_CORRUPT = (*_CORRUPT_METADATA, MemoryError)

# EXIF 2.3, tag 0x0112: what makes each orientation upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1  # TIFF 6.0
_ARRAYS = "An array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] and holds uint8, uint16, bool, or floats 0..1."
_FORMATS_READ = f"These formats are read: {', '.join(FORMATS)}."


@runtime_checkable
class LazyPicture(Protocol):
    """A picture of a data set that is drawn, or read out of an archive, only when it is needed.

    key: names it among all pictures of all sources, for messages and for the feature cache; another picture has another
    key. open: anything that `open_image` takes.
    """

    key: str

    def open(self) -> Any: ...


def open_image(source: Any, at_least: int = 0) -> Image.Image:
    """Any picture as an upright RGB picture in memory, without metadata: opening the result again changes nothing.

    source: a path, the bytes of a file, a Pillow picture, a `LazyPicture`, or an array [H, W], [H, W, 1], [H, W, 3]
    (RGB) or [H, W, 4] (RGBA) of uint8, uint16, bool, or floats 0..1. The EXIF orientation is applied, an animation
    gives its first frame, transparency becomes white, deep grey is scaled to 8 bits by its depth. at_least: if over 0,
    a JPEG may come out at a half, a quarter or an eighth of its size, no side below so many pixels; it is decoded
    faster so. Raises UserError.
    """
    if isinstance(source, str | os.PathLike):
        with _open_file(Path(source)) as file:
            return _decode(file, str(source), at_least)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), f"The picture in {len(source)} bytes of data", at_least)
    if isinstance(source, Image.Image):
        return _finish(source, f"The Pillow picture of mode {source.mode}")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, LazyPicture) and not isinstance(source, type):
        opened = source.open()
        if isinstance(opened, bytes):  # named by where they came from
            return _decode(io.BytesIO(opened), str(source), at_least)
        return open_image(opened, at_least)
    raise UserError(
        f"A picture was given as {type(source).__module__}.{type(source).__qualname__}.",
        "A picture is a path, bytes, a Pillow picture or a numpy array.",
        "Give one of these; a tensor becomes an array with .cpu().numpy(), as [H, W, 3].",
    )


def image_header(path: str | os.PathLike) -> tuple[tuple[int, int], int]:
    """Of an image file, from its header alone: (width, height) as it is stored, and its EXIF orientation, 1..8.

    Raises UserError.
    """
    with _open_file(Path(path)) as file:
        image = _identify(file, str(path))
        _check_size(image.width, image.height, str(path))
        with _pillow_errors_told(str(path)):
            orientation = _orientation(image)
        turned = image.format == "TIFF"  # whose size Pillow gives upright already
        return upright_size(image.size, orientation) if turned else image.size, orientation


def upright_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of a stored image once it is upright; and the other way round."""
    return stored[::-1] if orientation in (5, 6, 7, 8) else stored


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height of an image file once it is upright, from its header alone. Raises UserError."""
    return upright_size(*image_header(path))


def squash(image: Image.Image, size: int) -> Image.Image:
    """The whole picture as size x size pixels, bicubic, without crop or padding, as MiniGPT-v2 sees it."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def squashed(source: Any, size: int, fast: bool = False) -> np.ndarray:
    """Any picture that `open_image` takes, squashed: [size, size, 3] uint8. fast: a JPEG is decoded at the smallest of
    its full, half, quarter or eighth size that is no smaller than the square."""
    return np.array(squash(open_image(source, size if fast else 0), size))


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3] uint8 -> [B, 3, H, W] float32, CLIP-normalised, channels last in memory."""
    import torch

    x = images.permute(0, 3, 1, 2).float().div_(255)  # [B, 3, H, W]
    mean, std = (torch.tensor(t, device=images.device)[:, None, None] for t in (MEAN, STD))
    return x.sub_(mean).div_(std)


def find_pictures(folder: str | os.PathLike) -> list[Path]:
    """The picture files that lie directly in a folder, by suffix in any case, sorted by name; hidden ones are left out.

    Raises UserError if there is no such folder, if it cannot be read, or if it holds no picture.
    """
    try:
        inside = sorted(Path(folder).iterdir())
        found = [p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be listed.", f"The system says: {_reason(error)}.",
            "Give a folder that exists and that you may read.",
        ) from error  # fmt: skip
    if not found:
        raise UserError(
            f"{folder} holds no pictures; {len(inside)} other entries lie in it.",
            f"Looked for the suffixes {' '.join(SUFFIXES)}, not in folders below it.",
            "Give the folder that holds the pictures themselves.",
        )
    return found


def _open_file(path: Path) -> BinaryIO:
    try:
        kind = path.stat()
        if stat.S_ISREG(kind.st_mode):
            return path.open("rb")
    except FileNotFoundError as error:
        where = f"{path.parent} has no such file." if path.parent.is_dir() else f"There is no folder {path.parent}."
        advice = "Check the path; a web address is to be downloaded first."
        raise UserError(f"{path} does not exist.", where, advice) from error
    except PermissionError as error:
        raise UserError(
            f"{path} may not be read.", "This user has no permission for it.", "Give yourself read permission (chmod)."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be opened.", f"The system says: {_reason(error)}.", "Give the path of a picture file."
        ) from error
    what = "a folder" if stat.S_ISDIR(kind.st_mode) else "no ordinary file"
    raise UserError(f"{path} is {what}.", "One picture file is expected.", "Give the path of a picture file.")


def _decode(file: BinaryIO, name: str, at_least: int = 0) -> Image.Image:
    image = _identify(file, name)
    if at_least:
        _check_size(image.width, image.height, name)  # of the file, not of what is decoded of it
        with _pillow_errors_told(name):
            image.draft(None, (at_least, at_least))
    return _finish(image, name)


def _identify(file: BinaryIO, name: str) -> Image.Image:
    """The picture of a file, its pixels not yet decoded."""
    if not file.read(1):
        raise UserError(f"{name} is empty.", "It holds zero bytes.", "Copy or download the picture again.")
    with _pillow_errors_told(name):
        Image.init()
        return Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])


def _finish(image: Image.Image, name: str) -> Image.Image:
    """Upright RGB without metadata. The pixels are decoded here, so truncated data shows here."""
    _check_size(image.width, image.height, name)
    with _pillow_errors_told(name):
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image, name)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}
    return rgb


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise UserError(
            f"{name} is {width} x {height} pixels.", "A picture has at least 1 x 1.", "Give a picture with pixels."
        )
    if width * height > MAX_PIXELS:
        raise _too_large(name, f" of {width} x {height} pixels")


def _too_large(name: str, size: str = "") -> UserError:
    return UserError(
        f"{name} is too large a picture{size}.",
        f"Up to {MAX_PIXELS // 10**6} megapixels are read, as more may be a decompression bomb.",
        "Scale the picture down first; the model sees 448 x 448 pixels of it.",
    )


@contextmanager
def _pillow_errors_told(name: str) -> Iterator[None]:
    """Every way in which Pillow refuses data becomes a UserError; its warnings are dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is no picture that can be read.", _FORMATS_READ,
            "Open it in a picture viewer to see what it is, and save it as PNG or JPEG.",
        ) from error  # fmt: skip
    except _CORRUPT as error:
        raise UserError(
            f"{name} is damaged or cut short.", f"Pillow says: {_reason(error)}.",
            "Copy or download it again, or save it anew from a picture viewer.",
        ) from error  # fmt: skip


def _reason(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.rstrip(".")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 where the metadata cannot be read or say another, as the pixels are still good."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found) if found in _UPRIGHT else 1
    except _CORRUPT_METADATA:
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _deep_grey(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode in ("La", "PA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Mode I;16, I or F as L, or as LA where one value is declared transparent."""
    values = np.asarray(image)  # [H, W]
    if not np.isfinite(values).all():
        raise UserError(
            f"{name} holds pixels that are no numbers.", "NaN and infinity have no brightness.",
            "Replace them with numbers.",
        )  # fmt: skip
    values, white = _white_point(image, values)
    grey = Image.fromarray(_to_bytes(values, white))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _white_point(image: Image.Image, values: np.ndarray) -> tuple[np.ndarray, float]:
    """The values and the one that is white: the depth that a TIFF declares, else the smallest common one that fits."""
    tags = getattr(image, "tag_v2", {})
    bits, unsigned = tags.get(_BITS_PER_SAMPLE, (0,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
    if image.mode == "F":
        depths = (1, 2**8 - 1, 2**16 - 1)
    elif image.mode == "I" and bits:
        values = values.view(np.uint32) if unsigned else values
        depths = (2 ** (bits if unsigned else bits - 1) - 1,)
    elif image.mode == "I":
        depths = (2**16 - 1, 2**31 - 1)
    else:
        depths = (2 ** (bits or 16) - 1,)
    peak = float(values.max())
    return values, next((depth for depth in depths if peak <= depth), peak)


def _to_bytes(values: np.ndarray, white: float) -> np.ndarray:
    """0..white -> uint8 0..255, to the nearest; values outside are clipped."""
    share = np.clip(values.astype(np.float32) / np.float32(white), 0, 1)
    return (share * 255 + 0.5).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    name = f"The array of shape {list(array.shape)} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"{name} has no shape of a picture.", _ARRAYS,
            "Put the channels last (array.transpose(1, 2, 0)), and give one picture, not a batch.",
        )  # fmt: skip
    _check_size(array.shape[1], array.shape[0], name)
    pixels = _array_bytes(array, name)
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return _finish(image, name)


def _array_bytes(array: np.ndarray, name: str) -> np.ndarray:
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and width == 1:
        return np.ascontiguousarray(array)
    if kind == "b":
        return _to_bytes(array, 1)
    if kind == "u" and width == 2:
        return _to_bytes(array, 2**16 - 1)
    if kind != "f":
        raise UserError(f"{name} has no type of a picture.", _ARRAYS, "Convert it, for example with .astype(np.uint8).")
    # a little over is the rounding of a resize; NaN fails both comparisons
    if not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
        raise UserError(
            f"{name} holds values from {array.min():.4g} to {array.max():.4g}.", _ARRAYS,
            "Divide it by its white value, or undo its normalisation; replace what is no number.",
        )  # fmt: skip
    return _to_bytes(array, 1)
