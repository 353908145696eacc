"""Pictures of a run."""

from pathlib import Path

import torch
from torch import Tensor

from ddfast.data import SyntheticSet
from ddfast.files import replacing

SMALLEST_SIDE = 64  # pixels at which an image can be looked at; smaller ones are enlarged


def save_images(synthetic: SyntheticSet, path: str | Path) -> None:
    """Write the synthetic images as a PNG, de-normalised, one row per class, small ones enlarged without smoothing."""
    from PIL import Image
    from torchvision.utils import make_grid

    images: Tensor = synthetic.preprocessing.invert(synthetic.images.detach().cpu()).clamp(0, 1)  # [I, C, H, W]
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)  # no picture has so many channels: show their mean
    order = torch.argsort(synthetic.labels.cpu(), stable=True)
    scale = max(1, -(-SMALLEST_SIDE // min(images.shape[2:])))
    enlarged = images[order].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    per_class = max(1, len(images) // len(synthetic.class_names))
    columns = per_class if per_class > 1 else min(len(images), 10)  # one image per class: ten classes side by side
    grid = make_grid(enlarged, nrow=columns, padding=2, pad_value=1.0)  # [3, …]
    picture = Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy())
    with replacing(Path(path)) as temporary:
        picture.save(temporary, format="PNG")
