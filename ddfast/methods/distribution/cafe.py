"""CAFE: match the features of every layer, and tell real images apart by the synthetic ones' mean features."""

from collections import deque
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddfast.data import Dataset
from ddfast.engine.students import Training
from ddfast.engine.students.taps import taps_of
from ddfast.methods.base import Method, Needs
from ddfast.methods.settings import OUTER, SetSettings
from ddfast.methods.siamese import siamese
from ddfast.methods.synthetic_training import train_epoch
from ddfast.runtime.options import AtLeast1, NotNegative, Option, Positive

WEIGHTS = 0.1, 1.0  # of all maps but the last ones; of the last ones and the features
HALVED_AT = 0.6, 0.8, 0.9  # of the iterations
LOOKED_AT = 10  # accuracies, by whose range a loop ends
TESTED = 128  # real images of each class


@dataclass(frozen=True, kw_only=True)
class CAFESettings(SetSettings):
    """Options of CAFE."""

    init: str = "noise"
    lr_img: float = 0.1
    dsa_strategy: str = "none"
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images of each class in a step.")] = 256
    lr_net: Annotated[Positive, Option(OUTER, "Learning rate of the network.")] = 0.01
    batch_net: Annotated[AtLeast1, Option(OUTER, "Images per minibatch of the network.")] = 256
    discrimination: Annotated[NotNegative, Option(OUTER, "Weight of telling real images apart.")] = 0.01
    rounds: Annotated[AtLeast1, Option(OUTER, "Times that images, then the network are trained.")] = 2
    most_steps: Annotated[AtLeast1, Option(OUTER, "Image steps of a round, at most.")] = 20
    most_epochs: Annotated[AtLeast1, Option(OUTER, "Epochs of the network in a round, at most.")] = 20
    settled: Annotated[Positive, Option(OUTER, "Image steps end when 10 accuracies are within this.")] = 0.04
    moved: Annotated[Positive, Option(OUTER, "Epochs end when 10 accuracies are further apart.")] = 0.03

    LABELS = ("hard",)

    def timed(self) -> tuple[Self, float]:
        """Two image steps, of as many as there can be."""
        settings, _ = super().timed()
        return replace(settings, rounds=1, most_steps=2), self.rounds * self.most_steps / 2


class CAFE(Method):
    """Aligning features (Wang et al. 2022, arXiv:2203.01531), with its dynamic loops.

    An iteration draws a network. In each of `rounds` rounds the images take steps until the network's accuracies on
    real images no longer change (the range of 10 is below `settled`); between rounds the network trains on them until
    they do (above `moved`). A step minimises Σ_l w_l Σ_c ‖mean f_l(T_c) − mean f_l(S_c)‖² over the maps after every
    activation and the features at the end, which count twice, and `discrimination` times the cross-entropy of all
    real features' products with the classes' mean synthetic features.

    The published code bounds neither loop; `most_steps` and `most_epochs` do, and `rounds` is ours. Its accuracies come
    from an accumulator that is never reset, which mixes them with earlier ones: a fault that is not here.
    """

    Settings, needs = CAFESettings, Needs(real_data=True)

    def __init__(self, settings: CAFESettings, synthetic: Any, resources: Any) -> None:
        super().__init__(settings, synthetic, resources)
        self._done = 0

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError for a network without features."""
        with torch.no_grad():
            taps_of(network, torch.zeros(2, data.channels, *data.image_size))

    def own_state(self) -> dict[str, Any]:
        """Iterations so far, for the learning rate."""
        return {"done": self._done}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._done = state["done"]
        self._set_rate()

    def _set_rate(self) -> None:
        halvings = sum(self._done >= share * (self.resources.iterations or torch.inf) for share in HALVED_AT)
        self.learned.set_rate(self.settings.lr_img / 2**halvings)

    def _step(self) -> dict[str, Any]:
        settings: CAFESettings = self.settings
        self._set_rate()
        net, steps, epochs = self.new_network().train(), 0, 0
        for n in range(settings.rounds):
            accuracies: deque[float] = deque(maxlen=LOOKED_AT)
            for _ in range(settings.most_steps):
                verdict, steps = self._image_step(net), steps + 1
                accuracies.append(self._accuracy(net))
                if len(accuracies) == LOOKED_AT and max(accuracies) - min(accuracies) < settings.settled:
                    break
            if n + 1 < settings.rounds:
                epochs += self._train(net)
        self._done += 1
        return self.learned.record(verdict) | {"image_steps": steps, "epochs": epochs}

    def _image_step(self, net: nn.Module) -> Any:
        taken = self.learned.take()
        values = [value.detach().requires_grad_() for value in taken.values]
        loss = self.loss_in(net, self.learned.see(values, self.generator), taken.labels)
        gradients = torch.autograd.grad(loss, values)
        return self.learned.update(taken, loss.detach(), list(gradients))

    def loss_in(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:  # [J, C, H, W], int64 [J] -> []
        """What an image step descends on, with a minibatch of real images that is drawn."""
        settings: CAFESettings = self.settings
        classes = labels.unique().tolist()
        reals, synthetics, sizes = [], [], []
        for k in classes:
            of_class = images[labels == k]
            real, synthetic = siamese(
                self.augment, self.real.of_class(k, settings.batch_real), of_class, self.generator
            )
            reals.append(real)
            synthetics.append(synthetic)
            sizes.append(len(of_class))
        means_of_real, features = self._seen(net, reals)  # features [K B, F]
        taps, _ = taps_of(net, torch.cat(synthetics))
        means = [torch.stack([part.mean(0) for part in tap.split(sizes)]) for tap in taps]  # [K, …] each
        apart = [(a - b).square().sum() for a, b in zip(means, means_of_real, strict=True)]
        low, high = WEIGHTS
        loss = low * sum(apart[:-2]) + high * sum(apart[-2:]) + apart[-1]
        logits = features @ means[-1].T  # [K B, K]
        of_real = torch.arange(len(classes), device=logits.device).repeat_interleave(settings.batch_real)
        return loss + settings.discrimination * cross_entropy(logits, of_real, reduction="sum")

    @torch.no_grad()
    def _seen(self, net: nn.Module, reals: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Mean maps and features of each class, [K, …] each, and all features; class by class where images do not see
        each other, to save memory."""
        mixes = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
        if mixes:
            sizes = [len(real) for real in reals]
            taps, _ = taps_of(net, torch.cat(reals))
            return [torch.stack([part.mean(0) for part in tap.split(sizes)]) for tap in taps], taps[-1]
        each = [taps_of(net, real)[0] for real in reals]
        return [torch.stack([tap.mean(0) for tap in taps]) for taps in zip(*each, strict=True)], torch.cat(
            [taps[-1] for taps in each]
        )

    @torch.no_grad()
    def _accuracy(self, net: nn.Module) -> float:
        """On real images of every class."""
        net.eval()
        right = total = 0
        for k in range(len(self.learned.about.class_names)):
            guessed = net(self.real.of_class(k, TESTED)).argmax(1)
            right, total = right + int((guessed == k).sum()), total + len(guessed)
        net.train()
        return right / total

    def _train(self, net: nn.Module) -> int:  # epochs
        """Train the network on the set as it is, until its accuracies change."""
        settings: CAFESettings = self.settings
        taken, epochs = self.learned.take(), 0
        accuracies: deque[float] = deque(maxlen=LOOKED_AT)
        about = self.learned.about
        image = torch.Size((len(about.preprocessing.mean), *about.image_size))
        training = Training([net], image, lr=settings.lr_net)
        for _ in range(settings.most_epochs):
            train_epoch(training, self.learned, taken, settings.batch_net, self.augment, self.generator)
            training.write()
            epochs += 1
            accuracies.append(self._accuracy(net))
            if len(accuracies) == LOOKED_AT and max(accuracies) - min(accuracies) > settings.moved:
                break
        return epochs
