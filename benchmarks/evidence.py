"""Every method on real data: accuracy, time and peak memory, the tables of docs/comparison.md.

python -m benchmarks.evidence benchmarks/results/evidence [--only "mnist ipc1 dm"] [--seeds 0,1,2] [--hours 2]
python -m benchmarks.evidence benchmarks/results/evidence --others  # VGG11 and AlexNet on MNIST's sets of DC, DM, DATM

Each row is `ddfast distill` in a process of its own, with its preset's settings but for the iterations, which are what
one core does in minutes. Two experts serve all rows of a data set. "cifar10-5000" has the first 500 training images of
each class, and all test images. A line of results.jsonl per row and seed; what is there already is
not run again, and a row that was stopped goes on. The tables of all lines are printed, and written to table.md.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy

from benchmarks.lines import append_line, read_lines
from benchmarks.measure import machine

NETWORKS = {1: "3", 10: "1"}  # a set is tested on, by images per class; seeds are what counts
OTHERS = ("VGG11", "AlexNet")
OTHERS_OF = [f"mnist ipc10 {method} real" for method in ("dc", "dm", "datm")]  # the sets that are kept for them
ACCURACIES = "accuracies.jsonl"  # in a run folder
CORESETS = ("random", "herding", "k_center", "forgetting", "el2n", "grand")
TRAIN_EPOCHS = {"mnist": "3"}  # after which its experts hardly move; ten of others
OF_TRAJECTORIES = ("mtt", "datm", "att", "mct")  # all from the same experts, which FTD's are not
FEW = "cifar10-5000"
_WINDOW = ("--total-steps", "60", "--window", "20", "--batch-real", "512", "--lr-img", "0.01")
_SHORT = ("--total-steps", "20", "--batch-real", "512")
_DD = ("--total-steps", "5", "--distill-epochs", "5", "--batch-real", "512", "--halve-every", "500")
ITERATIONS = {  # about three minutes of one core, at 1 and at 10 per class
    **dict.fromkeys(OF_TRAJECTORIES, (150, 25)),
    "dm": (100, 100),
    "dc": (40, 3),
    "dsa": (20, 3),
    "kip": (300, 300),
    "rat_bptt": (60, 12),
    "at_bptt": (60, 12),
    "at_bptt_pp": (60, 12),
    "bptt": (60, 15),
    "remember": (60, 15),
    "dd": (1500, 400),
    "ld": (2000, 1000),
    "ncfm": (75, 50),
    "idc": (4, 2),
    "cafe": (4, 2),
}
LARGE = {"dd": 5, "ld": 5}  # so many times fewer on CIFAR-10, where their network is a larger one
SHORTER = {  # iterations than the published ones
    "rat_bptt": _WINDOW,
    "at_bptt": (*_WINDOW, "--reach", "6"),
    "at_bptt_pp": (*_WINDOW, "--reach", "6", "--lr-label", "0.01"),
    "bptt": (*_SHORT, "--lr-img", "0.01"),
    "remember": _SHORT,
    "dd": _DD,
    "ld": ("--batch-real", "512", "--lr-label", "0.01"),
    "ncfm": ("--batch-real", "256", "--num-frequencies", "1024"),
    "idc": ("--inner-loop", "20"),
    "cafe": ("--batch-real", "64"),
}
FROM_NOISE = ("dm", "datm", "dc", "dsa", "rat_bptt")


class Row(NamedTuple):
    """A table's row: how a set is made, from what."""

    data: str
    ipc: int
    method: str
    init: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """By which it is chosen and kept."""
        return f"{self.data} ipc{self.ipc} {self.method} {self.init}"


def rows() -> list[Row]:
    """All rows, those of all of CIFAR-10 last."""
    found = []
    for data, ipc in (("mnist", 1), ("mnist", 10), (FEW, 1), (FEW, 10), ("cifar10", 1), ("cifar10", 10)):
        found += [Row(data, ipc, method, "real") for method in CORESETS]
        for method in ITERATIONS if data != "cifar10" else ("dm",):
            fewer = 1 if data == "mnist" else LARGE.get(method, 1)
            options = ("--iterations", str(ITERATIONS[method][ipc == 10] // fewer), *_shorter(method, data, ipc))
            found += [Row(data, ipc, method, init, options) for init in ("real", "noise")[: 1 + (method in FROM_NOISE)]]
    return found


def _shorter(method: str, data: str, ipc: int) -> tuple[str, ...]:
    """What makes an iteration shorter. Unrolls are of 20 steps, of experts of few epochs, where a preset's have 50 and
    more; on MNIST, of their first."""
    if method in ("dc", "dsa"):
        return () if ipc == 1 else ("--inner-loop", "5")
    if method not in OF_TRAJECTORIES:
        return SHORTER.get(method, ())
    last, batch = "1" if data == "mnist" else "4", str(min(10 * ipc, 50))
    unroll = ("--syn-steps", "20", "--expert-epochs", "1", "--max-start-epoch", last, "--batch-syn", batch, "--no-zca")
    return (*unroll, "--current-max-start-epoch", "none", "--expansion-end", "none", "--threshold", "none")


def made(folder: Path, data: str) -> str:
    """The data set as `--dataset` takes it."""
    file = folder / f"{FEW}.npz"
    if data != FEW:
        return data
    if not file.exists():
        root = Path(os.environ["DDFAST_DATA"]) / "cifar-10-batches-py"
        names = [f"data_batch_{n}" for n in range(1, 6)], ["test_batch"]
        images, labels, x_test, y_test = (array for part in names for array in pictures(root, part))
        first = numpy.concatenate([numpy.flatnonzero(labels == label)[:500] for label in range(10)])
        numpy.savez(file, x_train=images[first], y_train=labels[first], x_test=x_test, y_test=y_test)
    return str(file)


def pictures(root: Path, names: list[str]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Images [N, 32, 32, 3] and labels [N] of CIFAR-10's files."""
    batches = [pickle.loads((root / name).read_bytes(), encoding="bytes") for name in names]
    images = numpy.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images.transpose(0, 2, 3, 1), numpy.concatenate([batch[b"labels"] for batch in batches])


def ddfast(folder: Path, *arguments: str) -> float:
    """The command in a process of its own; its peak in MiB. Exit status 3 is a result as well: a useless set."""
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processor_time", *arguments], stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise RuntimeError(f"ddfast {' '.join(arguments)}: {(folder / 'log.txt').read_text()[-2000:]}")
    return usage.ru_maxrss / 1024


def run(row: Row, seed: int, folder: Path) -> dict:
    """What a row's line holds."""
    output, data = folder / "runs" / f"{row.name.replace(' ', '-')}-{seed}", ["--dataset", made(folder, row.data)]
    experts = []
    if row.method in OF_TRAJECTORIES or row.method in ("ncfm", *CORESETS[1:]):
        experts = ["--experts", str(folder / "experts" / row.data)]
        few = ["--num-experts", "2", "--train-epochs", TRAIN_EPOCHS.get(row.data, "10"), "--no-zca"]
        ddfast(folder, "experts", *data, *few, "--preset", "mtt/cifar10/ipc1", "--output", experts[1])
    init = [] if row.method in CORESETS else ["--init", row.init]
    command = [*data, "--method", row.method, *init, "--ipc", str(row.ipc), "--seed", str(seed), *experts]
    known = folder / "accuracies" / row.data  # of networks trained on random real images
    if known.exists() and not output.exists():
        output.mkdir(parents=True)
        shutil.copy(known, output / ACCURACIES)
    evaluation = ["--num-eval", NETWORKS[row.ipc], "--eval-epochs", "300", "--baselines", "none"]
    peak = ddfast(folder, "distill", *command, "--output", str(output), "--resume", *evaluation, *row.options)
    known.parent.mkdir(exist_ok=True)
    shutil.copy(output / ACCURACIES, known)
    summary = json.loads((output / "summary.json").read_text())
    accuracy = summary["accuracy"]
    line = {"accuracy": accuracy["distilled"]["mean"], "random_real": accuracy["random_real"]["mean"]}
    line |= {"bytes": summary["bytes"], "seconds_of_iterations": summary["seconds"]}
    line |= {"iterations": summary["iterations"], "peak_mib": peak}
    if row.name in OTHERS_OF:
        (folder / "sets").mkdir(exist_ok=True)
        for file in output.glob("synthetic.*"):
            shutil.copy(file, folder / "sets" / f"{output.name}{file.suffix}")
    shutil.rmtree(output)
    return line


def evaluate_on_others(folder: Path, seeds: list[int]) -> None:
    """Accuracies of other networks on the sets that are kept, as lines: one of each, 200 epochs at 0.01."""
    there = read_lines(folder / "others.jsonl")
    how = ["--num-eval", "1", "--eval-epochs", "200", "--eval-lr", "0.01", "--no-random-real"]
    for network, name, seed in product(OTHERS, OTHERS_OF, seeds):
        kept = folder / "sets" / f"{name.replace(' ', '-')}-{seed}"
        file = folder / f"others-{network}-{kept.name}.jsonl"
        key = {"name": name, "seed": seed, "network": network}
        if not kept.with_suffix(".json").exists() or any(line.items() >= key.items() for line in there):
            continue
        given = [str(kept), "--dataset", "mnist", "--networks", network, *how, "--seed", str(seed)]
        ddfast(folder, "evaluate", *given, "--output", str(file))
        line = key | {"accuracy": read_lines(file)[0]["accuracy"], "machine": machine()}
        append_line(folder / "others.jsonl", line)
        print(line, flush=True)


def tables(lines: list[dict]) -> str:
    """A table for each data set and number of images."""
    text = []
    order = {row.name: n for n, row in enumerate(rows())}
    for data, ipc in dict.fromkeys((row.data, row.ipc) for row in rows()):
        names = sorted({line["name"] for line in lines if line["name"].startswith(f"{data} ipc{ipc} ")}, key=order.get)
        if not names:
            continue
        text += [
            f"{data}, {ipc} per class",
            "",
            "| method | from | accuracy | random real | seeds | iterations | their minutes | peak MiB | bytes |",
        ]
        text.append("|---|---|---|---|---|---|---|---|---|")
        for name in names:
            of = [line for line in lines if line["name"] == name]
            values = [line["accuracy"] for line in of]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            *_, method, init = name.split()
            minutes = f"{fmean(line['seconds_of_iterations'] for line in of) / 60:.1f}"
            peak = max(line["peak_mib"] for line in of)
            random_real = f"{fmean(line['random_real'] for line in of):.1f}"
            cells = (method, init, f"{fmean(values):.1f}{spread}", random_real, len(values), of[0]["iterations"])
            cells = (*cells, minutes, f"{peak:.0f}", f"{of[0]['bytes']:,}")
            text.append(f"| {' | '.join(map(str, cells))} |")
        text.append("")
        for where in dict.fromkeys(line["machine"] for line in lines if line["name"] in names):
            of_where = (name for name in names if any((li["name"], li["machine"]) == (name, where) for li in lines))
            text += [f"{where}: {', '.join(' '.join(name.split()[2:]) for name in of_where)}", ""]
    return "\n".join(text)


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="what a row's name contains")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--others", action="store_true", help="test other networks on the sets that are kept")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no row after so long")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file, began = options.folder / "results.jsonl", time.perf_counter()
    lines, numbers = read_lines(file), [int(seed) for seed in options.seeds.split(",")]
    if options.others:
        evaluate_on_others(options.folder, numbers)
        return
    for seed in numbers:
        for row in rows():
            key = {"name": row.name, "seed": seed}
            if options.only not in row.name or any(line.items() >= key.items() for line in lines):
                continue
            if time.perf_counter() - began > 3600 * options.hours:
                break
            line = key | run(row, seed, options.folder) | {"machine": machine()}
            lines.append(line)
            append_line(file, line)
            print(line, flush=True)
    text = tables(lines)
    (options.folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
