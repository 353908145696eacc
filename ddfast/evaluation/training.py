"""Networks trained side by side by a protocol."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddfast.data import DSA, DCAugmentation
from ddfast.data.cutmix import cutmix
from ddfast.engine.students import GSAM, Training
from ddfast.evaluation.protocols import Protocol
from ddfast.runtime import seeds

Minibatches = Iterable[tuple[Tensor, Tensor]]  # images [B, C, H, W], targets int64 [B] or [B, K]
DECAYS = {
    "sgd": {"momentum": 0.9, "weight_decay": 5e-4},
    "adam": {},
    "adamw": {"weight_decay": 0.01},
}


@seeds.same_algorithms()
def train_networks(
    nets: list[nn.Module],
    epochs_of: Sequence[Callable[[torch.Generator], Minibatches]],
    augment: DSA | DCAugmentation,
    protocol: Protocol,  # with its rate
    generators: list[torch.Generator],
    image: torch.Size,  # [C, H, W]
    *,
    sharpness: GSAM | None = None,
    look: Callable[[int, nn.Module], None] | None = None,
    look_every: int = 1,
) -> None:
    """Train networks in place, side by side, each on minibatches of its own, one epoch's per call with its generator.
    CutMix takes targets that are weights. `look` is called after every so many epochs, with the number of a network and
    itself, as it is then."""
    how: dict[str, Any] = {"optimizer": protocol.optimizer, **DECAYS[protocol.optimizer]}
    how |= {} if protocol.weight_decay is None else {"weight_decay": protocol.weight_decay}
    training = Training(nets, image, lr=protocol.lr, sharpness=sharpness, **how)
    drops, device = protocol.drops(protocol.epochs), next(nets[0].parameters()).device
    with seeds.dropout_from(generators[0], device):  # networks with dropout are trained alone
        for epoch in range(protocol.epochs):
            if epoch in drops:
                for group in training.optimizer.param_groups:
                    group["lr"] = protocol.lr * protocol.factor ** sum(drop <= epoch for drop in drops)
                if protocol.loses_momentum:
                    training.optimizer.state.clear()
            epochs_now = (epoch_of(generator) for epoch_of, generator in zip(epochs_of, generators, strict=True))
            for minibatches in zip(*epochs_now, strict=True):
                images, targets = (torch.stack(column) for column in zip(*minibatches, strict=True))
                images = augment.side_by_side(images, generators)
                if protocol.cutmix:
                    images, targets = _mixed(images, targets, protocol.cutmix, generators)
                training.step(images, targets)
            if look is not None and (epoch + 1) % look_every == 0:
                for n, net in enumerate(training.write()):
                    look(n, net)
                    net.train()
    training.write()


def _mixed(
    images: Tensor,  # [S, B, C, H, W]
    targets: Tensor,  # weights [S, B, K]
    probability: float,
    generators: list[torch.Generator],
) -> tuple[Tensor, Tensor]:  # like them
    """Each network's minibatch after CutMix, or as it is."""
    pairs = []
    for own, weights, generator in zip(images, targets, generators, strict=True):
        is_mixed = float(torch.rand((), generator=generator)) < probability
        pairs.append(cutmix(own, weights, generator) if is_mixed else (own, weights))
    mixed, weights = (torch.stack(column) for column in zip(*pairs, strict=True))
    return mixed, weights
