"""Training a network on the synthetic set as it is, between the steps that change it."""

import torch

from ddfast.data import DSA
from ddfast.engine.students import Training
from ddfast.methods.learned_set import LearnedSet, Taken


def train_epoch(
    training: Training,  # of one network
    learned: LearnedSet,
    taken: Taken,  # of `learned`, with hard labels
    batch: int,
    augment: DSA,
    generator: torch.Generator,
) -> None:
    """One epoch of minibatches in an order that is drawn, every image seen and augmented anew."""
    with torch.no_grad():
        images = learned.see(taken.values, generator)
    for chosen in torch.randperm(len(taken.labels), generator=generator).split(batch):
        augmented = augment.side_by_side(images[chosen][None], [generator])
        training.step(augmented, taken.labels[chosen][None])
