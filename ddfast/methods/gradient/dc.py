"""DC and DSA: match the gradients of a class's real and synthetic images, while a network trains on the latter."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ddfast.engine.students import Step, Training, Wanted, student_of
from ddfast.methods.base import Method, Needs
from ddfast.methods.gradient.batch_norm import frozen_statistics
from ddfast.methods.gradient.distance import DISTANCES, GradientDistance
from ddfast.methods.settings import OUTER, Rate, SetSettings
from ddfast.methods.siamese import SIAMESE, siamese
from ddfast.runtime.options import AtLeast1, OneOf, Option, Positive

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # DC's code, by ipc
OF_BATCH_NORM = 16  # real images of each class, for statistics


def loops_of(ipc: float) -> tuple[int, int]:
    """Image steps and epochs between two of them: the published ones, else `ipc` steps and 500 / ipc epochs, within 1
    to 50, which is near to all of them."""
    whole = max(1, min(50, round(ipc)))
    return LOOPS.get(round(ipc)) or (whole, max(1, min(50, round(500 / whole))))


@dataclass(frozen=True, kw_only=True)
class DCSettings(SetSettings):
    """Options of gradient matching."""

    init: Annotated[str, Option(OUTER, "real, noise, first, or a saved set or run to go on from.")] = "noise"
    lr_img: Annotated[Rate, Option(OUTER, "Learning rate of the images.")] = 0.1
    dsa_strategy: Annotated[str, Option("Data", "As DSA draws, alike for real and synthetic images.")] = "none"
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images of each class in a step.")] = 256
    outer_loop: Annotated[AtLeast1 | None, Option(OUTER, "Image steps with one network.", "by ipc")] = None
    inner_loop: Annotated[AtLeast1 | None, Option(OUTER, "Epochs of the network between two.", "by ipc")] = None
    lr_net: Annotated[Positive, Option(OUTER, "Learning rate of the network.")] = 0.01
    batch_net: Annotated[AtLeast1, Option(OUTER, "Synthetic images per minibatch of the network.")] = 256
    gradient_distance: Annotated[
        Annotated[str, OneOf(tuple(DISTANCES))], Option(OUTER, "Between gradients: of rows, or of all.")
    ] = "layerwise"

    LABELS = ("hard",)


@dataclass(frozen=True, kw_only=True)
class DSASettings(DCSettings):
    """Options of gradient matching, with DSA's defaults."""

    init: Annotated[str, Option(OUTER, "real, noise, first, or a saved set or run to go on from.")] = "real"
    dsa_strategy: Annotated[str, Option("Data", "As DSA draws, alike for real and synthetic images.")] = SIAMESE


class DC(Method):
    """Dataset condensation with gradient matching (Zhao et al. 2021, arXiv:2006.05929, Algorithm 1).

    An iteration draws a network θ. In each of `outer_loop` steps the images of every class c go down
    D(∇_θ ℓ(S_c), ∇_θ ℓ(T_c)) for a real minibatch T_c; between two steps θ trains on the set for `inner_loop` epochs.
    The image gradient is exact: the student's directional derivative along ∂D/∂g, without a second backward pass.
    """

    Settings, needs = DCSettings, Needs(real_data=True)

    def _step(self) -> dict[str, Any]:
        settings: DCSettings = self.settings
        published = loops_of(len(self.learned) / len(self.learned.about.class_names))
        steps = settings.outer_loop or published[0]
        epochs = settings.inner_loop or published[1]
        net, losses = self.new_network().train(), []
        distance = GradientDistance(net, settings.gradient_distance)
        for n in range(steps):
            taken = self.learned.take()
            values = [value.detach().requires_grad_() for value in taken.values]
            images, labels = self.learned.see(values, self.generator), taken.labels
            loss, by_images = self._matched(net, distance, images, labels)
            gradients = torch.autograd.grad(images, values, by_images)
            verdict = self.learned.update(taken, loss, list(gradients))
            losses.append(verdict.loss / len(labels.unique()))
            if n + 1 < steps:
                self._train(net, epochs, images.shape[1:])
        return self.learned.record(verdict) | {"loss": sum(losses) / len(losses)}

    def _matched(
        self, net: nn.Module, distance: GradientDistance, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:  # the distance, summed over classes, and its gradient in the images
        settings: DCSettings = self.settings
        images = images.detach().requires_grad_()
        student = student_of(net, self.resources.precision, images.shape[1:])
        theta = parameters_to_vector(net.parameters()).detach()[None]  # [1, P]
        classes, total, along = labels.unique().tolist(), images.new_zeros(()), images.new_zeros(())
        with frozen_statistics(net, lambda: torch.cat([self.real.of_class(k, OF_BATCH_NORM) for k in classes])):
            for k in classes:
                real, synthetic = siamese(
                    self.augment, self.real.of_class(k, settings.batch_real), images[labels == k], self.generator
                )
                of_real, of_synthetic = (torch.full((len(x),), k, device=self.device) for x in (real, synthetic))
                _, target = student.grad(theta, real, of_real, step=Step())
                step, x = Step(keep=True), synthetic.detach()
                _, g = student.grad(theta, x, of_synthetic, step=step)
                loss, slope = distance(g[0], target[0])
                jvp = student.grad_jvp(
                    theta, x, of_synthetic, slope[None], step=step, wanted=Wanted(False, True, False)
                )
                total = total + loss
                along = along + (synthetic * jvp.images).sum()
        return total, torch.autograd.grad(along, images)[0]

    def _train(self, net: nn.Module, epochs: int, image: torch.Size) -> None:
        """Train the network on the set as it is."""
        settings: DCSettings = self.settings
        taken = self.learned.take()
        training = Training([net], image, lr=settings.lr_net)
        for _ in range(epochs):
            with torch.no_grad():
                images = self.learned.see(taken.values, self.generator)
            for chosen in torch.randperm(len(taken.labels), generator=self.generator).split(settings.batch_net):
                augmented = self.augment.side_by_side(images[chosen][None], [self.generator])
                training.step(augmented, taken.labels[chosen][None])
        training.write()


class DSA(DC):
    """DC with differentiable Siamese augmentation (Zhao & Bilen 2021, arXiv:2102.08259): real and synthetic images of a
    class are augmented alike before their gradients are matched."""

    Settings = DSASettings
