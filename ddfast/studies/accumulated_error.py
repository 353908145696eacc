"""The accumulated trajectory error: how far a student on the set leaves the path of an expert (FTD, figure 1), and the
matching loss over start epochs."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast.data import Dataset, SyntheticSet, augmentation, take_statistics
from ddfast.data.synthetic import DEFAULT_LR
from ddfast.engine.students import Training
from ddfast.evaluation.judging import logits_of
from ddfast.experts import TrajectoryStore, expect_preprocessed_alike, expect_trained_with
from ddfast.run.transfer import experts_of, set_and_data
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.forecast import counted
from ddfast.studies.tables import Table, save_picture, save_table, study_folder

STUDY = "trajectory-error"


def trajectory_error(
    sets: Mapping[str, str | Path | SyntheticSet],
    dataset: Any,
    experts: TrajectoryStore | str | Path | None,
    output: str | Path,
    *,
    syn_steps: int = 50,
    expert_epochs: int = 2,
    num_experts: int = 1,
    last_epoch: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
) -> Table:
    """Test losses of students on the way of an expert, above the expert's own.

    In the evaluation a student begins where the expert did and takes `syn_steps` steps of SGD for every `expert_epochs`
    epochs; in the distillation it begins at the expert's epoch e − expert_epochs and takes `syn_steps`. What the first
    is above the second has accumulated.

    Args:
        sets: sets, their paths, or run folders, by the names that the picture gives them.
        dataset: as load_dataset takes it; None for the runs'.
        experts: a store with all epochs kept, or its folder; None for the first run's.
        last_epoch: None for the experts' last.

    Rows: set, epoch, expert_loss, evaluation and distillation (test losses above it, in nats, means over experts), and
    matching_loss (MTT's, of the segment that ends there). Findings: the last row of each set.
    Source: Du et al. 2023 (FTD), figure 1 and equation 5.
    Errors: ValueError for experts of another network, or without the epochs.
    """
    expect_whole(syn_steps=syn_steps, expert_epochs=expert_epochs, num_experts=num_experts)
    if not sets:
        raise ValueError("sets: expected at least one")
    if experts is None:
        experts = experts_of(next(iter(sets.values())))
    store = experts if isinstance(experts, TrajectoryStore) else TrajectoryStore(experts)
    last = store.epochs if last_epoch is None else last_epoch
    if not expert_epochs <= last <= store.epochs or num_experts > store.num_experts:
        raise ValueError(
            f"experts: {store.path} has {store.num_experts} of {store.epochs} epochs; expected {num_experts}, and a "
            f"last epoch from {expert_epochs} to {store.epochs}, got {last}"
        )
    read = {name: set_and_data(synthetic, dataset, data_root) for name, synthetic in sets.items()}
    for synthetic, data in read.values():
        expect_trained_with(store, data, "fingerprint", data.fingerprint)
        if synthetic.network is not None:
            expect_trained_with(store, data, "network", synthetic.network)
        expect_preprocessed_alike(store, data)
    of = {"sets": {name: synthetic.digest for name, (synthetic, _) in read.items()}, "experts": str(store.path)}
    folder = study_folder(output, STUDY, of)
    rows, where = [], resolve_device(device)
    epochs = range(expert_epochs, last + 1, expert_epochs)
    for name, (synthetic, data) in read.items():
        walk = _Walk(synthetic.decoded(), data, store.settings["network"], where, seed)
        found: dict[int, list[dict[str, float]]] = {epoch: [] for epoch in epochs}
        for expert in counted(f"{name}: expert", range(num_experts)):
            student = store.snapshot(expert, 0)
            for epoch in epochs:
                start, target = store.segment(expert, epoch - expert_epochs, epoch)
                student = walk.after(student, syn_steps)
                near, own = walk.after(start, syn_steps), walk.loss(target)
                share = float((near - target).square().sum() / (start - target).square().sum())
                record = {"expert_loss": own, "evaluation": walk.loss(student) - own}
                found[epoch].append(record | {"distillation": walk.loss(near) - own, "matching_loss": share})
        for epoch, records in found.items():
            rows.append({"set": name, "epoch": epoch, **{key: fmean(r[key] for r in records) for key in records[0]}})
    findings = {name: [row for row in rows if row["set"] == name][-1] for name in sets}
    settings = of | {"syn_steps": syn_steps, "expert_epochs": expert_epochs, "num_experts": num_experts, "seed": seed}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": findings}

    def draw(axes: Any) -> None:
        for n, name in enumerate(sets):
            of = [row for row in rows if row["set"] == name]
            for key, line in (("evaluation", "-"), ("distillation", ":")):
                axes.plot(epochs, [row[key] for row in of], line, color=f"C{n}", label=f"{name}, {key}")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel="expert's epoch", ylabel="test loss above the expert's")
        axes.legend()

    save_table(table, folder)
    save_picture(draw, folder)
    return table


class _Walk:
    """Students on a set: parameters after some steps, and the test loss of parameters."""

    def __init__(self, synthetic: SyntheticSet, data: Dataset, network: str, device: torch.device, seed: int) -> None:
        self._images, self._targets = synthetic.images.to(device), synthetic.targets.to(device)
        self._data, self._device, self._set = data, device, synthetic
        self._test = data.test_batches(device)
        self._generator = seeds.generator(seed, "trajectory error")
        self._net: nn.Module = all_networks.create(
            network, generator=seeds.generator(seed), **data.network_arguments
        ).to(device)
        self._augment = augmentation(synthetic.dsa_strategy)
        self._lr = DEFAULT_LR if synthetic.lr is None else float(synthetic.lr)

    def after(self, parameters: Tensor, steps: int) -> Tensor:  # [P] -> [P], on the CPU
        """So many steps of plain SGD on all images, at the set's rate."""
        training = Training([self._net], self._images.shape[1:], lr=self._lr)
        training.load(parameters.to(self._device)[None])
        for _ in range(steps):
            images = self._set.parameterisation.see(self._images, self._generator)
            training.step(self._augment.side_by_side(images[None], [self._generator]), self._targets[None])
        return training.parameters()[0].cpu()

    def loss(self, parameters: Tensor) -> float:  # [P]
        """Mean cross-entropy on the test images."""
        vector_to_parameters(parameters.to(self._device), self._net.parameters())
        take_statistics(self._net, self._data, self._device)
        return float(cross_entropy(*logits_of(self._net, self._test)))
