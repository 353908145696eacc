"""How good a training set is: networks trained on it from scratch, and their accuracy on real test images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast import seeds
from ddfast.arguments import expect_whole
from ddfast.data import DSA, Batches, Dataset, SyntheticSet, load_dataset
from ddfast.data.augment import NO_STRATEGY
from ddfast.data.texture import random_crops
from ddfast.devices import resolve_device
from ddfast.students import Training, side_by_side

BASELINE_LR = 0.01  # for sets that bring no learning rate of their own
BATCH = 256
EPOCHS = 1000
PROTOCOLS = ("ddfast", "mtt")


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
    batch: int = BATCH,
    dsa_strategy: str | None = None,
    protocol: str = "ddfast",
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    **data_options,
) -> Evaluation:
    """Train `num_eval` networks of each name from scratch on the synthetic set, and test each after its last epoch.

    SGD with momentum 0.9, weight decay 5e-4, minibatches of 256, DSA, learning rate `lr` cut to a tenth after half of
    the epochs. The test images get the preprocessing that the set was distilled with.

    Args:
        dataset: what to test on, as load_dataset takes it; images are brought to the set's size.
        networks: names as ddfast.networks.create takes them.
        epochs: None for the protocol's: 1000, or 1001 for mtt.
        lr: None for the set's own.
        dsa_strategy: None for the set's own.
        protocol: ddfast (momentum kept when the rate drops), or mtt (MTT's published code: lost there).
        at_once: networks trained side by side; None for one on a CPU, on a GPU as many as fit. Others than the fused
            ConvNet are trained one by one.
        data_options: root and download of load_dataset.

    Errors: ValueError for unknown networks, classes or channels that differ, a whitening fitted on other data, or
    images that are not finite.
    """
    unknown = set(data_options) - {"root", "download", "image_size", "resize"}
    if unknown or not isinstance(synthetic, SyntheticSet):
        got = f"the option {', '.join(sorted(unknown))}" if unknown else f"{type(synthetic).__name__} for synthetic"
        raise TypeError(f"evaluate: expected a SyntheticSet and the options that its documentation lists, got {got}")
    epochs = _epochs(epochs, protocol)
    expect_whole(num_eval=num_eval, epochs=epochs, batch=batch, at_once=1 if at_once is None else at_once)
    device = resolve_device(device)
    lr = float(synthetic.lr) if lr is None else lr
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr: expected a positive number, got {lr}")
    if not synthetic.images.isfinite().all():
        raise ValueError("synthetic: its images hold values that are not finite")
    data = data_for(synthetic, dataset, **data_options)
    check_evaluation(networks, protocol, data)
    dsa_strategy = synthetic.dsa_strategy if dsa_strategy is None else dsa_strategy
    schedule = _Schedule(epochs, lr, batch, dsa_strategy, protocol, device, at_once)
    sets, test = num_eval * [(synthetic.images.to(device), synthetic.targets.to(device))], data.test_batches(device)
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

    epochs: int
    lr: float
    batch: int
    dsa_strategy: str
    protocol: str
    device: torch.device
    at_once: int | None  # networks side by side

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
            size = torch.Size((min(self.batch, len(sets[0][0])), data.channels, *data.image_size))
            together = side_by_side(first, len(generators), size, self.device, self.at_once)
            now, generators = generators[:together], generators[together:]
            epochs_of = [partial(self._epoch, *pair, data.image_size) for pair in sets[:together]]
            nets, sets, as_mtt = [first, *map(create, now[1:])], sets[together:], self.protocol == "mtt"
            train_networks(nets, epochs_of, augment, self.lr, self.epochs, now, as_mtt=as_mtt)
            results += [accuracy(net, test) for net in nets]
        return results

    def _epoch(
        self,
        images: Tensor,  # [I, C, cH, cW]
        targets: Tensor,  # int64 [I], or [I, K]
        size: tuple[int, int],  # (H, W)
        generator: torch.Generator,
    ) -> Iterable[tuple[Tensor, Tensor]]:  # images [B, C, H, W], targets
        for chosen in torch.randperm(len(images), generator=generator).to(self.device).split(self.batch):
            yield random_crops(images[chosen], size, generator), targets[chosen]


def _epochs(epochs: int | None, protocol: str) -> int:
    return EPOCHS + (protocol == "mtt") if epochs is None else epochs


def check_evaluation(networks: Sequence[str], protocol: str, data: Dataset) -> None:
    """ValueError for an unknown protocol or network, or images too small for it: before any training."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
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
    batch: int = BATCH,
    dsa_strategy: str = NO_STRATEGY,
    protocol: str = "ddfast",
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
) -> Evaluation:
    """The baseline: as `evaluate`, on `ipc` random real images per class, other ones for each of the trainings.

    Learning rate 0.01; the preprocessing is that of the Dataset.
    """
    check_evaluation(networks, protocol, dataset)
    epochs = _epochs(epochs, protocol)
    expect_whole(num_eval=num_eval, epochs=epochs, batch=batch, at_once=1 if at_once is None else at_once)
    device = resolve_device(device)
    schedule = _Schedule(epochs, BASELINE_LR, batch, dsa_strategy, protocol, device, at_once)
    drawn = [dataset.random_real(ipc, seeds.generator(seed, "random_real", n)) for n in range(num_eval)]
    sets = [(images.to(device), labels.to(device)) for images, labels in drawn]
    test = dataset.test_batches(device)
    accuracies = {
        name: schedule.accuracies(
            name, dataset, test, sets, [seeds.generator(seed, "evaluate random_real", name, n) for n in range(num_eval)]
        )
        for name in networks
    }
    return Evaluation(accuracies)


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
    accuracies: dict[str, list[float]] = {name: [] for name in networks}
    for name in networks:
        for repeat in range(num_eval):
            generator = seeds.generator(seed, "full data", name, repeat)
            net = all_networks.create(name, generator=generator, **dataset.network_arguments).to(device)
            epoch_of, augment = partial(train.shuffled, BATCH), DSA(dsa_strategy)
            train_networks([net], [epoch_of], augment, BASELINE_LR, epochs, [generator])
            accuracies[name].append(accuracy(net, test))
    return Evaluation(accuracies)


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
        _take_statistics(net, dataset, device)
        accuracies.append(accuracy(net, test))
    return Evaluation({network: accuracies})


@torch.no_grad()
def _take_statistics(net: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """The running statistics of batch norm, which snapshots do not hold: their mean over all training images."""
    layers = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the minibatches
    net.train()
    for images, _ in dataset.train_batches(device).in_order(BATCH):
        net(images)


def train_networks(
    nets: list[nn.Module],
    epochs_of: Sequence[Callable[[torch.Generator], Iterable[tuple[Tensor, Tensor]]]],
    augment: DSA,
    lr: float,
    epochs: int,
    generators: list[torch.Generator],
    *,
    as_mtt: bool = False,
) -> None:
    """Train networks in place, side by side, each on minibatches (images [B, C, H, W], targets) of its own, one epoch's
    per call with its generator.

    The rate drops after half of the epochs; as_mtt: two epochs later (1001 epochs: 502 at the full rate, as MTT's code
    does after its epoch of index 501), and the momentum is lost there.
    """
    for net in nets:
        net.train()
    training = Training(nets, lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        if epoch == ((epochs - 1) // 2 + 2 if as_mtt else (epochs + 1) // 2):
            for group in training.optimizer.param_groups:
                group["lr"] = lr / 10
            if as_mtt:
                training.optimizer.state.clear()
        epochs_now = (epoch_of(generator) for epoch_of, generator in zip(epochs_of, generators, strict=True))
        for minibatches in zip(*epochs_now, strict=True):
            images, targets = (torch.stack(column) for column in zip(*minibatches, strict=True))
            training.step(augment.side_by_side(images, generators), targets)
    training.write()


@torch.no_grad()
def accuracy(net: nn.Module, test: Batches) -> float:
    """Share of images classified correctly, in percent."""
    net.eval()
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in test.in_order(BATCH))
    return 100 * right / len(test)
