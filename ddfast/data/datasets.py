"""Real data sets: by name, from a folder of images, or from a pair of torch data sets or tensors."""

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.arguments import expect_one_of, expect_whole
from ddfast.data.archives import set_of_release
from ddfast.data.batches import Batches
from ddfast.data.folders import folder_files
from ddfast.data.images import from_picture, resized
from ddfast.data.named import DATASETS, RawData, read_named, read_split
from ddfast.data.pixels import SIXTEEN_BITS, as_value_range
from ddfast.data.preprocessing import RESIZES, Preprocessing
from ddfast.data.summary import span, summary
from ddfast.data.zca import ZCA

log = logging.getLogger("ddfast")

MOST_HASHED = 2**30  # bytes of images that a fingerprint reads; of more, evenly spaced ones
SPELLINGS = {name.replace("-", ""): name for name in DATASETS}


@dataclass(frozen=True)
class Dataset:
    """A classification data set as it was read, and the preprocessing that its batches get."""

    name: str
    train_images: Tensor  # [N, C, H, W], uint8 of 0 to 255 or float in [0, 1]
    train_labels: Tensor  # int64 [N]
    test_images: Tensor  # [M, C, H, W]
    test_labels: Tensor  # int64 [M]
    class_names: tuple[str, ...]  # [K]
    preprocessing: Preprocessing
    # how it was read, as JSON has it: sources of both parts, notes, files that were skipped, the line that tells it all
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.dim() != 4 or len(images) == 0 or images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"{self.name}: expected {part} images [N, C, H, W] of one size, got {list(images.shape)}"
                )
            if len(labels) != len(images) or labels.dtype != torch.int64:
                raise ValueError(f"{self.name}: expected one int64 label per {part} image, got {list(labels.shape)}")
            if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{self.name}: expected {part} labels 0 to {self.num_classes - 1}, "
                    f"got {int(labels.min())} to {int(labels.max())}"
                )
            _check_values(images, f"{self.name}: the {part} images")
        if self.num_classes < 2:
            raise ValueError(f"{self.name}: expected at least two classes, got {self.num_classes}")
        counts = self.train_labels.bincount(minlength=self.num_classes).tolist()
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
        if empty:
            raise ValueError(f"{self.name}: no training images of class {', '.join(empty)}")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """C."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return tuple(self.train_images.shape[2:])

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What a network has to know of the data, as keyword arguments of ddfast.networks.create."""
        return {"channels": self.channels, "num_classes": self.num_classes, "image_size": self.image_size}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the training images and labels as they were read, for telling data sets apart."""
        return _fingerprint(self.train_images, self.train_labels)

    @cached_property
    def test_fingerprint(self) -> str:
        """That of the test images and labels."""
        return _fingerprint(self.test_images, self.test_labels)

    def train_batches(self, device: torch.device) -> Batches:
        """Preprocessed training images on a device."""
        return Batches(self.train_images, self.train_labels, self.preprocessing, device)

    def test_batches(self, device: torch.device) -> Batches:
        """Preprocessed test images on a device."""
        return Batches(self.test_images, self.test_labels, self.preprocessing, device)

    def whitened(self) -> "Dataset":
        """This data set with ZCA whitening, fitted on its training images, instead of its normalisation."""
        zca = ZCA.fitted(self.train_images, self.fingerprint)
        zeros, ones = (0.0,) * self.channels, (1.0,) * self.channels
        return replace(self, preprocessing=replace(self.preprocessing, mean=zeros, std=ones, zca=zca))

    def preprocessed_like(self, preprocessing: Preprocessing) -> "Dataset":
        """This data set with the preprocessing that a synthetic set was made with.

        Errors: ValueError for other channels, or a whitening that was fitted on other images.
        """
        if len(preprocessing.mean) != self.channels:
            raise ValueError(
                f"preprocessing: expected {self.channels} channels as in {self.name}, got {len(preprocessing.mean)}"
            )
        recorded, own = preprocessing.value_range or SIXTEEN_BITS, self.preprocessing.value_range
        if own is not None and tuple(own) != tuple(recorded):
            raise ValueError(
                f"value_range: {self.name} was read with values {span(*own)}, the set was made with {span(*recorded)}"
            )
        if preprocessing == self.preprocessing:
            return self  # with its fingerprints, which take time
        if preprocessing.zca is None:
            return replace(self, preprocessing=preprocessing)
        if preprocessing.zca.data != self.fingerprint:
            raise ValueError(
                f"preprocessing: the whitening was fitted on the training images {preprocessing.zca.data}, those of "
                f"{self.name} are {self.fingerprint}"
            )
        data = self.whitened()
        if not data.preprocessing.matches(preprocessing):
            raise ValueError(f"preprocessing: the whitening fitted anew on {self.name} differs from the recorded one")
        return data

    def check_ipc(self, ipc: int) -> None:
        """ValueError where a class has fewer than ipc training images."""
        expect_whole(ipc=ipc)
        counts = self.train_labels.bincount(minlength=self.num_classes)
        fewest = int(counts.argmin())
        if counts[fewest] < ipc:
            raise ValueError(
                f"ipc: expected at most the {int(counts[fewest])} training images of class "
                f"{self.class_names[fewest]!r}, got {ipc}"
            )

    def by_class(self, generator: torch.Generator | None = None) -> list[Tensor]:  # K tensors int64
        """Indices of the training images of each class, in an order drawn from the generator, or as they come."""
        of_classes = [(self.train_labels == k).nonzero()[:, 0] for k in range(self.num_classes)]
        if generator is None:
            return of_classes
        return [indices[torch.randperm(len(indices), generator=generator)] for indices in of_classes]

    def random_real(self, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """ipc random training images of every class, class by class, preprocessed: [K ipc, C, H, W], int64 [K ipc]."""
        self.check_ipc(ipc)
        indices = torch.cat([of_class[:ipc] for of_class in self.by_class(generator)])
        return self.preprocessing.apply(self.train_images[indices]), self.train_labels[indices].clone()


def load_dataset(
    dataset,
    *,
    root: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    resize: str = "stretch",
    zca: bool = False,
    download: bool = False,
    test_folder: str | None = None,
    value_range: tuple[float, float] | str | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """A Dataset from a name, a folder, a pair (train, test), or a Dataset as it is.

    Args:
        dataset: a name of DATASETS; the path of a folder of pictures (docs/data.md: train/<class>/… and test/ or val/,
            or <class>/…), which a Path and a string with a slash always are; a pair of torch data
            sets that yield (image, label); a pair of (images, labels) tensors or arrays. Images of a pair are uint8,
            floats in [0, 1], or PIL images.
        root: where the files of named data sets are; None for DDFAST_DATA, else a folder in the user's cache.
        image_size: side or (H, W) in pixels; None for their own, 128 for the ImageNet subsets.
        resize: how images get there: stretch, or crop (short side resized, middle kept).
        zca: whiten instead of normalising.
        download: fetch a named data set that is not there.
        test_folder: of a folder of pictures, the folder in it to test on; None for test/, else val/, else a part of
            the training pictures that is drawn.
        value_range: which values of pictures are black and white, such as (0, 4095); None or "auto" for what fits all
            pictures of more than 8 bits.
        skip_unreadable: leave out pictures that cannot be read, instead of refusing them all.

    Named sets are normalised with the field's statistics, others with those of their training images. A line in the log
    tells what was read.
    Errors: ValueError, TypeError or FileNotFoundError saying what was expected and what came.
    """
    expect_one_of("resize", resize, RESIZES)
    size = _image_size(image_size)
    if isinstance(dataset, Dataset):
        if size is not None and size != dataset.image_size:
            raise ValueError(f"image_size: expected that of the data set, {dataset.image_size}, got {size}")
        return dataset.whitened() if zca and dataset.preprocessing.zca is None else dataset
    name, pictures = known_name(dataset), {"value_range": as_value_range(value_range)}
    for option, value in {"test_folder": test_folder, "value_range": pictures["value_range"]}.items():
        if value is not None and not is_folder(dataset):
            raise ValueError(f"{option}: expected with a folder of pictures only, got {value!r}")
    if name:
        raw = read_named(name, root, size, resize, download, skip_unreadable)
        name = raw.name
        if Path(str(dataset)).is_dir():
            raw.notes.append(f"the folder {dataset}/ here is another: ./{dataset} reads it")
    elif is_folder(dataset):
        folder = _expect_folder(dataset)
        raw = read_split(folder_files(folder, test_folder), size, resize, skip_unreadable=skip_unreadable, **pictures)
        name = folder.resolve().name or "folder"
        name = f"{name}/" if _is_taken(name) else name  # no set that is known by name, whose settings would be taken
    elif isinstance(dataset, tuple | list) and len(dataset) == 2:
        raw, name = _from_pair(*dataset, size, resize), "custom"
    else:
        raise TypeError(
            f"dataset: expected a name, an image folder or a pair of data sets, got {type(dataset).__name__}"
        )
    _check_values(raw.train_images, f"{name}: the training images")  # before their statistics are taken
    if raw.statistics is not None:
        preprocessing = Preprocessing(*raw.statistics, resize=resize, value_range=raw.value_range)
    else:
        preprocessing = replace(Preprocessing.fitted(raw.train_images, resize), value_range=raw.value_range)
    about = {"sources": list(raw.sources), "notes": raw.notes, "skipped": raw.skipped}
    parts = raw.train_images, raw.train_labels, raw.test_images, raw.test_labels
    data = Dataset(name, *parts, raw.class_names, preprocessing, about)
    data = replace(data, about={"line": summary(data), **about})
    log.info("%s", data.about["line"])
    return data.whitened() if zca else data


def known_name(dataset: Any) -> str | None:
    """The name in DATASETS that is meant, in any case and with any of - _ and space in it; None where it is none.

    A path is none: a Path, or a string with a slash. Errors: ValueError where another spelling of a name is that of a
    folder, too.
    """
    if not isinstance(dataset, str) or os.sep in dataset:
        return None
    name = _spelled(dataset)
    if name and dataset != name and Path(dataset).is_dir():
        raise ValueError(f"dataset: {dataset!r} may be the data set {name} or the folder; write {name} or ./{dataset}")
    return name


def _spelled(name: str) -> str | None:
    """The name in DATASETS that has these letters and digits; None where none has."""
    return SPELLINGS.get(re.sub(r"[-_ ]", "", name.lower()))


def _is_taken(name: str) -> bool:
    """Whether data of a user's own need another name, for a set or a release of one has this."""
    return bool(_spelled(name) or set_of_release(name))


def is_folder(dataset: Any) -> bool:
    """Whether it names a folder, rather than a data set that is known by name."""
    return isinstance(dataset, str | Path) and known_name(dataset) is None


def _expect_folder(dataset: str | Path) -> Path:
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"dataset: expected a folder of pictures, got the file {dataset}; unpack an archive first")
    if isinstance(dataset, Path) or os.sep in dataset:
        raise FileNotFoundError(f"dataset: expected a folder of pictures, there is no {dataset}")
    near = difflib.get_close_matches(dataset.lower(), DATASETS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}, or an image folder, got {dataset!r}{hint}")


def _image_size(image_size) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, tuple | list) or len(sides) != 2:
        raise ValueError(f"image_size: expected a side or (H, W) in pixels, got {image_size!r}")
    for side in sides:
        expect_whole(image_size=side)
    return tuple(sides)


def _check_values(images: Tensor, what: str) -> None:
    """Refuse floats that are not finite, or not in [0, 1]."""
    if images.dtype == torch.uint8:
        return
    if not images.isfinite().all():
        raise ValueError(f"{what} hold values that are not finite")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(f"{what}: expected values in [0, 1], got {images.min():g} to {images.max():g}")


def _from_pair(train, test, size: tuple[int, int] | None, resize: str) -> RawData:
    classes = getattr(train, "classes", None)
    train, test = _stack(train, "training", size, resize), _stack(test, "test", size, resize)
    count = int(train[1].max()) + 1
    named = isinstance(classes, list | tuple) and len(classes) >= count
    names = tuple(map(str, classes)) if named else tuple(str(k) for k in range(count))
    return RawData(*train, *test, names)


def _stack(part, what: str, size: tuple[int, int] | None, resize: str) -> tuple[Tensor, Tensor]:
    """The images [N, C, H, W] and labels int64 [N] of one half of a pair."""
    is_arrays = isinstance(part, tuple | list) and len(part) == 2 and all(hasattr(x, "ndim") for x in part)
    if is_arrays:
        images, labels = torch.as_tensor(part[0]), torch.as_tensor(part[1]).flatten().double()
        if images.dim() == 3:
            images = images.unsqueeze(1)
        if images.dim() == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            raise ValueError(f"dataset: expected {what} images [N, C, H, W], got {list(images.shape)}: permute them")
        if images.dim() != 4 or len(images) != len(labels):
            raise ValueError(
                f"dataset: expected {what} images [N, C, H, W] and as many labels, got {list(images.shape)} and "
                f"{len(labels)}"
            )
        images = resized(_checked_type(images, what), size, resize)
    else:
        tensors, values = [], []
        for n in range(len(part)):
            item = part[n]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise ValueError(f"dataset: expected pairs (image, label) in the {what} set, got {type(item).__name__}")
            tensors.append(_as_tensor(item[0], what, size, resize))
            values.append(float(item[1]))
        if not tensors:
            raise ValueError(f"dataset: the {what} set is empty")
        channels = max(len(image) for image in tensors)
        if hasattr(part[0][0], "convert"):  # pictures, some of them grey
            tensors = [image.expand(channels, -1, -1) for image in tensors]
        shapes = {tuple(image.shape) for image in tensors}
        if len(shapes) > 1:
            raise ValueError(
                f"dataset: expected {what} images as tensors [C, H, W] of one size, "
                f"got {sorted(map(str, shapes))[:3]}; image_size resizes them"
            )
        images, labels = torch.stack(tensors), torch.tensor(values)
    if not labels.equal(labels.round()):
        raise ValueError(
            f"dataset: expected whole numbers as {what} labels, got {labels[labels != labels.round()][0]:g}"
        )
    return images, labels.long()


def _as_tensor(image, what: str, size: tuple[int, int] | None, resize: str) -> Tensor:  # [C, H, W]
    if hasattr(image, "convert"):  # a PIL image
        image = from_picture(image, 1 if image.mode[0] in "1LI" else 3)
    if not isinstance(image, Tensor) or image.dim() != 3:
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"dataset: expected {what} images as tensors [C, H, W], or as PIL images, got {got}")
    return resized(_checked_type(image, what).unsqueeze(0), size, resize)[0]


def _checked_type(images: Tensor, what: str) -> Tensor:
    images = images.detach().cpu()
    if images.is_floating_point():
        return images.float()
    if images.dtype != torch.uint8:
        raise ValueError(f"dataset: expected {what} images as floats in [0, 1] or uint8, got {images.dtype}")
    return images


def _fingerprint(images: Tensor, labels: Tensor) -> str:  # [N, C, H, W], int64 [N]
    digest = hashlib.sha256()
    shape, bytes_of_all = tuple(images.shape), images.numel() * images.element_size()
    for tensor in (images[:: -(-bytes_of_all // MOST_HASHED)], labels):
        digest.update(repr((shape, str(tensor.dtype))).encode())
        for part in tensor.split(4096):
            digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:16]
