"""An augmentation that the backward calls again, watched for drawing what it drew before."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

SAMPLE = 1024  # numbers kept of each step's result


class Repeatable:
    """An augment(images, n) of one unroll, all of whose calls with the same n have to give the same images.

    One that says so by an attribute `repeats` is not watched. Of the first call with each n about 1000 numbers are
    kept, and the autocast that it ran under; later calls run under that too, and are compared: on a CPU at once, else
    `finish` waits for the device and raises.
    """

    def __init__(self, augment: Callable[[Tensor, int], Tensor]) -> None:
        self.augment = augment
        self._first: dict[int, tuple[Tensor, torch.dtype | None]] = {}
        self._changed: Tensor | None = None  # bool []

    def __call__(
        self,
        images: Tensor,  # [B, C, H, W]
        n: int,
    ) -> Any:  # [B, C, H, W] from what is no fault
        """Augment the minibatch of step n. ValueError where the result is another than the first time."""
        if images.is_meta:
            return self.augment(images, n)
        kind, (before, dtype) = images.device.type, self._first.get(n, (None, None))
        if before is None and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        with nullcontext() if before is None else torch.autocast(kind, dtype, enabled=dtype is not None):
            result = self.augment(images, n)
        if not isinstance(result, Tensor) or result.numel() == 0:
            return result
        if before is None:
            self._first[n] = _sample(result), dtype
            return result
        changed = _differs(_sample(result), before)
        if changed.device.type == "cpu":
            _raise_if(changed, f"in step {n}")
        else:
            self._changed = changed if self._changed is None else self._changed | changed
        return result

    def finish(self) -> None:
        """At the end of a backward: ValueError where a call on a device gave something else. A CUDA graph that is being
        captured cannot wait, and is not looked at."""
        changed, self._changed = self._changed, None
        if changed is not None and not (changed.is_cuda and torch.cuda.is_current_stream_capturing()):
            _raise_if(changed, "in some step")


def _sample(images: Tensor) -> Tensor:  # [B, C, H, W] -> [about SAMPLE]
    numbers = images.detach().reshape(-1)
    return numbers[:: max(1, len(numbers) // SAMPLE) | 1].clone()  # odd: other columns in every row


def _differs(now: Tensor, before: Tensor) -> Tensor:  # bool []
    """Whether they differ by more than rounding; an operation may round otherwise where autograd records it."""
    if now.shape != before.shape or now.dtype != before.dtype:
        return torch.tensor(True, device=now.device)
    same = (now == before) | (now.isnan() & before.isnan())
    if before.is_floating_point():
        same |= (now - before).abs() <= torch.finfo(before.dtype).eps ** 0.5 * before.abs().nan_to_num().max()
    return ~same.all()


def _raise_if(changed: Tensor, where: str) -> None:
    if changed:
        raise ValueError(
            f"augment: expected the same images for the same step, got others in the backward ({where}), and so the "
            "gradient of another loss; wrap a random function in data.SeededAugment, draw beforehand by "
            "data.DSA.draw_steps, or seed from n a generator that the function owns"
        )
