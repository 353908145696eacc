"""Curves with many points, made drawable."""

from collections.abc import Sequence

import torch

PEAKS = 100.0  # a curve with a value so many times its median needs a logarithmic axis


def thinned(
    iterations: Sequence[float],
    values: Sequence[float | None],  # None if not finite
    most: int,
) -> tuple[list[float], list[float]]:
    """At most so many points: the middle iteration and the median value of each group of neighbours. NaN for a group
    without a finite value."""
    size = max(1, -(-len(values) // most))
    known = torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
    parts = torch.tensor(iterations, dtype=torch.float64).split(size)
    middles = [float(part[len(part) // 2]) for part in parts if len(part)]
    return middles, [float(part.nanmedian()) for part in known.split(size) if len(part)]


def has_peaks(values: Sequence[float | None]) -> bool:
    """Whether all finite values are positive and the largest is more than PEAKS times the median."""
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    finite = known[known.isfinite()]
    return len(finite) > 0 and bool(finite.min() > 0) and bool(finite.max() > PEAKS * finite.median())
