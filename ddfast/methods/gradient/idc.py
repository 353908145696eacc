"""IDC: match the gradients of networks that are trained on real data, class by class, for images in tiles."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddfast.data import DSA
from ddfast.data.cutmix import cutmix
from ddfast.engine.students import Training
from ddfast.methods.gradient.matching import GradientMatching, MatchingSettings
from ddfast.methods.learned_set import IMAGES
from ddfast.methods.settings import OUTER, Parameterised
from ddfast.methods.siamese import SIAMESE
from ddfast.runtime.options import AtLeast0, AtLeast1, Ge, Le, Lt, NotNegative, Option


@dataclass(frozen=True, kw_only=True)
class IDCSettings(MatchingSettings):
    """Options of IDC. lr_img is that of pixels from 0 to 1, as its code has them."""

    lr_img: float = 5e-3
    dsa_strategy: str = "dsa:color_crop_cutout"
    batch_real: int = 64
    batch_net: int = 64
    gradient_distance: str = "mse"
    weights_of: str = "convolutions"
    parameterisation: Parameterised = "tiles"
    inner_loop: Annotated[AtLeast1, Option(OUTER, "Image steps of every class with one network.")] = 100
    most_matched: Annotated[AtLeast1, Option(OUTER, "Synthetic images of a class in a step, at most.")] = 128
    net_images: Annotated[AtLeast1, Option(OUTER, "Real images that the network trains on between two steps.")] = 2000
    pre_epochs: Annotated[AtLeast0, Option(OUTER, "Epochs of real images that a network begins with.")] = 0
    mom_net: Annotated[NotNegative, Lt(1), Option(OUTER, "Momentum of the network.")] = 0.9
    l2_net: Annotated[NotNegative, Option(OUTER, "Weight decay of the network.")] = 5e-4
    net_strategy: Annotated[str, Option(OUTER, "Augmentation of what the network trains on.")] = SIAMESE
    cutmix: Annotated[float, Ge(0), Le(1), Option(OUTER, "Share of its minibatches that are mixed by CutMix.")] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        DSA(self.net_strategy)  # refuses an unknown one

    def timed(self) -> tuple[Self, float]:
        """Three of its image steps."""
        settings, _ = super().timed()
        few = min(3, self.inner_loop)
        return replace(settings, inner_loop=few), self.inner_loop / few


class IDC(GradientMatching):
    """Information-intensive dataset condensation (Kim et al. 2022, arXiv:2205.14959, Algorithm 1).

    An iteration draws a network. In each of `inner_loop` steps every class in turn takes a step of its own down
    the distance of its gradients in the weights of convolutions; then the network trains on `net_images` real images,
    with augmentation and CutMix. Images are tiles (`parameterisation`, `factor`), and are brought back to 0 … 1 at the
    beginning of an iteration. IDC-I is parameterisation pixels.
    """

    Settings = IDCSettings

    def _step(self) -> dict[str, Any]:
        settings: IDCSettings = self.settings
        net, losses = self.new_network().train(), []
        distance = self.distance_of(net)
        image = torch.Size((len(self.learned.about.preprocessing.mean), *self.learned.about.image_size))
        training = Training([net], image, lr=settings.lr_net, momentum=settings.mom_net, weight_decay=settings.l2_net)
        for _ in range(settings.pre_epochs):
            self._train(training, len(self.real))
        self._bring_back()
        for n in range(settings.inner_loop):
            labels = self.learned.take().labels
            of_all = [(labels == k).nonzero()[:, 0] for k in labels.unique().tolist()]
            for of_class in of_all:
                k, count = int(labels[of_class[0]]), min(len(of_class), settings.most_matched)
                order = torch.randperm(len(of_class), generator=self.generator)[:count].sort().values
                verdict = self._class_step(net, distance, k, of_class[order.to(of_class.device)])
                losses.append(verdict.loss)
            if n + 1 < settings.inner_loop:
                self._train(training, settings.net_images)
        return self.learned.record(verdict) | {"loss": sum(losses) / len(losses)}

    def _class_step(self, net: nn.Module, distance: Any, k: int, members: Tensor) -> Any:
        taken = self.learned.take()
        values = [value.detach().requires_grad_() for value in taken.values]
        images = self.learned.see(values, self.generator)
        loss, by_images = self.matched(net, distance, images, [(k, members)])
        gradients = list(torch.autograd.grad(images, values, by_images))
        # Steps of pixels x = σ p + μ from 0 to 1 at rate r are steps of p at rate r / σ².
        std = self.learned.about.preprocessing.std
        column = (1, -1, *[1] * (gradients[IMAGES].dim() - 2))
        gradients[IMAGES] = gradients[IMAGES] / gradients[IMAGES].new_tensor(std).square().view(column)
        return self.learned.update(taken, loss, gradients)

    def _bring_back(self) -> None:
        """Bring pixels back to what pictures can show."""
        about = self.learned.about.preprocessing
        if about.zca is None and self.parameterisation.name in ("pixels", "tiles"):
            low, high = (
                torch.tensor([(bound - m) / s for m, s in zip(about.mean, about.std, strict=True)]).view(-1, 1, 1)
                for bound in (0, 1)
            )
            self.learned.clamp(low.to(self.device), high.to(self.device))

    def _train(self, training: Training, count: int) -> None:
        """Train the network on so many real images."""
        settings, augment = self.settings, DSA(self.settings.net_strategy)
        K = len(self.learned.about.class_names)
        images, labels = self.real.minibatch(count)
        for x, y in zip(images.split(settings.batch_net), labels.split(settings.batch_net), strict=True):
            x, targets = augment.side_by_side(x[None], [self.generator])[0], one_hot(y, K).to(x.dtype)
            if float(torch.rand((), generator=self.generator)) < settings.cutmix:
                x, targets = cutmix(x, targets, self.generator)
            training.step(x[None], targets[None])
        training.write()
