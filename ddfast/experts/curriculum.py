"""Which training images an epoch of an expert sees: all of them, or some by difficulty (PAD)."""

import torch
from torch import Tensor

CURRICULA = ("none", "pad")
BEGIN = 0.75  # share of each class that the first epoch sees
GROWN, THINNED, THINNER = 20, 40, 60  # epochs at which all are seen, and after which the easiest are left out
LEFT_OUT = 0.1, 0.2  # shares, after THINNED and THINNER


def shares_of(epoch: int) -> tuple[float, float]:
    """From and to which share of the images, easiest first, an epoch counted from 0 sees (PAD: Li et al. 2024, its
    schedule: at first the easiest 3/4, by epoch 20 all, after 40 and 60 without the easiest tenth and fifth)."""
    if epoch <= GROWN:
        return 0.0, min(1.0, BEGIN + (1 - BEGIN) * epoch / GROWN)
    if epoch <= THINNED:
        return 0.0, 1.0
    return (LEFT_OUT[0] if epoch <= THINNER else LEFT_OUT[1]), 1.0


class Curriculum:
    """The images of every epoch, the same share of each class."""

    def __init__(self, difficulty: Tensor, labels: Tensor) -> None:  # float [N], larger for harder; int64 [N]
        of_classes = [(labels == k).nonzero()[:, 0] for k in labels.unique().tolist()]
        self._of_classes = [indices[difficulty[indices].argsort(stable=True)] for indices in of_classes]

    def images(self, epoch: int) -> Tensor:  # int64 [n]
        """Indices of those that an epoch sees, in ascending order; at least one of each class."""
        first, last = shares_of(epoch)
        seen = []
        for indices in self._of_classes:
            begin = min(int(first * len(indices)), len(indices) - 1)
            seen.append(indices[begin : max(begin + 1, round(last * len(indices)))])
        return torch.cat(seen).sort().values
