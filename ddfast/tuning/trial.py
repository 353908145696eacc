"""One trial: a run that continues from rung to rung while it is among the best and time remains."""

import contextlib
import logging
import shutil
from typing import Any

from ddfast.run.distill import distill
from ddfast.run.folder import RunFolder
from ddfast.run.loop import DistillationDivergedError
from ddfast.run.resolve import resolve
from ddfast.tuning.begin import Begun
from ddfast.tuning.clock import RUNGS, Clock, rung_iterations, rung_seconds
from ddfast.tuning.storage import DEFAULTS, SECONDS, Trials, seconds_of

log = logging.getLogger("ddfast.tune")

ITERATIONS, REASON = "iterations", "reason"  # attributes of a trial
ACCURACIES = "accuracies.jsonl"


def run_trial(begun: Begun, trials: Trials, trial: Any, clock: Clock) -> bool:
    """Run a trial to its end; return False if the next rung does not fit in the time, so that another call resumes it.

    A trial that diverges or has invalid settings is pruned. An error of the defaults is raised, because all trials
    start from them.
    """
    try:
        return _run(begun, trials, trial, clock)
    except (ValueError, TypeError, MemoryError) as error:
        diverged = isinstance(error, DistillationDivergedError)
        if DEFAULTS in trial.user_attrs and not diverged:
            raise
        reason = "diverged" if diverged else " ".join(str(error).split()) or type(error).__name__
        trial.set_user_attr(REASON, reason)
        _prune(trials, trial)
        log.info("trial %d: dropped: %s", trial.number, reason)
        return True


def _run(begun: Begun, trials: Trials, trial: Any, clock: Clock) -> bool:
    path = trials.folder_of(trial.number)
    iterations = _claim(begun, trials, trial)
    log.info("trial %d: %s", trial.number, words_of(trial))
    for rung, count in enumerate(rung_iterations(iterations)):
        held_out = _reported(trial).get(RUNGS[rung])
        if held_out is None:
            others = [seconds_of(other) for other in trials.all()]
            if not clock.fits(rung_seconds(rung, seconds_of(trial), others, begun.forecast)):
                log.info("trial %d: %d iterations do not fit in the time left", trial.number, count)
                return False
            left = clock.left()
            done = distill(begun.data, output=path, resume=True, iterations=count)
            held_out = done.accuracy["distilled"]["held_out"]
            seconds = seconds_of(trial) | {rung: round(left - clock.left(), 2)}
            trial.set_user_attr(SECONDS, {str(key): value for key, value in seconds.items()})
            trial.report(held_out, RUNGS[rung])
            log.info("trial %d: held-out accuracy %.1f%% after %d iterations", trial.number, held_out, count)
        is_newest = RUNGS[rung] == max(_reported(trial))
        if rung < len(RUNGS) - 1 and is_newest and trial.should_prune() and DEFAULTS not in trial.user_attrs:
            _prune(trials, trial)
            return True
    trials.study.tell(trial.number, held_out)
    return True


def _claim(begun: Begun, trials: Trials, trial: Any) -> int:
    """Create the trial's run folder if needed and return its iterations. Invalid settings raise before anything is
    written."""
    run = RunFolder(trials.folder_of(trial.number))
    if not run.has_config or ITERATIONS not in trial.user_attrs:
        job = resolve(begun.options(trial.params) | {"dataset": begun.data})
        if not run.has_config:
            run = RunFolder.create(run.path, job.config, resume=True)
        _share_accuracies(trials, run)
        trial.set_user_attr(ITERATIONS, job.config["iterations"])
    return trial.user_attrs[ITERATIONS]


def _share_accuracies(trials: Trials, run: RunFolder) -> None:
    """Copy another run's accuracies of random real images, so that equal trainings are not repeated."""
    known = (trials.folder_of(other.number) / ACCURACIES for other in trials.all())
    found = next((path for path in known if path.is_file()), None)
    if found is not None and not (run.path / ACCURACIES).exists():
        with contextlib.suppress(OSError):  # then they are computed
            shutil.copyfile(found, run.path / ACCURACIES)


def _reported(trial: Any) -> dict[int, float]:
    return trial.study._storage.get_trial(trial._trial_id).intermediate_values


def _prune(trials: Trials, trial: Any) -> None:
    from optuna.trial import TrialState

    trials.study.tell(trial.number, state=TrialState.PRUNED)


def words_of(trial: Any) -> str:
    """The settings of a trial, as text."""
    if DEFAULTS in trial.user_attrs:
        return "the defaults"
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()
    )
