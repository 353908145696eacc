"""The tensors that the benchmark DD-Ranking evaluates: images.pt, labels.pt, lr.pt."""

from pathlib import Path
from typing import Any

import torch

from ddfast.compat.labels import read_labels
from ddfast.compat.placing import placing
from ddfast.compat.tensors import Use, as_images, read_lr, synthetic_set, write_tensors
from ddfast.compat.torch_files import load
from ddfast.data import Dataset, SyntheticSet

NAMES = ("images.pt", "labels.pt", "lr.pt")


def read_dd_ranking(path: str | Path, dataset: Dataset, **use: Any) -> SyntheticSet:
    """The set of a folder as DD-Ranking's demos load it (Li et al. 2025).

    Without labels.pt the classes are 0 … K − 1, each as often as the others, one after the other, as DD-Ranking has
    it. Its losses take the softmax of soft labels. use: what the files do not say (ddfast.compat.Use); lr is needed
    where there is no lr.pt. Errors: OSError or ValueError that names the file.
    """
    path, use = Path(path), Use(**use)
    images, label_file, rate = ((path if path.is_dir() else path.parent) / name for name in NAMES)
    values, classes = as_images(load(images), str(images), dataset, use, "preprocessed"), dataset.num_classes
    if label_file.is_file():
        targets = read_labels(label_file, use.labels)
    elif len(values) % classes:
        raise ValueError(
            f"{label_file}: no such file, and {len(values)} images are not as many of {classes} classes each"
        )
    else:
        targets = torch.arange(classes).repeat_interleave(len(values) // classes)
    rate = read_lr(rate if rate.is_file() else None, use.lr, images)
    return synthetic_set(images, values, targets, rate, dataset, use)


def write_dd_ranking(synthetic: SyntheticSet, output: str | Path, *, labels: str | None = None) -> None:
    """Write a set into a new folder as images.pt, labels.pt and lr.pt, for compute_metrics of DD-Ranking.

    Images stay normalised, or whitened, as DD-Ranking expects them (use_zca says which). What is lost: as `write_mtt`.
    Errors: FileExistsError where the folder holds anything else; ValueError for canvases, which it cannot evaluate.
    """
    if synthetic.canvas > 1:
        raise ValueError(f"canvas: DD-Ranking evaluates whole images; expected 1, got {synthetic.canvas}")
    synthetic = synthetic.decoded()
    with placing(Path(output), alone=True) as folder:
        write_tensors(synthetic, folder, NAMES, labels)
