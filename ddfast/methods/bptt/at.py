"""AT-BPTT and AT-BPTT++: windows where the inner gradients are, with the exact gradient."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast.data import SyntheticSet
from ddfast.engine.students import Student
from ddfast.methods.base import Resources
from ddfast.methods.bptt.settings import UNROLL, Norms, ThroughTimeSettings
from ddfast.methods.bptt.through_time import ThroughTime, Window
from ddfast.runtime.options import AtLeast0, AtLeast1, Ge, Le, Lt, Option, Positive

SEEN = 512  # real images whose accuracy says how far training is
GAINS = (1.5, 1.0)  # points of accuracy below which stage 1, then stage 2 ends
PATIENCE = (0.15, 0.125)  # of total_steps, in epochs


@dataclass(frozen=True, kw_only=True)
class ATSettings(ThroughTimeSettings):
    """Options of AT-BPTT."""

    window: AtLeast1 | None = 40
    reach: Annotated[AtLeast0, Option(UNROLL, "Steps by which a window is longer or shorter.")] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is None or self.reach >= self.window:
            raise ValueError(f"reach: expected less than the window, {self.window}, got {self.reach}")

    @property
    def longest_window(self) -> int:
        """The window and its reach."""
        return (self.window or self.total_steps) + self.reach

    def _tenth(self) -> dict[str, int]:
        return super()._tenth() | {"reach": 0}


class ATBPTT(ThroughTime):
    """The window policy of AT-BPTT (Li et al. 2025), in three stages. Its approximate Hessian of low rank is not here:
    the gradient is exact.

    Stage 1: a probe of the whole training gives ‖g_n‖; the start is drawn from their softmax, and the window is
    W − d + 2 d · (rank of the norm's change at the start) / T. Stage 2: a random start, W + d. Stage 3: as stage 1 with
    the start mirrored, T − start − window, and W − d. Stages end when the networks' accuracy on real images gained less
    than 1.5, then 1, points in 0.15 T, then 0.125 T, epochs of the real images.
    """

    Settings = ATSettings

    def __init__(self, settings: ATSettings, synthetic: SyntheticSet, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        self._stage = 0
        self._accuracies: list[float] = []  # of the epoch
        self._epochs: list[float] = []  # the means of those before

    def window(self, net: nn.Module, student: Student) -> Window:
        """By the stage."""
        settings: ATSettings = self.settings
        T, W, d = settings.total_steps, settings.window, settings.reach
        first = settings.min_steps
        if self._stage == 1:
            length = W + d
            begin = int(torch.randint(first, T - length + 1, (), generator=self.generator))
            return Window(begin, begin + length)
        norms = self.probe(net, student, T).double()
        shortest = W - d
        scores = norms[first : T - shortest + 1]
        begin = first + int(torch.multinomial(scores.softmax(0), 1, generator=self.generator))
        if self._stage == 2:
            mirrored = max(first, T - begin - shortest)
            return Window(mirrored, mirrored + shortest)
        changes = norms.diff(append=norms[-1:]).abs()
        rank = int((changes < changes[begin]).sum())
        length = min(round(W - d + 2 * d * rank / T), T - begin)
        return Window(begin, begin + length)

    @torch.no_grad()
    def after(self, net: nn.Module, last: Tensor, real: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """How well the trained network classifies real images; at the end of an epoch, whether a stage is over."""
        settings, (images, labels) = self.settings, real
        vector_to_parameters(last, net.parameters())
        right = net(images[:SEEN]).argmax(1) == labels[:SEEN]
        accuracy, stage = 100 * float(right.double().mean()), self._stage
        self._accuracies = [*self._accuracies, accuracy]
        if len(self._accuracies) * settings.batch_real >= len(self.real):
            self._epochs, self._accuracies = [*self._epochs, sum(self._accuracies) / len(self._accuracies)], []
            patience = max(1, math.ceil(PATIENCE[min(stage, 1)] * settings.total_steps))
            if stage < 2 and len(self._epochs) > patience:
                gained = max(self._epochs[-patience:]) - max(self._epochs[:-patience])
                if gained < GAINS[stage]:
                    self._stage, self._epochs = stage + 1, []
        return {"stage": stage + 1, "accuracy": accuracy}

    def own_state(self) -> dict[str, Any]:
        """The stage, and the accuracies since it began."""
        mine = {"stage": self._stage, "accuracies": self._accuracies, "epochs": self._epochs}
        return super().own_state() | mine

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_own_state(state)
        self._stage, self._accuracies, self._epochs = state["stage"], state["accuracies"], state["epochs"]


@dataclass(frozen=True, kw_only=True)
class ATPlusSettings(ATSettings):
    """Options of AT-BPTT++."""

    image_norm: Norms = "always"
    labels: str = "soft"
    lr_label: float = 1e-3
    total_steps: AtLeast1 = 32
    window: AtLeast1 | None = 16
    reach: AtLeast0 = 8
    policy_temperature: Annotated[Positive, Option(UNROLL, "λ: of the advantage in the policy.")] = 1.0
    policy_decay: Annotated[float, Ge(0), Lt(1), Option(UNROLL, "Of the policy's moving reference.")] = 0.95
    length_temperature: Annotated[Positive, Option(UNROLL, "τ: of the change in a window's length.")] = 1.0
    policy_mix: Annotated[float, Ge(0), Le(1), Option(UNROLL, "Weight of the reference's logarithm.")] = 1.0


class ATBPTTPlus(ThroughTime):
    """The selector of AT-BPTT++ (its readme and code, 2025) with the exact gradient, without its low-rank projection.

    Every outer step probes a whole training of the network. The window's end is drawn from
    softmax(log reference + b · advantage / λ), with the advantage the standardised ‖g_n‖ and b from −1 to 1 the place
    of their mean among those seen so far; reference ← 0.95 reference + 0.05 policy. Its length is W − d + 2 d σ(z / τ),
    z the standardised change of the norm at that step. The training begins anew with other minibatches.
    """

    Settings = ATPlusSettings

    def __init__(self, settings: ATPlusSettings, synthetic: SyntheticSet, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        self._reference = torch.full((settings.total_steps,), 1 / settings.total_steps, dtype=torch.float64)
        self._means = [math.inf, -math.inf]

    def window(self, net: nn.Module, student: Student) -> Window:
        """By the policy."""
        settings: ATPlusSettings = self.settings
        T, W, d = settings.total_steps, settings.window, settings.reach
        norms = self.probe(net, student, T).double()
        mean = float(norms.mean())
        if not math.isfinite(mean):
            return Window(T - W, T)
        low, high = min(self._means[0], mean), max(self._means[1], mean)
        self._means = [low, high]
        b = 2 * (mean - low) / (high - low) - 1 if high > low else 0.0
        advantage = _standardised(norms)
        scores = settings.policy_mix * self._reference.log() + b * advantage / settings.policy_temperature
        policy = scores.softmax(0)
        self._reference = settings.policy_decay * self._reference + (1 - settings.policy_decay) * policy
        last = int(torch.multinomial(policy, 1, generator=self.generator))
        change = _standardised(norms.diff(prepend=norms[:1]))[last]
        length = round(W - d + 2 * d * float(torch.sigmoid(change / settings.length_temperature)))
        end = max(last + 1, settings.min_steps + 1)
        length = min(max(length, 1), end - settings.min_steps)
        return Window(end - length, end)

    def own_state(self) -> dict[str, Any]:
        """The policy's reference, and the extreme means of norms."""
        return super().own_state() | {"reference": self._reference, "means": self._means}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_own_state(state)
        self._reference, self._means = state["reference"], state["means"]


def _standardised(values: Tensor) -> Tensor:  # [T]
    deviation = values.std(correction=0)
    return (values - values.mean()) / deviation if deviation > 0 else torch.zeros_like(values)
