"""Whether experts of other code fit the data and the preprocessing that they are said to have been trained with."""

import logging
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks
from ddfast.data import Dataset, Preprocessing, take_statistics
from ddfast.data.images import to_unit
from ddfast.data.zca import EPS
from ddfast.experts import TrajectoryStore
from ddfast.runtime import seeds
from ddfast.runtime.devices import resolve_device

log = logging.getLogger("ddfast")

IMAGES = 1000  # test images that are looked at
BATCH = 16  # a conversion needs little memory, and so does its check
LARGEST_WHITENED = 3 * 32 * 32  # values of an image: larger ones take minutes to whiten, and are seldom whitened
FITTED = 5000  # training images that a whitening for this check is fitted on
LEAST = 2.0  # points of accuracy that count as a difference, where the test images are many


def check_experts(store: TrajectoryStore, dataset: Dataset, source: str) -> dict[str, Any]:
    """Test accuracies of the first and the last expert, in percent, on at most 1000 test images, which are logged.

    Beside the last snapshot's in the store's preprocessing: that of the snapshot in the middle, and the last one's in
    the other preprocessing, whitened or normalised (not for images of more than 3072 values that were not whitened;
    the whitening is fitted on 5000 training images). Warned of: experts that do better in the other preprocessing,
    that are at chance, or that end much worse than they were in the middle.
    """
    numbers = sorted({0, store.num_experts - 1})
    measure = _measure(store, dataset)
    whitened = dataset.preprocessing.zca is not None
    other = _other(dataset)
    middle = store.epochs // 2
    last = [measure(number, store.epochs, dataset.preprocessing.apply) for number in numbers]
    found: dict[str, Any] = {
        "experts": numbers,
        "test_images": min(IMAGES, len(dataset.test_images)),
        "accuracy": last,
        "accuracy_in_the_middle": [measure(number, middle, dataset.preprocessing.apply) for number in numbers],
    }
    if other is not None:
        found["accuracy_unwhitened" if whitened else "accuracy_whitened"] = [
            measure(number, store.epochs, other) for number in numbers
        ]
    _tell(found, whitened, middle, dataset.num_classes, source)
    return found


def _tell(found: dict[str, Any], whitened: bool, middle: int, classes: int, source: str) -> None:
    words, opposite = ("with", "without")[:: 1 if whitened else -1]
    other = found.get("accuracy_unwhitened" if whitened else "accuracy_whitened")
    last, before = found["accuracy"], found["accuracy_in_the_middle"]
    mean, count = _mean(last), found["test_images"]
    margin = max(LEAST, 3 * _deviation(mean, count))
    numbers = " and ".join(str(number) for number in found["experts"])
    beside = "" if other is None else f", {_mean(other):.1f}% {opposite}"
    sentence = f"{source}: test accuracy of expert {numbers}: {mean:.1f}% {words} whitening{beside}"
    log.info("%s (%d test images)", sentence, count)
    if other is not None and _mean(other) > mean + margin:
        flag = "--no-zca" if whitened else "--zca"
        log.warning("%s: it seems to be made %s whitening; convert it again with %s", sentence, opposite, flag)
    elif mean <= 100 / classes + 3 * _deviation(100 / classes, count):
        log.warning(
            "%s: chance for %d classes: untrained experts, or another preprocessing, order of classes or network",
            sentence,
            classes,
        )
    for number, late, early in zip(found["experts"], last, before, strict=True):
        if late < early - max(LEAST, 3 * _deviation(early, count)):
            log.warning(
                "%s: expert %d is worse at its end (%.1f%%) than after epoch %d (%.1f%%): its training diverged",
                source,
                number,
                late,
                middle,
                early,
            )


def _measure(store: TrajectoryStore, dataset: Dataset) -> Callable[[int, int, Callable[[Tensor], Tensor]], float]:
    """What gives the accuracy of an expert after an epoch, its images preprocessed by a function."""
    device, network = resolve_device(None), store.settings["network"]
    net = networks.create(network, generator=seeds.generator(0), **dataset.network_arguments).to(device)
    order = torch.randperm(len(dataset.test_images), generator=seeds.generator(0, "check of experts"))[:IMAGES]

    @torch.no_grad()
    def measure(expert: int, epoch: int, preprocess: Callable[[Tensor], Tensor]) -> float:
        vector_to_parameters(store.snapshot(expert, epoch).to(device), net.parameters())
        seen = SimpleNamespace(train_images=dataset.train_images, preprocessing=SimpleNamespace(apply=preprocess))
        take_statistics(net, seen, device, IMAGES)
        return _accuracy(net, dataset, order, preprocess, device)

    return measure


def _accuracy(net: nn.Module, dataset: Dataset, order: Tensor, preprocess: Any, device: torch.device) -> float:
    right = 0
    for chosen in order.split(BATCH):
        images = preprocess(dataset.test_images[chosen].to(device))
        right += int((net(images).argmax(1).cpu() == dataset.test_labels[chosen]).sum())
    return 100 * right / len(order)


def _other(dataset: Dataset) -> Callable[[Tensor], Tensor] | None:
    """The preprocessing that experts of these data may have been trained with instead; None where that is seldom."""
    if dataset.preprocessing.zca is not None:
        return Preprocessing.fitted(dataset.train_images).apply
    if dataset.train_images[0].numel() > LARGEST_WHITENED:
        return None
    order = torch.randperm(len(dataset.train_images), generator=seeds.generator(0, "whitening of a check"))[:FITTED]
    images = to_unit(dataset.train_images[order]).flatten(1)
    mean = images.mean(0, keepdim=True)
    covariance = (images - mean).T @ (images - mean) / max(1, len(images) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = vectors * (values.clamp_min(0) + EPS).rsqrt() @ vectors.T

    def whiten(images: Tensor) -> Tensor:  # [N, C, H, W]
        flat = to_unit(images).flatten(1)
        return ((flat - mean.to(flat.device)) @ matrix.to(flat.device)).view(images.shape)

    return whiten


def _deviation(percent: float, count: int) -> float:
    """The standard deviation of an accuracy of so many images, in points."""
    share = min(max(percent / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / count)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
