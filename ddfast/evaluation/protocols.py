"""The published protocols: how networks are trained on a set, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ddfast.data import Dataset
from ddfast.data.augment import FULL_STRATEGY, NO_STRATEGY
from ddfast.runtime.arguments import expect_one_of

BATCH = 256
DIGITS = ("mnist", "svhn", "usps", "digits")  # data sets whose images are not flipped
MNIST_OF_DC = "dc:crop_scale_rotate"
BATCH_NORM_OF_DC = "dc:crop_noise"


@dataclass(frozen=True)
class Protocol:
    """How networks are trained on a set, by default for so many epochs: SGD with momentum 0.9 and weight decay 5e-4,
    Adam without decay, or AdamW with decay 0.01."""

    epochs: int
    batch: int
    drops: Callable[[int], tuple[int, ...]]  # of E epochs: those, from 0, that begin at a lower rate
    factor: float = 0.1  # of the rate, at each drop
    loses_momentum: bool = False  # at the drops
    lr: float | None = None  # None: the set's own, or 0.01 for one that has none
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    weight_decay: float | None = None  # None: the optimiser's, as above
    cutmix: float = 0.0  # probability of CutMix, for each minibatch
    strategy: Callable[[Dataset, nn.Module], str] | None = None  # its augmentation; None: the set's
    searches: bool = False  # other networks than the set's own take the best of a few rates
    recipe: bool = False  # the very steps that a set was learned for


def _at_half(epochs: int) -> tuple[int, ...]:
    return ((epochs + 1) // 2,)


def _as_mtt(epochs: int) -> tuple[int, ...]:
    """1001 epochs: 502 at the full rate, as MTT's and DC's code do after their epoch of index 501."""
    return ((epochs - 1) // 2 + 2,)


def _at_half_and_three_quarters(epochs: int) -> tuple[int, ...]:
    return (epochs + 1) // 2, (3 * epochs + 3) // 4


def _at_two_thirds_and_five_sixths(epochs: int) -> tuple[int, ...]:
    return 2 * epochs // 3, 5 * epochs // 6


def _never(_epochs: int) -> tuple[int, ...]:
    return ()


def _of_dc(data: Dataset, net: nn.Module) -> str:
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()):
        return BATCH_NORM_OF_DC
    return MNIST_OF_DC if data.origin == "mnist" else NO_STRATEGY


def strategy_of_dsa(data: Dataset, _net: nn.Module | None = None) -> str:
    """DSA's augmentation: all of it, but that digits are not flipped."""
    return f"dsa:{FULL_STRATEGY.replace('_flip', '') if data.origin in DIGITS else FULL_STRATEGY}"


def _without_cutout(data: Dataset, net: nn.Module) -> str:
    return strategy_of_dsa(data, net).replace("_cutout", "")


def _of_none(_data: Dataset, _net: nn.Module) -> str:
    return NO_STRATEGY


PROTOCOLS = {
    "ddfast": Protocol(1000, BATCH, _at_half, searches=True),
    "mtt": Protocol(1001, BATCH, _as_mtt, loses_momentum=True),
    "datm": Protocol(1001, 128, _as_mtt, loses_momentum=True),
    "dc": Protocol(301, BATCH, _as_mtt, loses_momentum=True, lr=0.01, strategy=_of_dc),
    "dsa": Protocol(1001, BATCH, _as_mtt, loses_momentum=True, lr=0.01, strategy=strategy_of_dsa),
    "idc": Protocol(
        1000, 64, _at_two_thirds_and_five_sixths, factor=0.2, lr=0.01, cutmix=0.5, strategy=_without_cutout
    ),
    "ncfm": Protocol(2000, 64, _never, lr=1e-3, optimizer="adamw", cutmix=0.5, strategy=strategy_of_dsa),
    "ddranking": Protocol(1000, 128, _at_half, searches=True),
    "bptt": Protocol(1000, BATCH, _never, lr=1e-3, optimizer="adam"),
    "fedd3": Protocol(500, 50, _never, lr=1e-3, optimizer="adam", weight_decay=1e-4, strategy=_of_none),
    "recipe": Protocol(1, BATCH, _never, lr=1.0, recipe=True),
    "simplified": Protocol(200, 100, _at_half_and_three_quarters, lr=0.01),
}


def protocol_named(protocol: str) -> Protocol:
    """One of PROTOCOLS; ValueError for another name."""
    expect_one_of("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]
