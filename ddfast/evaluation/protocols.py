"""How networks are trained on a set and tested: the published protocols, and one with what was given in its place."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast.data import DSA, Batches, Dataset, DCAugmentation, augmentation
from ddfast.data.parameterisation import PIXELS, Pixels
from ddfast.data.recipe import Recipe
from ddfast.engine.students import GSAM, Training, side_by_side
from ddfast.ops.installation import build_info
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_one_of, expect_positive, expect_whole
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.files import digest_of_tensors

log = logging.getLogger("ddfast")

BATCH = 256


@dataclass(frozen=True)
class Protocol:
    """How networks are trained on a set: SGD with momentum 0.9 and weight decay 5e-4, or Adam, by default for so many
    epochs."""

    epochs: int
    batch: int
    drops: Callable[[int], tuple[int, ...]]  # of E epochs: those, from 0, that begin at a tenth of the rate before
    loses_momentum: bool = False  # at the drops
    lr: float | None = None  # None: the set's own, or 0.01 for one that has none
    adam: bool = False  # without weight decay
    recipe: bool = False  # the very steps that a set was learned for


def _at_half(epochs: int) -> tuple[int, ...]:
    return ((epochs + 1) // 2,)


def _as_mtt(epochs: int) -> tuple[int, ...]:
    """1001 epochs: 502 at the full rate, as MTT's code does after its epoch of index 501."""
    return ((epochs - 1) // 2 + 2,)


def _at_half_and_three_quarters(epochs: int) -> tuple[int, ...]:
    return (epochs + 1) // 2, (3 * epochs + 3) // 4


PROTOCOLS = {
    "ddfast": Protocol(1000, BATCH, _at_half),
    "mtt": Protocol(1001, BATCH, _as_mtt, loses_momentum=True),
    "datm": Protocol(1001, 128, _as_mtt, loses_momentum=True),
    "bptt": Protocol(1000, BATCH, lambda epochs: (), lr=1e-3, adam=True),
    "recipe": Protocol(1, BATCH, lambda epochs: (), lr=1.0, recipe=True),
    "simplified": Protocol(200, 100, _at_half_and_three_quarters, lr=0.01),
}


@dataclass(frozen=True)
class Schedule:
    """How networks are trained on a synthetic set."""

    protocol: Protocol  # with its rate
    dsa_strategy: str
    sharpness: GSAM | None
    device: torch.device
    at_once: int | None  # networks side by side
    recipe: Recipe | None = None

    def accuracies(
        self,
        name: str,
        data: Dataset,
        test: Batches,
        sets: list[tuple[Tensor, Tensor]],  # images [I, C, H, W] and targets, of each network
        generators: list[torch.Generator],  # of each network
        parameterisation: Pixels = PIXELS,
    ) -> Iterator[float]:
        """Test accuracies of networks after it."""
        augment = augmentation(self.dsa_strategy)
        if self.recipe is not None:
            yield from self._by_recipe(self.recipe, name, data, test, sets, generators)
            return

        def create(generator: torch.Generator) -> nn.Module:
            return all_networks.create(name, generator=generator, **data.network_arguments).to(self.device)

        while generators:
            first = create(generators[0])
            size = torch.Size((min(self.protocol.batch, len(sets[0][0])), data.channels, *data.image_size))
            together = side_by_side(first, len(generators), size, self.device, self.at_once)
            now, generators = generators[:together], generators[together:]
            epochs_of = [partial(self._epoch, *pair, parameterisation) for pair in sets[:together]]
            nets, sets = [first, *map(create, now[1:])], sets[together:]
            train_networks(nets, epochs_of, augment, self.protocol, now, size[1:], sharpness=self.sharpness)
            for net in nets:
                yield accuracy(net, test, f"{name} trained at rate {self.protocol.lr:g}")

    def _by_recipe(
        self,
        recipe: Recipe,
        name: str,
        data: Dataset,
        test: Batches,
        sets: list[tuple[Tensor, Tensor]],
        generators: list[torch.Generator],
    ) -> Iterator[float]:
        """Test accuracies of networks after a set's very steps, without augmentation."""
        for generator, (images, targets) in zip(generators, sets, strict=True):
            net = all_networks.create(name, generator=generator, **data.network_arguments).to(self.device)
            if recipe.start is not None:
                if len(recipe.start) != sum(p.numel() for p in net.parameters()):
                    raise ValueError(
                        f"networks: the set's recipe starts with another network's parameters than {name}'s"
                    )
                vector_to_parameters(recipe.start.to(self.device), net.parameters())
            training = Training([net], images.shape[1:], lr=1.0)
            with seeds.dropout_from(generator, self.device):
                for chosen, rate in zip(recipe.steps.to(self.device), recipe.rates.tolist(), strict=True):
                    training.optimizer.param_groups[0]["lr"] = rate
                    training.step(images[chosen][None], targets[chosen][None])
            training.write()
            yield accuracy(net, test, f"{name} trained by the recipe")

    def describe(self, data: Dataset) -> dict[str, Any]:
        """All that an accuracy depends on, besides the set, the network and the seed."""
        protocol, size = self.protocol, data.image_size
        return {
            "version": build_info()["versions"]["ddfast"],
            "device": self.device.type,
            "data": [data.fingerprint, data.test_fingerprint, data.preprocessing.describe()],
            "protocol": [protocol.epochs, protocol.batch, protocol.lr, protocol.drops(protocol.epochs)],
            "loses_momentum": protocol.loses_momentum,
            **({"adam": True} if protocol.adam else {}),
            **({} if self.recipe is None else {"recipe": digest_of_tensors(self.recipe.tensors(), {})}),
            "dsa_strategy": self.dsa_strategy,
            "sharpness": None if self.sharpness is None else [self.sharpness.rho, self.sharpness.alpha],
            "image_size": list(size),
        }

    def _epoch(
        self,
        images: Tensor,  # [I, C, …], what the parameterisation decodes
        targets: Tensor,  # int64 [I], or [I, K]
        parameterisation: Pixels,
        generator: torch.Generator,
    ) -> Iterable[tuple[Tensor, Tensor]]:  # images [B, C, H, W], targets
        for chosen in torch.randperm(len(images), generator=generator).to(self.device).split(self.protocol.batch):
            yield parameterisation.see(images[chosen], generator), targets[chosen]


def schedule_of(
    name: str,  # of the protocol
    eval_epochs: int | None,
    eval_batch: int | None,
    eval_lr: float | None,
    dsa_strategy: str,
    sam_rho: float | None,
    num_eval: int,
    device: str | torch.device | None,
    at_once: int | None,
) -> Schedule:
    """A protocol, with what was given in the place of its own; ValueError for what makes no sense."""
    given = {"epochs": eval_epochs, "batch": eval_batch, "lr": eval_lr}
    protocol = replace(protocol_named(name), **{field: value for field, value in given.items() if value is not None})
    at_once_or_1 = 1 if at_once is None else at_once
    expect_whole(num_eval=num_eval, eval_epochs=protocol.epochs, eval_batch=protocol.batch, at_once=at_once_or_1)
    for option, value in (("eval_lr", protocol.lr), ("sam_rho", sam_rho)):
        if value is not None:
            expect_positive(option, value)
    sharpness = None if sam_rho is None else GSAM(sam_rho, alpha=0.0)
    return Schedule(protocol, dsa_strategy, sharpness, resolve_device(device), at_once)


def protocol_named(protocol: str) -> Protocol:
    """One of PROTOCOLS; ValueError for another name."""
    expect_one_of("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]


@seeds.same_algorithms()
def train_networks(
    nets: list[nn.Module],
    epochs_of: Sequence[Callable[[torch.Generator], Iterable[tuple[Tensor, Tensor]]]],
    augment: DSA | DCAugmentation,
    protocol: Protocol,  # with its rate
    generators: list[torch.Generator],
    image: torch.Size,  # [C, H, W]
    *,
    sharpness: GSAM | None = None,
) -> None:
    """Train networks in place, side by side, each on minibatches (images [B, C, H, W], targets) of its own, one epoch's
    per call with its generator."""
    how = {"adam": True} if protocol.adam else {"momentum": 0.9, "weight_decay": 5e-4}
    training = Training(nets, image, lr=protocol.lr, sharpness=sharpness, **how)
    drops, device = protocol.drops(protocol.epochs), next(nets[0].parameters()).device
    with seeds.dropout_from(generators[0], device):  # networks with dropout are trained alone
        for epoch in range(protocol.epochs):
            if epoch in drops:
                for group in training.optimizer.param_groups:
                    group["lr"] = protocol.lr / 10 ** sum(drop <= epoch for drop in drops)
                if protocol.loses_momentum:
                    training.optimizer.state.clear()
            epochs_now = (epoch_of(generator) for epoch_of, generator in zip(epochs_of, generators, strict=True))
            for minibatches in zip(*epochs_now, strict=True):
                images, targets = (torch.stack(column) for column in zip(*minibatches, strict=True))
                training.step(augment.side_by_side(images, generators), targets)
    training.write()


@torch.no_grad()
@seeds.same_algorithms()
def accuracy(net: nn.Module, test: Batches, what: str) -> float:
    """Share of images classified correctly, in percent; a warning that names `what` where logits are not finite."""
    net.eval()
    right, finite = 0, True
    for images, labels in test.in_order(BATCH):
        logits = net(images)
        right += int((logits.argmax(1) == labels).sum())
        finite = finite and bool(logits.isfinite().all())
    percent = 100 * right / len(test)
    if not finite:
        log.warning(
            "%s: training diverged (logits are not finite); its accuracy of %.1f%% is meaningless", what, percent
        )
    return percent
