"""Labels that are learned as probabilities."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddfast.data import SyntheticSet
from ddfast.methods.descent import Adam, Verdict
from ddfast.methods.learned_set import LearnedSet, Taken

LEAST = 1e-9  # a probability that is saved as a logit


class SimplexSet(LearnedSet):
    """A set whose labels are probabilities [I, K]: after an update they are cut to 0 … 1, and each row divided by its
    sum (label distillation: Bohdal et al. 2020). The set's own label logits are their logarithms."""

    def __init__(self, synthetic: SyntheticSet, settings: Any, device: torch.device, **options: Any) -> None:
        probabilities = replace(synthetic, labels=synthetic.labels.softmax(1))
        super().__init__(probabilities, settings, device, **options)
        if self.labels_at is not None:
            rate = self.descent.learned[self.labels_at].rate
            self.descent.learn(self.labels_at, rate, Adam(settings.BETAS))

    def update(self, taken: Taken, loss: Tensor, gradients: list[Tensor], labels: Tensor | None = None) -> Verdict:
        """Make an update, and bring the labels back to probabilities."""
        verdict = super().update(taken, loss, gradients, labels)
        if verdict.updated and self.labels_at is not None:
            self.descent.put(self.labels_at, on_simplex(self.descent.now()[self.labels_at]))
        return verdict

    def _set_of(self, average: Tensor | None = None) -> SyntheticSet:
        found = super()._set_of(average)
        return found.with_values(found.images, found.labels.clamp(min=LEAST).log(), found.lr, found.others)


def on_simplex(weights: Tensor) -> Tensor:  # [I, K]
    """Cut to 0 … 1, and each row divided by its sum; a row of zeros becomes uniform."""
    cut = weights.clamp(0, 1)
    sums = cut.sum(1, keepdim=True)
    return torch.where(sums > 0, cut / sums.clamp(min=LEAST), 1 / weights.shape[1])
