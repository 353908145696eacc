"""The adjoints agree with plain autograd through all steps, and their memory stays flat."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import ConvNetStudent
from ddfast.engine.unroll import match_trajectory, unroll
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import NETWORKS, SIDE, K, make

IMAGES = 6
EXACT = 1e-9  # float64, against plain autograd
REPEATING = [[0, 1, 1], [3, 4, 0], [2, 2, 2], [1, 3, 4]]  # image 5 is never seen


def setting(network, *, soft=False, students=None, lr=None, device="cpu"):
    """Leaves start, images, labels, lr, of which all but hard labels require grad."""
    start = parameters_to_vector(network.parameters()).detach()
    if students is not None:
        start = torch.stack([start + 0.05 * normal(len(start), seed=s) for s in range(students)])
    images = normal(IMAGES, 3, SIDE, SIDE, seed=1)
    labels = uniform(IMAGES, K, seed=2) if soft else torch.arange(IMAGES) % K
    lr = torch.tensor(0.05, dtype=torch.float64) if lr is None else lr
    start, images, labels, lr = (t.detach().to(device) for t in (start, images, labels, lr))
    return [start.requires_grad_(), images.requires_grad_(), labels.requires_grad_(soft), lr.requires_grad_()]


def gradients(name, adjoint, *, soft=False, students=None, lr=None, loss=None, device="cpu", **options):
    """The meta-gradients of a loss of the unroll, for a fresh network and one state of the random numbers."""
    network = make(name).to(device)
    leaves = setting(network, soft=soft, students=students, lr=lr, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        result = unroll(network, *leaves, adjoint=adjoint, **options)
        loss = loss or (
            lambda result: (result * normal(*result.shape, seed=3, device=device)).sum() + result.square().sum()
        )
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return [result, *torch.autograd.grad(loss(result), wanted)]


def assert_equal(name, tolerance=EXACT, **options):
    got = gradients(name, CheckpointedUnroll(), **options)
    expected = gradients(name, FullUnroll(), **options)
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < tolerance


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])
@pytest.mark.parametrize("soft", [False, True])
def test_checkpoints_do_not_change_the_gradient(name, soft, device):
    assert_equal(name, soft=soft, syn_steps=4, device=device)


def test_checkpoints_do_not_change_the_gradient_of_a_resnet():
    assert_equal("resnet18", soft=True, batches=torch.tensor([[0, 1], [1, 2]]))


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm", "dropout"])
def test_minibatches_that_repeat_and_skip_images(name, device):
    options = {
        "device": device,
        "batches": torch.tensor(REPEATING, device=device),
        "soft": True,
        "momentum": 0.5,
        "weight_decay": 0.01,
    }
    assert_equal(name, **options)
    skipped = gradients(name, CheckpointedUnroll(), **options)[2][5]
    assert skipped.abs().max() == 0


@pytest.mark.parametrize("momentum, weight_decay", [(0.9, 0.0), (0.0, 0.1), (0.5, 0.1)])
def test_momentum_and_weight_decay(momentum, weight_decay):
    assert_equal("convnet", syn_steps=5, momentum=momentum, weight_decay=weight_decay)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_loss_of_all_states(momentum):
    assert_equal("convnet", syn_steps=4, return_states=True, momentum=momentum, weight_decay=0.01, soft=True)


def test_a_loss_of_a_state_in_the_middle():
    assert_equal("convnet", syn_steps=4, return_states=True, loss=lambda states: states[2].square().sum())


@pytest.mark.parametrize("plan", [Plan(), Plan(stored_steps=3), Plan(micro_batch=2)])
@pytest.mark.parametrize("used", [0, 2, 4])
def test_a_backward_from_the_last_used_state_is_the_same_and_does_no_more(used, plan, monkeypatch):
    calls = []
    original = ConvNetStudent.grad_jvp
    monkeypatch.setattr(ConvNetStudent, "grad_jvp", lambda *a, **k: calls.append(1) or original(*a, **k))
    options = {"syn_steps": 4, "return_states": True, "momentum": 0.5}
    options["loss"] = lambda states: states[used].square().sum() + states[used // 2].sum()
    plain = gradients("convnet", CheckpointedUnroll(plan=plan), **options)
    all_calls = len(calls)
    calls.clear()
    from_used = gradients("convnet", CheckpointedUnroll(plan=plan, from_last_used=True), **options)
    for one, other in zip(plain, from_used, strict=True):
        assert torch.equal(one, other)
    assert len(calls) * 4 == all_calls * used


@pytest.mark.parametrize("states", [False, True])
def test_one_step(states):
    assert_equal("convnet", syn_steps=1, return_states=states)


PLANS = {
    "stored": Plan(stored_steps=4),
    "some stored": Plan(stored_steps=2),
    "micro-batches": Plan(micro_batch=2),
    "stored micro-batches of unequal size": Plan(micro_batch=4, stored_steps=3),
    "every second state": Plan(state_every=2),
    "every third state, some stored, in micro-batches": Plan(micro_batch=1, stored_steps=2, state_every=3),
    "the first state only": Plan(state_every=9),
    "states in host memory": Plan(host_states=True, stored_steps=2),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", ["convnet", "convnet-sigmoid-groupnorm-maxpooling"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "weight_decay": 0.1}], ids=["plain", "momentum"])
def test_no_plan_changes_the_gradient(name, plan, options, device):
    options = {"syn_steps": 4, "soft": True, "students": 2, "device": device, **options}
    got = gradients(name, CheckpointedUnroll(plan=plan), **options)
    for g, e in zip(got, gradients(name, FullUnroll(), **options), strict=True):
        assert relative_error(g, e) < EXACT


@pytest.mark.parametrize("name", ["dropout", "convnet-batchnorm"])
@pytest.mark.parametrize("every", [2, 3])
def test_states_computed_again_see_what_the_forward_sweep_saw(name, every):
    got = gradients(name, CheckpointedUnroll(plan=Plan(state_every=every)), syn_steps=5, momentum=0.5)
    for g, e in zip(got, gradients(name, FullUnroll(), syn_steps=5, momentum=0.5), strict=True):
        assert relative_error(g, e) < EXACT


def test_stored_steps_do_not_change_a_bit_and_survive_a_second_backward():
    network = make("convnet")
    start, images, labels, lr = setting(network)
    results = []
    for plan in (Plan(), Plan(stored_steps=3)):
        loss = unroll(network, start, images, labels, lr, syn_steps=3, adjoint=CheckpointedUnroll(plan=plan)).sum()
        results += [torch.autograd.grad(loss, images, retain_graph=True)[0] for _ in range(2)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_detached_form_takes_plans_too():
    plain = gradients("convnet", DetachedUnroll(), syn_steps=3, soft=True)
    planned = gradients("convnet", DetachedUnroll(plan=Plan(micro_batch=2, stored_steps=2)), syn_steps=3, soft=True)
    assert all(relative_error(a, b) < EXACT for a, b in zip(planned, plain, strict=True))


def test_a_network_that_mixes_images_is_not_cut_into_micro_batches():
    message = r"micro_batch: a minibatch cannot be cut into chunks: features\.1 \(BatchNorm2d\) mixes the images"
    with pytest.raises(ValueError, match=message):
        gradients("convnet-batchnorm", CheckpointedUnroll(plan=Plan(micro_batch=2)), syn_steps=2)


def test_batch_norm_in_eval_mode_is_cut_into_micro_batches():
    network = make("convnet-batchnorm").eval()
    start, images, labels, lr = setting(network)
    got, expected = (
        torch.autograd.grad(
            unroll(network, start, images, labels, lr, syn_steps=2, adjoint=CheckpointedUnroll(plan=plan)).sum(), images
        )[0]
        for plan in (Plan(micro_batch=4), Plan())
    )
    assert relative_error(got, expected) < EXACT


def test_a_memory_budget_is_planned_for_and_too_small_a_one_names_the_smallest():
    network = make("convnet")
    arguments = setting(network)
    plain = unroll(network, *arguments, syn_steps=4)
    for budget in ("1GiB", 0.5, 400_000):
        result = unroll(network, *arguments, syn_steps=4, adjoint=CheckpointedUnroll(memory_budget=budget))
        assert relative_error(result.detach(), plain.detach()) < EXACT
    with pytest.raises(
        ValueError, match=r"memory_budget: 0\.000954 MiB is too little for this unroll; the smallest that does"
    ):
        unroll(network, *arguments, syn_steps=4, adjoint=CheckpointedUnroll(memory_budget=1000))
    with pytest.raises(ValueError, match="at most one of them"):
        CheckpointedUnroll(1000, plan=Plan())


@pytest.mark.parametrize("students", [1, 3])
def test_students_side_by_side(students):
    assert_equal("convnet", batches=torch.tensor(REPEATING), students=students, soft=True, momentum=0.5)


def test_students_side_by_side_are_independent():
    network = make("convnet")
    start, images, labels, lr = setting(network, students=2)
    both = unroll(network, start, images, labels, lr, syn_steps=3)
    for s in range(2):
        assert relative_error(both[s], unroll(network, start[s], images, labels, lr, syn_steps=3)) < EXACT


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_learning_rate_per_step(weight_decay):
    lr = torch.tensor([0.1, 0.02, 0.0, 0.05], dtype=torch.float64)
    assert_equal("convnet", syn_steps=4, lr=lr, weight_decay=weight_decay)


def test_a_learning_rate_of_zero_is_safe():
    assert_equal("convnet", syn_steps=3, lr=torch.tensor(0.0, dtype=torch.float64), momentum=0.5)


def test_augmentation_is_replayed_step_by_step():
    def augment(images, n):
        return torch.roll(images, n, 3) * (1 + 0.1 * n) + 0.2 * images.mean((1, 2, 3), keepdim=True)

    assert_equal("convnet", batches=torch.tensor(REPEATING), augment=augment)


def test_a_network_that_works_in_place_leaves_the_images_alone():
    network = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, K))
    start, images, labels, lr = setting(network.double())
    before = images.detach().clone()
    unroll(network, start, images, labels, lr, syn_steps=2).sum().backward()
    assert torch.equal(images, before) and images.grad.abs().max() > 0


def test_batches_may_be_overwritten_before_the_backward():
    network = make("convnet")
    start, images, labels, lr = setting(network)
    grads = []
    for overwrite in (False, True):
        batches = torch.tensor(REPEATING)
        result = unroll(network, start, images, labels, lr, batches=batches)
        if overwrite:
            batches.zero_()
        grads.append(torch.autograd.grad(result.sum(), images)[0])
    assert torch.equal(*grads)


def test_a_gradient_does_not_depend_on_which_others_are_asked_for():
    network = make("convnet")
    start, images, labels, lr = setting(network, soft=True)
    (expected,) = torch.autograd.grad(unroll(network, start, images, labels, lr, syn_steps=3).sum(), images)
    start, labels, lr = start.detach(), labels.detach(), lr.detach()
    result = unroll(network, start, images, labels, lr, syn_steps=3)
    (got,) = torch.autograd.grad(result.sum(), images)
    assert relative_error(got, expected) < EXACT


def test_gradcheck_of_the_whole_iteration():
    network = make("convnet-sigmoid-groupnorm-maxpooling")
    start, images, labels, lr = setting(network, soft=True)
    target = start.detach() + 0.1 * normal(len(start), seed=5)

    def loss(images, labels, lr):
        return match_trajectory(
            network, start.detach(), target, images, labels, lr, batches=torch.tensor([[0, 1], [1, 0]])
        )

    inputs = [t[:2].detach().requires_grad_() for t in (images, labels)] + [lr]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("momentum, weight_decay", [(0.0, 0.0), (0.5, 0.1)])
def test_detached_is_exact_at_one_step(momentum, weight_decay):
    options = {"syn_steps": 1, "soft": True, "momentum": momentum, "weight_decay": weight_decay}
    got = gradients("convnet", DetachedUnroll(), **options)
    expected = gradients("convnet", FullUnroll(), **options)
    for g, e in zip(got[2:], expected[2:], strict=True):  # the gradient in the start is what it drops
        assert relative_error(g, e) < EXACT


def test_detached_is_not_exact_beyond_one_step():
    got = gradients("convnet", DetachedUnroll(), syn_steps=3, soft=True)
    expected = gradients("convnet", FullUnroll(), syn_steps=3, soft=True)
    assert all(relative_error(g, e) > 1e-3 for g, e in zip(got[2:], expected[2:], strict=True))


def test_dropout_draws_other_numbers_in_every_step_and_leaves_the_global_state_to_the_forward_sweep():
    network = make("dropout")
    start, images, labels, lr = setting(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        states = unroll(network, start, images, labels, lr, syn_steps=2, return_states=True)
        after_forward = torch.get_rng_state()
        states.sum().backward()
        assert torch.equal(after_forward, torch.get_rng_state())
        torch.manual_seed(3)
        again = unroll(network, start, images, labels, lr, syn_steps=2, return_states=True)
        assert torch.equal(states, again)
        assert not torch.equal(states, unroll(network, start, images, labels, lr, syn_steps=2, return_states=True))


def test_batch_norm_buffers_are_updated_once_per_step_and_not_by_the_backward():
    network = make("convnet-batchnorm")
    start, images, labels, lr = setting(network)
    result = unroll(network, start, images, labels, lr, syn_steps=3)
    norm = network.features[1]
    assert int(norm.num_batches_tracked) == 3
    before = [buffer.clone() for buffer in network.buffers()]
    result.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))


def test_the_modules_parameters_are_neither_read_nor_changed():
    network = make("convnet")
    start, images, labels, lr = setting(network)
    expected = unroll(network, start, images, labels, lr, syn_steps=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(unroll(network, start, images, labels, lr, syn_steps=2), expected)


def test_the_same_bits_twice(device):
    def run():
        batches = torch.tensor(REPEATING, device=device)
        return gradients("convnet", CheckpointedUnroll(), batches=batches, soft=True, momentum=0.5, device=device)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm"])
def test_a_second_derivative_through_the_checkpointed_unroll_is_refused(name):
    network = make(name)
    start, images, labels, lr = setting(network)
    result = unroll(network, start, images, labels, lr, syn_steps=2)
    (grad,) = torch.autograd.grad(result.square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|second derivatives are not available"):
        grad.sum().backward()


PEAK = """
    import sys, torch
    from ddfast.engine.unroll import match_trajectory
    from ddfast.networks import ConvNet
    from torch.nn.utils import parameters_to_vector

    def peak_kilobytes():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ConvNet(3, 10, width=128, image_size=(32, 32))
    start = parameters_to_vector(network.parameters()).detach()
    images = torch.randn(10, 3, 32, 32, requires_grad=True)
    lr = torch.tensor(0.01, requires_grad=True)

    def run(steps):
        match_trajectory(network, start, start + 0.01, images, torch.arange(10), lr, syn_steps=steps).backward()

    run(1)
    idle = peak_kilobytes()
    run(int(sys.argv[1]))
    print((peak_kilobytes() - idle) * 1024, len(start))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_peak_memory_grows_by_no_more_than_the_states():
    def peak(steps):
        # Every tensor of more than 64 KiB in pages of its own, so that the peak counts tensors, and not the holes of
        # glibc's heap: those differ by 10 MB from run to run.
        output = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PEAK), str(steps)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return map(int, output.split())

    (short, P), (long, _) = peak(10), peak(40)
    states = 30 * 4 * P
    assert long >= states * 0.9, "the states themselves must show, or nothing was measured"
    assert long - short <= states * 1.1
