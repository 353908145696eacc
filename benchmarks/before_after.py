"""The picture of the README: a run's first images above its last ones, one of each class.

python -m benchmarks.before_after RUN PICTURE
"""

import sys
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

import ddfast

SCALE = 3  # of 32-px images


def picture(run: Path) -> torch.Tensor:  # [3, H, W]
    """A row of the initial images and a row of the distilled ones."""
    rows = []
    for name in ("initial", "synthetic"):
        synthetic = ddfast.SyntheticSet.load(run / name)
        first = [(synthetic.classes == k).nonzero()[0, 0] for k in range(len(synthetic.class_names))]
        rows.append(synthetic.preprocessing.pixels(synthetic.images[torch.stack(first)]) / 255)
    images = torch.cat(rows).repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    return make_grid(images, nrow=len(rows[0]), padding=4, pad_value=1.0)


if __name__ == "__main__":
    save_image(picture(Path(sys.argv[1])), sys.argv[2])
