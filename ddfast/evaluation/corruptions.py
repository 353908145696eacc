"""Common corruptions of test images (Hendrycks & Dietterich 2019), with the strengths of CIFAR-10-C.

Seven of its fifteen kinds, those that need no pictures of frost or lens geometry.
"""

import io
from collections.abc import Callable

import numpy
import torch
from torch import Tensor
from torch.nn.functional import interpolate

SEVERITIES = (1, 3, 5)  # of 1 to 5
CHUNK = 256

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]  # [B, C, H, W] in [0, 1], a strength -> the same


def _gaussian_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return images + strength * torch.randn(images.shape, generator=generator)


def _impulse_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(images.shape, generator=generator)
    return images.where(drawn >= strength, (drawn < strength / 2).to(images))


def _blur(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(images, 2 * round(4 * strength) + 1, strength)


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


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {  # and their strengths at severities 1 to 5
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}


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
