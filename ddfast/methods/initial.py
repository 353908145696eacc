"""What a synthetic set starts from: real images, drawn or selected, noise, or a saved set."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ddfast.data import Dataset, SyntheticSet, counts_of
from ddfast.experts import Judges, TrajectoryStore
from ddfast.methods.coresets.selection import SELECTIONS, select
from ddfast.methods.settings import INITS, SetSettings

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
        logits = judges.logits(0, _tiles(saved.images, settings.canvas)).unflatten(0, (-1, settings.canvas**2))
        return saved.with_values(saved.images, logits.mean(1), saved.lr)
    tiles, counts = settings.canvas**2, counts_of(ipc, data.num_classes)
    if settings.init == "noise" and settings.labels == "hard":
        size = [settings.canvas * side for side in data.image_size]
        images = torch.randn(sum(counts), data.channels, *size, generator=generator)
        labels = torch.arange(data.num_classes).repeat_interleave(torch.tensor(counts))
        return _made(settings, data, images, labels)
    check_initial(settings, data, ipc)
    chosen = _chosen(settings, data, [count * tiles for count in counts], judges, generator)
    images, labels = data.preprocessing.apply(data.train_images[chosen]), data.train_labels[chosen]
    if settings.labels != "hard":
        labels = judges.known(images, labels) if settings.init == "correct" else judges.logits(0, images)
        labels = labels.unflatten(0, (-1, tiles)).mean(1)
    else:
        labels = labels[::tiles].clone()
    if settings.init == "noise":
        images = torch.randn(images.shape, generator=generator)
    return _made(settings, data, _mosaics(images, settings.canvas), labels)


def _made(settings: SetSettings, data: Dataset, images: Tensor, labels: Tensor) -> SyntheticSet:
    rate = getattr(settings, "lr_teacher", None)
    lr, about = None if rate is None else torch.tensor(rate), (data.class_names, data.preprocessing)
    return SyntheticSet(images, labels, lr, *about, settings.dsa_strategy, settings.parameterisation)


def check_initial(settings: SetSettings, data: Dataset, ipc: int | Sequence[int]) -> None:
    """ValueError where a set is to begin with more real images of a class than there are."""
    if settings.init not in INITS or settings.init == "noise":
        return
    side, counts = settings.canvas, counts_of(ipc, data.num_classes)
    try:
        data.check_ipc([count * side**2 for count in counts])
    except ValueError as error:
        canvases = f", {max(counts)} canvases of {side} × {side} images" if side > 1 else ""
        raise ValueError(
            f"{error}{canvases}; init {settings.init} begins with real images: give a smaller ipc, an ipc per class, "
            f"or init noise"
        ) from None


def load_init(settings: SetSettings, data: Dataset, ipc: int | Sequence[int]) -> SyntheticSet:
    """The saved set that a run begins with, its labels, learning rate and all; ValueError where it does not fit."""
    path, saved = _saved(settings.init)
    counts, has = counts_of(ipc, data.num_classes), saved.classes.bincount(minlength=data.num_classes).tolist()
    expected = [sum(counts), data.channels, *(settings.canvas * side for side in data.image_size)]
    if list(saved.images.shape) != expected or saved.canvas != settings.canvas:
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


def ipc_of(init: str | None) -> int | list[int] | None:
    """Images per class of the saved set that a run begins with; None where it begins with none."""
    return _saved(init)[1].ipc if isinstance(init, str) and init not in INITS else None


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
        how = {name: getattr(settings, name) for name in ("select_on", "select_epoch", "never_learnt")}
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
