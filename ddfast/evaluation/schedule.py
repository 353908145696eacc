"""A protocol with what was given in the place of its own, and the networks that it trains."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import vector_to_parameters

from ddfast import networks as all_networks
from ddfast.data import Dataset, augmentation
from ddfast.data.augment import NO_STRATEGY
from ddfast.data.parameterisation import PIXELS, Pixels
from ddfast.data.recipe import Recipe
from ddfast.engine.students import GSAM, Training, side_by_side
from ddfast.evaluation.protocols import Protocol, protocol_named
from ddfast.evaluation.training import Minibatches, train_networks
from ddfast.ops.installation import build_info
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_positive, expect_whole
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.files import digest_of_tensors

LOOKS = 20  # at a network on its way, where the best of its test accuracies is asked for


@dataclass(frozen=True)
class Schedule:
    """How networks are trained on a synthetic set."""

    protocol: Protocol
    dsa_strategy: str
    sharpness: GSAM | None
    device: torch.device
    at_once: int | None  # networks side by side
    recipe: Recipe | None = None

    def networks(
        self,
        name: str,
        lr: float,
        data: Dataset,
        sets: Sequence[tuple[Tensor, Tensor]],  # images [I, C, H, W] and targets, of each network
        generators: Sequence[torch.Generator],  # of each network
        parameterisation: Pixels = PIXELS,
        look: Callable[[int, nn.Module], None] | None = None,
    ) -> Iterator[nn.Module]:
        """Networks after it, one by one, their initial parameters drawn from their generators.

        `look` sees them on the way, too, LOOKS times: it is called with the place of a network among all, and itself.
        """
        if self.recipe is not None:
            yield from self._by_recipe(self.recipe, name, data, sets, generators)
            return

        create = partial(self._create, name, data)
        protocol, done = replace(self.protocol, lr=lr), 0
        if protocol.cutmix:
            sets = [(images, as_weights(targets, data.num_classes)) for images, targets in sets]
        while generators:
            first = create(generators[0])
            size = torch.Size((min(protocol.batch, len(sets[0][0])), data.channels, *data.image_size))
            together = side_by_side(first, len(generators), size, self.device, self.at_once)
            now, generators = list(generators[:together]), generators[together:]
            epochs_of = [partial(self._epoch, *pair, parameterisation) for pair in sets[:together]]
            nets, sets = [first, *map(create, now[1:])], sets[together:]
            augment = augmentation(self.strategy(data, first))
            how: dict[str, Any] = {"sharpness": self.sharpness}
            if look is not None:
                how |= {
                    "look": lambda n, net, first=done: look(first + n, net),
                    "look_every": max(1, protocol.epochs // LOOKS),
                }
            train_networks(nets, epochs_of, augment, protocol, now, size[1:], **how)
            done += together
            yield from nets

    def _create(self, name: str, data: Dataset, generator: torch.Generator) -> nn.Module:
        return all_networks.create(name, generator=generator, **data.network_arguments).to(self.device)

    def plain(self) -> "Schedule":
        """The same without augmentation."""
        return replace(self, dsa_strategy=NO_STRATEGY, protocol=replace(self.protocol, strategy=None))

    def strategy(self, data: Dataset, net: nn.Module) -> str:
        """The augmentation of a network's training."""
        return self.dsa_strategy if self.protocol.strategy is None else self.protocol.strategy(data, net)

    def _by_recipe(
        self,
        recipe: Recipe,
        name: str,
        data: Dataset,
        sets: Sequence[tuple[Tensor, Tensor]],
        generators: Sequence[torch.Generator],
    ) -> Iterator[nn.Module]:
        """Networks after a set's very steps, without augmentation."""
        for generator, (images, targets) in zip(generators, sets, strict=True):
            net = self._create(name, data, generator)
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
            yield net

    def describe(self, name: str, data: Dataset, lr: float) -> dict[str, Any]:
        """All that an accuracy of a network depends on, besides the set, the network itself and the seed."""
        protocol, size = self.protocol, data.image_size
        return {
            "version": build_info()["versions"]["ddfast"].partition("+")[0],  # a wheel's names its torch, too
            "device": self.device.type,
            "data": [data.fingerprint, data.test_fingerprint, data.preprocessing.describe()],
            "protocol": [protocol.epochs, protocol.batch, lr, protocol.drops(protocol.epochs), protocol.factor],
            "optimizer": [protocol.optimizer, protocol.loses_momentum, protocol.cutmix],
            **({} if self.recipe is None else {"recipe": digest_of_tensors(self.recipe.tensors(), {})}),
            "dsa_strategy": self.strategy(data, self._create(name, data, seeds.generator(0))),
            "sharpness": None if self.sharpness is None else [self.sharpness.rho, self.sharpness.alpha],
            "image_size": list(size),
        }

    def _epoch(
        self,
        images: Tensor,  # [I, C, …], what the parameterisation decodes
        targets: Tensor,  # int64 [I], or [I, K]
        parameterisation: Pixels,
        generator: torch.Generator,
    ) -> Minibatches:  # images [B, C, H, W], targets
        for chosen in torch.randperm(len(images), generator=generator).to(self.device).split(self.protocol.batch):
            yield parameterisation.see(images[chosen], generator), targets[chosen]


def as_weights(targets: Tensor, num_classes: int) -> Tensor:  # int64 [I], or [I, K] -> [I, K]
    """Classes as weights; weights as they are."""
    return targets if targets.is_floating_point() else one_hot(targets, num_classes).float()


def schedule_of(
    name: str,  # of the protocol
    eval_epochs: int | None,
    eval_batch: int | None,
    dsa_strategy: str,
    sam_rho: float | None,
    num_eval: int,
    device: str | torch.device | None,
    at_once: int | None,
) -> Schedule:
    """A protocol, with what was given in the place of its own; ValueError for what makes no sense."""
    given = {"epochs": eval_epochs, "batch": eval_batch}
    protocol = replace(protocol_named(name), **{field: value for field, value in given.items() if value is not None})
    at_once_or_1 = 1 if at_once is None else at_once
    expect_whole(num_eval=num_eval, eval_epochs=protocol.epochs, eval_batch=protocol.batch, at_once=at_once_or_1)
    if sam_rho is not None:
        expect_positive("sam_rho", sam_rho)
    sharpness = None if sam_rho is None else GSAM(sam_rho, alpha=0.0)
    return Schedule(protocol, dsa_strategy, sharpness, resolve_device(device), at_once)
