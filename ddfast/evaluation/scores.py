"""Scores beside the accuracy: calibration, confusion, and those of DD-Ranking."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15


def confusion(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:  # [N, K], int64 [N] -> int64 [K, K]
    """How many images of class k (row) were taken for class j (column)."""
    pairs = num_classes * labels + logits.argmax(1)
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def recalls(matrix: Tensor | Sequence[Sequence[int]]) -> list[float]:  # [K, K] -> [K]
    """Accuracy on the images of each class, in percent; NaN for a class without images."""
    counts = torch.as_tensor(matrix).double()
    return (100 * counts.diagonal() / counts.sum(1)).tolist()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:  # [N, K], int64 [N]
    """Expected calibration error, 0 to 1 (Guo et al. 2017, equation 3): the mean, over images, of the difference of
    accuracy and confidence in their bin of equally wide ones."""
    confidence, guessed = logits.double().softmax(1).max(1)
    right = (guessed == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add_(0, bin_of, right - confidence)
    return float(gaps.abs().sum()) / len(labels)


def log_loss(logits: Tensor, labels: Tensor) -> float:  # [N, K], int64 [N]
    """Mean cross-entropy, in nats."""
    return float(cross_entropy(logits.double(), labels))


def hard_label_recovery(full: float, distilled: float) -> float:
    """DD-Ranking's HLR: what full data reach above the set with hard labels; accuracies and result in fractions."""
    return full - distilled


def improvement_over_random(distilled: float, random_real: float) -> float:
    """DD-Ranking's IOR: what the set reaches above as many random images, trained on alike; in fractions."""
    return distilled - random_real


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """DD-Ranking's LRS, 0 to 1: e^α in [e⁻¹, e] made a share, α = w IOR − (1 − w) HLR.

    HLR and IOR are fractions; version 0.2.0 of its code puts percent there, where e^α has no such range.
    """
    return _share(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(with_augmentation: float, without: float, weight: float = 0.5) -> float:
    """DD-Ranking's ARS, 0 to 1: the same share of β = g IOR with + (1 − g) IOR without augmentation, in fractions."""
    return _share(weight * with_augmentation + (1 - weight) * without)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None where all values of one are equal."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic) if len(set(one)) > 1 < len(set(other)) else None


def _share(value: float) -> float:
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))
