"""What is measured of a trained network: its accuracy on test images, and its scores."""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ddfast.data import Batches, Dataset
from ddfast.evaluation.corruptions import SEVERITIES, corrupted, corruptions
from ddfast.evaluation.scores import calibration_error, confusion, log_loss
from ddfast.runtime import seeds

log = logging.getLogger("ddfast")

BATCH = 256
MOST_CORRUPTED = 2000  # test images


@dataclass(frozen=True)
class Judge:
    """Records of trained networks: "accuracy" on all test images in percent, and "held_out", where the data set holds
    out images, on these; with `scores` also "confusion" [K][K],
    "calibration_error" and "log_loss", and "robust", accuracies on 2000 corrupted test images at most."""

    data: Dataset
    device: torch.device
    scores: bool = False

    @cached_property
    def corruptions(self) -> list[str]:
        """Of which the accuracies are measured: none without scores."""
        return corruptions() if self.scores else []

    @cached_property
    def _test(self) -> Batches:
        return self.data.test_batches(self.device)

    @cached_property
    def _chosen(self) -> Tensor:  # int64, of the test images that are corrupted: those that are whole
        count = len(self.data.test_labels)
        return torch.arange(count)[:: max(1, count // MOST_CORRUPTED)][:MOST_CORRUPTED]

    @cached_property
    def _held(self) -> Batches:
        return self.data.held_batches(self.device)

    def __call__(self, net: nn.Module, what: str | None) -> dict[str, Any]:
        """The record of a network; a warning that names `what` where its logits are not finite."""
        logits, labels = logits_of(net, self._test)
        record: dict[str, Any] = {"accuracy": _percent(logits, labels, what)}
        if self.data.held_images is not None:
            record["held_out"] = accuracy(net, self._held, None)
        if self.scores:
            record |= {
                "confusion": confusion(logits, labels, self.data.num_classes).tolist(),
                "calibration_error": calibration_error(logits, labels),
                "log_loss": log_loss(logits, labels),
                "robust": {name: self._robust(net, name) for name in self.corruptions},
            }
        return record

    def _robust(self, net: nn.Module, name: str) -> float:
        """The mean accuracy over severities of a corruption, in percent."""
        found = []
        for severity in SEVERITIES:
            generator = seeds.generator(0, "corruption", name, severity)  # the same for every network
            images = corrupted(self.data.test_images[self._chosen], name, severity, generator)
            batches = Batches(images, self.data.test_labels[self._chosen], self.data.preprocessing, self.device)
            found.append(accuracy(net, batches, None))
        return sum(found) / len(found)


def accuracy(net: nn.Module, test: Batches, what: str | None) -> float:
    """Share of images classified correctly, in percent; a warning that names `what` where logits are not finite."""
    return _percent(*logits_of(net, test), what)


@torch.no_grad()
@seeds.same_algorithms()
def logits_of(net: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:  # [N, K], int64 [N]
    """Those of a network in eval mode."""
    net.eval()
    logits, labels = zip(*((net(images), labels) for images, labels in batches.in_order(BATCH)), strict=True)
    return torch.cat(logits), torch.cat(labels)


def _percent(logits: Tensor, labels: Tensor, what: str | None) -> float:
    percent = 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
    if what is not None and not logits.isfinite().all():
        log.warning(
            "%s: training diverged (logits are not finite); its accuracy of %.1f%% is meaningless", what, percent
        )
    return percent
