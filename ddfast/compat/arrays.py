"""Images and labels by name in one file: .npz, .safetensors, or a dict of tensors in a .pt file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.compat.labels import as_labels
from ddfast.compat.placing import placing_file
from ddfast.compat.tensors import VALUES, Use, as_images, as_lr, read_lr, synthetic_set, tensors_of
from ddfast.compat.torch_files import load, save
from ddfast.data import Dataset, SyntheticSet
from ddfast.runtime.files import UNREADABLE, not_whole, write_safetensors

SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors", "tensors": ".pt"}
IMAGES = ("images", "image", "x", "x_train", "train_images", "image_syn", "images_syn", "syn_images", "data")
LABELS = ("labels", "label", "y", "y_train", "train_labels", "label_syn", "labels_syn", "syn_labels", "targets")
RATES = ("lr", "syn_lr", "learning_rate")
SAID = "values"  # what a file of ours says that its images are, one of VALUES


def names_of(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """The entries that are images and labels; None where there are no such."""
    small = {str(name).lower(): name for name in content}
    found = [next((small[name] for name in names if name in small), None) for names in (IMAGES, LABELS)]
    return (found[0], found[1]) if all(name is not None for name in found) else None


def content_of(path: Path) -> dict[str, Any]:
    """The entries of a file; ValueError that names it where it is none of these, or damaged."""
    if path.suffix == ".npz":
        return _of_npz(path)
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    value = load(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(value).__name__}")
    return value


def read_arrays(path: str | Path, dataset: Dataset, **use: Any) -> SyntheticSet:
    """The set of a file with entries of images, labels and, where there is one, lr, called as in IMAGES, LABELS, RATES.

    Images may be [I, C, H, W], [I, H, W, C], of grey ones [I, H, W], or rows; in whole numbers or floats, of which it
    is inferred whether they are pixels or preprocessed. Those of KIP are such files (Nguyen et al. 2021).

    use: what the file does not say (ddfast.compat.Use); lr is needed where no entry says it.
    Errors: OSError or ValueError that names the file.
    """
    path, use = Path(path), Use(**use)
    content = content_of(path)
    names = names_of(content)
    if names is None:
        raise ValueError(
            f"{path}: expected entries of images ({', '.join(IMAGES[:3])} …) and of labels ({', '.join(LABELS[:3])} "
            f"…), got {', '.join(map(str, content)) or 'none'}"
        )
    meant = content.get(SAID) if content.get(SAID) in VALUES else None
    values = as_images(content[names[0]], f"{path}, {names[0]}", dataset, use, meant)
    targets = as_labels(content[names[1]], f"{path}, {names[1]}", use.labels)
    rate = next((name for name in RATES if name in content), None)
    of_file = rate is not None and use.lr is None
    lr = as_lr(content[rate], f"{path}, {rate}") if of_file else read_lr(None, use.lr, path)
    return synthetic_set(path, values, targets, lr, dataset, use)


def write_arrays(synthetic: SyntheticSet, output: str | Path, format: str, *, labels: str | None = None) -> None:
    """Write a set as a file of images, labels and lr; `format` is one of SUFFIXES.

    What is lost: class names, preprocessing, augmentation, canvas and network.
    Errors: ValueError for another ending than the format's; FileExistsError where the file is another one.
    """
    tensors = dict(zip(("images", "labels", "lr"), tensors_of(synthetic, labels), strict=True))
    with placing_file(Path(output), SUFFIXES[format]) as file:
        if format == "npz":
            import numpy

            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            numpy.savez(file, **arrays, **{SAID: numpy.array("preprocessed")})
        elif format == "safetensors":
            write_safetensors(file, tensors, {SAID: "preprocessed"})
        else:
            save({**tensors, SAID: "preprocessed"}, file)


def _of_npz(path: Path) -> dict[str, Any]:
    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file raises many kinds, zlib's and struct's among them
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: holds arrays of objects, whose code would be run; save arrays of numbers instead"
            ) from None
        raise not_whole(path, ".npz file", error) from None
    arrays = {name: array for name, array in arrays.items() if isinstance(array, numpy.ndarray)}  # others are bytes
    words = {name: str(array) for name, array in arrays.items() if array.dtype.kind == "U" and array.ndim == 0}
    try:
        # in this machine's order of bytes, which alone torch has
        return words | {
            name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
            for name, array in arrays.items()
            if array.dtype.kind in "biuf"
        }
    except TypeError as error:  # such as long doubles
        raise ValueError(f"{path}: {error}") from None


def _of_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
            return tensors | (file.metadata() or {})
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (SafetensorError, *UNREADABLE) as error:
        raise not_whole(path, "file of safetensors", error) from None
