"""Tuned settings against the defaults at equal distillation time, on three small sets made of scikit-learn's digits.

    python -m benchmarks.tuning benchmarks/results/tuning [--time 4min] [--work runs/tuning]

The search is by seed 7, on images that are held out of the training data; its settings and the defaults then distil
with seeds 0, 1 and 2, on all training images, and networks are tested on the test images, which the search never had.
What was done is not done again; what was stopped goes on.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits

import ddfast
from benchmarks.lines import append_line, read_lines

Arrays = tuple[numpy.ndarray, numpy.ndarray]  # images [N, H, W] or [N, H, W, 3] in [0, 1], labels [N]
SEEDS, SEARCH_SEED, TESTED = (0, 1, 2), 7, 597
ONE_RUN = {  # the same for both, and small enough for one core
    "ipc": 1, "network": "convnet:width=16:depth=2", "num_experts": 3, "iterations": 60, "num_eval": 5,
    "eval_epochs": 200,
}  # fmt: skip


def digits() -> Arrays:
    """1797 images of 8 × 8 pixels, in an order of our own."""
    images, labels = load_digits(return_X_y=True)
    order = numpy.random.default_rng(0).permutation(len(labels))
    return images[order].reshape(-1, 8, 8) / 16, labels[order]


def noisy() -> Arrays:
    """Digits under Gaussian noise of a third of their range."""
    images, labels = digits()
    return (images + numpy.random.default_rng(1).normal(0, 1 / 3, images.shape)).clip(0, 1), labels


def cluttered() -> Arrays:
    """Digits anywhere on 12 × 12 pixels, beside three patches of 3 × 3 pixels of others."""
    images, labels = digits()
    generator = numpy.random.default_rng(2)
    canvas = numpy.zeros((len(images), 12, 12))
    for n in range(len(images)):
        for _ in range(3):
            (y, x), (top, left) = generator.integers(0, 10, 2), generator.integers(0, 6, 2)
            canvas[n, y : y + 3, x : x + 3] = images[generator.integers(len(images)), top : top + 3, left : left + 3]
        y, x = generator.integers(0, 5, 2)
        canvas[n, y : y + 8, x : x + 8] = numpy.maximum(canvas[n, y : y + 8, x : x + 8], images[n])
    return canvas, labels


def coloured() -> Arrays:
    """Digits in a random colour, mixed with a background of another one."""
    images, labels = digits()
    ink, paper = numpy.random.default_rng(3).random((2, len(images), 1, 1, 3))
    return images[..., None] * ink + (1 - images[..., None]) * paper, labels


SETS: dict[str, Callable[[], Arrays]] = {"noisy": noisy, "cluttered": cluttered, "coloured": coloured}


def pair_of(name: str) -> tuple:
    """Training and test images of a set, [N, C, H, W], with their labels."""
    images, labels = SETS[name]()
    tensor = torch.from_numpy(images).float()
    tensor = tensor.unsqueeze(1) if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2).contiguous()
    classes = torch.from_numpy(labels)
    return (tensor[TESTED:], classes[TESTED:]), (tensor[:TESTED], classes[:TESTED])


def distilled(pair: tuple, path: Path, seed: int, settings: dict) -> dict:
    """Accuracy on the test images and seconds of the outer loop, of one distillation."""
    done = ddfast.distill(pair, output=path, resume=True, **settings | {"seed": seed})
    rows = done.accuracy
    seconds = sum(record["seconds"] for record in done.history)
    return {"accuracy": rows["distilled"]["mean"], "random_real": rows["random_real"]["mean"], "seconds": seconds}


def cpu_seconds(pair: tuple, every: dict[str, dict], rounds: int = 3, timed: int = 15) -> dict[str, float]:
    """CPU seconds of the outer loop with each of these settings: the median step, measured in turn, times iterations.

    Unlike the wall clock it does not grow with what else the machine does.
    """
    steps: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, settings in every.items():

            def progress(distillation, name: str = name):
                began = time.process_time()
                for record in distillation:
                    steps[name].append(time.process_time() - began)
                    yield record
                    began = time.process_time()

            short = {"iterations": timed, "num_eval": 1, "eval_epochs": 1, "seed": SEEDS[0]}
            with tempfile.TemporaryDirectory() as folder:
                ddfast.distill(pair, output=Path(folder) / "run", progress=progress, **settings | short)
    return {name: settings["iterations"] * statistics.median(steps[name]) for name, settings in every.items()}


def run(name: str, work: Path, limit: str) -> dict:
    """Search, then both settings with each seed."""
    pair, began = pair_of(name), time.time()
    found = ddfast.tune(pair, time=limit, output=work / name / "search", seed=SEARCH_SEED, **ONE_RUN)
    minutes = (time.time() - began) / 60
    row: dict = {"set": name, "trials": len(found.rows), "search_minutes": minutes, "held_out": found.held_out}
    row |= {"held_out_of_defaults": found.defaults, "is_whole": found.is_whole, "settings": found.rows[0]["params"]}
    for kind, settings in (("defaults", ONE_RUN), ("tuned", found.settings)):
        row[kind] = [distilled(pair, work / name / f"{kind}-{seed}", seed, settings) for seed in SEEDS]
    row["cpu_seconds"] = cpu_seconds(pair, {"defaults": ONE_RUN, "tuned": found.settings})
    share = min(1.0, row["cpu_seconds"]["defaults"] / row["cpu_seconds"]["tuned"])
    equal = found.settings | {"iterations": max(1, int(share * found.settings["iterations"]))}
    row["equal"] = [distilled(pair, work / name / f"equal-{seed}", seed, equal) for seed in SEEDS]
    row |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version()}
    return row


def table(rows: list[dict]) -> str:
    """As Markdown: mean ± std over the seeds."""

    def words(row: dict, kind: str, key: str) -> str:
        values = [one[key] for one in row[kind]]
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

    head = ("set", "random real", "defaults", "tuned, in no more CPU time", "tuned, as written", "trials")
    head += ("held-out, defaults → tuned", "CPU s of the outer loop, defaults → tuned as written")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        kinds = ("defaults", "equal", "tuned")
        cells = [row["set"], words(row, "defaults", "random_real"), *(words(row, kind, "accuracy") for kind in kinds)]
        cells += [row["trials"], f"{row['held_out_of_defaults']:.1f} → {row['held_out']:.1f}"]
        cells += ["{defaults:.1f} → {tuned:.1f}".format(**row["cpu_seconds"])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was not run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--time", default="4min", help="Of the search on each set.")
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"), help="Studies and runs.")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DDFAST_CACHE", str((asked.work / "cache").resolve()))
    results = asked.output / "results.jsonl"
    rows = read_lines(results)
    for name in SETS:
        if name not in [row["set"] for row in rows]:
            rows.append(run(name, asked.work, asked.time))
            append_line(results, rows[-1])
            print(table(rows[-1:]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
