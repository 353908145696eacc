"""An outer step as a CUDA graph: the same numbers, and without a GPU the same run and one message."""

import logging
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import ddfast
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.engine.planner import Plan
from ddfast.methods import METHODS, Resources, TrajectorySettings
from ddfast.methods.trajectory.cuda_graph import Replayed
from ddfast.runtime import seeds
from tests.conftest import SMALL

SETTINGS = TrajectorySettings(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=10.0, lr_lr=1e-3, lr_teacher=0.05, batch_syn=5
)


@pytest.fixture
def experts(pair):
    return ddfast.train_experts(pair, num_experts=2, train_epochs=2, batch_train=6, train_lr=0.05, dsa_strategy="none")


def method(pair, experts, settings=SETTINGS, network="convnet", name="mtt", **options):
    data = load_dataset(pair)
    images, labels = data.random_real(4, seeds.generator(0))
    if settings.labels != "hard":
        labels = torch.nn.functional.one_hot(labels).float()
    synthetic = ddfast.SyntheticSet(
        images, labels, torch.tensor(0.05), data.class_names, data.preprocessing, settings.dsa_strategy
    )
    network = networks.create(network, generator=seeds.generator(1), **data.network_arguments)
    options["device"] = torch.device(options.get("device", "cpu"))
    return METHODS[name](settings, synthetic, Resources(network, seeds.generator(2), experts=experts, **options))


PLANS = [Plan(), Plan(stored_steps=3), Plan(stored_steps=1), Plan(micro_batch=2)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch_syn", [None, 5])
def test_an_outer_step_waits_for_nothing_and_has_static_shapes(pair, experts, batch_syn, plan, monkeypatch):
    """On the meta device, where any look at a value raises: what a capture needs. The first two plans are one op, of
    which this sees the outside; the others show the Python loop."""
    shapes = []
    step = method(pair, experts, replace(SETTINGS, batch_syn=batch_syn), device="meta", plan=plan)

    def iteration(*inputs, captured=step._run):
        before = [None if x is None else x._version for x in inputs]
        results = captured(*inputs)
        assert [None if x is None else x._version for x in inputs] == before  # a replay finds what was given
        shapes.append([None if x is None else x.shape for x in (*inputs, *results)])
        return results

    monkeypatch.setattr(step, "_run", iteration)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="meta"):
            step.step()  # reads what came of it, at its end
    assert len(shapes) == 2 and shapes[0] == shapes[1]


def test_without_a_gpu_the_run_is_the_same_and_one_message_says_so(pair, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ddfast")
    results = [
        ddfast.distill(pair, output=tmp_path / str(graph), cuda_graph=graph, device="cpu", **SMALL)
        for graph in (False, True)
    ]
    assert torch.equal(results[0].synthetic.images, results[1].synthetic.images)
    messages = [message for message in caplog.messages if "cuda_graph" in message]
    assert messages == ["cuda_graph: not used, it needs a GPU, and this runs on cpu"]
    with pytest.raises(ValueError, match="cuda_graph: expected True or False, got 'yes'"):
        ddfast.distill(pair, output=tmp_path / "x", cuda_graph="yes", **SMALL)


class Stream:
    wait_stream = staticmethod(lambda other: None)


def emulate(monkeypatch, graph, recorded):
    """torch.cuda as far as a capture uses it."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda given: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", recorded)
    monkeypatch.setattr(torch.cuda, "graph", graph)


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch, caplog):
    failed = []

    def fail(graph, capture_error_mode):
        failed.append(graph)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    emulate(monkeypatch, fail, object)
    replayed = Replayed(lambda x, y: (x + 1, y))
    assert [replayed(torch.tensor(float(n)), None)[0].item() for n in range(3)] == [1.0, 2.0, 3.0]
    assert len(failed) == 1 and [r.getMessage() for r in caplog.records] == [
        "cuda_graph: not used, because the step cannot be captured (operation not permitted when stream is capturing)"
    ]


def assert_the_same_run(runs):
    """Records and sets of five steps, one of them skipped."""
    marks = []
    for n in range(5):
        if n == 3:
            marks = [run.mark() for run in runs]
            for run in runs:
                state = run.state_dict()
                images, lr, *labels = state["descent"]["tensors"]
                spoilt = {"tensors": (images, lr * float("nan"), *labels)}
                run.load_state_dict(state | {"descent": state["descent"] | spoilt})
        plain, replayed = (run.step() for run in runs)
        assert str(plain) == str(replayed)  # nan is not nan
        assert plain["updated"] == (n != 3)
        if n == 3:
            for run, mark in zip(runs, marks, strict=True):
                run.rollback(mark)
    sets = [run.current() for run in runs]
    for name in ("images", "labels", "lr"):
        assert torch.equal(getattr(sets[0], name), getattr(sets[1], name))


RUNS = [("mtt", {}), ("mtt", {"batch_syn": 5}), ("ftd", {"ema_decay": 0.9}), ("tesla", {"labels": "target"})]


@pytest.mark.parametrize("name, options", RUNS)
def test_a_run_of_replays_that_write_to_the_same_addresses_is_the_plain_run(pair, experts, name, options, monkeypatch):
    """What is kept of a replay's results must not be overwritten by the next one."""
    settings = METHODS[name].Settings(**vars(replace(SETTINGS, batch_syn=None)) | options)
    runs = [method(pair, experts, settings, name=name) for _ in range(2)]
    replayed = runs[1]._run = Replayed(runs[1]._iteration, "cpu")
    replays = []

    class Graph:
        def replay(self):
            """Compute again from the static inputs, into the addresses of the capture."""
            replays.append(self)
            results = replayed._function(*replayed._inputs)
            for static, new in zip(replayed._results, results, strict=True):
                if static is not None:
                    static.detach().copy_(new)

    emulate(monkeypatch, lambda graph, capture_error_mode: nullcontext(), Graph)
    assert_the_same_run(runs)
    assert len(replays) == 5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch_syn", [None, 5])
def test_replays_give_the_same_numbers(pair, experts, batch_syn, plan, caplog, monkeypatch):
    """Losses, images and learning rate of five steps, one of them skipped."""
    caplog.set_level(logging.WARNING, "ddfast")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    runs = [
        method(
            pair,
            experts,
            replace(SETTINGS, batch_syn=batch_syn),
            device="cuda",
            plan=plan,
            cuda_graph=graph,
        )
        for graph in (False, True)
    ]
    assert_the_same_run(runs)
    assert not caplog.messages
