"""A run that goes on: its settings, resolved from its folder."""

import logging
from pathlib import Path
from typing import Any

import torch

from ddfast.data import images_per_class, is_folder, load_dataset, recorded_preprocessing
from ddfast.experts import TrajectoryStore
from ddfast.methods import INITS, method_class
from ddfast.run.config import check_names, run_options
from ddfast.run.job import EXPERT_STORAGE, Job
from ddfast.run.resolve import DATA, LOADED, REPORT, RUN, as_json, by_name, checked_job, experts_for, is_none
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

FREE = {"iterations", "data_root", "experts", "memory_budget", *REPORT}  # may be others than before


def resolve_resumed(
    saved: dict[str, Any], given: dict[str, Any], path: Path, download: bool = False, ranks: Ranks = ALONE
) -> Job:
    """The job of a run folder's config, once what is given beside it is known to agree.

    Errors: ValueError naming the first setting that differs, or a data set that has changed.
    """
    method = method_class(saved["method"])
    known = run_options(method)
    given = by_name({name: value for name, value in given.items() if value is not None})
    dataset, ipc, preprocessing = (given.pop(name, None) for name in ("dataset", "ipc", "preprocessing"))
    if isinstance(given.get("experts"), TrajectoryStore):
        given["experts"] = str(given["experts"].path.resolve())
    if "device" in given:
        given["device"] = str(resolve_device(given["device"]))
    if given.get("init", INITS[0]) not in INITS:
        given["init"] = str(Path(given["init"]).resolve())
    check_names(given, saved["method"])
    for name, value in given.items():
        value = None if known[name].switches_off and is_none(value) else value
        if name not in FREE and as_json(name, value) != saved.get(name):
            raise ValueError(
                f"{name}: the run in {path} has {saved.get(name)!r}, got {value!r}; "
                f"a run is resumed with its own settings"
            )
    config = (
        DATA
        | RUN
        | REPORT
        | experts_for(method, saved, {})
        | saved
        | {name: value for name, value in given.items() if name in FREE}
    )
    if dataset is None and saved["dataset"] == "custom":
        raise ValueError(f"dataset: the run in {path} had one that was given from Python; give it again")
    spec = saved["dataset"] if dataset is None else dataset
    config["test_folder"] = config["test_folder"] or test_folder_of(saved, spec)
    data = load_dataset(
        spec,
        zca=config["zca"],
        download=download,
        **{name: config[name] for name in LOADED},  # preprocessed as it was, whatever pictures came since
    )
    had = data.preprocessing
    if preprocessing is not None and not had.matches(other := recorded_preprocessing(preprocessing)):
        raise ValueError(f"preprocessing: the run in {path} and what is given differ: {had.difference(other)}")
    if ipc is not None and (ipc := images_per_class(ipc, data.class_names)) != saved["ipc"]:
        raise ValueError(
            f"ipc: the run in {path} has {saved['ipc']}, got {ipc}; a run is resumed with its own settings"
        )
    if data.fingerprint != saved["fingerprint"]:
        raise ValueError(
            f"dataset: the training images of the run in {path} were {saved['fingerprint']}, "
            f"those of {data.name} are {data.fingerprint}"
        )
    if data.test_fingerprint != saved.get("test_fingerprint", data.test_fingerprint):
        log.warning(
            "the test images differ from those of the run in %s: its earlier accuracies are not comparable", path
        )
    for what, now in (("threads", torch.get_num_threads()), ("processes", ranks.size)):
        if now != saved.get(what, 1):
            log.warning(
                "the run started with %d %s, now there are %d: last bits may differ", saved.get(what, 1), what, now
            )
    store = None if config.get("experts") is None else TrajectoryStore(config["experts"])
    trained = saved.get("trained_experts")
    if store is not None and trained is not None:
        has, had = EXPERT_STORAGE | store.settings, EXPERT_STORAGE | trained
        differing = [name for name, value in has.items() if had.get(name) != value]
        if differing or trained["epochs"] != store.epochs:
            raise ValueError(f"experts: the run in {path} had others than {store.path} ({', '.join(differing)})")
    job = checked_job(config, data, method, store, ranks)
    # those that it began with
    job.config |= {name: saved[name] for name in ("threads", "versions")}
    if config["memory_budget"] == saved.get("memory_budget") and ranks.size == saved.get("processes", 1):
        job.config["memory_plan"] = saved["memory_plan"]
    else:
        job.plan_for_budget(asked=config["memory_budget"] != saved.get("memory_budget"))
        log.warning("the memory plan differs from the one the run started with: last bits may differ")
        earlier = {name: saved[name] for name in ("memory_plan", "memory_ran_out") if name in saved}
        job.config["earlier_memory_plans"] = [*saved.get("earlier_memory_plans", []), earlier]
        job.config.pop("memory_ran_out", None)
    return job


def test_folder_of(saved: dict[str, Any], dataset: Any) -> str | None:
    """The folder that a run tested on, whatever other ones are there now; None where it is not in the data."""
    source = (saved.get("data") or {}).get("sources", ("", ""))[1]
    is_there = source.endswith("/") and is_folder(dataset) and (Path(dataset).expanduser() / source).is_dir()
    return source.rstrip("/") if is_there else saved.get("test_folder")
