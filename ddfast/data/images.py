"""Image files of any size, mode and aspect as one uint8 tensor."""

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ddfast.devices import free_bytes
from ddfast.files import cache_folder, mapped_tensor

log = logging.getLogger("ddfast")

LARGEST_DEFAULT_SIDE = 128  # pixels; the size of the field's ImageNet subsets
SMALLEST_DEFAULT_SIDE = 16  # the least that a ConvNet of one block and a ResNet take


def read_files(
    files: Sequence[Path],
    image_size: tuple[int, int],
    channels: int,
    resize: str = "stretch",
) -> Tensor:  # uint8 [N, C, H, W]
    """Decode files, turned as their EXIF says, to one size; larger than memory, they lie in a mapped temporary file.

    Errors: ValueError that names the files that cannot be read.
    """
    images = _allocate((len(files), channels, *image_size))

    def read(n: int) -> str | None:
        try:
            images[n] = _decode(files[n], image_size, channels, resize)
        except Exception as error:  # a damaged file raises many kinds; each is named
            return f"{files[n]} ({error})"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        broken = [sentence for sentence in pool.map(read, range(len(files))) if sentence]
    if broken:
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"unreadable image: {broken[0]}{more}")
    return images


def inspect_files(files: Sequence[Path], *, size_is_known: bool = False) -> tuple[tuple[int, int], int]:
    """The size that these files ask for, and their channels: 1 where all are grey, else 3.

    One size that all have is kept where it has at most 128 pixels a side; otherwise a square, the shorter side that is
    usual among them cut down to a power of 2 from 16 to 128.
    """
    from PIL import Image

    def header(file: Path) -> tuple[tuple[int, int], str] | None:
        try:
            with Image.open(file) as image:
                return image.size, image.mode
        except Exception:
            return None  # read_files says so

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = [found for found in pool.map(header, files) if found]
    if not headers:
        raise ValueError(f"unreadable images: none of {len(files)} files can be read, such as {files[0]}")
    sizes = {size for size, _ in headers}
    channels = 1 if all(mode[0] in "1LI" for _, mode in headers) else 3
    if len(sizes) == 1 and max(width_height := next(iter(sizes))) <= LARGEST_DEFAULT_SIDE:
        return (width_height[1], width_height[0]), channels
    short = sorted(min(size) for size, _ in headers)[len(headers) // 2]
    side = min(LARGEST_DEFAULT_SIDE, max(SMALLEST_DEFAULT_SIDE, 2 ** int(math.log2(short))))
    if not size_is_known:
        log.info("images of %d sizes: all become %dx%d pixels; image_size says otherwise", len(sizes), side, side)
    return (side, side), channels


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


def from_picture(picture, channels: int) -> Tensor:  # a PIL image -> uint8 [C, H, W]
    """A PIL image of any mode as a tensor."""
    import numpy
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    if picture.mode.startswith("I"):  # 16-bit grey, which `convert` would cut off at 255
        picture = Image.fromarray((numpy.asarray(picture) >> 8).clip(0, 255).astype("uint8"))
    return pil_to_tensor(picture.convert("L" if channels == 1 else "RGB"))


def to_unit(images: Tensor) -> Tensor:  # [N, C, H, W] uint8 of 0 to 255, or float in [0, 1] -> float32 in [0, 1]
    """Images as floats in [0, 1]."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _decode(file: Path, image_size: tuple[int, int], channels: int, resize: str) -> Tensor:  # uint8 [C, H, W]
    from PIL import Image, ImageOps

    with Image.open(file) as picture:
        picture.draft("RGB", (2 * image_size[1], 2 * image_size[0]))  # JPEG: decode no larger than needed
        image = from_picture(ImageOps.exif_transpose(picture), channels)
    return resized(image.unsqueeze(0), image_size, resize)[0]


def _allocate(shape: tuple[int, ...]) -> Tensor:  # uint8, of this shape
    """Room for images: in memory, or, where they would take more than half of it, in a mapped file without a name."""
    size = math.prod(shape)
    if size <= free_bytes(torch.device("cpu")) // 2:
        return torch.empty(shape, dtype=torch.uint8)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    log.info("%.1f GB of images: more than fits in memory, streamed from a temporary file in %s", size / 1e9, folder)
    return mapped_tensor(folder, shape, torch.uint8)
