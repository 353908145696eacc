"""Data sets that yield their images one by one or in batches: torch Datasets, DataLoaders, Hugging Face data sets."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, SequentialSampler, Subset, TensorDataset

from ddfast.data.arrays import Images, Range, from_array, layout_of
from ddfast.data.images import default_size, resized
from ddfast.data.pixels import BYTE, FLOAT, INTEGER, picture_header, picture_pixels

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "picture", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "targets", "class", "y")


@dataclass(frozen=True)
class Part:
    """The training or the test set as it was read."""

    images: Images
    labels: Any  # N of them, of any kind
    names: Sequence[str] | None = None  # of the labels 0, 1, …
    notes: list[str] = field(default_factory=list)


def is_items(source: Any) -> bool:
    """Whether it is a data set that `read_items` may read."""
    if isinstance(source, str | bytes | Mapping | Tensor) or hasattr(source, "ndim"):
        return False
    is_sequence = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return is_sequence or isinstance(source, DataLoader) or isinstance(source, Iterable)


def read_items(
    source: Any, what: str, layout: str | None = None, size: tuple[int, int] | None = None, resize: str = "stretch"
) -> Part:
    """Read a data set once, from its first item to its last.

    Items are pairs (image, label) or mappings with an image and a label column; a DataLoader yields batches of them.
    What a loader yields in a random order is put into one that depends on the images alone.

    Errors: ValueError for items that are something else, or images of several sizes where no size is asked for.
    """
    names, notes = class_names_of(source), []
    if type(source) is TensorDataset and len(source.tensors) == 2:
        images, labels = source.tensors
        return Part(from_array(images, what, layout, size, resize), labels, names)
    images, labels = [], []
    for image, label in _pairs(source, what):
        if _is_picture(image):
            channels = 1 if picture_header(image).is_grey else 3
            images.append((picture_pixels(image, channels)[0], True))
        else:
            image = image.detach().cpu() if isinstance(image, Tensor) else image
            if not hasattr(image, "ndim") or image.ndim not in (2, 3):
                got = list(image.shape) if hasattr(image, "shape") else type(image).__name__
                raise ValueError(
                    f"dataset: expected {what} images as tensors or arrays [C, H, W], [H, W, C] or [H, W], or as PIL "
                    f"images, got {got}"
                )
            images.append((image, False))
        labels.append(label)
    if not images:
        raise ValueError(f"dataset: the {what} set is empty")
    tensors, note = _of_one_size(images, what, layout, size, resize)
    notes += [note] if note else []
    labels = [label.item() if getattr(label, "shape", None) == () else label for label in labels]
    labels = [label.tolist() if hasattr(label, "tolist") else label for label in labels]
    if isinstance(source, DataLoader):
        if source.drop_last:
            notes.append(f"the {what} loader drops its last batch (drop_last)")
        if not isinstance(source.dataset, IterableDataset) and not isinstance(source.sampler, SequentialSampler):
            order = _order_of(tensors.tensor, labels)
            labels = [labels[n] for n in order]
            tensors = Images(tensors.tensor[order], tensors.kind, tensors.low, tensors.high, tensors.are_whole)
    return Part(tensors, labels, names, notes)


def class_names_of(source: Any) -> Sequence[str] | None:
    """The names that a data set lists for its labels 0, 1, …; None where it lists none."""
    while isinstance(source, Subset | DataLoader):
        source = source.dataset
    if isinstance(source, ConcatDataset):
        found = [class_names_of(part) for part in source.datasets]
        return found[0] if all(names == found[0] for names in found) else None
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        names = getattr(features.get(_column(features, LABEL_COLUMNS)), "names", None)
    else:
        names = getattr(source, "classes", None)
    if isinstance(names, list | tuple) and len(names) > 1 and len({str(name) for name in names}) == len(names):
        return [str(name) for name in names]
    return None


def _pairs(source: Any, what: str) -> Iterator[tuple[Any, Any]]:
    """The images and labels of a data set, one by one."""
    if not isinstance(source, DataLoader):
        for item in _each(source):
            yield _pair(item, what, source)
        return
    for batch in _each(source):
        images, labels = _pair(batch, f"{what} batches", source)
        if source.batch_size is None and source.batch_sampler is None:
            yield images, labels
            continue
        if len(images) != len(labels):
            raise ValueError(f"dataset: a {what} batch has {len(images)} images and {len(labels)} labels")
        yield from zip(images, labels, strict=True)


def _each(source: Any) -> Iterator[Any]:
    """All items; the global random state, which loaders draw from, is as it was after it."""
    with torch.random.fork_rng(devices=[]):
        if isinstance(source, Iterable) and (isinstance(source, DataLoader) or not hasattr(source, "__len__")):
            yield from source
        else:
            for n in range(len(source)):
                yield source[n]


def _pair(item: Any, what: str, source: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        columns = getattr(source, "features", None) or item
        image, label = _column(columns, IMAGE_COLUMNS), _column(columns, LABEL_COLUMNS)
        if image not in item:  # a transform may have put another in its place
            image = _column(item, IMAGE_COLUMNS)
        if image not in item or label not in item:
            raise ValueError(
                f"dataset: expected {what} columns for images ({', '.join(IMAGE_COLUMNS)}) and labels "
                f"({', '.join(LABEL_COLUMNS)}), got {', '.join(map(str, item))}; rename yours"
            )
        return item[image], item[label]
    if not isinstance(item, tuple | list) or len(item) != 2:
        got = f"{len(item)} things" if isinstance(item, tuple | list) else type(item).__name__
        raise ValueError(f"dataset: expected pairs (image, label) in the {what} set, got {got}")
    return item[0], item[1]


def _column(columns: Any, known: Sequence[str]) -> str | None:
    by_name = {str(column).lower(): column for column in columns}
    return next((by_name[name] for name in known if name in by_name), None)


def _is_picture(image: Any) -> bool:
    return hasattr(image, "convert") and hasattr(image, "mode")


def _of_one_size(
    images: list[tuple[Any, bool]],  # and whether each is a picture [C, H, W]
    what: str,
    layout: str | None,
    size: tuple[int, int] | None,
    resize: str,
) -> tuple[Images, str | None]:
    """All images as one tensor, and what was done to have it, in words."""
    shapes = [tuple(image.shape) for image, _ in images]
    are_pictures = any(is_picture for _, is_picture in images)
    if len(set(shapes)) == 1 and not are_pictures:
        some = images[0][0]
        stacked = torch.stack([i for i, _ in images]) if isinstance(some, Tensor) else _stack(images)
        return from_array(stacked, what, layout, size, resize), None
    arrays = [shape for shape, (_, is_picture) in zip(shapes, images, strict=True) if not is_picture]
    found = layout_of(arrays, what, layout) if arrays else "NCHW"
    singles = [
        from_array(image[None], what, None if image.ndim == 2 else "NCHW" if is_picture else found)
        for image, is_picture in images
    ]
    sizes = {tuple(single.tensor.shape[2:]) for single in singles}
    note = None
    if size is None:
        size = default_size([tuple(single.tensor.shape[2:]) for single in singles])
        if sizes != {size}:
            words = "size" if len(sizes) == 1 else "sizes"
            note = f"{what} images of {len(sizes)} {words} became {size[0]} × {size[1]} px (image_size says otherwise)"
    channels = {single.tensor.shape[1] for single in singles}
    if len(channels) > 1 and channels != {1, 3}:
        raise ValueError(f"dataset: expected {what} images of one number of channels, got {sorted(channels)}")
    kinds = {single.kind for single in singles}
    kind = kinds.pop() if len(kinds) == 1 else FLOAT
    dtype = torch.uint8 if kind == BYTE else torch.float32
    tensor, range_of = torch.empty(len(singles), max(channels), *size, dtype=dtype), Range()
    for n, single in enumerate(singles):
        image = single.tensor
        if kind == FLOAT and single.kind == BYTE:  # of pictures, deeper ones are 0 to 1 already
            image = image.float() / 255
        if kind == FLOAT and single.kind == INTEGER:
            raise ValueError(f"dataset: expected {what} images of one type, got integers and floats")
        if kind != BYTE:
            range_of.add(image, what)
        tensor[n] = resized(image, size, resize)[0].expand(max(channels), -1, -1)
    return range_of.of(tensor, kind), note


def _stack(images: list[tuple[Any, bool]]) -> Any:
    import numpy

    return numpy.stack([numpy.asarray(image) for image, _ in images])


def _order_of(images: Tensor, labels: Sequence[Any]) -> list[int]:  # [N, C, H, W]
    """An order that depends on the images and labels, not on that in which they came."""

    def key(n: int) -> bytes:
        return hashlib.sha256(images[n].contiguous().numpy().tobytes() + repr(labels[n]).encode()).digest()

    return sorted(range(len(images)), key=key)
