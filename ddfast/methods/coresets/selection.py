"""Which real images of a class stand for it: by their features, or by how difficult they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddfast.experts import SCORES, Judges

BY_FEATURES = ("herding", "k_center")
SELECTIONS = (*BY_FEATURES, *SCORES, "window")
FEATURES = ("experts", "pixels")  # what BY_FEATURES look at


def herding(
    features: Tensor,  # [N, F]
    count: int,
    generator: torch.Generator,
) -> Tensor:  # int64 [count]
    """Images whose mean stays near that of all: the k-th is the one nearest to k · mean − the sum of those chosen
    (Welling 2009; Rebuffi et al. 2017, Algorithm 4). Nothing is drawn."""
    features = features.double()
    chosen: list[int] = []
    mean, total, squares = features.mean(0), torch.zeros_like(features[0]), features.square().sum(1)
    for k in range(1, count + 1):
        distances = squares - 2 * features @ (k * mean - total)  # less a number that is the same for all
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(
    features: Tensor,  # [N, F]
    count: int,
    generator: torch.Generator,
) -> Tensor:  # int64 [count]
    """Images that leave none far from all of them: the first is drawn, every other is the one farthest from its nearest
    (Sener & Savarese 2018, Algorithm 1)."""
    features = features.double()
    chosen = [int(torch.randint(len(features), (), generator=generator))]
    nearest = torch.full((len(features),), torch.inf, dtype=torch.float64)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


RULES: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {"herding": herding, "k_center": k_center}


def select(
    how: str,  # of SELECTIONS
    judges: Judges,
    counts: list[int],  # [K], no more than a class has
    generator: torch.Generator,
    *,
    select_on: str = "experts",
    select_epoch: int | None = None,
    never_learnt: str = "first",
    window_start: float = 0.5,
) -> list[Tensor]:  # K tensors int64
    """Indices of training images of every class: the most difficult ones first, equally difficult ones in an order
    that is drawn; or as the rule of `how` has it."""
    data = judges.data
    of_classes = data.by_class(generator)
    if how in SCORES:
        scores = judges.difficulty(how, select_epoch, never_learnt)
        order = [indices[scores[indices].argsort(descending=True, stable=True)] for indices in of_classes]
        return [indices[:count] for indices, count in zip(order, counts, strict=True)]
    if how == "window":  # SelMatch: Lee & Chung 2024, section 3.1
        scores, chosen = judges.difficulty("el2n", select_epoch), []
        for indices, count in zip(of_classes, counts, strict=True):
            hardest = indices[scores[indices].argsort(descending=True, stable=True)]
            first = max(0, min(int(window_start * len(indices)), len(indices) - count))
            window = hardest[first : first + count]
            chosen.append(window[torch.randperm(len(window), generator=generator)])
        return chosen
    chosen = []
    for indices, count in zip((indices.sort().values for indices in of_classes), counts, strict=True):
        images = data.preprocessing.apply(data.train_images[indices])
        features = images.flatten(1) if select_on == "pixels" else judges.features(0, images)
        chosen.append(indices[RULES[how](features, min(count, len(indices)), generator)])
    return chosen
