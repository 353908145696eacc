"""The fused ops stand in for a network only where they compute what it does: networks altered at random, against
plain autograd."""

import logging
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, weight_norm

from ddfast.data import load_dataset
from ddfast.data.synthetic import SyntheticSet
from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import ConvNetStudent, Training, side_by_side, student_of, why_not_fused
from ddfast.engine.unroll import match_trajectory
from ddfast.evaluation import evaluate
from ddfast.experts import train_experts
from ddfast.networks import NETWORKS, ConvNet
from tests.conftest import normal, relative_error, uniform

EXACT = 1e-9  # float64
WIDTH, DEPTH, CLASSES, SIDE = 4, 3, 3, 16


class _Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x).sin()


class _Reversed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).flip(1)


class _OtherConvNet(ConvNet):
    def forward(self, images):
        return super().forward(images).tanh()


class _Tanh(nn.Module):
    def forward(self, weight):
        return weight.tanh()


def _replaced(block: int, **options) -> Callable[[nn.Module], None]:
    """A convolution of other options in a block."""

    def alter(net):
        old = net.features[4 * block]
        options_ = {"kernel_size": 3, "padding": 1, **options}
        net.features[4 * block] = nn.Conv2d(old.in_channels, old.out_channels, **options_)

    return alter


def _set(path: str, name: str, value) -> Callable[[nn.Module], None]:
    return lambda net: setattr(net.get_submodule(path), name, value)


def _hooked(path: str, register: str, hook: Callable) -> Callable[[nn.Module], None]:
    return lambda net: getattr(net.get_submodule(path), register)(hook) and None


def _tied(path: str, other: str, name: str) -> Callable[[nn.Module], None]:
    def alter(net):
        setattr(net.get_submodule(path), name, getattr(net.get_submodule(other), name))

    return alter


def _widened(net):
    net.features[4] = nn.Conv2d(WIDTH, 6, 3, padding=1)
    net.features[5] = type(net.features[5])(6)
    net.features[8] = nn.Conv2d(6, WIDTH, 3, padding=1)


def _scaled_convolution(net):
    net.features[0] = _Scaled(net.features[0].in_channels, WIDTH, 3, padding=1)


def _own_forward(net):
    whole = type(net.features[4]).forward
    net.features[4].forward = lambda x: 0.5 * whole(net.features[4], x)


def _own_conv_forward(net):
    layer = net.features[8]
    layer._conv_forward = lambda x, weight, bias: nn.functional.conv2d(x, -weight, bias, padding=1)


def _first_frozen(net):
    net.features.requires_grad_(False)


def _used_extra(net):
    net.head = nn.Linear(CLASSES, CLASSES)
    net.register_forward_hook(lambda module, given, result: module.head(result))


def _no_linear_bias(net):
    net.classifier = nn.Linear(net.classifier.in_features, CLASSES, bias=False)


ALTERATIONS: dict[str, Callable[[nn.Module], None]] = {  # those in FUSED change nothing that the ops would not follow
    "nothing": lambda net: None,
    "frozen": _first_frozen,
    "evaluated": lambda net: net.eval() and None,
    "an attribute": lambda net: setattr(net, "note", "mine"),
    "all eps": lambda net: [setattr(layer, "eps", 0.1) for layer in net.features[1::4]] and None,
    "dilation": _replaced(0, dilation=2, padding=2),
    "dilation later": _replaced(1, dilation=2, padding=2),
    "dilation set": _set("features.0", "dilation", (3, 3)),
    "groups": _replaced(1, groups=2),
    "no bias": _replaced(0, bias=False),
    "stride": _replaced(1, stride=2),
    "kernel": _replaced(0, kernel_size=5, padding=2),
    "padding": _replaced(2, padding=2),
    "circular": _replaced(0, padding_mode="circular"),
    "reflected": _replaced(2, padding_mode="reflect", padding=1),
    "no bias of the linear layer": _no_linear_bias,
    "one eps": _set("features.5", "eps", 0.1),
    "widths": _widened,
    "tied weights": _tied("features.8", "features.4", "weight"),
    "tied norms": _tied("features.5", "features.1", "bias"),
    "hook": _hooked("features.4", "register_forward_hook", lambda module, given, result: 2 * result.tanh()),
    "hook before": _hooked("features.5", "register_forward_pre_hook", lambda module, given: (given[0] ** 2,)),
    "hook of the backward": _hooked(
        "features.5", "register_full_backward_hook", lambda module, grad, _: (2 * grad[0], *grad[1:])
    ),
    "hook before the backward": _hooked(
        "classifier", "register_full_backward_pre_hook", lambda module, grad: (0.5 * grad[0],)
    ),
    "hook of the network": _hooked("", "register_forward_hook", lambda module, given, result: result.sin()),
    "parametrised": lambda net: parametrize.register_parametrization(net.features[4], "weight", _Tanh()) and None,
    "weight norm": lambda net: parametrizations.weight_norm(net.features[0]) and None,
    "old weight norm": lambda net: weight_norm(net.classifier) and None,
    "subclass of a layer": _scaled_convolution,
    "subclass of a container": lambda net: setattr(net, "features", _Reversed(*net.features)),
    "subclass of the network": lambda net: setattr(net, "__class__", _OtherConvNet),
    "forward of its own": _own_forward,
    "_conv_forward of its own": _own_conv_forward,
    "extra parameters": lambda net: setattr(net, "unused", nn.Linear(2, 2)),
    "extra buffer": lambda net: net.register_buffer("unused_buffer", torch.zeros(2)),
    "extra layer": _used_extra,
    "another activation": lambda net: net.features.__setitem__(6, nn.Tanh()),
    "border": lambda net: setattr(net, "border", 1),
}
FUSED = {"nothing", "frozen", "evaluated", "an attribute", "all eps", "border"}


def altered(*names: str, channels: int = 3, seed: int = 0) -> nn.Module:
    """A ConvNet with alterations, in float64; its linear layer fits what the rest makes of images of SIDE."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvNet(channels, CLASSES, width=WIDTH, depth=DEPTH, image_size=(SIDE, SIDE))
        for name in sorted(names, key=list(ALTERATIONS).index):
            ALTERATIONS[name](net)
        images = torch.zeros(1, channels, *2 * [SIDE + 2 * net.border])
        size = net.features(images).flatten(1).shape[1]
        if size != net.classifier.in_features:
            net.classifier = nn.Linear(size, CLASSES)
    return net.double()


def plainly(net, start, images, labels, lr, syn_steps, momentum, weight_decay):
    """θ_T by autograd through a loop of PyTorch's own."""
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    theta, velocity = start, 0
    for _ in range(syn_steps):
        pieces = theta.split([shape.numel() for shape in shapes.values()])
        parameters = {name: p.view(s) for (name, s), p in zip(shapes.items(), pieces, strict=True)}
        loss = cross_entropy(functional_call(net, parameters, (images,)), labels)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + gradient + weight_decay * theta
        theta = theta - lr * velocity
    return theta


def leaves_of(net, channels: int, soft: bool) -> list[torch.Tensor]:
    start = parameters_to_vector(net.parameters()).detach()
    start = start + 0.02 * normal(len(start))
    labels = uniform(4, CLASSES, seed=2) if soft else torch.arange(4) % CLASSES
    leaves = [start, normal(4, channels, SIDE, SIDE, seed=1), labels, torch.tensor(0.05, dtype=torch.float64)]
    return [leaf.requires_grad_(leaf.is_floating_point()) for leaf in leaves]


# Some pairs make a network that does not run, or undo each other: each alteration alone, and pairs of those that go
# together.
PAIRS = st.sets(st.sampled_from(sorted(ALTERATIONS)), min_size=1, max_size=2)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    names=PAIRS,
    channels=st.sampled_from([1, 3]),
    soft=st.booleans(),
    momentum=st.sampled_from([0.0, 0.5]),
    stored=st.booleans(),
)
@example({"dilation"}, 3, False, 0.0, False)
@example({"no bias"}, 3, True, 0.0, False)
@example({"all eps", "border"}, 1, True, 0.5, True)
def test_gradients_are_those_of_plain_autograd_whatever_was_altered(names, channels, soft, momentum, stored):
    check_gradients(names, channels, soft, momentum, stored)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_alteration_is_followed(name):
    check_gradients({name}, 3, True, 0.5, False)
    assert (why_not_fused(altered(name)) is None) == (name in FUSED)


def check_gradients(names, channels, soft, momentum, stored):
    try:
        net = altered(*names, channels=channels)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return  # alterations that exclude each other
    syn_steps, decay = 2, 0.1
    leaves = leaves_of(net, channels, soft)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    target = leaves[0].detach() + 0.1 * normal(len(leaves[0]), seed=5)
    theta = plainly(altered(*names, channels=channels), *leaves, syn_steps, momentum, decay)
    loss = (theta - target).square().sum() / (leaves[0] - target).square().sum()
    expected = [loss, *torch.autograd.grad(loss, wanted)]

    start, *others = leaves
    adjoint = CheckpointedUnroll(plan=Plan(stored_steps=syn_steps * stored))
    options = {"syn_steps": syn_steps, "momentum": momentum, "weight_decay": decay, "adjoint": adjoint}
    loss = match_trajectory(net, start, target, *others, **options)
    got = [loss, *torch.autograd.grad(loss, wanted)]
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < EXACT, names


@pytest.mark.parametrize("name", ALTERATIONS)
def test_training_is_plain_training_whatever_was_altered(name):
    """All parameters are trained, frozen ones too, on either path."""
    images, labels = normal(2, 4, 3, SIDE, SIDE), torch.arange(8).view(2, 4) % CLASSES
    net, other = altered(name), altered(name)
    training = Training([net], images.shape[2:], lr=0.1, momentum=0.9, weight_decay=0.01)
    frozen = [not p.requires_grad for p in other.parameters()]
    optimizer = torch.optim.SGD(other.requires_grad_().parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for x, y in zip(images, labels, strict=True):
        loss = training.step(x[None], y[None])
        optimizer.zero_grad()
        expected = cross_entropy(other(x), y)
        expected.backward()
        optimizer.step()
        assert relative_error(loss[0], expected.detach()) < EXACT
    assert training.write() == [net] and [not p.requires_grad for p in net.parameters()] == frozen
    for got, expected in zip(net.parameters(), other.parameters(), strict=True):
        assert relative_error(got.detach(), expected.detach()) < EXACT


@pytest.mark.parametrize(
    "name", ["nothing", "dilation", "hook", "no bias", "tied weights", "parametrised", "evaluated"]
)
def test_networks_go_side_by_side_only_where_all_are_fused(name):
    size, device = torch.Size((4, 3, SIDE, SIDE)), torch.device("cpu")
    fused = name in FUSED or name == "no bias"  # which is recognised
    assert side_by_side(altered(name), 3, size, device, at_once=3) == (3 if fused else 1)
    nets = [altered(), altered(name)]
    if name in FUSED:
        Training(nets, size[1:], lr=0.1)
    else:
        with pytest.raises(ValueError, match="nets: expected one where a network is not fused, got 2: "):
            Training(nets, size[1:], lr=0.1)


@pytest.mark.parametrize("name", ["dilation", "hook", "no bias", "tied weights", "weight norm", "stride"])
def test_altered_networks_can_be_experts_and_be_evaluated(name, pair, tmp_path, monkeypatch):
    monkeypatch.setitem(
        NETWORKS, "altered", lambda channels, num_classes, image_size: altered(name, channels=1).float()
    )
    data = load_dataset(pair)
    store = train_experts(data, network="altered", num_experts=2, train_epochs=1, output=tmp_path, at_once=2)
    assert store.num_experts == 2
    images, labels = data.random_real(2, torch.Generator())
    synthetic = SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing)
    result = evaluate(synthetic, data, networks=("altered",), num_eval=2, eval_epochs=2, at_once=2)
    assert len(result.accuracies["altered"]) == 2


REASONS = {
    "dilation set": r"features\.0 has dilation \(3, 3\)",
    "groups": r"features\.4 has groups 2",
    "one eps": r"its norms have eps 1e-05, 0\.1, 1e-05",
    "tied weights": "its parameters are tied, or in another order",
    "hook": r"features\.4 has hooks",
    "hook of the network": "the network has hooks",
    "parametrised": r"features\.4 is a ParametrizedConv3x3, not a Conv3x3",
    "forward of its own": r"features\.4 has forward of its own",
    "extra parameters": r"unused \(Linear\) was added",
    "subclass of the network": r"_OtherConvNet is not a networks\.ConvNet",
}


@pytest.mark.parametrize("name", REASONS)
def test_one_line_says_why_a_network_runs_by_autograd(name, caplog):
    net = altered(name)
    leaves = [leaf.detach() for leaf in leaves_of(net, 3, False)]
    caplog.set_level(logging.INFO, "ddfast")
    for _ in range(2):
        match_trajectory(net, leaves[0], leaves[0] + 1, *leaves[1:], syn_steps=1)
    (line,) = caplog.messages
    assert re.search(f"runs by autograd: {REASONS[name]}$", line)
    with pytest.raises(ValueError, match=REASONS[name]):
        ConvNetStudent(net)


def test_hooks_and_patches_of_all_modules_are_noticed(monkeypatch):
    net = altered()
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        register = getattr(nn.modules.module, f"register_module_{kind}_hook")
        handle = register(lambda *arguments: None)
        try:
            assert why_not_fused(net) == "hooks for all modules are registered"
        finally:
            handle.remove()
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: x)
    assert why_not_fused(net) == "Conv2d._conv_forward was replaced"
    monkeypatch.undo()
    assert why_not_fused(net) is None


def test_hooks_and_types_of_parameters_are_noticed():
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        net = altered()
        handle = getattr(net.classifier.bias, register)(lambda tensor: None)
        assert why_not_fused(net) == "classifier has hooks on its bias"
        handle.remove()
        assert why_not_fused(net) is None
    for change in (lambda net: net.classifier.float(), lambda net: net.half(), lambda net: net.to(torch.complex64)):
        net = altered()
        change(net)
        assert why_not_fused(net) == "its parameters are not all of float32, or all of float64"
    net = altered()
    net.classifier.bias = type("Mine", (nn.Parameter,), {})(net.classifier.bias.detach())
    assert why_not_fused(net) == "classifier has a bias of type Mine"


def test_a_setting_that_a_later_layer_gains_is_noticed(monkeypatch):
    """Attributes are compared whatever they are called, so that what is added one day is not overlooked."""
    net = altered()
    net.features[1].unknown = 1  # of one layer that is used as it is
    assert why_not_fused(net) is None  # nothing reads it
    whole = type(net.features[1]).__init__

    def init(self, *arguments):
        whole(self, *arguments)
        self.unknown = 0

    monkeypatch.setattr(type(net.features[1]), "__init__", init)
    from ddfast.engine.students import fused

    fused._reference.cache_clear()
    try:
        assert why_not_fused(net) == "features.1 has unknown 1"
    finally:
        fused._reference.cache_clear()


class _Centred(nn.Module):
    """Subtracts the mean over the minibatch."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, images):
        logits = self.whole(images)
        return logits - logits.mean(0)


@pytest.mark.parametrize("mixing", [_Centred(altered()), nn.Sequential(altered(), nn.BatchNorm1d(CLASSES))])
def test_images_that_see_each_other_are_never_cut_into_micro_batches(mixing):
    net = mixing.double()
    student, size = student_of(net), torch.Size((4, 3, SIDE, SIDE))
    assert "mixes the images of a minibatch" in student.why_no_micro_batches(size)
    leaves = [leaf.detach() for leaf in leaves_of(net, 3, False)]
    with pytest.raises(ValueError, match=r"micro_batch: a minibatch cannot be cut into chunks: .* mixes the images"):
        match_trajectory(
            net,
            leaves[0],
            leaves[0] + 1,
            *leaves[1:],
            syn_steps=1,
            adjoint=CheckpointedUnroll(plan=Plan(micro_batch=2)),
        )


def test_a_look_at_the_images_independence_leaves_no_trace():
    net = nn.Sequential(altered(), nn.Dropout(0.5), nn.InstanceNorm1d(1, track_running_stats=True).eval())
    before = torch.get_rng_state(), {name: b.clone() for name, b in net.named_buffers()}
    assert student_of(altered("dilation")).why_no_micro_batches(torch.Size((4, 3, SIDE, SIDE))) is None
    student_of(net).why_no_micro_batches(torch.Size((4, 3, SIDE, SIDE)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(b, before[1][name]) for name, b in net.named_buffers())
