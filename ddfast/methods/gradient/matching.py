"""What the methods that match gradients share: settings, and the exact gradient of a class's distance in its images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ddfast.data import Dataset
from ddfast.engine.planner import students_within
from ddfast.engine.students import ConvNetStudent, Step, Student, Wanted, student_of
from ddfast.methods.base import Method, Needs
from ddfast.methods.gradient.batch_norm import frozen_statistics
from ddfast.methods.gradient.distance import DISTANCES, WEIGHTS_OF, GradientDistance
from ddfast.methods.settings import OUTER, SetSettings
from ddfast.methods.siamese import siamese
from ddfast.runtime.options import AtLeast1, OneOf, Option, Positive

OF_BATCH_NORM = 16  # real images of each class, for statistics


@dataclass(frozen=True, kw_only=True)
class MatchingSettings(SetSettings):
    """Options of gradient matching."""

    lr_img: float = 0.1
    dsa_strategy: str = "none"
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images of each class in a step.")] = 256
    lr_net: Annotated[Positive, Option(OUTER, "Learning rate of the network.")] = 0.01
    batch_net: Annotated[AtLeast1, Option(OUTER, "Images per minibatch of the network.")] = 256
    gradient_distance: Annotated[
        Annotated[str, OneOf(tuple(DISTANCES))], Option(OUTER, "Between gradients: of rows, or of all.")
    ] = "layerwise"
    weights_of: Annotated[
        Annotated[str, OneOf(WEIGHTS_OF)], Option(OUTER, "Which parameters' gradients are compared.")
    ] = "all"
    classes_at_once: Annotated[
        AtLeast1 | None, Option(OUTER, "Classes in one pass of the network.", "1; on a GPU what memory_budget holds")
    ] = None

    LABELS = ("hard",)


class GradientMatching(Method):
    """Methods that compare a network's gradients on a class's real and synthetic images.

    The image gradient is exact: the student's directional derivative along ∂D/∂g, without a second backward pass.
    """

    Settings, needs = MatchingSettings, Needs(real_data=True)

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError for a network without what is compared."""
        GradientDistance(network, settings.gradient_distance, settings.weights_of)

    def distance_of(self, net: nn.Module) -> GradientDistance:
        """Between gradients of this network."""
        return GradientDistance(net, self.settings.gradient_distance, self.settings.weights_of)

    def matched(
        self,
        net: nn.Module,
        distance: GradientDistance,
        images: Tensor,  # [J, C, H, W], of all classes
        members: Sequence[tuple[int, Tensor]],  # classes, and which images [b] of each are compared
    ) -> tuple[Tensor, Tensor]:  # the distance, summed over classes, and its gradient in the images
        """Σ_c D(∇_θ ℓ(A(S_c)), ∇_θ ℓ(A(T_c))) for real minibatches T_c, augmented like S_c."""
        images = images.detach().requires_grad_()
        student = student_of(net, self.resources.precision, images.shape[1:])
        theta = parameters_to_vector(net.parameters()).detach()[None]  # [1, P]
        total, along = images.new_zeros(()), images.new_zeros(())
        with frozen_statistics(net, lambda: torch.cat([self.real.of_class(k, OF_BATCH_NORM) for k, _ in members])):
            for group in self._groups(student, members, images.shape[1:]):
                pairs = [
                    siamese(self.augment, self.real.of_class(k, self.settings.batch_real), images[at], self.generator)
                    for k, at in group
                ]
                real, synthetic = (torch.stack(side) for side in zip(*pairs, strict=True))  # [S, B, C, H, W] each
                loss, jvp = self._distances(student, theta, distance, real, synthetic.detach(), [k for k, _ in group])
                total, along = total + loss, along + (synthetic * jvp).sum()
        return total, torch.autograd.grad(along, images)[0]

    def _distances(
        self,
        student: Student,
        theta: Tensor,  # [1, P]
        distance: GradientDistance,
        real: Tensor,  # [S, B, C, H, W]
        synthetic: Tensor,  # [S, b, C, H, W]
        classes: Sequence[int],  # [S]
    ) -> tuple[Tensor, Tensor]:  # the sum of distances [], its gradient in `synthetic`
        S = len(classes)
        theta = theta.expand(S, -1).contiguous()

        def seen(images: Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.tensor(classes, device=images.device)[:, None].expand(-1, images.shape[1])
            return (images[0], labels[0]) if S == 1 else (images, labels.contiguous())

        _, target = student.grad(theta, *seen(real), step=Step())
        step, (x, y) = Step(keep=True), seen(synthetic)
        _, g = student.grad(theta, x, y, step=step)
        loss, slope = distance(g, target)
        jvp = student.grad_jvp(theta, x, y, slope, step=step, wanted=Wanted(False, True, False))
        return loss.sum(), jvp.images.view_as(synthetic)

    def _groups(
        self, student: Student, members: Sequence[tuple[int, Tensor]], image: torch.Size
    ) -> Iterator[Sequence[tuple[int, Tensor]]]:
        """Classes that go through the network at once: neighbours with as many images each, as many as memory holds."""
        at_once = self.settings.classes_at_once
        if not isinstance(student, ConvNetStudent):
            at_once = 1  # its images are seen by every student
        elif at_once is None:
            batch, budget = torch.Size((self.settings.batch_real, *image)), self.resources.memory_budget
            on_gpu = self.device.type == "cuda"
            at_once = 1 if budget is None else students_within(student, batch, budget, on_gpu)
        while members:
            _, group = next(groupby(members[:at_once], lambda member: len(member[1])))
            yield (taken := list(group))
            members = members[len(taken) :]
