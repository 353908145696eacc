"""DD: images that are seen one group after another, each step with a learned rate of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import parameters_to_vector

from ddfast.data import SyntheticSet
from ddfast.data.recipe import Recipe
from ddfast.methods.base import Resources
from ddfast.methods.bptt.settings import UNROLL, Norms, ThroughTimeSettings
from ddfast.methods.bptt.through_time import Inner, ThroughTime
from ddfast.methods.descent import Adam, Learned
from ddfast.methods.learned_set import IMAGES, LearnedSet
from ddfast.methods.settings import OUTER
from ddfast.runtime.devices import to_device
from ddfast.runtime.options import AtLeast1, Option

RATES = "rates"


@dataclass(frozen=True, kw_only=True)
class DDSettings(ThroughTimeSettings):
    """Options of DD. Images and rates are learned by Adam with betas (0.5, 0.999)."""

    lr_img: float = 0.01
    inner_optimizer: Literal["adam", "sgd"] = "sgd"
    image_norm: Norms = "none"
    clip: float | None = None
    dsa_strategy: str = "none"
    total_steps: AtLeast1 = 30
    lr_teacher: float = 0.02
    distill_epochs: Annotated[
        AtLeast1, Option(UNROLL, "Times that the groups of images are seen: total_steps is so many times their number.")
    ] = 3
    network_start: Annotated[
        Literal["random", "fixed"], Option(UNROLL, "Whether every network begins anew, or with the same parameters.")
    ] = "random"
    halve_every: Annotated[
        AtLeast1 | None, Option(OUTER, "Iterations after which the learning rates are halved.", "never")
    ] = None

    LABELS = ("hard",)
    BETAS = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps % self.distill_epochs:
            raise ValueError(
                f"total_steps: expected a multiple of distill_epochs, {self.distill_epochs}, got {self.total_steps}"
            )
        if self.parameterisation != "pixels":
            raise ValueError(f"parameterisation: expected pixels, got {self.parameterisation}")

    def timed(self) -> tuple[Self, float]:
        """As it is."""
        return replace(self, init="noise"), 1.0

    @property
    def groups(self) -> int:
        """Into how many groups the images are parted, one for each step of an epoch."""
        return self.total_steps // self.distill_epochs


class DD(ThroughTime):
    """Dataset distillation (Wang et al. 2018, arXiv:1811.10959, Algorithm 1).

    The images are parted into groups, as many of each class in all. Each step of plain gradient descent sees one group,
    with a learned rate of its own (the softplus of what is learned), `distill_epochs` times. Networks begin with the
    parameters that the run's own network draws; with network_start fixed always with the same ones, which the set
    keeps. How it is trained on (steps, rates, start) is saved with the set: evaluate it with protocol recipe.
    """

    Settings = DDSettings

    def __init__(self, settings: DDSettings, synthetic: SyntheticSet, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        self._steps = self._parted(synthetic).repeat(settings.distill_epochs, 1)  # int64 [T, B]
        self._steps_done = 0

    def learn(self, synthetic: SyntheticSet) -> LearnedSet:
        """Images and rates."""
        settings: DDSettings = self.settings
        if synthetic.recipe is not None and len(synthetic.recipe.rates) == settings.total_steps:
            rates = synthetic.recipe.rates.clone()
        else:
            rates = torch.full((settings.total_steps,), settings.lr_teacher)
        rates = rates.to(synthetic.images.dtype)
        raw = rates + (-(-rates).expm1()).log()  # the inverse of softplus
        how = Learned(settings.lr_img, Adam(settings.BETAS))
        return LearnedSet(synthetic, settings, self.device, more={RATES: (raw, how)})

    def _parted(self, synthetic: SyntheticSet) -> Tensor:  # int64 [groups, B]
        """The images of each group: a class's are dealt out one after another."""
        groups, classes = self.settings.groups, synthetic.classes
        if len(classes) % groups:
            raise ValueError(
                f"total_steps: {self.settings.total_steps} in {self.settings.distill_epochs} epochs part "
                f"{len(classes)} images into {groups} groups, which does not come out even; give another ipc or "
                f"total_steps"
            )
        order = torch.cat([(classes == k).nonzero()[:, 0] for k in range(len(synthetic.class_names))])
        return torch.stack([order[group::groups] for group in range(groups)])

    def network(self) -> nn.Module:
        """A new one, or the run's own."""
        if self.settings.network_start == "random":
            return super().network()
        return self.resources.network.to(self.device).train()

    def rates(self, values: Sequence[Tensor]) -> Tensor:  # [T]
        """Those that are learned."""
        return softplus(values[self.learned.more_at[RATES]])

    def draw_inner(self, steps: int) -> Inner:
        """The groups, one after another."""
        size = self._steps.shape[1], self.learned.about.image_size
        return Inner(to_device(self._steps, self.device), self.augment.draw_steps(steps, *size, self.generator))

    def _step(self) -> dict[str, Any]:
        record = super()._step()
        self._steps_done += 1
        self._set_rates()
        return record

    def _set_rates(self) -> None:
        """Halve the learning rates as often as is due."""
        every = self.settings.halve_every
        halved = 0.5 ** (0 if every is None else self._steps_done // every)
        for place in (IMAGES, self.learned.more_at[RATES]):
            self.learned.descent.set_rate(place, self.settings.lr_img * halved)

    def own_state(self) -> dict[str, Any]:
        """How many steps were made."""
        return super().own_state() | {"steps_done": self._steps_done}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_own_state(state)
        self._steps_done = state["steps_done"]
        self._set_rates()

    def current(self) -> SyntheticSet:
        """The set as it is now, with its recipe."""
        rates = softplus(self.learned.take().values[self.learned.more_at[RATES]].detach()).cpu()
        start = None
        if self.settings.network_start == "fixed":
            start = parameters_to_vector(self.resources.network.parameters()).detach().cpu()
        return replace(super().current(), recipe=Recipe(self._steps, rates, start))
