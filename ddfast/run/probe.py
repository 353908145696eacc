"""Rates for data that have no published ones, from a probe of the first segments.

The student's first rate α₀ is the one at which its T steps go as far as the expert does: ‖θ_T(α₀) − θ_0‖ = ‖θ* − θ_0‖.
The rate of the images lets the first update change them by a share of their own size. The rate of α is a share of α₀²,
so that an update changes log α by that share of dL/d log α. None of them depends on the scale of the data, the number
of images, or the network.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from ddfast.data import SyntheticSet
from ddfast.experts import TrajectoryStore
from ddfast.methods import Resources, TrajectoryMatching, method_class
from ddfast.run.job import Job
from ddfast.runtime import seeds

log = logging.getLogger("ddfast")

RATES = ("lr_teacher", "lr_img", "lr_lr")
OUTER_STEPS = 4  # whose segments a probe looks at
TRIES = 12
CLOSE = 0.05  # of log(student's way / expert's way)
LEAST, MOST = 1e-6, 10.0  # student's rates that are tried
FIRST = 0.01
SHARE_OF_IMAGES = 0.05  # by which an update changes the images, root mean square; of n per class 1/n of it
SHARE_FOR_ADAM = 0.4  # of that
SHARE_OF_LR = 0.05


def probe_rates(job: Job, initial: SyntheticSet, experts: TrajectoryStore) -> dict[str, float]:
    """Values for RATES, from the segments and augmentations of OUTER_STEPS outer steps of a stream of their own.

    Where no rate of the student gives finite gradients they are the settings as they are, which a warning tells.
    """
    method = _method(job, initial, experts)
    drawn = [method.draw() for _ in range(OUTER_STEPS)]
    chooses = "lr_teacher" in job.config["probed"]
    rate = _rate_that_goes_as_far(method, drawn) if chooses else float(initial.lr)
    while not all(map(math.isfinite, sizes := _gradients(job, method, rate, drawn))) or not any(sizes):
        rate /= 4
        if not chooses or rate < LEAST:
            log.warning(
                "%s: taken from the preset, because no rate gives a finite gradient", ", ".join(job.config["probed"])
            )
            return {name: getattr(job.settings, name) for name in RATES}
    images, gradient = _size(method.current().images), sum(sizes) / len(sizes)
    share = _share_of_images(job)
    lr_img = share * images if job.settings.img_optimizer == "adam" else share * images / gradient
    return {name: _rounded(x) for name, x in zip(RATES, (rate, lr_img, SHARE_OF_LR * rate**2), strict=True)}


def _gradients(
    job: Job, method: TrajectoryMatching, rate: float, drawn: Sequence[Sequence[Tensor | None]]
) -> list[float]:
    """Sizes of the gradients in the images, with this rate of the student."""
    learned = method.at_rate(rate)
    with seeds.same_algorithms(job.config["deterministic"]), method.dropout():
        return [_size(method.meta_gradient(*learned, *inputs)[1][0]) for inputs in drawn]


def _share_of_images(job: Job) -> float:
    """By which an update changes the images: the more there are, the less each of them has to change."""
    of_rule = SHARE_FOR_ADAM if job.settings.img_optimizer == "adam" else 1.0
    return of_rule * SHARE_OF_IMAGES * job.data.num_classes / job.num_images


def _method(job: Job, initial: SyntheticSet, experts: TrajectoryStore) -> TrajectoryMatching:
    """The method on the initial set, or on as many of its images as a step uses; nothing of it is learned."""
    settings = replace(job.settings, lr_img=0.0, lr_lr=0.0)
    generator = seeds.generator(job.config["seed"], "probe")
    count = settings.on_device(len(initial))
    if count < len(initial):
        chosen = torch.randperm(len(initial), generator=generator)[:count].sort().values
        initial = replace(initial, images=initial.images[chosen], labels=initial.labels[chosen])
    resources = Resources(
        job.network("student"),
        generator,
        device=job.device,
        experts=experts,
        num_experts=job.config["num_experts"],
        plan=None if job.ranks.size > 1 else job.plan,
        precision=job.config["precision"],
    )
    return method_class(job.config["method"])(settings, initial, resources)


@torch.no_grad()
def _rate_that_goes_as_far(method: TrajectoryMatching, drawn: Sequence[Sequence[Tensor | None]]) -> float:
    """α₀ by fixed-point iteration: the way grows about as α does."""
    rate = FIRST
    for _ in range(TRIES):
        learned, ways = method.at_rate(rate), []
        for begin, start, target, *rest in drawn:
            with method.dropout():
                end, _ = method.unrolled(*learned, begin, target, *rest)
            end = end[-1] if method.compares_states else end
            ways.append(((end - begin).norm() / (target - start).norm()).log())
        way = float(torch.stack(ways).mean())
        if abs(way) < CLOSE:
            break
        factor = math.exp(-max(-2.0, min(2.0, way))) if math.isfinite(way) else 0.1
        rate = min(MOST, max(LEAST, rate * factor))
    return rate


def _size(tensor: Tensor) -> float:
    """Root mean square over the images that are not zero: not all of a set may be used."""
    used = tensor.flatten(1)
    used = used[used.any(1)]
    return float(used.square().mean().sqrt()) if len(used) else 0.0


def _rounded(value: float) -> float:
    """Two significant digits: what a log line says is what is used."""
    return float(f"{value:.2g}")


def apply_rates(job: Job, rates: dict[str, float]) -> None:
    """Give a job those of these rates that it probes for, and tell them."""
    wanted = {name: rates[name] for name in job.config["probed"]}
    T, epochs = job.settings.syn_steps, job.settings.expert_epochs
    reasons = {
        "lr_teacher": f"with it {T} steps of the student go as far as an expert does in {epochs} epochs",
        "lr_img": f"an update changes the images by {_share_of_images(job):.2%} of their size",
        "lr_lr": f"an update changes the student's rate by {SHARE_OF_LR:.0%} of the loss's slope in its logarithm",
    }
    for name, value in wanted.items():
        log.info("  %s %g: %s", name, value, reasons[name])
    job.settings = replace(job.settings, **wanted)
    job.config |= asdict(job.settings)
    job.config["derived"] = job.config.get("derived", {}) | {name: reasons[name] for name in wanted}
    job.config["probed_rates"] = wanted
