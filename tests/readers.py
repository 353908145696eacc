"""The files that ddfast reads: for each kind a whole one, how it is read, and what makes two readings equal.

A row more here is fuzzed like all others by `tests/compat/test_fuzz.py`.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from ddfast import SyntheticSet, TrajectoryStore, compat, networks
from ddfast.compat.convert import READERS as READERS_OF_SETS
from ddfast.compat.convert import WRITERS
from ddfast.data import Dataset, Preprocessing, load_dataset, zca
from ddfast.data.images import inspect_files, read_files
from ddfast.run.folder import RunFolder
from ddfast.runtime import seeds
from ddfast.runtime.files import read_json, read_tensors, write_json, write_tensors
from tests.conftest import uniform


@dataclass(frozen=True)
class Reader:
    """How one kind of file is written whole, and read; what is read is made of what `same` can compare."""

    file: str  # the one that is damaged, below the folder
    write: Callable[[Path], None]  # into a folder
    read: Callable[[Path], Any]  # from that folder
    checked: bool = True  # whether all damage is found: not so for formats without a checksum
    named: str = ""  # what an error names, where it is not the file


def same(one: Any, other: Any) -> bool:
    """Whether two readings are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        )
    if isinstance(one, dict):
        # An entry that is only there without its checksum is one whose name was damaged: its value counts nowhere.
        return isinstance(other, dict) and all(key in other and same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def synthetic() -> SyntheticSet:
    """A small set."""
    about = ("zéro", "eins"), Preprocessing((0.5,), (0.25,))
    return SyntheticSet(uniform(4, 1, 8, 8).float(), torch.tensor([0, 0, 1, 1]), torch.tensor(0.02), *about)


def values_of(loaded: SyntheticSet) -> list[Any]:
    """All that a set holds."""
    how = [loaded.class_names, repr(loaded.preprocessing), loaded.dsa_strategy, loaded.canvas]
    return [loaded.images, loaded.labels, loaded.lr, *how]


def _old_set(folder: Path) -> None:
    values = synthetic()
    save_file({"images": values.images, "labels": values.labels, "lr": values.lr}, folder / "set.safetensors")
    about = {"format": "ddfast-synthetic-set-1", "labels": "classes", "class_names": ["zéro", "eins"]}
    about |= {"preprocessing": values.preprocessing.describe(), "dsa_strategy": "none"}
    (folder / "set.json").write_text(json.dumps(about))


def _store(folder: Path) -> TrajectoryStore:
    preprocessing = Preprocessing((0.5,), (0.25,)).describe()
    store = TrajectoryStore.create(folder, {"network": "convnet", "seed": 0, "preprocessing": preprocessing}, epochs=2)
    store.add(0, torch.arange(30.0).view(3, 10))
    return store


def _snapshots(folder: Path) -> list[Any]:
    store = TrajectoryStore(folder)
    return [store.snapshot(0, epoch) for epoch in range(3)]


def _unfinished(folder: Path) -> Any:
    if not (folder / "experts.json").exists():
        _store(folder)
    return TrajectoryStore(folder).unfinished(1)


def _write_unfinished(folder: Path) -> None:
    _store(folder).keep_unfinished(1, {"snapshots": torch.arange(20.0).view(2, 10), "velocity": torch.zeros(10)})


STATE = {"iteration": 3, "skips": 0, "method": {"descent": {"state": [uniform(4, 5).float()]}, "labels": None}}
CONFIG = {"dataset": "digits", "method": "mtt", "versions": {"torch": "2"}, "iterations": 60, "lr_img": 0.1}
SUMMARY = {"accuracy": {"distilled": {"mean": 50.5, "std": 0.0, "n": 1}}, "iterations": 3, "seconds": 0.25}
LINES = [{"iteration": n, "loss": 1 / (n + 3)} for n in range(1, 4)]


def _metrics(folder: Path) -> None:
    for line in LINES:
        RunFolder(folder).append("metrics", line)


def _zca(folder: Path) -> None:
    zca._write(folder / "zca.safetensors", {"mean": torch.zeros(1, 6), "matrix": torch.eye(6), "inverse": torch.eye(6)})


def _picture(name: str, mode: str, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pixels = (uniform(12, 10, 3) * 200).byte()
        Image.fromarray(pixels.numpy()).convert(mode).save(folder / name, **options)

    return write


def _picture_values(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (H, W), channels = inspect_files([folder / name])
        assert 1 <= H <= 128 and 1 <= W <= 128
        return read_files([folder / name], (H, W), channels)

    return read


def _mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images, labels = (uniform(count, 28, 28) * 200).byte(), (torch.arange(count) % 10).byte()
        for kind, tensor in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, tensor.dim()]) + b"".join(n.to_bytes(4, "big") for n in tensor.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + tensor.numpy().tobytes())


def _values_of_data(data: Dataset) -> list[Any]:
    return [data.train_images, data.train_labels, data.test_images, data.test_labels]


def _tiny(folder: Path) -> None:
    root = folder / "tiny-imagenet-200"
    for wnid in ("n01", "n02"):
        (root / "train" / wnid / "images").mkdir(parents=True, exist_ok=True)
        _picture(f"{wnid}.png", "RGB")(root / "train" / wnid / "images")
    (root / "val" / "images").mkdir(parents=True, exist_ok=True)
    _picture("v.png", "RGB")(root / "val" / "images")
    (root / "val" / "val_annotations.txt").write_text("v.png\tn02\t0\t0\t9\t9\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\ttench\n")


def _tiny_values(folder: Path) -> list[Any]:
    data = load_dataset("tiny-imagenet", data_root=folder)
    return [*_values_of_data(data), data.class_names]


@functools.cache
def _digits() -> Dataset:
    return load_dataset("digits")


def _images(count: int) -> SyntheticSet:
    data = _digits()
    images, labels = data.preprocessing.apply(data.train_images[:count]), data.train_labels[:count]
    return SyntheticSet(images, labels, torch.tensor(0.02), data.class_names, data.preprocessing)


def _replay_buffer(folder: Path) -> None:
    network = networks.create("mlp:width=2", generator=seeds.generator(0), **_digits().network_arguments)
    snapshots = [[parameter.detach() + epoch for parameter in network.parameters()] for epoch in range(3)]
    torch.save([snapshots, snapshots], folder / "replay_buffer_0.pt")


def _replayed(folder: Path) -> list[Any]:
    with tempfile.TemporaryDirectory() as output:
        how = {"network": "mlp:width=2", "check": False}  # an accuracy takes longer than the reading
        return _all_of(compat.read_replay_buffers(folder, Path(output) / "experts", _digits(), **how))


def _all_of(store: TrajectoryStore) -> list[Any]:
    return [store.snapshot(expert, epoch) for expert in range(store.num_experts) for epoch in range(store.epochs + 1)]


def _state_dicts(folder: Path) -> None:
    network = networks.create("mlp:width=2", generator=seeds.generator(0), **_digits().network_arguments)
    for epoch in range(3):
        torch.save({name: value + epoch for name, value in network.state_dict().items()}, folder / f"{epoch}.pt")


def _of_state_dicts(folder: Path) -> list[Any]:
    with tempfile.TemporaryDirectory() as output:
        how = {"network": "mlp:width=2", "check": False}
        return _all_of(compat.read_state_dicts(folder, Path(output) / "experts", _digits(), **how))


def _single(format: str, name: str, **how: Any) -> Reader:
    """A set in one file of others."""
    write, read = WRITERS[format], READERS_OF_SETS[format]
    return Reader(
        name,
        lambda f: write(_images(4), f / name),
        lambda f: values_of(read(f / name, _digits(), lr=0.02, **how)),
        checked=False,
    )


def _mtt(name: str) -> Reader:
    """One of the three files of a set of MTT's code."""
    return Reader(
        name,
        lambda f: compat.write_mtt(_images(4), f),
        lambda f: values_of(compat.read_mtt(f / "images_best.pt", _digits())),
        checked=False,
        named="_best.pt",  # where one is missing, the error names another
    )


READERS = {
    "replay buffer": Reader("replay_buffer_0.pt", _replay_buffer, _replayed, checked=False),
    "mtt images": _mtt("images_best.pt"),
    "mtt labels": _mtt("labels_best.pt"),
    "mtt rate": _mtt("lr_best.pt"),
    "dd-ranking": Reader(
        "images.pt",
        lambda f: compat.write_dd_ranking(_images(4), f),
        lambda f: values_of(compat.read_dd_ranking(f, _digits())),
        checked=False,
    ),
    "state dicts": Reader("1.pt", _state_dicts, _of_state_dicts, checked=False),
    "dc": _single("dc", "res.pt"),
    "idc": _single("idc", "data.pt", factor=2),
    "npz": _single("npz", "set.npz"),
    "safetensors of others": _single("safetensors", "other.safetensors"),
    "dict of tensors": _single("tensors", "tensors.pt"),
    "png of a set": Reader(
        "3/0000.png",
        lambda f: compat.write_png(_images(20), f),
        lambda f: values_of(compat.read_png(f, _digits(), lr=0.02)),
        checked=False,
    ),
    "json": Reader("a.json", lambda f: write_json(f / "a.json", CONFIG), lambda f: read_json(f / "a.json")),
    "tensors": Reader(
        "a.safetensors",
        lambda f: write_tensors(f / "a.safetensors", {"x": uniform(3, 4).float(), "y": torch.arange(5)}, {"a": 1}),
        lambda f: read_tensors(f / "a.safetensors"),
    ),
    "synthetic set": Reader(
        "set.safetensors", lambda f: synthetic().save(f / "set"), lambda f: values_of(SyntheticSet.load(f / "set"))
    ),
    "synthetic set for people": Reader(
        "set.json",
        lambda f: synthetic().save(f / "set"),
        lambda f: values_of(SyntheticSet.load(f / "set")),
    ),
    "old synthetic set": Reader(
        "set.safetensors", _old_set, lambda f: values_of(SyntheticSet.load(f / "set")), checked=False
    ),
    "old set's description": Reader(
        "set.json", _old_set, lambda f: values_of(SyntheticSet.load(f / "set")), checked=False
    ),
    "experts": Reader("experts.json", lambda f: _store(f) and None, lambda f: TrajectoryStore(f).about),
    "trajectory": Reader("expert_0000.safetensors", lambda f: _store(f) and None, _snapshots),
    "unfinished expert": Reader("unfinished_0001.safetensors", _write_unfinished, _unfinished),
    "config": Reader("config.json", lambda f: RunFolder(f).write_config(CONFIG), lambda f: RunFolder(f).read_config()),
    "checkpoint": Reader(
        "checkpoint.pt", lambda f: RunFolder(f).write_state(STATE), lambda f: RunFolder(f).read_state()
    ),
    "summary": Reader(
        "summary.json",
        lambda f: RunFolder(f).write_summary(SUMMARY),
        lambda f: RunFolder(f).read_summary(),
    ),
    "metrics": Reader("metrics.jsonl", _metrics, lambda f: RunFolder(f).keep_until("metrics", 3), checked=False),
    "whitening": Reader("zca.safetensors", _zca, lambda f: zca._read(f / "zca.safetensors")),
    "png": Reader("a.png", _picture("a.png", "RGB"), _picture_values("a.png"), checked=False),
    "jpeg": Reader("a.jpg", _picture("a.jpg", "RGB"), _picture_values("a.jpg"), checked=False),
    "grey gif": Reader("a.gif", _picture("a.gif", "L"), _picture_values("a.gif"), checked=False),
    "mnist images": Reader(
        "MNIST/raw/train-images-idx3-ubyte",
        _mnist,
        lambda f: _values_of_data(load_dataset("mnist", data_root=f)),
        checked=False,
        named="mnist",
    ),
    "mnist labels": Reader(
        "MNIST/raw/t10k-labels-idx1-ubyte",
        _mnist,
        lambda f: _values_of_data(load_dataset("mnist", data_root=f)),
        checked=False,
        named="mnist",
    ),
    "annotations": Reader(
        "tiny-imagenet-200/val/val_annotations.txt", _tiny, _tiny_values, checked=False, named="tiny-imagenet"
    ),
    "words": Reader(
        "tiny-imagenet-200/words.txt",
        _tiny,
        _tiny_values,
        checked=False,
    ),
}
