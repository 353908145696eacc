"""The search: trials drawn by Optuna and run by successive halving within a time limit."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfast.runtime.arguments import expect_whole, takes_plain_numbers
from ddfast.runtime.files import locking
from ddfast.tuning.begin import begin
from ddfast.tuning.clock import Clock, rung_seconds
from ddfast.tuning.report import CONFIG_FILE, PICTURE, read_settings, rows_of, save_report, tuned_config
from ddfast.tuning.storage import Trials, expect_optuna, seconds_of
from ddfast.tuning.trial import run_trial

log = logging.getLogger("ddfast.tune")

FOLDER = "tuning"
HOLD_OUT = 0.2


@dataclass(frozen=True)
class TuneResult:
    """What `tune` returns."""

    settings: dict[str, Any]  # keyword arguments of `distill` for the best trial, without the data
    held_out: float  # its held-out accuracy in percent; slightly too high, as the maximum of many
    defaults: float | None  # held-out accuracy of the defaults; None if they completed no rung
    rows: list[dict[str, Any]]  # a row per trial, best first
    path: Path  # the study's folder
    config: Path  # file of the settings for `distill --config`
    picture: Path | None  # importance of settings; None if too few trials differ
    is_whole: bool  # whether the best trial ran all of its iterations


@takes_plain_numbers
def tune(
    dataset: Any = None,
    *,
    time: str,
    output: str | Path = FOLDER,
    hold_out: float = HOLD_OUT,
    trials: int | None = None,
    download: bool = False,
    **options: Any,
) -> TuneResult:
    """Search the settings of `distill` for a data set on held-out training images.

    The first trial uses the derived defaults. Others differ in rates, inner steps, epochs of the segments, synthetic
    minibatches and augmentation: log-uniform around the defaults, drawn by TPE (Bergstra et al. 2011). Each takes as
    long as the defaults: with twice the inner steps it runs half the iterations. All run the first ninth of their
    iterations; the best third continues to a third of the iterations, and the best third of those to the end
    (asynchronous successive halving, Li et al. 2020). The test images are removed before the search begins.

    Any number of processes on machines that share the folder can work on one study: call `tune` with the same arguments
    in each. A call with an existing study's folder continues the study and its unfinished trials.

    Args:
        dataset: as for `distill`; None for digits.
        time: limit of this call, such as "20min" or "2h". A rung starts only if it fits, by measured seconds.
        output: the study's folder, with a run folder per trial.
        hold_out: share of each class's training images on which trials are scored. Experts do not see them.
        trials: most trials in the study; None for as many as the time allows.
        download: fetch a named data set if it is missing.
        options: those of `distill`. They stay fixed and are not searched. `budget` and `iterations` set the length of
            one distillation, `memory_budget` the memory of its steps.

    Writes tuned.yaml, study.json and importance.png. The tuned settings use all training images, without a hold-out.

    Errors: ValueError for too little time, a study with other settings, options that tuning does not support, or if
    Optuna is not installed; FileExistsError for a folder that holds anything else; those of `distill`.
    """
    clock = Clock(time)
    expect_whole(trials=1 if trials is None else trials)
    expect_optuna()
    begun = begin(dataset, output, hold_out, download, options, clock)
    study = Trials(begun.folder, begun.space, int(begun.config["seed"]))
    goes_on = True
    try:
        while goes_on:
            first = rung_seconds(0, {}, [seconds_of(trial) for trial in study.all()], begun.forecast)
            with study.next(trials, new=clock.fits(first)) as trial:
                goes_on = trial is not None and run_trial(begun, study, trial, clock)
    except KeyboardInterrupt:
        log.info("stopped; the same command continues the study in %s", begun.folder)
        raise
    rows = rows_of(study)
    if rows and all(row["state"] not in ("unfinished", "done", "stopped") for row in rows):
        raise ValueError(f"tune: none of {len(rows)} trials came to a result; the first one: {rows[0]['state']}")
    if not rows or rows[0]["held_out"] is None:
        raise ValueError(
            f"time: {time} was too short for a first result; what was done is kept in {begun.folder}, and the same "
            f"command goes on from there"
        )
    config = tuned_config(begun, study, rows[0], dataset)
    settings = {"time": time, "hold_out": hold_out, "given": begun.given, "space": [vars(one) for one in begun.space]}
    with locking(begun.folder / CONFIG_FILE, wait=True):
        table = save_report(begun, study, rows, config, settings)
    shares, of_defaults = table["findings"]["importance"], table["findings"]["defaults"]
    return TuneResult(
        read_settings(begun.folder / CONFIG_FILE),
        rows[0]["held_out"],
        None if of_defaults is None else of_defaults["held_out"],
        rows,
        begun.folder,
        begun.folder / CONFIG_FILE,
        begun.folder / PICTURE if shares else None,
        rows[0]["state"] == "done",
    )
