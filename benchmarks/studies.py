"""The studies at a small scale, and the tables of docs/studies.md.

python -m benchmarks.studies benchmarks/results/studies [--only federated]

Sets of digits, 10 images per class, by DM and MTT, and random real ones, are studied on digits; clients hold parts of
MNIST. What is done is kept in the folder and not done again.
"""

import shutil
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch

import ddfast
from benchmarks.measure import described
from ddfast.data import Dataset, SyntheticSet, load_dataset
from ddfast.runtime import seeds
from ddfast.studies import architectures, continual, federated, privacy, trajectory_error

NETWORK = "convnet:width=32"
IPC = 10
NETWORKS = 8  # of the 720


def sets_of(folder: Path) -> dict[str, SyntheticSet]:
    """What is studied."""
    data = load_dataset("digits")
    images, labels = data.random_real(IPC, seeds.generator(0, "studies"))
    about = (torch.tensor(0.01), data.class_names, data.preprocessing)
    found = {"random real": SyntheticSet(images, labels, *about, network=NETWORK)}
    for method, iterations in (("dm", 300), ("mtt", 300)):
        how = {"method": method, "ipc": IPC, "iterations": iterations, "num_eval": 1, "network": NETWORK}
        done = ddfast.distill("digits", output=folder / "runs" / method, resume=True, **how)
        found[method] = done.synthetic
    return found


def table(title: str, head: list[str], rows: list[list[Any]]) -> str:
    """In Markdown, after its title."""
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join(f"| {' | '.join(f'{c:.2f}' if isinstance(c, float) else str(c) for c in row)} |" for row in lines)
    return f"{title}\n\n{body}\n"


def architecture_search(sets: dict[str, SyntheticSet], data: Dataset, work: Path) -> str:
    """Rank correlations of the sets."""
    keys = ("all", "top_5_by_real", "top_5_by_proxy")
    rows: list[list[Any]] = []
    of_real = None
    for name, synthetic in sets.items():
        study = work / f"architectures {name}"
        if of_real is not None and not (study / "accuracies.jsonl").exists():
            study.mkdir(parents=True, exist_ok=True)
            shutil.copy(of_real, study)  # accuracies after real data are the same for every set
        found = architectures(synthetic, data, study, count=NETWORKS, full_epochs=10)["findings"]
        of_real = study / "accuracies.jsonl"
        chosen, best = found["chosen_by_proxy"]["real"], found["best"]["real"]
        rows.append([name, *(found[key] for key in keys), chosen, best])
    head = ["set", *(key.replace("_", " ") for key in keys), "chosen by proxy reaches", "best"]
    return table(f"Architecture search, {NETWORKS} networks", head, rows)


def continual_learning(_sets: dict[str, SyntheticSet], data: Dataset, work: Path) -> str:
    """Accuracies over the steps, by how the memory is made."""
    rows = []
    for method, more in (("random", {}), ("herding", {"select_on": "pixels"}), ("dm", {"iterations": 100})):
        how = {"steps": 5, "ipc": 5, "orders": 2, "network": NETWORK, "num_eval": 1, "eval_epochs": 200} | more
        found = continual(data, work / f"continual {method}", method=method, **how)["rows"]
        rows.append([method, *(f"{row['accuracy']:.1f} ± {row['std']:.1f}" for row in found)])
    return table("Continual learning, 5 images per class", ["memory", "2", "4", "6", "8", "10 classes"], rows)


def privacy_look(sets: dict[str, SyntheticSet], data: Dataset, work: Path) -> str:
    """Median ratios, and the attack."""
    rows = []
    for name, synthetic in sets.items():
        found = privacy(synthetic, data, work / f"privacy {name}", network=NETWORK)["findings"]
        keys = ("median_ratio_in_pixels", "median_ratio_in_features", "attack_auc")
        rows.append([name, *(found[f"{key}_of_distilled"] for key in keys)])
    return table("Privacy", ["set", "ratio in pixels", "ratio in features", "AUC of the attack"], rows)


def error_of_trajectories(sets: dict[str, SyntheticSet], data: Dataset, work: Path) -> str:
    """Test losses above the experts', by epoch."""
    how = {"network": NETWORK, "dsa_strategy": "none", "output": work / "experts"}
    ddfast.train_experts("digits", num_experts=3, train_epochs=10, **how)
    steps = {"syn_steps": 20, "expert_epochs": 2, "num_experts": 3}
    error = trajectory_error(sets, data, work / "experts", work / "error", **steps)
    keys = ("epoch", "evaluation", "distillation", "matching_loss")
    rows = [[row["set"], *(row[key] for key in keys)] for row in error["rows"]]
    return table("Trajectory error, 20 steps for 2 epochs", ["set", *(k.replace("_", " ") for k in keys)], rows)


def federated_learning(_sets: dict[str, SyntheticSet], _data: Dataset, work: Path) -> str:
    """Accuracies of the server, by how clients distil and what they hold."""
    rows = []
    for classes in (None, 2):
        for method in ("random", "herding", "kip"):
            more = {"select_on": "pixels"} if method == "herding" else {}
            how = {"clients": 10, "classes_per_client": classes, "workers": 1, "num_eval": 3, "zca": False} | more
            found = federated("mnist", work / f"federated {method} {classes}", method=method, **how)
            (row,), sent = found["rows"], found["findings"]
            holds = "all" if classes is None else classes
            rows.append([method, holds, row["last"], row["best"], sent["images_sent"], f"{sent['bytes_sent']:,}"])
    head = ["clients distil by", "classes each", "last", "best on the way", "images", "bytes"]
    return table("Federated, one shot: MNIST, 10 clients, LeNet", head, rows)


def main() -> None:
    """Run what is missing; print the tables, and write each as soon as it is known."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="what a table's function contains in its name")
    options = parser.parse_args()
    folder = options.folder
    work = folder / "work"
    sets, data = sets_of(work), load_dataset("digits")
    parts = [f"{described(' '.join(['python -m benchmarks.studies', *sys.argv[1:]]))}\n"]
    for study in (privacy_look, error_of_trajectories, continual_learning, architecture_search, federated_learning):
        if options.only not in study.__name__:
            continue
        parts.append(study(sets, data, work))
        (folder / "table.md").write_text("\n".join(parts))
        print(parts[-1], flush=True)


if __name__ == "__main__":
    main()
