"""The unroll by Adam as one op against plain autograd through all steps, its reference, and the loop in Python."""

import pytest
import torch
from ddfast.adjoints import CheckpointedUnroll, FullUnroll
from ddfast.optimizers import Adam, AdamW, OptimizerState
from torch.nn.utils import parameters_to_vector

from ddfast.data import DSA
from ddfast.engine.planner import Plan
from ddfast.engine.students import ModuleStudent
from ddfast.engine.unroll import unroll
from ddfast.ops import reference_mode
from ddfast.runtime import seeds
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import SIDE, K, make

EXACT = 1e-9  # float64
IMAGES, T = 6, 5
BATCHES = [[0, 1, 1], [3, 4, 0], [2, 2, 2], [1, 3, 4], [5, 0, 2]]
OPTIONS = {
    "all images": {"syn_steps": T},
    "minibatches": {"batches": BATCHES, "optimizer": Adam(betas=(0.5, 0.9), eps=1e-4)},
    "augmented": {"syn_steps": T, "augment": True, "optimizer": AdamW(weight_decay=0.1)},
    "minibatches, augmented, decay": {"batches": BATCHES, "augment": True, "optimizer": Adam(weight_decay=0.1)},
    "one rate per step": {"syn_steps": T, "lr": [0.1, 0.02, 0.0, 0.05, 0.01], "optimizer": AdamW(weight_decay=0.1)},
}
pytestmark = pytest.mark.filterwarnings("ignore:labels. target weights sum")


def call(student, adjoint, *, soft=False, students=2, device="cpu", batches=None, augment=False, lr=0.05, **options):
    """θ_T, and the gradients of a function of it and of the moments after it in all that a gradient is of."""
    start = parameters_to_vector(make("convnet").parameters()).detach()
    start = start + 0.05 * normal(students, len(start))
    moments = 0.1 * normal(*start.shape, seed=5), 0.1 * normal(*start.shape, seed=6).square() + 0.01
    labels = uniform(IMAGES, K, seed=2) if soft else torch.arange(IMAGES) % K
    leaves = [start, *moments, normal(IMAGES, 3, SIDE, SIDE, seed=1), labels, torch.tensor(lr, dtype=torch.float64)]
    leaves = [leaf.to(device).requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    if batches is not None:
        options["batches"] = torch.tensor(batches, device=device)
    if augment:
        generator, size = seeds.generator(0), IMAGES if batches is None else 3
        options["augment"] = DSA("flip_scale_color_crop").draw_steps(T, size, (SIDE, SIDE), generator)
    options = {"optimizer": Adam(), "state": OptimizerState(tuple(leaves[1:3]), 2)} | options
    end, state = unroll(student, leaves[0], *leaves[3:], adjoint=adjoint, return_optimizer_state=True, **options)
    results = (end, *state.moments)
    loss = sum((r * normal(*r.shape, seed=i, device=device)).sum() + r.square().sum() for i, r in enumerate(results))
    return [end.detach(), *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])]


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


def operations(student, adjoint, **options) -> set[str]:
    with torch.profiler.profile() as profile:
        call(student, adjoint, **options)
    return {event.name for event in profile.events() if event.name.startswith("ddfast::")}


def test_the_op_is_what_runs_where_a_plan_allows_it():
    names = {"ddfast::unroll_adam", "ddfast::unroll_adam_backward"}
    for plan in (Plan(), Plan(stored_steps=T)):
        assert operations(make("convnet"), CheckpointedUnroll(plan=plan), **OPTIONS["augmented"]) >= names
    for plan in (Plan(micro_batch=2), Plan(stored_steps=1), Plan(state_every=2)):
        assert not operations(make("convnet"), CheckpointedUnroll(plan=plan), **OPTIONS["augmented"]) & names


def test_the_loop_in_python_agrees():
    plain, op = (CheckpointedUnroll(plan=plan) for plan in (Plan(stored_steps=1), Plan()))
    for one, other in zip(*(call(make("convnet"), a, **OPTIONS["augmented"]) for a in (plain, op)), strict=True):
        assert relative_error(one, other) < EXACT


def test_a_gradient_does_not_depend_on_which_others_are_asked_for():
    network = make("convnet")
    start = parameters_to_vector(network.parameters()).detach()
    moments = 0.1 * normal(*start.shape, seed=5), 0.1 * normal(*start.shape, seed=6).square() + 0.01
    images, labels, lr = normal(IMAGES, 3, SIDE, SIDE), uniform(IMAGES, K), torch.tensor(0.05, dtype=torch.float64)
    leaves = [start, *moments, images, labels, lr]

    def gradients(wanted):
        given = [leaf.clone().requires_grad_(i in wanted) for i, leaf in enumerate(leaves)]
        state = OptimizerState(tuple(given[1:3]), 1)
        end = unroll(network, given[0], *given[3:], syn_steps=3, optimizer=Adam(), state=state)
        return torch.autograd.grad(end.square().sum(), [given[i] for i in wanted])

    expected = gradients(range(6))
    for which in range(6):
        assert relative_error(gradients([which])[0], expected[which]) < EXACT


@pytest.mark.parametrize("precision", ["default", "bfloat16"])
@pytest.mark.parametrize("stored", [0, 3])
def test_opcheck(stored, precision):
    dtype = torch.float32 if precision == "bfloat16" else torch.float64
    start = parameters_to_vector(make("convnet").parameters()).detach()[None].to(dtype)
    m, v = 0.1 * normal(*start.shape, seed=5).to(dtype), normal(*start.shape, seed=6).square().to(dtype)
    images, labels = normal(IMAGES, 3, SIDE, SIDE, dtype=dtype), uniform(IMAGES, K, dtype=dtype)
    batches, rows, lr = torch.tensor([[0, 1], [3, 4], [2, 2]]), torch.zeros(3, 2, 16, dtype=dtype), torch.tensor(0.05)
    lr, sizes = lr.to(dtype), (8, 2, K, 0, 1e-5, precision)
    settings = (3, 1, 2, 0.9, 0.999, 1e-8, 0.1, 0.0)
    arguments = (start, m, v, images, labels, lr, batches, rows, *settings, stored, *sizes)
    torch.library.opcheck(torch.ops.ddfast.unroll_adam, arguments)
    end, *after, gradients, begins, kept = torch.ops.ddfast.unroll_adam(*arguments)
    given = (end, *after, gradients, begins, images, labels, lr, batches, rows, kept, [True] * 6, *settings, *sizes)
    torch.library.opcheck(torch.ops.ddfast.unroll_adam_backward, given)


def test_second_derivatives_are_refused():
    network = make("convnet")
    start = parameters_to_vector(network.parameters()).detach().requires_grad_()
    images = normal(IMAGES, 3, SIDE, SIDE)
    end = unroll(network, start, images, torch.arange(IMAGES) % K, 0.05, syn_steps=2, optimizer=Adam())
    with pytest.raises((NotImplementedError, RuntimeError)):
        (gradient,) = torch.autograd.grad(end.square().sum(), start, create_graph=True)
        gradient.sum().backward()
