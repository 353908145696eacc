"""Snapshots of experts as judges of training images: what they see in them, and how difficult these are to them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast.data import Dataset, take_statistics
from ddfast.engine.students.features import features_of
from ddfast.experts.trajectories import TrajectoryStore
from ddfast.runtime.files import remembered

CHUNK = 256  # images that an expert classifies at a time
STATISTICS = 4096  # training images, for its batch norms
SCORES = ("forgetting", "grand", "el2n")
SCORED_EPOCH = 10  # whose snapshots EL2N and GraNd look at by default
NEVER_LEARNT = ("first", "last")


class Judges:
    """Experts' snapshots in one network, in eval mode; batch norms by statistics of some training images, for snapshots
    hold none."""

    def __init__(
        self,
        network: nn.Module,  # of the experts, on the device where they judge
        experts: TrajectoryStore | None,
        count: int | None,  # of them that are used; None: all
        data: Dataset,
    ) -> None:
        self.experts, self.data, self._network = experts, data, network
        self.count = experts.num_experts if count is None and experts is not None else count
        self.device = next(network.parameters()).device
        self._loaded: tuple[int, int] | None = None

    def network(self, expert: int, epoch: int | None = None) -> nn.Module:
        """One expert at an epoch, None for the last; in eval mode, until another one is asked for."""
        if self.experts is None:
            raise ValueError(
                "labels: a set with classes gets soft labels from experts, and this run has none; give labels hard"
            )
        epoch = self.experts.epochs if epoch is None else epoch
        if (expert, epoch) != self._loaded:
            snapshot = self.experts.snapshot(expert, epoch)
            vector_to_parameters(snapshot.to(self.device), self._network.parameters())
            take_statistics(self._network, self.data, self.device, STATISTICS)
            self._loaded = expert, epoch
        return self._network

    @torch.no_grad()
    def logits(
        self, expert: int, images: Tensor, epoch: int | None = None
    ) -> Tensor:  # [I, C, H, W], on the CPU -> [I, K]
        """One expert's, of an epoch; None: of the last."""
        network = self.network(expert, epoch)
        return torch.cat([network(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def in_turn(self, n: int, images: Tensor) -> Tensor:  # [I, C, H, W], on the CPU -> [I, K]
        """Logits of the n-th of them, counted round and round: soft labels of the n-th set of real images."""
        return self.logits(n % self.count, images)

    @torch.no_grad()
    def features(self, expert: int, images: Tensor) -> Tensor:  # [I, C, H, W], on the CPU -> [I, F]
        """What one expert's last snapshot gives to its last linear layer."""
        network = self.network(expert)
        return torch.cat([features_of(network, part.to(self.device))[0].cpu() for part in images.split(CHUNK)])

    def known(self, images: Tensor, classes: Tensor) -> Tensor:  # [I, C, H, W], int64 [I] -> [I, K]
        """The mean over those experts that classify an image correctly; over all of them where none does."""
        total = right = number = 0
        for expert in range(self.count):
            logits = self.logits(expert, images)
            correct = (logits.argmax(1) == classes)[:, None]
            total, right, number = total + logits, right + logits * correct, number + correct.long()
        return torch.where(number > 0, right / number.clamp(min=1), total / self.count)

    def difficulty(self, score: str, epoch: int | None = None, never_learnt: str = "first") -> Tensor:  # float32 [N]
        """How difficult every training image is: a score's mean over the experts that are used, larger for harder.

        score "el2n": the norm of softmax − onehot; "grand": the norm of the cross-entropy's gradient in the last
        linear layer's weights and bias (both Paul et al. 2021, of the snapshots of `epoch`; None for 10, or the nearest
        kept one). "forgetting": how often an image that was classified correctly at the end of an epoch is not at the
        next one's (Toneva et al. 2019, who count as minibatches meet the images); one that is never classified
        correctly counts as more often forgotten than any ("first", theirs), or never ("last", as some codes have it).

        The scores are kept beside the experts. Errors: ValueError for an epoch that is not kept.
        """
        kept = self.experts.kept_epochs
        if epoch is None:
            epoch = min(kept, key=lambda e: abs(e - SCORED_EPOCH))
        elif epoch not in kept and score != "forgetting":
            raise ValueError(
                f"select_epoch: {self.experts.path} holds {self.experts.words_of_kept()}, got {epoch}; give one of them"
            )
        how: dict[str, Any] = {"score": score, "experts": self.count, "data": self.data.fingerprint}
        how |= {"never_learnt": never_learnt, "epochs": kept[1:]} if score == "forgetting" else {"epoch": epoch}
        named = f"{score}-{never_learnt if score == 'forgetting' else epoch}-{self.count}"
        file = self.experts.path / f"difficulty-{named}.safetensors"

        def of(expert: int) -> Tensor:
            if score == "forgetting":
                return self._forgotten(expert, kept[1:], never_learnt)
            return torch.cat(list(self._errors(expert, epoch, score)))

        def compute() -> dict[str, Tensor]:
            return {"scores": torch.stack([of(expert) for expert in range(self.count)]).mean(0)}

        return remembered(file, how, compute)["scores"]

    @torch.no_grad()
    def _errors(self, expert: int, epoch: int, score: str) -> Iterator[Tensor]:  # [I] each
        network = self.network(expert, epoch)
        for images, labels in self.data.train_batches(self.device).in_order(CHUNK):
            features, logits = features_of(network, images)
            error = logits.softmax(1)
            error[torch.arange(len(labels)), labels] -= 1
            norm = error.norm(dim=1)
            # the gradient in the weights is error ⊗ features, in the bias error
            yield (norm if score == "el2n" else norm * (1 + features.square().sum(1)).sqrt()).float().cpu()

    @torch.no_grad()
    def _forgotten(self, expert: int, epochs: list[int], never_learnt: str) -> Tensor:  # float32 [N]
        count = torch.zeros(len(self.data.train_labels))
        before = torch.zeros(len(count), dtype=torch.bool)
        ever = before.clone()
        for epoch in epochs:
            network = self.network(expert, epoch)
            batches = self.data.train_batches(self.device).in_order(CHUNK)
            right = torch.cat([(network(images).argmax(1) == labels).cpu() for images, labels in batches])
            count += before & ~right
            before, ever = right, ever | right
        return torch.where(ever, count, count.max() + 1 if never_learnt == "first" else 0.0)
