"""The trials of a study, in a file that processes and machines share: Optuna's journal, with a lock that is released
if its process is killed."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddfast.runtime.files import locking
from ddfast.tuning.clock import FACTOR, RUNGS
from ddfast.tuning.space import Searched

DEFAULTS = "defaults"  # the attribute of the first trial
SECONDS = "seconds"  # of each rung
RANDOM_TRIALS = 8  # before TPE uses the results so far


def expect_optuna() -> None:
    """Raise ValueError with install instructions if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError('tune: needs Optuna; `pip install optuna`, or `pip install ".[tune]"` in a checkout') from None


class _JournalLock:
    """The journal lock that Optuna expects; the system releases it if the process is killed."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(path, is_singleton=False)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


class Trials:
    """The trials of one study: drawn, handed to one process at a time, and ended.

    A trial depends only on the trials so far and the seed. If its process is killed or runs out of time, the next
    process that looks for work resumes the trial.
    """

    def __init__(self, folder: Path, space: Sequence[Searched], seed: int) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self._folder, self._space, self._seed = folder, space, seed
        journal = folder / "optuna.journal"
        lock = _JournalLock(folder / ".optuna.journal.lock")
        with lock._lock:
            _cut_broken_line(journal)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))  # type: ignore[arg-type]
        with self._choosing():
            self.study = optuna.create_study(
                storage=storage,
                study_name="ddfast",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS[0], reduction_factor=FACTOR),
            )

    def _choosing(self) -> contextlib.AbstractContextManager[None]:
        return locking(self._folder / "choosing", wait=True)

    def all(self) -> list[Any]:
        """All trials that were not abandoned, as Optuna's frozen trials."""
        from optuna.trial import TrialState

        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state in states]

    @contextlib.contextmanager
    def next(self, most: int | None, *, new: bool) -> Iterator[Any]:
        """Claim an Optuna trial until the block ends: one to resume, otherwise a new one. None if there is none to
        resume and no new one is wanted, or `most` trials exist."""
        with contextlib.ExitStack() as held:
            with self._choosing():
                trial = self._taken_up(held)
                if trial is None and new and (most is None or len(self.all()) < most):
                    trial = self._drawn()
                    held.enter_context(self._lock_of(trial.number))
            yield trial

    def _lock_of(self, number: int) -> contextlib.AbstractContextManager[None]:
        return locking(self.folder_of(number).with_suffix(".trial"), wait=False)

    def folder_of(self, number: int) -> Path:
        """The run folder of a trial."""
        return self._folder / "trials" / f"{number:04d}"

    def _taken_up(self, held: contextlib.ExitStack) -> Any:
        """The first unfinished trial without a process; those killed while being drawn are abandoned."""
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            try:
                held.enter_context(self._lock_of(frozen.number))
            except BlockingIOError:
                continue
            if set(frozen.params) == {one.name for one in self._space}:
                return Trial(self.study, frozen._trial_id)
            self.study.tell(frozen.number, state=TrialState.FAIL)
        return None

    def _drawn(self) -> Any:
        import optuna

        every = self.study.get_trials(deepcopy=False)
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=(self._seed * 1_000_003 + len(every)) % 2**32
        )
        given_up = optuna.trial.TrialState.FAIL
        if not any(DEFAULTS in trial.user_attrs for trial in every if trial.state != given_up):
            defaults = {one.name: one.default for one in self._space}
            self.study.enqueue_trial(defaults, user_attrs={DEFAULTS: True})
        return self.study.ask({one.name: _distribution(one) for one in self._space})


def _distribution(one: Searched) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices:
        return CategoricalDistribution(one.choices)
    if one.is_whole:
        return IntDistribution(int(one.low), int(one.high), log=True)
    return FloatDistribution(one.low, one.high, log=True)


def seconds_of(trial: Any) -> dict[int, float]:
    """Measured seconds of a trial's rungs, by number from 0."""
    return {int(rung): seconds for rung, seconds in trial.user_attrs.get(SECONDS, {}).items()}


def _cut_broken_line(journal: Path) -> None:
    """Delete an incomplete last line, whose writer was killed, because it makes later lines unreadable."""
    text = journal.read_bytes() if journal.is_file() else b""
    if text and not text.endswith(b"\n"):
        os.truncate(journal, text.rfind(b"\n") + 1)
