"""An outer step as a CUDA graph: the same numbers, and without a GPU the same run and one message."""

import logging
from dataclasses import replace

import pytest
import torch

import ddfast
from ddfast import networks, seeds
from ddfast.data import load_dataset
from ddfast.methods import MTT, MatchingSettings
from ddfast.methods.cuda_graph import Replayed
from ddfast.planner import Plan
from tests.conftest import SMALL

SETTINGS = MatchingSettings(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=10.0, lr_lr=1e-3, lr_teacher=0.05, batch_syn=5
)


@pytest.fixture
def experts(pair):
    return ddfast.train_experts(pair, num_experts=2, epochs=2, batch_train=6, lr_teacher=0.05, dsa_strategy="none")


def method(pair, experts, settings=SETTINGS, network="convnet", **options):
    data = load_dataset(pair)
    images, labels = data.random_real(4, seeds.generator(0))
    synthetic = ddfast.SyntheticSet(
        images, labels, torch.tensor(0.05), data.class_names, data.preprocessing, settings.dsa_strategy
    )
    network = networks.create(network, generator=seeds.generator(1), **data.network_arguments)
    return MTT(settings, synthetic, experts, network, seeds.generator(2), **options)


PLANS = [Plan(), Plan(stored_steps=3), Plan(stored_steps=1), Plan(micro_batch=2)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch_syn", [None, 5])
def test_an_outer_step_waits_for_nothing_and_has_static_shapes(pair, experts, batch_syn, plan):
    """On the meta device, where any look at a value raises: what a capture needs. The first two plans are one op, of
    which this sees the outside; the others show the Python loop."""
    step = method(pair, experts, replace(SETTINGS, batch_syn=batch_syn), device="meta", plan=plan)
    segments, batches = step.segments.next(), step._batches()
    rows = step._augmentations(5 if batch_syn else 12)
    loss, updated = step._iteration(segments.start, segments.start, segments.target, batches, *rows)
    assert (loss.shape, updated.shape, updated.dtype) == ((), (), torch.bool)
    with pytest.raises(RuntimeError, match="meta"):
        bool(updated)


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


def test_what_cannot_be_captured_runs_as_it_is_from_the_state_that_it_had(monkeypatch, caplog):
    """The warm-up moves the state, and then the capture fails."""
    state, failed = torch.zeros(2), []

    def move(x):
        state.add_(x)
        return (state.clone(),)

    class Stream:
        wait_stream = staticmethod(lambda other: None)

    def fail(graph, capture_error_mode):
        failed.append(graph)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    replayed = Replayed(move, [state])
    assert [replayed(torch.ones(2))[0].tolist() for _ in range(3)] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert len(failed) == 1 and [r.getMessage() for r in caplog.records] == [
        "cuda_graph: not used, for the step cannot be captured (operation not permitted when stream is capturing)"
    ]


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
    for n in range(5):
        plain, replayed = (run.step() for run in runs)
        assert str(plain) == str(replayed)  # nan is not nan
        if n == 2:
            for run in runs:
                run.lr.data.fill_(float("nan"))
        if n == 3:
            assert not plain["updated"]
            for run in runs:
                run.restore()
    sets = [run.current() for run in runs]
    assert torch.equal(sets[0].images, sets[1].images) and torch.equal(sets[0].lr, sets[1].lr)
    assert not caplog.messages
