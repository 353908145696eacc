"""Shares of every class that are drawn by a seed: the test part of data that come without one, images held out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddfast.runtime import seeds

TEST_SHARE = 0.2
SPLIT_SEED = 0  # of every split, whatever the run's seed: runs of one data set are tested on the same images


def stratified_split(
    labels: Tensor,  # int64 [N]
    class_names: Sequence[str],  # [K]
    seed: int = SPLIT_SEED,
    share: float = TEST_SHARE,
) -> tuple[Tensor, Tensor]:  # int64 indices of the training and of the test images, ascending
    """Draw `share` of the images of every class as test images: at least one, and never all.

    The draw depends on the order of the labels, the seed and nothing else. Errors: ValueError that names the classes
    with a single image, which can be either a training or a test image.
    """
    single = [class_names[k] for k in labels.unique().tolist() if int((labels == k).sum()) < 2]
    if single:
        more = f" and {len(single) - 5} more" if len(single) > 5 else ""
        raise ValueError(
            f"dataset: no test set, and class {', '.join(single[:5])}{more} has one image: expected at least 2 of "
            f"every class to draw a test set from, or a test set"
        )
    return draw_share(labels, share, seeds_by=(seed, "split"))


def draw_share(
    labels: Tensor,  # int64 [N]
    share: float,
    seeds_by: tuple[int, str],
) -> tuple[Tensor, Tensor]:  # int64 indices of the others and of those drawn, ascending
    """Draw a share of the images of every class: at least one, and never all."""
    is_drawn = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique().tolist():
        of_class = (labels == k).nonzero()[:, 0]
        count = min(len(of_class) - 1, max(1, round(share * len(of_class))))
        order = torch.randperm(len(of_class), generator=seeds.generator(*seeds_by, k))
        is_drawn[of_class[order[:count]]] = True
    return (~is_drawn).nonzero()[:, 0], is_drawn.nonzero()[:, 0]


def split_words(train: int, test: int, seed: int = SPLIT_SEED, share: float = TEST_SHARE) -> str:
    """What a split did, for the line that is logged."""
    drawn = f"{test} of {train + test} images were drawn as test images"
    return f"no test set: {drawn} ({share:.0%} of every class, seed {seed})"
