"""Training experts on real data, a snapshot after every epoch."""

import logging
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from ddfast import networks, seeds
from ddfast.arguments import expect_whole
from ddfast.data import Dataset, load_dataset
from ddfast.devices import resolve_device
from ddfast.experts.trajectories import TrajectoryStore

log = logging.getLogger("ddfast")


def cache_folder() -> Path:
    """Where experts are kept unless told otherwise: DDFAST_CACHE, else ~/.cache/ddfast."""
    named = os.environ.get("DDFAST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "ddfast"


def train_experts(
    dataset,
    *,
    network: str = "convnet",
    num_experts: int = 10,
    epochs: int = 50,
    output: str | Path | None = None,
    lr_teacher: float = 0.01,
    batch_train: int = 256,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> TrajectoryStore:
    """Train experts by plain SGD (MTT section 3.1: no momentum, no weight decay), one snapshot per epoch.

    Args:
        dataset: a name, a pair of torch data sets, or a Dataset.
        network: a name of ddfast.networks.NETWORKS.
        num_experts: experts 0 … num_experts − 1; those that the folder already holds are not trained again.
        epochs: E.
        output: the folder; None for one in the user's cache that these settings name.
        lr_teacher: learning rate.
        batch_train: images per minibatch; every epoch visits all in a new random order.

    Errors: ValueError for settings that make no sense, or a folder that holds experts of other settings.
    """
    expect_whole(num_experts=num_experts, epochs=epochs, batch_train=batch_train)
    if not 0 < lr_teacher < float("inf"):
        raise ValueError(f"lr_teacher: expected a positive number, got {lr_teacher}")
    device = resolve_device(device)
    data = load_dataset(dataset)
    # An unknown or impossible network is refused here, before anything is written.
    net = networks.create(network, generator=seeds.generator(seed), **data.network_arguments)
    settings = {
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "network": network,
        "lr_teacher": lr_teacher,
        "batch_train": batch_train,
        "seed": seed,
        "device": device.type,
    }
    path = Path(output) if output is not None else cache_folder() / "experts" / folder_name(settings, epochs)
    store = TrajectoryStore.create(path, settings, epochs)
    missing = range(store.num_experts, num_experts)
    if missing:
        P = sum(p.numel() for p in net.parameters())
        size = len(missing) * (epochs + 1) * P * 4 / 1e6
        log.info("training %d experts of %d epochs: %.1f MB in %s", len(missing), epochs, size, path)
    for expert in missing:
        began = time.perf_counter()
        snapshots = _train_expert(data, expert, network, epochs, lr_teacher, batch_train, seed, device)
        if not snapshots.isfinite().all():
            raise ValueError(
                f"expert {expert} diverged: its parameters are not finite; try a smaller lr_teacher than {lr_teacher}"
            )
        store.add(expert, snapshots)
        log.info("expert %d of %d trained in %.1f s", expert + 1, num_experts, time.perf_counter() - began)
    return store


def folder_name(settings: dict, epochs: int) -> str:
    """The name of a cache folder for experts of these settings."""
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in settings.values()]
    return "-".join([*words, f"{epochs}epochs"])


def _train_expert(
    data: Dataset, expert: int, network: str, epochs: int, lr: float, batch: int, seed: int, device
) -> Tensor:  # [E + 1, P]
    generator = seeds.generator(seed, "expert", expert)
    net = networks.create(network, generator=generator, **data.network_arguments).to(device)
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    start = parameters_to_vector(net.parameters()).detach()
    snapshots = torch.empty(epochs + 1, len(start))  # a copy each: a view of the live weights would move with them
    snapshots[0] = start
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).to(images.device).split(batch):
            optimizer.zero_grad()
            cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        snapshots[epoch + 1] = parameters_to_vector(net.parameters()).detach()
    return snapshots
