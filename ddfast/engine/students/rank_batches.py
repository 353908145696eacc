"""A student whose minibatches are shared out over processes: the images of one part each, and the same gradient."""

import math

import torch
from torch import Tensor

from ddfast.engine.students.base import GradientJvp, Step, StepBytes, Student, Wanted
from ddfast.runtime.ranks import Ranks


class RankBatches(Student):
    """Another student, of which every rank computes its part of the images; what they have is added up.

    All ranks make the same calls with the same arguments and get the same bits. Two collective sums per inner step: of
    P numbers forward, of P and the images' backward. ValueError where the other student's images are not independent.
    """

    def __init__(self, student: Student, ranks: Ranks) -> None:
        self.student, self._ranks = student, ranks
        self._check(None)
        self.num_parameters, self.layer_sizes = student.num_parameters, student.layer_sizes

    def grad(
        self, parameters: Tensor, images: Tensor, labels: Tensor, *, step: Step, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        if create_graph:
            raise NotImplementedError("RankBatches: what other processes compute has no autograd graph here")
        self._check(images.shape)
        part, share = self._part(images), self._share(images)
        losses, gradient = parameters.new_zeros(len(parameters)), torch.zeros_like(parameters)
        if share:
            own = self._own(step)
            losses, gradient = self.student.grad(parameters, images[part], labels[part], step=own)
        losses, gradient = self._ranks.sum([share * losses, share * gradient])
        return losses, gradient

    def grad_jvp(
        self, parameters: Tensor, images: Tensor, labels: Tensor, direction: Tensor, *, step: Step, wanted: Wanted
    ) -> GradientJvp:
        part, share = self._part(images), self._share(images)
        slope = parameters.new_zeros(len(parameters))
        by_parameters = torch.zeros_like(parameters) if wanted.parameters else None
        by_images = torch.zeros_like(images) if wanted.images else None
        by_labels = torch.zeros_like(labels) if wanted.labels else None
        if share:
            own = self._own(step)
            jvp = self.student.grad_jvp(parameters, images[part], labels[part], direction, step=own, wanted=wanted)
            slope = share * jvp.slope
            by_parameters = share * jvp.parameters if wanted.parameters else None
            for total, values in ((by_images, jvp.images), (by_labels, jvp.labels)):
                if total is not None:
                    total[part] = share * values
        parts = [slope, by_parameters, by_images, by_labels]
        sums = iter(self._ranks.sum([tensor for tensor in parts if tensor is not None]))
        return GradientJvp(*(None if tensor is None else next(sums) for tensor in parts))

    def step_bytes(
        self, images: torch.Size, students: int, dtype: torch.dtype, on_gpu: bool = False
    ) -> StepBytes | None:
        """Of this rank's part, and of what is sent."""
        part = torch.Size((-(-images[0] // self._ranks.size), *images[1:]))
        step = self.student.step_bytes(part, students, dtype, on_gpu)
        if step is None:
            return None
        element = torch.empty((), dtype=dtype).element_size()
        vector, all_images = students * self.num_parameters * element, math.prod(images) * element
        sent = 3 * (vector + all_images)  # the terms, in one tensor, and their sums
        return StepBytes(step.grad + 3 * vector, step.grad_jvp + sent, step.grad_jvp_of_kept + sent, step.kept)

    def why_no_micro_batches(self, images: torch.Size | None = None) -> str | None:
        return self.student.why_no_micro_batches(images)

    def _check(self, images: torch.Size | None) -> None:
        reason = self.student.why_no_micro_batches(images)
        if reason is not None:
            raise ValueError(
                f"segments: {self._ranks.size} processes would share the minibatches of one segment, which cannot be "
                f"cut: {reason}; give a multiple of {self._ranks.size}"
            )

    def _part(self, images: Tensor) -> slice:
        return self._ranks.part(len(images))

    def _share(self, images: Tensor) -> float:  # of the mean over the minibatch
        part = self._part(images)
        return (part.stop - part.start) / len(images)

    @staticmethod
    def _own(step: Step) -> Step:
        step.memory = step.memory or Step(keep=step.keep)
        return step.memory
