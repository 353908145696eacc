"""Memory and time of long runs: how the resident set grows over the iterations, and what is spent outside the steps.

python -m benchmarks.long_run benchmarks/results/long_run
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import ddfast
from benchmarks.measure import described
from ddfast.cli.commands import make_page_faults_rare

SMALL = {
    "dataset": "digits",
    "network": "convnet:width=8:depth=1",
    "num_experts": 2,
    "train_epochs": 3,
    "max_start_epoch": 2,
    "expert_epochs": 1,
    "syn_steps": 5,
    "num_eval": 1,
    "eval_epochs": 5,
    "device": "cpu",
}
RUNS = {
    "mtt, DSA": {"dsa_strategy": "color_crop_cutout_flip_scale_rotate"},
    "datm, soft labels, DSA, a part of the set visits": {
        "method": "datm",
        "ipc": 10,
        "batch_syn": 4,
        "dsa_strategy": "color_crop_cutout_flip_scale_rotate",
        "ema_decay": "none",
    },
}


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, as Linux counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measured(output: Path, iterations: int, every: int, options: dict) -> dict:
    """A run: memory after so many iterations each, its own seconds and those of its steps."""
    memory: dict[int, int] = {}

    def watched(distillation):
        for record in distillation:
            if record["iteration"] % every == 0:
                memory[record["iteration"]] = anonymous_bytes()
            yield record

    began = time.perf_counter()
    result = ddfast.distill(
        output=output, iterations=iterations, eval_every=iterations // 4, progress=watched, **SMALL | options
    )
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, iterations + 1))
    steps = sum(record["seconds"] for record in result.history)
    return {"memory": memory, "seconds": time.perf_counter() - began, "steps": steps}


def growth(memory: dict[int, int]) -> float:  # bytes per 1000 iterations
    """The slope, by least squares, of what comes after a quarter of the run, which warms up."""
    points = [(n, size) for n, size in memory.items() if n > max(memory) / 4]
    mean_n, mean_size = (sum(column) / len(points) for column in zip(*points, strict=True))
    over = sum((n - mean_n) * (size - mean_size) for n, size in points)
    return 1000 * over / sum((n - mean_n) ** 2 for n, _ in points)


def main(folder: Path, iterations: int = 2000, every: int = 50) -> None:
    """Measure every run, print a table, and write it and what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [described(f"python -m benchmarks.long_run {folder}"), ""]
    lines += [f"RssAnon in MiB over {iterations} iterations; growth is the slope after a quarter of them", ""]
    lines += [
        "| run | first | most | last | growth per 1000 | s | outside the steps |",
        "|---|---|---|---|---|---|---|",
    ]
    raw = {}
    for name, options in RUNS.items():
        with tempfile.TemporaryDirectory() as scratch:
            raw[name] = found = measured(Path(scratch) / "run", iterations, every, options)
        sizes = list(found["memory"].values())
        row = (f"{size / 2**20:.1f}" for size in (sizes[0], max(sizes), sizes[-1], growth(found["memory"])))
        outside = 1 - found["steps"] / found["seconds"]
        lines.append(f"| {name} | {' | '.join(row)} | {found['seconds']:.0f} | {outside:.0%} |")
        print(lines[-1])
    (folder / "long_run.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "long_run.json").write_text(json.dumps(raw) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_page_faults_rare()  # as the command line does
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
