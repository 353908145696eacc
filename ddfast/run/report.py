"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.data import SyntheticSet
from ddfast.runtime.files import replacing

SMALLEST_SIDE = 64  # pixels at which an image can be looked at; smaller ones are enlarged
PADDING = 2  # pixels between images
CAPTION = 14  # pixels of a line of text
IMAGES_A_ROW = 10
MOST_POINTS = 500  # of a curve, that can be told apart
MOST_ON_A_PICTURE = 2000  # images; of more, the first of each class are shown


def save_images(synthetic: SyntheticSet, path: str | Path) -> None:
    """Write the synthetic images as a PNG, de-whitened and de-normalised, class by class under its name.

    A row of images per class; where a class has few, several classes side by side. Small images are enlarged without
    smoothing.
    """
    from PIL import Image, ImageDraw

    synthetic = synthetic.decoded()
    images, classes = synthetic.images.detach().cpu(), synthetic.classes.detach().cpu()
    present = classes.unique().tolist()
    most = max(1, MOST_ON_A_PICTURE // len(present))
    by_class = {k: (classes == k).nonzero()[:most, 0] for k in present}
    columns = max(len(indices) for indices in by_class.values())
    across = max(1, IMAGES_A_ROW // columns)  # classes side by side
    H, W = images.shape[2:]
    scale = max(1, -(-SMALLEST_SIDE // min(H, W)))
    width, height = columns * (W * scale + PADDING), H * scale + 2 * PADDING + CAPTION
    size = (min(across, len(present)) * (width + PADDING) + PADDING, -(-len(present) // across) * height + PADDING)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for cell, (k, indices) in enumerate(by_class.items()):
        left, top = PADDING + cell % across * (width + PADDING), PADDING + cell // across * height
        draw.text((left, top), _fitting(draw, synthetic.class_names[k], width), fill="black")
        picture.paste(_row(synthetic, images[indices], scale), (left - PADDING, top + CAPTION - PADDING))
    with replacing(Path(path)) as temporary:
        picture.save(temporary, format="PNG")


def save_curves(history: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write the matching loss and the learning rate over the iterations as a PNG; nothing for an empty history.

    Of many iterations the median of every group of neighbours is drawn over the values; a loss that once was a hundred
    times its median makes its axis logarithmic.
    """
    if not history:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    iterations = [record["iteration"] for record in history]
    panels = [("loss", "loss"), ("lr", "learning rate α")][: 2 if "lr" in history[0] else 1]
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(drawn, panels, strict=True):
        values = [float("nan") if record[key] is None else record[key] for record in history]
        many = len(values) > MOST_POINTS
        axes.plot(iterations, values, linewidth=0.8, alpha=0.4 if many else 1)
        if many:
            size = -(-len(values) // MOST_POINTS)
            medians = [part.nanmedian().item() for part in torch.tensor(values).split(size)]
            axes.plot(iterations[size // 2 :: size], medians[: len(iterations[size // 2 :: size])], color="C1")
        if key == "loss" and _has_peaks(torch.tensor(values)):
            axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.set_xlabel("iteration")
    with replacing(Path(path)) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _has_peaks(values: Tensor) -> bool:  # [N], NaN where nothing was finite
    finite = values[values.isfinite()]
    return len(finite) > 0 and bool(finite.min() > 0) and bool(finite.max() > 100 * finite.median())


def _row(synthetic: SyntheticSet, images: Tensor, scale: int) -> Any:  # [N, C, H, W] preprocessed -> a PIL image
    """Images side by side, with padding all around."""
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    images = synthetic.preprocessing.pixels(images)
    if images.shape[1] not in (1, 3):
        images = images.float().mean(1, keepdim=True).round().to(torch.uint8)  # no picture has so many channels
    enlarged = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    padded = torch.nn.functional.pad(enlarged, (PADDING, 0, PADDING, 0), value=255)  # of one image make_grid pads none
    return to_pil_image(make_grid(padded, nrow=len(images), padding=0))


def _fitting(draw: Any, text: str, width: int) -> str:
    """As much of a text as fits into a width."""
    while len(text) > 1 and draw.textlength(text) > width:
        text = text[:-1]
    return text
