"""The runs that docs/quantities.md and docs/not-learning.md tell of: one setting changed at a time, and their pictures.

OMP_NUM_THREADS=1 python -m benchmarks.lessons FOLDER docs/images

Digits, one image per class, a ConvNet of 32 channels. The same as
`ddfast distill --network convnet:width=32 --num-eval 3 --eval-epochs 300` with the options of RUNS. Runs that are in
FOLDER already are only read. Prints a table of all runs, and draws the failing ones beside the preset's.
"""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import ddfast
from benchmarks.measure import described

COMMON = {"network": "convnet:width=32", "num_eval": 3, "eval_epochs": 300}
LATE = {"train_epochs": 40, "min_start_epoch": 30, "max_start_epoch": 37}
FAILING = {
    "img-high": {"lr_img": 100000.0},
    "img-low": {"lr_img": 0.01},
    "floor": {"lr_lr": 0.1},
    "untrained": {"train_lr": 1e-6},
    "late": LATE,
    "short": {"syn_steps": 2, "expert_epochs": 8},
    "few": {"iterations": 3},
    "teacher-high": {"lr_teacher": 2.0},
}
RUNS = {
    "base": {},
    **FAILING,
    "img-high4": {"lr_img": 10000.0},
    "floor2": {"lr_lr": 0.01},
    "late-small": LATE | {"lr_lr": 1e-6},
    "noise": {"init": "noise"},
    "start1": {"max_start_epoch": 1},
    "start9": {"max_start_epoch": 9},
    "rate005-fixed": {"lr_teacher": 0.005, "lr_lr": 0.0},
    "rate02-fixed": {"lr_lr": 0.0},
    "rate08-fixed": {"lr_teacher": 0.08, "lr_lr": 0.0},
    "rate005": {"lr_teacher": 0.005},
    "rate08": {"lr_teacher": 0.08},
}
SHOWN = ["base", *(name for name in FAILING if name not in ("teacher-high", "few"))]


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def row(run: Path) -> str:
    """What came of a run, as a row of a table."""
    records = [record for record in history(run) if record["loss"] is not None]
    tail = records[-max(1, len(records) // 10) :]
    loss = sum(record["loss"] for record in tail) / len(tail)
    text = f"| {run.name} | {records[0]['loss']:.3g} | {loss:.3g} | {records[-1]['lr']:.3g} |"
    if not (run / "summary.json").is_file():
        return f"{text} diverged | |"
    summary = json.loads((run / "summary.json").read_text())
    accuracy = summary["accuracy"]["distilled"]
    return f"{text} {accuracy['mean']:.1f} ± {accuracy['std']:.1f} | {summary['useless'] or ''} |"


def draw(run: Path, base: Path, path: Path) -> None:
    """The images that a run ended with, its losses and its rates, with those of the preset's settings in grey."""
    synthetic = ddfast.SyntheticSet.load(run / "synthetic")
    images = synthetic.preprocessing.invert(synthetic.images)[:, 0]
    figure = Figure(figsize=(8, 2.2), layout="constrained", dpi=100)
    left, loss, rate = figure.subplots(1, 3, width_ratios=(2.6, 2, 2))
    rows = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0).unflatten(0, (2, 5))
    left.imshow(rows.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), cmap="grey", vmin=0, vmax=1)
    left.set_axis_off()
    for folder, how in ((base, {"color": "0.7"}), (run, {"color": "C0"})):
        records = history(folder)
        iterations = [record["iteration"] for record in records]
        loss.plot(iterations, [record["loss"] for record in records], linewidth=0.9, **how)
        rate.plot(iterations, [record["lr"] for record in records], linewidth=1.2, **how)
    loss.set(title="loss", xlabel="iteration", yscale="log")
    rate.set(title="learned rate", xlabel="iteration", yscale="log")
    figure.savefig(path)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=Path, nargs="?")
    given = parser.parse_args()
    print(described("OMP_NUM_THREADS=1 python -m benchmarks.lessons FOLDER docs/images"))
    print("| run | first loss | last loss | last rate | distilled | |\n|---|---|---|---|---|---|")
    for name, options in RUNS.items():
        run = given.folder / name
        try:
            ddfast.distill("digits", output=run, resume=True, **COMMON | options)
        except ddfast.DistillationDivergedError:
            pass  # its row says so
        print(row(run), flush=True)
    for name in SHOWN if given.images else ():
        draw(given.folder / name, given.folder / "base", given.images / f"not-learning-{name}.png")


if __name__ == "__main__":
    main()
