"""One-shot federated learning: clients distil what they hold, and send nothing else; a server trains on the union."""

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ddfast.data import Dataset, SyntheticSet, load_dataset
from ddfast.evaluation import check_evaluation, evaluate
from ddfast.networks import name_of
from ddfast.run.distill import distill
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.forecast import counted
from ddfast.studies.tables import Table, expect_joined, save_table, study_folder

STUDY = "federated"

log = logging.getLogger("ddfast")

# FedD3's, but for the end: there a client stops once the images of a minibatch are all predicted right.
KIP = {"kernel_depth": 4, "lr_img": 0.004, "batch_real": 10, "iterations": 100}


def federated(
    dataset: Any,
    output: str | Path,
    *,
    method: str = "kip",
    clients: int = 10,
    classes_per_client: int | None = None,
    ipc: int = 1,
    networks: Sequence[Any] = ("lenet",),
    num_eval: int = 3,
    eval_epochs: int = 500,
    protocol: str = "fedd3",
    workers: int = 1,
    seed: int = 0,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    **options: Any,
) -> Table:
    """Divide the training images among clients, distil each part by itself, and train networks on the sets together.

    A client is a process of its own (`workers` at a time), which is given its part and leaves a synthetic set; the
    server reads these files only. Clients are started anew (`spawn`): a script calls this below `if __name__ ==
    "__main__":`. All use the preprocessing of the data set. Clients that are done are not run again.

    Args:
        dataset: as load_dataset takes it.
        output: the folder: client-NNN/ is the run of a client.
        method, options: how clients distil, as `distill` takes them: kip (with FedD3's depth 4, rate 0.004 and 10 real
            images a step, for 100 iterations), a coreset, or any other method.
        classes_per_client: 2 is FedD3's non-IID setting; None for all classes, its IID one.
        ipc: of each class that a client holds.
        protocol: how the server trains; fedd3 is 500 epochs of Adam at 0.001, weight decay 1e-4, minibatches of 50.

    Rows: network, last (mean test accuracy after the last epoch, percent), best (the mean of the best on the way, which
    FedD3 reports, chosen on test images), n. Findings: bytes sent by all clients, images sent, bytes of the training
    images.
    Source: Song et al. 2023 (FedD3), by its code.
    """
    expect_whole(clients=clients, ipc=ipc, num_eval=num_eval, eval_epochs=eval_epochs, workers=workers)
    data = load_dataset(dataset, data_root=data_root)
    check_evaluation([name_of(network) for network in networks], protocol, data)
    expect_joined(protocol, options)
    parts = split(data.train_labels, data.num_classes, clients, classes_per_client, seed)
    of = {"dataset": data.name, "method": method, "clients": clients, "classes_per_client": classes_per_client}
    of |= {"ipc": ipc, "seed": seed}
    folder = study_folder(output, STUDY, of)
    how = {"method": method, "ipc": ipc, "device": device, "num_eval": 0} | (KIP if method == "kip" else {}) | options
    jobs = []
    for client, (classes, indices) in enumerate(parts):
        shard = data.of_classes(classes, indices)
        jobs.append((shard, folder / f"client-{client:03d}", how | {"seed": seed + client}))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(_distilled, *zip(*jobs, strict=True))
        for _ in counted("client", range(clients)):
            files = next(done)
            log.info("it sends %s bytes", f"{sum(f.stat().st_size for f in files):,}")
    sent = [folder / f"client-{client:03d}" / "synthetic.safetensors" for client in range(clients)]
    joined = SyntheticSet.join([SyntheticSet.load(path) for path in sent])
    order = [joined.class_names.index(name) for name in data.class_names]
    joined = joined.of_classes(order)  # in the data set's order
    result = evaluate(
        joined, data, networks=networks, num_eval=num_eval, eval_epochs=eval_epochs, protocol=protocol, seed=seed,
        device=device, best_on_test=True, output=folder / "accuracies.jsonl",
    )  # fmt: skip
    rows = [
        {"network": name, "last": fmean(values), "n": len(values),
         "best": fmean(record["best_on_test"] for record in result.records[name])}
        for name, values in result.accuracies.items()
    ]  # fmt: skip
    findings = {"bytes_sent": sum(path.stat().st_size for path in sent), "images_sent": len(joined)}
    findings |= {"bytes_of_training_images": data.train_images.numel()}
    settings = of | {"protocol": protocol, "eval_epochs": eval_epochs}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": findings}
    save_table(table, folder)
    return table


def split(
    labels: Tensor,  # int64 [N]
    num_classes: int,
    clients: int,
    classes_per_client: int | None,
    seed: int,
) -> list[tuple[list[int], Tensor]]:
    """Classes and indices of the training images of each client, as FedD3 divides them: client i holds classes
    (i + j) mod K, j below `classes_per_client`, and the shuffled images of a class are cut into equal parts.

    Errors: ValueError for fewer than two classes each, classes that nobody holds, or fewer images than holders.
    """
    count = num_classes if classes_per_client is None else classes_per_client
    if not 2 <= count <= num_classes:
        raise ValueError(f"classes_per_client: expected 2 to {num_classes}, got {count}")
    classes = [sorted((client + j) % num_classes for j in range(count)) for client in range(clients)]
    chosen: list[list[Tensor]] = [[] for _ in range(clients)]
    for k in range(num_classes):
        holders = [client for client in range(clients) if k in classes[client]]
        of_class = (labels == k).nonzero()[:, 0]
        if not holders:
            raise ValueError(f"clients: none of {clients} holds class {k}; give more clients, or classes_per_client")
        if len(of_class) < len(holders):
            raise ValueError(
                f"clients: class {k} has {len(of_class)} images for {len(holders)} clients; give fewer clients, or "
                f"classes_per_client"
            )
        order = torch.randperm(len(of_class), generator=seeds.generator(seed, "clients", k))
        for client, part in zip(holders, of_class[order].tensor_split(len(holders)), strict=True):
            chosen[client].append(part)
    return [(held, torch.cat(parts).sort().values) for held, parts in zip(classes, chosen, strict=True)]


def _distilled(shard: Dataset, output: Path, options: dict[str, Any]) -> list[Path]:
    """A client: its run, and the files that it sends."""
    distill(shard, output=output, resume=True, **options)
    return [output / "synthetic.safetensors"]
