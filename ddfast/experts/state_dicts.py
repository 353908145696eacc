"""A snapshot of an expert as PyTorch's state dict."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks
from ddfast.data import Dataset, Preprocessing, load_dataset, set_of_release, take_statistics
from ddfast.runtime import seeds

if TYPE_CHECKING:
    from ddfast.experts.trajectories import TrajectoryStore


def state_dict(store: "TrajectoryStore", expert: int, epoch: int, dataset: Any) -> dict[str, Tensor]:
    """As TrajectoryStore.state_dict says."""
    snapshot, recorded = store.snapshot(expert, epoch), store.settings.get("dataset")
    if dataset is None and set_of_release(recorded or "") is None:
        raise ValueError(f"dataset: say on which data set {store.path} was trained; recorded is {recorded!r}")
    dataset = set_of_release(recorded) if dataset is None else dataset
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    wanted = store.settings.get("fingerprint")
    if wanted is not None and wanted != data.fingerprint:
        raise ValueError(
            f"dataset: the experts of {store.path} were trained on images {wanted} of {recorded!r}, "
            f"those of {data.name} at this size are {data.fingerprint}"
        )
    net = networks.create(store.settings["network"], generator=seeds.generator(0), **data.network_arguments)
    P = sum(parameter.numel() for parameter in net.parameters())
    if len(snapshot) != P:
        raise ValueError(f"{store.path}: expected snapshots of the network's {P} parameters, got {len(snapshot)}")
    vector_to_parameters(snapshot, net.parameters())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        seen = data.preprocessed_like(Preprocessing.described(store.settings["preprocessing"]))
        take_statistics(net, seen, torch.device("cpu"))
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
