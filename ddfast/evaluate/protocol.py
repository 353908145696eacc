"""How good a training set is: networks trained on it from scratch, and their accuracy on real test images."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast import seeds
from ddfast.arguments import expect_one_of, expect_positive, expect_whole
from ddfast.data import DSA, Batches, Dataset, SyntheticSet, load_dataset, take_statistics
from ddfast.data.augment import NO_STRATEGY
from ddfast.data.texture import random_crops
from ddfast.devices import resolve_device
from ddfast.students import GSAM, Training, side_by_side

log = logging.getLogger("ddfast")

BASELINE_LR = 0.01  # for sets that bring no learning rate of their own
BATCH = 256


@dataclass(frozen=True)
class Protocol:
    """How networks are trained on a set: SGD with momentum 0.9 and weight decay 5e-4, by default for so many epochs."""

    epochs: int
    batch: int
    drops: Callable[[int], tuple[int, ...]]  # of E epochs: those, from 0, that begin at a tenth of the rate before
    loses_momentum: bool = False  # at the drops
    lr: float | None = None  # None: the set's own, or 0.01 for one that has none


def _at_half(epochs: int) -> tuple[int, ...]:
    return ((epochs + 1) // 2,)


def _as_mtt(epochs: int) -> tuple[int, ...]:
    """1001 epochs: 502 at the full rate, as MTT's code does after its epoch of index 501."""
    return ((epochs - 1) // 2 + 2,)


def _at_half_and_three_quarters(epochs: int) -> tuple[int, ...]:
    return (epochs + 1) // 2, (3 * epochs + 3) // 4


PROTOCOLS = {
    "ddfast": Protocol(1000, BATCH, _at_half),
    "mtt": Protocol(1001, BATCH, _as_mtt, loses_momentum=True),
    "datm": Protocol(1001, 128, _as_mtt, loses_momentum=True),
    "simplified": Protocol(200, 100, _at_half_and_three_quarters, lr=0.01),
}


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in percent, by network: one per training."""

    accuracies: dict[str, list[float]]

    @property
    def mean(self) -> float:
        """Mean accuracy over all trainings of all networks."""
        return fmean(a for values in self.accuracies.values() for a in values)

    @property
    def std(self) -> float:
        """Standard deviation over the trainings (n − 1); 0 for a single one."""
        values = [a for row in self.accuracies.values() for a in row]
        return stdev(values) if len(values) > 1 else 0.0

    @property
    def n(self) -> int:
        """Number of trainings."""
        return sum(len(values) for values in self.accuracies.values())

    def of(self, network: str) -> "Evaluation":
        """That of one network."""
        return Evaluation({network: self.accuracies[network]})

    def summary(self) -> dict:
        """As a row of summary.json: the first network, and all by name."""
        first = next(iter(self.accuracies))
        row = {"mean": self.of(first).mean, "std": self.of(first).std, "n": self.of(first).n}
        networks = {
            name: {"mean": self.of(name).mean, "std": self.of(name).std, "accuracies": values}
            for name, values in self.accuracies.items()
        }
        return {**row, "networks": networks}


def evaluate(
    synthetic: SyntheticSet,
    dataset,
    *,
    networks: tuple[str, ...] = ("convnet",),
    num_eval: int = 5,
    epochs: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    dsa_strategy: str | None = None,
    protocol: str = "ddfast",
    sam_rho: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    **data_options,
) -> Evaluation:
    """Train `num_eval` networks of each name from scratch on the synthetic set, and test each after its last epoch.

    SGD with momentum 0.9, weight decay 5e-4 and DSA; learning rate `lr`, cut to a tenth after half of the epochs. The
    test images get the preprocessing that the set was distilled with.

    Args:
        dataset: what to test on, as load_dataset takes it; images are brought to the set's size.
        networks: names as ddfast.networks.create takes them.
        epochs, batch: None for the protocol's.
        lr: None for the set's own, or the protocol's where it has one.
        dsa_strategy: None for the set's own.
        protocol: ddfast (1000 epochs, minibatches of 256; momentum is kept when the rate drops); mtt (MTT's published
            code: 1001 epochs, momentum is lost there); datm (as mtt, minibatches of 128); simplified (200 epochs,
            minibatches of 100, learning rate 0.01 whatever the set's, a tenth after 1/2 and again after 3/4 of them).
        sam_rho: train with SAM of this ρ, adaptive as ddfast.students.GSAM has it, at two gradients a step: "MTT + flat
            minimum" of Du et al. 2023, with 0.005 to 0.1. None for plain SGD.
        at_once: networks trained side by side; None for one on a CPU, on a GPU as many as fit. Others than the fused
            ConvNet are trained one by one.
        data_options: root and download of load_dataset.

    A network that diverges, as with too large a rate, has an accuracy all the same, near chance: a warning says so.

    Errors: ValueError for unknown networks, classes or channels that differ, a whitening fitted on other data, or
    images, labels or a learning rate that are not finite.
    """
    unknown = set(data_options) - {"root", "download", "image_size", "resize"}
    if unknown or not isinstance(synthetic, SyntheticSet):
        got = f"the option {', '.join(sorted(unknown))}" if unknown else f"{type(synthetic).__name__} for synthetic"
        raise TypeError(f"evaluate: expected a SyntheticSet and the options that its documentation lists, got {got}")
    synthetic.check_values()
    if lr is None and _named(protocol).lr is None:
        lr = float(synthetic.lr)
    dsa_strategy = synthetic.dsa_strategy if dsa_strategy is None else dsa_strategy
    schedule = _schedule(protocol, epochs, batch, lr, dsa_strategy, sam_rho, num_eval, device, at_once)
    data = data_for(synthetic, dataset, **data_options)
    check_evaluation(networks, protocol, data)
    pair = synthetic.images.to(schedule.device), synthetic.targets.to(schedule.device)
    sets, test = num_eval * [pair], data.test_batches(schedule.device)
    accuracies = {
        name: schedule.accuracies(
            name, data, test, sets, [seeds.generator(seed, "evaluate", name, n) for n in range(num_eval)]
        )
        for name in networks
    }
    return Evaluation(accuracies)


@dataclass(frozen=True)
class _Schedule:
    """How networks are trained on a synthetic set."""

    protocol: Protocol  # with its rate
    dsa_strategy: str
    sharpness: GSAM | None
    device: torch.device
    at_once: int | None  # networks side by side

    @seeds.same_algorithms()
    def accuracies(
        self,
        name: str,
        data: Dataset,
        test: Batches,
        sets: list[tuple[Tensor, Tensor]],  # images [I, C, H, W] and targets, of each network
        generators: list[torch.Generator],  # of each network
    ) -> list[float]:
        """Test accuracies of networks after it."""
        augment, results = DSA(self.dsa_strategy), []

        def create(generator: torch.Generator) -> nn.Module:
            return all_networks.create(name, generator=generator, **data.network_arguments).to(self.device)

        while generators:
            first = create(generators[0])
            size = torch.Size((min(self.protocol.batch, len(sets[0][0])), data.channels, *data.image_size))
            together = side_by_side(first, len(generators), size, self.device, self.at_once)
            now, generators = generators[:together], generators[together:]
            epochs_of = [partial(self._epoch, *pair, data.image_size) for pair in sets[:together]]
            nets, sets = [first, *map(create, now[1:])], sets[together:]
            train_networks(nets, epochs_of, augment, self.protocol, now, sharpness=self.sharpness)
            results += [accuracy(net, test, f"{name} trained at rate {self.protocol.lr:g}") for net in nets]
        return results

    def _epoch(
        self,
        images: Tensor,  # [I, C, cH, cW]
        targets: Tensor,  # int64 [I], or [I, K]
        size: tuple[int, int],  # (H, W)
        generator: torch.Generator,
    ) -> Iterable[tuple[Tensor, Tensor]]:  # images [B, C, H, W], targets
        for chosen in torch.randperm(len(images), generator=generator).to(self.device).split(self.protocol.batch):
            yield random_crops(images[chosen], size, generator), targets[chosen]


def _schedule(
    name: str,  # of the protocol
    epochs: int | None,
    batch: int | None,
    lr: float | None,
    dsa_strategy: str,
    sam_rho: float | None,
    num_eval: int,
    device: str | torch.device | None,
    at_once: int | None,
) -> _Schedule:
    """A protocol, with what was given in the place of its own; ValueError for what makes no sense."""
    given = {"epochs": epochs, "batch": batch, "lr": lr}
    protocol = replace(_named(name), **{field: value for field, value in given.items() if value is not None})
    at_once_or_1 = 1 if at_once is None else at_once
    expect_whole(num_eval=num_eval, epochs=protocol.epochs, batch=protocol.batch, at_once=at_once_or_1)
    for option, value in (("lr", protocol.lr), ("sam_rho", sam_rho)):
        if value is not None:
            expect_positive(option, value)
    sharpness = None if sam_rho is None else GSAM(sam_rho, alpha=0.0)
    return _Schedule(protocol, dsa_strategy, sharpness, resolve_device(device), at_once)


def _named(protocol: str) -> Protocol:
    expect_one_of("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]


def check_evaluation(networks: Sequence[str], protocol: str, data: Dataset) -> None:
    """ValueError for an unknown protocol or network, or images too small for it: before any training."""
    _named(protocol)
    if isinstance(networks, str) or not networks:
        expected = ", ".join(all_networks.NETWORKS)
        raise ValueError(f"networks: expected a tuple of names out of {expected}, got {networks!r}")
    for name in networks:
        all_networks.create(name, generator=seeds.generator(0), **data.network_arguments)


def data_for(synthetic: SyntheticSet, dataset, **data_options) -> Dataset:
    """The data set at the synthetic set's size and with its preprocessing; ValueError where they do not fit."""
    if not isinstance(dataset, Dataset):
        options = {"image_size": synthetic.image_size, "resize": synthetic.preprocessing.resize} | data_options
        dataset = load_dataset(dataset, **options)
    if synthetic.class_names != dataset.class_names:
        expected, got = (", ".join(names[:5]) for names in (dataset.class_names, synthetic.class_names))
        raise ValueError(f"synthetic: expected the classes of {dataset.name}, {expected}; got {got}")
    expected, got = list(dataset.train_images.shape[1:]), [synthetic.images.shape[1], *synthetic.image_size]
    if got != expected:
        raise ValueError(f"synthetic: expected images {expected} as in {dataset.name}, got {got}")
    return dataset.preprocessed_like(synthetic.preprocessing)


def evaluate_random_real(
    dataset: Dataset,
    ipc: int,
    *,
    networks: tuple[str, ...] = ("convnet",),
    num_eval: int = 5,
    epochs: int | None = None,
    batch: int | None = None,
    dsa_strategy: str = NO_STRATEGY,
    protocol: str = "ddfast",
    sam_rho: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
) -> Evaluation:
    """The baseline: as `evaluate`, on `ipc` random real images per class, other ones for each of the trainings.

    Learning rate 0.01; the preprocessing is that of the Dataset.
    """
    check_evaluation(networks, protocol, dataset)
    schedule = _schedule(protocol, epochs, batch, BASELINE_LR, dsa_strategy, sam_rho, num_eval, device, at_once)
    drawn = [dataset.random_real(ipc, seeds.generator(seed, "random_real", n)) for n in range(num_eval)]
    sets = [(images.to(schedule.device), labels.to(schedule.device)) for images, labels in drawn]
    test = dataset.test_batches(schedule.device)
    accuracies = {
        name: schedule.accuracies(
            name, dataset, test, sets, [seeds.generator(seed, "evaluate random_real", name, n) for n in range(num_eval)]
        )
        for name in networks
    }
    return Evaluation(accuracies)


@seeds.same_algorithms()
def evaluate_full_data(
    dataset: Dataset,
    *,
    networks: tuple[str, ...] = ("convnet",),
    num_eval: int = 1,
    epochs: int,
    dsa_strategy: str = NO_STRATEGY,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Evaluation:
    """As `evaluate`, on all training images: learning rate 0.01, cut to a tenth after half of the epochs."""
    expect_whole(num_eval=num_eval, epochs=epochs)
    device = resolve_device(device)
    train, test = dataset.train_batches(device), dataset.test_batches(device)
    protocol = replace(PROTOCOLS["ddfast"], epochs=epochs, lr=BASELINE_LR)
    accuracies: dict[str, list[float]] = {name: [] for name in networks}
    for name in networks:
        for repeat in range(num_eval):
            generator = seeds.generator(seed, "full data", name, repeat)
            net = all_networks.create(name, generator=generator, **dataset.network_arguments).to(device)
            epoch_of, augment = partial(train.shuffled, protocol.batch), DSA(dsa_strategy)
            train_networks([net], [epoch_of], augment, protocol, [generator])
            accuracies[name].append(accuracy(net, test, f"{name} trained at rate {protocol.lr:g}"))
    return Evaluation(accuracies)


@seeds.same_algorithms()
def evaluate_snapshots(
    dataset: Dataset,
    network: str,
    snapshots: list[Tensor],  # [P] each
    device: str | torch.device | None = None,
) -> Evaluation:
    """Test accuracy of networks with these parameters, as they are; statistics of batch norm are taken anew."""
    device = resolve_device(device)
    net = all_networks.create(network, generator=seeds.generator(0), **dataset.network_arguments).to(device)
    test = dataset.test_batches(device)
    accuracies = []
    for parameters in snapshots:
        vector_to_parameters(parameters.to(device), net.parameters())
        take_statistics(net, dataset, device)
        accuracies.append(accuracy(net, test, f"a snapshot of {network}"))
    return Evaluation({network: accuracies})


def train_networks(
    nets: list[nn.Module],
    epochs_of: Sequence[Callable[[torch.Generator], Iterable[tuple[Tensor, Tensor]]]],
    augment: DSA,
    protocol: Protocol,  # with its rate
    generators: list[torch.Generator],
    *,
    sharpness: GSAM | None = None,
) -> None:
    """Train networks in place, side by side, each on minibatches (images [B, C, H, W], targets) of its own, one epoch's
    per call with its generator."""
    for net in nets:
        net.train()
    training = Training(nets, lr=protocol.lr, momentum=0.9, weight_decay=5e-4, sharpness=sharpness)
    drops, device = protocol.drops(protocol.epochs), next(nets[0].parameters()).device
    with seeds.dropout_from(generators[0], device):  # networks with dropout are trained alone
        for epoch in range(protocol.epochs):
            if epoch in drops:
                for group in training.optimizer.param_groups:
                    group["lr"] = protocol.lr / 10 ** sum(drop <= epoch for drop in drops)
                if protocol.loses_momentum:
                    training.optimizer.state.clear()
            epochs_now = (epoch_of(generator) for epoch_of, generator in zip(epochs_of, generators, strict=True))
            for minibatches in zip(*epochs_now, strict=True):
                images, targets = (torch.stack(column) for column in zip(*minibatches, strict=True))
                training.step(augment.side_by_side(images, generators), targets)
    training.write()


@torch.no_grad()
def accuracy(net: nn.Module, test: Batches, what: str) -> float:
    """Share of images classified correctly, in percent; a warning that names `what` where logits are not finite."""
    net.eval()
    right, finite = 0, True
    for images, labels in test.in_order(BATCH):
        logits = net(images)
        right += int((logits.argmax(1) == labels).sum())
        finite = finite and bool(logits.isfinite().all())
    percent = 100 * right / len(test)
    if not finite:
        log.warning("%s: it diverged, its logits are not finite; an accuracy of %.1f%% means nothing", what, percent)
    return percent
