"""Checks of plain arguments, as they come from a caller or a command line."""

from collections.abc import Iterable


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
