"""LD: labels that are learned for real images, which stay as they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ddfast.data import Dataset, SyntheticSet
from ddfast.engine.data_loss import data_loss
from ddfast.engine.inner_loop import Unroll
from ddfast.engine.optimizers import SGD, Adam
from ddfast.engine.students import Features, Step, expect_features
from ddfast.engine.unroll import unroll
from ddfast.methods.base import Resources
from ddfast.methods.bptt.settings import UNROLL, Norms, ThroughTimeSettings
from ddfast.methods.bptt.through_time import ThroughTime
from ddfast.methods.settings import SetSettings
from ddfast.runtime.options import AtLeast1, Option, Positive

AVERAGE = 0.01  # of the last layer's weights, towards the ridge's
CALIBRATION_LR = 0.01


@dataclass(frozen=True, kw_only=True)
class LDSettings(ThroughTimeSettings):
    """Options of LD. Labels are learned by Adam."""

    init: str = "real"
    labels: str = "soft"
    lr_img: float = 0.0
    lr_label: float = 1e-3
    lr_teacher: float = 0.01
    image_norm: Norms = "none"
    clip: float | None = None
    dsa_strategy: str = "none"
    total_steps: AtLeast1 = 1
    inner_optimizer: Literal["adam", "sgd"] = "sgd"
    label_form: Annotated[
        Literal["second_order", "ridge"], Option(UNROLL, "Through a step of SGD, or a last layer in closed form.")
    ] = "second_order"
    batch_base: Annotated[
        AtLeast1 | None, Option(UNROLL, "Images of the set in a step.", "10, 25 or 50 by their number")
    ] = None
    patience: Annotated[
        AtLeast1 | None, Option(UNROLL, "Steps without a smaller loss after which a network begins anew.", "50 or 200")
    ] = None
    label_ridge: Annotated[Positive, Option(UNROLL, "Of the last layer in closed form.")] = 1.0

    LABELS = ("soft",)
    FIRST_LOGIT = 0.0  # 1/K each

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_img:
            raise ValueError(f"lr_img: images stay as they are; expected 0, got {self.lr_img}")
        if self.total_steps != 1:
            raise ValueError(f"total_steps: expected 1, got {self.total_steps}")

    def timed(self) -> tuple[Self, float]:
        """As it is."""
        return replace(self, init="noise"), 1.0


class LD(ThroughTime):
    """Label distillation (Bohdal et al. 2020, arXiv:2006.08572, Algorithm 1).

    A network is trained on minibatches of the set by Adam. Before each step, the labels take one down the loss on real
    images: through a step of SGD, or through a last layer that is solved for in closed form on the network's features,
    with a learned scale of its logits. A network begins anew when the moving mean of that loss has not fallen for
    `patience` steps. Labels are probabilities, uniform at first.
    """

    Settings = LDSettings

    def __init__(self, settings: LDSettings, synthetic: SyntheticSet, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        count = len(synthetic)
        self._batch = min(count, settings.batch_base or (10 if count < 50 else 25 if count < 100 else 50))
        self._patience = settings.patience or (50 if count <= 100 else 200)
        self._state: dict[str, Any] = {}

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError for a network without features, where they are looked at."""
        if settings.label_form == "ridge":
            expect_features(network, data.train_images.shape[1:])

    def _step(self) -> dict[str, Any]:
        settings: LDSettings = self.settings
        self._state = self._state or self._begun()
        net = self.blank_network().train()
        vector_to_parameters(self._state["theta"], net.parameters())
        student, taken = self.student_of(net), self.learned.take()
        values = [
            value.detach().requires_grad_(place == self.learned.labels_at) for place, value in enumerate(taken.values)
        ]
        images, labels = self.seen(values, taken)
        chosen = torch.randperm(len(images), generator=self.generator)[: self._batch].to(self.device)
        theta, real = self._state["theta"], self.draw_real()
        if settings.label_form == "ridge":
            loss, more = self._through_ridge(net, images[chosen], labels[chosen], *real)
        else:
            rate = self.learned.about.lr.to(self.device)
            after = unroll(
                student, theta, images, labels, rate, batches=chosen[None], optimizer=SGD(), adjoint=self.adjoint
            )
            loss, more = data_loss(student, after, real, at_once=self.real_at_once(student)), {}
        gradients = torch.autograd.grad(loss, values[self.learned.labels_at])
        all_gradients = [torch.zeros_like(value) for value in values]
        all_gradients[self.learned.labels_at] = gradients[0]
        verdict = self.learned.update(taken, loss.detach(), all_gradients)
        self._train(student, images.detach(), chosen, more)
        begins = self._count(float(loss.detach()))
        return {**self.learned.record(verdict), **({"restart_after": begins} if begins else {})}

    def _begun(self) -> dict[str, Any]:
        """A new network's state."""
        theta = parameters_to_vector(self.new_network().parameters()).detach()
        moments = tuple(torch.zeros_like(theta) for _ in range(2))
        kept = {name: self._state[name] for name in ("scale", "restarts") if name in self._state}
        first = {"scale": [1.0, 0.0, 0.0, 0], "restarts": []}
        return first | kept | {"theta": theta, "moments": moments, "k": 0, "losses": [], "best": math.inf, "since": 0}

    @torch.no_grad()
    def _train(self, student: Any, images: Tensor, chosen: Tensor, more: dict[str, Tensor]) -> None:
        """A step of Adam on the same minibatch with its new labels."""
        state, labels = self._state, self.learned.take().values[self.learned.labels_at].detach()
        adam = Adam()
        loop = Unroll(student, 1, chosen[None], None, adam, return_states=False, first=state["k"])
        moments = tuple(moment[None] for moment in state["moments"])
        rate = torch.tensor(1e-3, device=self.device)
        theta, moments, _ = loop.step(state["theta"][None], moments, images, labels, rate, 0, Step())
        theta = theta[0]
        if "last_layer" in more:
            last = more["last_layer"]
            theta = torch.cat([theta[: -len(last)], torch.lerp(theta[-len(last) :], last, AVERAGE)])
        self._state = state | {"theta": theta, "moments": tuple(m[0] for m in moments), "k": state["k"] + 1}

    def _through_ridge(
        self, net: nn.Module, base: Tensor, labels: Tensor, images: Tensor, classes: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:  # the loss [], the last layer's parameters
        """The loss of a last layer W = (ΦᵀΦ + λI)⁻¹ Φᵀ Y, differentiable in Y."""
        features = Features([net], base.shape[1:], self.resources.precision)
        with torch.no_grad():
            of_base, of_real = (pad(features(x)[0].double(), (0, 1), value=1.0) for x in (base, images))
        gram = of_base.T @ of_base + self.settings.label_ridge * torch.eye(
            of_base.shape[1], dtype=of_base.dtype, device=of_base.device
        )
        weights = torch.linalg.solve(gram, of_base.T @ labels.double())  # [F + 1, K]
        *held, k = self._state["scale"]
        calibration, m, v = (torch.tensor(x, dtype=torch.float64, device=base.device) for x in held)
        calibration.requires_grad_()
        loss = cross_entropy(calibration * (of_real @ weights), classes)
        (slope,) = torch.autograd.grad(loss, calibration, retain_graph=True)
        rate = torch.full_like(slope, CALIBRATION_LR)
        scale, moments = Adam().step(calibration.detach(), (m, v), slope, rate, k + 1)
        self._state = self._state | {"scale": [*map(float, (scale, *moments)), k + 1]}
        last = weights.detach()
        return loss.float(), {"last_layer": torch.cat([last[:-1].T.reshape(-1), last[-1]]).float()}

    def _count(self, loss: float) -> int:
        """Keep the loss; how many steps the network had, where it is to begin anew, else 0."""
        state, patience = self._state, self._patience
        losses = [*state["losses"], loss][-patience:]
        mean, since = sum(losses) / len(losses), state["since"] + 1
        best = state["best"]
        if len(losses) == patience and mean < best:
            best, since = mean, 0
        self._state = state | {"losses": losses, "best": best, "since": since}
        if since < 2 * patience:
            return 0
        self._state = self._state | {"restarts": [*state["restarts"], state["k"]][-3:]}
        begins, self._state = state["k"], self._begun()
        return begins

    def at_end(self, data: Dataset) -> dict[str, float]:
        """How many steps a network is best trained for: the mean of the last three."""
        restarts: Sequence[int] = self._state.get("restarts", [])
        return {"steps_to_train": sum(restarts) / len(restarts)} if restarts else {}

    def own_state(self) -> dict[str, Any]:
        """The network, and its moving mean."""
        return super().own_state() | {"state": self._state}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_own_state(state)
        moved = {"moments": tuple(moment.to(self.device) for moment in state["state"].get("moments", ()))}
        if "theta" in state["state"]:
            moved["theta"] = state["state"]["theta"].to(self.device)
        self._state = state["state"] | moved if state["state"] else {}
