"""A picture of a synthetic set: its images by class, each class below its name."""

import base64
import io
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from ddfast.data.synthetic import SyntheticSet

SMALLEST_SIDE = 64  # pixels; smaller images are enlarged
PADDING = 2  # pixels between images
CAPTION = 14  # pixels of a line of text
IMAGES_A_ROW = 10
MOST_IN_A_NOTEBOOK = 200
MOST_ON_A_PICTURE = 2000  # images; of larger sets only the first of each class are shown


def sheet(synthetic: SyntheticSet, *, most: int = MOST_ON_A_PICTURE, smallest_side: int = SMALLEST_SIDE) -> Any:
    """Draw the images, de-whitened and de-normalised, as a PIL image.

    Each class has a row; classes with few images share one. Images below `smallest_side` pixels are enlarged without
    smoothing. Of more than `most` images, only the first of each class are shown.
    """
    from PIL import Image, ImageDraw

    synthetic = synthetic.decoded()
    images, classes = synthetic.images.detach().cpu(), synthetic.classes.detach().cpu()
    present = classes.unique().tolist()
    of_each = max(1, most // len(present))
    by_class = {k: (classes == k).nonzero()[:of_each, 0] for k in present}
    columns = max(len(indices) for indices in by_class.values())
    across = max(1, IMAGES_A_ROW // columns)  # classes side by side
    H, W = images.shape[2:]
    scale = max(1, -(-smallest_side // min(H, W)))
    width, height = columns * (W * scale + PADDING), H * scale + 2 * PADDING + CAPTION
    size = (min(across, len(present)) * (width + PADDING) + PADDING, -(-len(present) // across) * height + PADDING)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for cell, (k, indices) in enumerate(by_class.items()):
        left, top = PADDING + cell % across * (width + PADDING), PADDING + cell // across * height
        draw.text((left, top), _fitting(draw, synthetic.class_names[k], width), fill="black")
        picture.paste(_row(synthetic, images[indices], scale), (left - PADDING, top + CAPTION - PADDING))
    return picture


def html_of(synthetic: SyntheticSet) -> str:
    """The picture and a line of text, as HTML."""
    picture = data_uri(sheet(synthetic, most=MOST_IN_A_NOTEBOOK))
    words = f"{len(synthetic)} images of {len(synthetic.class_names)} classes in {synthetic.bytes:,} bytes"
    lr = "" if synthetic.lr is None else f", learning rate {float(synthetic.lr):.4g}"
    soft = ", soft labels" if synthetic.is_soft else ""
    return f'<p>{words}{lr}{soft}</p><img alt="{words}" src="{picture}">'


def data_uri(picture: Any) -> str:
    """A PIL image as a URI that holds it."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=90)
    return webp_uri(file.getvalue())


def webp_uri(encoded: bytes) -> str:
    """The same of a file's bytes."""
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"


def viewable(synthetic: SyntheticSet, images: Tensor) -> Tensor:  # [N, C, H, W] preprocessed -> uint8 [N, 1 or 3, H, W]
    """Pixels that can be drawn: the mean of the channels unless there are one or three."""
    pixels = synthetic.preprocessing.pixels(images)
    return pixels if pixels.shape[1] in (1, 3) else pixels.float().mean(1, keepdim=True).round().byte()


def _row(synthetic: SyntheticSet, images: Tensor, scale: int) -> Any:  # [N, C, H, W] preprocessed -> a PIL image
    """Images side by side, with padding all around."""
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    images = viewable(synthetic, images)
    enlarged = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    padded = pad(enlarged, (PADDING, 0, PADDING, 0), value=255)  # make_grid does not pad a single image
    return to_pil_image(make_grid(padded, nrow=len(images), padding=0))


def _fitting(draw: Any, text: str, width: int) -> str:
    """The longest beginning of a text that fits into a width."""
    while len(text) > 1 and draw.textlength(text) > width:
        text = text[:-1]
    return text
