"""Where the pictures of data sets known by name are: ImageNet's subsets and Tiny-ImageNet, and which release it is."""

import re
from collections.abc import Sequence
from pathlib import Path

from ddfast.data.folders import Split, annotated, by_class, folder_files, is_annotated, lines_of
from ddfast.data.listing import LeftOut, sub_folders

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

# Training and test images of the releases that published numbers are about.
PUBLISHED = {
    "mnist": (60000, 10000),
    "fashion-mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
    "svhn": (73257, 26032),
    "tiny-imagenet": (100000, 10000),
    "imagenette": (12894, 500),
    "imagewoof": (12454, 500),
}
SECOND = {"imagenette": (9469, 3925), "imagewoof": (9025, 3929)}  # fast.ai's second releases: ImageNet's split redrawn
OF_ONE_CLASS = (732, 1300)  # ImageNet's training images; its validation has 50


def release(name: str, train: int, test: int, files: Sequence[Path] = ()) -> tuple[str, list[str]]:
    """The name of a named set by what was found of it, and what to say where it is not the published release.

    Args:
        train, test: the numbers of its images.
        files: of training; where pictures of ImageNet's validation are among them, ImageNet's split was redrawn.
    """
    redrawn = any(file.name.startswith("ILSVRC2012_val") for file in files)
    if name not in PUBLISHED and name not in IMAGENET_SUBSETS:
        return name, []  # made here
    if name in PUBLISHED:
        is_published, expected = (train, test) == PUBLISHED[name], "{} + {}".format(*PUBLISHED[name])
    else:
        K = len(IMAGENET_SUBSETS[name])
        least, most = (K * count for count in OF_ONE_CLASS)
        is_published, expected = least <= train <= most and test == 50 * K, f"{least} to {most} + {50 * K}"
    if is_published and not redrawn:
        return name, []
    if redrawn or (train, test) == SECOND.get(name):
        whole = (train, test) == SECOND.get(name)
        own = f"{name}2" if whole else f"{name}2 ({train} + {test} images)"
        what = f"the second release of {name}" if whole else f"of the second release of {name}, or another split"
        return own, [f"{what}: results published for {name} do not compare"]
    words = f"not the published split of {expected} images: results published for {name} do not compare"
    return f"{name} ({train} + {test} images)", [words]


def set_of_release(name: str) -> str | None:
    """The named set that a name by `release` is one of; None for other names."""
    whole = name.partition(" (")[0]
    whole = whole[:-1] if whole[:-1] in SECOND and whole.endswith("2") else whole
    return whole if whole in PUBLISHED or whole in IMAGENET_SUBSETS or whole == "digits" else None


def imagenet_subset_files(name: str, root: Path, download: bool) -> Split:
    """As `folder_files`, from a folder of the subset's ten classes or from the whole of ImageNet, in MTT's order."""
    if download and not _imagenet_folders(name, root):
        if name != "imagenette":
            raise ValueError(f"{name}: cannot be downloaded, only imagenette can; {_expected(name, root)}")
        from torchvision.datasets import Imagenette

        for split in ("train", "val"):
            Imagenette(str(root), split=split, size="160px", download=True)
    candidates = _imagenet_folders(name, root)
    if not candidates:
        raise FileNotFoundError(f"{name}: not found; {_expected(name, root)}")
    folder, *others = candidates
    left_out = LeftOut()
    wnids, indices = sub_folders(folder / "train", left_out), IMAGENET_SUBSETS[name]
    if len(wnids) not in (len(indices), 1000) or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids):
        raise ValueError(
            f"{folder}: expected the {len(indices)} classes of {name} or the 1000 of ImageNet, called n01440764 and so "
            f"on; found {len(wnids)}, such as {wnids[0] if wnids else 'none'}"
        )
    # The class indices of ImageNet follow its wnids.
    order = indices if len(wnids) == 1000 else [sorted(indices).index(index) for index in indices]
    chosen = [wnids[k] for k in order]
    train, test = (by_class(folder / part, chosen, left_out=left_out) for part in ("train", "val"))
    notes = [f"{', '.join(other.name for other in others)} beside it not read"] if others else []
    sources = tuple(f"{folder.name}/{part}/" for part in ("train", "val"))
    return Split(train, test, _imagenet_names(indices), sources, notes + left_out.notes())


def tiny_imagenet_files(root: Path, download: bool) -> Split:
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
    left_out = LeftOut()
    wnids = tuple(sub_folders(folder / "train", left_out))
    train = by_class(folder / "train", wnids, left_out=left_out)
    test = annotated(folder / "val", wnids) if is_annotated(folder / "val") else folder_files(folder, "val").test
    sources = tuple(f"{folder.name}/{part}/" for part in ("train", "val"))
    return Split(train, test, _tiny_names(folder, wnids), sources, left_out.notes())


def _imagenet_folders(name: str, root: Path) -> list[Path]:
    """The folders of the subset (imagenette, imagenette2, imagenette2-160, …), then that of all of ImageNet."""
    candidates = [*sorted(root.glob(f"{name}*")), root / "imagenet"]
    return [path for path in candidates if (path / "train").is_dir() and (path / "val").is_dir()]


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
    rows = (line.partition("\t") for line in lines_of(path))
    words = {wnid: names.split(",")[0].strip() for wnid, _, names in rows}
    names = tuple(words.get(wnid, wnid) for wnid in wnids)
    return names if len(set(names)) == len(names) else tuple(wnids)
