"""What lies in a folder: pictures, by ending or content; junk, links that lead back, and files that are no pictures."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ddfast.data.pixels import is_picture, picture_endings

JUNK = {  # what systems and tools leave beside pictures, in lower case; names with a dot in front are junk, too
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}
MOST_NAMED = 5


@dataclass
class LeftOut:
    """What was not read of a folder, counted."""

    hidden_files: int = 0
    hidden_folders: Counter = field(default_factory=Counter)  # by name
    others: Counter = field(default_factory=Counter)  # files that are no pictures, by ending
    again: int = 0  # links to a file or folder that was read already
    loose: int = 0  # pictures beside class folders

    def add(self, other: "LeftOut") -> None:
        """Count what another folder's was."""
        self.hidden_files += other.hidden_files
        self.hidden_folders += other.hidden_folders
        self.others += other.others
        self.again += other.again
        self.loose += other.loose

    def notes(self) -> list[str]:
        """In words, for the line that tells what was read."""
        notes, hidden = [], []
        if self.hidden_files:
            hidden.append(counted(self.hidden_files, "hidden file"))
        if self.hidden_folders:
            names = listed(sorted(self.hidden_folders))
            hidden.append(f"{counted(self.hidden_folders.total(), 'folder')} {names}")
        if hidden:
            notes.append(f"{' and '.join(hidden)} skipped")
        if self.others:
            endings = listed([f"{ending} ({count})" for ending, count in self.others.most_common()])
            verb = "file is no picture" if self.others.total() == 1 else "files are no pictures"
            hint = "; pip install pillow-heif reads .heic" if {".heic", ".heif"} & set(self.others) else ""
            notes.append(f"{self.others.total()} {verb}: {endings}{hint}")
        if self.again:
            verb = "link leads" if self.again == 1 else "links lead"
            notes.append(f"{self.again} {verb} to what was read already")
        if self.loose:
            notes.append(f"{counted(self.loose, 'picture')} beside the class folders skipped")
        return notes


def counted(count: int, what: str) -> str:
    """As "1 file" and "2 files"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def listed(names: Iterable[str], most: int = MOST_NAMED) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by a system."""
    return name.startswith(".") or name.lower() in JUNK


def sub_folders(folder: Path, left_out: LeftOut | None = None) -> list[str]:
    """The folders in a folder, sorted, without junk; what else lies there is counted."""
    left_out, names = left_out or LeftOut(), []
    for entry in _entries(folder):
        if is_junk(entry.name):
            _count_junk(entry, left_out)
        elif os.path.isdir(entry.path):
            names.append(entry.name)
        elif _is_picture(entry):
            left_out.loose += 1
        else:
            left_out.others[_ending(entry.name)] += 1
    return names


def list_pictures(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The pictures in a folder and all below, sorted: links are followed, and every real file is listed once."""
    left_out = left_out or LeftOut()
    pictures, seen = [], set()
    folders = [(folder, os.path.realpath(folder))]
    links: list[os.DirEntry] = []

    def add(entry: os.DirEntry, real: str) -> None:
        if not _is_picture(entry):
            left_out.others[_ending(entry.name)] += 1
        elif real in seen:
            left_out.again += 1
        else:
            seen.add(real)
            pictures.append(Path(entry.path))

    while folders or links:
        if not folders:  # links come last: of two ways to a file the one without is listed
            entry = links.pop(0)
            real = os.path.realpath(entry.path)
            if os.path.isdir(entry.path):
                folders.append((Path(entry.path), real))
            else:
                add(entry, real)
            continue
        here, real = folders.pop()
        if real in seen:
            left_out.again += 1
            continue
        seen.add(real)
        for entry in _entries(here):
            if is_junk(entry.name):
                _count_junk(entry, left_out)
            elif entry.is_symlink():
                links.append(entry)
            elif entry.is_dir():
                folders.append((Path(entry.path), os.path.join(real, entry.name)))
            else:
                add(entry, os.path.join(real, entry.name))
    return sorted(pictures)


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_picture(entry: os.DirEntry) -> bool:
    """By its ending, so that a damaged one is told, or by its content."""
    if os.path.isfile(entry.path):
        return _ending(entry.name) in picture_endings() or is_picture(entry.path)
    # a link to nothing is a picture that cannot be read; a pipe or socket is none
    return entry.is_symlink() and _ending(entry.name) in picture_endings()


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no ending"


def _count_junk(entry: os.DirEntry, left_out: LeftOut) -> None:
    if os.path.isdir(entry.path):
        left_out.hidden_folders[entry.name] += 1
    else:
        left_out.hidden_files += 1
