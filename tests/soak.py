"""Disturbs one long run until it is done: `python -m tests.soak --iterations 10000 --seconds 60`.

Every so many seconds, on average, it is killed, asked to end or has its disk filled up; the same command is said again,
and in the end its files are compared with those of a run that nobody disturbed, whose memory is watched. Another one is
given no more memory than it has; it is planned again, so its last bits may differ, and its iterations are counted.
The disk is kept in memory, mounted as root or in a name space of our own (`unshare`).
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import linear_regression

from tests.fault_jobs import Command, Running, begin, differing, finish, leftovers, results_of_files
from tests.full_disk import disk

OPTIONS = "--method mtt --ipc 1 --network convnet:width=16 --num-experts 2 --train-epochs 4 --max-start-epoch 3"
OPTIONS += " --expert-epochs 1 --syn-steps 5 --batch-syn 5 --dsa-strategy color_crop_cutout_scale_rotate"
OPTIONS += " --num-eval 1 --eval-epochs 20 --checkpoint-every 50 --eval-every 1000"
SIZE = 2**26  # bytes of the disk
LEFT = 4096  # bytes that a full disk still has
PATIENCE = 120.0  # seconds in which a run notices that it has no disk or no memory
MIB = 2**20


def status_of(pid: int, key: str) -> int:
    """VmSize or RssAnon of a process, in bytes; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def wait(running: Running, seconds: float) -> bool:
    """Whether it ends within so long."""
    running.process.join(seconds)
    return running.poll() is not None


def fill_up(running: Running, place: Path) -> None:
    """Leave it hardly any room until it ends."""
    filler = place / "filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:  # the run may have filled it itself by now
        free = os.statvfs(place)
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - LEFT)))
    wait(running, PATIENCE)
    filler.unlink()


def starve(running: Running, place: Path) -> None:
    """Let it have no more memory than it has, until it ends."""
    limit = status_of(running.process.pid, "VmSize") or resource.RLIM_INFINITY
    resource.prlimit(running.process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    if not wait(running, PATIENCE):
        resource.prlimit(running.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        running.send(signal.SIGTERM)


def sending(number: int) -> Callable[[Running, Path], None]:
    """A disturbance that is a signal."""
    return lambda running, place: running.send(number)


STARVED = "no more memory"
DISTURBANCES: dict[str, tuple[Callable[[Running, Path], None], tuple[int, ...]]] = {  # and how a run may end by them
    "kill -9": (sending(signal.SIGKILL), (-signal.SIGKILL,)),
    "SIGTERM": (sending(signal.SIGTERM), (128 + signal.SIGTERM,)),
    "Ctrl-C": (sending(signal.SIGINT), (128 + signal.SIGINT,)),
    "full disk": (fill_up, (1,)),
    STARVED: (starve, (1, 128 + signal.SIGTERM)),
}


def watched(command: Command, folder: Path) -> list[tuple[int, int]]:
    """Run it undisturbed: its iterations and the memory that no file backs, in bytes, every second."""
    folder.mkdir()
    running, metrics, seen = begin(command, folder), folder / "run" / "metrics.jsonl", []
    while not wait(running, 1.0):
        if metrics.exists() and (size := status_of(running.process.pid, "RssAnon")):
            seen.append((metrics.read_bytes().count(b"\n"), size))
    finish(running)
    return seen


def disturbed(
    command: Command, place: Path, seconds: float, drawn: random.Random, names: list[str]
) -> tuple[Counter[str], list[str]]:
    """Run it until it is done: how often it was disturbed, and what went wrong."""
    counts, wrong = Counter(), []
    while True:
        running = begin(command, place)
        if wait(running, drawn.uniform(0.2, 1.8) * seconds):
            break
        name = drawn.choice(names)
        disturb, statuses = DISTURBANCES[name]
        disturb(running, place)
        status, _, errors = running.ended()
        counts[name] += 1
        if status == 0:  # it went on, or was just done
            break
        if status not in statuses or "Traceback" in errors:
            wrong.append(f"{name}: status {status}: {errors[-2000:]}")
        print(f"{name}: {(errors.strip().splitlines() or ['nothing'])[-1]}", file=sys.stderr, flush=True)
    finish(running)
    return counts, wrong


def main() -> int:
    """Print what was tried; status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=60.0, help="between two disturbances, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances")
    options = parser.parse_args()
    if os.geteuid() != 0:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "tests.soak", *sys.argv[1:]])
    command = Command(
        f"distill {OPTIONS} --iterations {options.iterations} --resume --output {{folder}}/run", results_of_files
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder, began, drawn = Path(scratch), time.monotonic(), random.Random(options.seed)
        seen = [(n, size) for n, size in watched(command, folder / "whole") if n > options.iterations / 4]
        whole, took = results_of_files(folder / "whole", ""), time.monotonic() - began
        with disk(folder / "disk", SIZE):
            others = [name for name in DISTURBANCES if name != STARVED]
            counts, wrong = disturbed(command, folder / "disk", options.seconds, drawn, others)
            wrong += [f"left over: {path.name}" for path in leftovers(folder / "disk")]
            wrong += [f"differs: {file}" for file in differing(results_of_files(folder / "disk", ""), whole)]
        (folder / "starved").mkdir()
        starved, wrong_then = disturbed(command, folder / "starved", options.seconds, drawn, [STARVED])
        records = results_of_files(folder / "starved", "")["run/metrics.jsonl"]
        complete = [record["iteration"] for record in records] == list(range(1, options.iterations + 1))
        wrong += wrong_then + ([] if complete else [f"{STARVED}: {len(records)} iterations"])
        counts += starved
    growth = 1000 * linear_regression(*zip(*seen, strict=True)).slope
    print(
        f"{options.iterations} iterations undisturbed in {took / 60:.1f} min; memory after a quarter of them ", end=""
    )
    print(f"{seen[0][1] / MIB:.1f} MiB, at most {max(size for _, size in seen) / MIB:.1f}, ", end="")
    print(f"growth of {growth / MIB:.2f} MiB per 1000\n\n| disturbance | times |\n|---|---|")
    for name in DISTURBANCES:
        print(f"| {name} | {counts[name]} |")
    print(f"\n{len(wrong)} went wrong", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
