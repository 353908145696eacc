"""Where converted files go: never over other files, and there again when the same is converted twice."""

import contextlib
import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path

from ddfast.runtime.files import remove_leftovers, synchronise, temporary_of


@contextlib.contextmanager
def placing(folder: Path, *, alone: bool) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without an error, what was written there is in `folder`.

    A new folder appears whole. One that is there may hold the same files already, byte for byte.
    Errors: FileExistsError where it holds other files of their names, or, where they have to be alone, any others.
    """
    folder = folder.resolve()
    expect_folder(folder)
    beside = folder.parent if alone else folder
    beside.mkdir(parents=True, exist_ok=True)
    remove_leftovers(beside, folder.name)
    staged = temporary_of(beside / folder.name)
    staged.mkdir()
    try:
        yield staged
        files = sorted(path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
        for file in files:
            synchronise(staged / file)
        if not folder.exists():
            staged.rename(folder)
            synchronise(folder.parent)
            return
        others = [
            path for path in folder.rglob("*") if alone and path.is_file() and path.relative_to(folder) not in files
        ]
        differing = [folder / file for file in files if not _same(staged / file, folder / file)]
        if others or differing:
            raise FileExistsError(f"{(others + differing)[0]}: exists with different contents; choose another name")
        for file in files:
            if not (folder / file).exists():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (staged / file).rename(folder / file)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def expect_folder(path: Path) -> None:
    """FileExistsError where a folder is to be and a file is."""
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: is a file; a folder is written, choose another name")


def _same(staged: Path, there: Path) -> bool:
    return not there.exists() or (there.is_file() and filecmp.cmp(staged, there, shallow=False))


@contextlib.contextmanager
def placing_file(path: Path, suffix: str) -> Iterator[Path]:
    """As `placing`, of one file: yield where it is to be written. ValueError where its name ends otherwise."""
    if path.suffix != suffix:
        raise ValueError(f"{path}: expected a name that ends in {suffix}, for one file is written")
    with placing(path.parent, alone=False) as folder:
        yield folder / path.name
