"""How good a training set is: networks trained on it from scratch, and their accuracy on real test images."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast import networks as all_networks
from ddfast.data import READING, Dataset, SyntheticSet, augmentation, known_name, load_dataset
from ddfast.data.synthetic import DEFAULT_LR
from ddfast.engine.timing import time_training
from ddfast.evaluation.protocols import protocol_named
from ddfast.evaluation.rates import AUTO, RATES, Rate, asked_rates
from ddfast.evaluation.result import Evaluation
from ddfast.evaluation.schedule import Schedule, schedule_of
from ddfast.evaluation.trainings import Pair, Trainings, num_trainings, on_sets
from ddfast.runtime import seeds
from ddfast.runtime.arguments import takes_old_names, takes_plain_numbers
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")


@takes_old_names(epochs="eval_epochs", lr="eval_lr", batch="eval_batch", root="data_root")
@takes_plain_numbers
def evaluate(
    synthetic: SyntheticSet,
    dataset: Any,
    *,
    networks: Sequence[Any] | None = None,
    num_eval: int = 5,
    eval_epochs: int | None = None,
    eval_lr: Any = None,
    eval_batch: int | None = None,
    dsa_strategy: str | None = None,
    augmented: bool = True,
    protocol: str = "ddfast",
    sam_rho: float | None = None,
    scores: bool = False,
    best_on_test: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    output: str | Path | None = None,
    ranks: Ranks = ALONE,
    forecast: Forecast | None = None,
    **data_options: Any,
) -> Evaluation:
    """Train `num_eval` networks of each name from scratch on the synthetic set, and test each after its last epoch.

    The test images get the preprocessing that the set was distilled with.

    Args:
        dataset: what to test on, as load_dataset takes it; images are brought to the set's size.
        networks: names as ddfast.networks.create takes them, modules, or functions that return a new one; None for what
            the set was distilled for.
        eval_epochs, eval_batch: None for the protocol's.
        eval_lr: a number, "learned" (the set's own rate, or 0.01), or "auto": the best of 0.001, 0.005, 0.01, 0.05 and
            0.1 by one training each, tested on a fifth of the training images (2000 at most), never on test images; or
            a mapping of these by network. None for the learned one of the network that the set was distilled for, and
            auto for others, to whom that rate means little; the papers' protocols have the learned one, or their own,
            for all.
        dsa_strategy: None for the set's own.
        augmented: False for no augmentation, whatever the strategy and the protocol.
        protocol: a name of ddfast.evaluation.PROTOCOLS. ddfast: 1000 epochs of SGD with momentum 0.9 and weight decay
            5e-4, minibatches of 256, a tenth of the rate after half of them. mtt, datm, dc, dsa, idc, ncfm, ddranking,
            bptt and simplified are published ones; recipe is for a set that has one, as DD's: its very steps, rates and
            start, and nothing of the other options.
        sam_rho: train with SAM of this ρ, adaptive as ddfast.students.GSAM has it, at two gradients a step: "MTT + flat
            minimum" of Du et al. 2023, with 0.005 to 0.1. None for plain SGD.
        scores: also measure confusion, calibration and robustness to common corruptions, in `records` of the result.
        best_on_test: also keep the best test accuracy of each training at 20 looks on its way, in `records`: some
            papers report it, and it is chosen on test images.
        at_once: networks trained side by side; None for one on a CPU, on a GPU as many as fit. Others than the fused
            ConvNet are trained one by one.
        output: a file of JSON lines to which every accuracy is added as soon as it is known; those that it has are not
            computed again, so that an evaluation that was stopped goes on. None for none.
        ranks: the processes that make this call together (ddfast.ranks); each trains some of the networks.
        data_options: data_root, download, test_folder, value_range, skip_unreadable, layout and hold_out of
            load_dataset.

    A network that diverges, as with too large a rate, has an accuracy all the same, near chance: a warning says so, as
    of one at chance level.

    Errors: ValueError for unknown networks, classes or channels that differ, a whitening fitted on other data, or
    images, labels or a learning rate that are not finite.
    """
    unknown = set(data_options) - {"data_root", "download", "image_size", "resize", "hold_out", *READING}
    if unknown or not isinstance(synthetic, SyntheticSet):
        got = f"the option {', '.join(sorted(unknown))}" if unknown else f"{type(synthetic).__name__} for synthetic"
        raise TypeError(f"evaluate: expected a SyntheticSet and the options that its documentation lists, got {got}")
    synthetic.check_values()
    own = synthetic.network
    names = networks_of(synthetic) if networks is None else names_of(networks)
    asked = asked_rates(eval_lr, names, own, protocol_named(protocol))
    dsa_strategy = synthetic.dsa_strategy if dsa_strategy is None else dsa_strategy
    schedule = schedule_of(protocol, eval_epochs, eval_batch, dsa_strategy, sam_rho, num_eval, device, at_once)
    if not augmented:
        schedule = schedule.plain()
    learned = schedule.protocol.lr or (DEFAULT_LR if synthetic.lr is None else float(synthetic.lr))
    if schedule.protocol.recipe:
        if synthetic.recipe is None:
            raise ValueError("protocol: the set has no recipe (method dd makes such); expected another protocol")
        schedule = replace(schedule, recipe=synthetic.recipe)
    data = data_for(synthetic, dataset, **data_options)
    check_evaluation(names, protocol, data)
    synthetic = synthetic.decoded()
    pair = synthetic.images.to(schedule.device), synthetic.targets.to(schedule.device)
    forecast = forecast or begin_forecast(data, len(synthetic), asked, num_eval, schedule, ranks)

    def set_of(_n: int, _left_out: Tensor | None) -> Pair:
        return pair

    about = {} if output is None else {"set": synthetic.digest, "seed": seed}
    trainings = Trainings(
        schedule, data, (seed, "evaluate"), about, on_sets(schedule, data, set_of, synthetic.parameterisation),
        scores=scores, best_on_test=best_on_test, output=output, ranks=ranks, forecast=forecast,
    )  # fmt: skip
    result = trainings.evaluation(asked, learned, num_eval)
    if ranks.is_first:
        _warn_of_chance(result)
    return result


def _warn_of_chance(evaluation: Evaluation) -> None:
    """Warn of networks at chance level: a rate learned for one network may be far too large for another."""
    for name in evaluation.at_chance:
        row, lr = evaluation.of(name), evaluation.rates[name]
        is_near = DEFAULT_LR / 2 < lr < 2 * DEFAULT_LR
        advice = f"{lr / 3:.2g} or {3 * lr:.2g}" if is_near else f"{DEFAULT_LR:g}"
        log.warning(
            "%s: accuracy %.1f%% is at chance level (%.1f%%) with learning rate %.3g; try another rate, such as %s, or "
            "auto (ddfast evaluate --eval-lr, in Python eval_lr)",
            name, row.mean, evaluation.chance, lr, advice,
        )  # fmt: skip


def evaluation_seconds(
    data: Dataset,
    count: int,  # I, images that networks are trained on
    asked: dict[str, Rate],  # the rates of networks by name
    num_eval: int,
    schedule: Schedule,
    ranks: Ranks = ALONE,
) -> float:
    """How long it takes to train and test these networks, from a timed step of each."""
    protocol, seconds = schedule.protocol, 0.0
    for name, rate in asked.items():
        batch = min(protocol.batch, count)
        augment = augmentation(schedule.dsa_strategy)
        step, test = time_training(name, data.network_arguments, batch, augment, schedule.device)
        gradients = 1 if schedule.sharpness is None else 2
        training = gradients * step * protocol.epochs * count / batch
        searched = len(RATES) * training if rate == AUTO else 0.0
        seconds += (searched + num_eval * (training + test * len(data.test_images))) / min(ranks.size, num_eval)
    return seconds


def networks_of(synthetic: SyntheticSet) -> tuple[str, ...]:
    """What a set was distilled for, to evaluate it on; where it does not say that, convnet, and a line of the log."""
    if synthetic.network is None:
        log.info("networks: the set does not record the network it was distilled for; using convnet (width 128)")
    return (synthetic.network or "convnet",)


def begin_forecast(
    data: Dataset, count: int, asked: dict[str, Rate], num_eval: int, schedule: Schedule, ranks: Ranks, sets: int = 1
) -> Forecast:
    """The forecast of evaluations of so many sets, told and begun."""
    seconds = sets * evaluation_seconds(data, count, asked, num_eval, schedule, ranks) if ranks.is_first else 0.0
    forecast = Forecast({"evaluation": seconds})
    forecast.say()
    forecast.begin("evaluation", sets * num_trainings(asked, num_eval) // ranks.size)
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
