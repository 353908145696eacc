"""Kills commands at random moments, again and again, until they are done: `python -m tests.kills --kills 50`.

Half of the kills fall anywhere into the time that a command takes, half into the writing of a file. A killed command is
said again; what it leaves in the end is compared, file by file and bit by bit, with that of one that nobody disturbed.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fault_jobs import COMMANDS, Running, begin, differing, finish, leftovers, undisturbed

MOST_IN_A_ROW = 4  # kills of one run before it may end
POLL = 0.0003  # seconds between two looks for files that are being written


@dataclass
class Row:
    """What became of a command's kills."""

    command: str
    kills: int = 0
    writing: int = 0  # of them, while a file was written
    runs: int = 0  # that were killed at least once and then brought to their end
    failed: list[str] = field(default_factory=list)  # runs that did not go on, by what they said
    differing: list[str] = field(default_factory=list)  # results that were not those of the undisturbed run
    leftovers: int = 0  # temporary files at the end of runs

    @property
    def survived(self) -> bool:
        """Whether nothing was lost."""
        return not (self.failed or self.differing or self.leftovers)


def kill(running: Running, folder: Path, seconds: float | None, writes: int | None) -> bool:
    """Kill -9 after so many seconds, or in the middle of the n-th write that is seen; False where it ended before."""
    began, seen = time.monotonic(), set()
    while running.poll() is None:
        if seconds is not None and time.monotonic() - began > seconds:
            break
        if writes is not None:
            seen |= {(path, path.stat().st_ino) for path in leftovers(folder) if path.exists()}
            if len(seen) >= writes:
                break
        time.sleep(POLL if writes is not None else 0.005)
    running.send(signal.SIGKILL)
    return running.ended()[0] == -signal.SIGKILL


def try_kills(name: str, kills: int, folder: Path, moments: random.Random) -> Row:
    """Kill a command so many times."""
    row, command = Row(name), COMMANDS[name]
    whole, seconds, shared = undisturbed(name, folder)
    writes = 4
    while row.kills < kills:
        run = folder / f"run{row.runs}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        killed = 0
        while killed < MOST_IN_A_ROW and row.kills < kills:
            is_writing = bool(row.kills % 2) and command.writes
            when = (None, moments.randint(1, writes)) if is_writing else (moments.uniform(0, seconds), None)
            if not kill(begin(command, run, shared), run, *when):
                # it ended before: a machine that has become faster, or less was left to be done
                seconds, writes = (seconds, max(2, writes - 1)) if is_writing else (0.8 * seconds, writes)
                break
            killed, row.kills, row.writing = killed + 1, row.kills + 1, row.writing + is_writing
            writes = writes + 1 if is_writing else writes
        if killed:
            _end(row, begin(command, run, shared), run, whole)
    return row


def _end(row: Row, running: Running, run: Path, whole: dict[str, Any]) -> None:
    """Bring a killed run to its end, and compare."""
    row.runs += 1
    try:
        output = finish(running)
    except RuntimeError as error:
        row.failed.append(str(error))
        return
    row.leftovers += len(leftovers(run))
    row.differing += differing(COMMANDS[row.command].results(run, output), whole)
    shutil.rmtree(run)


def main() -> int:
    """Try all commands, or those that are named; status 1 where one did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("commands", nargs="*", default=[], metavar="command", help=f"of {', '.join(COMMANDS)}")
    options = parser.parse_args()
    names = options.commands or list(COMMANDS)
    rows = []
    print("| command | kills | while writing | runs brought to their end | failed | differing | left over |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            row = try_kills(
                name, -(-options.kills // len(names)), Path(folder), random.Random(f"{options.seed} {name}")
            )
        rows.append(row)
        bad = f"{len(row.failed)} | {len(row.differing)} | {row.leftovers}"
        print(f"| {name} | {row.kills} | {row.writing} | {row.runs} | {bad} |", flush=True)
        for sentence in [*row.failed, *row.differing]:
            print(f"{name}: {sentence}", file=sys.stderr)
    return 0 if all(row.survived for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
