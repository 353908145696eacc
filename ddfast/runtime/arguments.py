"""Checks of plain arguments, as they come from a caller or a command line."""

import functools
import warnings
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeVar

import numpy
import torch

F = TypeVar("F", bound=Callable)


def plain(value: Any) -> Any:
    """A numpy scalar or an enum's member as the plain value that it stands for; anything else as it is."""
    if isinstance(value, Enum):
        value = value.value
    return value.item() if isinstance(value, numpy.generic) else value


def takes_plain_values(function: F) -> F:
    """Have a function see plain numbers, truth values and strings where it is given numpy scalars or enums' members."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        return function(*map(plain, arguments), **{name: plain(value) for name, value in options.items()})

    return called


def takes_plain_numbers(function: F) -> F:
    """As `takes_plain_values`, of tensors with a single number and no shape, too."""

    def as_number(value: Any) -> Any:
        return value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **{name: as_number(value) for name, value in options.items()})

    return takes_plain_values(called)


def takes_old_names(**renamed: str) -> Callable[[F], F]:
    """Have a function or a class take keyword arguments by the names that they had in the version before, with a
    FutureWarning that says the new one. TypeError where both are given."""

    def decorate(target: F) -> F:
        function = target.__init__ if isinstance(target, type) else target

        @functools.wraps(function)
        def called(*arguments: Any, **options: Any) -> Any:
            for old in [name for name in options if name in renamed]:
                new = renamed[old]
                if new in options:
                    raise TypeError(f"{old}: is called {new} now, and both are given")
                warnings.warn(f"{old} is called {new} now", FutureWarning, stacklevel=2)
                options[new] = options.pop(old)
            return function(*arguments, **options)

        if not isinstance(target, type):
            return called
        target.__init__ = called
        return target

    return decorate


def expect_whole(**values: object) -> None:
    """Raise ValueError unless all are whole numbers of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def expect_one_of(name: str, value: object, names: Iterable[str]) -> None:
    """Raise ValueError that lists the names, unless `value` is one."""
    if value not in tuple(names):
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def is_number(value: object) -> bool:
    """Whether it is one, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def expect_positive(name: str, value: object) -> None:
    """Raise ValueError unless it is a positive number."""
    if not (is_number(value) and 0 < value < float("inf")):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
