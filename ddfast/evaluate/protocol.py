"""How good a training set is: networks trained on it from scratch, and their accuracy on real test images."""

from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast import seeds
from ddfast.arguments import expect_whole
from ddfast.data import SyntheticSet, load_dataset
from ddfast.devices import resolve_device

BASELINE_LR = 0.01  # for sets that bring no learning rate of their own
BATCH = 256


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

    def summary(self) -> dict:
        """As a row of summary.json."""
        return {"mean": self.mean, "std": self.std, "n": self.n, "accuracies": self.accuracies}


def evaluate(
    synthetic: SyntheticSet,
    dataset,
    *,
    networks: tuple[str, ...] = ("convnet",),
    num_eval: int = 5,
    epochs: int = 1000,
    lr: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Evaluation:
    """Train `num_eval` networks of each name from scratch on the synthetic set, and test each after its last epoch.

    SGD with momentum 0.9, weight decay 5e-4, minibatches of 256, learning rate `lr` (None: the set's own) cut to a
    tenth after half of the epochs, momentum kept (MTT's protocol without its momentum reset and its augmentation).

    Errors: ValueError for unknown networks, classes or image sizes that differ, or another preprocessing than the
    data set's, with which the accuracy would mean nothing.
    """
    expect_whole(num_eval=num_eval, epochs=epochs)
    device = resolve_device(device)
    unknown = [name for name in networks if name not in all_networks.NETWORKS]
    if isinstance(networks, str) or not networks or unknown:
        raise ValueError(f"networks: expected some of {', '.join(all_networks.NETWORKS)}, got {networks!r}")
    data = load_dataset(dataset)
    if synthetic.images.shape[1:] != data.train_images.shape[1:]:
        expected, got = list(data.train_images.shape[1:]), list(synthetic.images.shape[1:])
        raise ValueError(f"synthetic: expected images {expected} as in {data.name}, got {got}")
    if synthetic.class_names != data.class_names:
        expected, got = ", ".join(data.class_names), ", ".join(synthetic.class_names)
        raise ValueError(f"synthetic: expected the classes of {data.name}, {expected}; got {got}")
    if synthetic.preprocessing != data.preprocessing:
        raise ValueError(
            f"synthetic: its images were preprocessed with {synthetic.preprocessing}, those of {data.name} with "
            f"{data.preprocessing}"
        )
    images, labels = synthetic.images.to(device), synthetic.labels.to(device)
    lr = float(synthetic.lr) if lr is None else lr
    if not lr > 0:
        raise ValueError(f"lr: expected a positive number, got {lr}")
    accuracies: dict[str, list[float]] = {}
    for name in networks:
        accuracies[name] = []
        for repeat in range(num_eval):
            generator = seeds.generator(seed, "evaluate", name, repeat)
            net = all_networks.create(name, generator=generator, **data.network_arguments).to(device)
            train_network(net, images, labels, lr, epochs, generator)
            accuracies[name].append(accuracy(net, data.test_images, data.test_labels))
    return Evaluation(accuracies)


def evaluate_random_real(dataset, ipc: int, *, num_eval: int = 5, seed: int = 0, **options) -> Evaluation:
    """The baseline: as `evaluate`, on `ipc` random real images per class, other ones for each of the networks."""
    expect_whole(num_eval=num_eval)
    data = load_dataset(dataset)
    evaluations = []
    for repeat in range(num_eval):
        images, labels = data.random_real(ipc, seeds.generator(seed, "random_real", repeat))
        lr = torch.tensor(BASELINE_LR)
        synthetic = SyntheticSet(images, labels, lr, data.class_names, data.preprocessing)
        evaluations.append(evaluate(synthetic, data, num_eval=1, seed=seed + repeat, **options))
    names = evaluations[0].accuracies
    return Evaluation({name: [a for e in evaluations for a in e.accuracies[name]] for name in names})


def evaluate_snapshots(
    dataset,
    network: str,
    snapshots: list[Tensor],  # [P] each
    device: str | torch.device | None = None,
) -> Evaluation:
    """Test accuracy of networks with these parameters, as they are."""
    data = load_dataset(dataset)
    net = all_networks.create(network, generator=seeds.generator(0), **data.network_arguments)
    net = net.to(resolve_device(device))
    accuracies = []
    for parameters in snapshots:
        vector_to_parameters(parameters.to(next(net.parameters()).device), net.parameters())
        accuracies.append(accuracy(net, data.test_images, data.test_labels))
    return Evaluation({network: accuracies})


def train_network(
    net: nn.Module,
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I]
    lr: float,
    epochs: int,
    generator: torch.Generator,
) -> None:
    """Train a network in place."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    net.train()
    for epoch in range(epochs):
        if epoch == (epochs + 1) // 2:
            for group in optimizer.param_groups:
                group["lr"] = lr / 10
        for chosen in torch.randperm(len(images), generator=generator).to(images.device).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(
    net: nn.Module,
    images: Tensor,  # [N, C, H, W]
    labels: Tensor,  # int64 [N]
) -> float:
    """Share of images classified correctly, in percent."""
    net.eval()
    device = next(net.parameters()).device
    right = sum(
        int((net(x.to(device)).argmax(1) == y.to(device)).sum())
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    )
    return 100 * right / len(images)
