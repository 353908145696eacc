"""Real data sets, normalised and in memory: by name, or from a pair of torch data sets."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddfast.arguments import expect_whole

DIGITS_SIDE = 16
DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Preprocessing:
    """What was done to images in [0, 1] before anything else: per channel, (image − mean) / std."""

    mean: tuple[float, ...]  # [C]
    std: tuple[float, ...]  # [C]

    def apply(self, images: Tensor) -> Tensor:  # [N, C, H, W] in [0, 1] -> normalised
        """Normalise."""
        return (images - self._column(self.mean, images)) / self._column(self.std, images)

    def invert(self, images: Tensor) -> Tensor:  # [N, C, H, W] normalised -> in [0, 1], for viewing
        """Undo `apply`."""
        return images * self._column(self.std, images) + self._column(self.mean, images)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, -1, 1, 1)

    @classmethod
    def fitted(cls, images: Tensor) -> "Preprocessing":
        """The statistics of training images [N, C, H, W] in [0, 1]."""
        mean, std = images.double().mean((0, 2, 3)), images.double().std((0, 2, 3))
        if not (std > 0).all():
            raise ValueError(
                f"images: expected pixels that differ in every channel, got standard deviations {std.tolist()}"
            )
        return cls(tuple(mean.tolist()), tuple(std.tolist()))


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory, preprocessed."""

    name: str
    train_images: Tensor  # [N, C, H, W]
    train_labels: Tensor  # int64 [N]
    test_images: Tensor  # [M, C, H, W]
    test_labels: Tensor  # int64 [M]
    class_names: tuple[str, ...]  # [K]
    preprocessing: Preprocessing

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
            if not images.isfinite().all():
                raise ValueError(f"{self.name}: the {part} images hold values that are not finite")

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
        """A checksum of the preprocessed training data, for telling data sets apart."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels):
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def random_real(self, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """ipc random training images of every class, class by class: [K ipc, C, H, W] and int64 [K ipc]."""
        expect_whole(ipc=ipc)
        chosen = []
        for k in range(self.num_classes):
            of_class = (self.train_labels == k).nonzero()[:, 0]
            if len(of_class) < ipc:
                raise ValueError(
                    f"ipc: expected at most the {len(of_class)} training images of class "
                    f"{self.class_names[k]!r}, got {ipc}"
                )
            chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:ipc]])
        indices = torch.cat(chosen)
        return self.train_images[indices].clone(), self.train_labels[indices].clone()


def load_dataset(dataset) -> Dataset:
    """A Dataset from a name of DATASETS, a pair (train, test) of torch data sets, or a Dataset as it is.

    A pair yields (image, label) with images float [C, H, W] in [0, 1] and all of one size; they are normalised by the
    training set's mean and standard deviation. Errors: ValueError that lists the names, or says what does not fit.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, str):
        if dataset not in DATASETS:
            raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}, got {dataset!r}")
        return DATASETS[dataset]()
    if isinstance(dataset, tuple | list) and len(dataset) == 2:
        return _from_pair(*dataset)
    raise TypeError(f"dataset: expected a name or a pair of torch data sets, got {type(dataset).__name__}")


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998), 8×8 px resized to 16×16; 1 in 5 tests."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8] in [0, 1]
    images = interpolate(images, size=(DIGITS_SIDE, DIGITS_SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=DIGITS_TEST_SHARE, random_state=0, stratify=bunch.target
    )
    return _normalised(
        "digits", (images[train], labels[train]), (images[test], labels[test]), tuple(str(d) for d in range(10))
    )


def _from_pair(train, test) -> Dataset:
    def stack(part, what: str) -> tuple[Tensor, Tensor]:
        pairs = [part[i] for i in range(len(part))]
        if not pairs:
            raise ValueError(f"dataset: the {what} set is empty")
        shapes = {tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__ for image, _ in pairs}
        if len(shapes) > 1 or not isinstance(pairs[0][0], Tensor) or pairs[0][0].dim() != 3:
            raise ValueError(
                f"dataset: expected {what} images as tensors [C, H, W] of one size, got {sorted(map(str, shapes))}"
            )
        images = torch.stack([image for image, _ in pairs])
        if not images.is_floating_point():
            raise ValueError(f"dataset: expected {what} images in [0, 1] as floats, got {images.dtype}")
        if images.min() < 0 or images.max() > 1:
            span = f"{images.min():g} to {images.max():g}"
            raise ValueError(f"dataset: expected {what} images in [0, 1], got values from {span}")
        labels = torch.tensor([float(label) for _, label in pairs])
        if not labels.equal(labels.round()):
            raise ValueError(
                f"dataset: expected whole numbers as {what} labels, got {labels[labels != labels.round()][0]:g}"
            )
        return images.float(), labels.long()

    train, test = stack(train, "training"), stack(test, "test")
    num_classes = int(train[1].max()) + 1
    return _normalised("custom", train, test, tuple(str(k) for k in range(num_classes)))


def _normalised(name: str, train, test, class_names: tuple[str, ...]) -> Dataset:
    if not train[0].isfinite().all():
        raise ValueError(f"{name}: the training images hold values that are not finite")
    preprocessing = Preprocessing.fitted(train[0])
    return Dataset(
        name, preprocessing.apply(train[0]), train[1], preprocessing.apply(test[0]), test[1], class_names, preprocessing
    )


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits}
