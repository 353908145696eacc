"""The time of a search: the time left, and the time that a rung takes."""

import statistics
import time
from collections.abc import Mapping, Sequence

from ddfast.runtime.forecast import parse_budget_of_time

FACTOR = 3  # of successive halving: iterations of a rung relative to the rung before
RUNGS = (1, 3, 9)  # iterations of each rung, in ninths of the trial's


class Clock:
    """The time limit of one call of `tune`, such as 2h, starting now."""

    def __init__(self, words: str) -> None:
        self.words, self._began = words, time.monotonic()
        self._seconds = parse_budget_of_time(words, "time")

    def left(self) -> float:
        """Seconds until the end; negative after it."""
        return self._seconds - (time.monotonic() - self._began)

    def fits(self, seconds: float) -> bool:
        """Whether work of this duration ends in time."""
        return seconds <= self.left()


def rung_iterations(iterations: int) -> list[int]:
    """Iterations of a trial at the end of each rung."""
    return [-(-iterations * share // RUNGS[-1]) for share in RUNGS]


def rung_seconds(
    rung: int,
    own: Mapping[int, float],  # seconds of the trial's own rungs so far
    others: Sequence[Mapping[int, float]],  # of all trials
    forecast: float,  # of a first rung, from timed steps
) -> float:
    """Predict the time of a rung: the median of measured ones. Without any, FACTOR times the trial's previous rung (an
    upper bound, because evaluations do not grow); without that, the forecast."""
    measured = [seconds[rung] for seconds in others if rung in seconds]
    if measured:
        return statistics.median(measured)
    return FACTOR * own[rung - 1] if rung - 1 in own else forecast
