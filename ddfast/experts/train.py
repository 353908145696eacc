"""Training experts on real data, a snapshot after every epoch."""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ddfast import networks, seeds
from ddfast.arguments import expect_whole
from ddfast.data import DSA, Batches, Dataset, load_dataset
from ddfast.data.augment import FULL_STRATEGY
from ddfast.devices import resolve_device
from ddfast.experts.trajectories import TrajectoryStore
from ddfast.files import cache_folder, locking

log = logging.getLogger("ddfast")

KEEP_SECONDS = 30.0  # an expert in training is kept at most this often, for an interrupted training to go on from


@dataclass(frozen=True)
class SGD:
    """How experts are trained."""

    lr_teacher: float
    mom: float
    l2: float
    batch_train: int
    dsa_strategy: str

    def __post_init__(self):
        expect_whole(batch_train=self.batch_train)
        if not 0 < self.lr_teacher < float("inf"):
            raise ValueError(f"lr_teacher: expected a positive number, got {self.lr_teacher}")
        if not 0 <= self.mom < 1:
            raise ValueError(f"mom: expected 0 to below 1, got {self.mom}")
        if not 0 <= self.l2 < float("inf"):
            raise ValueError(f"l2: expected at least 0, got {self.l2}")
        DSA(self.dsa_strategy)  # refuses an unknown one


def train_experts(
    dataset,
    *,
    network: str = "convnet",
    num_experts: int = 100,
    epochs: int = 50,
    output: str | Path | None = None,
    lr_teacher: float = 0.01,
    mom: float = 0.0,
    l2: float = 0.0,
    batch_train: int = 256,
    dsa_strategy: str = FULL_STRATEGY,
    seed: int = 0,
    device: str | torch.device | None = None,
    **data_options,
) -> TrajectoryStore:
    """Train experts by SGD with DSA (MTT section 3.1, by default without momentum and decay), one snapshot per epoch.

    Args:
        dataset: a name, a folder, a pair of torch data sets or tensors, or a Dataset.
        network: a name as ddfast.networks.create takes it.
        num_experts: experts 0 … num_experts − 1; those that the folder already holds are not trained again, and one
            whose training was interrupted goes on from the last epoch that was kept.
        epochs: E. A run of MTT uses the first max_start_epoch − 1 + expert_epochs only.
        output: the folder; None for one in the user's cache that these settings name.
        lr_teacher, mom, l2: learning rate, momentum and weight decay.
        batch_train: images per minibatch; every epoch visits all in a new random order.
        dsa_strategy: augmentation of the real images, see ddfast.data.DSA.
        data_options: those of ddfast.data.load_dataset.

    Errors: ValueError for settings that make no sense, a folder that holds experts of other settings, or an expert
    whose loss is not finite.
    """
    expect_whole(num_experts=num_experts, epochs=epochs)
    sgd = SGD(lr_teacher, mom, l2, batch_train, dsa_strategy)
    device = resolve_device(device)
    data = load_dataset(dataset, **data_options)
    # An unknown or impossible network is refused here, before anything is written.
    net = networks.create(network, generator=seeds.generator(seed), **data.network_arguments)
    settings = {
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "preprocessing": data.preprocessing.describe(),
        "network": network,
        **vars(sgd),
        "seed": seed,
        "device": device.type,
    }
    path = Path(output) if output is not None else cache_folder() / "experts" / folder_name(settings, epochs)
    store = TrajectoryStore.create(path, settings, epochs)
    if store.num_experts < num_experts:
        with locking(path, wait=True):  # another run may be training the same
            P = sum(p.numel() for p in net.parameters())
            _train_missing(store, data, range(store.num_experts, num_experts), P, sgd, device)
    return store


def _train_missing(
    store: TrajectoryStore, data: Dataset, missing: range, P: int, sgd: SGD, device: torch.device
) -> None:
    """Train the experts that a store lacks."""
    network, seed = store.settings["network"], store.settings["seed"]
    size = len(missing) * (store.epochs + 1) * P * 4 / 1e6
    log.info("training %d experts of %d epochs: %.1f MB in %s", len(missing), store.epochs, size, store.path)
    batches = data.train_batches(device)
    for expert in missing:
        began = time.perf_counter()
        generator = seeds.generator(seed, "expert", expert)
        net = networks.create(network, generator=generator, **data.network_arguments).to(device)
        training = _Training(net, batches, data, sgd, store, expert, seed)
        training.run(f"expert {expert + 1} of {missing.stop}")
        store.add(expert, training.snapshots)
        log.info("expert %d of %d trained in %.1f s", expert + 1, missing.stop, time.perf_counter() - began)


def folder_name(settings: dict, epochs: int) -> str:
    """The name of a cache folder for experts of these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    words = [settings["dataset"], settings["network"], f"{epochs}epochs", digest]
    return "".join(c if c.isalnum() or c in "-_=." else "-" for c in "-".join(words))


class _Training:
    """One expert's training, which can go on where it was interrupted."""

    def __init__(
        self, net: nn.Module, batches: Batches, data: Dataset, sgd: SGD, store: TrajectoryStore, expert: int, seed: int
    ):
        self.net, self.batches, self.sgd, self.store = net, batches, sgd, store
        self.image_size, self.expert, self.seed = data.image_size, expert, seed
        self.augment = DSA(sgd.dsa_strategy)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=sgd.lr_teacher, momentum=sgd.mom, weight_decay=sgd.l2)
        start = parameters_to_vector(net.parameters()).detach()
        # [E + 1, P], a copy each: a view of the live weights would move with them
        self.snapshots = torch.empty(store.epochs + 1, len(start))
        self.snapshots[0] = start
        self.epoch = self.kept_epoch = 0
        self.velocity = torch.empty(0)  # [P] after the last whole epoch, with momentum
        self._go_on(store.unfinished(expert))

    def run(self, name: str) -> None:
        """Train to the last epoch; ValueError where the loss is not finite. Interrupted, it keeps the whole epochs."""
        try:
            self._run(name)
        except KeyboardInterrupt:
            if self.epoch > self.kept_epoch:
                self.store.keep_unfinished(self.expert, self._state())
            raise

    def _run(self, name: str) -> None:
        kept = time.perf_counter()
        while self.epoch < self.store.epochs:
            began = time.perf_counter()
            loss = self._train_epoch()
            self.epoch += 1
            self.snapshots[self.epoch] = parameters_to_vector(self.net.parameters()).detach()
            if self.sgd.mom:
                buffers = [self.optimizer.state[p]["momentum_buffer"] for p in self.net.parameters()]
                self.velocity = parameters_to_vector(buffers)
            if not (loss.isfinite() and self.snapshots[self.epoch].isfinite().all()):
                raise ValueError(
                    f"expert {self.expert} diverged: loss or parameters are not finite after epoch {self.epoch}; "
                    f"try a smaller lr_teacher than {self.sgd.lr_teacher}"
                )
            now = time.perf_counter()
            if now - began > 5:
                log.info(
                    "%s: epoch %d of %d, loss %.3f, %.0f s", name, self.epoch, self.store.epochs, loss, now - began
                )
            if now - kept > KEEP_SECONDS and self.epoch < self.store.epochs:
                self.store.keep_unfinished(self.expert, self._state())
                kept, self.kept_epoch = now, self.epoch

    def _train_epoch(self) -> Tensor:  # [], the mean loss
        generator = seeds.generator(self.seed, "expert", self.expert, "epoch", self.epoch)
        self.net.train()
        losses = []
        for images, labels in self.batches.shuffled(self.sgd.batch_train, generator):
            draw = self.augment.draw(len(images), self.image_size, generator).to(images.device)
            self.optimizer.zero_grad()
            loss = cross_entropy(self.net(draw(images)), labels)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _state(self) -> dict[str, Tensor]:
        return {"snapshots": self.snapshots[: self.epoch + 1], "velocity": self.velocity}

    def _go_on(self, state: dict[str, Tensor] | None) -> None:
        P = self.snapshots.shape[1]
        if state is None or state.get("snapshots", torch.empty(0)).shape[1:] != (P,):
            return
        self.epoch = self.kept_epoch = len(state["snapshots"]) - 1
        self.snapshots[: self.epoch + 1] = state["snapshots"]
        parameters = list(self.net.parameters())
        vector_to_parameters(
            self.snapshots[self.epoch].clone().to(parameters[0].device), parameters
        )  # not the snapshot
        if self.sgd.mom:
            self.velocity = state["velocity"]
            velocity = self.velocity.to(parameters[0].device)
            for p, piece in zip(parameters, velocity.split([p.numel() for p in parameters]), strict=True):
                self.optimizer.state[p]["momentum_buffer"] = piece.view_as(p).clone()
        log.info("expert %d goes on after epoch %d", self.expert, self.epoch)
