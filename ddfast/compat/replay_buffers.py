"""The expert buffers of MTT's code: replay_buffer_<n>.pt, lists of experts of lists of snapshots of parameters."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.compat.expert_files import Group, Snapshot, expect_experts, shapes_of, store_experts
from ddfast.compat.placing import expect_folder
from ddfast.compat.torch_files import load, save
from ddfast.data import Dataset
from ddfast.experts import TrajectoryStore
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.files import is_leftover, locking, mapped_tensor, remove_leftovers

log = logging.getLogger("ddfast")

BUFFER = re.compile(r"replay_buffer_(\d+)\.pt")
PER_FILE = 10  # experts, as MTT's code writes them


def buffer_files(path: str | Path) -> list[Path]:
    """The file, or the replay_buffer_<n>.pt of a folder in the order of their numbers; none where there are none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    numbered = {int(match[1]): file for file in path.iterdir() if (match := BUFFER.fullmatch(file.name))}
    return [numbered[number] for number in sorted(numbered)]


def is_buffer(value: Any) -> bool:
    """Whether this is a list of experts, or one expert: lists of snapshots, which are lists of tensors."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list | tuple) or not value[0]:
        return False
    first = value[0][0]
    return isinstance(first, Tensor) or (isinstance(first, list | tuple) and first and isinstance(first[0], Tensor))


def read_replay_buffers(
    path: str | Path,
    output: str | Path,
    dataset: Dataset,
    *,
    network: str = "convnet",
    training: dict[str, Any] | None = None,
    check: bool = True,
) -> TrajectoryStore:
    """Copy the experts of buffers into a TrajectoryStore, in memory that does not grow with them.

    Args:
        path: a file, or a folder of replay_buffer_<n>.pt, which are read in the order of their numbers.
        output: the folder of the store. Experts that it holds already, of an interrupted call, are compared.
        dataset: what the experts were trained on, with the preprocessing that they were trained with.
        network: theirs, a name as ddfast.networks.create takes it; the shapes of its parameters are checked.
        training: what is known of how they were trained, by the names of ExpertTraining; the rest is recorded as null.
        check: test the first and the last expert (ddfast.compat.expert_check), warn where their accuracy does not fit
            the preprocessing, and record it in the store as `about["check"]`.

    Errors: OSError; ValueError that names the file, the expert and the epoch, for what is no buffer of this network,
    for values that are not finite, and for experts whose snapshots are all equal; FileExistsError where the folder
    holds something else.
    """
    files = buffer_files(path)
    if not files:
        raise FileNotFoundError(f"{path}: no replay_buffer_0.pt or the like in this folder")
    groups = [Group(str(file), lambda file=file: load(file)) for file in files]
    how = {"network": network, "training": training, "check": check}
    return store_experts(str(path), groups, _experts, output, dataset, **how)


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
    shapes = shapes_of(store.settings["network"], dataset)
    P = sum(map(torch.Size.numel, shapes))
    if store.snapshot(0, 0).numel() != P:
        raise ValueError(f"{store.path}: has snapshots of another network than the {P} parameters of the recorded one")
    starts = range(0, count, per_file)
    files = [output / f"replay_buffer_{number}.pt" for number in range(len(starts))]
    expect_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    others = sorted(path for path in set(output.iterdir()) - set(files) if not is_leftover(path))
    if others:
        raise FileExistsError(f"{others[0]}: not one of the files written here; choose another folder")
    with locking(output, wait=True):
        remove_leftovers(output)
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


def _experts(group: Group) -> Any:
    """The experts of a file, mapped; of a file of one expert a list of it."""
    value = group.load()
    one = is_buffer(value) and isinstance(value[0][0], Tensor)
    return [value] if one else value


def _expect_same(file: Path, store: TrajectoryStore, numbers: range, shapes: Sequence[torch.Size]) -> None:
    """FileExistsError unless a file holds these experts of a store."""
    experts = expect_experts(load(file), shapes, Group(str(file), lambda: None), store.epochs)
    same = len(experts) == len(numbers) and all(
        parameter.equal(wanted)
        for number, expert in zip(numbers, experts, strict=True)
        for epoch, snapshot in enumerate(expert)
        for parameter, wanted in zip(snapshot, _parameters(store.snapshot(number, epoch), shapes), strict=True)
    )
    if not same:
        raise FileExistsError(f"{file}: exists and holds other experts; choose another folder")


def _parameters(snapshot: Tensor, shapes: Sequence[torch.Size]) -> Snapshot:  # [P]
    """A snapshot as the parameters of the network, views of it."""
    parts = snapshot.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
