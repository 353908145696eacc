"""The commands that faults are tried on: small jobs of the command line, and what their results are."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = "--num-experts 1 --train-epochs 2 --batch-train 300 --expert-epochs 1 --network convnet:width=16 --num-eval 1"
SMALL += " --max-start-epoch 2 --iterations 25 --syn-steps 3 --eval-epochs 3 --checkpoint-every 4 --batch-syn 5 --ipc 1"
EXPERTS = "experts --num-experts 4 --epochs 3 --batch-train 300 --network convnet:width=16 --output {folder}/experts"
NOT_COMPARED = ("seconds", "peak_bytes", "versions", "sha256")  # of JSON: what differs from run to run
TEMPORARY = re.compile(r"\..*\.tmp")


@dataclass(frozen=True)
class Command:
    """One command, which said again goes on with what it left, and what it leaves."""

    arguments: str  # {folder}: its own folder; {shared}: that of what was made before
    results: Callable[[Path, str], dict[str, Any]]  # from its folder and its standard output, to be compared
    before: str | None = None  # a command of the same table whose results lie in {shared}
    writes: bool = True  # files, in the middle of which it can be killed


def _distill(options: str) -> Command:
    """A distillation, with the experts that it trains itself."""
    return Command(f"distill {SMALL} {options} --resume --output {{folder}}/run", results_of_files)


def results_of_files(folder: Path, output: str) -> dict[str, Any]:
    """A checksum, or the lines without seconds, of every file that a user would keep."""
    results = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name == "checkpoint.pt" or path.name.startswith("."):
            continue
        if path.suffix == ".jsonl":
            results[name] = [_without_seconds(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            text = path.read_text(encoding="utf-8").replace(str(folder), "")
            results[name] = _without_seconds(json.loads(text))
        else:
            results[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return results


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(v) for key, v in value.items() if key not in NOT_COMPARED}
    return value


COMMANDS = {
    "experts": Command(EXPERTS, results_of_files),
    "distill mtt": _distill("--method mtt --dsa-strategy scale_rotate_crop --eval-every 10"),
    "distill datm, soft labels, average": _distill(
        "--method datm --init first --ema-decay 0.9 --current-max-start-epoch none --threshold none"
    ),
    "distill tesla, a part of the set at a time": _distill("--method tesla --ipc 4 --eval-every 12"),
    "evaluate": Command(
        "evaluate {shared}/run --num-eval 2 --eval-epochs 30",
        lambda folder, output: {"output": output},
        before="distill mtt",
        writes=False,
    ),
}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a command: one thread, and a cache of its own."""
    own = {
        "DDFAST_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    return {**os.environ, **own, **more}


def begin(command: Command, folder: Path, shared: Path | None = None, **more: str) -> subprocess.Popen:
    """Start a command in a folder."""
    words = command.arguments.format(folder=folder, shared=shared).split()
    return subprocess.Popen(
        [sys.executable, "-m", "ddfast", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment(folder, **more),
        # a shell that runs this in the background has it ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen, seconds: float = 600) -> str:
    """Its standard output, once it has ended well."""
    output, errors = process.communicate(timeout=seconds)
    if process.returncode != 0:
        raise RuntimeError(f"status {process.returncode}: {errors.strip()}")
    return output


def undisturbed(name: str, folder: Path) -> tuple[dict[str, Any], float, Path | None]:
    """What a command gives that nobody disturbs, its seconds, and the folder of what was made before."""
    command, shared = COMMANDS[name], None
    if command.before is not None:
        shared = folder / "before"
        shared.mkdir(parents=True)
        finish(begin(COMMANDS[command.before], shared))
    (folder / "whole").mkdir(parents=True)
    began = time.monotonic()
    output = finish(begin(command, folder / "whole", shared))
    return command.results(folder / "whole", output), time.monotonic() - began, shared


def differing(results: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """The names of results that are not those of the undisturbed run."""
    return sorted(name for name in {**results, **whole} if results.get(name) != whole.get(name))


def leftovers(folder: Path) -> list[Path]:
    """Temporary files."""
    return [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name)]
