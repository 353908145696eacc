"""Image files of any size, mode, depth and aspect as one tensor for each part of a data set."""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.data.listing import counted
from ddfast.data.pixels import (
    BYTE,
    Header,
    chosen_range,
    kind_of,
    read_header,
    read_pixels,
    scale_to_unit,
)
from ddfast.runtime.devices import free_bytes
from ddfast.runtime.files import cache_folder, mapped_tensor, shortage_of_machine

log = logging.getLogger("ddfast")

LARGEST_DEFAULT_SIDE = 128  # pixels; the size of the field's ImageNet subsets
SMALLEST_DEFAULT_SIDE = 16  # the least that a ConvNet of one block and a ResNet take
MOST_NAMED = 20  # unreadable files in an error
ROWS = 1024  # images that are scaled at once


@dataclass
class Pictures:
    """The images of the parts of a data set, and what came of reading them."""

    images: list[Tensor]  # of each part uint8 [N, C, H, W]; float32 in [0, 1] where pixels are deeper than 8 bits
    kept: list[list[int]]  # the files of each part that were read, in order
    value_range: tuple[float, float] | None = None  # of deep pixels: what became 0 and 1
    skipped: list[str] = field(default_factory=list)  # files that cannot be read, and why
    notes: list[str] = field(default_factory=list)  # in words


def read_pictures(
    parts: Sequence[Sequence[Path]],
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = "stretch",
    value_range: tuple[float, float] | None = None,
    skip_unreadable: bool | None = False,  # None: as False, where the caller has no such option
) -> Pictures:
    """Decode the files of all parts, turned as their EXIF says, to one size; larger than memory, they lie in a mapped
    temporary file.

    None: the size and the channels that the files ask for, as `inspect_files` says; the range of values that
    `chosen_range` says, for pictures of more than 8 bits; those of 8 bits are 0 to 255.

    Errors: ValueError that names all files that cannot be read, unless they are skipped.
    """
    files = [file for part in parts for file in part]
    headers = _headers(files)
    broken = {file: found for file, found in zip(files, headers, strict=True) if isinstance(found, str)}
    good = [found for found in headers if isinstance(found, Header)]
    if not good:
        _refuse(broken, len(files))
    notes = []
    if image_size is None or channels is None:
        found_size, found_channels = _size_and_channels(good)
        sizes = len({header.size for header in good})
        if image_size is None and (sizes > 1 or found_size != good[0].size):
            notes.append(f"{'resized' if sizes == 1 else f'resized from {sizes} sizes'} (image_size says otherwise)")
        image_size, channels = image_size or found_size, channels or found_channels
    kinds = Counter(header.kind for header in good)
    is_deep = set(kinds) != {BYTE}
    of_kind = {file: found.kind for file, found in zip(files, headers, strict=True) if isinstance(found, Header)}
    reader = _Reader(image_size, channels, resize, is_deep)
    results = [reader.read(part, broken) for part in parts]
    broken = {file: broken[file] for file in files if file in broken}
    if broken and not skip_unreadable:
        _refuse(broken, len(files), may_skip=skip_unreadable is not None)
    images, kept = [tensor for tensor, _ in results], [rows for _, rows in results]
    if is_deep:
        value_range = chosen_range(reader.extremes, value_range)
        for part, rows, tensor in zip(parts, kept, images, strict=True):
            of_bytes = [of_kind[part[row]] == BYTE for row in rows]
            _scale(tensor, of_bytes, value_range)
        notes += _range_notes(kinds, reader.extremes, value_range)
    elif value_range is not None:
        notes.append("all pictures have 8 bits: value_range is for deeper ones")
    notes += reader.notes()
    if frames := sum(header.has_frames for header in good):
        notes.append(f"{counted(frames, 'file')} of several frames or pages: the first is read")
    if reduced := sum(header.is_reduced for header in good):
        notes.append(f"{counted(reduced, 'picture')} of more than 8 bits in a format that is read at 8 bits")
    if broken:
        notes.append(f"{counted(len(broken), 'unreadable picture')} skipped")
    skipped = [f"{file} ({reason})" for file, reason in broken.items()]
    return Pictures(images, kept, value_range if is_deep else None, skipped, notes)


def read_files(
    files: Sequence[Path],
    image_size: tuple[int, int],
    channels: int,
    resize: str = "stretch",
) -> Tensor:  # as Pictures.images
    """The pictures of one list of files. Errors: ValueError that names those that cannot be read."""
    return read_pictures([files], image_size, channels, resize, skip_unreadable=None).images[0]


def inspect_files(files: Sequence[Path]) -> tuple[tuple[int, int], int]:
    """The size that these files ask for, and their channels: 1 where all are grey, else 3.

    One size that all have is kept where it has at most 128 pixels a side; otherwise a square, the shorter side that is
    usual among them cut down to a power of 2 from 16 to 128.
    """
    headers = _headers(files)
    good = [found for found in headers if isinstance(found, Header)]
    if not good:
        _refuse(dict(zip(files, headers, strict=True)), len(files))
    return _size_and_channels(good)


def resized(
    images: Tensor,  # [N, C, H, W]
    image_size: tuple[int, int] | None,
    resize: str = "stretch",
) -> Tensor:  # [N, C, *image_size]
    """Images at another size, antialiased; None and their own size leave them as they are."""
    if image_size is None or tuple(images.shape[2:]) == tuple(image_size):
        return images
    from torchvision.transforms.v2.functional import center_crop
    from torchvision.transforms.v2.functional import resize as resize_to

    target = list(image_size)
    if resize == "stretch":
        return resize_to(images, target, antialias=True)
    H, W = images.shape[2:]
    scale = max(target[0] / H, target[1] / W)
    covering = [max(target[0], round(H * scale)), max(target[1], round(W * scale))]
    return center_crop(resize_to(images, covering, antialias=True), target)


def to_unit(images: Tensor) -> Tensor:  # [N, C, H, W] uint8 of 0 to 255, or float in [0, 1] -> float32 in [0, 1]
    """Images as floats in [0, 1]."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


class _Reader:
    """Reads parts into tensors of one size, and keeps count of what it sees."""

    def __init__(self, image_size: tuple[int, int], channels: int, resize: str, is_deep: bool) -> None:
        self.image_size, self.channels, self.resize, self.is_deep = image_size, channels, resize, is_deep
        self.extremes: dict[str, tuple[float, float]] = {}
        self.transparent = 0

    def read(self, files: Sequence[Path], broken: dict[Path, str]) -> tuple[Tensor, list[int]]:
        """The images of the files that are not broken, and which these are; adds those that turn out to be."""
        kept = [n for n, file in enumerate(files) if file not in broken]
        images = _allocate((len(kept), self.channels, *self.image_size), torch.float32 if self.is_deep else torch.uint8)
        found = _in_threads(lambda row, file: self._read_one(file, images[row]), [files[n] for n in kept])
        whole = []
        for row, result in enumerate(found):
            if isinstance(result, str):
                broken[files[kept[row]]] = result
                continue
            kind, low, high, is_transparent = result
            least, most = self.extremes.get(kind, (low, high))
            self.extremes[kind] = min(least, low), max(most, high)
            self.transparent += is_transparent
            whole.append(row)
        for place, row in enumerate(whole):
            if place != row:
                images[place] = images[row]
        return images[: len(whole)], [kept[row] for row in whole]

    def _read_one(self, file: Path, image: Tensor) -> tuple[str, float, float, bool]:
        """Fill an image; the kind, the smallest and largest value of its pixels, and whether it is see-through."""
        draft = 2 * self.image_size[0], 2 * self.image_size[1]
        pixels, is_transparent = read_pixels(file, self.channels, draft)
        kind, low, high = kind_of(pixels), float(pixels.min()), float(pixels.max())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("it holds values that are not finite")
        tensor = _as_tensor(pixels).unsqueeze(0)
        if self.is_deep and kind == BYTE:
            tensor = to_unit(tensor)
        image.copy_(resized(tensor, self.image_size, self.resize)[0])
        return kind, low, high, is_transparent

    def notes(self) -> list[str]:
        """What was done beside decoding, in words."""
        return [f"{counted(self.transparent, 'picture')} with transparency over white"] if self.transparent else []


def _in_threads(function: Callable[[int, Path], Any], files: Sequence[Path]) -> list:
    """The results of a function over all files and their numbers; of files where it fails the reason, as text."""

    def tried(number: int, file: Path) -> Any:
        try:
            return function(number, file)
        except Exception as error:  # a damaged file raises many kinds; each is named
            if shortage := shortage_of_machine(file, error):
                raise shortage from None
            return _reason(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(tried, range(len(files)), files))


def _headers(files: Sequence[Path]) -> list[Header | str]:
    return _in_threads(lambda _, file: read_header(file), files)


def _refuse(broken: dict[Path, str], count: int, may_skip: bool = False) -> None:
    """ValueError that names the files that cannot be read."""
    named = "; ".join(f"{file} ({reason})" for file, reason in list(broken.items())[:MOST_NAMED])
    more = f"; and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    way = "; delete or mend them, or give skip_unreadable" if may_skip else ""
    raise ValueError(f"{len(broken)} of {counted(count, 'picture')} cannot be read: {named}{more}{way}")


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without its name, which stands beside it."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not a picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _size_and_channels(headers: Sequence[Header]) -> tuple[tuple[int, int], int]:
    channels = 1 if all(header.is_grey for header in headers) else 3
    return default_size([header.size for header in headers]), channels


def default_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size (H, W) that images of these sizes get: their own, or a square as `inspect_files` says."""
    if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST_DEFAULT_SIDE:
        return sizes[0]
    short = sorted(min(size) for size in sizes)[len(sizes) // 2]
    side = min(LARGEST_DEFAULT_SIDE, max(SMALLEST_DEFAULT_SIDE, 2 ** int(math.log2(short))))
    return side, side


def _scale(images: Tensor, of_bytes: Sequence[bool], value_range: tuple[float, float]) -> None:
    """Bring the images that are not 8-bit ones, which are there already, to 0 to 1, in place."""
    if not any(of_bytes):
        for part in images.split(ROWS):
            scale_to_unit(part, value_range)
        return
    for row, is_byte in enumerate(of_bytes):
        if not is_byte:
            scale_to_unit(images[row], value_range)


def _range_notes(
    kinds: Counter, extremes: dict[str, tuple[float, float]], value_range: tuple[float, float]
) -> list[str]:
    """What the range is of, where it does not go without saying."""
    low, high = value_range
    notes = []
    if BYTE in kinds and len(kinds) > 1:
        notes.append(f"{counted(kinds[BYTE], 'picture')} of 8 bits read as 0–255")
    ends = [extremes[kind] for kind in extremes if kind != BYTE]
    least, most = min(end[0] for end in ends), max(end[1] for end in ends)
    if least < low or most > high:
        notes.append(f"values from {least:g} to {most:g}, cut off at the range")
    return notes


def _as_tensor(pixels: Any) -> Tensor:  # an array [C, H, W] -> uint8, or float32
    if pixels.dtype == "uint8":
        return torch.from_numpy(pixels.copy())
    return torch.from_numpy(pixels.astype("float32"))


def _allocate(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:  # of this shape
    """Room for images: in memory, or, where they would take more than half of it, in a mapped file without a name."""
    size = math.prod(shape) * dtype.itemsize
    if size <= free_bytes(torch.device("cpu")) // 2:
        return torch.empty(shape, dtype=dtype)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    log.info("%.1f GB of images: more than fits in memory, streamed from a temporary file in %s", size / 1e9, folder)
    return mapped_tensor(folder, shape, dtype)
