"""State dicts of PyTorch: trajectories of people's own training loops, and single snapshots of experts."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddfast import networks
from ddfast.compat.expert_files import Group, Snapshot, store_experts
from ddfast.compat.placing import placing_file
from ddfast.compat.torch_files import load, save
from ddfast.data import Dataset
from ddfast.experts import TrajectoryStore
from ddfast.runtime import seeds
from ddfast.runtime.files import write_safetensors

log = logging.getLogger("ddfast")

FILES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")  # entries of checkpoints that hold it
WRAPPED = re.compile(r"(^|(?<=\.))(module|_orig_mod)\.")  # of DataParallel, torch.compile, whole or some layers
FLAT = "flat_param"  # the field's ReparamModule
STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "n_averaged")  # the last of AveragedModel

StateDict = Mapping[str, Tensor]


def is_state_dict(value: Any) -> bool:
    """Whether this is a dict of tensors by the names of parameters; text beside them is no matter."""
    tensors = _tensors(value)
    return bool(tensors) and any("." in name or name in ("weight", "bias", FLAT) for name in tensors)


def state_dict_of(value: Any) -> dict[str, Tensor] | None:
    """The state dict that this is, or that a checkpoint holds; None for neither."""
    if isinstance(value, dict):
        for name in WRAPPERS:
            if is_state_dict(value.get(name)):
                return _tensors(value[name])
    return _tensors(value) if is_state_dict(value) else None


def experts_of(value: Any) -> list[list[dict[str, Tensor]]] | None:
    """The experts of what a file holds: a state dict (one snapshot), a list of them (one expert), or a list of such
    lists; None for anything else."""
    single = state_dict_of(value)
    if single is not None:
        return [[single]]
    if not isinstance(value, list | tuple) or not value:
        return None
    snapshots = [state_dict_of(entry) for entry in value]
    whole = [snapshot for snapshot in snapshots if snapshot is not None]
    if len(whole) == len(snapshots):
        return [whole]
    inner = [experts_of(entry) for entry in value if isinstance(entry, list | tuple)]
    if len(inner) == len(value) and all(found is not None and len(found) == 1 for found in inner):
        return [found[0] for found in inner]
    return None


def folders(path: Path) -> list[Path]:
    """The folders of a folder that hold files of state dicts, one folder an expert, in the order of their numbers."""
    inner = sorted((entry for entry in path.iterdir() if entry.is_dir()), key=_in_order)
    found = [entry for entry in inner if _files(entry)]
    return (
        found if found and len(found) == len(inner) and all(_is_snapshot(_files(entry)[0]) for entry in found) else []
    )


def read_state_dicts(
    source: str | Path | Sequence[Sequence[StateDict]] | Sequence[StateDict],
    output: str | Path,
    dataset: Dataset,
    *,
    network: str = "convnet",
    training: dict[str, Any] | None = None,
    check: bool = True,
) -> TrajectoryStore:
    """Put the snapshots of a training loop of one's own into a TrajectoryStore.

    Args:
        source: one expert as a list of state dicts, from the initialisation to the last epoch, or a list of such
            lists. Or where they are: a file of either, as torch.save writes it; a folder of a file a snapshot, in the
            order of the numbers in their names; a folder of such folders, one an expert. Files may be checkpoints that
            hold the state dict as state_dict, model_state_dict, model, net or network.
        output, dataset, network, training, check: as in `read_replay_buffers`.

    Parameters are taken by their names, without the module. and _orig_mod. of wrappers; where the names are others than
    the network's, in their order, if the shapes are; or from one flat_param. Statistics of batch norm are left out,
    which experts do not hold.

    Errors: as `read_replay_buffers`.
    """
    if isinstance(source, str | Path):
        named, groups = str(source), _groups(Path(source))
    else:
        named, groups = "the state dicts", [Group("the state dicts", lambda: list(source))]
    net = networks.create(network, generator=seeds.generator(0), **dataset.network_arguments)
    wanted = dict(net.named_parameters())

    def snapshots(group: Group) -> list[list[Snapshot]]:
        experts = experts_of(group.load())
        if experts is None:
            raise ValueError(f"{group.name}: expected a list of state dicts, or a list of such lists")
        return [
            [_in_parameter_order(state, wanted, group.snapshot(e, epoch)) for epoch, state in enumerate(row)]
            for e, row in enumerate(experts)
        ]

    return store_experts(named, groups, snapshots, output, dataset, network=network, training=training, check=check)


def write_state_dict(
    store: TrajectoryStore, output: str | Path, dataset: Dataset, *, expert: int = 0, epoch: int | None = None
) -> None:
    """Write a snapshot of an expert, by default the last of the first, as TrajectoryStore.state_dict has it: a .pt file
    that torch.load reads with weights_only=True, or a .safetensors file. Errors: as those of state_dict;
    FileExistsError where the file is another one."""
    state, suffix = store.state_dict(expert, epoch, dataset), Path(output).suffix
    with placing_file(Path(output), ".safetensors" if suffix == ".safetensors" else ".pt") as file:
        if suffix == ".safetensors":
            write_safetensors(file, state, {"format": "pt"})
        else:
            save(state, file)


def _tensors(value: Any) -> dict[str, Tensor]:
    """The tensors of a dict by name; none where it holds anything else but them and text."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return {}
    tensors = {name: entry for name, entry in value.items() if isinstance(entry, Tensor)}
    return tensors if all(name in tensors or isinstance(entry, str) for name, entry in value.items()) else {}


def _in_parameter_order(state: StateDict, wanted: dict[str, nn.Parameter], what: str) -> Snapshot:
    """A state dict as the network's parameters; ValueError where it is another network's."""
    named = {WRAPPED.sub("", name): tensor for name, tensor in state.items()}
    named = {name: tensor for name, tensor in named.items() if name.rsplit(".", 1)[-1] not in STATISTICS}
    sizes = [parameter.numel() for parameter in wanted.values()]
    if list(named) == [FLAT] and named[FLAT].shape == (sum(sizes),):
        pieces = named[FLAT].split(sizes)
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, wanted.values(), strict=True)]
    if set(named) == set(wanted):
        return [named[name] for name in wanted]
    if [tensor.shape for tensor in named.values()] == [parameter.shape for parameter in wanted.values()]:
        return list(named.values())
    missing, unknown = sorted(set(wanted) - set(named)), sorted(set(named) - set(wanted))
    raise ValueError(
        f"{what}: expected the network's parameters {', '.join(list(wanted)[:4])} …; missing are "
        f"{', '.join(missing[:4]) or 'none'}, unknown are {', '.join(unknown[:4]) or 'none'}"
    )


def _groups(path: Path) -> list[Group]:
    """What is read at once: a file, a folder of snapshots, or every folder of a folder."""
    if not path.is_dir():
        return [Group(str(path), lambda: _content(path))]
    inner = [path] if _files(path) else folders(path)
    if not inner:
        raise FileNotFoundError(f"{path}: no files of state dicts here, one a snapshot, nor folders of them")
    return [_expert_of(folder) for folder in inner]


def _expert_of(folder: Path) -> Group:
    files = _files(folder)
    return Group(str(folder), lambda: list(map(_snapshot, files)), tuple(map(str, files)))


def _content(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return load(path)
    from ddfast.compat.arrays import content_of

    return content_of(path)


def _snapshot(path: Path) -> dict[str, Tensor]:
    content = _content(path)
    state = state_dict_of(content)
    if state is None:
        raise ValueError(f"{path}: expected a state dict, or a checkpoint that holds one, got {type(content).__name__}")
    return state


def _is_snapshot(path: Path) -> bool:
    try:
        return state_dict_of(_content(path)) is not None
    except ValueError:
        return False


def _files(folder: Path) -> list[Path]:
    files = [entry for entry in folder.iterdir() if entry.suffix in FILES and not entry.name.startswith(".")]
    return sorted(files, key=_in_order)


def _in_order(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.stem)], path.name
