"""DC and DSA: match the gradients of a class's real and synthetic images, while a network trains on the latter."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn

from ddfast.engine.students import Training
from ddfast.methods.gradient.matching import GradientMatching, MatchingSettings
from ddfast.methods.settings import OUTER
from ddfast.methods.siamese import SIAMESE
from ddfast.methods.synthetic_training import train_epoch
from ddfast.runtime.options import AtLeast1, Option

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # DC's code, by ipc


def loops_of(ipc: float) -> tuple[int, int]:
    """Image steps and epochs between two of them: the published ones, else `ipc` steps and 500 / ipc epochs, within 1
    to 50, which is near to all of them."""
    whole = max(1, min(50, round(ipc)))
    return LOOPS.get(round(ipc)) or (whole, max(1, min(50, round(500 / whole))))


@dataclass(frozen=True, kw_only=True)
class DCSettings(MatchingSettings):
    """Options of DC."""

    init: str = "noise"
    outer_loop: Annotated[AtLeast1 | None, Option(OUTER, "Image steps with one network.", "by ipc")] = None
    inner_loop: Annotated[AtLeast1 | None, Option(OUTER, "Epochs of the network between two; idc: image steps.")] = None


@dataclass(frozen=True, kw_only=True)
class DSASettings(DCSettings):
    """Options of DC, with DSA's defaults."""

    init: str = "real"
    dsa_strategy: str = SIAMESE


class DC(GradientMatching):
    """Dataset condensation with gradient matching (Zhao et al. 2021, arXiv:2006.05929, Algorithm 1).

    An iteration draws a network θ. In each of `outer_loop` steps the images of every class c go down
    D(∇_θ ℓ(S_c), ∇_θ ℓ(T_c)) for a real minibatch T_c; between two steps θ trains on the set for `inner_loop` epochs.
    """

    Settings = DCSettings

    def _step(self) -> dict[str, Any]:
        settings: DCSettings = self.settings
        published = loops_of(len(self.learned) / len(self.learned.about.class_names))
        steps = settings.outer_loop or published[0]
        epochs = settings.inner_loop or published[1]
        net, losses = self.new_network().train(), []
        distance = self.distance_of(net)
        for n in range(steps):
            taken = self.learned.take()
            values = [value.detach().requires_grad_() for value in taken.values]
            images, labels = self.learned.see(values, self.generator), taken.labels
            members = [(k, (labels == k).nonzero()[:, 0]) for k in labels.unique().tolist()]
            loss, by_images = self.matched(net, distance, images, members)
            gradients = torch.autograd.grad(images, values, by_images)
            verdict = self.learned.update(taken, loss, list(gradients))
            losses.append(verdict.loss / len(members))
            if n + 1 < steps:
                self._train(net, epochs, images.shape[1:])
        return self.learned.record(verdict) | {"loss": sum(losses) / len(losses)}

    def _train(self, net: nn.Module, epochs: int, image: torch.Size) -> None:
        """Train the network on the set as it is."""
        settings: DCSettings = self.settings
        taken = self.learned.take()
        training = Training([net], image, lr=settings.lr_net)
        for _ in range(epochs):
            train_epoch(training, self.learned, taken, settings.batch_net, self.augment, self.generator)
        training.write()


class DSA(DC):
    """DC with differentiable Siamese augmentation (Zhao & Bilen 2021, arXiv:2102.08259): real and synthetic images of a
    class are augmented alike before their gradients are matched."""

    Settings = DSASettings
