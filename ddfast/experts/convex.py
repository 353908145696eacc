"""Convexified trajectories: straight lines between a few points of an expert's path, layer by layer (MCT)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddfast.experts.segments import SegmentReader, Segments
from ddfast.experts.trajectories import TrajectoryStore
from ddfast.runtime.devices import to_device
from ddfast.runtime.files import remembered


class ConvexPaths:
    """The convexified paths of experts from epoch `first` to `last`, at any real epoch between.

    `waypoints` points of the path, evenly spaced epochs, the inner ones smoothed: a mean over `smoothing` epochs to
    either side. A layer of the path at epoch t lies on the line between two of them, at the share of the way that the
    expert's own layer had gone by t: its summed norms of steps, linear within an epoch (Zhong et al. 2025, MCT).

    What is computed of an expert is kept beside it. Errors: ValueError where epochs are not kept.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        layers: list[int],  # parameters of each, P in all
        first: int,
        last: int,
        waypoints: int = 3,
        smoothing: int = 1,
    ) -> None:
        self.store, self._layers, self._first, self._last = store, layers, first, last
        step = (last - first) / (waypoints - 1)
        self._epochs = sorted({first + round(n * step) for n in range(waypoints)})
        self._smoothing = smoothing
        missing = set(range(first, last + 1)) - set(store.kept_epochs)
        if missing:
            raise ValueError(
                f"experts: {store.path} holds {store.words_of_kept()}; convexified paths need {first} to {last}"
            )

    def at(self, expert: int, epoch: float) -> Tensor:  # [P]
        """The parameters at a real epoch."""
        points, ways = self._of(expert)  # [W, P], [layers, last − first + 1]
        epoch = min(max(epoch, self._first), self._last) - self._first
        before = min(int(epoch), ways.shape[1] - 2)
        gone = torch.lerp(ways[:, before], ways[:, before + 1], epoch - before)  # [layers]
        ends = ways[:, [e - self._first for e in self._epochs]]  # [layers, W]
        line = (ends[:, 1:-1] <= gone[:, None]).sum(1)  # [layers]: which one
        begin, end = (ends.gather(1, (line + k)[:, None])[:, 0] for k in (0, 1))
        share = torch.where(end > begin, (gone - begin) / (end - begin), 0.0)
        rows = torch.arange(len(self._layers)).repeat_interleave(torch.tensor(self._layers))  # [P]: of which layer
        at = torch.arange(points.shape[1])
        return torch.lerp(points[line[rows], at], points[line[rows] + 1, at], share[rows].to(points.dtype))

    def _of(self, expert: int) -> tuple[Tensor, Tensor]:
        how = {"epochs": self._epochs, "smoothing": self._smoothing, "layers": self._layers}
        named = "-".join(map(str, (*self._epochs, self._smoothing)))
        file = self.store.path / f"convex-{named}-expert_{expert:04d}.safetensors"
        found = remembered(file, how, lambda: self._computed(expert))
        return found["points"], found["ways"]

    def _computed(self, expert: int) -> dict[str, Tensor]:
        before, steps, kept = None, [], []
        for epoch in range(self._first, self._last + 1):
            now = self.store.snapshot(expert, epoch)
            if before is not None:
                moved = (now - before).split(self._layers)
                steps.append(torch.stack([piece.double().norm() for piece in moved]))
            if epoch in self._epochs:
                kept.append(self._smoothed(expert, epoch))
            before = now
        ways = torch.stack([torch.zeros(len(self._layers), dtype=torch.float64), *steps], 1).cumsum(1)
        return {"points": torch.stack(kept), "ways": ways}

    def _smoothed(self, expert: int, epoch: int) -> Tensor:
        if epoch in (self._first, self._last):
            return self.store.snapshot(expert, epoch)
        near = range(max(self._first, epoch - self._smoothing), min(self._last, epoch + self._smoothing) + 1)
        return torch.stack([self.store.snapshot(expert, e) for e in near]).mean(0)


class ConvexReader(SegmentReader):
    """As SegmentReader, of convexified paths; starts are real numbers from the bounds, the last whole one included."""

    def __init__(self, paths: ConvexPaths, **options: Any) -> None:
        self._paths = paths
        super().__init__(paths.store, **options)

    def _draw(self) -> Sequence[tuple[int, float]]:  # (expert, start epoch)
        if self._in_turn:
            return super()._draw()
        low, high = self._start_epochs(self._drawn)
        self._drawn += 1

        def start() -> float:
            return low + (high - 1 - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

        return [
            (int(torch.randint(self._num_experts, (), generator=self._generator)), start()) for _ in range(self._count)
        ]

    def _read(self, drawn: Sequence[tuple[int, float]]) -> Segments:
        ends = [
            [self._paths.at(expert, epoch), self._paths.at(expert, epoch + self._expert_epochs)]
            for expert, epoch in drawn[self._part]
        ]
        start, target = (torch.stack(rows) for rows in zip(*ends, strict=True))
        if (start == target).all(1).any():
            raise ValueError(f"experts: {self.store.path} has an expert that does not move")
        with torch.cuda.stream(self._stream):
            start, target = to_device(start, self.device), to_device(target, self.device)
        experts, epochs = (list(column) for column in zip(*drawn, strict=True))
        return Segments(experts, epochs, start, target)
