"""Random segments of experts, read and copied to the device while the step before them runs."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfast.experts.trajectories import TrajectoryStore
from ddfast.runtime.devices import to_device


class Segments(NamedTuple):
    """S segments of trajectories, each from an expert's start epoch to expert_epochs later."""

    experts: list[int]
    start_epochs: list[float]  # whole, but of convexified paths
    start: Tensor  # [S, P], on the device, or a part of them
    target: Tensor  # like start

    def names(self) -> dict[str, Any]:
        """Which they are, for a record: plain numbers where there is one."""
        if len(self.experts) > 1:
            return {"expert": self.experts, "start_epoch": self.start_epochs}
        return {"expert": self.experts[0], "start_epoch": self.start_epochs[0]}


class SegmentReader:
    """Draws and reads the segments of one outer step after another.

    The draws have a generator of their own, seeded from the given one, so that the next ones can be read ahead.
    `start_epochs`: the bounds that the starts of an outer step, counted from 0, are drawn from, the upper one excluded;
    `in_turn`: one after another instead, over the experts too.
    `part`: which of them are read here, where several processes have one each.
    `ahead`: None for reading ahead on a GPU only; on a CPU the second thread would take from the step what it saves.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        generator: torch.Generator,
        *,
        num_experts: int,
        start_epochs: Callable[[int], tuple[int, int]],
        in_turn: bool = False,
        expert_epochs: int,
        segments: int,  # S
        device: torch.device,
        part: slice = slice(None),
        ahead: bool | None = None,
    ) -> None:
        self.store, self.device, self._part = store, device, part
        self._num_experts, self._start_epochs, self._in_turn = num_experts, start_epochs, in_turn
        self._expert_epochs, self._count = expert_epochs, segments
        self._drawn = 0  # outer steps
        self._generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        ahead = device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ddfast segments") if ahead else None
        self._stream = torch.cuda.Stream(device) if ahead and device.type == "cuda" else None
        self._next: Future | None = None
        self._state = self._now()

    def next(self) -> Segments:
        """The next step's segments; ValueError for a damaged file, or a segment whose ends are equal."""
        if self._thread is None:
            segments = self._read(self._draw())
        else:
            segments = (self._next or self._read_ahead()).result()
            self._next = self._read_ahead()
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in (segments.start, segments.target):
                tensor.record_stream(current)
        return segments

    def state(self) -> dict[str, Any]:
        """What `load_state` needs for the same `next` again."""
        return self._state if self._next is not None else self._now()

    def _now(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "drawn": self._drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was read ahead is forgotten."""
        self._next = None
        self._generator.set_state(state["generator"])
        self._drawn = state["drawn"]

    def _draw(self) -> Sequence[tuple[int, float]]:  # (expert, start epoch)
        low, high = self._start_epochs(self._drawn)
        first = self._drawn * self._count
        self._drawn += 1
        if self._in_turn:
            turns = (divmod(n, high - low) for n in range(first, first + self._count))
            return [(rounds % self._num_experts, low + place) for rounds, place in turns]

        def draw(limit: int) -> int:
            return int(torch.randint(limit, (), generator=self._generator))

        return [(draw(self._num_experts), low + draw(high - low)) for _ in range(self._count)]

    def _read_ahead(self) -> Future:
        self._state = self._now()
        return self._thread.submit(self._read, self._draw())

    def _read(self, drawn: Sequence[tuple[int, float]]) -> Segments:
        ends = [
            self.store.segment(expert, int(epoch), int(epoch) + self._expert_epochs)
            for expert, epoch in drawn[self._part]
        ]
        start, target = (torch.stack(rows) for rows in zip(*ends, strict=True))
        with torch.cuda.stream(self._stream):  # of None: a context that does nothing
            start, target = to_device(start, self.device), to_device(target, self.device)
        experts, epochs = (list(column) for column in zip(*drawn, strict=True))
        return Segments(experts, epochs, start, target)
