"""DM: match the mean features of each class, seen by random networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ddfast.data import Dataset
from ddfast.engine.students import Features
from ddfast.methods.base import Method, Needs
from ddfast.methods.settings import OUTER, Rate, SetSettings
from ddfast.methods.siamese import SIAMESE, siamese
from ddfast.runtime.options import AtLeast1, Option


@dataclass(frozen=True, kw_only=True)
class DMSettings(SetSettings):
    """Options of DM."""

    lr_img: Annotated[Rate, Option(OUTER, "Learning rate of the images.")] = 1.0
    dsa_strategy: Annotated[str, Option("Data", "As DSA draws, alike for real and synthetic images.")] = SIAMESE
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images of each class in a step.")] = 256
    networks_per_step: Annotated[AtLeast1, Option(OUTER, "Random networks whose losses are averaged.")] = 1


class DM(Method):
    """Distribution matching (Zhao & Bilen 2023, arXiv:2110.04181, eq. 5 and Algorithm 1).

    A step draws random networks ψ and minimises Σ_c ‖mean ψ(A(T_c)) − mean ψ(A(S_c))‖² over classes c, with the same
    augmentation A for the real minibatch T_c and the synthetic images S_c. Features are the input of the linear layer.
    Networks with batch norm see all classes at once, as the published code has it.
    """

    Settings, needs = DMSettings, Needs(real_data=True)

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError for a network without features."""
        with torch.no_grad():
            Features([network], data.train_images.shape[1:])(torch.zeros(1, data.channels, *data.image_size))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum over classes of squared distances of mean features, averaged over the networks."""
        settings: DMSettings = self.settings
        nets = [self.new_network() for _ in range(settings.networks_per_step)]
        features = Features(nets, images.shape[1:], self.resources.precision)
        classes = labels.unique().tolist()
        members = [(labels == k).nonzero()[:, 0] for k in classes]
        augmented, reals = [], []
        for k, chosen in zip(classes, members, strict=True):
            real = self.real.of_class(k, settings.batch_real)
            real, synthetic = siamese(self.augment, real, images[chosen], self.generator)
            augmented.append(synthetic)
            reals.append(real)
        of_real = self._means(features, reals)
        of_synthetic = features(torch.cat(augmented)).split([len(chosen) for chosen in members], 1)
        means = torch.stack([part.mean(1) for part in of_synthetic])  # [K, S, F]
        return (means - of_real).square().sum() / len(nets)

    @torch.no_grad()
    def _means(self, features: Features, reals: Sequence[Tensor]) -> Tensor:  # [K, S, F]
        """Mean features of each class; class by class where images do not see each other, to save memory."""
        if not features.mixes:
            return torch.stack([features(real).mean(1) for real in reals])
        parts = features(torch.cat(list(reals))).split([len(real) for real in reals], 1)
        return torch.stack([part.mean(1) for part in parts])
