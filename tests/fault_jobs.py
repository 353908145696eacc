"""The commands that faults are tried on: small jobs of the command line, and what their results are."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PRELOADED = ["ddfast.cli", "ddfast", "torchvision.transforms.v2.functional", "sklearn.datasets", "kornia.enhance"]
PRELOADED += ["sklearn.model_selection", "matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.ImageDraw"]
PRELOADED += ["safetensors.torch", "tqdm.contrib.logging", "tests.fault_jobs"]

SMALL = "--num-experts 1 --train-epochs 2 --batch-train 300 --expert-epochs 1 --network convnet:width=16 --num-eval 1"
SMALL += " --max-start-epoch 2 --iterations 25 --syn-steps 3 --eval-epochs 3 --checkpoint-every 4 --batch-syn 5 --ipc 1"
EXPERTS = "experts --num-experts 3 --epochs 3 --batch-train 300 --network convnet:width=16 --output {folder}/experts"
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
    "experts, rounded": Command(f"{EXPERTS} --snapshots delta8 --keep-epochs 1-2", results_of_files),
    "evaluate": Command(
        "evaluate {shared}/run --num-eval 3 --eval-epochs 20 --output {folder}/accuracies.jsonl",
        lambda folder, output: {"output": output},
        before="distill mtt",
        writes=False,
    ),
    "convert to replay buffers": Command(
        "convert {shared}/experts {folder}/buffers --format replay-buffer --per-file 1",
        results_of_files,
        before="experts",
        writes=False,
    ),
    "convert to MTT's tensors": Command(
        "convert {shared}/run {folder}/mtt --format mtt", results_of_files, before="distill mtt", writes=False
    ),
}


class Running:
    """A command of the command line in a process of its own, forked from one that has imported everything: it begins at
    once, and a kill hits what it does and not its imports."""

    _forks = multiprocessing.get_context("forkserver")
    _forks.set_forkserver_preload(PRELOADED)

    def __init__(self, words: list[str], folder: Path, ignoring: tuple[int, ...] = (), **environment: str):
        environment = {"DDFAST_CACHE": str(folder / "cache"), "PYTHONFAULTHANDLER": "1"} | environment
        self._files = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        arguments = (words, environment, [str(file) for file in self._files], ignoring)
        self.process = self._forks.Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    def poll(self) -> int | None:
        """Its status, negative for a signal; None while it runs."""
        return self.process.exitcode

    def send(self, number: int) -> None:
        """A signal, which does nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def ended(self, seconds: float = 600) -> tuple[int, str, str]:
        """Wait: its status, its standard output, and what it said beside it."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            raise RuntimeError(f"has not ended after {seconds} s")
        output, errors = (file.read_text(encoding="utf-8") for file in self._files)
        return status, output, errors


def _run(words: list[str], environment: dict[str, str], files: list[str], ignoring: tuple[int, ...]) -> None:
    from ddfast import cli

    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.update(environment)
    # a shell that runs this in the background has it ignore Ctrl-C, and nohup a hangup
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number in ignoring:
        signal.signal(number, signal.SIG_IGN)
    sys.argv = ["ddfast", *words]
    torch.set_num_threads(1)
    status = 0
    try:
        cli.main()
    except SystemExit as ended:
        # a run of a few iterations ends well, and teaches nothing
        status = 0 if ended.code == cli.USELESS else ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def begin(command: Command, folder: Path, shared: Path | None = None, **options: Any) -> Running:
    """Start a command in a folder."""
    return Running(command.arguments.format(folder=folder, shared=shared).split(), folder, **options)


def finish(running: Running) -> str:
    """Its standard output, once it has ended well."""
    status, output, errors = running.ended()
    if status != 0:
        raise RuntimeError(f"status {status}: {errors.strip()}")
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
