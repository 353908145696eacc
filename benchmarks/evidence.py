"""Every method on real data: accuracy, time and peak memory, the tables of docs/methods.md.

python -m benchmarks.evidence benchmarks/results/evidence [--only "mnist ipc1 dm"] [--seeds 0,1,2] [--hours 2]

Each row is `ddfast distill` in a process of its own, with its preset's settings but for the iterations, which are what
two cores do in minutes. A line of results.jsonl per row and seed; what is there already is not run again, and a row
that was stopped goes on. The tables of all lines are printed, and written to table.md.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from benchmarks.measure import described

EVALUATION = ["--num-eval", "3", "--eval-epochs", "300"]
CORESETS = ("random", "herding", "k_center", "forgetting", "el2n", "grand")
FEW_EXPERTS = ["--num-experts", "2", "--train-epochs", "10"]
OF_EXPERTS = ("mtt", "ftd", "datm", "att", "pad", "mct")


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
    """All rows, the quick ones first."""
    found = []
    for data, ipc in (("mnist", 1), ("mnist", 10), ("cifar10", 1), ("cifar10", 10)):
        for method in CORESETS:
            experts = FEW_EXPERTS if method != "random" else []
            found.append(Row(data, ipc, method, "real", tuple(experts)))
        quick = {"dm": 500, "dc": 200 if ipc == 1 else 20, "dsa": 200 if ipc == 1 else 20}
        for method, iterations in quick.items():
            found += [Row(data, ipc, method, init, ("--iterations", str(iterations))) for init in ("real", "noise")]
        ncfm = (*FEW_EXPERTS, "--iterations", "200", "--batch-real", "256", "--num-frequencies", "1024")
        found.append(Row(data, ipc, "ncfm", "real", ncfm))
        found.append(Row(data, ipc, "idc", "real", ("--iterations", "5", "--inner-loop", "20")))
        found.append(Row(data, ipc, "cafe", "real", ("--iterations", "5", "--batch-real", "64")))
        trajectories = (*FEW_EXPERTS, "--iterations", "200", "--no-zca")
        unroll = ("--syn-steps", "20", "--expert-epochs", "1", "--max-start-epoch", "4", "--batch-syn", "20")
        plain = ("--current-max-start-epoch", "none", "--expansion-end", "none", "--threshold", "none")
        found += [Row(data, ipc, method, "real", (*trajectories, *unroll, *plain)) for method in OF_EXPERTS]
    return found


def run(row: Row, seed: int, folder: Path) -> dict:
    """What a row's line holds. Exit status 3 is a set that is no better than random real images: a result as well."""
    output = folder / "runs" / f"{row.name.replace(' ', '-')}-{seed}"
    init = [] if row.method in CORESETS else ["--init", row.init]
    command = [sys.executable, "-m", "ddfast", "distill", "--dataset", row.data, "--method", row.method, *init]
    command += ["--ipc", str(row.ipc), "--seed", str(seed), "--output", str(output), "--resume"]
    began = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen([*command, *EVALUATION, *row.options], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise RuntimeError(f"{' '.join(command)}: {(folder / 'log.txt').read_text()[-2000:]}")
    summary = json.loads((output / "summary.json").read_text())
    accuracy = summary["accuracy"]
    line = {"accuracy": accuracy["distilled"]["mean"], "random_real": accuracy["random_real"]["mean"]}
    line |= {"bytes": summary["bytes"], "seconds_of_iterations": summary["seconds"]}
    line |= {"iterations": summary["iterations"], "seconds": time.perf_counter() - began}
    line["peak_mib"] = usage.ru_maxrss / 1024
    shutil.rmtree(output)
    return line


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
            "| method | from | accuracy | seeds | iterations | minutes | peak MiB | bytes |",
        ]
        text.append("|---|---|---|---|---|---|---|---|")
        for name in names:
            of = [line for line in lines if line["name"] == name]
            values = [line["accuracy"] for line in of]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            *_, method, init = name.split()
            minutes, peak = fmean(line["seconds"] for line in of) / 60, max(line["peak_mib"] for line in of)
            cells = (method, init, f"{fmean(values):.1f}{spread}", len(values), of[0]["iterations"])
            cells = (*cells, f"{minutes:.1f}", f"{peak:.0f}", f"{of[0]['bytes']:,}")
            text.append(f"| {' | '.join(map(str, cells))} |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="what a row's name contains")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no row after so long")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file, began = options.folder / "results.jsonl", time.perf_counter()
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in map(int, options.seeds.split(",")):
        for row in rows():
            key = {"name": row.name, "seed": seed}
            if options.only not in row.name or any(line.items() >= key.items() for line in lines):
                continue
            if time.perf_counter() - began > 3600 * options.hours:
                break
            line = key | run(row, seed, options.folder) | {"cores": os.cpu_count()}
            lines.append(line)
            with open(file, "a") as results:
                results.write(json.dumps(line) + "\n")
            print(line, flush=True)
    text = f"{described(' '.join(['python -m benchmarks.evidence', *sys.argv[1:]]))}\n\n{tables(lines)}"
    (options.folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
