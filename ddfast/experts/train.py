"""Training experts on real data, a snapshot after every epoch."""

import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ddfast import networks, seeds
from ddfast.arguments import expect_one_of, expect_whole
from ddfast.data import DSA, Batches, Dataset, load_dataset
from ddfast.data.augment import FULL_STRATEGY
from ddfast.devices import resolve_device
from ddfast.experts.trajectories import TrajectoryStore
from ddfast.files import cache_folder, expect_writable, locking, remove_leftovers
from ddfast.students import GSAM, Training, side_by_side

log = logging.getLogger("ddfast")

KEEP_SECONDS = 30.0  # an expert in training is kept at most this often, for an interrupted training to go on from
OPTIMIZERS = ("sgd", "gsam")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class ExpertTraining:
    """How experts are trained."""

    lr_teacher: float
    mom: float
    l2: float
    batch_train: int
    dsa_strategy: str
    optimizer: str = "sgd"
    rho: float = 0.01
    alpha: float = 1.0
    schedule: str = "constant"

    def __post_init__(self):
        expect_whole(batch_train=self.batch_train)
        if not 0 < self.lr_teacher < float("inf"):
            raise ValueError(f"lr_teacher: expected a positive number, got {self.lr_teacher}")
        if not 0 <= self.mom < 1:
            raise ValueError(f"mom: expected 0 to below 1, got {self.mom}")
        if not 0 <= self.l2 < float("inf"):
            raise ValueError(f"l2: expected at least 0, got {self.l2}")
        DSA(self.dsa_strategy)  # refuses an unknown one
        expect_one_of("optimizer", self.optimizer, OPTIMIZERS)
        expect_one_of("schedule", self.schedule, SCHEDULES)
        GSAM(self.rho, self.alpha)  # refuses impossible ones

    @property
    def sharpness(self) -> GSAM | None:
        """What Training takes."""
        return GSAM(self.rho, self.alpha) if self.optimizer == "gsam" else None

    def lr(self, epoch: int, epochs: int) -> float:
        """The rate in an epoch, counted from 0."""
        if self.schedule == "constant":
            return self.lr_teacher
        return self.lr_teacher / 2 * (1 + math.cos(math.pi * epoch / epochs))

    def settings(self) -> dict[str, str | float | int]:
        """What a store records. Of what plain SGD does not have nothing, so that stores from before it stay valid."""
        unsaid = set() if self.optimizer == "gsam" else {"optimizer", "rho", "alpha"}
        unsaid |= {"schedule"} if self.schedule == "constant" else set()
        return {name: value for name, value in vars(self).items() if name not in unsaid}


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
    optimizer: str = "sgd",
    rho: float = 0.01,
    alpha: float = 1.0,
    schedule: str = "constant",
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    **data_options,
) -> TrajectoryStore:
    """Train experts by SGD with DSA (MTT section 3.1, by default without momentum and decay), one snapshot per epoch;
    or by GSAM (FTD, Du et al. 2023), for flat trajectories.

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
        optimizer: sgd, or gsam (ddfast.students.GSAM), which costs two gradients a step.
        rho, alpha: of gsam: the length of its ascent, and how much of the gradient beside it is taken out; 0 is SAM.
        schedule: constant, or cosine: in epoch e of E, from 0, the rate is lr_teacher/2 · (1 + cos(πe/E)).
        at_once: experts trained side by side, each on its own order of the data; None for one on a CPU, on a GPU as
            many as fit. Other networks than the fused ConvNet are trained one by one.
        data_options: those of ddfast.data.load_dataset.

    Errors: ValueError for settings that make no sense, a folder that holds experts of other settings, or an expert
    whose loss is not finite.
    """
    expect_whole(num_experts=num_experts, epochs=epochs, at_once=1 if at_once is None else at_once)
    how = ExpertTraining(lr_teacher, mom, l2, batch_train, dsa_strategy, optimizer, rho, alpha, schedule)
    device = resolve_device(device)
    data = load_dataset(dataset, **data_options)
    # An unknown or impossible network is refused here, before anything is written.
    net = networks.create(network, generator=seeds.generator(seed), **data.network_arguments)
    settings = {
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "preprocessing": data.preprocessing.describe(),
        "network": network,
        **how.settings(),
        "seed": seed,
        "device": device.type,
    }
    path = Path(output) if output is not None else cache_folder() / "experts" / folder_name(settings, epochs)
    store = TrajectoryStore.create(path, settings, epochs)
    if store.num_experts < num_experts:
        with locking(path, wait=True):  # another run may be training the same
            remove_leftovers(path)
            expect_writable(path)
            P = sum(p.numel() for p in net.parameters())
            _train_missing(store, data, range(store.num_experts, num_experts), P, how, device, at_once)
    return store


def _train_missing(
    store: TrajectoryStore,
    data: Dataset,
    missing: range,
    P: int,
    how: ExpertTraining,
    device: torch.device,
    at_once: int | None,
) -> None:
    """Train the experts that a store lacks."""
    network, seed = store.settings["network"], store.settings["seed"]
    megabytes = len(missing) * (store.epochs + 1) * P * 4 / 1e6
    log.info("training %d experts of %d epochs: %.1f MB in %s", len(missing), store.epochs, megabytes, store.path)
    batches, minibatch = data.train_batches(device), torch.Size((how.batch_train, *data.train_images.shape[1:]))

    def create(expert: int) -> nn.Module:
        generator = seeds.generator(seed, "expert", expert)
        return networks.create(network, generator=generator, **data.network_arguments).to(device)

    while missing:
        began, first = time.perf_counter(), create(missing[0])
        alone = store.unfinished(missing[0]) is not None
        together = missing[: 1 if alone else side_by_side(first, len(missing), minibatch, device, at_once)]
        training = _Training([first, *map(create, together[1:])], batches, how, store, together[0])
        names = f"{together[0] + 1}" if len(together) == 1 else f"{together[0] + 1} to {together[-1] + 1}"
        training.run(f"expert {names} of {missing.stop}")
        for expert, snapshots in zip(together, training.snapshots, strict=True):
            store.add(expert, snapshots)
        missing = missing[len(together) :]
        log.info("expert %s of %d trained in %.1f s", names, missing.stop, time.perf_counter() - began)


def folder_name(settings: dict, epochs: int) -> str:
    """The name of a cache folder for experts of these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    words = [settings["dataset"], settings["network"], f"{epochs}epochs", digest]
    return "".join(c if c.isalnum() or c in "-_=." else "-" for c in "-".join(words))


class _Training:
    """The training of some experts side by side, which can go on where it was interrupted."""

    def __init__(
        self, nets: list[nn.Module], batches: Batches, how: ExpertTraining, store: TrajectoryStore, first: int
    ):
        self.batches, self.how, self.store, self.seed = batches, how, store, store.settings["seed"]
        self.experts = range(first, first + len(nets))
        self.augment = DSA(how.dsa_strategy)
        self.training = Training(
            nets, lr=how.lr_teacher, momentum=how.mom, weight_decay=how.l2, sharpness=how.sharpness
        )
        start = self.training.parameters()
        # [S, E + 1, P], a copy each: a view of the live weights would move with them
        self.snapshots = torch.empty(len(nets), store.epochs + 1, start.shape[1])
        self.snapshots[:, 0] = start
        self.epoch = self.kept_epoch = 0
        self.velocity = torch.empty(len(nets), 0)  # [S, P] after the last whole epoch, with momentum
        if len(nets) == 1:
            self._go_on(store.unfinished(first))

    def run(self, name: str) -> None:
        """Train to the last epoch; ValueError where the loss is not finite. Interrupted, it keeps the whole epochs."""
        try:
            self._run(name)
        except KeyboardInterrupt:
            if self.epoch > self.kept_epoch:
                self._keep()
            raise

    def _run(self, name: str) -> None:
        kept = time.perf_counter()
        while self.epoch < self.store.epochs:
            began = time.perf_counter()
            losses = self._train_epoch()
            self.epoch += 1
            self.snapshots[:, self.epoch] = self.training.parameters()
            if self.how.mom:
                self.velocity = self.training.velocity()
            finite = losses.isfinite().cpu() & self.snapshots[:, self.epoch].isfinite().all(1)
            if not finite.all():
                expert = self.experts[int((~finite).nonzero()[0])]
                raise ValueError(
                    f"expert {expert} diverged: loss or parameters are not finite after epoch {self.epoch}; "
                    f"try a smaller lr_teacher than {self.how.lr_teacher}"
                )
            now, loss = time.perf_counter(), losses.mean()
            if now - began > 5:
                log.info(
                    "%s: epoch %d of %d, loss %.3f, %.0f s", name, self.epoch, self.store.epochs, loss, now - began
                )
            if now - kept > KEEP_SECONDS and self.epoch < self.store.epochs:
                self._keep()
                kept, self.kept_epoch = now, self.epoch

    def _train_epoch(self) -> Tensor:  # [S], the mean losses
        generators = [seeds.generator(self.seed, "expert", e, "epoch", self.epoch) for e in self.experts]
        for net in self.training.nets:
            net.train()
        for group in self.training.optimizer.param_groups:
            group["lr"] = self.how.lr(self.epoch, self.store.epochs)
        orders = torch.stack([torch.randperm(len(self.batches), generator=generator) for generator in generators])
        losses, device = [], next(self.training.nets[0].parameters()).device
        with seeds.dropout_from(generators[0], device):  # networks with dropout are trained alone
            for indices in orders.split(self.how.batch_train, 1):  # [S, B]
                images, labels = self.batches.take(indices.reshape(-1))
                images = self.augment.side_by_side(images.unflatten(0, indices.shape), generators)
                losses.append(self.training.step(images, labels.view(indices.shape)))
        return torch.stack(losses).mean(0)

    def _keep(self) -> None:
        for expert, snapshots, velocity in zip(self.experts, self.snapshots, self.velocity, strict=True):
            state = {"snapshots": snapshots[: self.epoch + 1], "velocity": velocity}
            self.store.keep_unfinished(expert, state)

    def _go_on(self, state: dict[str, Tensor] | None) -> None:
        P = self.snapshots.shape[2]
        if state is None or state.get("snapshots", torch.empty(0)).shape[1:] != (P,):
            return
        self.epoch = self.kept_epoch = len(state["snapshots"]) - 1
        self.snapshots[0, : self.epoch + 1] = state["snapshots"]
        self.velocity = state["velocity"][None]
        self.training.load(self.snapshots[:, self.epoch], self.velocity if self.how.mom else None)
        log.info("expert %d goes on after epoch %d", self.experts[0], self.epoch)
