"""Classes of a set, chosen, and sets of several classes, joined."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddfast.data.parameterisation import PIXELS
from ddfast.data.synthetic import SyntheticSet

ABSENT = -30.0  # logit of a class that a set with label logits does not have, below its smallest one


def expect_classes(classes: Sequence[int], num_classes: int) -> list[int]:
    """The classes as numbers; ValueError for others than some of 0 … K − 1, each once, at least two."""
    expected = f"classes: expected at least two of 0 to {num_classes - 1}, each once"
    try:
        numbers = [operator.index(k) for k in classes]
    except TypeError:
        raise ValueError(f"{expected}, got {classes!r}") from None
    if len(set(numbers)) < 2 or len(set(numbers)) < len(numbers) or not all(0 <= k < num_classes for k in numbers):
        raise ValueError(f"{expected}, got {numbers}")
    return numbers


def labels_among(labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:  # int64 [N] -> int64 [M], [M]
    """Indices of the images of some classes, and their labels as places in `classes`."""
    places = torch.full((max(int(labels.max()), *classes) + 1,), -1)
    places[list(classes)] = torch.arange(len(classes))
    chosen = (places[labels] >= 0).nonzero()[:, 0]
    return chosen, places[labels[chosen]]


def of_classes(synthetic: SyntheticSet, classes: Sequence[int]) -> SyntheticSet:
    """The images of some classes of a set, as pixels; they become classes 0, 1, … in the order that they are given in.
    Of label logits those of these classes stay.

    Errors: ValueError for classes that are not there, given twice, or fewer than two, or a set of textures.
    """
    classes = expect_classes(classes, len(synthetic.class_names))
    pixels = _pixels(synthetic)
    chosen, new = labels_among(pixels.classes, classes)
    labels = new if pixels.is_hard else pixels.labels[chosen][:, list(classes)]
    names = tuple(synthetic.class_names[k] for k in classes)
    return replace(pixels, images=pixels.images[chosen], labels=labels, class_names=names, recipe=None)


def join(sets: Iterable[SyntheticSet]) -> SyntheticSet:
    """The images of several sets, as pixels, in one: of the same classes, or of others, by their names, in the order in
    which they are met. The augmentation is the first set's, the learning rate the mean; sets for different networks
    have no network in common, and no rate.

    Errors: TypeError for anything but sets; ValueError for no sets, or some that differ in size, preprocessing or kind
    of labels, or are textures.
    """
    sets = list(sets) if isinstance(sets, Iterable) else [sets]
    for one in sets:
        if not isinstance(one, SyntheticSet):
            raise TypeError(f"sets: expected synthetic sets, got {type(one).__name__}")
    if not sets:
        raise ValueError("sets: expected at least one")
    pixels = [_pixels(one) for one in sets]
    first, names = pixels[0], tuple(dict.fromkeys(name for one in sets for name in one.class_names))
    for one in pixels:
        if one.images.shape[1:] != first.images.shape[1:] or one.is_hard != first.is_hard:
            raise ValueError("sets: expected images of one size and labels of one kind")
        if not one.preprocessing.matches(first.preprocessing):
            differing = one.preprocessing.difference(first.preprocessing)
            raise ValueError(f"sets: expected one preprocessing, got different ones: {differing}")
    labels = torch.cat([_among(one, names) for one in pixels])
    alike = all(one.network == first.network for one in pixels)
    rates = [one.lr for one in pixels if one.lr is not None]
    lr = torch.stack(rates).mean() if rates and alike else None
    images = torch.cat([one.images for one in pixels])
    network = first.network if alike else None
    return replace(first, images=images, labels=labels, lr=lr, class_names=names, network=network, recipe=None)


def _pixels(synthetic: SyntheticSet) -> SyntheticSet:
    decoded = synthetic.decoded()
    if decoded.parameterisation != PIXELS:
        raise ValueError(f"sets: expected images, got {decoded.parameterisation.name}, of which every use sees a part")
    return decoded


def _among(synthetic: SyntheticSet, names: Sequence[str]) -> Tensor:  # int64 [J], or logits [J, K]
    """The labels of a set among the classes of several."""
    places = torch.tensor([names.index(name) for name in synthetic.class_names])
    if synthetic.is_hard:
        return places[synthetic.labels]
    absent = float(synthetic.labels.min()) + ABSENT
    logits = pad(synthetic.labels, (0, len(names) - len(places)), value=absent)
    order = [*places.tolist(), *(k for k in range(len(names)) if k not in places)]
    return logits[:, torch.tensor(order).argsort()]
