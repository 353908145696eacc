"""A real data set as it was read, and what a synthetic set or a network takes of it."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddfast.data.batches import Batches
from ddfast.data.ipc import counts_of, images_per_class
from ddfast.data.pixels import SIXTEEN_BITS
from ddfast.data.preprocessing import Preprocessing
from ddfast.data.split import draw_share
from ddfast.data.subsets import expect_classes, labels_among
from ddfast.data.summary import span
from ddfast.data.zca import ZCA

log = logging.getLogger("ddfast")

SOME_CLASSES = re.compile(r", \d+ classes$")  # of the name that `of_classes` gives
MOST_HASHED = 2**30  # bytes of images that a fingerprint reads; of more, evenly spaced ones


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
    held_images: Tensor | None = None  # [L, C, H, W], held out of the training images
    held_labels: Tensor | None = None  # int64 [L]

    def __post_init__(self) -> None:
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
            check_values(images, f"{self.name}: the {part} images")
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

    def held_batches(self, device: torch.device) -> Batches:
        """Preprocessed images that are held out, on a device."""
        return Batches(self.held_images, self.held_labels, self.preprocessing, device)

    def holding_out(self, share: float) -> "Dataset":
        """This data set without a share of every class's training images, which are held out; the same ones every time.

        Errors: ValueError where no class has two images, some are held out already, or a whitening was fitted on all.
        """
        if self.held_images is not None or self.preprocessing.zca is not None:
            has = "is whitened" if self.held_images is None else "holds out images already"
            raise ValueError(f"hold_out: expected data as they were read; {self.name} {has}")
        rest, held = draw_share(self.train_labels, share, (0, "hold out"))
        if not len(held):
            raise ValueError(f"hold_out: expected a class with two training images in {self.name}")
        parts = self.train_images[rest], self.train_labels[rest]
        held_parts = self.train_images[held], self.train_labels[held]
        log.info("hold_out: %d of %d training images are held out", len(held), len(self.train_labels))
        return replace(
            self, train_images=parts[0], train_labels=parts[1], held_images=held_parts[0], held_labels=held_parts[1]
        )

    @property
    def origin(self) -> str:
        """The name of the data set that these are some classes of, or all."""
        return SOME_CLASSES.sub("", self.name)

    def of_classes(self, classes: Sequence[int], among: Tensor | None = None) -> "Dataset":
        """The images of some classes, which become classes 0, 1, … in the order that they are given in; preprocessed as
        all are. `among`: indices of the training images that are kept, int64; None for all.

        Errors: ValueError for classes that are not there, given twice, or fewer than two.
        """
        classes = expect_classes(classes, self.num_classes)
        parts: dict[str, Tensor] = {}
        for part in ("train", "test", "held"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if part == "train" and among is not None:
                images, labels = images[among], labels[among]
            if images is not None:
                chosen, new = labels_among(labels, classes)
                parts |= {f"{part}_images": images[chosen], f"{part}_labels": new}
        names = tuple(self.class_names[k] for k in classes)
        name = self.name if names == self.class_names else f"{self.origin}, {len(classes)} classes"
        return replace(self, name=name, class_names=names, **parts)

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
            kept = preprocessing.zca.kept(self.train_images[0].numel())
            if kept is None:
                raise ValueError(
                    f"preprocessing: the whitening was fitted on the training images {preprocessing.zca.data}, those "
                    f"of {self.name} are {self.fingerprint}; that of the former is not at {preprocessing.zca.file}"
                )
            return replace(self, preprocessing=replace(preprocessing, zca=kept))
        data = self.whitened()
        if not data.preprocessing.matches(preprocessing):
            raise ValueError(f"preprocessing: the whitening fitted again on {self.name} differs from the recorded one")
        return data

    @cached_property
    def class_sizes(self) -> list[int]:  # [K]
        """How many training images each class has."""
        return self.train_labels.bincount(minlength=self.num_classes).tolist()

    def check_ipc(self, ipc: int | Sequence[int]) -> None:
        """ValueError where a class has fewer than its `ipc` training images."""
        wanted = counts_of(images_per_class(ipc, self.class_names, least=0), self.num_classes)
        lacking = [k for k, size in enumerate(self.class_sizes) if size < wanted[k]]
        if lacking:
            fewest = min(lacking, key=lambda k: self.class_sizes[k] - wanted[k])
            raise ValueError(
                f"ipc: expected at most the {self.class_sizes[fewest]} training images of class "
                f"{self.class_names[fewest]!r}, got {wanted[fewest]}"
            )

    def available(self, ipc: int | Sequence[int]) -> int | list[int]:
        """`ipc` of each class, or all training images of a class that has fewer."""
        wanted = counts_of(ipc, self.num_classes)
        return images_per_class(list(map(min, wanted, self.class_sizes)), self.class_names, least=0)

    def by_class(self, generator: torch.Generator | None = None) -> list[Tensor]:  # K tensors int64
        """Indices of the training images of each class, in an order drawn from the generator, or as they come."""
        of_classes = [(self.train_labels == k).nonzero()[:, 0] for k in range(self.num_classes)]
        if generator is None:
            return of_classes
        return [indices[torch.randperm(len(indices), generator=generator)] for indices in of_classes]

    def random_real(
        self,
        ipc: int | Sequence[int],
        generator: torch.Generator,
        left_out: Tensor | None = None,  # int64, training images that are not drawn
    ) -> tuple[Tensor, Tensor]:
        """ipc random training images of every class, class by class, preprocessed: [I, C, H, W], int64 [I].

        `ipc`: a number, or one per class, [K]. ValueError where a class has fewer; where some are left out, all others
        of such a class are taken.
        """
        of_classes = self.by_class(generator)
        if left_out is None:
            self.check_ipc(ipc)
        else:
            of_classes = [indices[~torch.isin(indices, left_out)] for indices in of_classes]
        counts = counts_of(ipc, self.num_classes)
        indices = torch.cat([of_class[:count] for of_class, count in zip(of_classes, counts, strict=True)])
        return self.preprocessing.apply(self.train_images[indices]), self.train_labels[indices].clone()


def check_values(images: Tensor, what: str) -> None:
    """Refuse floats that are not finite, or not in [0, 1]."""
    if images.dtype == torch.uint8:
        return
    if not images.isfinite().all():
        raise ValueError(f"{what} hold values that are not finite")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(f"{what}: expected values in [0, 1], got {images.min():g} to {images.max():g}")


def _fingerprint(images: Tensor, labels: Tensor) -> str:  # [N, C, H, W], int64 [N]
    digest = hashlib.sha256()
    shape, bytes_of_all = tuple(images.shape), images.numel() * images.element_size()
    for tensor in (images[:: -(-bytes_of_all // MOST_HASHED)], labels):
        digest.update(repr((shape, str(tensor.dtype))).encode())
        for part in tensor.split(4096):
            digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:16]
