"""What is searched: settings of the method around what the defaults derive, inside their valid ranges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddfast.data.augment import FULL_STRATEGY, NO_STRATEGY
from ddfast.methods import INITS, method_class
from ddfast.methods.settings import LARGEST_LR
from ddfast.run.own_data import GREY_STRATEGY
from ddfast.runtime.options import NONE, options_of

RATES = {"lr_img": 10.0, "lr_teacher": 3.0, "lr_lr": 10.0, "lr_label": 10.0, "lr_net": 5.0}  # times and parts of it
COUNTS = {"syn_steps": 2.0, "expert_epochs": 2.0, "max_start_epoch": 2.0, "batch_syn": 2.0}
STRATEGY = "dsa_strategy"
MILD_STRATEGY = "crop_scale_rotate"
DIGITS = 4  # of a rate that is tried


@dataclass(frozen=True)
class Searched:
    """A setting that is searched: between `low` and `high`, evenly in the logarithm, or one of `choices`."""

    name: str
    default: Any  # what the first trial has
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.default, int)

    def value(self, drawn: Any) -> Any:
        """A drawn value as it is tried: the default as it is, another rate in few digits."""
        is_rate = not self.choices and not self.is_whole
        return float(f"{drawn:.{DIGITS}g}") if is_rate and drawn != self.default else drawn


def counts_searched(config: Mapping[str, Any], images: int, given: Sequence[str]) -> list[Searched]:
    """Whole numbers that a method has, of a config whose rates need not be known. What is given is not searched.

    images: J, the synthetic images that networks see; a minibatch of all of them is one.
    """
    known, found = options_of(method_class(config["method"]).Settings), []
    for name, factor in COUNTS.items():
        if name not in known or name in given:
            continue
        default = config[name] if config[name] is not None or name != "batch_syn" else images
        low, high = max(1, round(default / factor)), max(1, round(default * factor))
        if name == "max_start_epoch":
            low = max(low, config["min_start_epoch"] + 1, config["current_max_start_epoch"] or 1)
        if name == "batch_syn":
            low, high = min(images, max(low, 2)), min(images, high)
        default = min(default, high)
        if low < high:
            found.append(Searched(name, default, min(low, default), high))
    return found


def others_searched(config: Mapping[str, Any], channels: int, given: Sequence[str]) -> list[Searched]:
    """Rates and augmentation, of a config that has them all. What is given is not searched, nor what is zero."""
    known, found = options_of(method_class(config["method"]).Settings), []
    brings_its_own = ("lr_teacher",) if config["init"] not in INITS else ()  # a saved set
    for name, factor in RATES.items():
        if name in known and name not in (*given, *brings_its_own) and config[name]:
            found.append(Searched(name, config[name], config[name] / factor, min(LARGEST_LR, config[name] * factor)))
    if STRATEGY in known and STRATEGY not in given:
        full = GREY_STRATEGY if channels == 1 else FULL_STRATEGY
        choices = dict.fromkeys((config[STRATEGY], NO_STRATEGY, MILD_STRATEGY, full))
        found.append(Searched(STRATEGY, config[STRATEGY], choices=tuple(choices)))
    return found


def settings_of(space: Sequence[Searched], drawn: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Options of `distill` for what was drawn; minibatches of all images are none."""
    values = {one.name: one.value(drawn[one.name]) for one in space}
    return values | ({"batch_syn": NONE} if values.get("batch_syn") == images else {})


def iterations_of(config: Mapping[str, Any], drawn: Mapping[str, Any], images: int, fixed: float = 0.0) -> int:
    """So many iterations as take the time of the default ones: that of an inner step is `fixed`, a share of a default
    one, and the rest grows with its images."""
    steps, batch = config.get("syn_steps") or 1, config.get("batch_syn") or images
    more = (drawn.get("syn_steps") or steps) / steps
    cost = more * (fixed + (1 - fixed) * (drawn.get("batch_syn") or batch) / batch)
    return max(1, round(config["iterations"] / cost))


def longest_epochs(config: Mapping[str, Any], space: Sequence[Searched], needed: int) -> int:
    """How many epochs of an expert the trials look at, at most; `needed`: those of the defaults."""
    most = {name: config[name] for name in ("max_start_epoch", "expert_epochs") if name in config}
    most |= {one.name: int(one.high) for one in space if one.name in most}
    return max(needed, most["max_start_epoch"] - 1 + most["expert_epochs"]) if len(most) == 2 else needed
