"""The trainings of an evaluation: the search for a network's rate, and then the networks that are tested."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfast.data import Dataset
from ddfast.data.parameterisation import PIXELS, Pixels
from ddfast.evaluation.cache import run_trainings
from ddfast.evaluation.judging import Judge, accuracy
from ddfast.evaluation.rates import (
    AUTO,
    LEARNED,
    RATES,
    Rate,
    best_rate,
    held_out,
    held_out_batches,
    words_of_rate,
)
from ddfast.evaluation.result import Evaluation
from ddfast.evaluation.schedule import Schedule
from ddfast.runtime import seeds
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

Pair = tuple[Tensor, Tensor]  # images [I, …], targets
# Trained networks, of: a name, a rate, numbers of trainings, their generators, and training images to leave out
Networks = Callable[..., Iterable[nn.Module]]


def on_sets(
    schedule: Schedule,
    data: Dataset,
    set_of: Callable[[int, Tensor | None], Pair],  # of a training by number; without these training images
    parameterisation: Pixels = PIXELS,
) -> Networks:
    """Networks that are trained by a schedule, each on a set of its own."""

    def networks(
        name: str,
        rate: float,
        numbers: list[int],
        generators: list[torch.Generator],
        left_out: Tensor | None,
        **how: Any,
    ) -> Iterable[nn.Module]:
        sets = [set_of(n, left_out) for n in numbers]
        return schedule.networks(name, rate, data, sets, generators, parameterisation, **how)

    return networks


@dataclass(frozen=True)
class Trainings:
    """Networks of several names, trained at the rates that are asked for or searched, and tested."""

    schedule: Schedule
    data: Dataset
    words: tuple[Any, ...]  # that its generators are drawn by
    about: dict[str, Any]  # what accuracies depend on, besides the schedule and the network
    networks: Networks
    prefix: str = ""  # of the log's lines about rates
    scores: bool = False
    best_on_test: bool = False  # also the best test accuracy on the way, as some papers report it
    output: str | Path | None = None
    ranks: Ranks = ALONE
    forecast: Forecast | None = None

    def evaluation(
        self,
        asked: dict[str, Rate],  # by network
        learned: float,  # what LEARNED is
        num_eval: int,
    ) -> Evaluation:
        """Accuracies of `num_eval` networks of each name, at the rates that are asked for."""
        rates = self._rates(asked, learned)
        judge = Judge(self.data, self.schedule.device, self.scores)

        def train(name: str, numbers: list[int]) -> Iterator[dict[str, Any]]:
            generators = [seeds.generator(*self.words, name, n) for n in numbers]
            seen: dict[int, list[float]] = {place: [] for place in range(len(numbers))}

            def look(place: int, net: nn.Module) -> None:
                seen[place].append(judge(net, None)["accuracy"])

            how: dict[str, Any] = {"look": look} if self.best_on_test else {}
            nets = self.networks(name, rates[name], numbers, generators, None, **how)
            began = time.perf_counter()
            for place, net in enumerate(nets):
                record = {"seconds": round(time.perf_counter() - began, 3)}  # without the tests, which take scores long
                record |= judge(net, f"{name} trained at rate {rates[name]:g}")
                if self.best_on_test:
                    record["best_on_test"] = max([*seen[place], record["accuracy"]])
                yield record
                began = time.perf_counter()

        def about(name: str) -> dict[str, Any]:
            more = {"scores": judge.corruptions, "best_on_test": self.best_on_test}
            return self._about(name, rates[name]) | {key: value for key, value in more.items() if value}

        records = self._run(about, list(asked), num_eval, train)
        accuracies = {name: [record["accuracy"] for record in row] for name, row in records.items()}
        return Evaluation(accuracies, rates, chance_of(self.data), records)

    def _rates(self, asked: dict[str, Rate], learned: float) -> dict[str, float]:
        """The rates that networks are trained at."""
        searched = [name for name, rate in asked.items() if rate == AUTO]
        rates = {name: learned if rate == LEARNED else rate for name, rate in asked.items()}
        if not searched:
            return rates
        chosen = held_out(self.data)
        batches = held_out_batches(self.data, chosen, self.schedule.device)

        def train(name: str, numbers: list[int]) -> Iterator[dict[str, Any]]:
            for n in numbers:
                generators = [seeds.generator(*self.words, name, "rate")]
                for net in self.networks(name, RATES[n], [0], generators, chosen):
                    yield {"accuracy": accuracy(net, batches, None)}

        def about(name: str) -> dict[str, Any]:
            return self._about(name, 0.0) | {"rates": RATES, "held_out": len(chosen)}

        for name, records in self._run(about, searched, len(RATES), train).items():
            found = [record["accuracy"] for record in records]
            rates[name] = best_rate(found)
            if self.ranks.is_first:
                log.info("%s%s", self.prefix, words_of_rate(name, found))
        return rates

    def _about(self, name: str, lr: float) -> dict[str, Any]:
        how = self.schedule.describe(name, self.data, lr)
        return {**self.about, "words": [str(word) for word in self.words], **how}

    def _run(self, about: Any, names: Sequence[str], count: int, train: Any) -> dict[str, list[dict[str, Any]]]:
        forecast = self.forecast or Forecast()
        return run_trainings(about, names, count, train, self.output, self.ranks, forecast)


def chance_of(data: Dataset) -> float:
    """A standard error above the share of the most frequent class among the test images, in percent."""
    count = len(data.test_labels)
    share = int(data.test_labels.bincount().max()) / count
    return 100 * (share + math.sqrt(share * (1 - share) / count))


def num_trainings(asked: dict[str, Rate], num_eval: int) -> int:
    """How many networks are trained for one set."""
    return sum(num_eval + (len(RATES) if rate == AUTO else 0) for rate in asked.values())
