"""What a method is: one outer step after another changes a synthetic set."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ddfast.data import DSA, Batches, Dataset, SyntheticSet
from ddfast.engine.planner import Plan
from ddfast.experts import TrajectoryStore
from ddfast.methods.learned_set import LearnedSet, Mark
from ddfast.methods.settings import SetSettings
from ddfast.runtime import seeds
from ddfast.runtime.options import did_you_mean
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Needs:
    """What a run prepares for a method, checks, and plans memory for."""

    experts: bool = False  # trajectories, trained or given; its Settings are TrajectorySettings
    real_data: bool = False  # minibatches of the training images in a step
    unroll: bool = False  # its memory is planned; Settings.unroll_size says how large it is
    steps: bool = True  # False: its set is the one that it begins with


@dataclass(frozen=True)
class Resources:
    """What a run gives a method beside its settings and the set that it begins with."""

    network: nn.Module  # with initial parameters that the run's seed gives
    generator: torch.Generator  # of all random draws, on the CPU
    create: Callable[[torch.Generator], nn.Module] | None = None  # another one of the same kind, its parameters drawn
    device: torch.device = CPU
    data: Dataset | None = None  # the training images; None where no method needs them
    experts: TrajectoryStore | None = None
    num_experts: int | None = None  # of them that are used; None: all
    plan: Plan | None = None  # of memory; None: keep no activations
    memory_budget: int | None = None  # bytes for a step, of methods without a plan; None: as little as they can do with
    iterations: int | None = None  # of the whole run, where a schedule follows them
    precision: str = "default"  # of ddfast.ops.PRECISIONS
    cuda_graph: bool = False
    ranks: Ranks = ALONE


class RealImages:
    """The training images, preprocessed, in minibatches that are drawn from the run's generator."""

    def __init__(self, data: Dataset, generator: torch.Generator, device: torch.device) -> None:
        self._batches: Batches = data.train_batches(device)
        self._generator, self._by_class = generator, data.by_class(None)

    def __len__(self) -> int:
        return len(self._batches)

    def of_class(self, k: int, count: int) -> Tensor:  # float32 [B, C, H, W]
        """As many images of class k, without repetition where it has so many."""
        indices = self._by_class[k]
        times = -(-count // len(indices))
        drawn = [indices[torch.randperm(len(indices), generator=self._generator)] for _ in range(times)]
        return self._batches.take(torch.cat(drawn)[:count])[0]

    def minibatch(self, count: int) -> tuple[Tensor, Tensor]:  # float32 [B, C, H, W], int64 [B]
        """As many images of any class, without repetition, and their classes."""
        return self._batches.take(torch.randperm(len(self._batches), generator=self._generator)[:count])


class Method:
    """A method of dataset distillation. The simplest one says its `loss`; `register` gives it a name.

    Attributes of the class: Settings, a subclass of SetSettings with the method's options; needs; gradient, in words
    for people ("exact", or what it approximates and how well); presets, the text of a TOML file of published settings
    as those in ddfast/run/presets, or None.
    """

    Settings: ClassVar[type[SetSettings]] = SetSettings
    needs: ClassVar[Needs] = Needs()
    gradient: ClassVar[str] = "exact"
    presets: ClassVar[str | None] = None
    compares_states: ClassVar[bool] = False  # whether an unroll keeps all its states for the loss

    def __init__(self, settings: SetSettings, synthetic: SyntheticSet, resources: Resources) -> None:
        self.settings, self.resources = settings, resources
        self.generator, self.device, self.ranks = resources.generator, resources.device, resources.ranks
        if resources.cuda_graph and not self.needs.experts:
            log.warning("cuda_graph: ignored, this method does not capture its steps")
        self.augment = DSA(settings.dsa_strategy)
        self.parameterisation = synthetic.parameterisation
        self.learned = self.learn(synthetic)
        self.real = RealImages(resources.data, self.generator, self.device) if self.needs.real_data else None

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError, before any work starts, for data or a network that the method can do nothing with."""

    def new_network(self) -> nn.Module:
        """A network of the run's kind on the device, its initial parameters drawn from the run's generator."""
        return self.resources.create(self.generator).to(self.device)

    def blank_network(self) -> nn.Module:
        """One of the run's kind, whose parameters are to be replaced: nothing is drawn for it."""
        return self.resources.create(torch.Generator()).to(self.device)

    @contextmanager
    def dropout(self, net: nn.Module | None = None) -> Iterator[None]:
        """In it dropout draws from the run's own seed; nothing is drawn for a network (None: the run's) without any."""
        net = self.resources.network if net is None else net
        if not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in net.modules()):
            yield
            return
        drawn = int(torch.randint(2**62, (), generator=self.generator))
        stream = seeds.generator(drawn, *([self.ranks.rank] if self.ranks.size > 1 else []))
        with seeds.dropout_from(stream, self.device):
            yield

    def learn(self, synthetic: SyntheticSet) -> LearnedSet:
        """The set as it is learned: images, and label logits where the settings have a rate for them."""
        return LearnedSet(synthetic, self.settings, self.device)

    def loss(
        self,
        images: Tensor,  # [I, C, H, W], as networks see them, not augmented
        labels: Tensor,  # int64 [I], or probabilities [I, K]
    ) -> Tensor:  # []
        """What an outer step descends on, differentiable in the images (and labels that are learned).

        A method whose step is more than this has a `_step` of its own.
        """
        raise NotImplementedError(f"{type(self).__name__}: says neither its loss nor how it steps")

    def step(self) -> dict[str, Any]:
        """One outer iteration; what it did, for the metrics. What comes out not finite, changes nothing.

        An exception, Ctrl-C among them, leaves everything as it was before the step.
        """
        mark = self.mark()
        try:
            return self._step()
        except BaseException:
            self.rollback(mark)
            raise

    def _step(self) -> dict[str, Any]:
        taken = self.learned.take()
        values = [value.detach().requires_grad_() for value in taken.values]
        labels = self.learned.labels_of(values, taken.labels)
        images = self.learned.see(values, self.generator)
        loss = self.loss(images, labels.softmax(1) if labels.is_floating_point() else labels)
        gradients = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
        return self.learned.record(self.learned.update(taken, loss.detach(), list(gradients)))

    def use_plan(self, plan: Plan | None) -> None:
        """Compute the next outer steps with this memory plan; for methods that unroll."""

    def current(self) -> SyntheticSet:
        """The synthetic set as it is now, on the CPU, detached."""
        return self.learned.current()

    def averaged(self) -> SyntheticSet | None:
        """The set with the average of its images over the iterations; None where none is kept."""
        return self.learned.averaged()

    @property
    def skipped(self) -> int:
        """Updates left out so far, for they were not finite."""
        return self.learned.skipped

    def restore(self) -> None:
        """Go back to the images, labels and learning rate that the last finite loss was computed with."""
        self.learned.restore()

    def at_end(self, data: Dataset) -> dict[str, float]:
        """What the method itself measures on the test images once its steps are over, for people and the summary."""
        return {}

    def own_state(self) -> dict[str, Any]:
        """What the method keeps from step to step beside its set and its generator: tensors and plain values."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from an `own_state`."""

    def mark(self) -> tuple[Mark, Tensor, dict[str, Any]]:
        """What `rollback` takes: where it is now, the end of an outer step."""
        return self.learned.mark(), self.generator.get_state(), self.own_state()

    def rollback(self, mark: tuple[Mark, Tensor, dict[str, Any]]) -> None:
        """Undo what a step after `mark` did."""
        of_set, drawn, own = mark
        self.learned.rollback(of_set)
        self.generator.set_state(drawn)
        self.load_own_state(own)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, or counts from, as it is between two steps: what a checkpoint holds."""
        return {**self.learned.state_dict(), "generator": self.generator.get_state(), **self.own_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for another kind of one."""
        self.learned.load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.load_own_state({name: state[name] for name in self.own_state()})


AnyMethod = TypeVar("AnyMethod", bound=type[Method])
ENTRY_POINTS = "ddfast.methods"  # by which other packages bring methods


class Methods(Mapping[str, type[Method]]):
    """All methods by name: ddfast's own, those that were registered, and those of installed packages."""

    def __init__(self) -> None:
        self._known: dict[str, type[Method]] = {}
        self._looked = False

    def add(self, name: str, method: type[Method]) -> None:
        """Add one; ValueError where the name is another's, or none that a command line could take."""
        if not name.replace("_", "").isalnum() or name != name.lower():
            raise ValueError(f"method: expected a name of small letters, digits and underscores, got {name!r}")
        if self._known.get(name, method) is not method and _source(self._known[name]) != _source(method):
            raise ValueError(f"method: {name} is registered already, by {self._known[name].__module__}")
        self._known[name] = method

    def _all(self) -> dict[str, type[Method]]:
        if not self._looked:
            self._looked = True
            for point in entry_points(group=ENTRY_POINTS):
                try:
                    self.add(point.name, point.load())
                except Exception as error:  # another package's fault is no reason not to work
                    log.warning("method %s of %s: not loaded (%s)", point.name, point.value, error)
        return self._known

    def __getitem__(self, name: str) -> type[Method]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _source(method: type[Method]) -> str:
    """Where a class is defined: a notebook's cell that is run again defines another one of the same name."""
    return f"{method.__module__}.{method.__qualname__}"


METHODS = Methods()


def register(method: AnyMethod | None = None, *, name: str | None = None) -> Any:
    """Give a Method class a name, by which `distill(method=…)` and the command line take it; as a decorator, or called.

    name: None for the class's, in small letters. A package that is installed does it by an entry point instead: in the
    group ddfast.methods, its name and its class.

    Errors: TypeError for a class that is no Method; ValueError for a name that is taken.
    """

    def add(given: AnyMethod) -> AnyMethod:
        if not (isinstance(given, type) and issubclass(given, Method)):
            raise TypeError(f"register: expected a subclass of ddfast.methods.Method, got {given!r}")
        METHODS.add(name or given.__name__.lower(), given)
        return given

    return add if method is None else add(method)


def method_class(name: str) -> type[Method]:
    """The method of this name; ValueError that lists them for another."""
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}{did_you_mean(name, METHODS)}")
    return METHODS[name]
