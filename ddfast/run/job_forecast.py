"""How long a run takes, before it begins."""

from ddfast.data import DSA
from ddfast.engine.timing import time_unroll
from ddfast.evaluation import evaluation_seconds, schedule_of
from ddfast.run.job import Job
from ddfast.runtime.forecast import Forecast

EXPERTS, IMAGES, EVALUATION = "experts", "images", "evaluation"  # stages


def forecast_of(job: Job, iterations: int) -> Forecast:
    """The forecast of a run with so many iterations to go; what experts take, their training fills in.

    Only the first process of a run has one.
    """
    if not job.ranks.is_first:
        return Forecast()
    config, settings, plan = job.config, job.settings, job.plan
    count = job.num_images
    batch = min(settings.batch_syn or count, count)
    stored = 2 * plan.stored_steps > settings.syn_steps
    sizes, augment = job.data.network_arguments, DSA(settings.dsa_strategy)
    inner = time_unroll(config["network"], sizes, batch, augment, job.device, stored=stored)
    evaluation, sets = _evaluation_seconds(job, count), 1 if settings.ema_decay is None else 2
    every, seconds = config["eval_every"], iterations * settings.syn_steps * settings.segments * inner
    if every:
        seconds += (iterations - 1) // every * sets * evaluation
    images = seconds / job.ranks.size if iterations else 0.0
    return Forecast({EXPERTS: 0.0, IMAGES: images, EVALUATION: (sets + 1) * evaluation})  # and random real images


def trainings(job: Job) -> int:
    """How many networks this process trains for the last evaluation."""
    sets = 2 if job.settings.ema_decay is None else 3
    return -(-sets * len(job.config["networks"]) * job.config["num_eval"] // job.ranks.size)


def _evaluation_seconds(job: Job, count: int) -> float:
    """Of the evaluation of one set."""
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
