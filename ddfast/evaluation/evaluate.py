"""How good a training set is: networks trained on it from scratch, and their accuracy on real test images."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast.data import READING, Dataset, SyntheticSet, augmentation, known_name, load_dataset, take_statistics
from ddfast.data.augment import NO_STRATEGY
from ddfast.data.ipc import images_per_class, in_words
from ddfast.data.synthetic import DEFAULT_LR
from ddfast.engine.timing import time_training
from ddfast.evaluation.cache import run_trainings
from ddfast.evaluation.protocols import Schedule, accuracy, protocol_named, schedule_of, train_networks
from ddfast.runtime import seeds
from ddfast.runtime.arguments import takes_old_names, takes_plain_numbers
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.files import digest_of_tensors
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

BASELINE_LR = DEFAULT_LR  # of random real images and full data


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

    def of(self, network: Any) -> "Evaluation":
        """That of one network, as it was given to `evaluate`."""
        name = all_networks.name_of(network)
        return Evaluation({name: self.accuracies[name]})

    def summary(self) -> dict:
        """As a row of summary.json: the first network, and all by name."""
        first = next(iter(self.accuracies))
        row = {"mean": self.of(first).mean, "std": self.of(first).std, "n": self.of(first).n}
        networks = {
            name: {"mean": self.of(name).mean, "std": self.of(name).std, "accuracies": values}
            for name, values in self.accuracies.items()
        }
        return {**row, "networks": networks}


@takes_old_names(epochs="eval_epochs", lr="eval_lr", batch="eval_batch", root="data_root")
@takes_plain_numbers
def evaluate(
    synthetic: SyntheticSet,
    dataset: Any,
    *,
    networks: Sequence[Any] | None = None,
    num_eval: int = 5,
    eval_epochs: int | None = None,
    eval_lr: float | None = None,
    eval_batch: int | None = None,
    dsa_strategy: str | None = None,
    protocol: str = "ddfast",
    sam_rho: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    output: str | Path | None = None,
    ranks: Ranks = ALONE,
    forecast: Forecast | None = None,
    **data_options: Any,
) -> Evaluation:
    """Train `num_eval` networks of each name from scratch on the synthetic set, and test each after its last epoch.

    SGD with momentum 0.9, weight decay 5e-4 and DSA; learning rate `eval_lr`, a tenth of it after half of the epochs.
    The test images get the preprocessing that the set was distilled with.

    Args:
        dataset: what to test on, as load_dataset takes it; images are brought to the set's size.
        networks: names as ddfast.networks.create takes them, modules, or functions that return a new one; None for what
            the set was distilled for.
        eval_epochs, eval_batch: None for the protocol's.
        eval_lr: None for the set's own, or the protocol's where it has one; 0.01 for a set without one.
        dsa_strategy: None for the set's own.
        protocol: ddfast (1000 epochs, minibatches of 256; momentum is kept when the rate drops); mtt (MTT's published
            code: 1001 epochs, momentum is lost there); datm (as mtt, minibatches of 128); simplified (200 epochs,
            minibatches of 100, learning rate 0.01 whatever the set's, a tenth after 1/2 and again after 3/4 of them);
            bptt (Adam with rate 0.001 whatever the set's, 1000 epochs); recipe (of a set that has one, as DD's: its
            very steps, rates and start, and nothing of the other options).
        sam_rho: train with SAM of this ρ, adaptive as ddfast.students.GSAM has it, at two gradients a step: "MTT + flat
            minimum" of Du et al. 2023, with 0.005 to 0.1. None for plain SGD.
        at_once: networks trained side by side; None for one on a CPU, on a GPU as many as fit. Others than the fused
            ConvNet are trained one by one.
        output: a file of JSON lines to which every accuracy is added as soon as it is known; those that it has are not
            computed again, so that an evaluation that was stopped goes on. None for none.
        ranks: the processes that make this call together (ddfast.ranks); each trains some of the networks.
        data_options: data_root, download, test_folder, value_range, skip_unreadable and layout of load_dataset.

    A network that diverges, as with too large a rate, has an accuracy all the same, near chance: a warning says so, as
    of one at chance level.

    Errors: ValueError for unknown networks, classes or channels that differ, a whitening fitted on other data, or
    images, labels or a learning rate that are not finite.
    """
    unknown = set(data_options) - {"data_root", "download", "image_size", "resize", *READING}
    if unknown or not isinstance(synthetic, SyntheticSet):
        got = f"the option {', '.join(sorted(unknown))}" if unknown else f"{type(synthetic).__name__} for synthetic"
        raise TypeError(f"evaluate: expected a SyntheticSet and the options that its documentation lists, got {got}")
    synthetic.check_values()
    networks = networks_of(synthetic) if networks is None else names_of(networks)
    if eval_lr is None and protocol_named(protocol).lr is None:
        eval_lr = DEFAULT_LR if synthetic.lr is None else float(synthetic.lr)
    dsa_strategy = synthetic.dsa_strategy if dsa_strategy is None else dsa_strategy
    schedule = schedule_of(protocol, eval_epochs, eval_batch, eval_lr, dsa_strategy, sam_rho, num_eval, device, at_once)
    if schedule.protocol.recipe:
        if synthetic.recipe is None:
            raise ValueError("protocol: the set has no recipe (method dd makes such); expected another protocol")
        schedule = replace(schedule, recipe=synthetic.recipe)
    data = data_for(synthetic, dataset, **data_options)
    check_evaluation(networks, protocol, data)
    synthetic = synthetic.decoded()
    pair = synthetic.images.to(schedule.device), synthetic.targets.to(schedule.device)
    test = data.test_batches(schedule.device)
    forecast = forecast or begin_forecast(data, len(synthetic), networks, num_eval, schedule, ranks)

    def train(name: str, numbers: list[int]) -> Iterator[float]:
        generators = [seeds.generator(seed, "evaluate", name, n) for n in numbers]
        how = synthetic.parameterisation
        return schedule.accuracies(name, data, test, len(numbers) * [pair], generators, how)

    def about() -> dict[str, Any]:
        tensors = {"images": synthetic.images.cpu(), "labels": synthetic.labels.cpu()}
        return {"set": digest_of_tensors(tensors, {}), "seed": seed, **schedule.describe(data)}

    result = Evaluation(run_trainings(about, networks, num_eval, train, output, ranks, forecast))
    if ranks.is_first:
        _warn_of_chance(result, data, schedule.protocol.lr)
    return result


def _warn_of_chance(evaluation: Evaluation, data: Dataset, lr: float) -> None:
    """Warn of networks within a standard error of chance level: a rate learned for one network may be far too large for
    another."""
    count = len(data.test_labels)
    share = int(data.test_labels.bincount().max()) / count
    guess = 100 * (share + math.sqrt(share * (1 - share) / count))
    for name, row in ((name, evaluation.of(name)) for name in evaluation.accuracies):
        if row.mean <= guess:
            is_near = BASELINE_LR / 2 < lr < 2 * BASELINE_LR
            advice = f"{lr / 3:.2g} or {3 * lr:.2g}" if is_near else f"{BASELINE_LR:g}"
            log.warning(
                "%s: accuracy %.1f%% is at chance level (%.1f%%) with learning rate %.3g; try another rate, such as "
                "%s (ddfast evaluate --eval-lr, in Python eval_lr)",
                name, row.mean, 100 * share, lr, advice,
            )  # fmt: skip


def evaluation_seconds(
    data: Dataset,
    count: int,  # I, images that networks are trained on
    networks: Sequence[str],
    num_eval: int,
    schedule: Schedule,
    ranks: Ranks = ALONE,
) -> float:
    """How long it takes to train and test these networks, from a timed step of each."""
    protocol, seconds = schedule.protocol, 0.0
    for name in networks:
        batch = min(protocol.batch, count)
        augment = augmentation(schedule.dsa_strategy)
        step, test = time_training(name, data.network_arguments, batch, augment, schedule.device)
        gradients = 1 if schedule.sharpness is None else 2
        seconds += gradients * step * protocol.epochs * count / batch + test * len(data.test_images)
    return seconds * -(-num_eval // ranks.size)


def networks_of(synthetic: SyntheticSet) -> tuple[str, ...]:
    """What a set was distilled for, to evaluate it on; where it does not say that, convnet, and a line of the log."""
    if synthetic.network is None:
        log.info("networks: the set does not record the network it was distilled for; using convnet (width 128)")
    return (synthetic.network or "convnet",)


def begin_forecast(
    data: Dataset, count: int, networks: Sequence[str], num_eval: int, schedule: Schedule, ranks: Ranks, sets: int = 1
) -> Forecast:
    """The forecast of evaluations of so many sets, told and begun."""
    seconds = sets * evaluation_seconds(data, count, networks, num_eval, schedule, ranks) if ranks.is_first else 0.0
    forecast = Forecast({"evaluation": seconds})
    forecast.say()
    forecast.begin("evaluation", sets * num_eval * len(networks) // ranks.size)
    return forecast


def names_of(networks: Any) -> Any:
    """The names of networks, where a tuple or a list of names, modules or functions is given."""
    return tuple(map(all_networks.name_of, networks)) if isinstance(networks, list | tuple) else networks


def check_evaluation(networks: Sequence[str], protocol: str, data: Dataset) -> None:
    """ValueError for an unknown protocol or network, or images too small for it: before any training."""
    protocol_named(protocol)
    if isinstance(networks, str) or not networks:
        expected = ", ".join(all_networks.NETWORKS)
        raise ValueError(f"networks: expected a tuple of names out of {expected}, got {networks!r}")
    for name in networks:
        all_networks.create(name, generator=seeds.generator(0), **data.network_arguments)


def data_for(synthetic: SyntheticSet, dataset: Any, **data_options: Any) -> Dataset:
    """The data set at the synthetic set's size and with its preprocessing; ValueError where they do not fit."""
    if not isinstance(dataset, Dataset):
        options = {"image_size": synthetic.image_size, "resize": synthetic.preprocessing.resize} | data_options
        if known_name(dataset) is None and options.get("value_range") is None:
            options["value_range"] = synthetic.preprocessing.value_range  # as the training pictures were read
        dataset = load_dataset(dataset, **options)
    if synthetic.class_names != dataset.class_names:
        expected, got = (", ".join(names[:5]) for names in (dataset.class_names, synthetic.class_names))
        raise ValueError(f"synthetic: expected the classes of {dataset.name}, {expected}; got {got}")
    expected, got = list(dataset.train_images.shape[1:]), [synthetic.images.shape[1], *synthetic.image_size]
    if got != expected:
        raise ValueError(f"synthetic: expected images {expected} as in {dataset.name}, got {got}")
    return dataset.preprocessed_like(synthetic.preprocessing)


@takes_old_names(epochs="eval_epochs", batch="eval_batch")
def evaluate_random_real(
    dataset: Dataset,
    ipc: int | Sequence[int] | Mapping[str | int, int] | str | Path,
    *,
    networks: Sequence[Any] = ("convnet",),
    num_eval: int = 5,
    eval_epochs: int | None = None,
    eval_batch: int | None = None,
    dsa_strategy: str = NO_STRATEGY,
    protocol: str = "ddfast",
    sam_rho: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    output: str | Path | None = None,
    ranks: Ranks = ALONE,
    forecast: Forecast | None = None,
) -> Evaluation:
    """The baseline: as `evaluate`, on `ipc` random real images per class, other ones for each of the trainings.

    Learning rate 0.01; the preprocessing is that of the Dataset. `ipc` as `distill` takes it; of a class with fewer
    images all are taken, which a line of the log says.
    """
    asked = images_per_class(ipc, dataset.class_names, least=0)
    ipc = dataset.available(asked)
    if ipc != asked:
        few = in_words(ipc), in_words(asked)
        log.info("random real images: %s instead of %s, because some classes have no more training images", *few)
    networks = names_of(networks)
    check_evaluation(networks, protocol, dataset)
    protocol = "ddfast" if protocol_named(protocol).recipe else protocol  # real images have none
    lr = protocol_named(protocol).lr or BASELINE_LR
    schedule = schedule_of(protocol, eval_epochs, eval_batch, lr, dsa_strategy, sam_rho, num_eval, device, at_once)
    test = dataset.test_batches(schedule.device)

    def train(name: str, numbers: list[int]) -> Iterator[float]:
        drawn = [dataset.random_real(ipc, seeds.generator(seed, "random_real", n)) for n in numbers]
        sets = [(images.to(schedule.device), labels.to(schedule.device)) for images, labels in drawn]
        generators = [seeds.generator(seed, "evaluate random_real", name, n) for n in numbers]
        return schedule.accuracies(name, dataset, test, sets, generators)

    def about() -> dict[str, Any]:
        return {"random_real": ipc, "seed": seed, **schedule.describe(dataset)}

    return Evaluation(run_trainings(about, networks, num_eval, train, output, ranks, forecast or Forecast()))


def evaluate_full_data(
    dataset: Dataset,
    *,
    networks: Sequence[Any] = ("convnet",),
    num_eval: int = 1,
    epochs: int,
    dsa_strategy: str = NO_STRATEGY,
    seed: int = 0,
    device: str | torch.device | None = None,
    output: str | Path | None = None,
    ranks: Ranks = ALONE,
    forecast: Forecast | None = None,
) -> Evaluation:
    """As `evaluate`, on all training images: learning rate 0.01, cut to a tenth after half of the epochs."""
    networks = names_of(networks)
    schedule = schedule_of("ddfast", epochs, None, BASELINE_LR, dsa_strategy, None, num_eval, device, None)
    train, test = dataset.train_batches(schedule.device), dataset.test_batches(schedule.device)
    augment, epoch_of = augmentation(dsa_strategy), partial(train.shuffled, schedule.protocol.batch)

    def train_each(name: str, numbers: list[int]) -> Iterator[float]:
        for n in numbers:
            generator = seeds.generator(seed, "full data", name, n)
            net = all_networks.create(name, generator=generator, **dataset.network_arguments).to(schedule.device)
            train_networks([net], [epoch_of], augment, schedule.protocol, [generator], dataset.train_images.shape[1:])
            yield accuracy(net, test, f"{name} trained at rate {BASELINE_LR:g}")

    def about() -> dict[str, Any]:
        return {"full_data": dataset.fingerprint, "seed": seed, **schedule.describe(dataset)}

    return Evaluation(run_trainings(about, networks, num_eval, train_each, output, ranks, forecast or Forecast()))


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
