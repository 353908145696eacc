"""The whole job: experts, the outer loop, evaluation, and a run folder."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ddfast import networks, seeds
from ddfast.arguments import expect_whole
from ddfast.data import Dataset, SyntheticSet, load_dataset
from ddfast.devices import peak_bytes, resolve_device
from ddfast.evaluate import evaluate, evaluate_random_real, evaluate_snapshots
from ddfast.experts import TrajectoryStore, train_experts
from ddfast.installation import build_info
from ddfast.methods import METHODS
from ddfast.presets import choose_preset
from ddfast.report import save_images
from ddfast.runs import RunFolder

log = logging.getLogger("ddfast")

MOST_SKIPS = 20  # updates in a row without a finite gradient that end a run
RUN_SETTINGS = ("iterations", "num_experts", "train_epochs", "batch_train")


class DistillationDivergedError(ValueError):
    """Too many updates in a row had no finite gradient; the synthetic set is the last good one again."""


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
    Errors: ValueError for experts that are too few, too short, or of another data set or network.
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
        _check_experts(experts, data, network, settings.epochs_needed)
        images, labels = data.random_real(ipc, seeds.generator(seed, "init"))
        lr = torch.tensor(settings.lr_teacher)
        initial = SyntheticSet(images, labels, lr, data.class_names, data.preprocessing)
        student = networks.create(network, generator=seeds.generator(seed, "student"), **data.network_arguments)
        self.iterations = iterations
        self.iteration = 0
        self.device = resolve_device(device)
        generator = seeds.generator(seed, "distill")
        self.method = METHODS[method](
            settings, initial, experts, student, generator, num_experts=num_experts, device=self.device
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
            cost = {"seconds": time.perf_counter() - began, "peak_bytes": peak_bytes(self.device)}
            yield {"iteration": self.iteration, **record, **cost}
            if skips >= MOST_SKIPS:
                self.method.restore()
                raise DistillationDivergedError(
                    f"distillation: {skips} updates in a row had no finite gradient; "
                    f"try a smaller lr_img or lr_lr, or fewer syn_steps"
                )
        if skips:
            self.method.restore()
            log.warning("the last %d updates had no finite gradient: back to the images before them", skips)


def distill(
    dataset: Any = "digits",
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
    progress: Callable[[Distillation], Iterable[dict[str, Any]]] = iter,
    **options: Any,
) -> DistillResult:
    """Distil a data set to `ipc` images per class, evaluate them, and write a run folder.

    Args:
        dataset: a name, a pair of torch data sets, or a Dataset.
        method: a name of ddfast.methods.METHODS.
        experts: a TrajectoryStore or its folder; None trains what is needed, once, in the user's cache.
        iterations, num_experts: None for the preset's, or for all experts of a given store.
        output: the run folder; None for the next free number under runs/. A folder that holds a run is an error.
        preset: the name of the settings to start from; None for the nearest to (method, dataset, ipc).
        network: a name of ddfast.networks.NETWORKS, to distil with and to evaluate.
        num_eval, eval_epochs: the evaluation's networks, and epochs of each.
        seed: all random draws of the run come from it.
        device: None for a GPU where there is one.
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
    settings, run_settings = _split_settings(METHODS[method].Settings, chosen)
    evaluation = {"num_eval": num_eval, "eval_epochs": eval_epochs}
    expect_whole(**run_settings, **evaluation)
    common = {"network": network, "seed": seed, "device": resolve_device(device)}
    job = {"method": method, "settings": settings, "ipc": ipc, "iterations": run_settings["iterations"], **common}
    data.random_real(ipc, seeds.generator(seed))  # refuses an impossible ipc, and the next line an unknown network
    networks.create(network, generator=seeds.generator(seed), **data.network_arguments)
    distillation = None
    if experts is not None:
        store = experts if isinstance(experts, TrajectoryStore) else TrajectoryStore(experts)
        run_settings["num_experts"] = store.num_experts if num_experts is None else num_experts
        distillation = Distillation(data, experts=store, num_experts=run_settings["num_experts"], **job)
    config = {
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "method": method,
        "preset": preset,
        "ipc": ipc,
        **common,
        "device": str(common["device"]),
        "threads": torch.get_num_threads(),
        **run_settings,
        **asdict(settings),
        **evaluation,
        "versions": build_info()["versions"],
    }
    run = RunFolder.create(output, config)
    log.info("settings: %s", preset)
    if distillation is None:
        try:
            store = train_experts(
                data,
                num_experts=run_settings["num_experts"],
                epochs=max(run_settings["train_epochs"], settings.epochs_needed),
                batch_train=run_settings["batch_train"],
                lr_teacher=settings.lr_teacher,
                **common,
            )
        except BaseException:
            run.discard()
            raise
        distillation = Distillation(data, experts=store, num_experts=run_settings["num_experts"], **job)
    run.write_config({**config, "experts": {"path": str(store.path), "epochs": store.epochs, **store.settings}})
    began, history = time.perf_counter(), []
    try:
        for record in progress(distillation):
            history.append(record)
            run.append_metrics(record)
    finally:
        run.write_synthetic(distillation.synthetic)
        save_images(distillation.synthetic, run.images_path)
    seconds = time.perf_counter() - began
    accuracy = _evaluate(distillation.synthetic, data, ipc, store, run_settings["num_experts"], evaluation, common)
    peak = peak_bytes(common["device"])
    run.write_summary({"accuracy": accuracy, "seconds": seconds, "iterations": len(history), "peak_bytes": peak})
    return DistillResult(distillation.synthetic, history, run.path, accuracy)


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
    wanted = {"dataset": data.name, "fingerprint": data.fingerprint, "network": network}
    for name, value in wanted.items():
        has = experts.settings.get(name)
        if has != value:
            raise ValueError(f"experts: {experts.path} was trained with {name} {has!r}, this run has {value!r}")
    if experts.epochs < epochs_needed:
        raise ValueError(
            f"{experts.path} has {experts.epochs} epochs, max_start_epoch and expert_epochs need {epochs_needed}"
        )
    for expert in range(experts.num_experts):
        experts.snapshot(expert, experts.epochs)  # refuses a file that is not whole


def _evaluate(
    synthetic: SyntheticSet,
    data: Dataset,
    ipc: int,
    experts: TrajectoryStore,
    num_experts: int,
    evaluation: dict[str, int],
    common: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Accuracy of the distilled set, of as many random real images, and of the experts' last snapshots."""
    num_eval, network = evaluation["num_eval"], common["network"]
    log.info("evaluating: %d networks on the distilled set, %d on random real images", num_eval, num_eval)
    options = {"networks": (network,), "num_eval": num_eval, "epochs": evaluation["eval_epochs"]}
    options |= {"seed": common["seed"], "device": common["device"]}
    last = [experts.snapshot(expert, experts.epochs) for expert in range(num_experts)]
    full = evaluate_snapshots(data, network, last, common["device"]).summary()
    return {
        "distilled": evaluate(synthetic, data, **options).summary(),
        "random_real": evaluate_random_real(data, ipc, **options).summary(),
        "full_data": {**full, "epochs": experts.epochs},
    }
