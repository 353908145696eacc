"""What a distilled set is compared with: random real images, all of them, and experts as they are."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast.data import Batches, Dataset, augmentation, take_statistics
from ddfast.data.augment import NO_STRATEGY
from ddfast.data.ipc import images_per_class, in_words
from ddfast.data.synthetic import DEFAULT_LR
from ddfast.evaluation.evaluate import check_evaluation, names_of
from ddfast.evaluation.judging import accuracy
from ddfast.evaluation.protocols import protocol_named
from ddfast.evaluation.rates import asked_rates
from ddfast.evaluation.result import Evaluation
from ddfast.evaluation.schedule import schedule_of
from ddfast.evaluation.training import train_networks
from ddfast.evaluation.trainings import Pair, Trainings, chance_of, on_sets
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_one_of, takes_old_names
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

BASELINE_LR = DEFAULT_LR
BASELINES = ("none", "plain", "labelled", "all")  # beside random real images that are trained on as the set is


def more_baselines(which: str, soft: bool, augmented: bool) -> list[str]:
    """Those of BASELINES, but for what is the same as random real images: without soft labels or augmentation."""
    expect_one_of("baselines", which, BASELINES)
    asked = BASELINES[1:3] if which == "all" else (which,)
    return [name for name in asked if (name == "plain" and augmented) or (name == "labelled" and soft)]


@takes_old_names(epochs="eval_epochs", batch="eval_batch", lr="eval_lr")
def evaluate_random_real(
    dataset: Dataset,
    ipc: int | Sequence[int] | Mapping[str | int, int] | str | Path,
    *,
    networks: Sequence[Any] = ("convnet",),
    num_eval: int = 5,
    eval_epochs: int | None = None,
    eval_lr: Any = None,
    eval_batch: int | None = None,
    dsa_strategy: str = NO_STRATEGY,
    augmented: bool = True,
    labels: Callable[[int, Tensor], Tensor] | None = None,
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

    Args:
        dataset: its preprocessing is used.
        ipc: as `distill` takes it; of a class with fewer images all are taken, which a line of the log says.
        eval_lr: as `evaluate` takes it; None and "learned" are 0.01, or the protocol's.
        augmented: False for none, whatever the strategy and the protocol: the other published baseline.
        labels: of the number of a training and its images [I, C, H, W], logits [I, K] to train on: an expert's soft
            labels. None for the classes.

    Errors: as those of `evaluate`.
    """
    asked = images_per_class(ipc, dataset.class_names, least=0)
    ipc = dataset.available(asked)
    if ipc != asked:
        few = in_words(ipc), in_words(asked)
        log.info("random real images: %s instead of %s, because some classes have no more training images", *few)
    names = names_of(networks)
    check_evaluation(names, protocol, dataset)
    protocol = "ddfast" if protocol_named(protocol).recipe else protocol  # real images have none
    schedule = schedule_of(protocol, eval_epochs, eval_batch, dsa_strategy, sam_rho, num_eval, device, at_once)
    if not augmented:
        schedule = schedule.plain()

    def set_of(n: int, left_out: Tensor | None) -> Pair:
        images, classes = dataset.random_real(ipc, seeds.generator(seed, "random_real", n), left_out)
        targets = classes if labels is None else labels(n, images).softmax(1)
        return images.to(schedule.device), targets.to(schedule.device)

    about = {"random_real": ipc, "seed": seed, **({} if labels is None else {"labels": "experts"})}
    trainings = Trainings(
        schedule, dataset, (seed, "evaluate random_real"), about, on_sets(schedule, dataset, set_of),
        "random real images: ", output=output, ranks=ranks, forecast=forecast,
    )  # fmt: skip
    rates = asked_rates(eval_lr, names, None, schedule.protocol)
    return trainings.evaluation(rates, schedule.protocol.lr or BASELINE_LR, num_eval)


def evaluate_full_data(
    dataset: Dataset,
    *,
    networks: Sequence[Any] = ("convnet",),
    num_eval: int = 1,
    epochs: int,
    eval_lr: Any = None,
    dsa_strategy: str = NO_STRATEGY,
    seed: int = 0,
    device: str | torch.device | None = None,
    output: str | Path | None = None,
    ranks: Ranks = ALONE,
    forecast: Forecast | None = None,
) -> Evaluation:
    """As `evaluate`, on all training images; the rate is cut to a tenth after half of the epochs.

    Args:
        eval_lr: as `evaluate` takes it; None and "learned" are 0.01, and the search of "auto" trains for all epochs at
            every rate, without the held-out images.
    """
    names = names_of(networks)
    schedule = schedule_of("ddfast", epochs, None, dsa_strategy, None, num_eval, device, None)
    augment, image = augmentation(dsa_strategy), dataset.train_images.shape[1:]
    batches: dict[bool, Batches] = {}  # of all training images, and of those that are not held out

    def train_on(left_out: Tensor | None) -> Batches:
        is_whole = left_out is None
        if is_whole not in batches:
            batches[is_whole] = dataset.train_batches(schedule.device) if is_whole else without(left_out)
        return batches[is_whole]

    def without(left_out: Tensor) -> Batches:
        used = torch.ones(len(dataset.train_labels), dtype=torch.bool)
        used[left_out] = False
        parts = dataset.train_images[used], dataset.train_labels[used]
        return Batches(*parts, dataset.preprocessing, schedule.device)

    def trained(
        name: str, rate: float, _numbers: list[int], generators: list[torch.Generator], left_out: Tensor | None
    ) -> Iterator[nn.Module]:
        epoch_of = partial(train_on(left_out).shuffled, schedule.protocol.batch)
        for generator in generators:
            net = all_networks.create(name, generator=generator, **dataset.network_arguments).to(schedule.device)
            train_networks([net], [epoch_of], augment, replace(schedule.protocol, lr=rate), [generator], image)
            yield net

    about = {"full_data": dataset.fingerprint, "seed": seed}
    trainings = Trainings(
        schedule, dataset, (seed, "full data"), about, trained, "full data: ",
        output=output, ranks=ranks, forecast=forecast,
    )  # fmt: skip
    return trainings.evaluation(asked_rates(eval_lr, names, None, schedule.protocol), BASELINE_LR, num_eval)


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
    return Evaluation({network: accuracies}, chance=chance_of(dataset))
