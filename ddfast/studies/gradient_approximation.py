"""How far TESLA's approximate meta-gradient is from the exact one, over the steps of the unroll."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from ddfast import networks as all_networks
from ddfast.data import DSA, Dataset, load_dataset
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll
from ddfast.engine.unroll import match_trajectory
from ddfast.experts import TrajectoryStore, expect_trained_with
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.forecast import counted
from ddfast.studies.tables import Table, save_table, study_folder

STUDY = "gradient-error"


def gradient_error(
    dataset: Any,
    experts: TrajectoryStore | str | Path,
    output: str | Path,
    *,
    steps: Sequence[int] = (1, 10, 20, 50),
    draws: int = 5,
    ipc: int = 1,
    lr: float = 0.01,
    dsa_strategy: str = "none",
    expert_epochs: int = 2,
    data_root: str | Path | None = None,
    image_size: Any = None,
) -> Table:
    """Compare both gradients of the matching loss on random real images, for segments that are drawn.

    Rows: steps, cosine of the image gradients, ratio of their norms (approximate over exact), ratio of the gradients in
    the learning rate; medians over draws, with the least and the largest.
    Source: Cui et al. 2023 (TESLA), section 3.2; ddfast.adjoints.DetachedUnroll is its approximation.
    Errors: ValueError for experts of too few epochs, or another network's.
    """
    expect_whole(draws=draws, ipc=ipc, expert_epochs=expert_epochs, steps=min(steps, default=0))
    store = _store(experts)
    data = load_dataset(dataset, data_root=data_root, image_size=image_size, preprocessing=store.path)
    expect_trained_with(store, data, "fingerprint", data.fingerprint)
    if store.epochs <= expert_epochs:
        raise ValueError(f"experts: {store.path} has {store.epochs} epochs, expected more than {expert_epochs}")
    of = {"experts": str(store.path), "dataset": data.name}
    folder = study_folder(output, STUDY, of)
    rows = []
    for count in counted("number of steps", list(steps)):
        found = [_compared(data, store, count, n, ipc, lr, dsa_strategy, expert_epochs) for n in range(draws)]
        row: dict[str, Any] = {"steps": count}
        for name, column in zip(("cosine", "norms", "rates"), zip(*found, strict=True), strict=True):
            row |= {name: median(column), f"least_{name}": min(column), f"largest_{name}": max(column)}
        rows.append(row)
    settings = of | {"draws": draws, "ipc": ipc, "lr": lr, "dsa_strategy": dsa_strategy, "expert_epochs": expert_epochs}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": {}}
    save_table(table, folder)
    return table


def _store(experts: TrajectoryStore | str | Path) -> TrajectoryStore:
    return experts if isinstance(experts, TrajectoryStore) else TrajectoryStore(experts)


def _compared(
    data: Dataset,
    store: TrajectoryStore,
    steps: int,
    draw: int,
    ipc: int,
    lr: float,
    dsa_strategy: str,
    expert_epochs: int,
) -> tuple[float, float, float]:
    """Cosine of the image gradients, ratio of their norms, and of the learning rate's gradients."""
    generator = seeds.generator(draw, "detached", steps)
    images, labels = data.random_real(ipc, generator)
    network = all_networks.create(store.settings["network"], generator=generator, **data.network_arguments)
    epoch = int(torch.randint(store.epochs - expert_epochs + 1, (), generator=generator))
    start, target = store.segment(0, epoch, epoch + expert_epochs)
    augment = DSA(dsa_strategy).draw_steps(steps, len(images), data.image_size, generator)
    gradients = []
    for adjoint in (CheckpointedUnroll(), DetachedUnroll()):
        x, rate = images.clone().requires_grad_(), torch.tensor(lr, requires_grad=True)
        loss = match_trajectory(
            network, start, target, x, labels, rate, syn_steps=steps, augment=augment, adjoint=adjoint
        )
        gradients.append(torch.autograd.grad(loss, (x, rate)))
    (exact, exact_lr), (detached, detached_lr) = gradients
    cosine = cosine_similarity(exact.flatten(), detached.flatten(), dim=0).item()
    return cosine, (detached.norm() / exact.norm()).item(), (detached_lr / exact_lr).item()
