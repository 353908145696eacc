"""Data sets that are folders of image files: train/<class>/… and val/ or test/, and the layouts of known archives."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Class indices of the ImageNet subsets of the MTT paper, in its order.
IMAGENET_SUBSETS = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}
TINY_IMAGENET = "tiny-imagenet-200"
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


@dataclass(frozen=True)
class Files:
    """Image files and their classes."""

    paths: list[Path]  # N
    labels: list[int]  # N


def folder_files(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """Training files, test files and class names of an image folder.

    Errors: FileNotFoundError for a missing part; ValueError for empty or unknown classes.
    """
    train = root / "train"
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise FileNotFoundError(
            f"{root}: expected the folders train/ and val/ (or test/), each with a folder per class"
        )
    names = tuple(_class_folders(train))
    if not names:
        raise ValueError(f"{train}: expected a folder per class, found none")
    unknown = [name for name in _class_folders(test) if name not in names]
    if unknown:
        raise ValueError(f"{test}: {', '.join(unknown[:5])} is no class of {train}")
    return _by_class(train, names), _by_class(test, names, may_lack=True), names


def imagenet_subset_files(name: str, root: Path, download: bool) -> tuple[Files, Files, tuple[str, ...]]:
    """As `folder_files`, from a folder of the subset's ten classes or from the whole of ImageNet, in MTT's order."""
    if download and _imagenet_folder(name, root) is None:
        if name != "imagenette":
            raise ValueError(f"{name}: cannot be downloaded, only imagenette can; {_expected(name, root)}")
        from torchvision.datasets import Imagenette

        for split in ("train", "val"):
            Imagenette(str(root), split=split, size="160px", download=True)
    folder = _imagenet_folder(name, root)
    if folder is None:
        raise FileNotFoundError(f"{name}: not found; {_expected(name, root)}")
    wnids, indices = _class_folders(folder / "train"), IMAGENET_SUBSETS[name]
    if len(wnids) not in (len(indices), 1000) or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids):
        raise ValueError(
            f"{folder}: expected the {len(indices)} classes of {name} or the 1000 of ImageNet, called n01440764 and so "
            f"on; found {len(wnids)}, such as {wnids[0] if wnids else 'none'}"
        )
    # The class indices of ImageNet follow its wnids.
    order = indices if len(wnids) == 1000 else [sorted(indices).index(index) for index in indices]
    chosen = [wnids[k] for k in order]
    return _by_class(folder / "train", chosen), _by_class(folder / "val", chosen), _imagenet_names(indices)


def tiny_imagenet_files(root: Path, download: bool) -> tuple[Files, Files, tuple[str, ...]]:
    """As `folder_files`, from Tiny-ImageNet's original layout (validation images in one folder) or one by class."""
    folder = root / TINY_IMAGENET
    if download and not folder.is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        part = root / f"{TINY_IMAGENET}.part"
        try:
            download_and_extract_archive(TINY_IMAGENET_URL, str(root), str(part), md5=TINY_IMAGENET_MD5)
        except RuntimeError as error:
            raise OSError(f"tiny-imagenet: cannot be downloaded to {root} ({error})") from None
        (part / TINY_IMAGENET).rename(folder)
    if not (folder / "train").is_dir():
        raise FileNotFoundError(
            f"tiny-imagenet: not found; expected {folder}/train/<wnid>/images/*.JPEG and {folder}/val/, or --download"
        )
    wnids = tuple(_class_folders(folder / "train"))
    annotations = folder / "val" / "val_annotations.txt"
    train = _by_class(folder / "train", wnids)
    if (folder / "val" / "images").is_dir() and annotations.is_file():
        rows = [line.split("\t")[:2] for line in _lines(annotations) if line.strip()]
        number = {wnid: k for k, wnid in enumerate(wnids)}
        unknown = [row[-1] for row in rows if len(row) < 2 or row[1] not in number]
        if unknown:
            raise ValueError(f"{annotations}: {unknown[0][:100]!r} is no class of {folder / 'train'}")
        paths = [folder / "val" / "images" / file for file, _ in rows]
        test = Files(paths, [number[wnid] for _, wnid in rows])
    else:
        test = folder_files(folder)[1]
    return train, test, _tiny_names(folder, wnids)


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _by_class(folder: Path, names: Sequence[str], may_lack: bool = False) -> Files:
    """The image files below folder/<name> for every name."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths, labels, empty = [], [], []
    for k, name in enumerate(names):
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".") and path.is_file()
        )
        paths += found
        labels += [k] * len(found)
        if not found:
            empty.append(name)
    if not paths or (empty and not may_lack):
        raise ValueError(f"{folder}: no images of class {', '.join(empty[:5])}")
    return Files(paths, labels)


def _imagenet_folder(name: str, root: Path) -> Path | None:
    """The folder of the subset (imagenette, imagenette2, imagenette2-160, …), or of all of ImageNet."""
    candidates = [*sorted(root.glob(f"{name}*")), root / "imagenet"]
    return next((path for path in candidates if (path / "train").is_dir() and (path / "val").is_dir()), None)


def _expected(name: str, root: Path) -> str:
    return (
        f"expected {root}/{name}/{{train,val}}/<class>/*.JPEG with its ten classes, "
        f"or {root}/imagenet/{{train,val}}/<class>/*.JPEG with 1000"
    )


def _imagenet_names(indices: Sequence[int]) -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(names[index] for index in indices)


def _tiny_names(folder: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The words of words.txt, their first synonym; the wnids where it is not there or would not tell them apart."""
    path = folder / "words.txt"
    if not path.is_file():
        return tuple(wnids)
    rows = (line.partition("\t") for line in _lines(path))
    words = {wnid: names.split(",")[0].strip() for wnid, _, names in rows}
    names = tuple(words.get(wnid, wnid) for wnid in wnids)
    return names if len(set(names)) == len(names) else tuple(wnids)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
