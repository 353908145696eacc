"""Continual learning: classes come in steps, and a small memory of distilled or selected images is all that stays."""

from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from ddfast.data import SyntheticSet, load_dataset
from ddfast.evaluation import check_evaluation, evaluate
from ddfast.run.distill import distill
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.forecast import counted
from ddfast.runtime.ranks import ALONE, Ranks
from ddfast.studies.tables import Table, expect_joined, save_picture, save_table, study_folder

STUDY = "continual"


def continual(
    dataset: Any,
    output: str | Path,
    *,
    method: str = "herding",
    steps: int = 5,
    ipc: int = 20,
    orders: int = 5,
    network: str = "convnet",
    num_eval: int = 3,
    eval_epochs: int = 1000,
    protocol: str = "dsa",
    seed: int = 0,
    device: str | torch.device | None = None,
    ranks: Ranks = ALONE,
    data_root: str | Path | None = None,
    **options: Any,
) -> Table:
    """Class-incremental learning with a memory, as GDumb: a new network on the whole memory after every step.

    In each step the new classes' real images alone are distilled, by any method or coreset, `ipc` of each, and join the
    memory; networks are tested on the test images of all classes seen so far.

    Args:
        dataset: as load_dataset takes it.
        output: the folder; a run folder per order and step, and accuracies.jsonl.
        steps: into which the classes are divided, evenly.
        orders: of the classes, drawn by seeds; the mean and its deviation are over orders and networks.
        num_eval, eval_epochs, protocol: how networks are trained on the memory; DM's are 3, 1000 and dsa.
        options: those of `distill`, as iterations.

    Rows: step, classes, accuracy (mean over orders and networks, percent), std, images. Findings: the last accuracy.
    Source: Zhao & Bilen 2023 (DM), its code's continual learning: CIFAR-100, 5 or 10 steps, 20 per class.
    Errors: ValueError where the classes do not go evenly into the steps, two or more each.
    """
    expect_whole(steps=steps, ipc=ipc, orders=orders, num_eval=num_eval, eval_epochs=eval_epochs)
    data = load_dataset(dataset, data_root=data_root)
    K = data.num_classes
    if K % steps or K // steps < 2:
        raise ValueError(f"steps: expected a number that divides the {K} classes, two or more each, got {steps}")
    check_evaluation([network], protocol, data)
    expect_joined(protocol, options)
    of = {"dataset": data.name, "method": method, "steps": steps, "ipc": ipc, "network": network, "seed": seed}
    folder = study_folder(output, STUDY, of)
    found: list[list[float]] = [[] for _ in range(steps)]
    memory: list[SyntheticSet] = []
    for order, step in counted("set", list(product(range(orders), range(steps)))):
        classes = torch.randperm(K, generator=seeds.generator(seed, "order", order)).tolist()
        memory = memory if step else []
        new = classes[step * K // steps : (step + 1) * K // steps]
        how = {"method": method, "ipc": ipc, "network": network, "seed": seed + order, "device": device}
        how |= {"num_eval": 0, **options}
        run = folder / "runs" / f"{order:02d}-{step:02d}"
        done = distill(data.of_classes(new), output=run, resume=True, ranks=ranks, **how)
        memory.append(done.synthetic)
        seen = data.of_classes(classes[: (step + 1) * K // steps])
        result = evaluate(
            SyntheticSet.join(memory), seen, networks=(network,), num_eval=num_eval, eval_epochs=eval_epochs,
            protocol=protocol, seed=seed, device=device, output=folder / "accuracies.jsonl", ranks=ranks,
        )  # fmt: skip
        found[step] += next(iter(result.accuracies.values()))
    rows = [
        {
            "step": step + 1,
            "classes": (step + 1) * K // steps,
            "images": (step + 1) * K // steps * ipc,
            "accuracy": fmean(values),
            "std": stdev(values) if len(values) > 1 else 0.0,
        }
        for step, values in enumerate(found)
    ]
    settings = of | {"orders": orders, "num_eval": num_eval, "eval_epochs": eval_epochs, "protocol": protocol}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": {"last": rows[-1]["accuracy"]}}

    def draw(axes: Any) -> None:
        axes.errorbar(*([row[key] for row in rows] for key in ("classes", "accuracy", "std")), capsize=3, label=method)
        axes.set(xlabel="classes seen", ylabel="accuracy on them in %")
        axes.legend()

    if ranks.is_first:
        save_table(table, folder)
        save_picture(draw, folder)
    return table
