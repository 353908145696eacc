"""Labels of any kind (numbers, strings, truth values, one-hot rows) as classes 0 to K − 1 with names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

MOST_NAMED = 5  # classes in a sentence


@dataclass(frozen=True)
class Classes:
    """The classes of a training and a test set."""

    train: Tensor  # int64 [N]
    test: Tensor | None  # int64 [M]
    names: tuple[str, ...]  # [K]
    notes: list[str] = field(default_factory=list)  # what was done to get there, in words


def as_classes(train: Any, test: Any = None, names: Sequence[Any] | None = None) -> Classes:
    """Classes from the labels of both parts; `names` of the labels 0, 1, … where they are listed.

    Without names: strings become classes in sorted order; whole numbers in their order, named as they are, be they
    0 … K − 1 or not. Listed classes that have no images in either part are left out. Labels [N, 1] are [N]; one-hot
    rows [N, K] are the place of their 1.

    Errors: ValueError for labels that are no classes, unknown ones, and classes that only the test set has.
    """
    values, columns = _values(train, "training")
    tested, test_columns = (None, None) if test is None else _values(test, "test")
    if columns != test_columns and test is not None:
        forms = " and ".join(
            "one label each" if count is None else f"rows of {count}" for count in (columns, test_columns)
        )
        raise ValueError(f"dataset: expected training and test labels of one form, got {forms}")
    if tested is not None and (values.dtype.kind in "US") != (tested.dtype.kind in "US"):
        raise ValueError("dataset: expected training and test labels of one kind, got strings and numbers")
    if columns is not None and (names is None or len(names) != columns):
        names = range(columns)
    notes: list[str] = []
    listed = _listed(values, names)
    present = numpy.unique(values)
    if listed is None:
        listed = list(present)
        if present.dtype.kind == "i" and not numpy.array_equal(present, numpy.arange(len(present))):
            notes.append(f"labels {some(present)} are {len(present)} classes of these names")
    else:
        _expect_known(values, listed, "training")
    if tested is not None:
        only_test = sorted(set(numpy.unique(tested).tolist()) - set(present.tolist()))
        if only_test:
            raise ValueError(
                f"dataset: test images of class {some(_name(listed, names, x) for x in only_test)} and no training "
                f"images of it; expected test images of the classes that are trained on"
            )
    kept = [value for value in listed if value in set(present.tolist())]
    if len(kept) < len(listed):
        lacking = [_name(listed, names, value) for value in listed if value not in set(kept)]
        notes.append(f"{len(lacking)} of {len(listed)} listed classes have no images and are left out: {some(lacking)}")
    number = {value: k for k, value in enumerate(kept)}
    parts = [
        None if part is None else torch.tensor([number[value] for value in part.tolist()], dtype=torch.int64)
        for part in (values, tested)
    ]
    return Classes(parts[0], parts[1], tuple(_name(listed, names, value) for value in kept), notes)


def some(values: Any) -> str:
    """The first of these, and how many more there are."""
    values = [str(value) for value in values]
    more = f", … ({len(values)} in all)" if len(values) > MOST_NAMED else ""
    return ", ".join(values[:MOST_NAMED]) + more


def _listed(values: numpy.ndarray, names: Sequence[Any] | None) -> list | None:
    """The labels that stand for the listed names, in their order; None where there are none."""
    if names is None:
        return [False, True] if values.dtype.kind == "b" else None
    return [str(name) for name in names] if values.dtype.kind == "U" else list(range(len(names)))


def _name(listed: list, names: Sequence[Any] | None, value: Any) -> str:
    return str(value) if names is None or value not in listed else str(list(names)[listed.index(value)])


def _expect_known(values: numpy.ndarray, listed: list, what: str) -> None:
    unknown = sorted(set(numpy.unique(values).tolist()) - set(listed))
    if unknown:
        expected = f"labels 0 to {len(listed) - 1}" if values.dtype.kind == "i" else f"labels {some(listed)}"
        raise ValueError(f"dataset: expected {what} {expected}, as many as classes are listed, got {some(unknown)}")


def _values(labels: Any, what: str) -> tuple[numpy.ndarray, int | None]:
    """Labels [N] as int64, bool or str, and the columns of one-hot ones, or None."""
    array = _plain(labels, what)
    while array.ndim > 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        return _from_one_hot(array, what), array.shape[1]
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"dataset: expected {what} labels [N], got {list(array.shape)}")
    if array.dtype.kind in "bU":
        return array, None
    if array.dtype.kind == "f":
        if not numpy.array_equal(array, numpy.round(array)):  # NaN is no number
            wrong = array[array != numpy.round(array)][0]
            raise ValueError(f"dataset: expected whole numbers as {what} labels, got {wrong:g}")
    elif array.dtype.kind not in "iu":
        raise ValueError(f"dataset: expected numbers or strings as {what} labels, got {array.dtype}")
    return array.astype("int64"), None


def _plain(labels: Any, what: str) -> numpy.ndarray:
    """Labels as an array of numbers, truth values or strings."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels
    elif isinstance(labels, list | tuple):
        labels = [x.item() if getattr(x, "shape", None) == () else x for x in labels]
    try:
        array = numpy.asarray(labels)
        if array.dtype.kind in "OT":  # of pandas, or numpy's newer strings
            items = array.ravel().tolist()
            if not all(isinstance(x, str | bytes | bool | int | float) for x in items) or (
                len({isinstance(x, str | bytes) for x in items}) > 1
            ):
                kinds = some(sorted({type(x).__name__ for x in items}))
                raise ValueError(f"dataset: expected {what} labels of one kind, numbers or strings, got {kinds}")
            array = numpy.array(items).reshape(array.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"dataset: {what} labels that are no array ({error})") from None
    return numpy.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _from_one_hot(rows: numpy.ndarray, what: str) -> numpy.ndarray:  # [N, K] -> [N]
    is_number = rows.dtype.kind in "biuf"
    if not (is_number and ((rows == 0) | (rows == 1)).all() and (rows != 0).sum(1).tolist() == len(rows) * [1]):
        raise ValueError(
            f"dataset: expected {what} labels [N], or one-hot rows with a single 1, got rows {list(rows.shape)} that "
            f"are not; several labels an image, or shares of classes, are no classes"
        )
    return rows.argmax(1)
