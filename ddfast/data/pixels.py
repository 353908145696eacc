"""One picture file as numbers: its header, its pixels at their full depth, and the range that deep pixels share."""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from ddfast.runtime.files import shortage_of_machine

BYTE, INTEGER, FLOAT = "8-bit", "integer", "float"  # kinds of pixels
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "SPIDER", "WMF"}  # Pillow names them, or runs programs
BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "HEIF")  # whatever the ending
SIXTEEN_BITS = (0.0, 65535.0)  # the range of old sets, and of a picture alone
RAW = {".arw", ".cr2", ".dng", ".nef", ".orf", ".pef", ".rw2", ".srw"}  # TIFFs of cameras, that open as their thumbnail
FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 274, 258, 262, 339  # tags of TIFF, the first of EXIF, too
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow has it (ITU-R 601-2)


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded."""

    size: tuple[int, int]  # (H, W), turned as its EXIF says
    is_grey: bool
    kind: str  # BYTE, INTEGER or FLOAT
    has_frames: bool  # several: animated, or of several pages
    is_reduced: bool = False  # deeper in the file than it can be read


@functools.cache
def picture_endings() -> frozenset[str]:
    """The endings of files that are taken for pictures, in lower case."""
    from PIL import Image

    formats = _formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def is_picture(file: str | Path) -> bool:
    """Whether a file of another ending holds a picture of a usual format."""
    from PIL import Image

    if Path(file).suffix.lower() in RAW:
        return False
    try:
        with Image.open(file, formats=[name for name in BY_CONTENT if name in _formats()]):
            return True
    except Exception as error:  # of a damaged file many kinds
        if shortage := shortage_of_machine(Path(file), error):
            raise shortage from None
        return False


def read_header(file: Path) -> Header:
    """The header of a picture. Errors: many kinds, where it is none or damaged."""
    from PIL import Image

    if _needs_tifffile(file):
        return _read_tiff(file, header_only=True)
    with Image.open(file, formats=_formats()) as picture:
        kind = _kind(picture)
        size = picture.size[::-1]
        if "exif" in picture.info and picture.format != "TIFF":  # of TIFF Pillow turns the size itself
            orientation = picture.getexif().get(ORIENTATION)
            size = size[::-1] if orientation in TURNED else size
        # the others of MPO are a camera's previews, those of PSD layers
        frames = picture.format not in ("MPO", "PSD") and getattr(picture, "n_frames", 1) > 1
        reduced = _is_deep_colour(picture) and picture.format != "PNG"
        return Header(size, _is_grey(picture), BYTE if reduced else kind, frames, reduced)


def read_pixels(
    file: Path,
    channels: int,
    draft: tuple[int, int] | None = None,  # (H, W): JPEG is decoded no larger than needed for it
) -> tuple[numpy.ndarray, bool]:  # [channels, H, W], uint8, integers or floats; whether it is see-through
    """A picture turned as its EXIF says, at its full depth. Errors: many kinds, where it is none or damaged."""
    from PIL import Image, ImageOps

    if _needs_tifffile(file):
        return _with_channels(_read_tiff(file), channels)
    with Image.open(file, formats=_formats()) as picture:
        if picture.format == "PNG" and _is_deep_colour(picture):
            orientation = picture.getexif().get(ORIENTATION, 1) if "exif" in picture.info else 1
            return _with_channels(_read_png(file, orientation), channels)
        if draft is not None:
            picture.draft("RGB", (draft[1], draft[0]))
        return picture_pixels(ImageOps.exif_transpose(picture), channels)


def picture_pixels(picture: Any, channels: int) -> tuple[numpy.ndarray, bool]:  # a PIL image -> as read_pixels
    """A PIL image of any mode as numbers; what is see-through lies over white."""
    from PIL import Image

    if _kind(picture) != BYTE and not _is_deep_colour(picture):
        pixels = numpy.asarray(picture)[None]
        return numpy.broadcast_to(pixels, (channels, *pixels.shape[1:])), False
    is_transparent = False
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        is_transparent = picture.getchannel("A").getextrema()[0] < 255
        if is_transparent:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = numpy.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), is_transparent


def picture_header(picture: Any) -> Header:  # of a PIL image
    """As `read_header`, of a picture that is open."""
    return Header(picture.size[::-1], _is_grey(picture), _kind(picture), False)


def kind_of(pixels: numpy.ndarray) -> str:
    """BYTE, INTEGER or FLOAT."""
    return BYTE if pixels.dtype == numpy.uint8 else FLOAT if pixels.dtype.kind == "f" else INTEGER


def chosen_range(
    extremes: dict[str, tuple[float, float]],  # the smallest and largest value of each kind that there is
    given: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """The range that becomes 0 to 1: what was given, else one that fits all deep pixels of a data set.

    Integers from 0: the least of 8, 10, 12, 14 and 16 bits that holds them all. Floats in [0, 1]: 0 to 1. Others: their
    smallest and largest value. Errors: ValueError where integers and floats have no range in common.
    """
    if given is not None:
        return given
    deep = {kind: ends for kind, ends in extremes.items() if kind != BYTE}
    if len(deep) > 1:
        (a, b), (c, d) = deep[INTEGER], deep[FLOAT]
        raise ValueError(
            f"value_range: expected pictures of one kind; there are integers of {a:g} to {b:g} and floats of {c:g} to "
            f"{d:g}; give the range of values that is black to white for all"
        )
    (kind, (low, high)), *_ = deep.items()
    if kind == INTEGER and low >= 0 and high <= FULL_SCALES[-1]:
        return 0.0, float(next(scale for scale in FULL_SCALES if high <= scale))
    if kind == FLOAT and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def as_value_range(value: Any) -> tuple[float, float] | None:
    """None and "auto" are None. Errors: ValueError for what is no two finite numbers, the smaller first."""
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    try:
        low, high = (float(end) for end in value)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"value_range: expected auto, or the values of black and white as (0, 4095), got {value!r}")
    return low, high


def scale_to_unit(images: Tensor, value_range: Sequence[float]) -> Tensor:  # float32, in place
    """Values of a range as 0 to 1; those beyond it are cut off."""
    low, high = value_range
    return images.sub_(low).div_(high - low).clamp_(0, 1)


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats of Pillow, and of pillow-heif where it is installed, that hold pictures."""
    from PIL import Image

    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_PICTURES)


def _kind(picture: Any) -> str:
    if picture.mode == "F":
        return FLOAT
    is_deep_png = picture.format == "PNG" and _is_deep_colour(picture)
    return INTEGER if picture.mode.startswith("I") or is_deep_png else BYTE


def _is_grey(picture: Any) -> bool:
    if picture.mode == "P":
        palette = numpy.array(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    deep_grey = any(str(x).startswith("LA;16") for x in _how_it_lies(picture))  # which Pillow opens as RGBA
    return deep_grey or picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def _is_deep_colour(picture: Any) -> bool:
    """Whether Pillow would cut 16 bits of several channels to 8."""
    if picture.mode.startswith("I"):
        return False
    arguments = _how_it_lies(picture)
    is_deep_ppm = picture.format == "PPM" and any(isinstance(x, int) and x > 255 for x in arguments)
    return is_deep_ppm or any(isinstance(x, str) and ";16" in x for x in arguments)


def _how_it_lies(picture: Any) -> list:
    """How the pixels lie in the file: what Pillow's decoders are told."""
    tiles = [tile[3] for tile in getattr(picture, "tile", ())]
    return [argument for tile in tiles for argument in (tile if isinstance(tile, tuple) else (tile,))]


def _needs_tifffile(file: Path) -> bool:
    """Whether it is a TIFF of pixels that Pillow would cut to 8 bits, overflow, or cannot read."""
    from PIL import Image

    with open(file, "rb") as opened:
        if opened.read(4) not in TIFF_STARTS:
            return False
    try:
        with Image.open(file, formats=["TIFF"]) as picture:
            bits, kind = picture.tag_v2.get(BITS, (1,)), picture.tag_v2.get(SAMPLE_FORMAT, (1,))[0]
            overflows = bits == (32,) and kind == 1  # Pillow reads numbers without a sign as if they had one
            is_signed_byte = bits == (8,) and kind == 2
            is_negative = max(bits) > 8 and picture.tag_v2.get(PHOTOMETRIC) == 0  # 0 is white
            return (len(bits) > 1 and max(bits) > 8) or overflows or is_signed_byte or is_negative
    except Exception:
        return True


def _read_tiff(file: Path, header_only: bool = False) -> Any:  # -> Header, or [C, H, W] with 1 to 4 channels
    import tifffile

    with tifffile.TiffFile(file) as opened:
        page = opened.pages[0]
        axes = page.axes
        if axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"a TIFF with the axes {axes}, expected height, width and channels")
        channels = page.shape[axes.index("S")] if "S" in axes else 1
        is_negative = page.photometric.name == "MINISWHITE" and page.dtype.kind == "u"
        if channels > 4 or not (is_negative or page.photometric.name in ("MINISBLACK", "RGB")):
            raise ValueError(f"a TIFF of {channels} channels, {page.photometric.name}; expected grey or RGB")
        orientation = page.tags.valueof(ORIENTATION, default=1)
        if header_only:
            H, W = page.shape[axes.index("Y")], page.shape[axes.index("X")]
            kind = kind_of(numpy.empty(0, page.dtype))
            return Header((W, H) if orientation in TURNED else (H, W), channels < 3, kind, len(opened.pages) > 1)
        pixels = page.asarray()
        pixels = ~pixels if is_negative else pixels
    pixels = pixels[None] if axes == "YX" else pixels.transpose(2, 0, 1) if axes == "YXS" else pixels
    return _turned(pixels, orientation)


def _read_png(file: Path, orientation: int) -> numpy.ndarray:  # uint16 [C, H, W], C of 1 to 4
    if importlib.util.find_spec("imagecodecs") is None:
        raise ValueError("16 bits in several channels: pip install imagecodecs reads it")
    import imagecodecs

    pixels = imagecodecs.png_decode(file.read_bytes())
    return _turned(pixels.transpose(2, 0, 1), orientation)


def _turned(pixels: numpy.ndarray, orientation: int) -> numpy.ndarray:  # [C, H, W]
    """As EXIF's orientation says."""
    if orientation in TURNED:
        pixels = pixels.transpose(0, 2, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _with_channels(pixels: numpy.ndarray, channels: int) -> tuple[numpy.ndarray, bool]:  # [1 to 4, H, W] -> as asked
    """Grey or colour without transparency: over white."""
    is_transparent = False
    if len(pixels) in (2, 4):
        alpha, pixels = pixels[-1:], pixels[:-1]
        full = numpy.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        is_transparent = bool((alpha < full).any())
        if is_transparent:
            share = alpha.astype("float64") / full
            pixels = pixels * share + full * (1 - share)
            pixels = (pixels.round() if alpha.dtype.kind in "iu" else pixels).astype(alpha.dtype)
    if len(pixels) == 3 and channels == 1:
        pixels = numpy.tensordot(LUMA, pixels.astype("float64"), 1)[None].round().astype(pixels.dtype)
    if len(pixels) != channels:
        pixels = numpy.broadcast_to(pixels, (channels, *pixels.shape[1:]))
    return pixels, is_transparent
