"""The learning rate of each network: the set's learned one, a number, or the best of a few on held-out training images.

A learned rate is that of the network the set was distilled with; another network may end at chance by it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddfast.data import Batches, Dataset
from ddfast.data.split import draw_share
from ddfast.evaluation.protocols import Protocol
from ddfast.networks import name_of
from ddfast.runtime.arguments import expect_positive

RATES = (0.001, 0.005, 0.01, 0.05, 0.1)  # those that DD-Ranking tries
LEARNED, AUTO = "learned", "auto"
HELD_OUT_SHARE = 0.2  # of every class
MOST_HELD_OUT = 2000  # images in all

Rate = float | str  # LEARNED, AUTO or a number


def asked_rates(eval_lr: Any, networks: Sequence[str], own: str | None, protocol: Protocol) -> dict[str, Rate]:
    """What rate each network is to have.

    None: the learned one for `own`, the network that the set was distilled for, and AUTO for the others where the
    protocol searches; the learned one for all where it does not, or the network is not known.

    Errors: ValueError for something else than "learned", "auto" or a positive number, and for rates of other networks.
    """
    given = dict.fromkeys(networks, eval_lr)
    if isinstance(eval_lr, Mapping):
        given = {name_of(network): rate for network, rate in eval_lr.items()}
    if unknown := [name for name in given if name not in networks]:
        raise ValueError(f"eval_lr: has rates of {', '.join(unknown)}; expected those of {', '.join(networks)}")
    searches = protocol.searches and own is not None
    asked: dict[str, Rate] = {}
    for name in networks:
        value = given.get(name)
        if value is None:
            value = AUTO if searches and name != own else LEARNED
        if isinstance(value, str) and value not in (LEARNED, AUTO):
            raise ValueError(f"eval_lr: expected learned, auto or a positive number, got {value!r}")
        if not isinstance(value, str):
            expect_positive("eval_lr", value)
        asked[name] = value
    return asked


def best_rate(accuracies: Sequence[float]) -> float:
    """Of RATES the one with the highest accuracy; of several the middle one."""
    best = [n for n, value in enumerate(accuracies) if value == max(accuracies)]
    return RATES[best[len(best) // 2]]


def words_of_rate(name: str, accuracies: Sequence[float]) -> str:
    """Which rate a network takes, and why."""
    tried = ", ".join(f"{rate:g}: {value:.1f}%" for rate, value in zip(RATES, accuracies, strict=True))
    return f"{name}: rate {best_rate(accuracies):g}, by held-out training images ({tried})"


def held_out(data: Dataset) -> Tensor:  # int64 indices of training images
    """The training images that rates are chosen by: a fifth of every class, 2000 at most, always the same ones; none of
    a class that has a single image. Empty where the data set holds out images already.

    Errors: ValueError where no class has two.
    """
    if data.held_images is not None:
        return torch.empty(0, dtype=torch.int64)
    drawn = draw_share(data.train_labels, min(HELD_OUT_SHARE, MOST_HELD_OUT / len(data.train_labels)), (0, "rates"))[1]
    if not len(drawn):
        raise ValueError("eval_lr: auto holds out training images, and no class has two; give a number")
    return drawn


def held_out_batches(data: Dataset, chosen: Tensor, device: torch.device) -> Batches:
    """Those images, or those that the data set holds out already, preprocessed, on a device."""
    if data.held_images is not None:
        return data.held_batches(device)
    return Batches(data.train_images[chosen], data.train_labels[chosen], data.preprocessing, device)
