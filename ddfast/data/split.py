"""The test part of data that come without one: a fifth of every class, drawn by a seed."""

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
    test = []
    single = [class_names[k] for k in labels.unique().tolist() if int((labels == k).sum()) < 2]
    if single:
        more = f" and {len(single) - 5} more" if len(single) > 5 else ""
        raise ValueError(
            f"dataset: no test set, and class {', '.join(single[:5])}{more} has one image: expected at least 2 of "
            f"every class to draw a test set from, or a test set"
        )
    for k in labels.unique().tolist():
        of_class = (labels == k).nonzero()[:, 0]
        count = min(len(of_class) - 1, max(1, round(share * len(of_class))))
        order = torch.randperm(len(of_class), generator=seeds.generator(seed, "split", k))
        test.append(of_class[order[:count]])
    test_indices = torch.cat(test).sort().values
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[test_indices] = True
    return (~is_test).nonzero()[:, 0], test_indices


def split_words(train: int, test: int, seed: int = SPLIT_SEED, share: float = TEST_SHARE) -> str:
    """What a split did, for the line that is logged."""
    drawn = f"{test} of {train + test} images were drawn as test images"
    return f"no test set: {drawn} ({share:.0%} of every class, seed {seed})"
