"""A module's forward pass again as it was: random states, buffers, modes and autocast of the first run of a step."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddfast.engine.students.base import Step


@dataclass
class Memory:
    """What a module saw before its forward pass of a step, and the loss that came out."""

    random_state: Tensor
    cuda_random_state: Tensor | None
    others: tuple | None  # NumPy's and Python's random states; None where the pass draws nothing from them
    buffers: dict[str, Tensor]
    modes: list[bool]  # train or eval, by module
    autocast_dtype: torch.dtype | None  # None where autocast is off
    loss: Tensor | None = None  # []
    graph: Any = None  # what a kept step's directional derivative starts from


class Replay:
    """Forward passes of one module that repeat what it draws from global random states, and start from its buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._kept: dict[str | torch.device, Tensor] = {}

    @contextlib.contextmanager
    def run(self, step: Step, s: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """Yield the buffers to run on. The first run of (step, s) remembers what it sees and updates the module's
        buffers; a later run starts from what was remembered and leaves no trace."""
        step.memory = {} if step.memory is None else step.memory
        if s in step.memory:
            with self._again(step.memory[s], device) as buffers:
                yield buffers
            return
        step.memory[s] = memory = self.remember(device)
        used = {name: buffer.clone() for name, buffer in memory.buffers.items()}
        yield used
        memory.others = None if other_states() == memory.others else memory.others
        for name, buffer in self.module.named_buffers():
            with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                buffer.copy_(used[name])

    @contextlib.contextmanager
    def _again(self, memory: Memory, device: torch.device) -> Iterator[dict[str, Tensor]]:
        modules = list(self.module.modules())
        modes, others = [module.training for module in modules], memory.others and other_states()
        cuda = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=cuda),
            torch.autocast(device.type, memory.autocast_dtype, enabled=memory.autocast_dtype is not None),
        ):
            torch.set_rng_state(memory.random_state)
            if cuda:
                torch.cuda.set_rng_state(memory.cuda_random_state, device)
            set_other_states(memory.others)
            _set_modes(modules, memory.modes)
            try:
                yield {name: buffer.clone() for name, buffer in memory.buffers.items()}
            finally:
                _set_modes(modules, modes)
                set_other_states(others)

    def remember(self, device: torch.device) -> Memory:
        """What a forward pass would see now."""
        autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        return Memory(
            self._kept_copy("random state", torch.get_rng_state()),
            self._kept_copy(device, torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
            other_states(),
            {name: self._kept_copy(name, buffer) for name, buffer in self.module.named_buffers()},
            [module.training for module in self.module.modules()],
            torch.get_autocast_dtype(device.type) if autocast else None,
        )

    def check(self, memory: Memory, loss: Tensor) -> None:  # loss []
        """ValueError where a replay has another loss than the first run. Not on a device: it would be waited for."""
        if memory.loss is None:
            memory.loss = loss.detach()
        elif loss.device.type == "cpu":
            loss = loss.detach()
            tolerance = torch.finfo(loss.dtype).eps ** 0.5  # two draws differ by far more
            if not torch.isclose(loss, memory.loss, rtol=tolerance, atol=tolerance, equal_nan=True):
                raise ValueError(
                    f"student: the backward runs a step of {type(self.module).__name__} again and got the loss "
                    f"{float(loss):.6g}, not {float(memory.loss):.6g}: its forward pass must not depend on earlier "
                    "ones, and has to draw from the global random states of PyTorch, NumPy or Python"
                )

    def _kept_copy(self, key: str | torch.device, value: Tensor) -> Tensor:
        """A copy of the value, the one made last where nothing has changed since: T copies would be T holes in the heap
        between the large tensors of the steps."""
        kept = self._kept.get(key)
        if kept is None or kept.device != value.device or not kept.equal(value):
            self._kept[key] = kept = value.clone()
        return kept


def other_states() -> tuple:
    """The global random states of NumPy, its numbers as bytes, and of Python."""
    kind, numbers, *rest = np.random.get_state()
    return (kind, numbers.tobytes(), *rest), random.getstate()


def set_other_states(states: tuple | None) -> None:
    if states is not None:
        (kind, numbers, *rest), of_python = states
        np.random.set_state((kind, np.frombuffer(numbers, np.uint32), *rest))
        random.setstate(of_python)


def _set_modes(modules: list[nn.Module], modes: list[bool]) -> None:
    for module, mode in zip(modules, modes, strict=True):
        module.training = mode
