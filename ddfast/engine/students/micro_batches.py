"""A student whose minibatches are cut into chunks: the memory of one chunk, and the same gradient."""

from typing import Any

import torch
from torch import Tensor

from ddfast.engine.students.base import GradientJvp, Step, Student, Wanted


class MicroBatches(Student):
    """Another student, on `size` images at a time.

    The loss is a mean over images, so that g, Hσ and ⟨g, σ⟩ add up over chunks, exactly but for the last bits.
    ValueError where the other student's images are not independent.
    """

    def __init__(self, student: Student, size: int) -> None:
        _check(student, None)
        if size < 1:
            raise ValueError(f"micro_batch: expected at least 1 image, got {size}")
        self.student, self.size, self.num_parameters = student, size, student.num_parameters
        self.layer_sizes = student.layer_sizes

    def grad(
        self, parameters: Tensor, images: Tensor, labels: Tensor, *, step: Step, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        _check(self.student, images.shape)
        losses, gradient = 0, 0
        for x, y, part, share in self._chunks(images, labels, step):
            loss, g = self.student.grad(parameters, x, y, step=part, create_graph=create_graph)
            losses, gradient = losses + share * loss, gradient + share * g
        return losses, gradient

    def grad_jvp(
        self, parameters: Tensor, images: Tensor, labels: Tensor, direction: Tensor, *, step: Step, wanted: Wanted
    ) -> GradientJvp:
        slope, h_sigma, by_images, by_labels = 0, 0, [], []
        for x, y, part, share in self._chunks(images, labels, step):
            jvp = self.student.grad_jvp(parameters, x, y, direction, step=part, wanted=wanted)
            slope = slope + share * jvp.slope
            h_sigma = h_sigma + share * jvp.parameters if wanted.parameters else None
            by_images += [share * jvp.images] if wanted.images else []
            by_labels += [share * jvp.labels] if wanted.labels else []
        return GradientJvp(
            slope,
            h_sigma,
            torch.cat(by_images) if wanted.images else None,
            torch.cat(by_labels) if wanted.labels else None,
        )

    def _chunks(self, images: Tensor, labels: Tensor, step: Step) -> Any:
        """(images, labels, the chunk's own step, its share of the mean) of every chunk."""
        xs, ys = images.split(self.size), labels.split(self.size)
        if step.memory is None:
            step.memory = [Step(keep=step.keep) for _ in xs]
        for x, y, part in zip(xs, ys, step.memory, strict=True):
            yield x, y, part, len(x) / len(images)


def _check(student: Student, images: torch.Size | None) -> None:
    reason = student.why_no_micro_batches(images)
    if reason is not None:
        raise ValueError(f"micro_batch: a minibatch cannot be cut into chunks: {reason}")
