"""How long the parts of a run take: steps, evaluations, all of it."""

import time
from dataclasses import asdict, replace

from ddfast.data import DSA
from ddfast.engine.timing import time_unroll
from ddfast.evaluation import evaluation_seconds, num_trainings, schedule_of
from ddfast.run.job import Job
from ddfast.run.loop import Distillation
from ddfast.run.own_data import PLANNED
from ddfast.runtime.forecast import LONG_ENOUGH, TIMED, Forecast, words_of_time

EXPERTS, IMAGES, EVALUATION = "experts", "images", "evaluation"  # stages


def forecast_of(job: Job, iterations: int, *, begins: bool = False) -> Forecast:
    """The forecast of a run with so many iterations to go; what experts take, their training fills in. Of a run that
    `begins` with a method's own steps none is timed beforehand: its first ones tell.

    Only the first process of a run has one.
    """
    if not job.ranks.is_first:
        return Forecast()
    config, settings, plan = job.config, job.settings, job.plan
    count = job.num_images
    evaluation, sets = evaluation_seconds_of(job, count), 1 if settings.ema_decay is None else 2
    baselines = (1 + len(job.more_baselines)) * evaluation
    every = config["eval_every"]
    on_the_way = max(0, iterations - 1) // every * sets * evaluation if every else 0.0
    if not job.matches_trajectories:
        tell = begins and iterations and not job.trains_experts
        seconds = iterations * seconds_a_step(job) if iterations and not tell else 0.0
        parts = {IMAGES: seconds + on_the_way, EVALUATION: sets * evaluation + baselines}
        experts = {EXPERTS: 0.0} if job.needs.experts else {}
        return Forecast(experts | parts, told_by_units=IMAGES if tell else None)
    batch = min(settings.batch_syn or count, count)
    stored = 2 * plan.stored_steps > settings.syn_steps
    sizes, augment = job.data.network_arguments, DSA(settings.dsa_strategy)
    inner = time_unroll(config["network"], sizes, batch, augment, job.device, stored=stored)
    seconds = iterations * settings.syn_steps * settings.segments * inner + on_the_way
    images = seconds / job.ranks.size if iterations else 0.0
    return Forecast({EXPERTS: 0.0, IMAGES: images, EVALUATION: sets * evaluation + baselines})


def trainings(job: Job) -> int:
    """How many networks this process trains for the last evaluation."""
    sets = (2 if job.settings.ema_decay is None else 3) + len(job.more_baselines)
    return -(-sets * num_trainings(job.eval_rates, job.config["num_eval"]) // job.ranks.size)


def seconds_a_step(job: Job) -> float:
    """Of a method's own steps, timed without experts; a run's steps begin anew after it."""
    settings, times = job.settings.timed()
    job = replace(job, settings=settings, config=job.config | asdict(settings))
    distillation = Distillation(job)
    seconds: list[float] = []
    while len(seconds) < TIMED and sum(seconds) < LONG_ENOUGH:
        began = time.perf_counter()
        distillation.method.step()
        seconds.append(time.perf_counter() - began)
    return times * min(seconds)


def iterations_within(job: Job, budget: float) -> tuple[int, str]:  # seconds
    """How many iterations a budget leaves beside the evaluation, and why."""
    sets = 2 + len(job.more_baselines)  # random real images, too
    each, evaluation = seconds_a_step(job), sets * evaluation_seconds_of(job, job.num_images)
    count = max(1, int((PLANNED * budget - evaluation) / each))
    return count, f"fits a budget of {words_of_time(budget)}, {each:.2g} s each"


def evaluation_seconds_of(job: Job, count: int) -> float:
    """Of the evaluation of one set of so many images."""
    config = job.config
    if not config["num_eval"]:
        return 0.0
    schedule = schedule_of(
        config["protocol"],
        config["eval_epochs"],
        config["eval_batch"],
        config["dsa_strategy"],
        config["sam_rho"],
        config["num_eval"],
        job.device,
        None,
    )
    return evaluation_seconds(job.data, count, job.eval_rates, config["num_eval"], schedule, job.ranks)
