"""Runs commands on disks that are too small, gives them room, and says them again: `python -m tests.full_disk`.

The disks are kept in memory (tmpfs), of sizes drawn up to what a command writes; they are mounted as root, or in a name
space of our own (`unshare`).
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fault_jobs import COMMANDS, begin, differing, finish, leftovers, undisturbed

SMALLEST, LARGEST = 4 * 1024, 2**28  # bytes


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes in the place of a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def give_room(folder: Path) -> None:
    """Make a disk large."""
    subprocess.run(["mount", "-o", f"remount,size={LARGEST}", folder], check=True)


def try_disks(name: str, disks: int, folder: Path, sizes: random.Random) -> tuple[int, list[str]]:
    """How many disks were too small for a command, and what went wrong on them."""
    command, full, wrong = COMMANDS[name], 0, []
    whole, _, shared = undisturbed(name, folder)
    written = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    for number in range(disks):
        size, place = sizes.randint(SMALLEST, written), folder / f"disk{number}"
        with disk(place, size):
            status, _, errors = begin(command, place, shared).ended()
            if status:
                full += 1
                last = errors.strip().splitlines()[-1]
                if status != 1 or "Traceback" in errors or not last.startswith("ddfast: "):
                    wrong.append(f"{size} bytes: status {status}: {errors}")
                elif str(place) not in last or "No space left" not in last:
                    wrong.append(f"{size} bytes: names no file: {last}")
                wrong += [f"{size} bytes: left over: {path.name}" for path in leftovers(place)]
            give_room(place)
            try:
                results = command.results(place, finish(begin(command, place, shared)))
                wrong += [f"{size} bytes: differs: {file}" for file in differing(results, whole)]
            except RuntimeError as error:
                wrong.append(f"{size} bytes: not resumed: {error}")
    return full, wrong


def main() -> int:
    """Try all commands that write, or those that are named; status 1 where one did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the sizes")
    parser.add_argument("commands", nargs="*", default=[], metavar="command", help=f"of {', '.join(COMMANDS)}")
    options = parser.parse_args()
    if os.geteuid() != 0:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", *sys.argv[1:]])
    names = options.commands or [name for name, command in COMMANDS.items() if command.writes]
    good = True
    print("| command | disks | too small | of them wrong |")
    print("|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            full, wrong = try_disks(name, options.disks, Path(folder), random.Random(f"{options.seed} {name}"))
        print(f"| {name} | {options.disks} | {full} | {len(wrong)} |", flush=True)
        for sentence in wrong:
            print(f"{name}: {sentence}", file=sys.stderr)
        good = good and not wrong
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
