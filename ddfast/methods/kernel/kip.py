"""KIP: a set on which kernel regression predicts the real images' labels."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddfast.data import Dataset, SyntheticSet
from ddfast.methods.base import Method, Needs
from ddfast.methods.descent import Adam
from ddfast.methods.kernel.conv_kernel import LARGEST, ConvKernel
from ddfast.methods.kernel.kernels import AnyKernel, Kernel, predicted, solved
from ddfast.methods.learned_set import LearnedSet
from ddfast.methods.settings import OUTER, SetSettings
from ddfast.runtime.options import AtLeast1, Option, Positive

LOGIT = 5.0  # of a label that is 1: the set's label logits are so many times KIP's labels


@dataclass(frozen=True, kw_only=True)
class KIPSettings(SetSettings):
    """Options of KIP. Images and labels are learned by Adam with betas (0.9, 0.999)."""

    lr_img: float = 0.04
    img_optimizer: Literal["sgd", "adam"] = "adam"
    dsa_strategy: str = "none"
    kernel: Annotated[Literal["ntk", "nngp"], Option(OUTER, "Of infinitely wide networks.")] = "ntk"
    kernel_network: Annotated[
        Literal["fc", "conv"], Option(OUTER, "Fully connected, or, up to 16 pixels, blocks of convolution and pool.")
    ] = "fc"
    kernel_depth: Annotated[AtLeast1, Option(OUTER, "Hidden layers, or blocks.")] = 1
    kernel_reg: Annotated[Positive, Option(OUTER, "Ridge, over the mean of the kernel's diagonal.")] = 1e-6
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images that are predicted, as many of each class.")] = 5000

    BETAS = (0.9, 0.999)
    FIRST_LOGIT = LOGIT


class KIP(Method):
    """Kernel inducing points (Nguyen et al. 2021, arXiv:2011.00050, Algorithm 1).

    ½ mean |K_ts (K_ss + λI)⁻¹ y_s − y_t|² falls, in float64, over labels that are one-hot − 1/K. With labels soft y_s
    is learned too, and the set's label logits are 5 y_s. The kernel is that of an infinitely wide network, whose
    accuracy on the test images is in the summary; the run's own network is what the set is evaluated on.
    """

    Settings, needs = KIPSettings, Needs(real_data=True)

    def learn(self, synthetic: SyntheticSet) -> LearnedSet:
        """Images, and labels by Adam too."""
        learned = super().learn(synthetic)
        if learned.labels_at is not None:
            learned.descent.learn(learned.labels_at, self.settings.lr_label, Adam(self.settings.BETAS))
        return learned

    @classmethod
    def check(cls, settings: Any, data: Dataset, network: nn.Module) -> None:
        """ValueError where a kernel of convolutions is too large, or has more blocks than the images can be halved."""
        super().check(settings, data, network)
        if settings.kernel_network == "fc":
            return
        if max(data.image_size) > LARGEST:
            raise ValueError(
                f"kernel_network: conv holds all pairs of pixels; expected images of at most {LARGEST} pixels a side, "
                f"got {data.image_size[0]} × {data.image_size[1]}; give image_size {LARGEST // 2}"
            )
        if min(data.image_size) < 2**settings.kernel_depth:
            side, depth = min(data.image_size), settings.kernel_depth
            raise ValueError(f"kernel_depth: images of {side} pixels cannot be halved {depth} times")

    @property
    def kernel(self) -> AnyKernel:
        """That of the settings."""
        kind = Kernel if self.settings.kernel_network == "fc" else ConvKernel
        return kind(self.settings.kernel, self.settings.kernel_depth)

    def _step(self) -> dict[str, Any]:
        settings: KIPSettings = self.settings
        taken = self.learned.take()
        values = [value.detach().requires_grad_() for value in taken.values]
        labels = self.learned.labels_of(values, taken.labels)
        images = self.learned.see(values, self.generator)
        support, targets = self.kernel.points(images), self._targets(labels)
        weights = solved(self.kernel, support, targets, settings.kernel_reg)
        x, y = self._real()
        loss, right, by_support, by_weights = self._over_blocks(x, y, support.detach(), weights.detach())
        gradients = torch.autograd.grad(
            [support, weights], values, [by_support, by_weights], allow_unused=True, materialize_grads=True
        )
        verdict = self.learned.update(taken, loss.to(values[0].dtype), list(gradients))
        return {**self.learned.record(verdict), "accuracy": 100 * right / len(x)}

    def _over_blocks(
        self, x: Tensor, y: Tensor, support: Tensor, weights: Tensor
    ) -> tuple[Tensor, int, Tensor, Tensor]:  # the loss [], how many it predicts, gradients in support and weights
        loss, right = x.new_zeros(()), 0
        by_support, by_weights, first = torch.zeros_like(support), torch.zeros_like(weights), 0
        for rows in self.kernel.blocks(x, len(support)):
            wanted = y[first : first + len(rows)]
            first += len(rows)
            s, w = support.requires_grad_(), weights.requires_grad_()
            with torch.enable_grad():
                guess = self.kernel(rows, s) @ w
                part = (guess - wanted).square().sum() / (2 * y.numel())
            for total, slope in zip((by_support, by_weights), torch.autograd.grad(part, (s, w)), strict=True):
                total += slope
            loss, right = loss + part.detach(), right + int((guess.argmax(1) == wanted.argmax(1)).sum())
        return loss, right, by_support, by_weights

    def _real(self) -> tuple[Tensor, Tensor]:  # [n, d], [n, K]
        K = len(self.learned.about.class_names)
        each = -(-self.settings.batch_real // K)
        images = [self.real.of_class(k, each) for k in range(K)]
        classes = torch.arange(K, device=self.device).repeat_interleave(torch.tensor(list(map(len, images))))
        return self.kernel.points(torch.cat(images)), self._targets(classes)

    def _targets(self, labels: Tensor) -> Tensor:  # int64 [I], or logits [I, K] -> [I, K]
        K = len(self.learned.about.class_names)
        weights = labels.double() / LOGIT if labels.is_floating_point() else one_hot(labels, K).double()
        return weights - 1 / K

    @torch.no_grad()
    def at_end(self, data: Dataset) -> dict[str, float]:
        """The accuracy of the kernel's predictions of the test images, in percent."""
        taken = self.learned.take()
        labels = self.learned.labels_of(taken.values, taken.labels)
        support = self.kernel.points(self.learned.see(taken.values, self.generator))
        weights, right = solved(self.kernel, support, self._targets(labels), self.settings.kernel_reg), 0
        test = data.test_batches(self.device)
        for images, classes in test.in_order(1000):
            right += int(
                (predicted(self.kernel, support, weights, self.kernel.points(images)).argmax(1) == classes).sum()
            )
        return {"kernel_accuracy": 100 * right / len(test)}
