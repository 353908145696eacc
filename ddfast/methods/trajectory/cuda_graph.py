"""The device's part of an outer step as a CUDA graph: captured once, replayed as one launch."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddfast.engine.students import ConvNetStudent, Student
from ddfast.runtime.devices import is_out_of_memory

log = logging.getLogger("ddfast")

WARM_UPS = 2  # runs before a capture, in which libraries choose their algorithms


class Replayed:
    """A function of tensors that always have the same shapes: captured at its first call, replayed at every one.

    It must not wait for the device, and change nothing but what it returns. Where it cannot be captured it is called as
    it is, which is said once; the numbers are the same.
    """

    def __init__(self, function: Callable[..., tuple[Tensor | None, ...]], device: torch.device | str = "cuda") -> None:
        self._function, self._device = function, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._impossible = False
        self._inputs: list[Tensor | None] = []
        self._results: tuple[Tensor | None, ...] = ()

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """The function's results, the caller's own: the graph writes to the same addresses in every replay."""
        with torch.cuda.device(self._device):
            if self._graph is None and not self._impossible:
                self._capture(inputs)
            if self._graph is None:
                return self._function(*inputs)
            for static, given in zip(self._inputs, inputs, strict=True):
                if static is not None:
                    static.copy_(given, non_blocking=True)
            self._graph.replay()
            return tuple(None if result is None else result.clone() for result in self._results)

    def _capture(self, inputs: Sequence[Tensor | None]) -> None:
        self._inputs = [None if given is None else given.clone() for given in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._function(*self._inputs)
            graph = torch.cuda.CUDAGraph()
            # Another thread reads the next segments, and may allocate meanwhile: "thread_local" lets it.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._function(*self._inputs)
            self._graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.warning("cuda_graph: not used, because the step cannot be captured (%s)", str(error).splitlines()[0])
            self._impossible, self._inputs = True, []
        finally:
            torch.cuda.current_stream().wait_stream(stream)


def why_not_replayed(student: Student, device: torch.device, *, chooses: bool, alone: bool) -> str | None:
    """Why a step cannot be a CUDA graph; None where it can be tried."""
    if device.type != "cuda":
        return f"it needs a GPU, and this runs on {device}"
    if not alone:
        return "several processes share the step"
    if not isinstance(student, ConvNetStudent):
        return "this network does not run on the fused ops"
    if chooses:
        return "this method looks at values, of its states or images"
    return None
