"""The outer loop of a run."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.data.synthetic import LARGEST
from ddfast.experts import TrajectoryStore
from ddfast.methods import Resources, initial_set, method_class
from ddfast.methods.descent import LR_FLOOR
from ddfast.run.job import Job
from ddfast.runtime import seeds
from ddfast.runtime.devices import is_out_of_memory, peak_bytes
from ddfast.runtime.forecast import Forecast

log = logging.getLogger("ddfast")

MOST_SKIPS = 20  # updates in a row that were left out, as not finite or too large, and end a run


class DistillationDivergedError(ValueError):
    """Too many updates in a row had no finite gradient or result; the synthetic set is the last good one again."""


def initial_of(job: Job, experts: TrajectoryStore | None) -> SyntheticSet:
    """The set that a run begins with, as its settings say."""
    config, judge = job.config, job.network("init").to(job.device)
    generator = seeds.generator(config["seed"], "init")
    made = initial_set(job.settings, job.data, config["ipc"], experts, config.get("num_experts"), judge, generator)
    return replace(made, network=config["network"])


class Distillation:
    """The outer loop of a run: iterate over it for one record per iteration; `synthetic` is the set as it is.

    Made from a Job that is resolved already; `distill` resolves it, drains this, evaluates and writes the folder.
    `initial`: the set that it begins with, where it is known; None for what the settings say.
    `state_dict` and `load_state_dict` carry a run on bit for bit. An iteration that is interrupted did not happen:
    `rollback` goes back to the end of the one before.
    """

    def __init__(self, job: Job, experts: TrajectoryStore | None = None, initial: SyntheticSet | None = None) -> None:
        if job.needs.experts:
            job.check_experts(experts)
        self._job = job
        config, settings = job.config, job.settings
        self._initial = initial = initial_of(job, experts) if initial is None else initial
        self.iterations, self.iteration, self.device = config["iterations"], 0, job.device
        self._skips = 0  # updates skipped in a row
        self._told_of_floor = False
        resources = Resources(
            job.network("student"),
            seeds.generator(config["seed"], "distill"),
            job.new_network,
            device=job.device,
            data=job.data,
            experts=experts,
            num_experts=config.get("num_experts"),
            plan=job.plan,
            memory_budget=job.memory_budget,
            iterations=config["iterations"],
            precision=config["precision"],
            cuda_graph=config["cuda_graph"],
            ranks=job.ranks,
        )
        self.method = method_class(config["method"])(settings, initial, resources)
        self.forecast = Forecast()  # of the run that this is a part of
        self._marked = (0, 0, self.method.mark())
        self.on_record: Callable[[dict[str, Any]], None] = lambda record: None  # called before a record is yielded
        self.on_plan: Callable[[], None] = lambda: None  # called when the job has another memory plan

    @property
    def synthetic(self) -> SyntheticSet:
        """The synthetic set as it is now, detached."""
        return self.method.current()

    @property
    def averaged(self) -> SyntheticSet | None:
        """The set with the average of its images over the iterations; None where none is kept."""
        return self.method.averaged()

    @property
    def moved(self) -> float | None:
        """How far the images are from those it began with, as a share of the norm of these; None where they are other
        ones, as many for each step are."""
        first, now = self._initial.images.to("cpu"), self.synthetic.images.to("cpu")
        return float((now - first).norm() / first.norm().clamp(min=1e-12)) if first.shape == now.shape else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Run to the end.

        DistillationDivergedError after too many updates in a row that had to be skipped; MemoryError where memory runs
        out again after it was planned again with half.
        """
        while self.iteration < self.iterations:
            began = time.perf_counter()
            skipped_before = self.method.skipped
            record = self._step()
            self.iteration += 1
            skipped = self.method.skipped > skipped_before
            self._skips = self._skips + 1 if skipped else 0
            diverged = self._skips >= MOST_SKIPS
            if diverged or (self._skips and self.iteration == self.iterations):
                log.warning(
                    "the last %d updates had no finite gradient or result: restored the images from before them",
                    self._skips,
                )
                self.method.restore()
            cost = {"seconds": time.perf_counter() - began, "peak_bytes": peak_bytes(self.device)}
            record = {"iteration": self.iteration, **record, **cost}
            self.on_record(record)
            self.forecast.saw(cost["seconds"])
            self._mark()  # from here on the iteration happened: what is logged without it, a resumed run logs anew
            yield record
            self._tell(record)
            if diverged:
                raise DistillationDivergedError(
                    f"distillation: {self._skips} updates in a row had no finite gradient, or one that leads beyond "
                    f"{LARGEST:g}; try a smaller {self._advice()}"
                )

    def _advice(self) -> str:
        return "lr_teacher, lr_img or lr_lr, or fewer syn_steps" if self._job.matches_trajectories else "lr_img"

    def _tell(self, record: dict[str, Any]) -> None:
        """Warn of what keeps a run from learning."""
        if record.get("lr", math.inf) <= 1.01 * LR_FLOOR and not self._told_of_floor:
            self._told_of_floor = True
            change = "a larger lr_teacher" if self._job.rate_is_fixed else "a smaller lr_lr or lr_teacher"
            log.warning(
                "iteration %d: the learning rate fell to its floor, %g, at which the images do not learn; try %s",
                self.iteration, LR_FLOOR, change,
            )  # fmt: skip
        left_out = self.method.learned.counts()
        if self.iteration == self.iterations == left_out["skipped"] + left_out.get("gated", 0):
            reasons = f"{left_out['skipped']} were not finite, {left_out.get('gated', 0)} above the threshold"
            log.warning(
                "none of the %d updates was made (%s): the images are still the initial ones", self.iterations, reasons
            )

    def _step(self) -> dict[str, Any]:
        while True:
            try:
                with seeds.same_algorithms(self._job.config["deterministic"]):
                    return self.method.step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._job.ranks.size > 1:  # the others are in the middle of this step, or wait at its end
                    raise MemoryError(
                        f"memory ran out in iteration {self.iteration + 1} ({str(error).splitlines()[0]}); resume the "
                        f"run with a smaller memory_budget"
                    ) from None
                cause = error.with_traceback(None)  # which would keep the failed step's tensors
            self.rollback()
            self._job.plan_again(self.iteration + 1, cause)
            self.method.use_plan(self._job.plan)
            self.on_plan()

    def _mark(self) -> None:
        self._marked = (self.iteration, self._skips, self.method.mark())

    def state_dict(self) -> dict[str, Any]:
        """Between two iterations: what `load_state_dict` needs to go on."""
        return {"iteration": self.iteration, "skips": self._skips, "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: on a CPU bit for bit, with the same number of threads."""
        self.iteration, self._skips = state["iteration"], state["skips"]
        self.method.load_state_dict(state["method"])
        self._mark()

    def rollback(self) -> None:
        """Undo what an interrupted iteration did."""
        self.iteration, self._skips, mark = self._marked
        self.method.rollback(mark)
