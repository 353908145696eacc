"""Data sets by names of one's own."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from ddfast.data.named import DATASETS

REGISTERED: dict[str, Callable[..., Any]] = {}


def register_dataset(name: str, load: Callable[..., Any]) -> None:
    """Make what `load` returns available as the data set `name`, everywhere a data set is named.

    load: called with those of the keyword arguments data_root, download and image_size that it takes. It returns what
    load_dataset takes as an object: a pair of torch data sets or arrays, a folder, a file, a Dataset, ….

    Errors: ValueError for a name that is taken or has other characters than small letters, digits, _ and -; TypeError
    for what cannot be called.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"name: expected small letters, digits, _ and -, got {name!r}")
    if name in DATASETS or re.sub("[-_]", "", name) in {known.replace("-", "") for known in DATASETS}:
        raise ValueError(f"name: {name!r} is a data set of ddfast; choose another")
    if not callable(load):
        raise TypeError(f"load: expected a function that returns a data set, got {type(load).__name__}")
    REGISTERED[name] = load


def read_registered(name: str, **where: Any) -> Any:
    """What the function of a registered name returns, called with those of `where` that it takes."""
    load = REGISTERED[name]
    takes = inspect.signature(load).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
    named = {parameter.name for parameter in takes}
    return load(**{key: value for key, value in where.items() if takes_all or key in named})


def is_registered(dataset: Any) -> bool:
    """Whether it is a registered name."""
    return isinstance(dataset, str) and dataset in REGISTERED
