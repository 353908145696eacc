"""The time of a search: what is left of it, and how long a rung takes."""

import statistics
import time
from collections.abc import Mapping, Sequence

from ddfast.runtime.forecast import parse_budget_of_time

FACTOR = 3  # of successive halving: a rung has this many times the iterations of the one before
RUNGS = (1, 3, 9)  # shares of a trial's iterations, of the last one


class Clock:
    """The time of one call of `tune`, such as 2h, from now on."""

    def __init__(self, words: str) -> None:
        self.words, self._began = words, time.monotonic()
        self._seconds = parse_budget_of_time(words, "time")

    def left(self) -> float:
        """Seconds until the end; negative after it."""
        return self._seconds - (time.monotonic() - self._began)

    def fits(self, seconds: float) -> bool:
        """Whether something that takes so long ends in time."""
        return seconds <= self.left()


def rung_iterations(iterations: int) -> list[int]:
    """How many iterations a trial has done at the end of each rung."""
    return [-(-iterations * share // RUNGS[-1]) for share in RUNGS]


def rung_seconds(
    rung: int,
    own: Mapping[int, float],  # seconds of the trial's own rungs so far
    others: Sequence[Mapping[int, float]],  # of all trials
    forecast: float,  # of a first rung, from timed steps
) -> float:
    """How long a rung will take: the median of those measured; before there is one, FACTOR times the trial's rung
    before, which is an upper bound since evaluations do not grow; before that, the forecast."""
    measured = [seconds[rung] for seconds in others if rung in seconds]
    if measured:
        return statistics.median(measured)
    return FACTOR * own[rung - 1] if rung - 1 in own else forecast
