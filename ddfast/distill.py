"""The whole job: experts, the outer loop, evaluation, and a run folder."""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from ddfast import seeds
from ddfast.data import Dataset, SyntheticSet, load_dataset
from ddfast.devices import resolve_device
from ddfast.evaluate import BASELINE_LR, Evaluation, accuracy, evaluate
from ddfast.experts import TrajectoryStore, train_experts
from ddfast.experts.train import create_network
from ddfast.installation import build_info
from ddfast.methods import METHODS
from ddfast.presets import choose_preset
from ddfast.report import save_images
from ddfast.runs import RunFolder

log = logging.getLogger("ddfast")

MOST_SKIPS = 20  # updates in a row without a finite gradient that end a run
RUN_SETTINGS = ("iterations", "num_experts", "train_epochs", "batch_train")


class DistillationDivergedError(ValueError):
    """Too many updates in a row had no finite gradient; the last good state has been kept."""


@dataclass(frozen=True)
class DistillResult:
    """What `distill` returns."""

    synthetic: SyntheticSet
    history: list[dict[str, Any]]  # one record per iteration
    path: Path  # the run folder
    accuracy: dict[str, dict[str, Any]]  # distilled, random_real, full_data: mean, std, n


class Distillation:
    """The outer loop of a run: iterate over it for one record per iteration; `synthetic` is the set as it is.

    Made from settings that are resolved already; `distill` resolves them, drains this, evaluates and writes the folder.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        method: str,
        settings: Any,
        ipc: int,
        experts: TrajectoryStore,
        iterations: int,
        num_experts: int | None = None,
        network: str = "convnet",
        seed: int = 0,
        device: str | torch.device | None = None,
    ):
        if iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {iterations}")
        _check_experts(experts, data, network, settings.epochs_needed)
        images, labels = data.random_real(ipc, seeds.generator(seed, "init"))
        initial = SyntheticSet(images, labels, torch.tensor(settings.lr_teacher), data.class_names, data.preprocessing)
        net = create_network(data, network, seeds.generator(seed, "student"))
        self.iterations = iterations
        self.iteration = 0
        self.method = METHODS[method][0](
            settings, initial, experts, net, seeds.generator(seed, "distill"), num_experts=num_experts, device=device
        )

    @property
    def synthetic(self) -> SyntheticSet:
        """The synthetic set as it is now, detached."""
        return self.method.current()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Run to the end; DistillationDivergedError after too many updates in a row that had to be skipped."""
        skips = 0
        while self.iteration < self.iterations:
            began = time.perf_counter()
            record = self.method.step()
            self.iteration += 1
            skips = 0 if record["updated"] else skips + 1
            yield {"iteration": self.iteration, **record, "seconds": time.perf_counter() - began}
            if skips >= MOST_SKIPS:
                raise DistillationDivergedError(
                    f"distillation: {skips} updates in a row had no finite gradient; "
                    f"try a smaller lr_img or lr_lr, or fewer syn_steps"
                )


def distill(
    dataset="digits",
    *,
    method: str = "mtt",
    ipc: int = 1,
    experts: TrajectoryStore | str | Path | None = None,
    iterations: int | None = None,
    num_experts: int | None = None,
    output: str | Path | None = None,
    preset: str | None = None,
    network: str = "convnet",
    num_eval: int = 5,
    eval_epochs: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress=iter,
    **options,
) -> DistillResult:
    """Distil a data set to `ipc` images per class, evaluate them, and write a run folder.

    Args:
        dataset: a name, a pair of torch data sets, or a Dataset.
        method: a name of ddfast.methods.METHODS.
        experts: a TrajectoryStore or its folder; None trains what is needed, once, in the user's cache.
        iterations, num_experts: None for the preset's.
        output: the run folder; None for the next free number under runs/. A folder that holds a run is an error.
        preset: the name of the settings to start from; None for the nearest to (method, dataset, ipc).
        num_eval, eval_epochs: the evaluation's networks, and epochs of each.
        progress: wraps the Distillation that is iterated over, for a progress bar.
        options: settings of the method (MTTSettings) that replace the preset's; for the experts train_epochs (at least
            what the run needs are trained) and batch_train.

    The same seed on the same kind of device with the same number of threads gives the same bits.

    Errors: ValueError or TypeError for what cannot work, before anything is written or trained; FileExistsError for an
    output folder that holds a run; DistillationDivergedError, with the last good images saved.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    data = load_dataset(dataset)
    preset, row = choose_preset(method, data.name, ipc, preset)
    given = {"iterations": iterations, "num_experts": num_experts, **options}
    chosen = row | {name: value for name, value in given.items() if value is not None}
    settings, run_settings = _split_settings(METHODS[method][1], chosen)
    checked = {"iterations": run_settings["iterations"], "num_eval": num_eval, "eval_epochs": eval_epochs}
    for name, value in checked.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    data.random_real(ipc, seeds.generator(seed, "init"))  # refuses an impossible ipc, before experts are trained,
    create_network(data, network, seeds.generator(seed))  # and an unknown network
    device = resolve_device(device)
    if experts is not None:
        experts = experts if isinstance(experts, TrajectoryStore) else TrajectoryStore(experts)
        _check_experts(experts, data, network, settings.epochs_needed)
        run_settings["num_experts"] = experts.num_experts if num_experts is None else num_experts
    run = RunFolder.create(output)
    log.info("settings: %s", preset)
    if experts is None:
        experts = train_experts(
            data,
            network=network,
            num_experts=run_settings["num_experts"],
            epochs=max(run_settings["train_epochs"], settings.epochs_needed),
            batch_train=run_settings["batch_train"],
            lr_teacher=settings.lr_teacher,
            seed=seed,
            device=device,
        )
    distillation = Distillation(
        data,
        method=method,
        settings=settings,
        ipc=ipc,
        experts=experts,
        num_experts=run_settings["num_experts"],
        iterations=run_settings["iterations"],
        network=network,
        seed=seed,
        device=device,
    )
    run.write_config(
        {
            "dataset": data.name,
            "fingerprint": data.fingerprint(),
            "method": method,
            "preset": preset,
            "ipc": ipc,
            "network": network,
            "seed": seed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "experts": {"path": str(experts.path), "epochs": experts.epochs, **experts.settings},
            **run_settings,
            **asdict(settings),
            "num_eval": num_eval,
            "eval_epochs": eval_epochs,
            "versions": build_info()["versions"],
        }
    )
    began, history = time.perf_counter(), []
    try:
        for record in progress(distillation):
            history.append(record)
            run.append_metrics(record)
    finally:
        run.write_synthetic(distillation.synthetic)
        save_images(distillation.synthetic, run.images_path)
    seconds = time.perf_counter() - began
    log.info("evaluating: %d networks on the distilled set, %d on random real images", num_eval, num_eval)
    last = [experts.snapshot(expert, experts.epochs) for expert in range(run_settings["num_experts"])]
    options = {"networks": (network,), "num_eval": num_eval, "epochs": eval_epochs, "seed": seed, "device": device}
    random_real = SyntheticSet(
        *data.random_real(ipc, seeds.generator(seed, "random_real")),
        torch.tensor(BASELINE_LR),
        data.class_names,
        data.preprocessing,
    )
    results = {
        "distilled": evaluate(distillation.synthetic, data, **options).summary(),
        "random_real": evaluate(random_real, data, **options).summary(),
        "full_data": {**_test(last, data, network, device).summary(), "epochs": experts.epochs},
    }
    run.write_summary({"accuracy": results, "seconds": seconds, "iterations": len(history)})
    return DistillResult(distillation.synthetic, history, run.path, results)


def _split_settings(settings_class: type, chosen: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The method's settings and the run's; ValueError that lists the options, for an unknown one."""
    known = [field.name for field in fields(settings_class)]
    unknown = [name for name in chosen if name not in known and name not in RUN_SETTINGS]
    if unknown:
        raise ValueError(f"options: expected some of {', '.join([*known, *RUN_SETTINGS])}, got {', '.join(unknown)}")
    return (
        settings_class(**{name: value for name, value in chosen.items() if name in known}),
        {name: chosen[name] for name in RUN_SETTINGS},
    )


def _check_experts(experts: TrajectoryStore, data: Dataset, network: str, epochs_needed: int) -> None:
    """Refuse experts of other data, of another network, or of too few epochs."""
    wanted = {"dataset": data.name, "fingerprint": data.fingerprint(), "network": network}
    for name, value in wanted.items():
        if experts.settings.get(name) != value:
            has = experts.settings.get(name)
            raise ValueError(f"experts: {experts.path} was trained with {name} {has!r}, this run has {value!r}")
    if experts.epochs < epochs_needed:
        raise ValueError(
            f"{experts.path} has {experts.epochs} epochs, max_start_epoch and expert_epochs need {epochs_needed}"
        )


def _test(snapshots: list[Tensor], data: Dataset, network: str, device: torch.device) -> Evaluation:
    """Test accuracy of networks with these parameters, [P] each."""
    net = create_network(data, network, seeds.generator(0)).to(device)
    accuracies = []
    for parameters in snapshots:
        vector_to_parameters(parameters.to(device), net.parameters())
        accuracies.append(accuracy(net, data.test_images, data.test_labels))
    return Evaluation({network: accuracies})
