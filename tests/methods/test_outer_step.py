"""What an outer step keeps on the device, how often it waits for it, and what it leaves when it is stopped."""

import copy
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ddfast
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.engine import reverse
from ddfast.methods import METHODS, Resources, learned_set
from ddfast.methods.descent import Descent
from ddfast.run import loop
from ddfast.run.loop import MOST_SKIPS, Distillation, DistillationDivergedError
from ddfast.run.resolve import resolve
from ddfast.runtime import seeds
from tests.conftest import OF_TRAJECTORIES, SMALL, normal

NETWORK = "convnet:width=8"
COMMON = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "lr_img": 10.0, "lr_lr": 1e-3, "lr_teacher": 0.05}
PART = {"batch_syn": 3, "ipc": 8}  # 6 of 24 images visit in a step
VARIANTS = [
    ("mtt", {"img_optimizer": "adam", "lr_img": 0.05, "ema_decay": 0.9}),
    ("mtt", {"labels": "soft", "lr_label": 1.0, "threshold": 1.0, "segments": 2}),
    ("mtt", {"dsa_strategy": "flip_color", "start_noise": 0.01, "distance": "layerwise"}),
    ("tesla", {"labels": "target"}),
    ("tesla", PART | {"labels": "target"}),
    ("mtt", PART),
    ("datm", PART | {"threshold": 1.0, "lr_label": 1.0}),
    ("att", {"segments": 3, "syn_steps": 4}),
]
ALL = [(name, {}) for name in OF_TRAJECTORIES] + VARIANTS


@pytest.fixture
def make(pair):
    """A method on random real images of the pair."""
    options = {"num_experts": 2, "train_epochs": 3, "batch_train": 6, "train_lr": 0.05, "dsa_strategy": "none"}
    experts, data = ddfast.train_experts(pair, network=NETWORK, **options), load_dataset(pair)

    def made(name="mtt", ipc=2, device=None, **options):
        settings = METHODS[name].Settings(**{"dsa_strategy": "none"} | COMMON | {"init": "real"} | options)
        images, labels = data.random_real(ipc, seeds.generator(0))
        if settings.labels != "hard":
            labels = normal(len(images), 3).float()
        images, lr = images.repeat(1, 1, settings.canvas, settings.canvas), torch.tensor(settings.lr_teacher)
        about = data.class_names, data.preprocessing, settings.dsa_strategy, settings.canvas
        network = networks.create(NETWORK, generator=seeds.generator(1), **data.network_arguments)
        synthetic = ddfast.SyntheticSet(images, labels, lr, *about)
        resources = Resources(network, seeds.generator(2), torch.device(device or "cpu"), experts=experts)
        return METHODS[name](settings, synthetic, resources)

    return made


def state_of(method):
    average = method.averaged()
    sets = [method.current(), *([] if average is None else [average])]
    return [tensor for s in sets for tensor in (s.images, s.labels, s.lr)], method.learned.descent.counts()


def assert_the_same(got, expected):
    assert got[1] == expected[1]
    assert all(torch.equal(a, b) for a, b in zip(got[0], expected[0], strict=True))


# Waits: on the meta device any look at a value raises, but for the one function that reads what a step came to.


class HostCopies(TorchDispatchMode):
    """Counts copies from the host to "the device" that would wait for it."""

    def __init__(self):
        super().__init__()
        self.waiting = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        source = next((a for a in reversed(arguments) if isinstance(a, torch.Tensor)), None)
        to_meta = isinstance(result, torch.Tensor) and result.is_meta and source is not None and not source.is_meta
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and to_meta:
            given = options.get("non_blocking", arguments[2] if len(arguments) > 2 else False)
            self.waiting += [] if given else [str(function)]
        return result


@pytest.fixture
def reads(monkeypatch):
    """What is read from the device, answered by numbers that go on; ATT's second read is where its backward begins."""
    seen = []

    def read(tensors):
        seen.append(len(tensors))
        numbers = [1.0, 0.05, 1.0, 1.0] + [0.0] * (len(tensors[0]) - 4)
        return [torch.tensor(numbers, dtype=torch.float64), *(torch.zeros(t.shape, dtype=t.dtype) for t in tensors[1:])]

    monkeypatch.setattr(learned_set, "to_host", read)
    monkeypatch.setattr(reverse, "last_used", lambda grad: seen.append("last used") or 1)
    return seen


@pytest.mark.parametrize("name, options", ALL)
def test_a_step_waits_for_the_device_once(make, reads, name, options):
    """ATT once more: its backward begins at the state that it chose."""
    method = make(name, device="meta", **options)
    with HostCopies() as copies:
        for _ in range(2):
            reads.clear()
            assert method.step()["updated"]
            assert len(reads) == (2 if name == "att" else 1)
    assert not copies.waiting


@pytest.mark.parametrize("name", OF_TRAJECTORIES)
def test_a_whole_iteration_of_a_run_waits_once(pair, reads, name):
    given = {"dataset": pair, "method": name, "device": "cpu", "network": NETWORK} | SMALL | {"iterations": 3}
    job = resolve(given)
    store = ddfast.train_experts(
        job.data, network=NETWORK, num_experts=2, train_epochs=2, optimizer=job.config["optimizer"]
    )
    initial = loop.initial_of(job, store)
    job.device = torch.device("meta")
    records = list(Distillation(job, store, initial))
    assert [record["iteration"] for record in records] == [1, 2, 3] and all(r["updated"] for r in records)
    assert len(reads) == (6 if name == "att" else 3)


# What is kept: storages of the size of the images, counted as they come and go.


class ImageSized(TorchDispatchMode):
    """Counts the living storages of some size that operations make."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.living, self.most = size, {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() == self.size:
                storage = tensor.untyped_storage()
                self.living[storage._cdata] = weakref.ref(storage)
        self.most = max(self.most, self.count())
        return result

    def count(self) -> int:
        return sum(reference() is not None for reference in self.living.values())


KEPT = [  # images, velocity; Adam's moments; an average; label logits are of another size
    ({}, 2, 1),
    ({"ema_decay": 0.9}, 3, 1),
    ({"img_optimizer": "adam"}, 3, 2),
    ({"img_optimizer": "adam", "ema_decay": 0.9}, 4, 2),
    ({"labels": "soft", "lr_label": 1.0, "threshold": 1e9}, 2, 1),
]


@pytest.mark.parametrize("options, kept, slots", KEPT)
def test_between_steps_only_what_is_learned_is_kept(make, options, kept, slots, monkeypatch):
    """And in the update: the images as they are now, the slots after it, the gradient or what takes its room, and for
    Adam one more."""
    method = make(**options)
    size = method.current().images.nbytes
    with ImageSized(size) as images:
        propose, commit, most = Descent.propose, Descent.commit, []

        def counted(function):
            def wrapped(*arguments):
                images.most = 0
                result = function(*arguments)
                most.append(images.most)
                return result

            return wrapped

        monkeypatch.setattr(Descent, "propose", counted(propose))
        monkeypatch.setattr(Descent, "commit", counted(commit))
        for _ in range(4):
            method.step()
            assert images.count() <= kept  # the first average is the first images
    assert kept == images.count() and max(most) == kept + 1 + slots + slots


def test_between_steps_nothing_of_a_part_that_visited_is_on_the_device(make):
    """Here the device is the host too: what the last visit left, until it is written back, is all there is."""
    method = make(**PART)
    size = method.current().images.nbytes // 4
    with ImageSized(size) as images:
        for _ in range(3):
            method.step()
    assert images.count() == 2 and method.learned.descent.now()[0] is None


# Stopping: at every line that an iteration runs, and at every operation.

ROOMS = tuple(str(Path(loop.__file__).parents[1] / name) for name in ("methods", "run/loop.py"))


class Stop(BaseException):
    """As Ctrl-C is: no Exception."""


def stopped_at(line: int, run) -> bool:
    """Whether `run` was stopped, at the so-manieth line of the outer loop's own code."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(ROOMS):
            return None
        if event == "line":
            count += 1
            if count == line:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except Stop:
        return True
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(True)  # a stop between a block's last line and its end leaves what it had set
    return False


STOPPED = [("mtt", PART | {"dsa_strategy": "flip"}), ("ftd", {}), ("tesla", {"labels": "target"})]


@pytest.mark.parametrize("name, options", STOPPED)
def test_an_iteration_that_is_stopped_at_some_lines_did_not_happen(pair, name, options):
    assert_stops_leave_no_trace(pair, name, options, every=13)


def assert_stops_leave_no_trace(pair, name, options, every):
    """Stopped at every so-manieth line of an iteration, a run is where it was, and ends as if it had not been."""
    given = {"dataset": pair, "method": name, "device": "cpu", "network": NETWORK, "memory_budget": "1GiB"}
    given |= SMALL | {"iterations": 4, "dsa_strategy": "none"} | options
    job = resolve(given)
    store = ddfast.train_experts(
        job.data, network=NETWORK, num_experts=2, train_epochs=2, optimizer=job.config["optimizer"]
    )
    initial = loop.initial_of(job, store)
    whole = Distillation(job, store, initial)
    states = []
    for _ in whole:
        states.append(state_of(whole.method))
    run = Distillation(job, store, initial)
    records = iter(run)
    next(records)
    beginning = copy.deepcopy(run.state_dict())
    line, stops = 1, 0
    while stopped_at(line, lambda records=records: next(records)):
        run.rollback()
        assert run.iteration in (1, 2)  # 2: between its end and the next one's begin
        assert_the_same(state_of(run.method), states[run.iteration - 1])
        stops, line = stops + 1, line + every
        if run.iteration == 2 or stops % 10 == 0:
            list(run)
            assert_the_same(state_of(run.method), states[-1])
            run = Distillation(job, store, initial)
            run.load_state_dict(beginning)
        records = iter(run)
    assert stops > 100 / every
    list(records)
    assert_the_same(state_of(run.method), states[-1])


class StopAt(TorchDispatchMode):
    """Stops at an operation."""

    def __init__(self, at: int):
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.left -= 1
        if self.left == 0:
            raise Stop
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name, options", [*VARIANTS, ("mtt", {})])
def test_a_step_that_is_stopped_at_any_operation_changes_nothing(make, name, options):
    """Without a rollback by the caller: also where memory runs out."""
    method, whole = make(name, **options), make(name, **options)
    for run in (method, whole):
        run.step()
    before, at = state_of(method), 1
    record = whole.step()
    while True:
        try:
            with StopAt(at):
                got = method.step()
            break
        except (Stop, ValueError):  # safetensors makes another error of it
            assert_the_same(state_of(method), before)
            at += 11
    assert at > 40 and got == record
    assert_the_same(state_of(method), state_of(whole))


@pytest.mark.parametrize("name, options", [("mtt", {}), ("ftd", {}), ("mtt", PART), ("datm", {"lr_label": 1.0})])
def test_a_run_of_skipped_updates_ends_with_the_images_before_the_one_that_led_there(make, name, options, monkeypatch):
    """Bit for bit those that the last finite loss was computed with, through a checkpoint in between too."""
    method = make(name, **options)
    for _ in range(3):
        good = state_of(method)[0]
        method.step()
    with monkeypatch.context() as patch:
        patch.setattr(method, "compare", lambda student, *_: student.sum(1) * float("nan"))
        for _ in range(2):
            method.step()
    other = make(name, **options)
    other.load_state_dict(method.state_dict())
    for run in (method, other):
        run.restore()
        if options is PART:  # the momentum of images that were not in it is taken back by a formula
            torch.testing.assert_close(state_of(run)[0], good)
        else:
            assert all(torch.equal(a, b) for a, b in zip(state_of(run)[0], good, strict=True))
        assert run.learned.descent.counts()["skipped"] == 2
    assert method.step() == other.step()
    assert_the_same(state_of(method), state_of(other))


def test_a_run_that_is_stopped_while_it_goes_back_goes_back_when_it_goes_on(pair, monkeypatch):
    given = {"dataset": pair, "device": "cpu", "network": NETWORK} | SMALL | {"iterations": 100}
    job = resolve(given)
    store = ddfast.train_experts(job.data, network=NETWORK, num_experts=2, train_epochs=2)
    initial, ends = loop.initial_of(job, store), []
    for stops in (False, True):
        run = Distillation(job, store, initial)
        compare, restore = run.method.compare, run.method.restore
        run.method.compare = lambda *given, f=compare, run=run: f(*given) * (float("nan") if run.iteration > 3 else 1)
        if stops:
            run.method.restore = lambda restore=restore: restore() or (_ for _ in ()).throw(Stop)
            with pytest.raises(Stop):
                list(run)
            run.method.restore = restore
            run.rollback()
        with pytest.raises(DistillationDivergedError, match=f"{MOST_SKIPS} updates in a row"):
            list(run)
        ends.append((run.iteration, state_of(run.method)))
    assert ends[0][0] == ends[1][0] == 4 + MOST_SKIPS
    assert_the_same(ends[0][1], ends[1][1])
    assert all(tensor.isfinite().all() for tensor in ends[0][1][0])
