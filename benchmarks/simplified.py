"""Why the simplified variant fails, and what repairs it: the table of docs/simplified.md.

python -m benchmarks.simplified benchmarks/results/simplified [--only "all but"]

Run folders, one per row; a row that is there is not run again, one that was stopped goes on. The table is printed, and
written to table.md.
"""

import json
from argparse import ArgumentParser
from pathlib import Path

import torch

import ddfast
from benchmarks.measure import described
from ddfast.data import Dataset, load_dataset
from ddfast.data.augment import FULL_STRATEGY

PER_CLASS, TEST, SIDE = 500, 2000, 16
BASE = {
    "method": "simplified",
    "preset": "simplified/cifar10/ipc10",
    "ipc": 10,
    "network": "smallvgg:width=8",
    "iterations": 150,
    "num_eval": 3,
    "checkpoint_every": 25,
}
# What MTT does differently, each beside what it replaces.
NORMALISED = {"distance": "squared"}
EARLY = {"starts": "random", "min_start_epoch": 0, "max_start_epoch": 4}
LEARNED = {"lr_lr": 1e-4}
SGD = {"img_optimizer": "sgd", "lr_img": 1000.0}
PLAIN_EXPERT = {"mom": 0.0, "l2": 0.0, "schedule": "constant", "train_lr": 0.02, "batch_train": 64}
INSTANCE_NORM = {"network": "smallvgg:width=8:norm=instancenorm:dropout=0"}
MORE_STEPS = {"syn_steps": 30, "syn_momentum": 0.0, "batch_syn": 50, "lr_teacher": 0.02}
DSA = {"dsa_strategy": FULL_STRATEGY, "train_dsa_strategy": FULL_STRATEGY}
EVALUATION = {"protocol": "ddfast", "eval_epochs": 300, "init": "real"}  # at the learned rate
ALL = NORMALISED | EARLY | LEARNED | SGD | PLAIN_EXPERT | INSTANCE_NORM | MORE_STEPS | DSA | EVALUATION
ROWS = {
    "as described": {},
    "normalised distance": NORMALISED,
    "early starts, drawn at random": EARLY,
    "learned learning rate": LEARNED,
    "SGD on the images": SGD,
    "expert at a constant rate, without momentum": PLAIN_EXPERT,
    "instance norm, no dropout": INSTANCE_NORM,
    "30 steps of 50 images": MORE_STEPS,
    "DSA": DSA,
    "all of these": ALL,
    "all but instance norm": {k: v for k, v in ALL.items() if k not in INSTANCE_NORM},
    "all but early starts": {k: v for k, v in ALL.items() if k not in EARLY},
    "all but DSA": {k: v for k, v in ALL.items() if k not in DSA},
    "all but SGD on the images": {k: v for k, v in ALL.items() if k not in SGD},
}


def subset() -> Dataset:
    """The first images of each class of CIFAR-10, and the first test images, at half of their side."""
    data = load_dataset("cifar10", image_size=SIDE)
    chosen = torch.cat([of_class[:PER_CLASS] for of_class in data.by_class()])
    train = data.train_images[chosen], data.train_labels[chosen]
    return load_dataset((train, (data.test_images[:TEST], data.test_labels[:TEST])))


def main() -> None:
    """Run what is missing, and write the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="what a row's name contains")
    options = parser.parse_args()
    folder, data = options.folder, subset()
    rows = [
        "| changed | expert | random real | distilled | loss: first 15, last 15 iterations |",
        "|---|---|---|---|---|",
    ]
    for number, (name, change) in enumerate(ROWS.items()):
        if options.only not in name:
            continue
        output = folder / f"{number:02d}"
        result = ddfast.distill(data, output=output, resume=True, **BASE | change)
        cells = [f"{result.accuracy['full_data']['mean']:.1f}"]
        cells += [
            f"{result.accuracy[key]['mean']:.1f} ± {result.accuracy[key]['std']:.1f}"
            for key in ("random_real", "distilled")
        ]
        losses = [record["loss"] for record in result.history]
        cells.append(f"{sum(losses[:15]) / 15:.3f}, {sum(losses[-15:]) / 15:.3f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(json.dumps({"name": name, "cells": cells}), flush=True)
    command = f'python -m benchmarks.simplified {folder} --only "{options.only}"'
    text = f"{described(command)}\n\n" + "\n".join(rows) + "\n"
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
