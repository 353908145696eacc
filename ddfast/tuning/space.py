"""The search space: settings of the method around the derived defaults, within valid ranges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddfast.data.augment import FULL_STRATEGY, NO_STRATEGY
from ddfast.methods import INITS, method_class
from ddfast.methods.settings import LARGEST_LR
from ddfast.run.own_data import GREY_STRATEGY
from ddfast.runtime.options import NONE, options_of

RATES = {"lr_img": 10.0, "lr_teacher": 3.0, "lr_lr": 10.0, "lr_label": 10.0, "lr_net": 5.0}  # factors up and down
COUNTS = {"syn_steps": 2.0, "expert_epochs": 2.0, "max_start_epoch": 2.0, "batch_syn": 2.0}
STRATEGY = "dsa_strategy"
MILD_STRATEGY = "crop_scale_rotate"
DIGITS = 4  # significant digits of a searched rate


@dataclass(frozen=True)
class Searched:
    """A searched setting: log-uniform between `low` and `high`, or one of `choices`."""

    name: str
    default: Any  # the value in the first trial
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.default, int)

    def value(self, drawn: Any) -> Any:
        """The value to use for a drawn one: rates other than the default are rounded."""
        is_rate = not self.choices and not self.is_whole
        return float(f"{drawn:.{DIGITS}g}") if is_rate and drawn != self.default else drawn


def counts_searched(config: Mapping[str, Any], images: int, given: Sequence[str]) -> list[Searched]:
    """Searched whole numbers of a method, without options in `given`. The rates in `config` may be unknown.

    images: J, the synthetic images that networks see, and the largest minibatch.
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
    """Searched rates and augmentation, without options in `given` and rates of zero. `config` has all rates."""
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
    """Options of `distill` for drawn values; a minibatch of all images becomes no minibatch."""
    values = {one.name: one.value(drawn[one.name]) for one in space}
    return values | ({"batch_syn": NONE} if values.get("batch_syn") == images else {})


def iterations_of(config: Mapping[str, Any], drawn: Mapping[str, Any], images: int, fixed: float = 0.0) -> int:
    """The number of iterations that takes as long as the defaults. Of a default inner step's time, the share `fixed` is
    constant, and the rest grows with its images."""
    steps, batch = config.get("syn_steps") or 1, config.get("batch_syn") or images
    more = (drawn.get("syn_steps") or steps) / steps
    cost = more * (fixed + (1 - fixed) * (drawn.get("batch_syn") or batch) / batch)
    return max(1, round(config["iterations"] / cost))


def longest_epochs(config: Mapping[str, Any], space: Sequence[Searched], needed: int) -> int:
    """The most epochs of an expert that any trial uses; `needed`: those of the defaults."""
    most = {name: config[name] for name in ("max_start_epoch", "expert_epochs") if name in config}
    most |= {one.name: int(one.high) for one in space if one.name in most}
    return max(needed, most["max_start_epoch"] - 1 + most["expert_epochs"]) if len(most) == 2 else needed
