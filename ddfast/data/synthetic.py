"""SyntheticSet: the distilled images, how to train on them, and how real data must be preprocessed beside them."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddfast.data.datasets import Preprocessing
from ddfast.files import read_json, replacing, write_json

FORMAT = "ddfast-synthetic-set-1"


@dataclass
class SyntheticSet:
    """A tiny training set: I images, their labels and the learning rate they were distilled for.

    `save` writes `<path>.safetensors` (images, labels, lr) and `<path>.json` (how to use them).
    """

    images: Tensor  # [I, C, H, W], preprocessed
    labels: Tensor  # int64 [I]
    lr: Tensor  # []
    class_names: tuple[str, ...]  # [K]
    preprocessing: Preprocessing

    def __post_init__(self):
        if self.images.dim() != 4 or len(self.images) == 0:
            raise ValueError(f"images: expected [I, C, H, W], got {list(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected int64 [{len(self.images)}], got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError(f"labels: expected classes 0 to {len(self.class_names) - 1}, got {self.labels.tolist()}")
        if self.lr.shape != ():
            raise ValueError(f"lr: expected [], got {list(self.lr.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def detached(self) -> "SyntheticSet":
        """A copy on the CPU that shares nothing with this one."""
        tensors = (
            t.detach().cpu().clone(memory_format=torch.contiguous_format) for t in (self.images, self.labels, self.lr)
        )
        return SyntheticSet(*tensors, self.class_names, self.preprocessing)

    def save(self, path: str | Path) -> None:
        """Write both files, each whole or not at all."""
        from safetensors.torch import save_file

        tensors, about_path = _paths(path)
        copy = self.detached()
        with replacing(tensors) as temporary:
            save_file({"images": copy.images, "labels": copy.labels, "lr": copy.lr}, temporary)
        about = {"format": FORMAT, "labels": "classes", "class_names": list(self.class_names)}
        write_json(about_path, {**about, "preprocessing": asdict(self.preprocessing)})

    @classmethod
    def load(cls, path: str | Path) -> "SyntheticSet":
        """Read both files; `path` with or without an ending. OSError or ValueError that names the file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        tensors_path, about_path = _paths(path)
        for file in (about_path, tensors_path):
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file; a synthetic set is a .safetensors and a .json file")
        about = read_json(about_path)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"{about_path}: not a ddfast synthetic set")
        try:
            tensors = load_file(tensors_path)
            preprocessing = Preprocessing(*(tuple(about["preprocessing"][key]) for key in ("mean", "std")))
            names = tuple(about["class_names"])
            return cls(tensors["images"], tensors["labels"], tensors["lr"], names, preprocessing)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{tensors_path}: not a ddfast synthetic set ({error})") from None


def _paths(path: str | Path) -> tuple[Path, Path]:
    """The two files of a set that is called `path`, with or without an ending."""
    name = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{name}.safetensors"), Path(f"{name}.json")
