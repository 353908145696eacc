"""Synthetic sets as others keep them: a file of images, one of labels, one of the learning rate."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.arguments import expect_one_of, expect_positive, is_number
from ddfast.compat.torch_files import expect_floats, expect_held, load, save
from ddfast.data import Dataset, SyntheticSet
from ddfast.data.augment import FULL_STRATEGY

log = logging.getLogger("ddfast")

LABELS = ("logits", "probabilities")  # what soft labels are in the files of others
LOG_OF_ZERO = -1000.0  # its exponential is 0 in float32 and in float64, and it is a number


def synthetic_set(
    source: Path,
    images: Tensor,  # [I, C, H, W], preprocessed
    labels: Tensor,  # int64 [I], or float [I, K]
    lr: Tensor,  # []
    dataset: Dataset,
    dsa_strategy: str | None,
    canvas: int,
) -> SyntheticSet:
    """A set of images that were distilled from a data set; ValueError that names `source` for others."""
    wanted = (dataset.channels, *(canvas * side for side in dataset.image_size))
    if images.dim() != 4 or tuple(images.shape[1:]) != wanted:
        expected = f"[I, {', '.join(map(str, wanted))}]"
        raise ValueError(f"{source}: expected images {expected} as of {dataset.name}, got {list(images.shape)}")
    strategy = FULL_STRATEGY if dsa_strategy is None else dsa_strategy
    try:
        made = SyntheticSet(images, labels, lr, dataset.class_names, dataset.preprocessing, strategy, canvas)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    absent = sorted(set(range(dataset.num_classes)) - set(made.classes.tolist()))
    if absent:
        names = ", ".join(dataset.class_names[k] for k in absent[:5])
        log.warning("%s: no images of %d classes: %s%s", source, len(absent), names, " …" if len(absent) > 5 else "")
    return made


def read_images(path: Path) -> Tensor:  # float32 [I, C, H, W]
    """Images as they are in the file; ValueError where they are no finite floats."""
    images = expect_floats(load(path), str(path))
    if not images.isfinite().all():
        raise ValueError(f"{path}: holds values that are not finite")
    return images.float().clone(memory_format=torch.contiguous_format)


def read_labels(path: Path, kind: str) -> Tensor:  # int64 [I], or logits float32 [I, K]
    """Classes, be they whole numbers or floats, or label logits; of probabilities the logits that give them back.

    The softmax of log p is p to about 1e-6 of each; exactly 0 for 0, and exactly 1 for 1.
    """
    expect_one_of("labels", kind, LABELS)
    labels = load(path)
    if not isinstance(labels, Tensor):
        raise ValueError(f"{path}: expected a tensor, got {type(labels).__name__}")
    expect_held(labels, str(path))
    labels = labels.detach().clone(memory_format=torch.contiguous_format)
    if labels.dim() == 1:
        if not (labels.isfinite().all() and labels.equal(labels.round() if labels.is_floating_point() else labels)):
            raise ValueError(f"{path}: expected whole numbers as classes, got {labels[:5].tolist()} …")
        return labels.long()
    labels = expect_floats(labels, str(path)).float()
    if labels.dim() != 2 or not labels.isfinite().all():
        raise ValueError(f"{path}: expected classes [I] or finite soft labels [I, K], got {list(labels.shape)}")
    if kind == "logits":
        return labels
    if (labels < 0).any() or not torch.allclose(labels.sum(1), torch.ones(len(labels)), atol=1e-3):
        raise ValueError(f"{path}: expected probabilities, of 0 or more with sum 1 per row; are they logits?")
    return labels.double().log().clamp(min=LOG_OF_ZERO).float()


def read_lr(path: Path | None, given: float | None, images: Path) -> Tensor:  # []
    """The learning rate that is given, else that of a file, a tensor of one value or a number."""
    if given is not None:
        expect_positive("lr", given)
        return torch.tensor(float(given))
    if path is None:
        raise ValueError(f"lr: no file beside {images} says the learning rate to train with; give one")
    value: Any = load(path)
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not is_number(value) or not 0 < value < math.inf:
        got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        got = value if is_number(value) else got
        raise ValueError(f"{path}: expected one positive learning rate, got {got}")
    return torch.tensor(float(value))


def write_tensors(synthetic: SyntheticSet, folder: Path, names: tuple[str, str, str], labels: str) -> None:
    """Write images, labels and learning rate into a folder under these names."""
    expect_one_of("labels", labels, LABELS)
    of_set = synthetic.targets if labels == "probabilities" else synthetic.labels
    for name, value in zip(names, (synthetic.images, of_set, synthetic.lr), strict=True):
        # a copy: a view would be written with all that it is a view of
        save(value.detach().cpu().clone(memory_format=torch.contiguous_format), folder / name)
