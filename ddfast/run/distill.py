"""The whole job: experts, the outer loop, evaluation, and a run folder."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfast.data import SyntheticSet
from ddfast.evaluation import evaluate, evaluate_full_data, evaluate_random_real, evaluate_snapshots
from ddfast.experts import Judges, TrajectoryStore, train_experts
from ddfast.run.costs import EVALUATION, IMAGES, forecast_of, trainings
from ddfast.run.folder import RunFolder, WatchedRunFolder
from ddfast.run.job import EXPERT_TRAINING, Job
from ddfast.run.loop import Distillation, initial_of
from ddfast.run.own_data import Derived
from ddfast.run.probe import apply_rates, probe_rates
from ddfast.run.recorder import Recorder, evaluation_options
from ddfast.run.resolve import resolve
from ddfast.run.result import DistillResult
from ddfast.run.resume import resolve_resumed
from ddfast.run.trackers import Tracker, open_tracker
from ddfast.run.verdict import check_that_experts_learned, verdict
from ddfast.runtime.arguments import takes_plain_numbers
from ddfast.runtime.devices import is_out_of_memory
from ddfast.runtime.files import undisturbed
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, RankError, Ranks, expect_ranks

log = logging.getLogger("ddfast")


@takes_plain_numbers
def distill(
    dataset: Any = None,
    *,
    method: str | None = None,
    ipc: int | Mapping[str | int, int] | Sequence[int] | str | Path | None = None,
    experts: TrajectoryStore | str | Path | None = None,
    iterations: int | None = None,
    output: str | Path | None = None,
    preset: str | None = None,
    budget: str | None = None,
    memory_budget: int | float | str | None = None,
    precision: str | None = None,
    cuda_graph: bool | None = None,
    deterministic: bool | None = None,
    network: str | nn.Module | Callable[..., nn.Module] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    download: bool = False,
    progress: Callable[[Distillation], Iterable[dict[str, Any]]] = iter,
    ranks: Ranks = ALONE,
    **options: Any,
) -> DistillResult:
    """Distil a data set to `ipc` images per class, evaluate them, and write a run folder.

    Args:
        dataset: a name, a folder of images, a pair of torch data sets or tensors, or a Dataset; None for digits.
        method: a name of ddfast.methods.METHODS; None for mtt.
        ipc: images per class; None for 1, or as many as the saved set has that `init` names. A number; or one for each
            class: a list [K], a dict by the classes' names or indices with a "default" for the others, or a .json or
            .toml file of one of these. More than a class has need init="noise".
        experts: a TrajectoryStore or its folder; None trains what is needed, once, in the user's cache.
        iterations: outer steps; None for the preset's.
        output: the run folder; None for the next free number under runs/. A folder that holds a run is an error.
        preset: the name of the settings to start from; None for that of (method, dataset, ipc). Data that no preset is
            of get settings derived from them: docs/own-data.md.
        budget: a time such as 20min or 2h, for the whole job; None for 10min where no preset is of the data. Experts,
            iterations and evaluation follow from it and from timed steps, unless they are given.
        memory_budget: what an outer step may use, in bytes, as a size ("4GiB") or a fraction of what is free; None for
            half of that. More memory is less work; the plan is made once per run, and recorded. If memory still runs
            out, the step is retried with half the budget, once.
        precision: of the convolutions of an outer step: default (PyTorch's settings), float32 (strict, no TF32), or
            bfloat16 (and of the maps between them); None for default.
        cuda_graph: on a GPU, capture an outer step once and replay it as one launch: faster where steps are small; None
            for no.
        deterministic: on a GPU, let cuDNN use only algorithms that give the same bits every time, in the outer steps as
            in the training of experts and in the evaluation, where they always are; None for yes. docs/numerics.md
            says what gives the same bits where.
        network: what to distil with: a name as ddfast.networks.create takes it (convnet:depth=4, torchvision:resnet18,
            timm:…), a module, whose copies are initialised again, or a function that returns one, called with those
            of channels, num_classes and image_size that it takes; None for the experts', or the preset's. A run with an
            object is resumed when it is given again.
        seed: all random draws of the run come from it; None for 0.
        device: None for a GPU where there is one.
        resume: go on with the run in `output`, bit for bit as if it had never stopped, with its own settings (they need
            not be given again; another memory_budget gives other last bits); where there is none yet, begin it.
        download: fetch a named data set that is not there.
        ranks: the processes that make this call together (ddfast.ranks), with the same arguments and files in reach. Of
            `segments` > 1 each takes as many; of one, a part of every minibatch. The first one writes.
        progress: wraps the Distillation that is iterated over, for a progress bar.
        options: all others of docs/options.md, by section: of the data (as load_dataset takes them), of the experts, of
            the unroll and the outer step (the fields of the method's Settings), and of the evaluation. An option of
            the preset is switched off by "none".

    The same settings and seed give the same bits twice on one device, on a CPU with the same number of threads. Those
    that follow from timed steps may differ from run to run; config.json has them.

    Errors: ValueError or TypeError for what cannot work, before anything is written or trained; FileExistsError for an
    output folder that holds a run; DistillationDivergedError, with the last good images saved.
    """
    given = {"dataset": dataset, "method": method, "ipc": ipc, "experts": experts, "iterations": iterations}
    given |= {
        "budget": budget,
        "memory_budget": memory_budget,
        "precision": precision,
        "cuda_graph": cuda_graph,
        "deterministic": deterministic,
        "preset": preset,
        "network": network,
        "seed": seed,
        "device": device,
        **options,
    }
    expect_ranks(ranks)
    if resume and output is None:
        raise ValueError("resume: expected the output folder of the run to go on with, got none")
    run, job, goes_on = _open_run(given, output, resume, download, ranks)
    with run.locked():
        finished = ranks.together(lambda: _finished(run, job)) if goes_on else None
        if finished is not None:
            return finished
        run.write_config(job.config)
        try:
            forecast = _forecast(run, job)
            store = _train_experts(job, forecast) if job.trains_experts else job.experts
            distillation = _distillation(run, job, store, goes_on)
        except Exception:
            if not goes_on:
                run.discard()
            raise
        except KeyboardInterrupt:
            log.info("stopped while experts were being trained; resume continues from there: %s", run.path)
            raise
        if store is not None:
            trained = {"path": str(store.path.resolve()), "epochs": store.epochs, "error": store.error}
            job.config["trained_experts"] = trained | store.settings
            run.write_config(job.config)
        tracker = open_tracker(job.config.get("log"), run)
        history = _run(run, job, distillation, progress, forecast, tracker)
        measured = ranks.first(lambda: distillation.method.at_end(job.data))
        for name, value in measured.items():
            log.info("%s on test images: %.2f", name.replace("_", " "), value)
        synthetic, averaged = distillation.synthetic, distillation.averaged
        accuracy: dict[str, dict[str, Any]] = {}
        if job.config["num_eval"]:
            log.info("evaluating")
            forecast.begin(EVALUATION, trainings(job))
            accuracy = _accuracy({"distilled": synthetic, "averaged": averaged}, job, store, run, forecast)
            accuracy |= ranks.first(lambda: _best_of(run, job, accuracy["distilled"]))
        forecast.end()
        useless = verdict(job, accuracy, history, distillation.moved) if accuracy else None
        ranks.first(
            lambda: run.write_summary(
                _summary(run, job, synthetic, accuracy, history) | {"useless": useless, **measured}
            )
        )
        if useless is not None:
            log.warning("useless: %s", useless)
        tracker.log_accuracies(accuracy, job.config["iterations"])
        tracker.finish()
        return DistillResult(synthetic, history, run.path, accuracy, averaged, useless)


def _open_run(
    given: dict[str, Any], output: str | Path | None, resume: bool, download: bool, ranks: Ranks
) -> tuple[RunFolder, Job, bool]:
    """The folder and the job of a run, new or gone on with, which the last value says."""
    goes_on = ranks.first(lambda: resume and RunFolder(output).has_config)
    if goes_on:
        run = RunFolder(output)
        job = ranks.in_turn(lambda: _resumed(run, given, download, ranks))
        ranks.together(lambda: _check_iterations(run, job))
    else:
        if output is not None and not resume:
            ranks.first(RunFolder(output).expect_free)
        resolved: list[Job] = []  # of the first process: what it derives by timing steps is for all of them

        def derive() -> Derived:
            resolved.append(resolve(given, download, ranks))
            return Derived(resolved[0].config["derived_settings"], resolved[0].config["derived"])

        derived = ranks.first(derive)
        job = ranks.in_turn(lambda: resolved[0] if resolved else resolve(given, download, ranks, derived))
        run = RunFolder(ranks.first(lambda: RunFolder.create(output, job.config, resume=resume).path))
    job.config["memory_plan"] = ranks.first(lambda: job.config["memory_plan"])
    return run if ranks.is_first else WatchedRunFolder(run.path), job, goes_on


def _resumed(run: RunFolder, given: dict[str, Any], download: bool, ranks: Ranks) -> Job:
    try:
        return resolve_resumed(run.read_config(), given, run.path, download, ranks)
    except KeyError as error:
        raise ValueError(f"{run.path / 'config.json'}: has no {error}, which this version of ddfast expects") from None


def _check_iterations(run: RunFolder, job: Job) -> None:
    """Refuse to make a run shorter than it is."""
    done, wanted = (run.read_state() or {"iteration": 0})["iteration"], job.config["iterations"]
    if done > wanted:
        raise ValueError(f"iterations: the run in {run.path} has done {done} already, got {wanted}")


def _summary(
    run: RunFolder, job: Job, synthetic: SyntheticSet, accuracy: dict[str, Any], history: list[dict[str, Any]]
) -> dict[str, Any]:
    iterations = job.config["iterations"]
    best_on_test = {}
    if accuracy and (on_the_way := run.keep_until("evaluations", iterations)):
        last = {"iteration": iterations, **accuracy["distilled"]}
        best = max([*on_the_way, last], key=lambda record: record["mean"])
        best_on_test = {"best_on_test": {key: best[key] for key in ("iteration", "mean", "std")}}
    return {
        "accuracy": accuracy,
        "seconds": sum(record["seconds"] for record in history),
        "iterations": iterations,
        "bytes": synthetic.bytes,
        "peak_bytes": max((record["peak_bytes"] for record in history), default=0),
        "evaluation": _evaluation_settings(job),
        **best_on_test,
    }


def _best_of(run: RunFolder, job: Job, distilled: dict[str, Any]) -> dict[str, Any]:
    """The iteration that is best on held-out training images, where some are, and iterations were evaluated."""
    last = job.config["iterations"]
    evaluations = run.keep_until("evaluations", last)
    if job.data.held_images is None or not evaluations:
        return {}
    best = max([*evaluations, {"iteration": last, **distilled}], key=lambda record: record["held_out"])
    return {"best": {name: value for name, value in best.items() if name != "averaged"}}


def _with_probed_rates(job: Job, initial: SyntheticSet, store: TrajectoryStore | None) -> SyntheticSet:
    """The initial set with its learning rate, once the job has the rates that it probes for."""
    if job.config.get("probed") and "probed_rates" not in job.config:
        apply_rates(job, job.ranks.first(lambda: _probed_rates(job, initial, store)))
    if "lr_teacher" in job.config.get("probed", ()):
        return replace(initial, lr=torch.tensor(job.settings.lr_teacher))
    return initial


def _probed_rates(job: Job, initial: SyntheticSet, store: TrajectoryStore) -> dict[str, float]:
    """What a probe says; where memory runs out, one that is planned again with half of it, as an iteration is."""
    try:
        return probe_rates(job, initial, store)
    except (RuntimeError, MemoryError) as error:
        if job.ranks.size > 1 or not is_out_of_memory(error):
            raise
        cause = error.with_traceback(None)
    job.plan_again(0, cause)
    return probe_rates(job, initial, store)


def _forecast(run: RunFolder, job: Job) -> Forecast:
    """How long the run takes; told here where no experts are to be trained, and no step has to be seen for it."""
    left = job.config["iterations"] - (run.read_state() or {"iteration": 0})["iteration"]
    forecast = forecast_of(job, left, begins=True)
    if not job.trains_experts:
        forecast.say()
    return forecast


def _train_experts(job: Job, forecast: Forecast) -> TrajectoryStore:
    config = job.config
    same = {name: config[name] for name in ("network", "num_experts", "seed", "snapshots", *EXPERT_TRAINING)}
    own = {
        "keep_epochs": job.keep_epochs,
        "train_lr": config["train_lr"],
        "dsa_strategy": job.train_dsa_strategy,
        "device": job.device,
    }
    return train_experts(job.data, train_epochs=job.train_epochs, ranks=job.ranks, forecast=forecast, **same, **own)


def _distillation(run: RunFolder, job: Job, store: TrajectoryStore | None, goes_on: bool) -> Distillation:
    """The outer loop, at its start."""
    saved, ranks = run.path / "initial", job.ranks
    is_saved = ranks.first(lambda: goes_on and saved.with_suffix(".json").is_file())
    if store is not None:
        ranks.together(lambda: job.check_experts(store))
        ranks.first(lambda: check_that_experts_learned(job, store))
    # the first process's set, the same bits for all
    initial = ranks.first(lambda: SyntheticSet.load(saved) if is_saved else initial_of(job, store))
    initial = _with_probed_rates(job, initial, store)
    return ranks.together(lambda: Distillation(job, store, initial))


def _run(
    run: RunFolder,
    job: Job,
    distillation: Distillation,
    progress: Callable[[Distillation], Iterable[dict[str, Any]]],
    forecast: Forecast,
    tracker: Tracker,
) -> list[dict[str, Any]]:
    """The outer loop, from the checkpoint where there is one; all its records. What it has is saved however it ends."""
    recorder = Recorder(run, job, distillation, tracker)
    try:
        recorder.evaluate_if_due()
        forecast.begin(IMAGES, distillation.iterations - distillation.iteration)
        distillation.forecast = forecast
        for record in progress(distillation):
            recorder.after(record)
            forecast.did()
    except (KeyboardInterrupt, RankError):
        log.info("stopped after iteration %d; resume continues from there: %s", distillation.iteration, run.path)
        raise
    finally:
        with undisturbed():
            distillation.rollback()
            recorder.end()
    return recorder.history


def _evaluation_settings(job: Job) -> dict[str, Any]:
    names = ("networks", "num_eval", "eval_epochs", "eval_batch", "protocol", "sam_rho", "full_epochs", "eval_lr")
    return {name: job.config.get(name) for name in (*names, "baselines")}


def _finished(run: RunFolder, job: Job) -> DistillResult | None:
    """The result of a run that had ended with these iterations, evaluated like this where it is to be evaluated; None
    for others."""
    try:
        summary = run.read_summary()
    except ValueError as error:
        log.warning("%s; evaluating again", error)
        return None
    if summary is None or summary.get("iterations") != job.config["iterations"]:
        return None
    had = {"eval_lr": None, "baselines": "labelled"} | (summary.get("evaluation") or {})  # before they were options
    if job.config["num_eval"] and had != _evaluation_settings(job):
        return None
    history = run.keep_until("metrics", job.config["iterations"])
    averaged = SyntheticSet.load(run.path / "averaged") if "averaged" in summary["accuracy"] else None
    synthetic, useless = SyntheticSet.load(run.path / "synthetic"), summary.get("useless")
    return DistillResult(synthetic, history, run.path, summary["accuracy"], averaged, useless)


def _accuracy(
    sets: dict[str, SyntheticSet | None], job: Job, experts: TrajectoryStore | None, run: RunFolder, forecast: Forecast
) -> dict[str, dict[str, Any]]:
    """Accuracy of the distilled sets, of as many random real images, and of full data, where networks for it are there
    or asked for."""
    config, options = job.config, evaluation_options(job, run, forecast)
    distilled = {name: evaluate(s, job.data, **options).summary() for name, s in sets.items() if s is not None}
    random_real = _random_real(job, experts, options)
    if config["full_epochs"]:
        epochs = config["full_epochs"]
        full = evaluate_full_data(
            job.data,
            epochs=epochs,
            dsa_strategy=config["dsa_strategy"],
            **{name: options[name] for name in ("networks", "seed", "device", "output", "ranks", "forecast")},
        )
    elif experts is None:
        return {**distilled, **random_real}
    else:
        epochs = experts.epochs
        some = range(min(config["num_experts"], config["num_eval"]))
        last = [experts.snapshot(expert, epochs) for expert in some]
        full = evaluate_snapshots(job.data, config["network"], last, job.device)
    source = "trained again" if config["full_epochs"] else "the experts"
    full_data = {**full.summary(), "epochs": epochs, "source": source}
    return {**distilled, **random_real, "full_data": full_data}


def _random_real(job: Job, experts: TrajectoryStore | None, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """As many random real images, trained on as the set is, and the other baselines that are asked for."""
    ipc, dsa_strategy = job.config["ipc"], job.config["dsa_strategy"]
    ways: dict[str, dict[str, Any]] = {"random_real": {}}
    for name in job.more_baselines:
        ways[f"random_real_{name}"] = {"augmented": False} if name == "plain" else {"labels": _labels(job, experts)}
    return {
        name: evaluate_random_real(job.data, ipc, dsa_strategy=dsa_strategy, **way, **options).summary()
        | {"ipc": job.data.available(ipc)}
        for name, way in ways.items()
    }


def _labels(job: Job, experts: TrajectoryStore | None) -> Callable[[int, Tensor], Tensor]:
    """Soft labels of real images: the logits of one of the experts, another one for each training."""
    return Judges(job.network("labels").to(job.device), experts, job.config["num_experts"], job.data).in_turn
