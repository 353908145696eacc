"""Synthetic sets as picture files: a folder per class, a PNG per image."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.compat.placing import placing
from ddfast.compat.tensors import Use, read_lr, synthetic_set
from ddfast.data import Dataset, SyntheticSet
from ddfast.data.images import read_files

NUMBERED = re.compile(r"new\d{3,}")  # the folder of a class in SRe2L's code


def folder_of(class_name: str) -> str:
    """The folder of a class: its name, with _ for what file names cannot hold or would hide."""
    return re.sub(r"^\.|[/\0]", "_", class_name)


def picture_files(path: Path) -> dict[str, list[Path]]:
    """The pictures in the folders of a folder, those of a folder in the order of their numbers or names."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {f.name: [file for file in f.iterdir() if file.suffix.lower() in IMG_EXTENSIONS] for f in folders}
    return {name: sorted(files, key=_in_order) for name, files in found.items() if files}


def read_png(path: str | Path, dataset: Dataset, **use: Any) -> SyntheticSet:
    """The set of a folder with a folder of pictures per class, preprocessed as the data set, its labels the classes.

    Folders are called as the classes, or new000 … by their numbers, as SRe2L's code has them. Pictures of another size
    are resized as the data set's are. use: what pictures do not say (ddfast.compat.Use); lr is needed, and labels and
    values mean nothing. Errors: OSError or ValueError that names the folder or the file.
    """
    use, by_folder = Use(**use), picture_files(Path(path))
    if use.labels is not None or use.values is not None:
        raise ValueError("png: labels and values have no meaning for pictures, which are pixels in folders of classes")
    classes = {folder_of(name): k for k, name in enumerate(dataset.class_names)}
    if all(NUMBERED.fullmatch(name) for name in by_folder):
        classes = {name: int(name[3:]) for name in by_folder if int(name[3:]) < dataset.num_classes}
    unknown = [name for name in by_folder if name not in classes]
    if unknown or not by_folder:
        raise ValueError(
            f"{path}: expected a folder of pictures per class of {dataset.name} ({', '.join(list(classes)[:3])} …), "
            f"got {', '.join(unknown[:3]) or 'none'}"
        )
    rate = read_lr(None, use.lr, Path(path))
    ordered = sorted(by_folder.items(), key=lambda item: classes[item[0]])
    files = [file for _, of_class in ordered for file in of_class]
    labels = torch.tensor([classes[name] for name, of_class in ordered for _ in of_class])
    H, W = (use.canvas * side for side in dataset.image_size)
    images = read_files(files, (H, W), dataset.channels, dataset.preprocessing.resize)
    return synthetic_set(Path(path), dataset.preprocessing.apply(images), labels, rate, dataset, use)


def write_png(synthetic: SyntheticSet, output: str | Path) -> None:
    """Write a set into a new folder as <class name>/0000.png …: images de-whitened and de-normalised, of 8 bits.

    What is lost: what is darker than black or lighter than white, steps finer than 1/255, soft labels but for their
    largest, the learning rate, augmentation and canvas.
    Errors: FileExistsError where the folder holds anything else; ValueError for images of neither 1 nor 3 channels.
    """
    from torchvision.transforms.v2.functional import to_pil_image

    synthetic = synthetic.decoded()
    if synthetic.images.shape[1] not in (1, 3):
        raise ValueError(f"images: a PNG has 1 or 3 channels, these have {synthetic.images.shape[1]}")
    if len({folder_of(name) for name in synthetic.class_names}) < len(synthetic.class_names):
        raise ValueError("class_names: two classes have one name, and would share a folder")
    pixels: Tensor = synthetic.preprocessing.pixels(synthetic.images.detach().cpu())  # uint8 [I, C, H, W]
    with placing(Path(output), alone=True) as folder:
        for k, name in enumerate(synthetic.class_names):
            of_class = (synthetic.classes.cpu() == k).nonzero()[:, 0].tolist()
            for number, index in enumerate(of_class):
                file = folder / folder_of(name) / f"{number:04d}.png"
                file.parent.mkdir(exist_ok=True)
                to_pil_image(pixels[index]).save(file)


def _in_order(file: Path) -> tuple[int, str]:
    return (int(file.stem) if file.stem.isdecimal() else -1, file.name)
