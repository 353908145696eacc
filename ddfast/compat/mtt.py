"""The synthetic sets of MTT's code and its descendants: images_<tag>.pt, labels_<tag>.pt, lr_<tag>.pt."""

import re
from pathlib import Path
from typing import Any

from ddfast.compat.labels import read_labels
from ddfast.compat.placing import placing
from ddfast.compat.tensors import Use, as_images, read_lr, synthetic_set, write_tensors
from ddfast.compat.torch_files import load
from ddfast.data import Dataset, SyntheticSet

AVERAGED = "ema_"  # FTD and what came of it: the moving average of the images, in files and folders of their own
IMAGES = re.compile(rf"({AVERAGED})?images_(best|\d+)\.pt")
NAMES = ("images_best.pt", "labels_best.pt", "lr_best.pt")
LR_NAMES = ("lr", "syn_lr", "synlr")  # before the tag
PLAIN_FOLDER = "Normal"  # of DATM's code and its descendants, beside a folder of averages


def images_file(path: str | Path) -> Path | None:
    """The images that are meant: a file images_<tag>.pt, or of a folder the best, else the last; None for none.

    Where a folder has none itself, those in its folder Normal (DATM, PAD, EDF). Averaged images, ema_images_<tag>.pt,
    are meant where there are no others.
    """
    path = Path(path)
    if not path.is_dir():
        return path if re.match(rf"({AVERAGED})?images_", path.name) and path.suffix == ".pt" else None
    found = [match for file in path.iterdir() if (match := IMAGES.fullmatch(file.name))]
    if not found:
        inner = path / PLAIN_FOLDER
        return images_file(inner) if inner.is_dir() else None
    averaged = all(match[1] for match in found)
    tags = {match[2]: path / match[0] for match in found if averaged or not match[1]}
    return tags.get("best") or tags[max(tags, key=int)]


def read_mtt(path: str | Path, dataset: Dataset, **use: Any) -> SyntheticSet:
    """The set of MTT's code, or with soft labels that of DATM's (Cazenavette et al. 2022; Guo et al. 2024), or with
    ema_ before the names the average of FTD's (Du et al. 2023).

    Args:
        path: images_best.pt, images_1000.pt …, the labels beside it; or a folder of them: the best, else the last.
        dataset: what it was distilled from, with the preprocessing that it was distilled with.
        use: what the files do not say, the fields of ddfast.compat.Use; lr is needed where there is no lr_<tag>.pt,
            which neither MTT's nor FTD's code writes.

    Errors: OSError or ValueError that names the file.
    """
    images, use = images_file(path), Use(**use)
    if images is None:
        raise FileNotFoundError(f"{path}: expected images_best.pt, images_<iteration>.pt, or a folder with such a file")
    before, tag = images.stem.split("images_", 1)
    if tag.startswith("zca"):
        raise ValueError(f"{images}: holds images for viewing; expected those that were distilled, without zca")
    label_file = images.with_name(f"{before}labels_{tag}.pt")
    if not label_file.is_file():
        raise FileNotFoundError(f"{label_file}: no such file; the labels of {images.name} are expected beside it")
    rates = (images.with_name(f"{before}{name}_{tag}.pt") for name in LR_NAMES)
    rate = read_lr(next((file for file in rates if file.is_file()), None), use.lr, images)
    values = as_images(load(images), str(images), dataset, use, "preprocessed")
    return synthetic_set(images, values, read_labels(label_file, use.labels), rate, dataset, use)


def write_mtt(synthetic: SyntheticSet, output: str | Path, *, labels: str | None = None) -> None:
    """Write a set into a new folder as images_best.pt, labels_best.pt (int64 [I], or soft [I, K]) and lr_best.pt ([]).

    labels: one of ddfast.compat.labels.LABELS; None for classes where the set's are hard, else logits.

    What is lost: class names, preprocessing, augmentation, canvas and network.
    Errors: FileExistsError where the folder holds anything else.
    """
    with placing(Path(output), alone=True) as folder:
        write_tensors(synthetic, folder, NAMES, labels)
