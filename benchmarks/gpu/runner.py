"""Parts one after another, each in a process of its own that is killed at its time limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
GRACE = 5.0  # seconds between the signal to end and the kill
DONE, LIMIT, FAILED, INTERRUPTED = "done", "stopped at its limit", "failed", "interrupted"


class Part(NamedTuple):
    """A module of this package with a function `run`, and its share of the time."""

    name: str
    share: float
    words: str


PARTS = (  # in order of worth
    Part("build", 0.20, "the kernels are compiled"),
    Part("suite", 0.18, "pytest -m cuda"),
    Part("correctness", 0.09, "every op against float64 at real sizes"),
    Part("kernels", 0.06, "time, bytes per second and share of the peak of every kernel"),
    Part("meta_gradient", 0.22, "the meta-gradient against an eager full unroll"),
    Part("experts", 0.04, "experts side by side"),
    Part("evaluation", 0.04, "evaluation side by side"),
    Part("cifar", 0.17, "CIFAR-10, 1 image per class, from raw data"),
)


def limits(parts: list[Part], seconds: float) -> tuple[float, list[Part]]:
    """The limit of the first of the parts that are left, and the others: what one leaves, the next ones share."""
    first, *others = parts
    return seconds * first.share / sum(part.share for part in parts), others


def run_part(
    name: str, limit: float, output: Path, scratch: Path, options: list[str], rehearse: bool
) -> dict[str, Any]:
    """How a part ended. All that it printed is in NAME.log, its results in NAME.jsonl."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", name, "--output", str(output), "--scratch", str(scratch)]
    command += ["--seconds", f"{limit:.1f}", *options]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "DDFAST_CACHE": str(scratch / "cache")}
    if rehearse:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return run_within(limit, command, output / f"{name}.log", environment)


def run_within(limit: float, command: list[str], log: Path, environment: dict[str, str]) -> dict[str, Any]:
    """How a command ended: status, seconds and limit. Processes that it started end with it."""
    began = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = DONE if code == 0 else f"{FAILED}, exit status {code}"
        except subprocess.TimeoutExpired:
            status = LIMIT
        finally:
            _end(process)
    return {"status": status, "seconds": time.monotonic() - began, "limit": limit}


def _end(process: subprocess.Popen) -> None:
    """End what is left of the process's group: asked to at first, then killed."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        if process.poll() is None:
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                continue
