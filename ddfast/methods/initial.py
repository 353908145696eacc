"""What a synthetic set starts from: real images, drawn or selected, noise, or a saved set."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddfast.data import Dataset, SyntheticSet, counts_of
from ddfast.experts import Judges, TrajectoryStore
from ddfast.methods.coresets.selection import SELECTIONS, select
from ddfast.methods.settings import INITS, SetSettings

SAMPLE = 4096  # training images that a parameterisation looks at
log = logging.getLogger("ddfast")

CHUNK = 256  # images that an expert classifies at a time


def initial_set(
    settings: SetSettings,
    data: Dataset,
    ipc: int | Sequence[int],  # of every class; or [K]
    experts: TrajectoryStore | None,
    num_experts: int | None,
    network: nn.Module,  # of the experts, on the device where they classify
    generator: torch.Generator,
) -> SyntheticSet:
    """The set that a run begins with, class by class.

    Hard labels are the classes. Others begin as logits of the experts' last snapshots (DATM, Guo et al. 2024, section
    3.4): with init="correct" the mean over those experts that classify the image correctly, or over all where none
    does; else one expert's, of noise those of as many real images, which are taken again where a class has fewer. A
    canvas is a mosaic of real images of its class, or noise.

    Errors: ValueError for a saved set that does not fit.
    """
    judges = Judges(network, experts, num_experts, data)
    if settings.init not in INITS:
        saved = load_init(settings, data, ipc)
        if saved.lr is None and hasattr(settings, "lr_teacher"):
            saved = replace(saved, lr=torch.tensor(settings.lr_teacher))
        if saved.is_soft or settings.labels == "hard":
            return saved
        if settings.FIRST_LOGIT is not None:
            return saved.with_values(saved.images, _labels(settings, saved.classes, data.num_classes), saved.lr)
        seen = _tiles(saved.images, settings.canvas) if settings.canvas > 1 else saved.decoded().images
        logits = judges.logits(0, seen).unflatten(0, (-1, settings.canvas**2))
        return saved.with_values(saved.images, logits.mean(1), saved.lr)
    tiles, stored = settings.canvas**2, sum(counts_of(ipc, data.num_classes))
    counts = [count * settings.images_per_stored for count in counts_of(ipc, data.num_classes)]
    begin = _Beginning(settings, data, stored, generator)
    if settings.init == "noise" and (settings.labels == "hard" or settings.FIRST_LOGIT is not None):
        classes = torch.arange(data.num_classes).repeat_interleave(torch.tensor(counts))
        return begin.noise(_labels(settings, classes, data.num_classes))
    check_initial(settings, data, ipc)
    chosen = _chosen(settings, data, [count * tiles for count in counts], judges, generator)
    images, labels = data.preprocessing.apply(data.train_images[chosen]), data.train_labels[chosen]
    if settings.FIRST_LOGIT is not None:
        labels = _labels(settings, labels[::tiles], data.num_classes)
    elif settings.labels != "hard":
        labels = judges.known(images, labels) if settings.init == "correct" else judges.logits(0, images)
        labels = labels.unflatten(0, (-1, tiles)).mean(1)
    else:
        labels = labels[::tiles].clone()
    return begin.noise(labels) if settings.init == "noise" else begin.near(_mosaics(images, settings.canvas), labels)


def _labels(
    settings: SetSettings,
    classes: Tensor,  # int64 [I]
    K: int,
) -> Tensor:  # the same, or logits [I, K]
    """The classes, or logits that say them."""
    return classes.clone() if settings.labels == "hard" else settings.FIRST_LOGIT * one_hot(classes, K).float()


class _Beginning:
    """Sets of a run's parameterisation, with its learning rate and augmentation."""

    def __init__(self, settings: SetSettings, data: Dataset, stored: int, generator: torch.Generator) -> None:
        self._settings, self._data, self._generator = settings, data, generator
        self._how = settings.parameterised((data.channels, *data.image_size), stored)

    def near(self, images: Tensor, labels: Tensor) -> SyntheticSet:  # [J, C, H, W], or canvases
        """Near these images."""
        return self._made(*self._how.encode(images, self._sample()), labels)

    def noise(self, labels: Tensor) -> SyntheticSet:
        """Of noise."""
        size = [self._settings.canvas * side for side in self._data.image_size]
        made = self._how.noise(len(labels), (self._data.channels, *size), self._sample(), self._generator)
        return self._made(*made, labels)

    def _sample(self) -> Tensor:  # [N, C, H, W]
        """Training images, for what a parameterisation takes of them all."""
        every = max(1, len(self._data.train_images) // SAMPLE)
        return self._data.preprocessing.apply(self._data.train_images[::every][:SAMPLE])

    def _made(self, images: Tensor, others: dict[str, Tensor], labels: Tensor) -> SyntheticSet:
        rate = getattr(self._settings, "lr_teacher", None)
        lr, about = None if rate is None else torch.tensor(rate), (self._data.class_names, self._data.preprocessing)
        return SyntheticSet(images, labels, lr, *about, self._settings.dsa_strategy, self._how, others=others)


def check_initial(settings: SetSettings, data: Dataset, ipc: int | Sequence[int]) -> None:
    """ValueError where a set is to begin with more real images of a class than there are."""
    if settings.init not in INITS or settings.init == "noise":
        return
    side, counts, more = settings.canvas, counts_of(ipc, data.num_classes), settings.images_per_stored
    try:
        data.check_ipc([count * side**2 * more for count in counts])
    except ValueError as error:
        canvases = f", {max(counts)} canvases of {side} × {side} images" if side > 1 else ""
        canvases = f", {more} for each of {max(counts)} in storage" if more > 1 else canvases
        raise ValueError(
            f"{error}{canvases}; init {settings.init} begins with real images: give a smaller ipc, an ipc per class, "
            f"or init noise"
        ) from None


def load_init(settings: SetSettings, data: Dataset, ipc: int | Sequence[int]) -> SyntheticSet:
    """The saved set that a run begins with, its labels, learning rate and all; ValueError where it does not fit."""
    path, saved = _saved(settings.init)
    counts = [count * settings.images_per_stored for count in counts_of(ipc, data.num_classes)]
    if settings.parameterisation != "pixels":
        how = settings.parameterised((data.channels, *data.image_size), sum(counts_of(ipc, data.num_classes)))
        if saved.parameterisation != how:
            expected, got = (f"{one.name} {one.describe()}" for one in (how, saved.parameterisation))
            raise ValueError(f"init: expected a set of {expected}, got {got} in {path}")
    elif saved.parameterisation.name not in ("pixels", "texture"):
        log.info("init: the %s in %s begin as the pixels that they decode to", saved.parameterisation.name, path)
        saved = saved.decoded()
    has = saved.classes.bincount(minlength=data.num_classes).tolist()
    expected = [sum(counts), data.channels, *(settings.canvas * side for side in data.image_size)]
    if settings.parameterisation == "pixels" and (
        list(saved.images.shape) != expected or saved.canvas != settings.canvas
    ):
        what = (
            f"images {shape} with canvas {canvas}"
            for shape, canvas in ((expected, settings.canvas), (list(saved.images.shape), saved.canvas))
        )
        raise ValueError(f"init: expected {next(what)}, got {next(what)} in {path}")
    if saved.class_names != data.class_names:
        raise ValueError(f"init: {path} was distilled from other classes than {data.name}'s")
    if not saved.preprocessing.matches(data.preprocessing):
        differing = saved.preprocessing.difference(data.preprocessing)
        raise ValueError(
            f"init: {path} and {data.name} are preprocessed differently: {differing}; pass --preprocessing {path} (in "
            f"Python preprocessing) to keep that of the former"
        )
    if saved.is_hard and has != counts:
        k = next(k for k, count in enumerate(counts) if has[k] != count)
        raise ValueError(f"ipc: {path} has {has[k]} images of class {data.class_names[k]!r}, got {counts[k]}")
    if saved.is_soft and settings.labels == "hard":
        raise ValueError(f"labels: the set in {path} has label logits; expected soft, got hard")
    return replace(saved, dsa_strategy=settings.dsa_strategy)


def ipc_of(init: str | None, parameterisation: str | None = None) -> int | list[int] | None:
    """Images per class, of the saved set that a run begins with, or whose storage it takes where it stays as it is
    parameterised; None where it begins with none."""
    if not isinstance(init, str) or init in INITS:
        return None
    saved = _saved(init)[1]
    return saved.ipc if parameterisation in (None, "pixels") else saved.stored_ipc


def _saved(init: str) -> tuple[Path, SyntheticSet]:
    path = Path(init)
    if path.is_dir():  # a run folder
        path = path / "synthetic"
    if not SyntheticSet.is_at(path):
        raise ValueError(f"init: expected one of {', '.join(INITS)}, or a saved set or run, got {init!r}")
    return path, SyntheticSet.load(path)


def _chosen(
    settings: SetSettings, data: Dataset, counts: list[int], judges: Judges, generator: torch.Generator
) -> Tensor:
    """Indices of so many training images of each class, class by class, int64; several times where it has fewer."""
    if settings.init in SELECTIONS:
        how = {name: getattr(settings, name) for name in ("select_on", "select_epoch", "never_learnt", "window_start")}
        return torch.cat(select(settings.init, judges, counts, generator, **how))
    of_classes = data.by_class(None if settings.init == "first" else generator)
    if settings.init == "correct":
        of_classes = [_correct(data, k, indices, counts[k], judges) for k, indices in enumerate(of_classes)]
    times = [-(-count // len(indices)) for count, indices in zip(counts, of_classes, strict=True)]
    return torch.cat([indices.repeat(n)[:count] for indices, n, count in zip(of_classes, times, counts, strict=True)])


def _correct(data: Dataset, k: int, indices: Tensor, count: int, judges: Judges) -> Tensor:  # int64 [count]
    """Images of class k that an expert classifies correctly; from the next expert where they run out, then any."""
    found = indices[:0]
    for expert in range(judges.count):
        for part in indices.split(CHUNK):
            if len(found) >= count:
                return found[:count]
            part = part[~torch.isin(part, found)]
            if len(part):
                images = data.preprocessing.apply(data.train_images[part])
                found = torch.cat([found, part[judges.logits(expert, images).argmax(1) == k]])
    if len(found) < count:
        name = data.class_names[k]
        log.warning("init: the experts classify only %d of %d images of %s correctly", len(found), len(indices), name)
    return torch.cat([found, indices[~torch.isin(indices, found)]])[:count]


def _mosaics(images: Tensor, canvas: int) -> Tensor:  # [I c², C, H, W] -> [I, C, cH, cW]
    tiles = images.unflatten(0, (-1, canvas, canvas))  # [I, c, c, C, H, W]
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).contiguous()


def _tiles(canvases: Tensor, canvas: int) -> Tensor:  # [I, C, cH, cW] -> [I c², C, H, W]
    rows = canvases.unflatten(3, (canvas, -1)).unflatten(2, (canvas, -1))  # [I, C, c, H, c, W]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
