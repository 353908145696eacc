"""How long a job takes: a forecast from timed steps, corrected as the job goes."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

log = logging.getLogger("ddfast")

SECONDS_BETWEEN_LINES = 60.0
TIMED = 3  # steps, of which the first one warms up
LONG_ENOUGH = 5.0  # seconds, after which no further step is timed
Item = TypeVar("Item")
UNITS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


def parse_budget_of_time(budget: object, name: str = "budget") -> float:
    """Seconds of "90s", "20min", "1.5h" or "2d"; ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", budget) if isinstance(budget, str) else None
    if match is None or match.group(2) not in UNITS or not float(match.group(1)) > 0:
        raise ValueError(f"{name}: expected a time such as 90s, 20min or 2h, got {budget!r}")
    return float(match.group(1)) * UNITS[match.group(2)]


def words_of_time(seconds: float) -> str:
    """For people: "40 s", "12 min", "3.5 h", "6 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def counted(words: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items, each after a line of the log that counts them and tells how long the others will take."""
    began = time.monotonic()
    for n, item in enumerate(items):
        left = (time.monotonic() - began) / n * (len(items) - n) if n else None
        more = "" if left is None else f", about {words_of_time(left)} left in all"
        log.info("%s %d of %d%s", words, n + 1, len(items), more)
        yield item


class Forecast:
    """Seconds left of a job, stage by stage: expected ones until a stage begins, then what its progress shows.

    A stage that takes r times as long as expected makes the stages after it r times as long. One without stages says
    nothing. `told_by_units`: the stage whose seconds lack those of its units, which its first ones tell.
    """

    def __init__(
        self,
        stages: dict[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        told_by_units: str | None = None,
    ) -> None:
        self._stages, self._told_by_units = dict(stages or {}), told_by_units
        self._seen: list[float] = []
        self._clock, self._pace = clock, 1.0
        self._now: str | None = None
        self._ended: set[str] = set()
        self._began = self._said = clock()
        self._done, self._units = 0, 1

    def words(self) -> str:
        """The whole of it, for people."""
        parts = [f"{name} {words_of_time(seconds)}" for name, seconds in self._stages.items() if seconds]
        total = f"about {words_of_time(sum(self._stages.values()))}"
        return total if len(parts) < 2 else f"{total} in all: {', '.join(parts)}"

    def expect(self, stage: str, seconds: float) -> None:
        """Take a stage, one that it has, to need so long."""
        if stage in self._stages:
            self._stages[stage] = seconds

    @property
    def is_known(self) -> bool:
        """Whether it has the seconds of every stage."""
        return self._told_by_units is None

    def saw(self, seconds: float) -> None:
        """Another unit of the stage took so long; tell the forecast once that is known of enough."""
        if self._now is None or self._now != self._told_by_units:
            return
        self._seen.append(seconds)
        if len(self._seen) == min(TIMED, self._units) or sum(self._seen) >= LONG_ENOUGH:
            self._told_by_units = None
            self._stages[self._now] += self._units * min(self._seen)
            self.say()

    def say(self) -> None:
        """Tell it, once all of it is known."""
        if any(self._stages.values()) and self.is_known:
            log.info("time: %s (from timed steps)", self.words())

    def begin(self, stage: str, units: int) -> None:
        """A stage of so many units of work begins, and the one before it has ended."""
        self.end()
        self._now, self._began, self._done, self._units = stage, self._clock(), 0, max(1, units)

    def end(self) -> None:
        """The stage that goes on has ended."""
        if self._now is None:
            return
        took, expected = self._clock() - self._began, self._stages.get(self._now, 0.0)
        if expected and took > 1 and self._done:
            self._pace = took / expected
        self._ended.add(self._now)
        self._now = None

    def did(self, units: int = 1) -> None:
        """So much more of the stage is done; now and then a line tells what is left."""
        self._done = min(self._units, self._done + units)
        if self._stages.get(self._now or "") and self._clock() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = self._clock()
            log.info("%s: %.0f%%, about %s left in all", self._now, self.share * 100, words_of_time(self.left()))

    @property
    def share(self) -> float:
        """How much of the stage is done, 0 to 1."""
        return self._done / self._units

    def left(self) -> float:
        """Seconds until the end of the job."""
        later = sum(s for name, s in self._stages.items() if name not in self._ended and name != self._now)
        expected, took = self._stages.get(self._now or "", 0.0), self._clock() - self._began
        if self._now is None or not expected:
            return later * self._pace
        if not self._done:
            return max(0.0, expected * self._pace - took) + later * self._pace
        whole = took / self.share
        return whole - took + later * (whole / expected if took > 1 else self._pace)
