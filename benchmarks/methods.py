"""Accuracy of random real images, MTT and every method after it at one budget: the table of docs/methods.md.

python -m benchmarks.methods benchmarks/results/methods [--methods "mtt;ftd"] [--seeds 0,1,2] [--ipc 1]

A line of results.jsonl per method, seed and images per class; what is there already is not run again. The table of all
lines is printed, and written to table.md.
"""

import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import fmean, stdev

import torch

import ddfast
from benchmarks.lines import append_line, read_lines
from benchmarks.measure import described
from ddfast.data import Dataset, load_dataset
from ddfast.evaluation import evaluate_random_real
from ddfast.run.resolve import resolve

NETWORK, PER_CLASS, TEST = "convnet:width=32", 500, 2000
EXPERTS = {"num_experts": 2, "batch_train": 64, "train_lr": 0.02, "train_epochs": 6}
UNROLL = {"syn_steps": 20, "expert_epochs": 1, "max_start_epoch": 4, "lr_teacher": 0.02, "lr_lr": 1e-5}
EVALUATION = {"num_eval": 3, "eval_epochs": 300}
IPC = {1: {"lr_img": 1000.0, "iterations": 200}, 10: {"lr_img": 1000.0, "iterations": 200, "batch_syn": 50}}
GSAM = {"optimizer": "gsam", "rho": 0.01, "alpha": 0.3}
SOFT = {"labels": "soft", "init": "correct", "lr_label": 2.0, "current_max_start_epoch": 2, "expansion_end": 100}
ROWS = {
    "mtt": {},
    "ftd": GSAM | {"ema_decay": 0.98},
    "datm": GSAM | SOFT,
    "tesla": {"lr_lr": 1e-6},  # its gradient of the learning rate is several times too large
    "att": GSAM | {"ema_decay": 0.98},
    "pp": {},
    "pad": GSAM | SOFT | {"drop_ratio": 0.25},
    "edf": SOFT | {"drop_ratio": 0.25},
    "texture": {},
}
VARIANTS = {  # of MTT: the options that any method takes
    "mtt, soft labels": {"labels": "soft", "lr_label": 2.0},
    "mtt, robust learning": {"start_noise": 0.001},
    "mtt, l1": {"distance": "l1"},
    "mtt, cosine": {"distance": "cosine"},
    "mtt, layerwise": {"distance": "layerwise"},
    "mtt, experts in delta16": {"snapshots": "delta16"},
    "mtt, experts in delta8": {"snapshots": "delta8"},
}
FLAT_MINIMUM = "mtt, flat minimum"  # the images of mtt, evaluated by SAM


def subset() -> Dataset:
    """The first images of each class of CIFAR-10, and the first test images."""
    data = load_dataset("cifar10")
    chosen = torch.cat([of_class[:PER_CLASS] for of_class in data.by_class()])
    train, test = (data.train_images[chosen], data.train_labels[chosen]), (data.test_images, data.test_labels)
    return load_dataset((train, tuple(tensor[:TEST] for tensor in test)))


def distilled(data: Dataset, method: str, ipc: int, seed: int, options: dict) -> ddfast.Distillation:
    """A method run to its end."""
    settings = EXPERTS | UNROLL | IPC[ipc] | options
    given = {"dataset": data, "method": method, "ipc": ipc, "network": NETWORK, "seed": seed, "zca": False}
    job = resolve(
        given | {"preset": f"{method}/mnist/ipc1", "dsa_strategy": "color_crop_cutout_flip_scale_rotate"} | settings
    )
    experts = ddfast.train_experts(
        data,
        network=NETWORK,
        seed=seed,
        train_epochs=EXPERTS["train_epochs"],
        train_lr=EXPERTS["train_lr"],
        **{name: job.config[name] for name in ("num_experts", "batch_train", "optimizer", "rho", "alpha", "snapshots")},
    )
    run = ddfast.Distillation(job, experts)
    for _ in run:
        pass
    return run


def accuracies(data: Dataset, name: str, ipc: int, seed: int) -> dict:
    """What a row's line holds, and how long its outer loop took."""
    networks = {"networks": (NETWORK,), "seed": seed}
    if name == "random real":
        strategy = "color_crop_cutout_flip_scale_rotate"
        result = evaluate_random_real(data, ipc, dsa_strategy=strategy, **networks, **EVALUATION)
        return {"accuracy": result.mean}
    method = name.split(",")[0]
    run = distilled(data, method, ipc, seed, ROWS[method] | VARIANTS.get(name, {}))
    began = time.perf_counter()
    sam = {"sam_rho": 0.01} if name == FLAT_MINIMUM else {}
    line = {"accuracy": ddfast.evaluate(run.synthetic, data, **networks, **EVALUATION, **sam).mean}
    if run.averaged is not None:
        line["averaged"] = ddfast.evaluate(run.averaged, data, **networks, **EVALUATION).mean
    return {**line, "seconds_of_evaluation": time.perf_counter() - began}


def table(lines: list[dict]) -> str:
    """Mean ± standard deviation over seeds, by method and images per class."""
    ipcs = sorted({line["ipc"] for line in lines})
    names = list(dict.fromkeys(line["name"] for line in lines))
    order = ["random real", *ROWS, *VARIANTS, FLAT_MINIMUM]
    rows = [
        f"| method | {' | '.join(f'{ipc} per class' for ipc in ipcs)} | minutes |",
        f"|---|{'---|' * (len(ipcs) + 1)}",
    ]
    for name in sorted(names, key=order.index):
        for key in ("accuracy", "averaged"):
            cells = []
            for ipc in ipcs:
                values = [line[key] for line in lines if (line["name"], line["ipc"]) == (name, ipc) and key in line]
                spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{fmean(values):.1f}{spread} ({len(values)})" if values else "–")
            if any(cell != "–" for cell in cells):
                minutes = fmean(line["seconds"] for line in lines if line["name"] == name) / 60
                label = name if key == "accuracy" else f"{name}, averaged images"
                rows.append(f"| {label} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run what is missing, and write the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default=";".join(["random real", *ROWS, *VARIANTS, FLAT_MINIMUM]), help="by ;")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ipc", type=int, default=1, choices=IPC)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "results.jsonl"
    lines = read_lines(file)
    data = subset()
    for seed in map(int, options.seeds.split(",")):
        for name in options.methods.split(";"):
            key = {"name": name, "ipc": options.ipc, "seed": seed}
            if any(line.items() >= key.items() for line in lines):
                continue
            began = time.perf_counter()
            line = key | accuracies(data, name, options.ipc, seed) | {"seconds": time.perf_counter() - began}
            lines.append(line)
            append_line(file, line)
            print(line, flush=True)
    text = f"{described(' '.join(['python -m benchmarks.methods', *sys.argv[1:]]))}\n\n{table(lines)}"
    (options.folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
