"""Start of a study: data without test images, derived defaults, experts for all trials, and the search space.

The results are stored in the study's folder, so that all processes share them.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ddfast.data import DSA, Dataset, load_dataset
from ddfast.engine.timing import time_unroll
from ddfast.experts import TrajectoryStore, train_experts
from ddfast.methods import INITS
from ddfast.run.config import options_of_run
from ddfast.run.costs import forecast_of
from ddfast.run.job import EXPERT_TRAINING, Job
from ddfast.run.loop import initial_of
from ddfast.run.probe import probe_rates
from ddfast.run.resolve import LOADED, OF_EXPERTS, by_name, resolve
from ddfast.runtime.arguments import expect_whole, is_number
from ddfast.runtime.files import expect_writable, lock_of, locking, read_json, write_json
from ddfast.runtime.forecast import words_of_time
from ddfast.tuning.clock import Clock, rung_iterations
from ddfast.tuning.space import Searched, counts_searched, iterations_of, longest_epochs, others_searched, settings_of

log = logging.getLogger("ddfast.tune")

UNSET = "unset"
DEFAULTS_FILE, SPACE_FILE = "defaults.json", "space.json"
NOT_TUNED = ("experts", "eval_every", "keep_checkpoints", "full_epochs")  # options of `distill`
MAY_DIFFER = ("device", "memory_budget", "data_root")  # between the processes of a study
OF_TRAINING = ("num_experts", "train_epochs", "train_lr", "train_dsa_strategy", *OF_EXPERTS)


@dataclass(frozen=True)
class Begun:
    """A study that is ready for trials."""

    folder: Path
    data: Dataset  # its test images are the held-out ones
    given: dict[str, Any]  # fixed options, as JSON values
    config: dict[str, Any]  # all settings of the defaults
    space: list[Searched]
    images: int  # J, the synthetic images that networks see
    fixed: float  # share of an inner step's time that does not grow with its images
    forecast: float  # seconds of the first rung of the defaults
    experts: Path | None

    def options(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `distill` for a trial that runs all of its iterations."""
        options = options_of_run(self.config)
        for name in ("dataset", *LOADED, *NOT_TUNED, *(OF_TRAINING if self.experts is not None else ())):
            options.pop(name, None)
        options |= {name: self.given[name] for name in MAY_DIFFER[:2] if name in self.given}
        if self.config["init"] not in INITS:
            options.pop("lr_teacher", None)  # the initial set has its own
        options |= settings_of(self.space, drawn, self.images)
        iterations = iterations_of(self.config, drawn, self.images, self.fixed)
        options |= {"iterations": iterations, "hold_out": self.config["hold_out"]}
        if self.config.get("expansion_end") is not None:  # the same fraction of the iterations
            share = self.config["expansion_end"] / self.config["iterations"]
            options["expansion_end"] = max(1, int(share * iterations))
        return options | ({} if self.experts is None else {"experts": str(self.experts)})


def begin(
    dataset: Any, output: str | Path, hold_out: float, download: bool, options: dict[str, Any], clock: Clock
) -> Begun:
    """Start a study, or join the one in the folder.

    Errors: ValueError for options that differ from the study's, or too little time; FileExistsError for a folder that
    holds anything else; those of `distill`.
    """
    for name in NOT_TUNED:
        if options.get(name) is not None:
            raise ValueError(
                f"{name}: is not for tuning; give it to `ddfast distill` beside the settings that are found"
            )
    if options.get("num_eval") is not None:
        expect_whole(num_eval=options["num_eval"])
    if not (is_number(hold_out) and 0 < hold_out < 1):
        raise ValueError(f"hold_out: expected a number above 0 and below 1, got {hold_out!r}")
    data = _without_test_images(dataset, hold_out, download, options)
    given = {name: value for name, value in options.items() if value is not None}
    asked = _as_json(given, dataset, hold_out)
    folder = Path(output)
    is_new = not folder.exists()
    if (folder / "config.json").exists() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{folder}: holds something else than a study of `tune`; choose another output folder")
    expect_writable(folder)
    (folder / "trials").mkdir(exist_ok=True)
    try:
        with locking(folder / DEFAULTS_FILE, wait=True):
            if (folder / DEFAULTS_FILE).is_file():
                found = _joined(folder, asked, data)
            else:
                found = _derive(given, data, hold_out, clock) | {"given": asked, "fingerprint": data.fingerprint}
                write_json(folder / DEFAULTS_FILE, found)
    except BaseException:
        if is_new:
            _discard(folder)
        raise
    job = _job(found["config"], data, given)
    counts = counts_searched(found["config"], job.num_images, list(asked))
    store = _experts(job, folder, longest_epochs(found["config"], counts, job.train_epochs), clock)
    with locking(folder / SPACE_FILE, wait=True):
        if not (folder / SPACE_FILE).is_file():
            config = found["config"] | _probed(job, store)
            space = [*counts, *others_searched(config, data.channels, list(asked))]
            if not space:
                raise ValueError("tune: nothing is left to search, because all settings are given")
            fixed = _fixed_share(job, counts)
            write_json(folder / SPACE_FILE, {"config": config, "space": [asdict(one) for one in space], "fixed": fixed})
        said = read_json(folder / SPACE_FILE)
    space = [Searched(**one | {"choices": tuple(one["choices"])}) for one in said["space"]]
    path = None if store is None else store.path
    return Begun(folder, data, asked, said["config"], space, job.num_images, said["fixed"], found["forecast"], path)


def _without_test_images(dataset: Any, hold_out: float, download: bool, options: Mapping[str, Any]) -> Dataset:
    """The data with held-out images in place of the test images, which no later code can access."""
    how = {name: options[name] for name in LOADED if options.get(name) is not None and name != "hold_out"}
    data = load_dataset("digits" if dataset is None else dataset, download=download, hold_out=hold_out, **how)
    line, held = data.about.get("line", data.name), len(data.held_labels)
    log.info("%s; %d training images are held out, the test images are removed", line, held)
    return replace(data, test_images=data.held_images, test_labels=data.held_labels)


def _as_json(given: Mapping[str, Any], dataset: Any, hold_out: float) -> dict[str, Any]:
    named = str(dataset) if isinstance(dataset, str | Path) else "digits" if dataset is None else "custom"
    values = by_name(dict(given)) | {"dataset": named, "hold_out": hold_out}
    return json.loads(json.dumps(values, default=str))


def _joined(folder: Path, asked: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """Read what the study's first process wrote; ValueError if this process asks for anything else."""
    found = read_json(folder / DEFAULTS_FILE)
    had = found["given"]
    for name in sorted(had.keys() | asked.keys()):
        if had.get(name) != asked.get(name) and name not in (*MAY_DIFFER, "dataset"):
            raise ValueError(
                f"{name}: the study in {folder} has {had.get(name, UNSET)!r}, got {asked.get(name, UNSET)!r}; "
                f"choose another output folder"
            )
    if found["fingerprint"] != data.fingerprint:
        raise ValueError(f"dataset: the study in {folder} is of other training images; choose another output folder")
    log.info("continuing the study in %s", folder)
    return found


def _discard(folder: Path) -> None:
    """Delete the files of a study that failed to start."""
    lock_of(folder / DEFAULTS_FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process may have written to it
        (folder / "trials").rmdir()
        folder.rmdir()


def _derive(given: dict[str, Any], data: Dataset, hold_out: float, clock: Clock) -> dict[str, Any]:
    """All settings of the defaults except probed rates; ValueError if the time is too short."""
    of_data = [name for name in LOADED if name != "hold_out"]
    asked = {name: value for name, value in given.items() if name not in of_data}
    job = resolve(asked | {"dataset": data, "hold_out": hold_out})
    if not job.needs.steps:
        raise ValueError(f"method: {job.config['method']} selects images and learns nothing; choose one that learns")
    first = rung_iterations(job.config["iterations"])[0]
    forecast = forecast_of(job, first).left()
    if not clock.fits(forecast):
        raise ValueError(
            f"time: {clock.words} is too short: the first {first} iterations of the defaults and "
            f"their evaluation alone take about {words_of_time(forecast)}; give more time, or a smaller --budget or "
            f"--iterations"
        )
    end, iterations = job.config.get("expansion_end"), job.config["iterations"]
    if end is not None and end > iterations:
        log.info("expansion_end: %d instead of %d, so that start epochs expand within the iterations", iterations, end)
        job.config["expansion_end"] = iterations
    return {"config": json.loads(json.dumps(job.config, default=list)), "forecast": forecast}


def _job(config: dict[str, Any], data: Dataset, given: Mapping[str, Any]) -> Job:
    """Rebuild the job of the defaults from its settings."""
    options = options_of_run(config)
    for name in ("dataset", *LOADED, *config["probed"]):
        options.pop(name, None)
    if config["init"] not in INITS:
        options.pop("lr_teacher", None)
    options |= {name: given[name] for name in MAY_DIFFER[:2] if name in given}
    job = resolve(options | {"dataset": data, "hold_out": config["hold_out"]})
    job.config["probed"] = config["probed"]
    return job


def _experts(job: Job, folder: Path, epochs: int, clock: Clock) -> TrajectoryStore | None:
    """Experts long enough for every trial, trained once by all processes together."""
    if not job.needs.experts:
        return None
    config = job.config
    same = {name: config[name] for name in ("network", "num_experts", "seed", "snapshots", *EXPERT_TRAINING)}
    log.info("experts: %d of %d epochs, for all trials", config["num_experts"], epochs)
    store = train_experts(
        job.data,
        train_epochs=epochs,
        train_lr=config["train_lr"],
        dsa_strategy=job.train_dsa_strategy,
        device=job.device,
        output=folder / "experts",
        **same,
    )
    if clock.left() < 0:
        raise ValueError(
            f"time: {clock.words} is too short, the experts alone took longer; they are kept in "
            f"{store.path}, and the same command goes on from there"
        )
    return store


def _fixed_share(job: Job, counts: Sequence[Searched]) -> float:
    """The share of an inner step's time that does not grow with its images, from timed steps at the smallest and
    largest searched minibatch; 0 if the size is not searched."""
    batch = next((one for one in counts if one.name == "batch_syn"), None)
    if batch is None:
        return 0.0
    few, many, usual = int(batch.low), int(batch.high), batch.default
    network, sizes, augment = job.config["network"], job.data.network_arguments, DSA(job.settings.dsa_strategy)
    of_few, of_many = (time_unroll(network, sizes, count, augment, job.device) for count in (few, many))
    each = max(0.0, (of_many - of_few) / (many - few))
    rest = max(0.0, of_many - each * many)
    return round(rest / (rest + each * usual), 2)


def _probed(job: Job, store: TrajectoryStore | None) -> dict[str, Any]:
    """Probe the rates that the defaults need."""
    if not job.config["probed"]:
        return {"probed": []}
    job.check_experts(store)
    rates = probe_rates(job, initial_of(job, store), store)
    wanted = {name: rates[name] for name in job.config["probed"]}
    log.info("defaults: %s, by a probe", ", ".join(f"{name} {value:g}" for name, value in wanted.items()))
    return {**wanted, "probed": []}
