"""The one line that tells what was read as a data set."""

from typing import Any

import torch
from torch import Tensor

from ddfast.data.listing import counted

MOST_LOOKED_AT = 2**28  # bytes of images whose values are looked at; of more, evenly spaced ones
BITS = {1023: 10, 4095: 12, 16383: 14}  # of the containers of 16 bits
FEW_OF_THE_RANGE = 0.5  # values that fill less of theirs are told


def summary(data: Any) -> str:  # of a Dataset
    """How many training and test images of how many classes, from where, their size, channels and values, and what was
    done to read them."""
    sources = [f" ({source})" if source else "" for source in data.about.get("sources", ("", ""))]
    H, W = data.image_size
    parts = [
        f"{data.name}: {counted(len(data.train_images), 'training image')}{sources[0]} and "
        f"{counted(len(data.test_images), 'test image')}{sources[1]} of {data.num_classes} classes",
        f"{H} × {W} px",
        counted(data.channels, "channel"),
        _values(data.train_images, data.preprocessing.value_range),
    ]
    return "; ".join([", ".join(parts), *data.about.get("notes", ())])


def _values(images: Tensor, value_range: tuple[float, float] | None) -> str:
    """The range that is black to white, and where the values reach if that is not near it."""
    is_bytes = images.dtype == torch.uint8
    low, high = value_range or ((0, 255) if is_bytes else (0, 1))
    scale = (high - low) / (255 if is_bytes else 1)
    some = images[:: -(-images.numel() * images.element_size() // MOST_LOOKED_AT)]
    least, most = (low + scale * float(end) for end in some.aminmax())
    bits = f" ({BITS[int(high)]} bits)" if low == 0 and high in BITS else ""
    reach = f", which reach from {least:g} to {most:g}" if most - least < FEW_OF_THE_RANGE * (high - low) else ""
    return f"values {span(low, high)}{bits}{reach}"


def span(low: float, high: float) -> str:
    """Two ends of a range."""
    return f"{low:g} to {high:g}" if low < 0 else f"{low:g}–{high:g}"
