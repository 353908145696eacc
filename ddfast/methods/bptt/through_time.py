"""What the methods share that differentiate through training: an outer step, its draws, and what is learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ddfast.data import SyntheticSet
from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.data_loss import AT_ONCE, data_loss
from ddfast.engine.inner_loop import Unroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import RankBatches, Step, StepBytes, Student, student_of
from ddfast.engine.unroll import unroll
from ddfast.methods.base import Method, Needs, Resources
from ddfast.methods.bptt.labels import SimplexSet
from ddfast.methods.bptt.settings import ThroughTimeSettings
from ddfast.methods.learned_set import IMAGES, LearnedSet, Taken
from ddfast.methods.settings import INITS
from ddfast.runtime.devices import to_device

REAL_BYTES = 2**30  # of a pass over real images
SOME = 16  # images, by which it is found out what one takes
EMA = 0.9  # of the norms that clipping goes by


@dataclass(frozen=True)
class Window:
    """Which inner steps an outer step makes."""

    begin: int  # those before it are ordinary steps
    end: int


@dataclass(frozen=True)
class Inner:
    """The draws of a training on the synthetic set."""

    batches: Tensor | None  # int64 [T, B]
    augment: Any  # data.augment.Draws, or None


class ThroughTime(Method):
    """min over S of ℓ(θ_T(S); real images): θ_T is a random network after T inner steps on S (Wang et al. 2018, eq. 3).

    The gradient through the window is exact, by an adjoint that keeps no graph. A method is a subclass: its Settings,
    and which `window` a step has.
    """

    Settings: ClassVar[type[ThroughTimeSettings]] = ThroughTimeSettings
    needs = Needs(real_data=True, unroll=True)

    def __init__(self, settings: ThroughTimeSettings, synthetic: SyntheticSet, resources: Resources) -> None:
        if settings.image_norm != "none" and settings.init in INITS:
            synthetic = replace(synthetic, images=_of_norm_1(synthetic.images))
        super().__init__(settings, synthetic, resources)
        classes = synthetic.classes
        self._members = [(classes == k).nonzero()[:, 0] for k in range(len(synthetic.class_names))]
        self._norm = 0.0
        self._of_some: tuple[StepBytes | None] | None = None
        self.use_plan(resources.plan)

    def learn(self, synthetic: SyntheticSet) -> LearnedSet:
        """Images, the student's learning rate where it has one, and labels as probabilities."""
        lr_lr = self.settings.lr_lr or None
        if synthetic.is_hard:
            return LearnedSet(synthetic, self.settings, self.device, lr_lr=lr_lr)
        return SimplexSet(synthetic, self.settings, self.device, lr_lr=lr_lr)

    def use_plan(self, plan: Plan | None) -> None:
        """Compute the next outer steps like this; None: keep no activations."""
        self.adjoint = CheckpointedUnroll(plan=plan)

    def window(self, net: nn.Module, student: Student) -> Window:
        """The steps of this outer step: all of them, unless a method says otherwise."""
        settings = self.settings
        return Window(settings.total_steps - settings.longest_window, settings.total_steps)

    def rates(self, values: Sequence[Tensor]) -> Tensor:  # [] or [T]
        """The learning rate of the inner steps."""
        at = self.learned.lr_at
        return self.learned.about.lr.to(self.device) if at is None else values[at]

    def after(
        self,
        net: nn.Module,
        last: Tensor,  # [P], its parameters after the training
        real: tuple[Tensor, Tensor],
    ) -> dict[str, Any]:
        """What a method learns from the trained network, and adds to the record."""
        return {}

    def own_state(self) -> dict[str, Any]:
        """The average of the norms that clipping goes by."""
        return {"norm": self._norm}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._norm = state["norm"]

    def _step(self) -> dict[str, Any]:
        settings: ThroughTimeSettings = self.settings
        net = self.network()
        student = self.student_of(net)
        start = parameters_to_vector(net.parameters()).detach()
        window = self.window(net, student)
        inner = self.draw_inner(window.end)
        taken = self.learned.take()
        values = [value.detach().requires_grad_() for value in taken.values]
        images, labels = self.seen(values, taken)
        with self.dropout(net):
            last = unroll(
                student,
                start,
                images,
                labels,
                self.rates(values),
                **({"syn_steps": window.end} if inner.batches is None else {"batches": inner.batches}),
                augment=inner.augment,
                optimizer=settings.optimizer,
                detached_steps=window.begin,
                adjoint=self.adjoint,
            )
            real = self.draw_real()
            loss = data_loss(student, last, real, at_once=self.real_at_once(student))
        gradients = list(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))
        more = self.after(net, last.detach(), real)
        norm = self._clip(gradients)
        verdict = self.learned.update(taken, loss.detach(), gradients)
        if settings.image_norm == "always" and verdict.updated:
            self.learned.descent.put(IMAGES, _of_norm_1(self.learned.descent.now()[IMAGES]))
        return {
            **self.learned.record(verdict),
            **norm,
            "steps": window.end,
            "window": window.end - window.begin,
            **more,
        }

    def network(self) -> nn.Module:
        """That of an outer step: a new one."""
        return self.new_network().train()

    @property
    def image(self) -> torch.Size:  # [C, H, W]
        """The size of what networks see."""
        return torch.Size((len(self.learned.about.preprocessing.mean), *self.learned.about.image_size))

    def student_of(self, net: nn.Module) -> Student:
        """The network's flat parameters; its minibatches are shared by all processes."""
        student = student_of(net, self.resources.precision, self.image)
        return RankBatches(student, self.ranks) if self.ranks.size > 1 else student

    def seen(
        self, values: Sequence[Tensor], taken: Taken
    ) -> tuple[Tensor, Tensor]:  # [J, C, H, W]; int64 [J] or [J, K]
        """The synthetic images as networks see them, and their labels; `values`: those of `taken`, differentiable."""
        return self.learned.see(values, self.generator), self.learned.labels_of(values, taken.labels)

    def draw_inner(self, steps: int) -> Inner:
        """Minibatches and augmentations of so many inner steps."""
        settings, about = self.settings, self.learned.about
        count, batches = len(about), None
        whole = settings.per_class is None or settings.per_class >= max(map(len, self._members))
        if not whole or (settings.classes_per_step or len(self._members)) < len(self._members):
            rows = [self._minibatch() for _ in range(steps)]
            batches, count = to_device(torch.stack(rows), self.device), len(rows[0])
        return Inner(batches, self.augment.draw_steps(steps, count, about.image_size, self.generator))

    def _minibatch(self) -> Tensor:  # int64 [B]
        """Images of some classes, as many of each; again where a class has fewer."""
        held = [members for members in self._members if len(members)]
        wanted = min(self.settings.classes_per_step or len(held), len(held))
        chosen = torch.randperm(len(held), generator=self.generator)[:wanted].tolist()
        most = self.settings.per_class or max(map(len, held))

        def some(members: Tensor) -> Tensor:
            orders = [torch.randperm(len(members), generator=self.generator) for _ in range(-(-most // len(members)))]
            return members[torch.cat(orders)[:most]]

        return torch.cat([some(held[k]) for k in sorted(chosen)])

    def draw_real(self) -> tuple[Tensor, Tensor]:  # [B, C, H, W], int64 [B]
        """Real images, augmented like the synthetic ones are, by a draw of their own."""
        images, labels = self.real.minibatch(self.settings.batch_real)
        draws = self.augment.draw_steps(1, len(images), self.learned.about.image_size, self.generator)
        return (images if draws is None else draws(images, 0)), labels

    def real_at_once(self, student: Student) -> int:
        """How many real images go through the network at once: at most what REAL_BYTES hold."""
        if self._of_some is None:  # the same for every network of the run, and found out by a pass of some kinds
            on_gpu = self.device.type == "cuda"
            self._of_some = (student.step_bytes(torch.Size((SOME, *self.image)), 1, torch.float32, on_gpu),)
        (step,) = self._of_some
        return AT_ONCE if step is None else max(1, min(AT_ONCE, SOME * REAL_BYTES // step.grad))

    @torch.no_grad()
    def probe(self, net: nn.Module, student: Student, steps: int) -> Tensor:  # [T], on the CPU
        """‖g_n‖ of the steps of an ordinary training of this network on the set as it is."""
        inner, taken = self.draw_inner(steps), self.learned.take()
        images, labels = self.seen(taken.values, taken)
        theta = parameters_to_vector(net.parameters()).detach()[None]
        loop = Unroll(student, steps, inner.batches, inner.augment, self.settings.optimizer, return_states=False)
        moments, norms = loop.optimizer.begin(theta), []
        rates = self.rates(taken.values).expand(steps)
        with self.dropout(net):
            for n in range(steps):
                theta, moments, gradient = loop.step(theta, moments, images, labels, rates[n], n, Step())
                norms.append(gradient.norm())
        return torch.stack(norms).cpu()

    def _clip(self, gradients: list[Tensor]) -> dict[str, float]:
        """Shorten the gradient in the images to `clip` times the average of its norms (Feng et al. 2024)."""
        if self.settings.clip is None:
            return {}
        norm = float(gradients[IMAGES].norm())
        if norm < torch.inf:  # NaN is not
            self._norm = EMA * self._norm + (1 - EMA) * norm if self._norm else norm
            longest = self.settings.clip * self._norm
            if norm > longest:
                gradients[IMAGES] = gradients[IMAGES] * (longest / norm)
        return {"gradient_norm": norm}


def _of_norm_1(images: Tensor) -> Tensor:  # [I, …]
    """Each image scaled to Euclidean norm 1."""
    norms = images.flatten(1).norm(dim=1).clamp(min=1e-12)
    return images / norms.view(-1, *[1] * (images.dim() - 1))
