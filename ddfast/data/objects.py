"""Data given as objects or array files: a training and a test set, or one set of which a test part is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddfast.data.array_files import by_part, is_array_file, read_array_file
from ddfast.data.arrays import from_array, scaled
from ddfast.data.items import Part, is_items, read_items
from ddfast.data.labels import as_classes, some
from ddfast.data.named import RawData
from ddfast.data.split import split_words, stratified_split

TRAIN, TEST = ("train", "training"), ("test", "testing", "validation", "valid", "val")  # in the order of preference
EXPECTED = (
    "a name, an image folder, an .npz, .npy or .pt file, a pair (train, test) of data sets, DataLoaders or (images, "
    "labels) arrays, one of these alone, or a mapping with train and test"
)


def read_object(
    dataset: Any,
    size: tuple[int, int] | None = None,
    resize: str = "stretch",
    layout: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> RawData:
    """Read data given as an object, or as a file of arrays. Errors: ValueError or TypeError for what cannot be read, or
    in two ways."""
    if is_array_file(dataset):
        dataset = read_array_file(dataset)
    elif _is_saved_to_disk(dataset):
        dataset = _load_from_disk(dataset)
    halves, names, notes = _halves(dataset)
    if halves is None:
        raise TypeError(f"dataset: expected {EXPECTED}; got {_words(dataset)}")
    train = _read(halves[0], "training", layout, size, resize)
    test = None if halves[1] is None else _read(halves[1], "test", layout, size, resize)
    parts = [train] if test is None else [train, test]
    for part in parts:
        notes = [*notes, *part.notes]
    names = next((listed for listed in (names, *(part.names for part in parts)) if listed is not None), None)
    classes = as_classes(train.labels, None if test is None else test.labels, names)
    for part, labels, what in zip(parts, (classes.train, classes.test), ("training", "test"), strict=False):
        if len(part.images.tensor) != len(labels):
            raise ValueError(
                f"dataset: expected {what} images [N, C, H, W] and as many labels, got "
                f"{list(part.images.tensor.shape)} and {len(labels)}"
            )
    images, found, more = scaled([part.images for part in parts], value_range)
    shapes = {tuple(tensor.shape[1:]) for tensor in images}
    if len(shapes) > 1:
        first, second = (list(tensor.shape[1:]) for tensor in images)
        advice = "; image_size resizes both" if first[0] == second[0] else ""
        raise ValueError(f"dataset: expected training and test images of one size, got {first} and {second}{advice}")
    notes = [*notes, *classes.notes, *more]
    if test is not None:
        return RawData(images[0], classes.train, images[1], classes.test, classes.names, value_range=found, notes=notes)
    kept, drawn = stratified_split(classes.train, classes.names)
    notes.append(split_words(len(kept), len(drawn)))
    train, test = ((images[0][chosen], classes.train[chosen]) for chosen in (kept, drawn))
    return RawData(train[0], train[1], test[0], test[1], classes.names, value_range=found, notes=notes)


def _halves(dataset: Any) -> tuple[tuple[Any, Any] | None, Sequence[str] | None, list[str]]:
    """The training set, the test set or None, the names of classes where they are listed, and notes; None for what is
    no data set."""
    if isinstance(dataset, Mapping):
        return _halves_of_mapping(dataset)
    if _is_pair_of_arrays(dataset):
        return (dataset, None), None, []
    if isinstance(dataset, tuple | list) and len(dataset) == 4 and all(_is_array(part) for part in dataset):
        a, b, c, d = dataset
        if b.ndim >= 3 and c.ndim < 3:  # as scikit-learn's train_test_split returns them
            b, c = c, b
        return ((a, b), (c, d)), None, []
    if isinstance(dataset, tuple | list) and len(dataset) == 2 and not _is_item(dataset[0]):
        return tuple(dataset), None, []
    return ((dataset, None) if is_items(dataset) else None), None, []


def _halves_of_mapping(dataset: Mapping) -> tuple[tuple[Any, Any] | None, Sequence[str] | None, list[str]]:
    by_name = {str(name).lower(): name for name in dataset}
    trains, tests = ([name for name in names if name in by_name] for names in (TRAIN, TEST))
    if trains or tests:
        if not trains:
            raise ValueError(f"dataset: expected a part called train, got {some(dataset)}")
        parts = {name: dataset[by_name[name]] for name in tests}
        usable = [name for name in tests if not _is_without_labels(parts[name])]
        notes = [f"test on {usable[0]}" if usable[0] != "test" else ""] if usable else []
        left_out = [by_name[name] for name in by_name if name not in (trains[0], *usable[:1])]
        notes += [f"left out: {some(left_out)}" if left_out else ""]
        return (dataset[by_name[trains[0]]], parts[usable[0]] if usable else None), None, [n for n in notes if n]
    arrays = by_part(dataset)
    return (arrays.train, arrays.test), arrays.class_names, arrays.notes


def _is_without_labels(part: Any) -> bool:
    """Whether it is a published test set whose labels are held back: all −1."""
    features, names = getattr(part, "features", None), getattr(part, "column_names", None)
    if features is None or names is None or not hasattr(part, "with_format"):
        return False
    column = next((name for name in names if getattr(features[name], "names", None)), None)
    return column is not None and len(part) > 0 and set(part[column]) == {-1}


def _read(half: Any, what: str, layout: str | None, size: tuple[int, int] | None, resize: str) -> Part:
    if isinstance(half, Mapping):
        arrays = by_part({str(name): value for name, value in half.items()})
        half = arrays.train
    if _is_pair_of_arrays(half):
        images, labels = half
        return Part(from_array(images, what, layout, size, resize), labels)
    if not is_items(half):
        raise TypeError(f"dataset: expected {EXPECTED}; got {_words(half)} as the {what} set")
    return read_items(half, what, layout, size, resize)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "ndim") and hasattr(value, "dtype"))


def _is_pair_of_arrays(value: Any) -> bool:
    """Whether it is (images, labels): arrays, or labels as a list."""
    if not isinstance(value, tuple | list) or len(value) != 2 or not _is_array(value[0]) or value[0].ndim < 2:
        return False
    labels = value[1]
    return (_is_array(labels) and labels.ndim >= 1) or (
        isinstance(labels, tuple | list) and len(labels) == len(value[0]) and not any(map(_is_item, labels))
    )


def _is_item(value: Any) -> bool:
    """Whether it is (image, label), one item of a data set."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    label = value[1]
    return isinstance(label, int | float | str | bytes) or getattr(label, "shape", None) == ()


def _words(value: Any) -> str:
    """What something is, for an error."""
    if isinstance(value, tuple | list):
        return f"{len(value)} things: {some(type(part).__name__ for part in value)}" if len(value) else "nothing"
    return type(value).__name__


def is_data_file(dataset: Any) -> bool:
    """Whether it is the path of a file of arrays, or of a folder that Hugging Face's save_to_disk wrote."""
    return is_array_file(dataset) or _is_saved_to_disk(dataset)


def _is_saved_to_disk(dataset: Any) -> bool:
    if not isinstance(dataset, str | Path):
        return False
    path = Path(dataset)
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def _load_from_disk(path: str | Path) -> Any:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ValueError(
            f"dataset: {path} is a Hugging Face data set, which needs `pip install datasets` ({error})"
        ) from None
    return load_from_disk(str(path))
