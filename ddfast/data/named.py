"""The data sets that are known by name: where their files are, and what they are normalised with."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.data.archives import IMAGENET_SUBSETS, imagenet_subset_files, release, tiny_imagenet_files
from ddfast.data.folders import Split
from ddfast.data.images import read_pictures, resized
from ddfast.data.listing import listed
from ddfast.runtime.devices import is_out_of_memory
from ddfast.runtime.files import cache_folder, replacing

DIGITS_SIDE = 16
DIGITS_TEST_SHARE = 0.2
IMAGENET_SIDE = 128
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class RawData:
    """Images and labels as they are read, before preprocessing."""

    train_images: Tensor  # uint8 [N, C, H, W], or float in [0, 1]
    train_labels: Tensor  # int64 [N]
    test_images: Tensor  # [M, C, H, W]
    test_labels: Tensor  # int64 [M]
    class_names: tuple[str, ...]  # [K]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std per channel; None: fitted
    name: str | None = None  # of the release that a named set is
    value_range: tuple[float, float] | None = None  # what was read as 0 and 1, of pixels deeper than 8 bits
    sources: tuple[str, str] = ("", "")  # where the training and the test images come from, in words
    notes: list[str] = field(default_factory=list)  # what else there is to tell of how they were read
    skipped: list[str] = field(default_factory=list)  # files that cannot be read, and why


@dataclass(frozen=True)
class _Torchvision:
    """A data set that torchvision reads."""

    cls: str
    splits: tuple[dict, dict]  # keyword arguments that say train and test
    files: str  # below the root
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    def read(self, name: str, root: Path, download: bool) -> RawData:
        import torchvision

        parts, by_hand = [], f"{root}/{self.files}"
        root = self._unpacked(root) or root
        for split in self.splits:
            try:
                parts.append(getattr(torchvision.datasets, self.cls)(str(root), **split, download=download))
            except Exception as error:  # MNIST's files have no checksum, and damaged ones raise many kinds
                if is_out_of_memory(error):
                    raise MemoryError(f"{name}: memory ran out while it was read") from None
                if download and isinstance(error, RuntimeError | OSError):
                    raise OSError(f"{name}: cannot be downloaded ({error}); put {by_hand} there by hand") from None
                if isinstance(error, OSError):
                    raise
                if isinstance(error, RuntimeError):
                    raise FileNotFoundError(
                        f"{name}: not found or damaged; expected {by_hand}, or --download"
                    ) from None
                raise ValueError(f"{name}: damaged; see {by_hand} ({type(error).__name__})") from None
        images = [self._images(part.data) for part in parts]
        labels = [torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels).long() for part in parts]
        names = getattr(parts[0], "classes", None)
        names = [str(k) for k in range(10)] if names is None or self.cls == "MNIST" else names
        return RawData(images[0], labels[0], images[1], labels[1], tuple(names), self.statistics)

    def _unpacked(self, root: Path) -> Path | None:
        """A root with the files that are here as they are published, compressed: unpacked once, into the cache. None
        where there are none, or where they lie unpacked beside themselves."""
        folder = Path(self.cls) / "raw"
        packed = [file for file in sorted((root / folder).glob("*-ubyte.gz")) if not file.with_suffix("").exists()]
        if not packed:
            return None
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in packed]
        unpacked = cache_folder() / "data" / f"unpacked-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
        for file in (root / folder).glob("*-ubyte*"):
            target = unpacked / folder / file.name.removesuffix(".gz")
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with (
                    replacing(target) as temporary,
                    (gzip.open if file.suffix == ".gz" else open)(file, "rb") as source,
                ):
                    temporary.write_bytes(source.read())
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{file}: damaged ({error})") from None
        return unpacked

    @staticmethod
    def _images(data: Any) -> Tensor:  # uint8 [N, C, H, W]
        images = torch.as_tensor(data)
        if images.dim() == 3:
            return images.unsqueeze(1)
        return images.permute(0, 3, 1, 2).contiguous() if images.shape[3] == 3 and images.shape[1] != 3 else images


TRAIN_OR_TEST = ({"train": True}, {"train": False})
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
TORCHVISION = {
    "mnist": _Torchvision("MNIST", TRAIN_OR_TEST, f"MNIST/raw/{IDX}", ((0.1307,), (0.3081,))),
    "fashion-mnist": _Torchvision("FashionMNIST", TRAIN_OR_TEST, f"FashionMNIST/raw/{IDX}", ((0.2861,), (0.3530,))),
    "cifar10": _Torchvision(
        "CIFAR10", TRAIN_OR_TEST, "cifar-10-batches-py/{data_batch_1…5,test_batch,batches.meta}", CIFAR
    ),
    "cifar100": _Torchvision("CIFAR100", TRAIN_OR_TEST, "cifar-100-python/{train,test,meta}", CIFAR),
    "svhn": _Torchvision(
        "SVHN",
        ({"split": "train"}, {"split": "test"}),
        "{train,test}_32x32.mat",
        ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ),
}
DATASETS = ("digits", *TORCHVISION, "tiny-imagenet", *IMAGENET_SUBSETS)


def data_root(root: str | Path | None) -> Path:
    """Where named data sets are looked for: `root`, else DDFAST_DATA, else a folder in the user's cache."""
    root = root or os.environ.get("DDFAST_DATA")
    return Path(root) if root else cache_folder() / "data"


def read_named(
    name: str,  # of DATASETS
    root: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    resize: str = "stretch",
    download: bool = False,
    skip_unreadable: bool = False,
) -> RawData:
    """Read a named data set; FileNotFoundError that says which files are expected where."""
    files = []
    if name == "digits":
        raw = _digits()
    elif name in TORCHVISION:
        raw = TORCHVISION[name].read(name, data_root(root), download)
    else:
        if name == "tiny-imagenet":
            split = tiny_imagenet_files(data_root(root), download)
        else:
            split = imagenet_subset_files(name, data_root(root), download)
            image_size = image_size or (IMAGENET_SIDE, IMAGENET_SIDE)
        raw = read_split(split, image_size, resize, skip_unreadable=skip_unreadable, channels=3)
        raw, files = replace(raw, statistics=IMAGENET_STATISTICS), split.train.paths
    own_name, notes = release(name, len(raw.train_labels), len(raw.test_labels), files)
    train, test = (resized(images, image_size, resize) for images in (raw.train_images, raw.test_images))
    return replace(raw, train_images=train, test_images=test, name=own_name, notes=[*notes, *raw.notes])


def read_split(
    split: Split,
    image_size: tuple[int, int] | None = None,
    resize: str = "stretch",
    value_range: tuple[float, float] | None = None,
    skip_unreadable: bool = False,
    channels: int | None = None,
) -> RawData:
    """Decode the files of a data set, as `read_pictures` does."""
    parts = split.train, split.test
    pictures = read_pictures([part.paths for part in parts], image_size, channels, resize, value_range, skip_unreadable)
    labels = [torch.tensor(part.labels)[rows] for part, rows in zip(parts, pictures.kept, strict=True)]
    left = set(labels[0].tolist())
    if empty := [name for k, name in enumerate(split.class_names) if k not in left]:
        raise ValueError(f"skip_unreadable: no training picture of class {listed(empty)} can be read")
    train, test = pictures.images
    return RawData(
        train,
        labels[0],
        test,
        labels[1],
        split.class_names,
        value_range=pictures.value_range,
        sources=split.sources,
        notes=[*pictures.notes, *split.notes],
        skipped=pictures.skipped,
    )


def _digits() -> RawData:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998), 8×8 px resized to 16×16; 1 in 5 tests."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch.nn.functional import interpolate

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8] in [0, 1]
    images = interpolate(images, size=(DIGITS_SIDE, DIGITS_SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=DIGITS_TEST_SHARE, random_state=0, stratify=bunch.target
    )
    names = tuple(str(d) for d in range(10))
    return RawData(images[train], labels[train], images[test], labels[test], names)
