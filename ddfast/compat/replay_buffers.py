"""The expert buffers of MTT's code: replay_buffer_<n>.pt, lists of experts of lists of snapshots of parameters."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast import networks, seeds
from ddfast.arguments import expect_whole
from ddfast.compat.placing import expect_folder
from ddfast.compat.torch_files import expect_floats, load, save
from ddfast.data import Dataset
from ddfast.experts import ExpertTraining, TrajectoryStore
from ddfast.files import is_leftover, locking, mapped_tensor, remove_leftovers

log = logging.getLogger("ddfast")

BUFFER = re.compile(r"replay_buffer_(\d+)\.pt")
PER_FILE = 10  # experts, as MTT's code writes them
UNKNOWN = {field.name: None for field in fields(ExpertTraining)}  # how experts were trained, where nobody says
SOME_TRAINING = ExpertTraining(0.01, 0.0, 0.0, 256, "none")

Snapshot = list[Tensor]  # of every parameter, in its shape


def buffer_files(path: str | Path) -> list[Path]:
    """The file, or the replay_buffer_<n>.pt of a folder in the order of their numbers; none where there are none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    numbered = {int(match[1]): file for file in path.iterdir() if (match := BUFFER.fullmatch(file.name))}
    return [numbered[number] for number in sorted(numbered)]


def read_replay_buffers(
    path: str | Path,
    output: str | Path,
    dataset: Dataset,
    *,
    network: str = "convnet",
    training: dict[str, Any] | None = None,
) -> TrajectoryStore:
    """Copy the experts of buffers into a TrajectoryStore, in memory that does not grow with them.

    Args:
        path: a file, or a folder of replay_buffer_<n>.pt, which are read in the order of their numbers.
        output: the folder of the store. Experts that it holds already, of an interrupted call, are compared.
        dataset: what the experts were trained on, with the preprocessing that they were trained with.
        network: theirs, a name as ddfast.networks.create takes it; the shapes of its parameters are checked.
        training: what is known of how they were trained, by the names of ExpertTraining; the rest is recorded as null.

    Errors: OSError; ValueError that names the file, the expert and the epoch, for what is no buffer of this network;
    FileExistsError where the folder holds something else.
    """
    known = {name: value for name, value in (training or {}).items() if value is not None}
    ExpertTraining(**(vars(SOME_TRAINING) | known))  # refuses impossible ones
    shapes, output = _shapes(network, dataset), Path(output)
    files = buffer_files(path)
    if not files:
        raise FileNotFoundError(f"{path}: no replay_buffer_0.pt or the like in this folder")
    experts = _experts(files[0], shapes)
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
        for file in files:
            experts = experts if file == files[0] else _experts(file, shapes, epochs)
            for number, snapshots in enumerate(experts):
                _fill(room, snapshots, f"{file}, expert {number}")
                _keep(store, count, room)
                count += 1
            log.info("%s: %d experts, %d in all", file, len(experts), count)
    if store.num_experts > count:
        raise ValueError(f"{output}: holds {store.num_experts} experts, {path} {count}; choose another folder")
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


def write_replay_buffers(
    store: TrajectoryStore, output: str | Path, dataset: Dataset, *, per_file: int = PER_FILE
) -> list[Path]:
    """Write the experts of a store into a folder as replay_buffer_0.pt …, in memory that does not grow with them.

    Snapshots are lists of float32 tensors in the shapes of the network's parameters, views of one storage per file. A
    file's worth of disk is used beside the files. Files that are there already, of an interrupted call, are compared.

    Args:
        store: the experts.
        output: the folder, which holds nothing else.
        dataset: what they were trained on.
        per_file: experts per file.

    Errors: ValueError where the store's experts are of another data set; FileExistsError for other files.
    """
    expect_whole(per_file=per_file)
    output, count = Path(output), store.num_experts
    if count == 0:
        raise ValueError(f"{store.path}: holds no experts")
    if len(store.kept_epochs) <= store.epochs:
        raise ValueError(f"{store.path}: keeps {store.words_of_kept()} only; a buffer has the snapshots of all epochs")
    if store.settings.get("fingerprint") != dataset.fingerprint:
        raise ValueError(
            f"{store.path}: the experts were trained on images {store.settings.get('fingerprint')} of "
            f"{store.settings.get('dataset')!r}, those of {dataset.name} at this size are {dataset.fingerprint}"
        )
    shapes = _shapes(store.settings["network"], dataset)
    P = sum(map(torch.Size.numel, shapes))
    if store.snapshot(0, 0).numel() != P:
        raise ValueError(f"{store.path}: has snapshots of another network than the {P} parameters of the recorded one")
    starts = range(0, count, per_file)
    files = [output / f"replay_buffer_{number}.pt" for number in range(len(starts))]
    expect_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    with locking(output, wait=True):
        remove_leftovers(output)
        others = sorted(set(output.iterdir()) - set(files))
        if others:
            raise FileExistsError(f"{others[0]}: is none of the files that are written here; choose another folder")
        for file, start in zip(files, starts, strict=True):
            numbers = range(start, min(start + per_file, count))
            if file.exists():
                _expect_same(file, store, numbers, shapes)
                continue
            room = mapped_tensor(output, (len(numbers), store.epochs + 1, P), torch.float32)
            for row, number in zip(room, numbers, strict=True):
                for epoch in range(store.epochs + 1):
                    row[epoch] = store.snapshot(number, epoch)
            save([[_parameters(snapshot, shapes) for snapshot in row] for row in room], file)
            log.info("%s: experts %d to %d of %d", file, numbers[0] + 1, numbers[-1] + 1, count)
    return files


def _shapes(network: str, dataset: Dataset) -> list[torch.Size]:
    net = networks.create(network, generator=seeds.generator(0), **dataset.network_arguments)
    return [parameter.shape for parameter in net.parameters()]


def _experts(file: Path, shapes: Sequence[torch.Size], epochs: int | None = None) -> list[list[Snapshot]]:
    """The experts of a file, mapped; ValueError where they are no lists of as many snapshots of these shapes."""
    experts = load(file)
    if not isinstance(experts, list) or not experts:
        raise ValueError(f"{file}: expected a list of experts, got {_words(experts)}")
    for number, expert in enumerate(experts):
        what = f"{file}, expert {number}"
        if not isinstance(expert, list) or len(expert) < 2:
            raise ValueError(f"{what}: expected a list of at least 2 snapshots, got {_words(expert)}")
        epochs = len(expert) - 1 if epochs is None else epochs
        if len(expert) != epochs + 1:
            raise ValueError(f"{what}: expected {epochs + 1} snapshots as the first expert has, got {len(expert)}")
        for epoch, snapshot in enumerate(expert):
            _expect_snapshot(snapshot, shapes, f"{what}, epoch {epoch}")
    return experts


def _expect_snapshot(snapshot: Any, shapes: Sequence[torch.Size], what: str) -> None:
    if not isinstance(snapshot, list | tuple):
        raise ValueError(f"{what}: expected a list of parameters, got {_words(snapshot)}")
    found = [expect_floats(tensor, what).shape for tensor in snapshot]
    if found == list(shapes):
        return
    if len(found) != len(shapes):
        raise ValueError(f"{what}: expected the network's {len(shapes)} parameters, got {len(found)}")
    n = next(n for n, pair in enumerate(zip(found, shapes, strict=True)) if pair[0] != pair[1])
    raise ValueError(f"{what}: expected parameter {n} of the network as {list(shapes[n])}, got {list(found[n])}")


def _fill(room: Tensor, snapshots: list[Snapshot], what: str) -> None:  # [E + 1, P]
    """Copy an expert's snapshots; ValueError for values that are not finite."""
    for epoch, (row, snapshot) in enumerate(zip(room, snapshots, strict=True)):
        for values, parameter in zip(row.split([p.numel() for p in snapshot]), snapshot, strict=True):
            values.copy_(parameter.detach().reshape(-1))
        if not row.isfinite().all():
            raise ValueError(f"{what}, epoch {epoch}: holds values that are not finite")


def _keep(store: TrajectoryStore, number: int, snapshots: Tensor) -> None:  # [E + 1, P]
    """Add an expert to a store; one that is there has to be the same."""
    if number >= store.num_experts:
        store.add(number, snapshots)
    elif not all(store.snapshot(number, epoch).equal(row) for epoch, row in enumerate(snapshots)):
        raise ValueError(f"{store.path}: holds another expert {number} already; choose another folder")


def _expect_same(file: Path, store: TrajectoryStore, numbers: range, shapes: Sequence[torch.Size]) -> None:
    """FileExistsError unless a file holds these experts of a store."""
    experts = _experts(file, shapes, store.epochs)
    same = len(experts) == len(numbers) and all(
        parameter.equal(wanted)
        for number, expert in zip(numbers, experts, strict=True)
        for epoch, snapshot in enumerate(expert)
        for parameter, wanted in zip(snapshot, _parameters(store.snapshot(number, epoch), shapes), strict=True)
    )
    if not same:
        raise FileExistsError(f"{file}: is there already, and holds other experts; choose another folder")


def _parameters(snapshot: Tensor, shapes: Sequence[torch.Size]) -> Snapshot:  # [P]
    """A snapshot as the parameters of the network, views of it."""
    parts = snapshot.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _words(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list) else type(value).__name__
