"""Data sets that are folders of pictures: which folder is for training, which for testing, and whose split is drawn."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddfast.data.listing import LeftOut, counted, list_pictures, listed, sub_folders

TRAIN, TEST, VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
SPLITS = (*TRAIN, *TEST, *VALIDATION)
DRAWN_SHARE = 5  # 1 picture in so many of each class is for testing, where a split is drawn
DRAWN = f"drawn: 1 in {DRAWN_SHARE} of each class, seed 0"
ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet: file and class in the first two columns
DEEPEST = 3  # folders around a data set


@dataclass(frozen=True)
class Files:
    """Image files and their classes."""

    paths: list[Path]  # N
    labels: list[int]  # N


@dataclass(frozen=True)
class Split:
    """The files of a data set, and how they were found."""

    train: Files
    test: Files
    class_names: tuple[str, ...]  # [K]
    sources: tuple[str, str] = ("train/", "test/")  # where both come from, in words
    notes: list[str] = field(default_factory=list)  # what else there is to tell


def folder_files(root: Path, test_folder: str | None = None) -> Split:
    """The training files, test files and classes of a folder of pictures.

    Read are train/<class>/… (training) and test/<class>/… (testing, val, valid, validation), in any case; test/ comes
    before val/. Without a test folder, as without both, 1 in 5 of the pictures of each class are drawn for testing, by
    a hash of their names. Folders around them are entered. `test_folder` names another folder to test on.

    Errors: FileNotFoundError for a missing part; ValueError for empty or unknown classes, and for what can be read in
    two ways.
    """
    left_out = LeftOut()
    root = _entered(root, left_out)
    folders = sub_folders(root, left_out)
    found = {kind: _one_of(root, folders, kind) for kind in (TRAIN, TEST, VALIDATION)}
    if not any(found.values()):
        if test_folder is not None:
            raise ValueError(f"test_folder: {root} has no folder train/ beside {test_folder}")
        return _undivided(root, folders, left_out)
    if found[TRAIN] is None:
        there = found[TEST] or found[VALIDATION]
        raise FileNotFoundError(f"{root}: expected the folder train/ beside {there}/, each with a folder per class")
    train = root / found[TRAIN]
    names = sub_folders(train, left_out)
    if not names:
        raise ValueError(f"{train}: expected a folder per class, found none")
    others = [name for name in folders if name not in found.values()]
    notes = [f"other folders skipped: {listed(others)}"] if others else []
    test, reasons = _test_folder(root, found, names, test_folder)
    files = by_class(train, names, left_out=left_out)
    if test is None:
        train_files, test_files = drawn(files, names, train)
        notes += _lacking(test_files, names) + left_out.notes()
        return Split(train_files, test_files, tuple(names), (f"{train.name}/", DRAWN), notes)
    notes = reasons + notes
    if is_annotated(test):
        test_files = annotated(test, names)
    else:
        test_files = by_class(test, _matching(test, sub_folders(test, left_out), train, names), True, left_out)
    notes += _lacking(test_files, names) + _shared(files, test_files)
    source = f"{test.relative_to(root)}/" if test.is_relative_to(root) else f"{test}/"
    return Split(files, test_files, tuple(names), (f"{train.name}/", source), notes + left_out.notes())


def by_class(
    folder: Path, names: Sequence[str | None], may_lack: bool = False, left_out: LeftOut | None = None
) -> Files:
    """The pictures below folder/<name> for every name. Errors: ValueError for a class without any."""
    left_out, paths, labels, empty = left_out or LeftOut(), [], [], []
    for k, name in enumerate(names):
        found = [] if name is None else list_pictures(folder / name, left_out)
        paths += found
        labels += [k] * len(found)
        if not found:
            empty.append(name)
    if not paths or (empty and not may_lack):
        of = f" of class {listed(name for name in empty if name)}" if paths else ""
        raise ValueError("; ".join([f"{folder}: no images{of}", *left_out.notes()]))
    _expect_one_class_each(paths, labels)
    return Files(paths, labels)


def is_annotated(folder: Path) -> bool:
    """Whether the pictures lie in one folder beside a list of their classes, as in Tiny-ImageNet's val/."""
    return (folder / "images").is_dir() and (folder / ANNOTATIONS).is_file()


def annotated(folder: Path, names: Sequence[str]) -> Files:
    """The pictures of such a folder. Errors: ValueError for a list that names another class, or is none."""
    rows = [line.split("\t")[:2] for line in lines_of(folder / ANNOTATIONS) if line.strip()]
    number = {name: k for k, name in enumerate(names)}
    unknown = [row[-1] for row in rows if len(row) < 2 or row[1] not in number]
    if unknown:
        raise ValueError(f"{folder / ANNOTATIONS}: {unknown[0][:100]!r} is no class of the training pictures")
    return Files([folder / "images" / file for file, _ in rows], [number[name] for _, name in rows])


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; ValueError for another."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None


def drawn(files: Files, names: Sequence[str], root: Path) -> tuple[Files, Files]:
    """Training and test files: of each class 1 in 5, at least one, for testing; the same ones whatever else is there.

    Files are drawn by a hash of their path below `root`: one more picture does not move the others. A class of one
    picture has none to test on.
    """
    tests = set()
    for k in range(len(names)):
        rows = [row for row, label in enumerate(files.labels) if label == k]
        count = min(max(1, round(len(rows) / DRAWN_SHARE)), len(rows) - 1)
        tests |= set(sorted(rows, key=lambda row: _hash(files.paths[row].relative_to(root)))[:count])
    if not tests:
        raise ValueError(f"{root}: expected at least two pictures of a class to draw a split from, got one of each")

    def part(is_test: bool) -> Files:
        rows = [row for row in range(len(files.paths)) if (row in tests) == is_test]
        return Files([files.paths[row] for row in rows], [files.labels[row] for row in rows])

    return part(False), part(True)


def _hash(path: Path) -> bytes:
    return hashlib.sha256(b"0:" + os.fsencode(path.as_posix())).digest()


def _entered(root: Path, left_out: LeftOut) -> Path:
    """The folder that holds the data set: of an unpacked archive often the only one within."""
    for _ in range(DEEPEST):
        found = LeftOut()
        folders = sub_folders(root, found)
        if len(folders) != 1 or found.loose or folders[0].lower() in SPLITS or not sub_folders(root / folders[0]):
            break
        left_out.add(found)
        root = root / folders[0]
    return root


def _one_of(root: Path, folders: Sequence[str], kind: Sequence[str]) -> str | None:
    """The only folder of this kind; ValueError where there are several."""
    found = [name for name in folders if name.lower() in kind]
    if len(found) > 1:
        raise ValueError(f"{root}: {' and '.join(f'{name}/' for name in found)} mean the same; leave one of them")
    return found[0] if found else None


def _test_folder(
    root: Path, found: dict[tuple[str, ...], str | None], names: Sequence[str], given: str | None
) -> tuple[Path | None, list[str]]:
    """The folder to test on, and why it is that one; None where there is none."""
    if given is not None:
        wanted = str(given).rstrip("/")
        matching = [name for name in sub_folders(root) if name.lower() == wanted.lower()]
        chosen = root / (matching[0] if len(matching) == 1 else wanted)
        if not wanted or not chosen.is_dir():
            expected = listed(f"{name}/" for name in sub_folders(root) if name != found[TRAIN])
            raise FileNotFoundError(f"test_folder: expected a folder in {root} ({expected or 'none'}), got {given!r}")
        if chosen.resolve() == (root / found[TRAIN]).resolve():
            raise ValueError(f"test_folder: expected another folder than that of training, {found[TRAIN]}/")
        return chosen, []
    candidates = [root / found[kind] for kind in (TEST, VALIDATION) if found[kind] is not None]
    sorted_ones = [folder for folder in candidates if is_annotated(folder) or _has_pictures(folder, names)]
    unsorted = [folder for folder in candidates if folder not in sorted_ones]
    if not sorted_ones:
        if candidates:
            raise ValueError(
                f"{candidates[0]}: expected pictures in a folder per class as in {root / found[TRAIN]} "
                f"({listed(names)}), found {listed(sub_folders(candidates[0])) or 'none'}"
            )
        return None, []
    notes = [f"{folder.name}/ skipped, which has no pictures in a folder per class" for folder in unsorted]
    for folder in sorted_ones[1:]:
        count = len(list_pictures(folder))
        notes.append(f"{folder.name}/ with {counted(count, 'picture')} skipped (test_folder {folder.name} reads it)")
    return sorted_ones[0], notes


def _matching(test: Path, folders: Sequence[str], train: Path, names: Sequence[str]) -> list[str | None]:
    """The folder of test pictures of each class; ValueError for those of no class, and for two of one."""
    unknown = [name for name in folders if _of_class(name, names) is None]
    if unknown:
        raise ValueError(f"{test}: {listed(unknown)} is no class of {train}, whose classes are {listed(names)}")
    found: dict[str, str] = {}
    for folder in folders:
        other = found.setdefault(_of_class(folder, names), folder)
        if other != folder:
            raise ValueError(f"{test}: {other} and {folder} are the same class of {train}; leave one of them")
    return [found.get(name) for name in names]


def _has_pictures(folder: Path, names: Sequence[str]) -> bool:
    """Whether there is a picture of a class."""
    return any(_of_class(name, names) and list_pictures(folder / name) for name in sub_folders(folder))


def _of_class(name: str, names: Sequence[str]) -> str | None:
    """The class that a folder of test pictures means: of the same name, or the only one that differs from it in case or
    in how its letters are encoded, as archives of other systems have it."""
    if name in names:
        return name
    same = [other for other in names if _folded(other) == _folded(name)]
    return same[0] if len(same) == 1 else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _undivided(root: Path, folders: Sequence[str], left_out: LeftOut) -> Split:
    """Class folders without a split: one is drawn. Refused where they look like something else."""
    if root.name.lower() in SPLITS:
        siblings = [path.name for path in root.parent.iterdir() if path.name.lower() in SPLITS and path.is_dir()]
        if len(siblings) > 1:
            raise ValueError(f"{root}: is one part of a data set ({', '.join(sorted(siblings))}); give {root.parent}")
    if len(folders) < 2:
        raise FileNotFoundError(
            f"{root}: expected the folders train/ and test/ (or val/), each with a folder per class, or a folder per "
            f"class; found {listed(f'{name}/' for name in folders) or 'no folders'}"
        )
    within = {name: set(sub_folders(root / name)) for name in folders}
    inside = {part for parts in within.values() for part in parts if part.lower() in SPLITS}
    shared = [a for a in folders if any(a != b and len(within[a] & within[b]) > 1 for b in folders)]
    if inside or shared:
        one = shared[0] if shared else next(name for name in folders if within[name] & inside)
        raise ValueError(
            f"{root}: can be read as the classes {listed(folders)}, or as parts with {listed(sorted(within[one]))} in "
            f"each; for parts, call them train/ and test/, with a folder per class in each"
        )
    train_files, test_files = drawn(by_class(root, folders, left_out=left_out), folders, root)
    notes = _lacking(test_files, folders) + left_out.notes()
    return Split(train_files, test_files, tuple(folders), ("", DRAWN), notes)


def _expect_one_class_each(paths: Sequence[Path], labels: Sequence[int]) -> None:
    """ValueError where links put one file into two classes."""
    seen: dict[str, int] = {}
    for n, path in enumerate(paths):
        first = seen.setdefault(os.path.realpath(path), n)
        if labels[first] != labels[n]:
            raise ValueError(f"{paths[first]} and {path} are one file, linked into two classes; leave one")


def _lacking(test: Files, names: Sequence[str]) -> list[str]:
    """Says which classes have no test images."""
    labels = set(test.labels)
    lacking = [name for k, name in enumerate(names) if k not in labels]
    return [f"no test images of {listed(lacking)}"] if lacking else []


def _shared(train: Files, test: Files) -> list[str]:
    """Says how many test pictures are, by links, training pictures."""
    known = {os.path.realpath(path) for path in train.paths}
    count = sum(os.path.realpath(path) in known for path in test.paths)
    return [f"{count} test pictures are links to training pictures, which makes accuracies too high"] if count else []
