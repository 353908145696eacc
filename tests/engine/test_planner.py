"""Plans: what a budget buys, what is predicted, and that the prediction holds."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import BudgetTooSmallError, Plan, UnrollSize, make_plan, parse_budget, predict
from ddfast.engine.students import ModuleStudent, Student, student_of
from ddfast.engine.unroll import match_trajectory
from ddfast.networks import ConvNet, resnet18
from tests.networks_for_tests import make

CPU = torch.device("cpu")
MIB = 2**20


def convnet_setting(B=100, T=10, side=32, **options):
    student = student_of(ConvNet(3, 10, image_size=(side, side)))
    return student, UnrollSize(T, torch.Size((B, 3, side, side)), B, **options)


@pytest.mark.parametrize(
    "given, expected",
    [(1000, 1000), ("1000", 1000), ("4GiB", 4 * 2**30), ("1.5 MB", 1_500_000), ("200KiB", 200 * 2**10), (2.5e9, 2.5e9)],
)
def test_budgets_are_bytes_or_sizes(given, expected):
    assert parse_budget(given, CPU) == expected


def test_a_fraction_is_of_what_is_free(monkeypatch):
    monkeypatch.setattr("ddfast.engine.planner.free_bytes", lambda device: 1000)
    assert [parse_budget(given, CPU) for given in (0.5, "0.25", "50%", 1.0)] == [500, 250, 500, 1000]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "4 apples",
        "150%",
        "1.5",
        2.0,
        4,
        "GiB",
        "1.2.3GiB",
        "1" * 400 + "GiB",
        -1,
        0,
        float("nan"),
        float("inf"),
        True,
        [1],
    ],
)
def test_what_is_no_budget_is_refused(given):
    with pytest.raises(ValueError, match="memory_budget: expected bytes, a size like 4GiB or 500MB, or a share"):
        parse_budget(given, CPU)


def test_more_memory_buys_stored_steps_and_larger_chunks():
    student, size = convnet_setting()
    everything = make_plan(student, size, 100 * 2**30)
    assert (everything.micro_batch, everything.stored_steps) == (None, 10)
    shares = (99, 70, 40, 20, 8)
    smaller = [make_plan(student, size, everything.predicted_bytes * share // 100) for share in shares]
    assert [plan.stored_steps for plan in smaller] == [10, 7, 3, 1, 0]
    assert [plan.micro_batch for plan in smaller] == [50, 50, 50, 34, 8]
    for plan, share in zip(smaller, shares, strict=True):
        assert plan.predicted_bytes <= everything.predicted_bytes * share // 100
        assert plan.state_every == 1


def test_states_are_thinned_out_only_where_nothing_else_fits():
    student, size = convnet_setting(B=10, T=100)
    least = predict(student, size, Plan(micro_batch=1))
    plan = make_plan(student, size, least - 2**20)
    assert plan.state_every > 1 and plan.micro_batch is None and plan.stored_steps == 0
    with pytest.raises(ValueError, match=r"the smallest that does is (\d+) MiB") as error:
        make_plan(student, size, MIB)
    smallest = int(str(error.value).split()[-2]) * MIB
    assert make_plan(student, size, smallest).predicted_bytes <= smallest
    with pytest.raises(ValueError, match="too little"):
        make_plan(student, size, smallest - 2 * MIB)


def test_on_a_gpu_states_go_to_host_memory_before_anything_is_computed_twice():
    student, size = convnet_setting(B=10, T=100)
    gpu = replace(size, on_gpu=True)
    enough = predict(student, gpu, Plan())
    assert not make_plan(student, gpu, enough).host_states
    least = predict(student, gpu, Plan(micro_batch=1))
    plan = make_plan(student, gpu, least - 2**20)
    assert plan.host_states and plan.state_every == 1 and plan.micro_batch is None
    moved = enough - predict(student, gpu, Plan(host_states=True))
    assert moved == 99 * 4 * student.num_parameters
    assert "states in host memory" in plan.words(gpu)
    with pytest.raises(BudgetTooSmallError) as error:
        make_plan(student, gpu, MIB)
    assert error.value.smallest == predict(student, gpu, Plan(micro_batch=1, host_states=True))
    assert not make_plan(student, replace(gpu, return_states=True), 2 * enough).host_states


@pytest.mark.parametrize("wrong", [{"state_every": 0}, {"stored_steps": -1}, {"micro_batch": 0}, {"state_every": 1.5}])
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a whole number"):
        Plan(**wrong)


def test_the_largest_chunk_is_found_without_trying_all():
    """One step of a large module takes a second on the meta device."""
    student, sized = student_of(resnet18(3, 10, (32, 32))), []
    original = student.step_bytes
    student.step_bytes = lambda images, *rest: sized.append(images[0]) or original(images, *rest)
    size = UnrollSize(2, torch.Size((200, 3, 32, 32)), 200)
    best = next(c for c in (100, 67, 50) if predict(student, size, Plan(c)) < predict(student, size, Plan()) * 0.6)
    sized.clear()
    plan = make_plan(student, size, predict(student, size, Plan(best)))
    assert plan.micro_batch == best and len(set(sized)) < 10


def test_a_network_that_mixes_images_is_planned_in_whole_minibatches():
    student = ModuleStudent(make("convnet-batchnorm"))
    size = UnrollSize(4, torch.Size((64, 3, 16, 16)), 64, dtype=torch.float64)
    plan = make_plan(student, size, 2**30)
    assert plan.micro_batch is None and plan.stored_steps == 4
    with pytest.raises(ValueError, match="too little"):
        make_plan(student, size, plan.predicted_bytes // 4)


def test_a_student_that_does_not_know_what_it_needs_is_not_planned():
    class Own(Student):
        num_parameters = 3
        grad = grad_jvp = None

    size = UnrollSize(4, torch.Size((4, 3, 8, 8)), 4)
    assert predict(Own(), size, Plan()) is None
    with pytest.raises(
        ValueError, match="memory_budget: what a step of this network needs in this precision is not known"
    ):
        make_plan(Own(), size, 2**30)


def test_planning_leaves_a_module_and_the_random_numbers_alone():
    network = make("convnet-batchnorm")
    before, state = [b.clone() for b in network.buffers()], torch.get_rng_state()
    assert ModuleStudent(network).step_bytes(torch.Size((4, 3, 16, 16)), 1, torch.float64).grad_jvp > 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


PEAK = """
    import json, sys, torch
    from torch.nn.utils import parameters_to_vector
    from ddfast.engine.adjoints import CheckpointedUnroll
    from ddfast.engine.unroll import match_trajectory
    from ddfast.networks import ConvNet, resnet18
    from ddfast.ops import release_memory
    from ddfast.engine.planner import Plan, UnrollSize, predict
    from ddfast.engine.students import student_of

    def kilobytes(what):
        return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

    case = json.loads(sys.argv[1])
    torch.manual_seed(0)
    B, T, side, plan = case["B"], case["T"], case["side"], Plan(**case["plan"])
    network = resnet18(3, 10, (side, side)) if case.get("resnet") else ConvNet(3, 10, image_size=(side, side))
    start = parameters_to_vector(network.parameters()).detach()
    target, lr = start + 0.01, torch.tensor(0.01, requires_grad=True)

    def run(images, steps, plan):
        labels = torch.arange(len(images)) % 10
        adjoint = CheckpointedUnroll(plan=plan)
        match_trajectory(network, start, target, images, labels, lr, syn_steps=steps, adjoint=adjoint).backward()

    run(torch.randn(1, 3, side, side, requires_grad=True), 1, Plan())
    images = torch.randn(B, 3, side, side, requires_grad=True)
    release_memory()  # of the first run
    open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
    idle = kilobytes("VmRSS")
    run(images, T, plan)
    size = UnrollSize(T, images.shape, B)
    print((kilobytes("VmHWM") - idle) * 1024, predict(student_of(network), size, plan))
"""
HOST = {"host_states": True}
ROWS = {
    "recomputing all": {"B": 100, "T": 5, "side": 32, "plan": {}},
    "storing all": {"B": 50, "T": 10, "side": 32, "plan": {"stored_steps": 10}},
    "storing some, in micro-batches": {"B": 100, "T": 6, "side": 32, "plan": {"stored_steps": 3, "micro_batch": 34}},
    "one image per class": {"B": 10, "T": 20, "side": 32, "plan": {"stored_steps": 20}},
    "large images": {"B": 4, "T": 3, "side": 128, "plan": {"stored_steps": 1}},
    "many steps, few states": {"B": 4, "T": 60, "side": 32, "plan": {"state_every": 8}},
    "a network that runs by autograd": {"B": 32, "T": 2, "side": 32, "resnet": True, "plan": {}},
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_prediction_is_within_15_percent_of_the_measured_peak(row):
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), json.dumps(row)],
        # Every tensor of more than 64 KiB in pages of its own: the peak counts tensors, not the holes of glibc's heap.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    measured, predicted = map(int, output.split())
    assert abs(predicted - measured) <= 0.15 * measured


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "row", [*(row for row in ROWS.values() if "resnet" not in row), {"B": 4, "T": 60, "side": 32, "plan": HOST}]
)
def test_the_prediction_is_within_15_percent_of_the_measured_peak_on_a_gpu(row):
    B, T, side, plan = row["B"], row["T"], row["side"], Plan(**row["plan"])
    network = ConvNet(3, 10, image_size=(side, side)).cuda()
    start = parameters_to_vector(network.parameters()).detach()
    target, lr = start + 0.01, torch.tensor(0.01, device="cuda", requires_grad=True)
    images, labels = torch.randn(B, 3, side, side, device="cuda", requires_grad=True), torch.arange(B).cuda() % 10
    for _ in range(2):  # libraries load in the first
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        adjoint = CheckpointedUnroll(plan=plan)
        loss = match_trajectory(network, start, target, images, labels, lr, syn_steps=T, adjoint=adjoint)
        torch.autograd.grad(loss, (images, lr))
        measured = torch.cuda.max_memory_allocated() - idle
    predicted = predict(student_of(network), UnrollSize(T, images.shape, B, on_gpu=True), plan)
    assert abs(predicted - measured) <= 0.15 * measured


def test_a_module_is_predicted_without_computing():
    student = student_of(resnet18(3, 10, (32, 32)))
    few, more, most = (student.step_bytes(torch.Size((B, 3, 32, 32)), 1, torch.float32).grad_jvp for B in (8, 16, 32))
    assert most - more == pytest.approx(2 * (more - few), rel=0.01)
