"""The results of DC's code (DC, DSA, DM): res_<method>_<dataset>_<model>_<n>ipc.pt, the sets of all experiments."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.compat.labels import as_labels, classes_for
from ddfast.compat.placing import placing_file
from ddfast.compat.tensors import Use, as_images, synthetic_set, tensors_of
from ddfast.compat.torch_files import load, save
from ddfast.data import Dataset, SyntheticSet
from ddfast.data.augment import DC, FULL_STRATEGY, NO_STRATEGY

log = logging.getLogger("ddfast")

LR = 0.01  # of the networks that DC's code evaluates with
NAME = re.compile(r"res_(?P<method>[A-Za-z]+)_(?P<dataset>[A-Za-z0-9]+)_(?P<model>[A-Za-z0-9]+)_\d+ipc.*\.pt")
DATASETS = {"TinyImageNet": "tiny-imagenet", "FashionMNIST": "fashion-mnist"}  # others by their names in small letters
PADDED = ("MNIST", "FashionMNIST")  # their 28 pixels are 32 to the ConvNet of DC's code
NORMS = {"IN": "instancenorm", "BN": "batchnorm", "LN": "layernorm", "GN": "groupnorm", "NN": "none"}
OPTIONS = {"D": "depth", "W": "width"}


def experiments(value: Any) -> list[Any] | None:
    """The pairs of images and labels of what a file holds, one an experiment; None where it is no such file."""
    data = value.get("data") if isinstance(value, dict) else value
    pairs = isinstance(data, list) and data and all(is_pair(entry) for entry in data)
    return data if pairs else None


def is_pair(value: Any) -> bool:
    """Whether this is images and a label or a row of labels for each."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(part, Tensor) for part in value):
        return False
    images, labels = value
    return images.dim() == 4 and labels.dim() in (1, 2) and len(images) == len(labels)


def hints(path: Path) -> dict[str, Any]:
    """What a file's name says: dataset, network, dsa_strategy; as options of convert."""
    named = NAME.fullmatch(path.name)
    if not named:
        return {}
    method, dataset = named["method"], named["dataset"]
    network = network_of(named["model"])
    if network is not None and dataset in PADDED:
        network += ":first_padding=3"
    found = {"dataset": DATASETS.get(dataset, dataset.lower()), "network": network}
    if method in ("DC", "DSA", "DM"):
        found["dsa_strategy"] = _of_dc(dataset, named["model"]) if method == "DC" else f"dsa:{FULL_STRATEGY}"
    return {name: value for name, value in found.items() if value is not None}


def _of_dc(dataset: str, model: str) -> str:
    """The strategy that DC's code evaluates a network with: it augments for batch norms, and MNIST."""
    if model == "ConvNetBN":
        return f"{DC}:crop_noise"
    return f"{DC}:crop_scale_rotate" if dataset == "MNIST" else NO_STRATEGY


def network_of(model: str) -> str | None:
    """The name of a model of DC's code as ddfast.networks.create takes it; None for what is not its ConvNet.

    ConvNet, ConvNetD4, ConvNetW256, ConvNetBN and such.
    """
    named = re.fullmatch(r"ConvNet(?:([DW])(\d+)|([A-Z]N))?", model)
    if not named or (named[3] and named[3] not in NORMS):
        return None
    if named[1]:
        return f"convnet:{OPTIONS[named[1]]}={named[2]}"
    return f"convnet:norm={NORMS[named[3]]}" if named[3] else "convnet"


def read_dc(path: str | Path, dataset: Dataset, *, experiment: int | None = None, **use: Any) -> SyntheticSet:
    """The set of one experiment of DC's code (Zhao et al. 2021; Zhao & Bilen 2021, 2023).

    Args:
        path: the file.
        dataset: what it was distilled from; DC's code normalises, and never whitens.
        experiment: which, from 0; None for the first, and a line of the log where there are more.
        use: what the file does not say (ddfast.compat.Use); lr is 0.01, with which DC's code evaluates, by default.

    Errors: OSError or ValueError that names the file.
    """
    path, use = Path(path), Use(**use)
    found = experiments(load(path))
    if found is None:
        raise ValueError(f"{path}: expected a dict whose 'data' is a list of [images, labels], one per experiment")
    if experiment is None and len(found) > 1:
        log.info(
            "%s: %d experiments, the first is read; --experiment 0 to %d, or all", path, len(found), len(found) - 1
        )
    number = experiment or 0
    if isinstance(experiment, bool) or not isinstance(number, int) or not 0 <= number < len(found):
        raise ValueError(f"experiment: expected one from 0 to {len(found) - 1} of {path}, got {experiment}")
    what = f"{path}, experiment {number}"
    images, labels = found[number]
    values = as_images(images, f"{what}, images", dataset, use, "preprocessed")
    targets = as_labels(labels, f"{what}, labels", use.labels)
    rate = torch.tensor(LR if use.lr is None else float(use.lr))
    return synthetic_set(path, values, targets, rate, dataset, use)


def write_dc(synthetic: SyntheticSet, output: str | Path, *, labels: str | None = None) -> None:
    """Write a set as the only experiment of a file of DC's code, without accuracies.

    What is lost: the learning rate, class names, preprocessing, augmentation and network.
    Errors: FileExistsError where the file is another one; ValueError for canvases, and for soft labels unless labels
    is classes.
    """
    if synthetic.canvas > 1:
        raise ValueError(f"canvas: DC's code trains on whole images; expected 1, got {synthetic.canvas}")
    synthetic = synthetic.decoded()
    classes = classes_for(synthetic, labels, "a file of DC's code").cpu().clone()
    images = tensors_of(synthetic, None)[0]
    with placing_file(Path(output), ".pt") as file:
        save({"data": [[images, classes]], "accs_all_exps": {}}, file)
