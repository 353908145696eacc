"""Arrays by name: .npz and .npy files, .pt files of tensors, and which of them are images and labels of which part."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from ddfast.runtime.files import fault_of_machine

ENDINGS = (".npz", ".npy", ".pt", ".pth")
PARTS = {"train": "train", "training": "train", "tr": "train", "test": "test", "testing": "test", "te": "test"}
PARTS |= {name: "validation" for name in ("val", "valid", "validation", "dev")}
IMAGES = {"x", "image", "images", "img", "imgs", "data", "input", "inputs", "pixels", "samples", "features"}
LABELS = {"y", "label", "labels", "target", "targets", "class"}
NAMES = {"classnames", "labelnames", "classes", "names"}
UNNAMED = re.compile(r"arr_\d+")
EXPECTED = "x_train, y_train, x_test and y_test, train_images and train_labels, or images and labels"


@dataclass(frozen=True)
class Arrays:
    """Arrays by what they are."""

    train: tuple[Any, Any]  # images, labels
    test: tuple[Any, Any] | None
    class_names: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)


def is_array_file(dataset: Any) -> bool:
    """Whether it names a file of arrays, or a folder of .npy files."""
    if not isinstance(dataset, str | Path):
        return False
    path = Path(dataset)
    if path.suffix.lower() in ENDINGS:
        return not path.is_dir()
    return path.is_dir() and not (path / "train").is_dir() and any(_role(file.stem) for file in path.glob("*.npy"))


def read_array_file(path: str | Path) -> Any:
    """What a file of arrays holds: a mapping of names, or a tuple; of an .npy file the arrays beside it, too.

    Errors: FileNotFoundError; ValueError for a file that is damaged, or holds something else.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy" and path.is_file() and _role(path.stem) is None:
        raise ValueError(f"{path}: expected files called {EXPECTED}, each with the ending .npy")
    if not path.exists():
        raise FileNotFoundError(f"dataset: there is no file {path}")
    try:
        if path.suffix.lower() == ".npz":
            with numpy.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix.lower() in (".pt", ".pth"):
            return torch.load(path, map_location="cpu", weights_only=True)
        folder = path if path.is_dir() else path.parent
        files = [file for file in sorted(folder.glob("*.npy")) if _role(file.stem)]
        return {file.stem: numpy.load(file, mmap_mode="c", allow_pickle=False) for file in files}
    except Exception as error:  # a damaged file raises many kinds
        if fault := fault_of_machine(path, error):
            raise fault from None
        reason = (" ".join(str(error).split()) or type(error).__name__).split(". ")[0][:200]
        raise ValueError(f"{path}: expected arrays or tensors, cannot be read ({reason})") from None


def by_part(arrays: Mapping[str, Any]) -> Arrays:
    """Which arrays are the images and labels of which part, by their names.

    Without test images, those for validation are the test set. Errors: ValueError that lists the names, where images or
    labels are missing.
    """
    found: dict[tuple[str, str], Any] = {}
    unknown, names = [], None
    unnamed = [name for name in arrays if UNNAMED.fullmatch(str(name))]
    if len(unnamed) == len(arrays) and len(unnamed) in (2, 4):  # as numpy.savez names what is given without names
        parts = ("train", "test") if len(unnamed) == 4 else ("",)
        roles = [(part, kind) for part in parts for kind in ("images", "labels")]
        found = dict(zip(roles, (arrays[name] for name in sorted(unnamed)), strict=True))
    else:
        for name, array in arrays.items():
            role = _role(str(name))
            if role is None:
                unknown.append(str(name))
            elif role[1] == "names":
                names = [str(text) for text in numpy.asarray(array).ravel().tolist()]
            elif role in found:
                raise ValueError(f"dataset: two arrays are {' '.join(role).strip()}: {', '.join(map(str, arrays))}")
            else:
                found[role] = array
    train = next((part for part in ("train", "") if (part, "images") in found), None)
    if train is None or (train, "labels") not in found:
        raise ValueError(f"dataset: expected arrays called {EXPECTED}; got {', '.join(map(str, arrays)) or 'none'}")
    test = next((part for part in ("test", "validation") if (part, "images") in found), None)
    if test is not None and (test, "labels") not in found:
        raise ValueError(f"dataset: expected labels of the {test} images, too; got {', '.join(map(str, arrays))}")
    notes = []
    if test == "validation":
        notes.append("tested on its validation part")
    elif test == "test" and ("validation", "images") in found:
        notes.append("its validation part is left out")
    if unknown:
        notes.append(f"left out: {', '.join(unknown)}")
    pairs = [None if part is None else (found[part, "images"], found[part, "labels"]) for part in (train, test)]
    return Arrays(pairs[0], pairs[1], names, notes)


def _role(name: str) -> tuple[str, str] | None:
    """The part, or "", and images, labels or names: what an array of this name is."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    if "".join(words) in NAMES:
        return "", "names"
    words = [match for word in words for match in _split_up(word)]
    parts = [PARTS[word] for word in words if word in PARTS]
    kinds = ["images" if word in IMAGES else "labels" for word in words if word in IMAGES | LABELS]
    if len(words) != len(parts) + len(kinds) or len(parts) > 1 or len(kinds) != 1:
        return None
    return (parts or [""])[0], kinds[0]


def _split_up(word: str) -> list[str]:
    """xtrain as x and train."""
    for part in PARTS:
        rest = word.removesuffix(part) if word.endswith(part) else word.removeprefix(part)
        if rest != word and rest in IMAGES | LABELS:
            return [rest, part]
    return [word]
