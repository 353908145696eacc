"""Synthetic sets as others keep them: what their tensors of images, labels and learning rate mean."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.compat.labels import labels_for
from ddfast.compat.torch_files import WIDENED, expect_floats, expect_held, load, save
from ddfast.data import Dataset, SyntheticSet
from ddfast.data.augment import FULL_STRATEGY
from ddfast.data.synthetic import DEFAULT_LR
from ddfast.runtime.arguments import expect_one_of, expect_positive, is_number

log = logging.getLogger("ddfast")

VALUES = ("preprocessed", "unit", "bytes")  # what images are: as networks see them; pixels of 0 to 1; of 0 to 255


@dataclass(frozen=True)
class Use:
    """What files of others do not say about a set.

    lr: the learning rate to train with; None for that of the files.
    labels: what labels [I, K] are, one of ddfast.compat.labels.LABELS; None to infer it from their values.
    dsa_strategy: the augmentation to train with; None for that of MTT's code.
    canvas: as in SyntheticSet.
    values: what the images are, one of VALUES; None for what the format says, else inferred.
    network: what the set was distilled for, a name as ddfast.networks.create takes it; None where nobody knows.
    """

    lr: float | None = None
    labels: str | None = None
    dsa_strategy: str | None = None
    canvas: int = 1
    values: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if self.values is not None:
            expect_one_of("values", self.values, VALUES)


def synthetic_set(
    source: Path,
    images: Tensor,  # [I, C, H, W], preprocessed
    labels: Tensor,  # int64 [I], or float [I, K]
    lr: Tensor,  # []
    dataset: Dataset,
    use: Use,
) -> SyntheticSet:
    """A set of images that were distilled from a data set; ValueError that names `source` for others."""
    wanted = _shape(dataset, use)
    if images.dim() != 4 or list(images.shape[1:]) != wanted:
        expected = f"[I, {', '.join(map(str, wanted))}]"
        raise ValueError(f"{source}: expected images {expected} as of {dataset.name}, got {list(images.shape)}")
    strategy = FULL_STRATEGY if use.dsa_strategy is None else use.dsa_strategy
    about = dataset.class_names, dataset.preprocessing, strategy, use.canvas, use.network
    try:
        made = SyntheticSet(images, labels, lr, *about)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    absent = sorted(set(range(dataset.num_classes)) - set(made.classes.tolist()))
    if absent:
        names = ", ".join(dataset.class_names[k] for k in absent[:5])
        log.warning("%s: no images of %d classes: %s%s", source, len(absent), names, " …" if len(absent) > 5 else "")
    return made


def as_images(value: Any, what: str, dataset: Dataset, use: Use, meant: str | None) -> Tensor:  # float32 [I, C, H, W]
    """Images of a file as networks see them.

    meant: what the format says that its values are, one of VALUES. None for formats that say nothing: their layout may
    be [I, H, W, C], [I, H, W] or [I, C H W] too, and what the values are is inferred.

    Errors: ValueError for what is no tensor of finite numbers, or whose values cannot be what they are meant to be.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{what}: expected a tensor, got {type(value).__name__}")
    values = use.values or meant
    if values == "preprocessed" and meant is not None:
        images = expect_floats(value, what)
    else:
        images = _numbers(value, what)
    if not images.isfinite().all():
        raise ValueError(f"{what}: holds values that are not finite")
    if meant is None:
        images = _in_layout(images, what, dataset, use)
    images = images.clone(memory_format=torch.contiguous_format)
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if values is None:
        values = _values_of(images, low, high)
        log.info("%s: values %.3g to %.3g, read as %s; use --values to read them otherwise", what, low, high, values)
    _expect_values(images, what, values, low, high, use.values is None)
    if values == "preprocessed":
        return images.float()
    pixels = images.round().to(torch.uint8) if values == "bytes" else images.float()
    return dataset.preprocessing.apply(pixels)


def _numbers(value: Tensor, what: str) -> Tensor:
    """Any real numbers; those of float64 are rounded, and that is said."""
    expect_held(value, what)
    value = value.detach()
    if value.dtype == torch.float64:
        log.info("%s: float64, rounded to float32", what)
        return value.float()
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise ValueError(f"{what}: expected real numbers, got {value.dtype}")
    return value


def _shape(dataset: Dataset, use: Use) -> list[int]:
    return [dataset.channels, *(use.canvas * side for side in dataset.image_size)]


def _in_layout(images: Tensor, what: str, dataset: Dataset, use: Use) -> Tensor:  # -> [I, C, H, W]
    C, H, W = wanted = _shape(dataset, use)
    shape = list(images.shape[1:])
    if shape == [H, W, C] and shape != wanted:
        log.info("%s: images [I, H, W, C], read as such", what)
        return images.permute(0, 3, 1, 2)
    if shape == [C * H * W] or (C == 1 and shape == [H, W]):
        return images.reshape(len(images), C, H, W)
    return images


def _values_of(images: Tensor, low: float, high: float) -> str:
    if low < 0 or high > 255:
        return "preprocessed"
    if images.dtype not in WIDENED:
        return "bytes"
    if high <= 1:
        return "unit"
    return "bytes" if images.equal(images.round()) else "preprocessed"


def _expect_values(images: Tensor, what: str, values: str, low: float, high: float, inferred: bool) -> None:
    """ValueError, or a warning, for images that are hardly what they are read as."""
    span = f"values from {low:.3g} to {high:.3g}"
    if values == "bytes" and not (low >= 0 and high <= 255 and images.equal(images.round())):
        raise ValueError(f"{what}: expected whole numbers from 0 to 255 as bytes, got {span}")
    if values == "unit" and (low < -1 or high > 2):  # some codes leave pixels a little outside of 0 to 1
        raise ValueError(
            f"{what}: expected pixels of about 0 to 1, got {span}: as networks see them, --values preprocessed; of 0 "
            f"to 255, --values bytes"
        )
    if values == "preprocessed" and inferred and 0 <= low < high <= 1:
        log.warning(
            "%s: %s, the range of pixels, but read as preprocessed; use --values unit to read pixels", what, span
        )


def read_lr(path: Path | None, given: float | None, images: Path) -> Tensor:  # []
    """The learning rate that is given, else that of a file, a tensor of one value or a number."""
    if given is not None:
        expect_positive("lr", given)
        return torch.tensor(float(given))
    if path is None:
        raise ValueError(f"lr: no file beside {images} says the learning rate to train with; give one")
    return as_lr(load(path), str(path))


def as_lr(value: Any, what: str) -> Tensor:  # []
    """A learning rate that a file holds; ValueError where it is none."""
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not is_number(value) or not 0 < value < math.inf:
        got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        got = value if is_number(value) else got
        raise ValueError(f"{what}: expected one positive learning rate, got {got}")
    return torch.tensor(float(value))


def write_tensors(synthetic: SyntheticSet, folder: Path, names: tuple[str, str, str], labels: str | None) -> None:
    """Write images, labels and learning rate into a folder under these names."""
    for name, value in zip(names, tensors_of(synthetic, labels), strict=True):
        save(value, folder / name)


def tensors_of(synthetic: SyntheticSet, labels: str | None) -> list[Tensor]:
    """Images, labels as they are to be written, and learning rate; copies: a view would be written with all that it is
    a view of."""
    rate = torch.tensor(DEFAULT_LR) if synthetic.lr is None else synthetic.lr
    of_set = synthetic.decoded().images, labels_for(synthetic, labels), rate
    return [value.detach().cpu().clone(memory_format=torch.contiguous_format) for value in of_set]
