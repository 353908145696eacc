"""The search: trials drawn by Optuna, run by successive halving within a time, and what they end in."""

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

    settings: dict[str, Any]  # keyword arguments of `distill` beside the data: those of the best trial
    held_out: float  # accuracy of its images on the held-out ones, percent: the largest of many, so a little high
    defaults: float | None  # that of the defaults; None where they have not ended a rung
    rows: list[dict[str, Any]]  # a row for each trial, the best first
    path: Path  # the study's folder
    config: Path  # the settings as a file for `distill --config`
    picture: Path | None  # what mattered; None where too few trials differ
    is_whole: bool  # whether the best trial came to the end of its iterations


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
    """Search the settings of `distill` for a data set, by images that are held out of its training images.

    The first trial is what the defaults derive. Others differ in rates, inner steps, epochs of the segments, synthetic
    minibatches and augmentation: log-uniform around the defaults, drawn by TPE (Bergstra et al. 2011). Each takes the
    time of the defaults: with twice the inner steps it makes half of the iterations. All run to a ninth of their
    iterations; of those that did, the best third goes on to a third of them, and of these the best third to the end
    (asynchronous successive halving, Li et al. 2020). The test images are removed before the search begins.

    Any number of processes, on machines that share the folder, may search in one study: call it with the same arguments
    in each. A call on the folder of a study goes on with it; a trial whose process was killed goes on where it was.

    Args:
        dataset: as `distill` takes it; None for digits.
        time: of this call, such as "20min" or "2h". No rung begins that will not fit, by measured seconds.
        output: the study's folder, with a run folder for each trial.
        hold_out: the share of every class's training images that trials are judged by. Experts do not see them.
        trials: at most so many in the study; None for as many as the time allows.
        download: fetch a named data set that is not there.
        options: those of `distill`. What is given stays, and is not searched. `budget` and `iterations` say how long
            one distillation is, and `memory_budget` what its steps may use.

    Writes tuned.yaml, study.json and importance.png. The tuned settings are for all training images: nothing is held
    out there.

    Errors: ValueError for too little time, a study of other settings, options that are not for tuning, or where Optuna
    is not installed; FileExistsError for a folder of something else; those of `distill`.
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
