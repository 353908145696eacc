"""How long an outer step takes that is no unroll, and how many fit into a budget."""

import time

from ddfast.evaluation import evaluation_seconds, schedule_of
from ddfast.run.job import Job
from ddfast.run.loop import Distillation
from ddfast.run.own_data import PLANNED
from ddfast.runtime.forecast import words_of_time

TIMED = 3  # steps, of which the first one warms up


def seconds_a_step(job: Job) -> float:
    """Of a method's own steps, timed; a run's steps begin anew after it."""
    distillation, seconds = Distillation(job), []
    for _ in range(TIMED):
        began = time.perf_counter()
        distillation.method.step()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def iterations_within(job: Job, budget: float) -> tuple[int, str]:  # seconds
    """How many iterations a budget leaves beside the evaluation, and why."""
    each, evaluation = seconds_a_step(job), 2 * evaluation_seconds_of(job, job.num_images)  # random real images, too
    count = max(1, int((PLANNED * budget - evaluation) / each))
    return count, f"fits a budget of {words_of_time(budget)}, {each:.2g} s each"


def evaluation_seconds_of(job: Job, count: int) -> float:
    """Of the evaluation of one set of so many images."""
    config = job.config
    schedule = schedule_of(
        config["protocol"],
        config["eval_epochs"],
        config["eval_batch"],
        1.0,
        config["dsa_strategy"],
        config["sam_rho"],
        config["num_eval"],
        job.device,
        None,
    )
    return evaluation_seconds(job.data, count, config["networks"], config["num_eval"], schedule, job.ranks)
