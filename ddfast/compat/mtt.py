"""The synthetic sets of MTT's code and its descendants: images_<tag>.pt, labels_<tag>.pt, lr_<tag>.pt."""

import re
from pathlib import Path

from ddfast.compat.placing import placing
from ddfast.compat.tensors import read_images, read_labels, read_lr, synthetic_set, write_tensors
from ddfast.data import Dataset, SyntheticSet

IMAGES = re.compile(r"images_(best|\d+)\.pt")
NAMES = ("images_best.pt", "labels_best.pt", "lr_best.pt")
LR_NAMES = ("lr", "syn_lr", "synlr")  # before the tag


def images_file(path: str | Path) -> Path | None:
    """The images that are meant: a file images_<tag>.pt, or of a folder the best, else the last; None for none."""
    path = Path(path)
    if not path.is_dir():
        return path if path.name.startswith("images_") and path.suffix == ".pt" else None
    tags = {match[1]: file for file in path.iterdir() if (match := IMAGES.fullmatch(file.name))}
    return tags.get("best") or (tags[max(tags, key=int)] if tags else None)


def read_mtt(
    path: str | Path,
    dataset: Dataset,
    *,
    lr: float | None = None,
    labels: str = "logits",
    dsa_strategy: str | None = None,
    canvas: int = 1,
) -> SyntheticSet:
    """The set of MTT's code, or with soft labels that of DATM's (Cazenavette et al. 2022; Guo et al. 2024).

    Args:
        path: images_best.pt, images_1000.pt …, the labels beside it; or a folder of them: the best, else the last.
        dataset: what it was distilled from, with the preprocessing that it was distilled with.
        lr: the learning rate to train with; None for that of lr_<tag>.pt, which MTT's own code does not write.
        labels: what soft labels are: logits (DATM), or probabilities.
        dsa_strategy: the augmentation to train with; None for that of MTT's code.
        canvas: as in SyntheticSet.

    Errors: OSError or ValueError that names the file.
    """
    images = images_file(path)
    if images is None:
        raise FileNotFoundError(f"{path}: expected images_best.pt, images_<iteration>.pt, or a folder with such a file")
    tag = images.stem.removeprefix("images_")
    if tag.startswith("zca"):
        raise ValueError(f"{images}: holds images for viewing; expected those that were distilled, without zca")
    label_file = images.with_name(f"labels_{tag}.pt")
    if not label_file.is_file():
        raise FileNotFoundError(f"{label_file}: no such file; the labels of {images.name} are expected beside it")
    rates = (images.with_name(f"{name}_{tag}.pt") for name in LR_NAMES)
    rate = read_lr(next((file for file in rates if file.is_file()), None), lr, images)
    values, targets = read_images(images), read_labels(label_file, labels)
    return synthetic_set(images, values, targets, rate, dataset, dsa_strategy, canvas)


def write_mtt(synthetic: SyntheticSet, output: str | Path, *, labels: str = "logits") -> None:
    """Write a set into a new folder as images_best.pt, labels_best.pt (int64 [I], or soft [I, K]) and lr_best.pt ([]).

    What is lost: class names, preprocessing, augmentation and canvas.
    Errors: FileExistsError where the folder holds anything else.
    """
    with placing(Path(output), alone=True) as folder:
        write_tensors(synthetic, folder, NAMES, labels)
