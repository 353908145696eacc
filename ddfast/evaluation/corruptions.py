"""Common corruptions of test images (Hendrycks & Dietterich 2019), with the strengths of CIFAR-10-C.

All of its fifteen kinds, and Gaussian blur; frost where its photographs are installed. What is in pixels is of images
of 32, and grows with the side of larger ones.
"""

import io
import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

SEVERITIES = (1, 3, 5)  # of 1 to 5
CHUNK = 256
SIDE = 32  # of CIFAR-10-C's images, px
PHOTOGRAPHS = "imagecorruptions"  # the package with frost, of which only the pictures are used
NUM_PHOTOGRAPHS = 5  # of its six, as CIFAR-10-C's code draws them
SHRUNK = 0.2  # for images of 32

Corruption = Callable[[Tensor, Any, torch.Generator], Tensor]  # [B, C, H, W] in [0, 1], a strength -> the same


def _scale(images: Tensor) -> float:
    return max(1.0, images.shape[-1] / SIDE)


def _gaussian_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return images + strength * torch.randn(images.shape, generator=generator)


def _shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(images * photons, generator=generator) / photons


def _impulse_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(images.shape, generator=generator)
    return images.where(drawn >= strength, (drawn < strength / 2).to(images))


def _gaussian_blur(images: Tensor, sigma: float, _generator: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma *= _scale(images)
    return gaussian_blur(images, 2 * round(4 * sigma) + 1, sigma)


def _defocus_blur(images: Tensor, strength: tuple[float, float], _generator: torch.Generator) -> Tensor:
    """A disk of a radius, itself blurred."""
    from torchvision.transforms.v2.functional import gaussian_blur

    radius, sigma = strength[0] * _scale(images), strength[1]
    reach = math.ceil(radius) + 1
    along = torch.arange(-reach, reach + 1)
    disk = (along[:, None].square() + along.square() <= radius**2).float()[None, None]
    kernel = gaussian_blur(disk / disk.sum(), 3, sigma)
    padded = pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return conv2d(padded, kernel).view_as(images)


def _moved(images: Tensor, *, zoom: float = 1.0, by: Tensor | None = None) -> Tensor:
    """Bilinearly: what lies `by` pixels (x, y) away ([B, 2], or [B, H, W, 2]), magnified about the middle."""
    B, _, H, W = images.shape
    y, x = torch.meshgrid(torch.arange(H) - (H - 1) / 2, torch.arange(W) - (W - 1) / 2, indexing="ij")
    places = torch.stack([x, y], 2).expand(B, H, W, 2) / zoom
    if by is not None:
        places = places + (by if by.ndim == 4 else by[:, None, None])
    return grid_sample(images, places * 2 / torch.tensor([W, H]), padding_mode="border", align_corners=False)


def _along(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """The mean over half of a Gaussian along a line at these angles ([B], radians)."""
    scale = _scale(images)
    direction = torch.stack([angles.cos(), angles.sin()], 1)
    steps = torch.arange(2 * round(radius * scale) + 1)
    weights = torch.exp(-steps.square() / (2 * (sigma * scale) ** 2))
    parts = (w * _moved(images, by=n * direction) for n, w in zip(steps, weights / weights.sum(), strict=True))
    return torch.stack(list(parts)).sum(0)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _motion_blur(images: Tensor, strength: tuple[float, float], generator: torch.Generator) -> Tensor:
    angles = _uniform((len(images),), -math.pi / 4, math.pi / 4, generator)
    return _along(images, *strength, angles)


def _zoom_blur(images: Tensor, most: float, _generator: torch.Generator) -> Tensor:
    """The mean of an image and of itself magnified by 1, 1.01, …, below `most`."""
    zooms = torch.arange(1, most - 0.005, 0.01).tolist()
    return (images + sum(_moved(images, zoom=zoom) for zoom in zooms)) / (len(zooms) + 1)


def _glass_blur(images: Tensor, strength: tuple[float, int, int], generator: torch.Generator) -> Tensor:
    """Every pixel becomes a neighbour that is drawn (in the published code they change places), between two blurs."""
    sigma, reach, times = strength
    found = _gaussian_blur(images, sigma, generator)
    B, C, H, W = images.shape
    reach = round(reach * _scale(images))
    for _ in range(times):
        y, x = (torch.randint(-reach, reach + 1, (B, H, W), generator=generator) for _ in range(2))
        y = (y + torch.arange(H)[:, None]).clamp(0, H - 1)
        x = (x + torch.arange(W)).clamp(0, W - 1)
        taken = (y * W + x).flatten(1)[:, None].expand(B, C, H * W)
        found = found.flatten(2).gather(2, taken).view_as(images)
    return _gaussian_blur(found, sigma, generator)


def _fog(images: Tensor, strength: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Clouds by midpoint displacement, each scale of which is so many times weaker than the one before."""
    from kornia.contrib import diamond_square

    amount, decay = strength
    B, _, H, W = images.shape

    def drawn(size: tuple[int, ...], **how: Any) -> Tensor:
        return torch.rand(size, generator=generator, dtype=how.get("dtype"))

    clouds = diamond_square((B, 1, H, W), 1 / decay, random_fn=drawn, normalize_range=(0, 1))
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * clouds) * brightest / (brightest + amount)


def _frost(images: Tensor, strength: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A piece of a photograph of frost, drawn for each image, on top."""
    kept, amount = strength
    C, H, W = images.shape[1:]
    photographs, pieces = _photographs(_folder_of_frost(), SHRUNK * _scale(images), H, W), []
    for _ in images:
        photograph = photographs[int(torch.randint(len(photographs), (), generator=generator))]
        h, w = photograph.shape[1:]
        y, x = (int(torch.randint(rest + 1, (), generator=generator)) for rest in (h - H, w - W))
        pieces.append(photograph[:, y : y + H, x : x + W])
    frost = torch.stack(pieces)
    return kept * images + amount * (frost if C == 3 else frost.mean(1, keepdim=True))


def _folder_of_frost() -> Path | None:
    """Where the photographs are; None where they are not installed."""
    found = find_spec(PHOTOGRAPHS)
    places = (found.submodule_search_locations if found else None) or []
    return next((Path(place) / "frost" for place in places if (Path(place) / "frost").is_dir()), None)


@cache
def _photographs(folder: Path, zoom: float, height: int, width: int) -> list[Tensor]:  # [3, h, w] in [0, 1]
    """Photographs, magnified so, or more where they would be smaller than height × width."""
    from PIL import Image

    found = []
    for path in sorted(folder.glob("frost*"))[:NUM_PHOTOGRAPHS]:
        pixels = torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).movedim(2, 0)[None] / 255
        sides = zip(pixels.shape[2:], (height, width), strict=True)
        size = [max(round(zoom * side), least) for side, least in sides]
        found.append(interpolate(pixels, size, mode="bilinear")[0])
    return found


def _snow(
    images: Tensor, strength: tuple[float, float, float, float, float, float, float], generator: torch.Generator
) -> Tensor:
    """Flakes, blurred along the way they fall, on a whitened image."""
    mean, deviation, zoom, threshold, radius, sigma, kept = strength
    B, _, H, W = images.shape
    flakes = _moved(mean + deviation * torch.randn(B, 1, H, W, generator=generator), zoom=zoom)
    flakes = flakes.where(flakes >= threshold, 0).clamp(0, 1)
    flakes = _along(flakes, radius, sigma, _uniform((B,), -3 * math.pi / 4, -math.pi / 4, generator))
    whitened = torch.maximum(images, images.mean(1, keepdim=True) * 1.5 + 0.5)
    return kept * images + (1 - kept) * whitened + flakes + flakes.rot90(2, (2, 3))


def _elastic(images: Tensor, strength: tuple[float, float, float], generator: torch.Generator) -> Tensor:
    """A random affine map, and a smooth field of displacements: in shares of the side, how far and how smooth the field
    is, and how far the map moves three points."""
    from torchvision.transforms.v2.functional import gaussian_blur

    B, _, H, W = images.shape
    far, smooth, affine = (W * share for share in strength)
    moves = _uniform((B, 3, 2), -affine, affine, generator)  # of (−1, −1), (1, −1), (−1, 1), in thirds of the sides
    y, x = torch.meshgrid(torch.linspace(-1.5, 1.5, H), torch.linspace(-1.5, 1.5, W), indexing="ij")
    first, second, third = moves[:, :, None, None].unbind(1)
    x, y = (x[None, :, :, None] + 1) / 2, (y[None, :, :, None] + 1) / 2
    by = first + x * (second - first) + y * (third - first)
    if far:
        field = _uniform((B, 2, H, W), -1, 1, generator)
        reach = min(math.ceil(3 * smooth), (min(H, W) - 1) // 2)
        by = by + far * gaussian_blur(field, 2 * reach + 1, smooth).movedim(1, 3)
    return _moved(images, by=by)


def _contrast(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * strength + mean


def _brightness(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """The largest channel, HSV's value, is raised; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    raised = (value + strength).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp(min=1e-6), raised)


def _pixelate(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    H, W = images.shape[2:]
    small = interpolate(images, (max(1, int(H * strength)), max(1, int(W * strength))), mode="area")
    return interpolate(small, (H, W), mode="nearest")


def _jpeg(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """Channel by channel where there are neither one nor three."""
    pixels = (255 * images).round().to(torch.uint8)
    planes = pixels if pixels.shape[1] == 3 else pixels.flatten(0, 1)[:, None]
    coded = torch.stack([_coded(plane, int(strength)) for plane in planes])
    return coded.view_as(pixels).to(images) / 255


def _coded(image: Tensor, quality: int) -> Tensor:  # uint8 [C, H, W], C is 1 or 3 -> the same
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.movedim(0, 2).squeeze(2).numpy()).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(numpy.array(Image.open(file)))
    return decoded.reshape(*image.shape[1:], -1).movedim(2, 0)


CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {  # and their strengths at severities 1 to 5
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "elastic": (_elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}


def corruptions() -> list[str]:
    """The names of those that can be computed here: frost only with its photographs."""
    return [name for name in CORRUPTIONS if name != "frost" or _folder_of_frost() is not None]


@torch.no_grad()
def corrupted(
    images: Tensor,  # [N, C, H, W], uint8 or float in [0, 1], on the CPU
    name: str,
    severity: int,  # 1 to 5
    generator: torch.Generator,
) -> Tensor:  # float32, like them
    """Images after a corruption of CORRUPTIONS."""
    corrupt, strengths = CORRUPTIONS[name]
    scaled = (part.float() / (255 if images.dtype == torch.uint8 else 1) for part in images.split(CHUNK))
    return torch.cat([corrupt(part, strengths[severity - 1], generator).clamp(0, 1) for part in scaled])
