"""What the methods that match features share: which networks look, and the features of every class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from ddfast.data import Dataset
from ddfast.engine.students import Features, expect_features
from ddfast.engine.students.features import features_of
from ddfast.methods.base import Method, Needs
from ddfast.methods.settings import OUTER, SetSettings
from ddfast.methods.siamese import SIAMESE, siamese
from ddfast.runtime.options import AtLeast0, AtLeast1, NotNegative, Option

Looking = Literal["random", "experts", "between"]
JUDGING_EXPERTS = 5  # trained for their snapshots alone


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(SetSettings):
    """Options of methods that look at features."""

    dsa_strategy: str = SIAMESE
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images of each class in a step.")] = 256
    networks_per_step: Annotated[AtLeast1, Option(OUTER, "Networks whose losses are averaged.")] = 1
    networks_from: Annotated[
        Looking,
        Option(OUTER, "Random networks; experts: random snapshots of them; between: on the line from first to last."),
    ] = "random"
    first_epoch: Annotated[AtLeast0, Option(OUTER, "The first snapshot of an expert that looks.")] = 0
    last_epoch: Annotated[AtLeast1 | None, Option(OUTER, "The last one.", "the experts' last")] = None
    ce_weight: Annotated[
        NotNegative, Option(OUTER, "Of the cross-entropy of synthetic images in an expert, beside the distance.")
    ] = 0.0
    ce_lag: Annotated[AtLeast0 | None, Option(OUTER, "Epochs by which that expert is further.", "its last")] = None

    LABELS = ("hard",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_epoch is not None and self.last_epoch < self.first_epoch:
            raise ValueError(f"last_epoch: expected at least first_epoch, {self.first_epoch}, got {self.last_epoch}")

    @classmethod
    def judges(cls, values: Mapping[str, Any]) -> int:
        """Those whose snapshots look, too."""
        looks = values.get("networks_from", cls.networks_from) != "random" or values.get("ce_weight", cls.ce_weight)
        return max(super().judges(values), JUDGING_EXPERTS if looks else 0)

    def timed(self) -> tuple[Self, float]:
        """With random networks."""
        settings, times = super().timed()
        return replace(settings, networks_from="random", ce_weight=0.0), times

    @property
    def used_epochs(self) -> tuple[int, int]:
        """Those of the snapshots that look."""
        selected = [] if self.select_epoch is None else [self.select_epoch]
        if self.networks_from == "random" and not self.ce_weight:
            return super().used_epochs
        return min([self.first_epoch, *selected]), max([self.last_epoch or self.first_epoch, *selected])


class FeatureMatching(Method):
    """Methods that compare what networks see in a class's real and synthetic images.

    Networks are random ones, or experts' snapshots of `first_epoch` to `last_epoch` (TGDD's core, 2025), or on the line
    between these two of one expert (NCFM). With `ce_weight` the cross-entropy of the synthetic images in a snapshot
    `ce_lag` epochs later is added. Features are the input of the last linear layer. Networks with batch norm see all
    classes at once.
    """

    Settings, needs = FeatureSettings, Needs(real_data=True)

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError for a network without features."""
        expect_features(network, data.train_images.shape[1:])

    def compared(self, real: Tensor, synthetic: Tensor) -> Tensor:  # [S, B, F], [S, b, F], of a class -> [S]
        """How far they are apart, differentiable in the latter."""
        raise NotImplementedError

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum over classes of what `compared` says, averaged over the networks."""
        settings: FeatureSettings = self.settings
        nets, later = self._networks()
        features = Features(nets, images.shape[1:], self.resources.precision)
        classes = labels.unique().tolist()
        members = [(labels == k).nonzero()[:, 0] for k in classes]
        augmented, reals = [], []
        for k, chosen in zip(classes, members, strict=True):
            real = self.real.of_class(k, settings.batch_real)
            real, synthetic = siamese(self.augment, real, images[chosen], self.generator)
            augmented.append(synthetic)
            reals.append(real)
        of_real, seen = self._features(features, reals), torch.cat(augmented)
        of_synthetic = features(seen).split([len(chosen) for chosen in members], 1)
        apart = torch.stack([self.compared(r, s) for r, s in zip(of_real, of_synthetic, strict=True)])  # [K, S]
        loss = apart.sum() / len(nets)
        if settings.ce_weight:
            _, logits = features_of(later, seen)
            loss = loss + settings.ce_weight * cross_entropy(logits, torch.cat([labels[chosen] for chosen in members]))
        return loss

    @torch.no_grad()
    def _features(self, features: Features, reals: Sequence[Tensor]) -> list[Tensor]:  # [S, B, F] each
        """Features of each class; class by class where images do not see each other, to save memory."""
        if not features.mixes:
            return [features(real) for real in reals]
        return list(features(torch.cat(list(reals))).split([len(real) for real in reals], 1))

    def _networks(self) -> tuple[list[nn.Module], nn.Module | None]:
        """Those that look in this step, and the one whose cross-entropy is added."""
        settings: FeatureSettings = self.settings
        drawn = [self._draw() for _ in range(settings.networks_per_step)]
        if not settings.ce_weight:
            return [net for net, *_ in drawn], None
        _, expert, epoch = drawn[0]
        expert = self._draw_expert() if expert is None else expert
        return [net for net, *_ in drawn], self._snapshot(self.blank_network(), expert, self._later(epoch))

    def _later(self, epoch: int) -> int:
        """The snapshot whose cross-entropy is added: `ce_lag` epochs later, or the last."""
        store, lag = self.resources.experts, self.settings.ce_lag
        after = [] if lag is None else [kept for kept in store.kept_epochs if kept >= epoch + lag]
        return after[0] if after else store.epochs

    def _draw(self) -> tuple[nn.Module, int | None, int]:
        """A network, and which snapshot it is."""
        settings: FeatureSettings = self.settings
        if settings.networks_from == "random":
            return self.new_network(), None, 0
        kept = self._epochs()
        expert = self._draw_expert()
        if settings.networks_from == "between":
            net, share = self.blank_network(), float(torch.rand((), generator=self.generator))
            ends = [self.resources.experts.snapshot(expert, epoch) for epoch in (kept[0], kept[-1])]
            vector_to_parameters(torch.lerp(*ends, share).to(self.device), net.parameters())
            return net, expert, kept[-1]
        epoch = kept[int(torch.randint(len(kept), (), generator=self.generator))]
        return self._snapshot(self.blank_network(), expert, epoch), expert, epoch

    def _epochs(self) -> list[int]:
        """Of the snapshots that may look."""
        settings, store = self.settings, self.resources.experts
        last = store.epochs if settings.last_epoch is None else settings.last_epoch
        return [epoch for epoch in store.kept_epochs if settings.first_epoch <= epoch <= last]

    def _draw_expert(self) -> int:
        count = self.resources.num_experts or self.resources.experts.num_experts
        return int(torch.randint(count, (), generator=self.generator))

    def _snapshot(self, net: nn.Module, expert: int, epoch: int) -> nn.Module:
        vector_to_parameters(self.resources.experts.snapshot(expert, epoch).to(self.device), net.parameters())
        return net
