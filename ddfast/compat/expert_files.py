"""Experts of other code on their way into a TrajectoryStore: compared with the network, checked, copied one by one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast import networks
from ddfast.compat.expert_check import check_experts
from ddfast.compat.placing import expect_folder
from ddfast.compat.torch_files import expect_floats
from ddfast.data import Dataset
from ddfast.experts import ExpertTraining, TrajectoryStore
from ddfast.runtime import seeds
from ddfast.runtime.files import is_leftover, locking, mapped_tensor, remove_leftovers

log = logging.getLogger("ddfast")

UNKNOWN = {field.name: None for field in fields(ExpertTraining)}  # how experts were trained, where nobody says
SOME_TRAINING = ExpertTraining(0.01, 0.0, 0.0, 256, "none")

Snapshot = list[Tensor]  # of every parameter, in its shape


@dataclass(frozen=True)
class Group:
    """Experts that are read at once, such as those of a file."""

    name: str
    load: Callable[[], Any]
    files: tuple[str, ...] = ()  # of a single expert, that of each snapshot, where they have one each

    def expert(self, number: int) -> str:
        """An expert, for people."""
        return self.name if self.files else f"{self.name}, expert {number}"

    def snapshot(self, number: int, epoch: int) -> str:
        """A snapshot of it."""
        return self.files[epoch] if self.files else f"{self.expert(number)}, epoch {epoch}"


def store_experts(
    source: str,
    groups: Sequence[Group],
    snapshots: Callable[[Group], list[list[Snapshot]]],
    output: str | Path,
    dataset: Dataset,
    *,
    network: str,
    training: dict[str, Any] | None,
    check: bool,
) -> TrajectoryStore:
    """Copy experts into a TrajectoryStore, in memory that does not grow with them.

    snapshots: of a group, its experts, each a list of snapshots. The other arguments are those of
    `read_replay_buffers`, which says which errors are raised.
    """
    known = {name: value for name, value in (training or {}).items() if value is not None}
    ExpertTraining(**(vars(SOME_TRAINING) | known))  # refuses impossible ones
    shapes, output = shapes_of(network, dataset), Path(output)
    experts = expect_experts(snapshots(groups[0]), shapes, groups[0], padded=_padded(network, dataset))
    epochs = len(experts[0]) - 1
    expect_folder(output)
    if output.exists() and not (output / "experts.json").is_file() and not all(map(is_leftover, output.iterdir())):
        raise FileExistsError(f"{output}: holds something else than experts; choose another folder")
    settings = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "preprocessing": dataset.preprocessing.describe(),
        "network": network,
        **(UNKNOWN | known),
    }
    is_new = not (output / "experts.json").exists()
    store = TrajectoryStore.create(output, settings, epochs)
    with locking(output, wait=True), _undone_if_empty(store if is_new else None):
        remove_leftovers(output)
        room = mapped_tensor(output, (epochs + 1, sum(map(torch.Size.numel, shapes))), torch.float32)
        count = 0
        for group in groups:
            experts = experts if group is groups[0] else expect_experts(snapshots(group), shapes, group, epochs)
            for number, expert in enumerate(experts):
                _fill(room, expert, group, number)
                _keep(store, count, room)
                count += 1
            log.info("%s: %d experts, %d in all", group.name, len(experts), count)
        if store.num_experts > count:
            raise ValueError(f"{output}: holds {store.num_experts} experts, {source} {count}; choose another folder")
        if check:
            store.note("check", check_experts(store, dataset, source))
    return store


@contextmanager
def _undone_if_empty(store: TrajectoryStore | None) -> Iterator[None]:
    """After an error before its first expert a store is none: the folder takes experts of other settings."""
    try:
        yield
    except Exception:
        if store is not None and not store.num_experts:
            (store.path / "experts.json").unlink()
        raise


def shapes_of(network: str, dataset: Dataset) -> list[torch.Size]:
    """The shapes of a network's parameters, in their order."""
    net = networks.create(network, generator=seeds.generator(0), **dataset.network_arguments)
    return [parameter.shape for parameter in net.parameters()]


def _padded(network: str, dataset: Dataset) -> list[torch.Size] | None:
    """The shapes of a ConvNet that pads 28-px images to 32, as the field's does; None for others."""
    is_plain = network.split(":")[0] == "convnet" and "first_padding" not in network
    return shapes_of(f"{network}:first_padding=3", dataset) if is_plain else None


def expect_experts(
    experts: Any,
    shapes: Sequence[torch.Size],
    group: Group,
    epochs: int | None = None,
    padded: Sequence[torch.Size] | None = None,  # those that a wider first padding would have
) -> list[list[Snapshot]]:
    """`experts`; ValueError where they are no lists of as many snapshots of these shapes."""
    if not isinstance(experts, list) or not experts:
        raise ValueError(f"{group.name}: expected a list of experts, got {_words(experts)}")
    for number, expert in enumerate(experts):
        what = group.expert(number)
        if not isinstance(expert, list) or len(expert) < 2:
            raise ValueError(f"{what}: expected a list of at least 2 snapshots, got {_words(expert)}")
        epochs = len(expert) - 1 if epochs is None else epochs
        if len(expert) != epochs + 1:
            raise ValueError(f"{what}: expected {epochs + 1} snapshots as the first expert has, got {len(expert)}")
        for epoch, snapshot in enumerate(expert):
            _expect_snapshot(snapshot, shapes, group.snapshot(number, epoch), padded)
    return experts


def _expect_snapshot(
    snapshot: Any, shapes: Sequence[torch.Size], what: str, padded: Sequence[torch.Size] | None
) -> None:
    if not isinstance(snapshot, list | tuple):
        raise ValueError(f"{what}: expected a list of parameters, got {_words(snapshot)}")
    found = [expect_floats(tensor, what).shape for tensor in snapshot]
    if found == list(shapes):
        return
    if len(found) != len(shapes):
        raise ValueError(f"{what}: expected the network's {len(shapes)} parameters, got {len(found)}")
    n = next(n for n, pair in enumerate(zip(found, shapes, strict=True)) if pair[0] != pair[1])
    advice = "; the network convnet:first_padding=3 has it so: it pads images by 2 pixels, as the field's code does"
    raise ValueError(
        f"{what}: expected parameter {n} of the network as {list(shapes[n])}, got {list(found[n])}"
        f"{advice if padded is not None and found == list(padded) else ''}"
    )


def _fill(room: Tensor, snapshots: list[Snapshot], group: Group, number: int) -> None:  # [E + 1, P]
    """Copy an expert's snapshots; ValueError for values that are not finite, or snapshots that are all the same."""
    for epoch, (row, snapshot) in enumerate(zip(room, snapshots, strict=True)):
        for values, parameter in zip(row.split([p.numel() for p in snapshot]), snapshot, strict=True):
            values.copy_(parameter.detach().reshape(-1))
        if not row.isfinite().all():
            raise ValueError(
                f"{group.snapshot(number, epoch)}: holds values that are not finite: its training diverged; leave this "
                f"expert out, or train it again at a lower rate"
            )
    equal = [epoch for epoch in range(1, len(room)) if room[epoch].equal(room[epoch - 1])]
    if len(equal) == len(room) - 1:
        raise ValueError(
            f"{group.expert(number)}: all {len(room)} snapshots are equal: on a CPU, code that keeps parameters "
            f"without copying them keeps the last ones only; train it again with p.detach().cpu().clone() in its place"
        )
    if equal:
        shown = ", ".join(map(str, equal[:5])) + " …" * (len(equal) > 5)
        log.warning(
            "%s: the snapshots of epochs %s equal those before them: nothing was learned there, and a match of such "
            "an epoch alone is refused",
            group.expert(number),
            shown,
        )


def _keep(store: TrajectoryStore, number: int, snapshots: Tensor) -> None:  # [E + 1, P]
    """Add an expert to a store; one that is there has to be the same."""
    if number >= store.num_experts:
        store.add(number, snapshots)
    elif not all(store.snapshot(number, epoch).equal(row) for epoch, row in enumerate(snapshots)):
        raise ValueError(f"{store.path}: already holds a different expert {number}; choose another folder")


def _words(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list) else type(value).__name__
