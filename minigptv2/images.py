"""Images: any source -> upright RGB -> a square of pixels -> the vision tower's tensor.

Pillow decodes. Only `normalize` imports torch, so that the command line can open images without it.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from minigptv2.errors import UserError
from minigptv2.files import is_dir, shorten, to_path

if TYPE_CHECKING:
    import torch

# Pillow's name of each format that is read -> its suffixes. Not EPS, because Pillow runs Ghostscript on it.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# Pillow's default limit; checked here as well, because a program may have turned Pillow's check off
MAX_PIXELS = 2 * (1024**3 // 4 // 3)

# what Pillow's decoders raise on corrupt data; UnidentifiedImageError is an OSError
_CORRUPT_METADATA = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_CORRUPT = (*_CORRUPT_METADATA, MemoryError)

# EXIF 2.3, tag 0x0112: what makes each orientation upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1  # TIFF 6.0
_ARRAYS = "An array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] and holds uint8, uint16, bool, or floats 0..1."
_TENSORS = "A tensor is [H, W], [C, H, W] or [H, W, C] with C of 1, 3 or 4: uint8, uint16, bool, or floats 0..1."
_CHANNELS = (1, 3, 4)
_FORMATS_READ = f"These formats are read: {', '.join(FORMATS)}."


@runtime_checkable
class LazyImage(Protocol):
    """An image of a data set that is drawn, or read from an archive, only when it is needed.

    key: unique among all images of all data sets; for messages and for the feature cache. open: returns anything that
    `open_image` takes.
    """

    key: str

    def open(self) -> Any: ...


def open_image(source: Any, at_least: int = 0, allow_urls: bool = False) -> Image.Image:
    """Any image as an upright RGB image in memory, without metadata: opening the result again changes nothing.

    source: a path, the bytes of a file, a binary file object, a Pillow image, a `LazyImage`, an array [H, W],
    [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) of uint8, uint16, bool, or floats 0..1, or a torch tensor of these
    shapes and types or with its channels first. allow_urls: also an http or https address of a public host; see
    `web_image`. A seekable file object is read from its beginning, and its position is restored.

    The EXIF orientation is applied, an animation gives its first frame, transparency becomes white, and grey of more
    than 8 bits is scaled to 8 by its depth. at_least: if over 0, a JPEG may be decoded, faster, at a half, a quarter or
    an eighth of its size, with no side shorter than this many pixels. Raises UserError for every bad source.
    """
    source = _read(source, allow_urls)
    if isinstance(source, str | os.PathLike):
        to_path(source, "image")
        name = os.fsdecode(source)
        with _open_file(name) as file:
            return _decode(file, name, at_least)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode(io.BytesIO(data), f"The image in {len(data)} bytes of data", at_least)
    if isinstance(source, Image.Image):
        return _finish(source, f"The Pillow image of mode {source.mode}")
    if isinstance(source, np.ndarray):
        return _from_array(source, f"The array of shape {list(source.shape)} and type {source.dtype}")
    if is_tensor(source):
        return _from_tensor(source)
    if isinstance(source, LazyImage) and not isinstance(source, type):
        opened = source.open()
        if isinstance(opened, bytes):  # the message names their source
            return _decode(io.BytesIO(opened), str(source), at_least)
        return open_image(opened, at_least)
    raise UserError(
        f"An image was given as {type(source).__module__}.{type(source).__qualname__}.",
        "An image is a path, bytes, a binary file object, a Pillow image, a numpy array or a torch tensor.",
        "Give one of these.",
    )


@dataclass(frozen=True)
class _NamedBytes:
    """The bytes of an image file, and their source's name: a `LazyImage`."""

    key: str
    data: bytes

    def __str__(self) -> str:
        return self.key

    def open(self) -> bytes:
        return self.data


class Original:
    """The source of an opened image, so that it can be opened again and its decoded pixels need not be stored.

    source: a path; a reference to a Pillow image, array, tensor or bytes; or the bytes that were read from a file
    object or an address. It is a `LazyImage`. size: width and height in pixels, upright. stamp: of the file, see
    `_stamp`.
    """

    def __init__(self, source: Any, size: tuple[int, int], stamp: tuple[int, int] | None = None):
        self.source, self.size, self.stamp = source, size, stamp

    @property
    def key(self) -> str:
        return self.source if isinstance(self.source, str) else type(self.source).__name__

    def open(self) -> Image.Image:
        """The upright RGB image, decoded again. Raises UserError where the source has changed."""
        if self.stamp is None or _stamp(self.source) == self.stamp:
            image = open_image(self.source)
            if image.size == self.size:
                return image
        raise UserError(
            f"The image {shorten(self.key)} is gone or changed since it was opened.",
            "It is opened again when it is needed, because its pixels are not stored.",
            "Use it before it changes, or give its bytes instead of its path.",
        )


def open_original(source: Any, allow_urls: bool = False) -> tuple[Image.Image, Original]:
    """As `open_image`, together with what opens the same image later. Raises UserError."""
    source, stamp = _read(source, allow_urls), None
    original = source
    if isinstance(source, str | os.PathLike):
        path = to_path(source, "image")
        original, stamp = os.path.abspath(path), _stamp(path)
    image = open_image(source)
    return image, Original(original, image.size, stamp)


def _stamp(path: str | os.PathLike) -> tuple[int, int] | None:
    """Size in bytes and modification time in ns of a file; None where there is none."""
    with suppress(OSError):
        stat_ = os.stat(path)
        return stat_.st_size, stat_.st_mtime_ns
    return None


def _read(source: Any, allow_urls: bool) -> Any:
    """The source itself, or the bytes of a file object or of a web address."""
    if isinstance(source, str) and (address := re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://", source)):
        if not allow_urls and address[1].lower() in ("http", "https"):
            raise UserError(
                f"{shorten(source)} is a web address.",
                "A web address is opened only if the call allows it.",
                "Give allow_urls=True to the call in Python, or give the path of the downloaded file.",
            )
        from minigptv2.web_image import fetch

        return _NamedBytes(shorten(source), fetch(source))
    known = str | os.PathLike | Image.Image | LazyImage
    if isinstance(source, known) or not callable(getattr(source, "read", None)):
        return source
    name = shorten(source.name) if isinstance(getattr(source, "name", None), str) else f"The {type(source).__name__}"
    if isinstance(source, io.TextIOBase):
        raise UserError(f"{name} is open as text.", "An image is read as bytes.", 'Open it with open(path, "rb").')
    try:
        position = source.tell() if source.seekable() else None
    except (AttributeError, OSError, ValueError):
        position = None
    try:
        if position is not None:
            source.seek(0)
        data = source.read()
        if position is not None:
            source.seek(position)
    except Exception as error:  # a file object is any program's code
        raise UserError(
            f"{name} cannot be read.", f"It says: {_reason(error)}.", "Give an open binary file, or its bytes."
        ) from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(
            f"{name} gives {type(data).__name__} when it is read.",
            "An image is read as bytes.",
            'Open it with open(path, "rb"), or give its bytes.',
        )
    return _NamedBytes(name, bytes(data))


def image_header(path: str | os.PathLike) -> tuple[tuple[int, int], int]:
    """(width, height) of an image file as stored, and its EXIF orientation, 1..8, from its header alone.

    Raises UserError.
    """
    with _open_file(path) as file:
        image = _identify(file, str(path))
        _check_size(image.width, image.height, str(path))
        with _pillow_errors_as_user_errors(str(path)):
            orientation = _orientation(image)
        is_tiff = image.format == "TIFF"  # Pillow gives its upright size; turning it again gives the stored one
        return upright_size(image.size, orientation) if is_tiff else image.size, orientation


def upright_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) as stored -> upright, or upright -> as stored."""
    return stored[::-1] if orientation in (5, 6, 7, 8) else stored


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Upright (width, height) of an image file, from its header alone. Raises UserError."""
    return upright_size(*image_header(path))


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """The whole image as size x size pixels: bicubic, no crop, no padding. Source: MiniGPT-v2's preprocessing."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def load_square(source: Any, size: int, fast: bool = False) -> np.ndarray:
    """Any image that `open_image` takes, resized to a square: [size, size, 3] uint8. fast: a JPEG is decoded at the
    smallest of its full, half, quarter or eighth size that is not smaller than the square."""
    return np.array(resize_square(open_image(source, size if fast else 0), size))


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[B, H, W, 3] uint8 -> [B, 3, H, W] float32, (value / 255 - mean) / std, channels last in memory.

    mean, std: of red, green and blue, 0 to 1; `image_mean` and `image_std` of the vision tower's config.
    """
    import torch

    x = images.permute(0, 3, 1, 2).float().div_(255)  # [B, 3, H, W]
    mean, std = (torch.tensor(t, device=images.device)[:, None, None] for t in (mean, std))  # [3, 1, 1] each
    return x.sub_(mean).div_(std)


def find_images(folder: str | os.PathLike, others: Counter[str] | None = None) -> list[Path]:
    """The image files directly in a folder, by their suffix in any case, sorted by name; none is opened.

    others: counts all other entries by suffix; folders and hidden files under these words. Raises UserError if the
    folder does not exist, cannot be read, or has no image.
    """
    found, others = [], Counter() if others is None else others
    try:
        with os.scandir(folder) as inside:
            for entry in inside:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    others["hidden"] += 1
                elif _leads_to_a_folder(entry):
                    others["a folder"] += 1
                elif suffix in SUFFIXES:
                    found.append(entry.name)
                else:
                    others[suffix or "without a suffix"] += 1
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be listed.",
            f"The system says: {_reason(error)}.",
            "Give a folder that exists and that you may read.",
        ) from error
    if not found:
        raise UserError(
            f"{folder} holds no images, " + (f"but {counted(others)}." if others else "it is empty."),
            f"Looked for the suffixes {' '.join(SUFFIXES)}, not in folders below it.",
            "Give the folder that holds the images themselves.",
        )
    return [Path(folder, name) for name in sorted(found)]


def counted(others: Counter[str]) -> str:
    """The entries that `find_images` skipped, as text: "3 other entries (2 .heic, 1 a folder)"."""
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in others.most_common())
    return f"{others.total():,} other {'entry' if others.total() == 1 else 'entries'} ({kinds})"


def _leads_to_a_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link: opening it gives the reason
        return False


def _open_file(source: str | os.PathLike) -> BinaryIO:
    name, path = os.fspath(source) or ".", Path(source)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return path.open("rb")
    except FileNotFoundError as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
            where, advice = "An image at a web address must be downloaded first.", "Download it, and give the file."
        elif path.parent == Path():
            where, advice = "The current folder has no such file.", "Check the name, or give its folder as well."
        else:
            here = is_dir(path.parent)
            where = f"{path.parent} has no such file." if here else f"There is no folder {path.parent}."
            advice = "Check the path."
        raise UserError(f"{name} does not exist.", where, advice) from error
    except PermissionError as error:
        raise UserError(
            f"{name} may not be read.", "This user has no permission for it.", "Give yourself read permission (chmod)."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} cannot be opened.", f"The system says: {_reason(error)}.", "Give the path of an image file."
        ) from error
    what = "a folder" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
    raise UserError(f"{name} is {what}.", "One image file is expected.", "Give the path of an image file.")


def _decode(file: BinaryIO, name: str, at_least: int = 0) -> Image.Image:
    image = _identify(file, name)
    if at_least:
        _check_size(image.width, image.height, name)  # full size, before `draft` reduces it
        with _pillow_errors_as_user_errors(name):
            image.draft(None, (at_least, at_least))
    return _finish(image, name)


def _identify(file: BinaryIO, name: str) -> Image.Image:
    """The image of a file, its pixels not yet decoded."""
    with _pillow_errors_as_user_errors(name):
        if not file.read(1):
            raise UserError(f"{name} is empty.", "It holds zero bytes.", "Copy or download the image again.")
        Image.init()
        return Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])


def _finish(image: Image.Image, name: str) -> Image.Image:
    """Upright RGB without metadata. The pixels are decoded here, so errors of truncated data are raised here."""
    _check_size(image.width, image.height, name)
    with _pillow_errors_as_user_errors(name):
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
            f"{name} is {width} x {height} pixels.", "An image has at least 1 x 1.", "Give an image with pixels."
        )
    if width * height > MAX_PIXELS:
        raise _too_large(name, f" of {width} x {height} pixels")


def _too_large(name: str, size: str = "") -> UserError:
    return UserError(
        f"{name} is too large an image{size}.",
        f"Up to {MAX_PIXELS // 10**6} megapixels are read, as more may be a decompression bomb.",
        "Scale the image down first; a model sees far fewer pixels of it.",
    )


@contextmanager
def _pillow_errors_as_user_errors(name: str) -> Iterator[None]:
    """Turn every error of Pillow into a UserError; its warnings are ignored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image that can be read.",
            _FORMATS_READ,
            "Open it in an image viewer, and save it as PNG or JPEG.",
        ) from error
    except _CORRUPT as error:
        if isinstance(error, ValueError) and re.search(r"closed (image|file)", str(error)):
            raise UserError(
                f"{name} is closed.", f"Pillow says: {_reason(error)}.", "Give it before it is closed, or its path."
            ) from error
        raise UserError(
            f"{name} is damaged or cut short.",
            f"Pillow says: {_reason(error)}.",
            "Copy or download it again, or save it again from an image viewer.",
        ) from error


def _reason(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.rstrip(".")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 where the metadata cannot be read: the pixels still can."""
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
    """Mode I;16, I or F -> L, or LA where one value is declared transparent."""
    values = np.asarray(image)  # [H, W]
    if not np.isfinite(values).all():
        raise UserError(
            f"{name} has pixels that are not numbers.",
            "NaN and infinity have no brightness.",
            "Replace them with numbers.",
        )
    values, white = _white_point(image, values)
    grey = Image.fromarray(_to_bytes(values, white))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _white_point(image: Image.Image, values: np.ndarray) -> tuple[np.ndarray, float]:
    """The values, and the value of white: by a TIFF's declared depth, else the smallest common one that fits."""
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
    """0..white -> uint8 0..255, rounded to nearest; values outside are clipped."""
    fraction = np.clip(values.astype(np.float32) / np.float32(white), 0, 1)
    return (fraction * 255 + 0.5).astype(np.uint8)


def is_tensor(source: Any) -> bool:
    """Whether it is a torch tensor. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    shape = list(tensor.shape)
    name = f"The tensor of shape {shape} and type {str(tensor.dtype).removeprefix('torch.')}"
    channels_first, channels_last = (len(shape) == 3 and shape[i] in _CHANNELS for i in (0, 2))
    if len(shape) != 2 and channels_first == channels_last:
        both = "may have its channels first or last" if channels_first else "does not have the shape of an image"
        raise UserError(f"{name} {both}.", _TENSORS, "Give one image, not a batch, or an array.")
    try:
        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.dtype.itemsize < 4 and tensor.is_floating_point() else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"{name} cannot be read.", f"torch says: {_reason(error).splitlines()[0]}.", "Give a plain, dense tensor."
        ) from error
    return _from_array(array.transpose(1, 2, 0) if channels_first else array, name)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    array = np.asarray(array)  # without a mask
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise UserError(
            f"{name} does not have the shape of an image.",
            _ARRAYS,
            "Put the channels last (array.transpose(1, 2, 0)), and give one image, not a batch.",
        )
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
        raise UserError(
            f"{name} does not have the type of an image.", _ARRAYS, "Convert it, for example with .astype(np.uint8)."
        )
    # a resize may round to slightly outside of 0..1; NaN fails both comparisons
    if not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
        raise UserError(
            f"{name} holds values from {array.min():.4g} to {array.max():.4g}.",
            _ARRAYS,
            "Divide it by its white value, or undo its normalisation; replace NaN and infinity.",
        )
    return _to_bytes(array, 1)
