"""Whether what a run depends on, and what it came to, is worth anything: told in words, and why not."""

import logging
import math
from statistics import fmean
from typing import Any

import torch
from torch.nn.utils import vector_to_parameters

from ddfast.data import take_statistics
from ddfast.data.listing import counted
from ddfast.experts import TrajectoryStore
from ddfast.methods.descent import LR_FLOOR
from ddfast.run.job import Job
from ddfast.runtime import seeds

log = logging.getLogger("ddfast")

JUDGED_EXPERTS = 3
JUDGED_IMAGES = 2000
DEVIATIONS = 3.0  # above chance, for an expert to have learned something
FEW_ITERATIONS = 100
FAR, NEAR = 10.0, 0.01  # that images went, over their norm; 0.2 to 3 where they learn well
TOO_LONG, NO_NEARER = 1.5, 0.9  # a first and a last loss: the student went past its target, and still does not reach it
AS_GOOD = 1.0  # percentage points
CHANCES = 150.0  # percent: half as good again as chance


@torch.no_grad()
def check_that_experts_learned(job: Job, store: TrajectoryStore) -> None:
    """Look at the last snapshots of some experts, on training images: the mean recall of the classes, for whoever takes
    all images for one class has a recall of 1/K, whatever their numbers.

    ValueError where none learned anything and the settings of the experts are our own choice; a warning where they are
    the user's or published, or where only some learned nothing.
    """
    network, K = job.network("judge").to(job.device), job.data.num_classes
    generator = seeds.generator(job.config["seed"], "judge")
    chosen = torch.randperm(len(job.data.train_labels), generator=generator)[:JUDGED_IMAGES]
    images, labels = job.data.train_batches(job.device).take(chosen)
    present = labels.bincount(minlength=K)
    least = 1 / K + DEVIATIONS * math.sqrt((1 - 1 / K) / K / len(chosen))
    judged = range(min(JUDGED_EXPERTS, job.config["num_experts"]))
    recalls = []
    for expert in judged:
        vector_to_parameters(store.snapshot(expert, store.epochs).to(job.device), network.parameters())
        take_statistics(network, job.data, job.device)
        network.eval()
        guessed = torch.cat([network(part).argmax(1) for part in images.split(256)])
        right = labels[guessed == labels].bincount(minlength=K)
        recalls.append(float((right / present.clamp(min=1)).sum() / (present > 0).sum()))
    useless = [recall for recall in recalls if recall < least]
    if not useless:
        return
    sentence = (
        f"experts: {len(useless)} of the first {len(judged)} learned nothing: they find {max(useless):.1%} of the "
        f"training images of a class, chance is {1 / K:.1%}; train them longer (train_epochs), at another rate "
        f"(train_lr), or on more images"
    )
    own = "train_epochs" in job.config.get("derived_settings", ()) and job.experts is None
    if own and len(useless) == len(judged):
        raise ValueError(sentence)
    log.warning("%s", sentence)


def is_better(distilled: dict[str, Any], random_real: dict[str, Any]) -> bool:
    """Whether the mean accuracy on distilled images is above that on random real ones by more than the standard error
    of their difference."""
    error = math.hypot(*(row["std"] / math.sqrt(row["n"]) for row in (distilled, random_real)))
    return distilled["mean"] - random_real["mean"] > error


def verdict(
    job: Job, accuracy: dict[str, dict[str, Any]], history: list[dict[str, Any]], moved: float | None = None
) -> str | None:
    """One sentence where the distilled images are no better than random real ones, with what to change; else None.

    `moved`: how far the images went, as a share of their norm, where that is known.
    """
    if job.settings.init == "real" and not job.needs.steps:
        return None  # it is random real images itself
    best = max((accuracy[name] for name in ("distilled", "averaged") if name in accuracy), key=lambda row: row["mean"])
    random_real, full = accuracy["random_real"], accuracy.get("full_data")
    if is_better(best, random_real):
        return None
    numbers = f"{best['mean']:.1f}% ± {best['std']:.1f} against {random_real['mean']:.1f}% ± {random_real['std']:.1f}"
    if (
        full is not None
        and random_real["mean"] >= full["mean"] - AS_GOOD
        and min(random_real["mean"], full["mean"]) > CHANCES / job.data.num_classes
    ):
        advice = f"these reach what full data do, {full['mean']:.1f}%; ask for fewer images per class (ipc)"
    elif not history:
        advice = "give iterations" if job.needs.steps else "take another selection, or a method that learns images"
    else:
        advice = _advice(job, full, history, moved)
    made = "distilled" if job.needs.steps else "selected"
    return f"the {made} images are no better than random real ones ({numbers}): {advice}"


def _advice(job: Job, full: dict[str, Any] | None, history: list[dict[str, Any]], moved: float | None) -> str:
    """What most probably helps, by what the run shows; the surest signs come first."""
    settings, chance, count = job.settings, 100 / job.data.num_classes, len(history)
    losses = [record["loss"] for record in history if math.isfinite(record["loss"])]
    unrolls, moved = job.matches_trajectories, math.nan if moved is None else moved
    if unrolls and full is not None and full["mean"] < 1.2 * chance:
        return f"the experts themselves reach {full['mean']:.1f}%; train them longer (train_epochs) or on more images"
    if not (settings.lr_img or settings.lr_weights or settings.lr_label):
        return "lr_img is 0, and nothing else of the images is learned; give one"
    gated, left_out = history[-1].get("gated", 0), sum(not record.get("updated", True) for record in history)
    floored = sum(record.get("lr", math.inf) <= 1.01 * LR_FLOOR for record in history)
    if gated > count / 4:
        return f"the loss of {gated} of {count} iterations was above the threshold; raise threshold, or give none"
    tenth = max(1, len(losses) // 10)
    first, last = (fmean(part) if part else math.nan for part in (losses[:tenth], losses[-tenth:]))
    near = moved < NEAR * min(1.0, count / FEW_ITERATIONS) and settings.lr_img > 0
    if near and max(floored, left_out) <= count / 4:
        return f"the images hardly moved, by {moved:.2g} of their size; raise lr_img"
    too_long = losses and losses[0] > TOO_LONG and last > NO_NEARER
    if unrolls and settings.distance == "squared" and too_long and not moved > FAR:
        return (
            f"the first student ended farther from its target than it began (loss {losses[0]:.3g}); let segments begin "
            f"where experts still go far (min_start_epoch, max_start_epoch), or lower lr_teacher"
        )
    if floored > count / 4:
        change = "raise lr_teacher, for lr_lr is 0" if job.rate_is_fixed else "lower lr_lr"
        return f"the student's rate was at its floor in {floored} of {count} iterations; {change}"
    if left_out > count / 4:
        return f"{left_out} of {count} updates were left out; lower {'lr_teacher or ' if unrolls else ''}lr_img"
    if moved > FAR:
        return f"the images moved {moved:.0f} times as far as they are large; lower lr_img"
    if count < FEW_ITERATIONS:
        return f"after {counted(count, 'iteration')} little is learned; give more (iterations, or a longer budget)"
    if last > 0.95 * first:
        other = ", or give more syn_steps or a larger lr_teacher" if unrolls else ""
        return f"the loss did not fall; try another lr_img{other}"
    if not job.needs.experts:
        return "give more iterations, or another lr_img"
    if job.config["num_experts"] < 3:
        return "the experts are few; give more (num_experts, or a longer budget)"
    later = 2 * settings.max_start_epoch
    return f"give more iterations (or a longer budget), or let segments begin later (max_start_epoch {later})"
