"""Unrolls by any inner optimiser: torch.optim's steps, exact adjoints through the moments, windows."""

from dataclasses import replace

import pytest
import torch
from ddfast.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.optimizers import SGD, Adam, AdamW, OptimizerState
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import ddfast
from ddfast.engine.planner import Plan, UnrollSize, predict
from ddfast.engine.students import ConvNetStudent
from ddfast.networks import ConvNet
from tests.conftest import normal, relative_error
from tests.engine.test_adjoints import EXACT, IMAGES, REPEATING, setting
from tests.networks_for_tests import make

pytestmark = pytest.mark.filterwarnings("ignore:labels. target weights sum")

OPTIMIZERS = {
    "adam": Adam(),
    "adam of other betas": Adam(betas=(0.5, 0.9), eps=1e-4),
    "adam with decay": Adam(weight_decay=0.1),
    "adamw": AdamW(weight_decay=0.1),
    "momentum": SGD(0.9, 0.1),
}
SMOOTH = "convnet-sigmoid-groupnorm-maxpooling"
RATES = torch.tensor([0.01, 0.02, 0.03, 0.01, 0.02], dtype=torch.float64)
PLANS = {"none": None, "thinned": Plan(state_every=2), "stored": Plan(stored_steps=2), "chunks": Plan(micro_batch=2)}


def begun(optimizer, shape, steps):
    """A state of so many steps, whose moments require grad."""
    moments = [0.1 * normal(*shape, seed=20), 0.1 * normal(*shape, seed=21).square() + 0.01]
    return OptimizerState(tuple(m.requires_grad_() for m in moments[: optimizer.num_moments]), steps)


def gradients(name, adjoint, optimizer, *, students=None, state=None, lr=None, loss=None, soft=True, **options):
    """θ_T, and the gradients of a loss of θ_T and of the moments there, in start, images, labels, lr and moments."""
    network = make(name)
    leaves = setting(network, soft=soft, students=students, lr=lr)
    state = None if state is None else begun(optimizer, leaves[0].shape, state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        options = {"adjoint": adjoint, "optimizer": optimizer, "state": state} | options
        end, after = ddfast.unroll(network, *leaves, return_optimizer_state=True, **options)
    results = (end, *after.moments)
    if loss is None:
        total = sum((x * normal(*x.shape, seed=3 + i)).sum() + x.square().sum() for i, x in enumerate(results))
    else:
        total = loss(end)
    wanted = [leaf for leaf in [*leaves, *(state.moments if state else ())] if leaf.requires_grad]
    return [end, *torch.autograd.grad(total, wanted)]


def assert_same(got, expected, tolerance=EXACT):
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < tolerance


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_are_those_of_torch(name):
    network, optimizer = make("convnet"), OPTIMIZERS[name]
    start, images, labels, _ = setting(network)
    end, state = ddfast.unroll(
        network, start, images, labels, 0.01, syn_steps=4, optimizer=optimizer, return_optimizer_state=True
    )
    vector_to_parameters(start.detach().clone(), network.parameters())
    decay = {"weight_decay": optimizer.weight_decay}
    if isinstance(optimizer, SGD):
        theirs = torch.optim.SGD(network.parameters(), 0.01, momentum=optimizer.momentum, **decay)
    else:
        kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
        theirs = kind(network.parameters(), 0.01, betas=optimizer.betas, eps=optimizer.eps, **decay)
    for _ in range(4):
        theirs.zero_grad()
        cross_entropy(network(images), labels).backward()
        theirs.step()
    # the bias before a norm gets a gradient of rounding errors from autograd and 0 from the fused ops, which Adam
    # makes steps of; it is without effect
    seen = torch.cat(
        [
            torch.full((p.numel(),), n not in ("features.0.bias", "features.4.bias"))
            for n, p in network.named_parameters()
        ]
    )
    assert relative_error(end[seen], parameters_to_vector(network.parameters())[seen]) < EXACT
    assert state.steps == 4 and len(state.moments) == optimizer.num_moments


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm", "dropout", SMOOTH])
@pytest.mark.parametrize("state", [None, 3])
def test_the_adjoint_is_that_of_plain_autograd(name, optimizer, state):
    options = {"state": state, "syn_steps": 5, "lr": RATES.clone()}
    chosen = OPTIMIZERS[optimizer]
    if state is None and name != SMOOTH and not isinstance(chosen, SGD):
        # a ReLU leaves gradients near 0, where the derivative of Adam's first step is 1/eps: it multiplies rounding
        chosen = replace(chosen, eps=max(chosen.eps, 1e-6))
    got = gradients(name, CheckpointedUnroll(), chosen, **options)
    assert_same(got, gradients(name, FullUnroll(), chosen, **options))


@pytest.mark.parametrize("optimizer", ["adam with decay", "adamw", "momentum"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("students", [None, 2])
def test_no_plan_changes_the_gradient(optimizer, plan, students):
    options = {"batches": torch.tensor(REPEATING), "state": 2, "students": students}
    got = gradients("convnet", CheckpointedUnroll(plan=PLANS[plan]), OPTIMIZERS[optimizer], **options)
    assert_same(got, gradients("convnet", FullUnroll(), OPTIMIZERS[optimizer], **options))


@pytest.mark.parametrize("plan", PLANS)
def test_plans_that_keep_and_that_remake_gradients_agree_bit_for_bit(plan):
    if plan in ("chunks", "stored"):
        pytest.skip("sums of chunks are of another order; stored steps are other kernels")
    options = {"syn_steps": 5, "lr": RATES.clone()}
    one = gradients("convnet", CheckpointedUnroll(), Adam(), **options)
    for a, b in zip(one, gradients("convnet", CheckpointedUnroll(plan=PLANS[plan]), Adam(), **options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("from_last_used", [False, True])
def test_a_loss_of_the_states_on_the_way(optimizer, from_last_used):
    options = {"return_states": True, "syn_steps": 4, "state": 1, "loss": lambda states: states[2].square().sum()}
    got = gradients(SMOOTH, CheckpointedUnroll(from_last_used=from_last_used), OPTIMIZERS[optimizer], **options)
    assert_same(got, gradients(SMOOTH, FullUnroll(), OPTIMIZERS[optimizer], **options))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_unrolls_one_after_another_are_one(optimizer):
    network, optimizer = make("convnet"), OPTIMIZERS[optimizer]
    leaves = setting(network, soft=True)
    _, images, labels, lr = leaves
    whole = ddfast.unroll(network, *leaves, syn_steps=5, optimizer=optimizer)
    half, state = ddfast.unroll(network, *leaves, syn_steps=2, optimizer=optimizer, return_optimizer_state=True)
    joined = ddfast.unroll(network, half, images, labels, lr, syn_steps=3, optimizer=optimizer, state=state)
    assert relative_error(joined, whole) < EXACT
    expected = torch.autograd.grad(whole.square().sum(), leaves)
    assert_same(torch.autograd.grad(joined.square().sum(), leaves), expected)


@pytest.mark.parametrize("optimizer", [SGD(), SGD(0.9), Adam(), AdamW()], ids=repr)
@pytest.mark.parametrize("augmented", [False, True])
def test_detached_steps_are_ordinary_ones_that_nothing_is_differentiated_through(optimizer, augmented):
    network = make("convnet")
    leaves = setting(network, soft=True, lr=RATES.clone())
    start, images, labels, lr = leaves
    batches = torch.tensor([*REPEATING, [5, 5, 1]])

    def augment(x, n):
        return x * (1 + 0.1 * n) if augmented else x

    options = {"optimizer": optimizer, "augment": augment}
    window = ddfast.unroll(network, *leaves, batches=batches, detached_steps=3, **options)
    with torch.no_grad():
        warm, state = ddfast.unroll(
            network, start, images, labels, lr[:3], batches=batches[:3], return_optimizer_state=True, **options
        )
    options["augment"] = lambda x, n: augment(x, n + 3)
    alone = ddfast.unroll(
        network, warm, images, labels, lr[3:], batches=batches[3:], state=state, adjoint=FullUnroll(), **options
    )
    assert relative_error(window, alone) < EXACT
    got = torch.autograd.grad(window.square().sum(), leaves[1:])
    assert_same(got, torch.autograd.grad(alone.square().sum(), leaves[1:]))
    assert got[0][5].abs().max() > 0 and not got[2][:3].any()


def test_detached_steps_follow_the_plan(monkeypatch):
    seen, original = [], ConvNetStudent.grad
    monkeypatch.setattr(
        ConvNetStudent, "grad", lambda s, t, x, y, **o: seen.append(len(x)) or original(s, t, x, y, **o)
    )
    network = make("convnet")
    adjoint = CheckpointedUnroll(plan=Plan(micro_batch=2))
    ddfast.unroll(network, *setting(network), syn_steps=4, optimizer=Adam(), detached_steps=3, adjoint=adjoint)
    assert set(seen) == {2} and len(seen) == 4 * IMAGES / 2


def test_a_budget_that_no_window_would_need_is_enough_for_detached_steps():
    """States of detached steps are not kept, and not counted."""
    network = make("convnet")
    vector = 8 * sum(p.numel() for p in network.parameters())
    student, leaves = ConvNetStudent(network), setting(network)
    size = UnrollSize(2, leaves[1].shape, IMAGES, dtype=torch.float64, moments=2)
    budget = predict(student, size, Plan()) + 2 * vector
    options = {"optimizer": Adam(), "detached_steps": 300, "adjoint": CheckpointedUnroll(budget)}
    assert ddfast.unroll(student, *leaves, syn_steps=302, **options).isfinite().all()


def test_a_state_may_come_from_inference_mode():
    network = make("convnet")
    leaves = setting(network)
    with torch.inference_mode():
        half, state = ddfast.unroll(network, *leaves, syn_steps=2, optimizer=Adam(), return_optimizer_state=True)
        end = ddfast.unroll(network, half, *leaves[1:], syn_steps=2, optimizer=Adam(), state=state)
    assert relative_error(end, ddfast.unroll(network, *leaves, syn_steps=4, optimizer=Adam())) < EXACT


def test_the_image_gradient_of_a_window_is_that_of_detach_in_a_plain_loop():
    """Truncated BPTT as anybody would write it: Adam written out, detached after two steps."""
    network = make(SMOOTH)
    start, images, labels, _ = setting(network)
    shapes = [p.shape for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    theta, m, v = start.detach().requires_grad_(), 0, 0
    for k in range(1, 5):
        if k == 3:
            theta, m, v = theta.detach().requires_grad_(), m.detach(), v.detach()
        pieces = theta.split([shape.numel() for shape in shapes])
        parameters = {n: p.view(shape) for n, p, shape in zip(names, pieces, shapes, strict=True)}
        loss = cross_entropy(torch.func.functional_call(network, parameters, (images,)), labels)
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        safe = torch.where(v > 0, v, 1.0) / (1 - 0.999**k)
        theta = theta - 0.05 * m / (1 - 0.9**k) / (torch.where(v > 0, safe.sqrt(), 0.0) + 1e-8)
    (expected,) = torch.autograd.grad(theta.square().sum(), images)
    end = ddfast.unroll(network, start, images, labels, 0.05, syn_steps=4, optimizer=Adam(), detached_steps=2)
    (got,) = torch.autograd.grad(end.square().sum(), images)
    assert relative_error(end, theta) < EXACT and relative_error(got, expected) < EXACT


def test_parameters_without_a_gradient_do_not_make_nan_of_it(device):
    """A convolution's bias before instance norm has none: there Adam's root has no derivative."""
    network = ConvNet(3, 4, 8, 2, (8, 8)).to(device)
    start = parameters_to_vector(network.parameters()).detach().requires_grad_()
    images = normal(4, 3, 8, 8, seed=1, device=device).float().requires_grad_()
    labels = torch.arange(4, device=device)
    for adjoint in (CheckpointedUnroll(), DetachedUnroll(), FullUnroll()):
        end, state = ddfast.unroll(
            ConvNetStudent(network) if not isinstance(adjoint, FullUnroll) else network,
            start,
            images,
            labels,
            0.01,
            syn_steps=3,
            optimizer=Adam(),
            adjoint=adjoint,
            return_optimizer_state=True,
        )
        assert isinstance(adjoint, FullUnroll) or (state.moments[1] == 0).any()
        gradients = torch.autograd.grad(end.square().sum(), (start, images))
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_a_detached_adjoint_through_adam_is_exact_for_one_step():
    for syn_steps, near in ((1, True), (3, False)):
        options = {"syn_steps": syn_steps, "loss": lambda end: end.square().sum()}
        got = gradients(SMOOTH, DetachedUnroll(), Adam(), **options)[2]
        expected = gradients(SMOOTH, FullUnroll(), Adam(), **options)[2]
        assert (relative_error(got, expected) < EXACT) == near


def test_momentum_takes_a_learning_rate_of_each_step():
    options = {"syn_steps": 5, "lr": RATES.clone(), "loss": lambda end: end.square().sum()}
    got = gradients("convnet", CheckpointedUnroll(), SGD(0.9), **options)
    assert_same(got, gradients("convnet", FullUnroll(), SGD(0.9), **options))


def test_the_momentum_of_a_call_is_that_of_an_optimizer():
    network = make(SMOOTH)
    leaves = setting(network)
    one = ddfast.unroll(network, *leaves, syn_steps=3, momentum=0.9, weight_decay=0.1)
    assert torch.equal(one, ddfast.unroll(network, *leaves, syn_steps=3, optimizer=SGD(0.9, 0.1)))
    with pytest.raises(ValueError, match="momentum, weight_decay: those of an optimizer are its own"):
        ddfast.unroll(network, *leaves, syn_steps=3, momentum=0.9, optimizer=Adam())


def test_trajectories_are_matched_by_any_optimizer():
    network = make("convnet")
    start, images, labels, lr = setting(network)
    options = {"syn_steps": 3, "optimizer": Adam()}
    target = (start + 0.01 * normal(*start.shape, seed=9)).detach()
    got = ddfast.match_trajectory(network, start, target, images, labels, lr, **options)
    end = ddfast.unroll(network, start, images, labels, lr, **options)
    assert relative_error(got, (end - target).square().sum() / (start - target).square().sum()) < EXACT


@pytest.mark.parametrize(
    "make_it, sentence",
    [
        (lambda: Adam(betas=(0.9, 1.0)), r"betas: expected numbers from 0 to below 1, got \(0.9, 1.0\)"),
        (lambda: Adam(betas=0.9), "betas: expected two numbers, got 0.9"),
        (lambda: Adam(eps=-1), "eps: expected at least 0, got -1"),
        (lambda: AdamW(weight_decay=float("nan")), "weight_decay: expected at least 0, got nan"),
        (lambda: SGD(-0.1), "momentum: expected at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_refused(make_it, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_it()


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"optimizer": torch.optim.Adam}, TypeError, r"optimizer: expected one of ddfast.optimizers, as Adam\(\)"),
        ({"optimizer": Adam(), "state": ()}, TypeError, "state: expected an optimizers.OptimizerState, got tuple"),
        (
            {"optimizer": Adam(), "state": OptimizerState((), 1)},
            ValueError,
            "state: expected 2 moments for Adam, got 0",
        ),
        (
            {"optimizer": SGD(0.9), "state": OptimizerState((normal(3),), 1)},
            ValueError,
            r"state.moments\[0\]: expected \[\d+\] like start, got \[3\]",
        ),
        ({"detached_steps": 2}, ValueError, "detached_steps: expected 0 to 1 of 2 steps, got 2"),
        ({"detached_steps": -1}, ValueError, "detached_steps: expected 0 to 1 of 2 steps, got -1"),
        ({"detached_steps": 1.0}, TypeError, "detached_steps: expected a whole number, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(options, error, sentence):
    network = make(SMOOTH)
    with pytest.raises(error, match=sentence):
        ddfast.unroll(network, *setting(network), syn_steps=2, **options)


def test_steps_of_a_state_are_counted():
    network = make(SMOOTH)
    leaves = setting(network)
    moments = Adam().begin(leaves[0].detach())
    with pytest.raises(ValueError, match=r"state.steps: expected a whole number of at least 0, got -1"):
        ddfast.unroll(network, *leaves, syn_steps=1, optimizer=Adam(), state=OptimizerState(moments, -1))


@pytest.mark.parametrize("every", [1, 4])
def test_the_planner_counts_what_is_kept(every):
    student = ConvNetStudent(ConvNet(3, 4, 8, 2, (8, 8)))
    size = UnrollSize(16, torch.Size((IMAGES, 3, 8, 8)), IMAGES, moments=2)
    vector = 4 * student.num_parameters
    plan = Plan(state_every=every)
    more = predict(student, size, plan) - predict(student, UnrollSize(16, size.batch, IMAGES), Plan())
    kept = 4 * 4 + 4 * 3 + (16 if every == 1 else 0)  # a segment made again, what segments begin with, gradients
    assert (kept - 16) * vector <= more <= (kept - 16 + 10) * vector
