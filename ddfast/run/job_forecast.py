"""How long a run takes, before it begins."""

from ddfast.data import DSA
from ddfast.engine.timing import time_unroll
from ddfast.run.job import Job
from ddfast.run.step_cost import evaluation_seconds_of, seconds_a_step
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
    evaluation, sets = evaluation_seconds_of(job, count), 1 if settings.ema_decay is None else 2
    every = config["eval_every"]
    on_the_way = (iterations - 1) // every * sets * evaluation if every else 0.0
    if not job.needs.unroll:
        seconds = iterations * seconds_a_step(job) if iterations else 0.0
        return Forecast({IMAGES: seconds + on_the_way, EVALUATION: (sets + 1) * evaluation})
    batch = min(settings.batch_syn or count, count)
    stored = 2 * plan.stored_steps > settings.syn_steps
    sizes, augment = job.data.network_arguments, DSA(settings.dsa_strategy)
    inner = time_unroll(config["network"], sizes, batch, augment, job.device, stored=stored)
    seconds = iterations * settings.syn_steps * settings.segments * inner + on_the_way
    images = seconds / job.ranks.size if iterations else 0.0
    return Forecast({EXPERTS: 0.0, IMAGES: images, EVALUATION: (sets + 1) * evaluation})  # and random real images


def trainings(job: Job) -> int:
    """How many networks this process trains for the last evaluation."""
    sets = 2 if job.settings.ema_decay is None else 3
    return -(-sets * len(job.config["networks"]) * job.config["num_eval"] // job.ranks.size)
