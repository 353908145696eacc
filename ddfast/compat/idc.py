"""The sets of IDC's and NCFM's code: data.pt, a list of images and classes, the images tiles of smaller ones."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ddfast.compat.dc import is_pair
from ddfast.compat.labels import as_labels, classes_for
from ddfast.compat.placing import placing_file
from ddfast.compat.tensors import Use, as_images, read_lr, synthetic_set
from ddfast.compat.torch_files import load, save
from ddfast.data import Dataset, SyntheticSet
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.files import read_json

ARGUMENTS = "args.txt"  # JSON that IDC's code writes beside
BORDER = 0.5  # what fills images whose side the factor does not divide
DATASETS = {"fashion": "fashion-mnist", "tinyimagenet": "tiny-imagenet"}  # others by their names

log = logging.getLogger("ddfast")


def hints(path: Path) -> dict[str, Any]:
    """What the arguments beside a file say: dataset and factor; as options of convert."""
    try:
        said = read_json(path.with_name(ARGUMENTS))
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    dataset, factor = said.get("dataset"), said.get("factor")
    found: dict[str, Any] = {}
    if isinstance(dataset, str) and dataset != "imagenet":  # which subset of it is in no word of ours
        found["dataset"] = DATASETS.get(dataset, dataset)
    if type(factor) is int and factor >= 1 and said.get("decode_type", "single") == "single":
        found["factor"] = factor
    return found


def read_idc(path: str | Path, dataset: Dataset, *, factor: int | None = None, **use: Any) -> SyntheticSet:
    """The set of IDC's or NCFM's code (Kim et al. 2022; Wang et al. 2025), its images as networks see them.

    An image of the file holds factor² tiles, each of which is brought to the whole size by bilinear interpolation: of
    I images come I · factor², class by class. They are pixels of 0 to 1 in the file, and preprocessed as the data set.

    Args:
        path: data.pt, data_<iteration>.pt …
        dataset: what it was distilled from, preprocessed as networks are to see it.
        factor: tiles per side; 1 where images are whole, as IDC-I has them.
        use: what the file does not say (ddfast.compat.Use); lr is needed.

    Errors: OSError or ValueError that names the file, or says that the factor has to be given.
    """
    path, use, value = Path(path), Use(**use), load(Path(path))
    if not is_pair(value):
        raise ValueError(f"{path}: expected a list of images [I, C, H, W] and labels [I]")
    if factor is None:
        raise ValueError(
            f"factor: expected the tiles a side of the images of {path}; no file records it (IDC: 2, of "
            f"ImageNet 3; IDC-I: 1; NCFM: its configuration's)"
        )
    expect_whole(factor=factor)
    targets, rate = as_labels(value[1], f"{path}, labels", use.labels), read_lr(None, use.lr, path)
    if targets.dim() == 1:
        order = targets.sort(stable=True).indices
        images, targets = value[0][order], targets[order]
    else:
        images = value[0]
    H, W = dataset.image_size
    if factor > 1 and (use.values not in (None, "unit") or list(images.shape[2:]) != [H, W]):
        raise ValueError(
            f"{path}: expected pixels of 0 to 1 and {H}×{W} with factor {factor}, got {list(images.shape)}"
        )
    if factor > 1:
        as_images(images, f"{path}, images", dataset, use, "unit")  # refuses what are no pixels, before they are cut
        images, targets = decoded(images.detach().float(), targets, factor)
        log.info("%s: %d images of %d × %d tiles become %d", path, len(value[0]), factor, factor, len(images))
    values = as_images(images, f"{path}, images", dataset, use, "unit")
    return synthetic_set(path, values, targets, rate, dataset, use)


def decoded(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:  # [I, C, H, W], [I] or [I, K]
    """Every tile of every image in the whole size, and the label of its image: class by class, in a class tile by
    tile, as IDC's code has them."""
    H, W = images.shape[2:]
    rows, columns = (math.ceil(side / factor) for side in (H, W))
    images = pad(images, (0, factor * columns - W, 0, factor * rows - H), value=BORDER)
    tiles = images.unflatten(3, (factor, columns)).unflatten(2, (factor, rows))  # [I, C, f, h, f, w]
    tiles = tiles.permute(2, 4, 0, 1, 3, 5)  # [f, f, I, C, h, w]
    whole = interpolate(tiles.flatten(0, 2), size=(H, W), mode="bilinear")
    labels = labels.expand(factor**2, *labels.shape).flatten(0, 1)
    if labels.dim() == 1:
        order = labels.sort(stable=True).indices
        whole, labels = whole[order], labels[order]
    return whole, labels


def write_idc(synthetic: SyntheticSet, output: str | Path, *, labels: str | None = None) -> None:
    """Write a set as whole images, to be read with factor 1: pixels, de-whitened and de-normalised, and classes.

    What is lost: rounding of float32 in the pixels; the learning rate, class names, preprocessing, augmentation and
    network. Errors: FileExistsError where the file is another one; ValueError for canvases, and for soft labels unless
    labels is classes.
    """
    if synthetic.canvas > 1:
        raise ValueError(f"canvas: IDC's code trains on whole images; expected 1, got {synthetic.canvas}")
    synthetic = synthetic.decoded()
    classes = classes_for(synthetic, labels, "a file of IDC's code").cpu().clone()
    pixels = synthetic.preprocessing.invert(synthetic.images.detach().cpu()).clone(
        memory_format=torch.contiguous_format
    )
    with placing_file(Path(output), ".pt") as file:
        save([pixels, classes], file)
