"""Training experts on real data, a snapshot after every epoch."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfast import networks
from ddfast.data import Batches, Dataset, augmentation, load_dataset
from ddfast.data.augment import FULL_STRATEGY
from ddfast.engine.students import Training, side_by_side
from ddfast.engine.timing import time_training
from ddfast.experts.curriculum import Curriculum
from ddfast.experts.judges import SCORED_EPOCH, Judges
from ddfast.experts.settings import ExpertTraining
from ddfast.experts.snapshots import WHOLE, storage_settings
from ddfast.experts.trajectories import TrajectoryStore
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole, takes_old_names, takes_plain_numbers
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.files import cache_folder, expect_writable, remove_leftovers, undisturbed
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks, expect_ranks

log = logging.getLogger("ddfast")

KEEP_SECONDS = 30.0  # an expert in training is kept at most this often, for an interrupted training to go on from
RECIPE = 1  # to be raised with every change that makes other experts of the same settings: the cache then has none yet
SCORING = 3  # experts whose scores a curriculum follows


@takes_old_names(epochs="train_epochs", lr_teacher="train_lr", root="data_root")
@takes_plain_numbers
def train_experts(
    dataset: Any,
    *,
    network: str | nn.Module | Callable[..., nn.Module] = "convnet",
    num_experts: int = 100,
    train_epochs: int = 50,
    output: str | Path | None = None,
    train_lr: float = 0.01,
    mom: float = 0.0,
    l2: float = 0.0,
    batch_train: int = 256,
    dsa_strategy: str = FULL_STRATEGY,
    optimizer: str = "sgd",
    rho: float = 0.01,
    alpha: float = 1.0,
    schedule: str = "constant",
    curriculum: str = "none",
    keep_epochs: tuple[int, int] | None = None,
    snapshots: str = WHOLE,
    seed: int = 0,
    device: str | torch.device | None = None,
    at_once: int | None = None,
    ranks: Ranks = ALONE,
    forecast: Forecast | None = None,
    **data_options: Any,
) -> TrajectoryStore:
    """Train experts by SGD with DSA (MTT section 3.1, by default without momentum and decay), one snapshot per epoch;
    or by GSAM (FTD, Du et al. 2023), for flat trajectories.

    Any number of processes may train the experts of one folder at once: each takes those that no other one does.

    Args:
        dataset: a name, a folder, a pair of torch data sets or tensors, or a Dataset.
        network: a name as ddfast.networks.create takes it; a module, or a function that returns a new one.
        num_experts: experts 0 … num_experts − 1; those that the folder already holds are not trained again, and one
            whose training was interrupted goes on from the last epoch that was kept.
        train_epochs: E. A run of MTT uses the first max_start_epoch − 1 + expert_epochs only.
        output: the folder; None for one in the user's cache that these settings name.
        train_lr, mom, l2: learning rate, momentum and weight decay.
        batch_train: images per minibatch; every epoch visits all in a new random order.
        dsa_strategy: augmentation of the real images, see ddfast.data.DSA.
        optimizer: sgd, or gsam (ddfast.students.GSAM), which costs two gradients a step.
        rho, alpha: of gsam: the length of its ascent, and how much of the gradient beside it is taken out; 0 is SAM.
        schedule: constant, or cosine: in epoch e of E, from 0, the rate is train_lr/2 · (1 + cos(πe/E)).
        curriculum: none, or pad: epochs see images by their difficulty (ddfast.experts.curriculum): the mean
            EL2N of 3 experts of 10 epochs, which are trained for it and kept in the folder.
        keep_epochs: the first and the last epoch whose snapshots are kept, beside the very last; None for all. Where
            the cache has such experts with all epochs, those are taken.
        snapshots: how they are kept: float32; delta16 and delta8 round them to a half and a third of the bytes.
            TrajectoryStore.error says how far off they are.
        at_once: experts trained side by side, each on its own order of the data; None for one on a CPU, on a GPU as
            many as fit. Other networks than the fused ConvNet are trained one by one.
        ranks: the processes that make this call together (ddfast.ranks), each with the folder in reach.
        forecast: of a job of which this is a stage; None for a forecast of this call alone, which is logged.
        data_options: those of ddfast.data.load_dataset.

    Errors: ValueError for settings that make no sense, a folder that holds experts of other settings, or an expert
    whose loss is not finite; OSError where the disk has not the room for the experts.
    """
    expect_ranks(ranks)
    expect_whole(num_experts=num_experts, train_epochs=train_epochs, at_once=1 if at_once is None else at_once)
    how = ExpertTraining(train_lr, mom, l2, batch_train, dsa_strategy, optimizer, rho, alpha, schedule, curriculum)
    device = resolve_device(device)
    data = load_dataset(dataset, **data_options)
    # An unknown or impossible network is refused here, before anything is written.
    network = networks.name_of(network)
    net = networks.create(network, generator=seeds.generator(seed), **data.network_arguments)
    structure = networks.structure_of(network, net)
    settings = {
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "preprocessing": data.preprocessing.describe(),
        "network": network,
        **({"structure": structure} if structure else {}),
        **how.settings(),
        "seed": seed,
        "device": device.type,
        **({"recipe": RECIPE} if RECIPE > 1 else {}),  # the first one is not named, so that its stores stay valid
    }
    settings |= storage_settings(train_epochs, keep_epochs, snapshots)
    path, settings = _cached(settings, train_epochs, num_experts) if output is None else (Path(output), settings)
    store = ranks.in_turn(lambda: TrajectoryStore.create(path, settings, train_epochs))
    missing = store.missing(num_experts)
    forecast = Forecast({"experts": 0.0}) if forecast is None else forecast
    if not missing:
        forecast.say()
    else:
        expect_writable(path)
        P = sum(p.numel() for p in net.parameters())
        log.info("training %d experts of %d epochs: %s", len(missing), store.epochs, store.room_for(len(missing), P))
        most = -(-len(missing) // ranks.size)  # a GPU that could take all leaves the others theirs
        forecast.expect("experts", most * _expert_seconds(store, data, how, device))
        forecast.say()
        forecast.begin("experts", most * store.epochs)
        curriculum = _curriculum(store, data, how, device, at_once, ranks)
        with seeds.same_algorithms():
            _train_missing(store, data, num_experts, how, curriculum, device, at_once, most, forecast)
        remove_leftovers(path, "experts.json")  # before all are stored, another machine may be writing it
    forecast.end()
    ranks.together(lambda: None)
    if store.snapshots != WHOLE:
        error = "on average {segment_mean:.2g}, at most {segment_max:.2g}".format(**store.error)
        log.info("snapshots as %s: relative error of an epoch's parameter change: %s", store.snapshots, error)
    return store


def _curriculum(
    store: TrajectoryStore, data: Dataset, how: ExpertTraining, device: torch.device, at_once: int | None, ranks: Ranks
) -> Curriculum | None:
    """By the scores of experts that are trained for it, plainly and for fewer epochs; they are kept in the folder."""
    if how.curriculum == "none":
        return None
    network, plain = store.settings["network"], {"optimizer": "sgd", "curriculum": "none"}
    options = {"train_lr": how.lr_teacher, "mom": how.mom, "l2": how.l2, "batch_train": how.batch_train}
    judging = train_experts(
        data,
        network=network,
        num_experts=SCORING,
        train_epochs=min(SCORED_EPOCH, store.epochs),
        output=store.path / "judges",
        dsa_strategy=how.dsa_strategy,
        seed=store.settings["seed"],
        device=device,
        at_once=at_once,
        ranks=ranks,
        **options | plain,
    )
    net = networks.create(network, generator=seeds.generator(0), **data.network_arguments).to(device)
    return Curriculum(Judges(net, judging, SCORING, data).difficulty("el2n"), data.train_labels)


def _expert_seconds(store: TrajectoryStore, data: Dataset, how: ExpertTraining, device: torch.device) -> float:
    """How long the training of one expert takes, from a timed step."""
    batch = min(how.batch_train, len(data.train_images))
    network, augment = store.settings["network"], augmentation(how.dsa_strategy)
    seconds, _ = time_training(network, data.network_arguments, batch, augment, device)
    gradients = 1 if how.sharpness is None else 2
    return gradients * seconds * store.epochs * len(data.train_images) / batch


def _train_missing(
    store: TrajectoryStore,
    data: Dataset,
    num_experts: int,
    how: ExpertTraining,
    curriculum: Curriculum | None,
    device: torch.device,
    at_once: int | None,
    most: int,  # experts side by side
    forecast: Forecast,
) -> None:
    """Train the experts that a store lacks and no other process trains; in the end wait for those."""
    network, seed = store.settings["network"], store.settings["seed"]
    batches, minibatch = data.train_batches(device), torch.Size((how.batch_train, *data.train_images.shape[1:]))

    def create(expert: int) -> nn.Module:
        generator = seeds.generator(seed, "expert", expert)
        return networks.create(network, generator=generator, **data.network_arguments).to(device)

    while missing := store.missing(num_experts):
        with ExitStack() as claims:
            claimed = _claim(store, missing, 1, claims)
            if not claimed:  # others train all of them; what they do not finish is ours
                with store.claimed(missing[0], wait=True):
                    continue
            began, first = time.perf_counter(), create(claimed[0])
            if store.unfinished(claimed[0]) is None:
                more = side_by_side(first, min(most, len(missing)), minibatch, device, at_once) - 1
                fresh = [e for e in missing if e > claimed[0] and store.unfinished(e) is None] if more else []
                claimed += _claim(store, fresh, more, claims)
            training = _Training(
                [first, *map(create, claimed[1:])], minibatch[1:], batches, how, curriculum, store, claimed, forecast
            )
            names = ", ".join(str(expert + 1) for expert in claimed)
            training.run(f"expert {names} of {num_experts}")
            with undisturbed():
                for expert, snapshots in zip(claimed, training.snapshots, strict=True):
                    store.add(expert, snapshots)
        log.info("expert %s of %d trained in %.1f s", names, num_experts, time.perf_counter() - began)


def _claim(store: TrajectoryStore, missing: list[int], most: int, claims: ExitStack) -> list[int]:
    """Up to so many missing experts that no other process trains, held by `claims`."""
    claimed: list[int] = []
    for expert in missing:
        if len(claimed) == most:
            break
        with suppress(BlockingIOError):
            claims.enter_context(store.claimed(expert, wait=False))
            if expert in store.missing(expert + 1):  # another process may have finished it meanwhile
                claimed.append(expert)
    return claimed


def _cached(settings: dict, epochs: int, num_experts: int) -> tuple[Path, dict]:
    """The cache's folder for experts of these settings, or of the same with all epochs kept where that holds them."""
    whole, folder = {name: settings[name] for name in settings if name != "keep_epochs"}, cache_folder() / "experts"
    path = folder / folder_name(whole, epochs)
    if (path / "experts.json").exists() and TrajectoryStore(path).num_experts >= num_experts:
        return path, whole
    return folder / folder_name(settings, epochs), settings


def folder_name(settings: dict, epochs: int) -> str:
    """The name of a cache folder for experts of these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    words = [settings["dataset"], settings["network"], f"{epochs}epochs", digest]
    return "".join(c if c.isalnum() or c in "-_=." else "-" for c in "-".join(words))


class _Training:
    """The training of some experts side by side, which can go on where it was interrupted."""

    def __init__(
        self,
        nets: list[nn.Module],
        image: torch.Size,  # [C, H, W]
        batches: Batches,
        how: ExpertTraining,
        curriculum: Curriculum | None,
        store: TrajectoryStore,
        experts: list[int],
        forecast: Forecast,
    ) -> None:
        self.batches, self.how, self.store, self.seed = batches, how, store, store.settings["seed"]
        self.experts, self.forecast, self.curriculum = experts, forecast, curriculum
        self.augment = augmentation(how.dsa_strategy)
        self.training = Training(
            nets, image, lr=how.lr_teacher, momentum=how.mom, weight_decay=how.l2, sharpness=how.sharpness
        )
        start = self.training.parameters()
        self.rows = {epoch: row for row, epoch in enumerate(store.kept_epochs)}
        # [S, kept epochs, P], a copy each: a view of the live weights would move with them
        self.snapshots = torch.empty(len(nets), len(self.rows), start.shape[1])
        self.epoch = self.kept_epoch = 0
        self._reached(start)
        self.velocity = torch.empty(len(nets), 0)  # [S, P] after the last whole epoch, with momentum
        if len(nets) == 1:
            self._go_on(store.unfinished(experts[0]))

    def run(self, name: str) -> None:
        """Train to the last epoch; ValueError where the loss is not finite. Interrupted, it keeps the whole epochs."""
        try:
            self._run(name)
        except KeyboardInterrupt:
            if self.epoch > self.kept_epoch:
                self._keep()
            raise

    def _run(self, name: str) -> None:
        kept = time.perf_counter()
        while self.epoch < self.store.epochs:
            began = time.perf_counter()
            losses = self._train_epoch()
            with undisturbed():  # what is kept is of one epoch
                self.epoch += 1
                self._reached(self.training.parameters())
                if self.how.mom:
                    self.velocity = self.training.velocity()
            finite = losses.isfinite().cpu() & self.parameters.isfinite().all(1)
            if not finite.all():
                expert = self.experts[int((~finite).nonzero()[0])]
                raise ValueError(
                    f"expert {expert} diverged: loss or parameters are not finite after epoch {self.epoch}; "
                    f"try a smaller lr_teacher than {self.how.lr_teacher}"
                )
            self.forecast.did(len(self.experts))
            now, loss = time.perf_counter(), losses.mean()
            if now - began > 5:
                log.info(
                    "%s: epoch %d of %d, loss %.3f, %.0f s", name, self.epoch, self.store.epochs, loss, now - began
                )
            if now - kept > KEEP_SECONDS and self.epoch < self.store.epochs:
                self._keep()
                kept, self.kept_epoch = now, self.epoch

    def _reached(self, parameters: Tensor) -> None:  # [S, P] after the epoch
        self.parameters = parameters.cpu()
        if self.epoch in self.rows:
            self.snapshots[:, self.rows[self.epoch]] = self.parameters

    def _train_epoch(self) -> Tensor:  # [S], the mean losses
        generators = [seeds.generator(self.seed, "expert", e, "epoch", self.epoch) for e in self.experts]
        for net in self.training.nets:
            net.train()
        for group in self.training.optimizer.param_groups:
            group["lr"] = self.how.lr(self.epoch, self.store.epochs)
        seen = torch.arange(len(self.batches)) if self.curriculum is None else self.curriculum.images(self.epoch)
        orders = torch.stack([seen[torch.randperm(len(seen), generator=generator)] for generator in generators])
        losses, device = [], next(self.training.nets[0].parameters()).device
        with seeds.dropout_from(generators[0], device):  # networks with dropout are trained alone
            for indices in orders.split(self.how.batch_train, 1):  # [S, B]
                images, labels = self.batches.take(indices.reshape(-1))
                images = self.augment.side_by_side(images.unflatten(0, indices.shape), generators)
                losses.append(self.training.step(images, labels.view(indices.shape)))
        return torch.stack(losses).mean(0)

    def _keep(self) -> None:
        done, epoch = sum(kept <= self.epoch for kept in self.rows), torch.tensor(self.epoch)
        for expert, snapshots, *now in zip(self.experts, self.snapshots, self.parameters, self.velocity, strict=True):
            state = {"snapshots": snapshots[:done], "parameters": now[0], "velocity": now[1], "epoch": epoch}
            self.store.keep_unfinished(expert, state)

    def _go_on(self, state: dict[str, Tensor] | None) -> None:
        P = self.snapshots.shape[2]
        if state is None or state.get("snapshots", torch.empty(0)).shape[1:] != (P,):
            return
        snapshots = state["snapshots"]
        self.snapshots[0, : len(snapshots)] = snapshots
        # Older versions kept neither of these two, for they kept every epoch.
        self.epoch = self.kept_epoch = int(state.get("epoch", len(snapshots) - 1))
        parameters = state["parameters"] if "parameters" in state else snapshots[-1]
        self._reached(parameters[None])
        self.velocity = state["velocity"][None]
        self.training.load(self.parameters, self.velocity if self.how.mom else None)
        self.forecast.did(self.epoch)
        log.info("expert %d continues after epoch %d", self.experts[0], self.epoch)
