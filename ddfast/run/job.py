"""A run, resolved: every setting, the data, and how memory is used."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ddfast import networks
from ddfast.data import Dataset, counts_of
from ddfast.data.augment import NO_STRATEGY
from ddfast.engine.planner import UNKNOWN, BudgetTooSmallError, Plan, UnrollSize, make_plan, parse_budget, predict
from ddfast.engine.students import RankBatches, Student, student_of
from ddfast.evaluation import asked_rates, more_baselines, protocol_named
from ddfast.experts import TrajectoryStore, expect_preprocessed_alike, expect_trained_with, kept_epochs
from ddfast.methods import Needs, method_class
from ddfast.ops import release_memory
from ddfast.run.config import NEEDED, ExpertOptions, defaults_of
from ddfast.runtime import seeds
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

TRAINING = ("batch_train", "mom", "l2", "optimizer", "rho", "alpha", "schedule", "curriculum")
EXPERT_TRAINING = {name: value for name, value in defaults_of(ExpertOptions).items() if name in TRAINING}
EXPERT_STORAGE = {name: defaults_of(ExpertOptions)[name] for name in ("keep_epochs", "snapshots")}


@dataclass
class Job:
    """A run, resolved: `config` holds every setting as JSON does; the rest is made from it."""

    config: dict[str, Any]
    data: Dataset
    settings: Any  # of the method
    experts: TrajectoryStore | None  # given ones
    device: torch.device
    ranks: Ranks = ALONE  # the processes of the run

    @property
    def needs(self) -> Needs:
        """Those of the method, and experts where its settings ask for them."""
        kind = method_class(self.config["method"])
        return replace(kind.needs, experts=kind.needs.experts or kind.Settings.judges(self.config) > 0)

    @property
    def trains_experts(self) -> bool:
        """Whether the run begins with them."""
        return self.needs.experts and self.experts is None

    @property
    def rate_is_fixed(self) -> bool:
        """Whether the student's rate could be learned, and is not; methods of others may have no such option."""
        return getattr(self.settings, "lr_lr", None) == 0

    @property
    def matches_trajectories(self) -> bool:
        """Whether the method's own steps are on experts' segments, so that its Settings are TrajectorySettings."""
        return method_class(self.config["method"]).needs.experts

    @property
    def shares_a_segment(self) -> bool:
        """Whether several processes share the minibatches of one segment, rather than segments."""
        return self.ranks.size > 1 and self.settings.segments == 1

    @property
    def plan(self) -> Plan:
        """How an outer step uses memory."""
        return Plan(**self.config["memory_plan"])

    @property
    def memory_budget(self) -> int | None:
        """Bytes for a step of a method that does not unroll, on a GPU; a CPU is kept busy by as little as there is."""
        if self.needs.unroll or self.device.type == "cpu":
            return None
        return parse_budget(self.config["memory_budget"], self.device)

    @property
    def num_images(self) -> int:
        """J, those of the synthetic set that networks see."""
        return sum(counts_of(self.config["ipc"], self.data.num_classes)) * self.settings.images_per_stored

    @property
    def eval_rates(self) -> dict[str, float | str]:
        """The rate that each network is to be evaluated at."""
        protocol = protocol_named(self.config["protocol"])
        return asked_rates(self.config.get("eval_lr"), self.config["networks"], self.config["network"], protocol)

    @property
    def more_baselines(self) -> list[str]:
        """Random real images beside those that are trained on as the set is."""
        soft = self.config.get("labels") == "soft" and self.needs.experts
        augmented = self.config["dsa_strategy"] != NO_STRATEGY
        return more_baselines(self.config.get("baselines", "none"), soft, augmented)

    def _unroll(self) -> tuple[Student, UnrollSize]:
        images = torch.Size((self.num_images, *self.data.train_images.shape[1:]))
        student = student_of(self.network("plan"), self.config["precision"], images[1:])
        states = method_class(self.config["method"]).compares_states
        classes = self.data.num_classes
        size = self.settings.unroll_size(images, self.device, num_classes=classes, return_states=states)
        if self.shares_a_segment:
            return RankBatches(student, self.ranks), size
        return student, replace(size, students=self.settings.segments // self.ranks.size)

    def check_ranks(self) -> None:
        """ValueError where this many processes cannot share an outer step."""
        if not self.needs.unroll:
            if self.ranks.size > 1 and self.ranks.is_first:
                name = self.config["method"]
                log.warning("%s: every process repeats the outer steps; experts and evaluations are shared", name)
            return
        segments, count = self.settings.segments, self.ranks.size
        if segments > 1 and segments % count:
            raise ValueError(f"segments: expected 1 or a multiple of the {count} processes, got {segments}")
        _, size = self._unroll()  # refuses minibatches that cannot be cut
        if self.shares_a_segment and size.batch[0] < count:
            raise ValueError(f"batch_syn: expected an image or more for each of {count} processes, got {size.batch[0]}")

    def plan_for_budget(self, *, asked: bool) -> None:
        """Set the plan of an outer step; ValueError where nothing fits, or none can be made that was asked for."""
        if not self.needs.unroll:
            self.config["memory_plan"] = asdict(Plan())
            if asked and self.device.type == "cpu":
                log.warning("memory_budget: ignored, %s does not plan memory", self.config["method"])
            return
        student, size = self._unroll()
        sharers = self.ranks.size if self.device.type == "cpu" else 1  # they may all be on this machine
        budget, plan = parse_budget(self.config["memory_budget"], self.device, sharers), Plan()
        if asked or predict(student, size, plan) is not None:
            plan = make_plan(student, size, budget)
            log.info("memory: %s", plan.words(size))
        else:
            log.info("memory: not planned, %s", UNKNOWN)
        self.config["memory_plan"] = asdict(plan)

    def plan_again(self, iteration: int, cause: BaseException) -> None:
        """After memory ran out in an iteration: a plan for half of it, once in a run.

        MemoryError the second time, and where no plan needs less, or the method has none.
        """
        if not self.needs.unroll:
            words = f"memory ran out in iteration {iteration} ({str(cause).splitlines()[0]})"
            raise MemoryError(f"{words}; begin a run with fewer images per class, or a smaller network") from cause
        release_memory()  # of the larger plan
        student, size = self._unroll()
        before, reason = self.plan, str(cause).splitlines()[0]
        advice = "resume the run with a smaller memory_budget, or begin one with a smaller batch_syn"
        if before.predicted_bytes is None:
            advice = f"{UNKNOWN}; begin a run with a smaller batch_syn, or fewer segments"
        if "memory_ran_out" in self.config or before.predicted_bytes is None:
            words = f"memory ran out in iteration {iteration} ({before.words(size)}: {reason})"
            raise MemoryError(f"{words}; {advice}") from cause
        try:
            plan = make_plan(student, size, before.predicted_bytes // 2)
        except BudgetTooSmallError as error:
            plan = make_plan(student, size, error.smallest)
        if plan == before:
            words = f"memory ran out in iteration {iteration} ({reason})"
            raise MemoryError(f"{words}, and no plan needs less ({plan.words(size)})") from cause
        log.warning("memory ran out in iteration %d (%s): retrying with %s", iteration, reason, plan.words(size))
        self.config["memory_ran_out"] = {"iteration": iteration, "memory_plan": self.config["memory_plan"]}
        self.config["memory_plan"] = asdict(plan)

    @property
    def train_epochs(self) -> int:
        """Epochs of each expert that is trained for this run."""
        asked, (_, needed) = self.config["train_epochs"], self.settings.used_epochs
        if asked != NEEDED and asked < needed:
            log.info("train_epochs: %d instead of %d, because a run with these settings uses that many", needed, asked)
        return max(1, needed if asked == NEEDED else max(asked, needed))

    @property
    def keep_epochs(self) -> tuple[int, int] | None:
        """The first and the last epoch of experts trained for this run that are kept beside their last; None for all.

        Errors: ValueError for those that leave out some that the run can use, or are no such thing.
        """
        asked = self.config["keep_epochs"]
        if asked == EXPERT_STORAGE["keep_epochs"]:
            return None
        if self.settings.init == "forgetting":
            raise ValueError(f"keep_epochs: init forgetting looks at all epochs; expected all, got {asked}")
        needed = self.settings.used_epochs
        if asked == NEEDED:
            return needed
        kept = kept_epochs(self.train_epochs, asked)
        if not set(range(needed[0], needed[1] + 1)) <= set(kept):
            raise ValueError(
                f"keep_epochs: this run can use epochs {needed[0]} to {needed[1]}, got {asked[0]} to {asked[1]}"
            )
        return tuple(asked)

    @property
    def train_dsa_strategy(self) -> str:
        """Augmentation of the real images that experts are trained on."""
        return self.config.get("train_dsa_strategy") or self.config["dsa_strategy"]

    def check_expansion(self, asked: bool) -> None:
        """Refuse, or where it was not asked for tell, that start epochs never expand as far as they should."""
        end, iterations = getattr(self.settings, "expansion_end", None), self.config["iterations"]
        if end is None or end <= iterations:
            return
        _, high = self.settings.start_epochs(iterations - 1)
        if high == self.settings.max_start_epoch:
            return
        words = f"in {iterations} iterations the start epochs expand to {high}, not to {self.settings.max_start_epoch}"
        if asked:
            raise ValueError(f"expansion_end: expected at most {iterations}, got {end}: {words}")
        log.warning("expansion_end: %d is the preset's; %s", end, words)

    def check_experts(self, store: TrajectoryStore) -> None:
        """ValueError for experts of other data, preprocessing or network, too few, too short, or damaged."""
        wanted = {"fingerprint": self.data.fingerprint, "structure": self.config.get("structure")}
        wanted |= {n: self.config[n] for n in ("network", "optimizer")}
        for name, value in wanted.items():
            expect_trained_with(store, self.data, name, value, EXPERT_TRAINING.get(name))
        expect_preprocessed_alike(store, self.data)
        first, needed = self.settings.used_epochs
        if store.epochs < needed and not self.matches_trajectories:
            raise ValueError(f"experts: {store.path} has {store.epochs} epochs, this run looks at epoch {needed}")
        if store.epochs < needed:
            raise ValueError(
                f"max_start_epoch: the experts in {store.path} have {store.epochs} epochs, starts up to epoch "
                f"{self.settings.max_start_epoch - 1} with targets {self.settings.expert_epochs} later need "
                f"{needed}"
            )
        if self.settings.init == "forgetting" and len(store.kept_epochs) <= store.epochs:
            raise ValueError(
                f"init: forgetting looks at all epochs, {store.path} holds {store.words_of_kept()}; train others with "
                f"keep_epochs all"
            )
        used = range(first, needed + 1)
        if not set(used) <= set(store.kept_epochs):
            raise ValueError(
                f"keep_epochs: {store.path} holds {store.words_of_kept()}, this run can use {used[0]} to {used[-1]}"
            )
        if not 1 <= self.config["num_experts"] <= store.num_experts:
            raise ValueError(
                f"num_experts: expected 1 to the {store.num_experts} in {store.path}, got {self.config['num_experts']}"
            )
        P = sum(p.numel() for p in self.network("experts").parameters())
        for expert in range(self.config["num_experts"]):
            if store.snapshot(expert, store.epochs).shape != (P,):  # refuses a file that is not whole
                raise ValueError(f"experts: {store.path} has snapshots of another network than {P} parameters")

    def network(self, purpose: str) -> torch.nn.Module:
        """The network that is distilled with, its initial parameters drawn for a purpose."""
        return self.new_network(seeds.generator(self.config["seed"], purpose))

    def new_network(self, generator: torch.Generator) -> torch.nn.Module:
        """One of that kind, its initial parameters drawn from a generator."""
        return networks.create(self.config["network"], generator=generator, **self.data.network_arguments)
