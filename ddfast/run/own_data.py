"""Settings for data that no preset is of: from the number of images, what they are, and what the device can do.

A preset's numbers are of its own data: an epoch of CIFAR-10 is 195 steps of an expert, one of 500 pictures is two. Here
segments are counted in steps, and experts and iterations follow from timed steps and a budget; the rates come from a
probe (probe.py).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddfast.data import DSA, Dataset
from ddfast.data.augment import FULL_STRATEGY
from ddfast.engine.timing import time_training, time_unroll
from ddfast.runtime.forecast import words_of_time

log = logging.getLogger("ddfast")

BUDGET = "10min"  # on a machine that others use too a job takes up to twice as long as planned
GREY_STRATEGY = "color_crop_cutout_scale_rotate"  # a digit or letter that is flipped is another
STEPS_AN_EPOCH = 16  # of an expert, about, where minibatches may be as small as that
BATCH_TRAIN = 16, 256  # fewest and most images of a minibatch
SEGMENT = 160  # steps of an expert between start and target
STARTS = 320  # steps in which segments begin, with one image per class
MOST_EPOCHS = 20  # of either: of few images an expert learns nothing new after that
SYN_STEPS = 20
MOST_AT_ONCE = 100  # synthetic images of an inner step
WIDTHS = 128, 64, 32  # of the ConvNet: the widest that leaves time for LEAST
EVALUATIONS = (5, 1000), (5, 500), (3, 500), (3, 300)  # networks and epochs
SMALLEST = 1, 50, (2, 300)  # experts, iterations and evaluation where the budget is too small
LEAST = 4, 400, EVALUATIONS[-1]
MOST_EXPERTS, MOST_ITERATIONS = 20, 5000
EXPERTS_SHARE, EVALUATION_SHARE = 0.3, 0.25  # of the budget, where more than LEAST of them is taken
PLANNED = 0.85  # of the budget: a machine is not always as fast as when it was timed


@dataclass(frozen=True)
class Derived:
    """Settings, and why each of them is what it is."""

    settings: dict[str, Any]
    reasons: dict[str, str]


def derive(
    data: Dataset,
    count: int,  # I, synthetic images
    given: dict[str, Any],  # what the user asks for, which stays
    row: dict[str, Any],  # settings of the nearest preset, for what does not depend on the data
    device: torch.device,
    budget: float,  # seconds
    kept_epochs: Sequence[int] | None = None,  # of experts that are trained already
) -> Derived:
    """Settings of a run on these data within a budget. What is given is not among them."""
    chosen: dict[str, tuple[Any, str]] = _segments(data, count, given, kept_epochs)
    strategy = GREY_STRATEGY if data.channels == 1 else FULL_STRATEGY
    chosen["dsa_strategy"] = strategy, f"for images of {'one channel' if data.channels == 1 else 'several channels'}"
    chosen["zca"] = False, "images are normalised by their own mean and standard deviation"
    values = row | {name: value for name, (value, _) in chosen.items()} | given
    chosen |= _amounts(_Costs(data, count, values, device, kept_epochs is not None), given, budget, WIDTHS)
    return _without(chosen, given)


def derive_without_unroll(data: Dataset, given: dict[str, Any], row: dict[str, Any]) -> Derived:
    """As `derive`, for a method that unrolls nothing; its iterations follow from its own steps, which are timed."""
    chosen: dict[str, tuple[Any, str]] = {"zca": (False, "images are normalised by their own mean and deviation")}
    strategy = row.get("dsa_strategy", "")
    if data.channels == 1 and "_flip" in strategy:
        chosen["dsa_strategy"] = strategy.replace("_flip", ""), "for images of one channel"
    return _without(chosen, given)


def amounts(
    data: Dataset,
    count: int,
    given: dict[str, Any],
    row: dict[str, Any],
    device: torch.device,
    budget: float,
    kept_epochs: Sequence[int] | None = None,
) -> Derived:
    """A preset's experts, iterations and evaluation within a budget; arguments as of `derive`."""
    values = row | {"train_epochs": "needed"} | given
    costs = _Costs(data, count, values, device, kept_epochs is not None)
    chosen = _amounts(costs, {"network": row["network"]} | given, budget)
    chosen["train_epochs"] = "needed", "no more epochs than the run can use"
    return _without(chosen, given)


def _without(chosen: dict[str, tuple[Any, str]], given: dict[str, Any]) -> Derived:
    chosen = {name: pair for name, pair in chosen.items() if name not in given}
    reasons = {name: why for name, (_, why) in chosen.items() if why}
    return Derived({name: value for name, (value, _) in chosen.items()}, reasons)


def _segments(
    data: Dataset, count: int, given: dict[str, Any], kept_epochs: Sequence[int] | None
) -> dict[str, tuple[Any, str]]:
    """Minibatches and segments, with reasons; "" for what needs none."""
    N = len(data.train_images)
    fewest, most = BATCH_TRAIN
    batch = given.get("batch_train") or min(most, max(fewest, 2 ** round(math.log2(max(1, N / STEPS_AN_EPOCH)))))
    steps = -(-N // batch)
    expert_epochs = given.get("expert_epochs") or min(MOST_EPOCHS, max(1, round(SEGMENT / steps)))
    times = math.sqrt(count / data.num_classes)  # of more images per class more is learned later
    max_start = max(2, round(times * min(MOST_EPOCHS, STARTS / steps)))
    first = 0
    if kept_epochs is not None:
        first, last = kept_epochs[0], next(e for e in kept_epochs if e + 1 not in kept_epochs)
        expert_epochs = min(expert_epochs, max(1, last - first))
        max_start = max(first + 1, min(max_start, last + 1 - expert_epochs))
    chosen = {
        "batch_train": (batch, f"{steps} steps in an expert's epoch of {N} images"),
        "expert_epochs": (expert_epochs, f"{expert_epochs * steps} steps of an expert between start and target"),
        "max_start_epoch": (max_start, f"segments begin in the first {max_start * steps} steps"),
        "train_epochs": ("needed", ""),
        "min_start_epoch": (first, ""),
        "current_max_start_epoch": (None, ""),
        "expansion_end": (None, ""),
        "syn_steps": (SYN_STEPS, ""),
        "batch_syn": (None, ""),
    }
    if count > MOST_AT_ONCE:
        chosen["batch_syn"] = MOST_AT_ONCE, f"of {count} synthetic images in an inner step"
    return chosen


class _Costs:
    """Seconds of a run's parts, from timed steps."""

    def __init__(self, data: Dataset, count: int, values: dict[str, Any], device: torch.device, trained: bool) -> None:
        self._data, self._count, self._values, self._device, self._trained = data, count, values, device, trained
        self.times: dict[str, tuple[float, float, float]] = {}

    def of(self, network: str, experts: int, iterations: int, evaluation: tuple[int, int]) -> tuple[float, ...]:
        """Of experts, iterations and evaluation."""
        expert_epoch, iteration, evaluated_epoch, tested = self._times(network)
        epochs = self._values["max_start_epoch"] - 1 + self._values["expert_epochs"]
        if isinstance(self._values["train_epochs"], int):
            epochs = max(epochs, self._values["train_epochs"])
        networks, eval_epochs = evaluation
        return (
            0.0 if self._trained else experts * epochs * expert_epoch,
            iterations * iteration,
            2 * networks * (eval_epochs * evaluated_epoch + tested),  # distilled and random real
        )

    def _times(self, network: str) -> tuple[float, float, float, float]:
        """Seconds of an epoch of an expert, an iteration, an epoch of an evaluated network, and its test."""
        if network not in self.times:
            data, values, device = self._data, self._values, self._device
            batch, sizes = min(values["batch_train"], len(data.train_images)), data.network_arguments
            augment = DSA(values["dsa_strategy"])
            step, test = time_training(network, sizes, batch, augment, device)
            syn = min(values["batch_syn"] or self._count, self._count)
            inner = time_unroll(network, sizes, syn, augment, device)
            small, _ = time_training(network, sizes, min(self._count, 256), augment, device)
            self.times[network] = (
                step * len(data.train_images) / batch,
                inner * values["syn_steps"] * values.get("segments", 1),
                small * max(1.0, self._count / 256),
                test * len(data.test_images),
            )
        return self.times[network]


def _amounts(
    costs: _Costs, given: dict[str, Any], budget: float, widths: tuple[int, ...] = ()
) -> dict[str, tuple[Any, str]]:
    """Network, experts, iterations and evaluation within the budget; nothing is timed where all of them are given."""
    if {"network", "num_experts", "iterations", "num_eval", "eval_epochs"} <= given.keys():
        return {}
    room = PLANNED * budget
    experts, iterations = given.get("num_experts"), given.get("iterations")
    evaluation = given.get("num_eval"), given.get("eval_epochs")

    def cost(network: str, amounts: tuple[int, int, tuple[int, int]]) -> tuple[float, ...]:
        n, i, (k, epochs) = amounts
        networks = k if evaluation[0] is None else evaluation[0]
        return costs.of(network, experts or n, iterations or i, (networks, evaluation[1] or epochs))

    networks = [given["network"]] if "network" in given else [f"convnet:width={width}" for width in widths]
    network = next((name for name in networks if sum(cost(name, LEAST)) <= room), networks[-1])
    least = LEAST if sum(cost(network, LEAST)) <= room else SMALLEST
    of_experts, of_iterations, of_evaluation = cost(network, least)
    if of_experts + of_iterations + of_evaluation > room:
        log.warning(
            "budget: the smallest useful run takes about %s here, more than %s; use a longer --budget, "
            "fewer or smaller images, or a smaller --network", words_of_time(sum(cost(network, least))),
            words_of_time(budget),
        )  # fmt: skip
    left = room - of_experts - of_iterations - of_evaluation
    more = max(of_experts, min(of_experts + left, EXPERTS_SHARE * room)) / of_experts if of_experts else 1.0
    experts = experts or min(MOST_EXPERTS, int(least[0] * more))
    left -= cost(network, (experts, *least[1:]))[0] - of_experts
    for choice in (*EVALUATIONS, least[2]):
        extra = cost(network, (experts, least[1], choice))[2] - of_evaluation
        if extra <= max(0.0, min(left, EVALUATION_SHARE * room - of_evaluation)) or choice == least[2]:
            chosen_evaluation, left = choice, left - max(0.0, extra)
            break
    one = of_iterations / (iterations or least[1])
    iterations = iterations or min(MOST_ITERATIONS, _round_down(least[1] + max(0.0, left) / one))
    fits = f"fits a budget of {words_of_time(budget)}"
    return {
        "network": (network, f"the widest of {', '.join(map(str, widths))} that {fits}"),
        "num_experts": (experts, fits),
        "iterations": (iterations, f"{fits}, {one:.2g} s each"),
        "num_eval": (chosen_evaluation[0], fits),
        "eval_epochs": (chosen_evaluation[1], fits),
    }


def _round_down(count: float) -> int:
    """To one of 50, 60 … 100, 150, 200 … 1000, 1500, 2000 …: two runs on one machine rarely differ."""
    step = 10 ** math.floor(math.log10(max(count, 10))) / 2
    return int(max(count // step * step, 1))
