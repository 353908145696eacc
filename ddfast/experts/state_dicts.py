"""A snapshot of an expert as PyTorch's state dict."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks
from ddfast.data import Dataset, Preprocessing, load_dataset, set_of_release, take_statistics
from ddfast.runtime import seeds


def state_dict(
    snapshot: Tensor,  # [P]
    settings: dict[str, Any],  # that its store records
    path: Path,  # of the store
    dataset: Any,
) -> dict[str, Tensor]:
    """As TrajectoryStore.state_dict says."""
    recorded = settings.get("dataset")
    if dataset is None and set_of_release(recorded or "") is None:
        raise ValueError(f"dataset: say on which data set {path} was trained; recorded is {recorded!r}")
    dataset = set_of_release(recorded) if dataset is None else dataset
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    wanted = settings.get("fingerprint")
    if wanted is not None and wanted != data.fingerprint:
        raise ValueError(
            f"dataset: the experts of {path} were trained on images {wanted} of {recorded!r}, "
            f"those of {data.name} at this size are {data.fingerprint}"
        )
    net = networks.create(settings["network"], generator=seeds.generator(0), **data.network_arguments)
    P = sum(parameter.numel() for parameter in net.parameters())
    if len(snapshot) != P:
        raise ValueError(f"{path}: expected snapshots of the network's {P} parameters, got {len(snapshot)}")
    vector_to_parameters(snapshot, net.parameters())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        seen = data.preprocessed_like(Preprocessing.described(settings["preprocessing"]))
        take_statistics(net, seen, torch.device("cpu"))
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
