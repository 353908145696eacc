"""The unroll as one op against plain autograd through all steps, its reference, and the loop in Python."""

import contextlib

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddfast.data import DSA
from ddfast.engine.adjoints import CheckpointedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import ConvNetStudent, ModuleStudent
from ddfast.engine.unroll import match_trajectory, unroll
from ddfast.networks import ConvNet
from ddfast.ops import reference_mode
from ddfast.runtime import seeds
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import SIDE, K, make

EXACT = 1e-9  # float64
IMAGES, T = 6, 4
BATCHES = [[0, 1, 1], [3, 4, 0], [2, 2, 2], [1, 3, 4]]
OPTIONS = {
    "all images": {"syn_steps": T},
    "minibatches": {"batches": BATCHES},
    "momentum and decay": {"syn_steps": T, "momentum": 0.5, "weight_decay": 0.1},
    "augmented": {"syn_steps": T, "augment": True},
    "minibatches, augmented, momentum": {"batches": BATCHES, "augment": True, "momentum": 0.9},
    "one rate per step": {"syn_steps": T, "lr": [0.1, 0.02, 0.0, 0.05], "weight_decay": 0.1},
}


def call(student, adjoint, *, soft=False, students=2, device="cpu", batches=None, augment=False, lr=0.05, **options):
    """θ_T and the gradients of a function of it in start, images, soft labels and lr."""
    start = parameters_to_vector(make("convnet").parameters()).detach()
    start = start + 0.05 * normal(students, len(start))
    labels = uniform(IMAGES, K, seed=2) if soft else torch.arange(IMAGES) % K
    leaves = [start, normal(IMAGES, 3, SIDE, SIDE, seed=1), labels, torch.tensor(lr, dtype=torch.float64)]
    leaves = [leaf.to(device).requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    if batches is not None:
        options["batches"] = torch.tensor(batches, device=device)
    if augment:
        generator, size = seeds.generator(0), IMAGES if batches is None else 3
        options["augment"] = DSA("flip_scale_color_crop").draw_steps(T, size, (SIDE, SIDE), generator)
    result = unroll(student, *leaves, adjoint=adjoint, **options)
    loss = (result * normal(*result.shape, seed=3, device=device)).sum() + result.square().sum()
    return [result.detach(), *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("stored", [0, T])
@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
def test_the_op_is_plain_autograd_through_all_steps(options, soft, stored, reference, device):
    adjoint = CheckpointedUnroll(plan=Plan(stored_steps=stored))
    if reference:
        with reference_mode():
            got = call(make("convnet"), adjoint, soft=soft, device=device, **options)
    else:
        got = call(make("convnet"), adjoint, soft=soft, device=device, **options)
    expected = call(ModuleStudent(make("convnet")), FullUnroll(), soft=soft, **options)
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < EXACT


def operations(adjoint, **options) -> set[str]:
    with torch.profiler.profile() as profile:
        call(make("convnet"), adjoint, **options)
    return {event.name for event in profile.events() if event.name.startswith("ddfast::")}


def test_the_op_is_what_runs_where_a_plan_allows_it():
    for plan in (Plan(), Plan(stored_steps=T)):
        assert operations(CheckpointedUnroll(plan=plan), **OPTIONS["augmented"]) >= {
            "ddfast::unroll",
            "ddfast::unroll_backward",
        }
    for plan in (Plan(micro_batch=2), Plan(stored_steps=1), Plan(state_every=2)):
        assert "ddfast::unroll" not in operations(CheckpointedUnroll(plan=plan), **OPTIONS["augmented"])


def test_a_gradient_does_not_depend_on_which_others_are_asked_for():
    network = make("convnet")
    start = parameters_to_vector(network.parameters()).detach()
    images, labels, lr = normal(IMAGES, 3, SIDE, SIDE), uniform(IMAGES, K), torch.tensor(0.05, dtype=torch.float64)
    leaves = [start, images, labels, lr]
    together = [leaf.clone().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(unroll(network, *together, syn_steps=3).square().sum(), together)
    for which in range(4):
        given = [leaf.clone().requires_grad_(i == which) for i, leaf in enumerate(leaves)]
        (got,) = torch.autograd.grad(unroll(network, *given, syn_steps=3).square().sum(), given[which])
        assert relative_error(got, expected[which]) < EXACT


@pytest.mark.parametrize("precision", ["default", "bfloat16"])
@pytest.mark.parametrize("stored", [0, 3])
def test_opcheck(stored, precision):
    dtype = torch.float32 if precision == "bfloat16" else torch.float64
    start = parameters_to_vector(make("convnet").parameters()).detach()[None].to(dtype)
    images, labels = normal(IMAGES, 3, SIDE, SIDE, dtype=dtype), uniform(IMAGES, K, dtype=dtype)
    batches, rows, lr = torch.tensor([[0, 1], [3, 4], [2, 2]]), torch.zeros(3, 2, 16, dtype=dtype), torch.tensor(0.05)
    lr, settings, sizes = lr.to(dtype), (3, 0.5, 0.1), (8, 2, K, 0, 1e-5, precision)
    arguments = (start, images, labels, lr, batches, rows, *settings, stored, *sizes)
    torch.library.opcheck(torch.ops.ddfast.unroll, arguments)
    last, states, kept = torch.ops.ddfast.unroll(*arguments)
    backward = (last, states, images, labels, lr, batches, rows, kept, [True] * 4, *settings, *sizes)
    torch.library.opcheck(torch.ops.ddfast.unroll_backward, backward)


def matching_gradients(student, adjoint, draw, dtype=torch.float32):
    """Of the matching loss, in images, start and lr, for one draw of everything."""
    P = student.num_parameters
    start = 0.1 * normal(P, seed=draw)
    target = start + 0.01 * normal(P, seed=draw + 100)
    images = normal(8, 3, SIDE, SIDE, seed=draw + 200)
    given = [t.float().to(dtype) for t in (start, target, images, torch.tensor(0.05))]
    start, target, images, lr = (t.requires_grad_(i != 1) for i, t in enumerate(given))
    labels = torch.arange(8) % K
    loss = match_trajectory(student, start, target, images, labels, lr, syn_steps=T, adjoint=adjoint)
    return torch.autograd.grad(loss, (images, start, lr))


BFLOAT16_PLANS = {"recomputed": Plan(), "stored": Plan(stored_steps=T), "micro-batches": Plan(micro_batch=3)}


@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
@pytest.mark.parametrize("plan", BFLOAT16_PLANS.values(), ids=BFLOAT16_PLANS)
def test_bfloat16_is_as_exact_as_autograd_under_autocast(plan, reference):
    """Over several draws: of one, an error may be small by chance, that of a single number above all."""
    network, errors = ConvNet(3, K, width=16, depth=2, image_size=(SIDE, SIDE)), []
    for draw in range(6):
        exact = matching_gradients(ModuleStudent(network.double()), FullUnroll(), draw, torch.float64)
        network.float()
        with reference_mode() if reference else contextlib.nullcontext():
            got = matching_gradients(ConvNetStudent(network, "bfloat16"), CheckpointedUnroll(plan=plan), draw)
        eager = matching_gradients(ModuleStudent(network, "bfloat16"), FullUnroll(), draw)
        errors.append([[relative_error(g, e) for g, e in zip(a, exact, strict=True)] for a in (got, eager)])
    by_us, by_eager = torch.tensor(errors).square().mean(0).sqrt()
    assert (by_us <= 2 * by_eager).all(), (by_us, by_eager)
    assert by_us.max() < 0.2  # a gradient, and not noise


def test_a_precision_is_refused_where_it_cannot_be_kept():
    with pytest.raises(TypeError, match="parameters: expected float32 with the precision bfloat16, got float64"):
        call(ConvNetStudent(make("convnet"), "bfloat16"), CheckpointedUnroll(), **OPTIONS["all images"])
