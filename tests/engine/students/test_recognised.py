"""The field's ConvNet in other people's code: what is recognised, what is not, and that both compute the same."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, relu
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.engine.adjoints import CheckpointedUnroll, FullUnroll
from ddfast.engine.students import (
    GSAM,
    ModuleStudent,
    RecognisedStudent,
    Step,
    Training,
    Wanted,
    recognised,
    side_by_side,
    student_of,
)
from ddfast.engine.students.recognised import MOST_VERSIONS, recognise
from ddfast.networks import ConvNet
from tests.conftest import normal, relative_error

W, SIDE, K = 6, 8, 4
IMAGE = torch.Size((3, SIDE, SIDE))


class GroupNorm(nn.Module):
    """A wrapper, as some code has it."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.GroupNorm(channels, channels, affine=True)

    def forward(self, x):
        return self.inner(x)


class Field(nn.Module):
    """As published code writes it; `change` alters one thing."""

    def __init__(self, change=""):
        super().__init__()
        if change == "linear first":
            self.classifier = nn.Linear(W * 4, K)
        layers, bias = [], change != "no biases"
        for i in range(2):
            padding = 3 if change == "border" and i == 0 else 1
            layers.append(nn.Conv2d(W if i else 3, W, 3, padding=padding, bias=bias))
            layers.append(self.norm(change))
            layers.append(nn.LeakyReLU() if change == "another activation" else nn.ReLU(inplace=True))
            layers.append(nn.MaxPool2d(2) if change == "another pooling" else nn.AvgPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.5 if "dropout" in change else 0.0)
        if change != "linear first":
            self.classifier = nn.Linear(W * (9 if change == "border" else 4), K)
        self.change, self.calls, self.sizes = change, 0, []
        if change == "dropout in eval":
            self.eval()

    @staticmethod
    def norm(change):
        if change == "instance norm":
            return nn.InstanceNorm2d(W, affine=True)
        if change == "a wrapper":
            return GroupNorm(W)
        return nn.GroupNorm(2 if change == "two groups" else W, W)

    def embed(self, x):
        return self.features(x).flatten(1)

    def forward(self, x):
        self.calls += self.change == "counts"
        logits = self.classifier(self.dropout(self.embed(x)))
        return 2 * logits if self.change == "twice the logits" else logits


class Functional(nn.Module):
    """With functions in the place of layers, and names of its own."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(W * 4, K)
        self.b = nn.ModuleList([nn.GroupNorm(W, W) for _ in range(2)])
        self.a = nn.ModuleList([nn.Conv2d(W if i else 3, W, 3, padding=1) for i in range(2)])

    def forward(self, x):
        for convolution, norm in zip(self.a, self.b, strict=True):
            x = avg_pool2d(relu(norm(convolution(x))), 2)
        return self.out(x.reshape(len(x), -1))


SAME = {
    change: lambda change=change: Field(change)
    for change in ("", "linear first", "no biases", "border", "instance norm", "a wrapper", "dropout in eval")
} | {"functions": Functional}
OTHERS = {
    "another activation": "something else",
    "another pooling": "something else",
    "two groups": "something else",
    "twice the logits": "something else",
    "dropout": "draws random numbers",
}


def made(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


def problem(net):
    start = parameters_to_vector(net.parameters()).detach()
    labels = normal(5, K, seed=3).softmax(1)
    leaves = start + 0.1 * normal(len(start), seed=1), normal(5, *IMAGE), labels, torch.tensor(0.1).double()
    return [leaf.requires_grad_() for leaf in leaves], start + 1


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("stored", [None, "1GiB"], ids=["recomputing", "storing"])
def test_what_is_recognised_computes_what_autograd_does(name, stored):
    net = made(SAME[name])
    assert isinstance(student_of(net, image=IMAGE), RecognisedStudent)
    (start, images, labels, lr), target = problem(net)
    results = []
    for adjoint in (FullUnroll(), CheckpointedUnroll(stored)):
        options = {"syn_steps": 3, "momentum": 0.5, "weight_decay": 0.1, "adjoint": adjoint}
        loss = ddfast.match_trajectory(net, start, target, images, labels, lr, **options)
        results.append([loss, *torch.autograd.grad(loss, (start, images, labels, lr))])
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-9


@pytest.mark.parametrize("name", SAME)
def test_a_recognised_student_is_that_of_the_module_in_its_own_order(name):
    net = made(SAME[name])
    (start, images, labels, _), _ = problem(net)
    theta, sigma = start.detach()[None], normal(1, len(start), seed=5)
    own = []
    for student in (student_of(net, image=IMAGE), ModuleStudent(net)):
        step = Step()
        assert student.num_parameters == len(start)
        losses, g = student.grad(theta, images, labels, step=step)
        own.append([losses, g, *student.grad_jvp(theta, images, labels, sigma, step=step, wanted=Wanted())])
    assert student_of(net, image=IMAGE).layer_sizes == ModuleStudent(net).layer_sizes
    for got, want in zip(*own, strict=True):
        assert relative_error(got, want) < 1e-9


@pytest.mark.parametrize("name", [*SAME, "dropout"])
@pytest.mark.parametrize("sharpness", [None, GSAM(0.5, 0.3)], ids=["SGD", "GSAM"])
def test_training_is_plain_training(name, sharpness):
    """In training mode: where dropout is drawn, and only there, by autograd."""
    build = SAME.get(name, lambda: Field(name))
    images, labels = normal(3, 4, *IMAGE), torch.arange(12).view(3, 4) % K
    runs, changes = {}, {}
    for way in ("training", "module"):
        net = made(build)
        start = parameters_to_vector(net.parameters()).detach()
        if way == "module":  # a parametrised copy is none that is recognised
            net.register_forward_hook(lambda *_: None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            training = Training([net], IMAGE, lr=0.1, momentum=0.9, weight_decay=0.01, sharpness=sharpness)
            losses = [training.step(x[None], y[None]) for x, y in zip(images, labels, strict=True)]
        runs[way], changes[way] = training, parameters_to_vector(training.write()[0].parameters()).detach() - start
        assert net.training and torch.stack(losses).isfinite().all()
    fused = "dropout" not in name
    assert (runs["training"]._student is not None) == fused and runs["module"]._student is None
    assert relative_error(changes["training"], changes["module"]) < 1e-9
    assert changes["training"].abs().max() > 1e-3


def test_recognised_networks_train_side_by_side():
    images, labels = normal(2, 4, *IMAGE), torch.arange(8).view(2, 4) % K
    starts = [made(lambda: Field("no biases")) for _ in range(2)]
    with torch.no_grad():
        for p in starts[1].parameters():
            p.add_(0.1)
    alone = []
    for net, x, y in zip(starts, images, labels, strict=True):
        one = Field("no biases").double()
        one.load_state_dict(net.state_dict())
        training = Training([one], IMAGE, lr=0.1)
        training.step(x[None], y[None])
        alone.append(training.parameters()[0])
    assert side_by_side(starts[0], 5, torch.Size((4, *IMAGE)), torch.device("cpu"), at_once=2) == 2
    together = Training(starts, IMAGE, lr=0.1)
    together.step(images, labels)
    assert relative_error(together.parameters(), torch.stack(alone)) < 1e-12
    with pytest.raises(ValueError, match="nets: expected one where a network is not fused, got 2: the others are of"):
        Training([made(lambda: Field("no biases")), made(Field)], IMAGE, lr=0.1)


def test_networks_that_are_alike_are_compared_once(monkeypatch):
    monkeypatch.setattr(recognised, "_kinds", {})
    compared = []
    compare = recognised._compared
    monkeypatch.setattr(recognised, "_compared", lambda *args: compared.append(1) or compare(*args))
    for _ in range(3):
        assert not isinstance(recognise(made(Field), IMAGE), str)
    assert len(compared) == 1
    assert "something else" in recognise(made(lambda: Field("twice the logits")), IMAGE)
    assert len(compared) == 2
    for _ in range(2):  # the words of an object name its address, which another may have tomorrow
        net = made(Field)
        net.thing = object()
        assert not isinstance(recognise(net, IMAGE), str)
    assert len(compared) == 4


@pytest.mark.parametrize("name", OTHERS)
def test_what_computes_something_else_is_not_recognised(name):
    net = made(lambda: Field(name))
    assert OTHERS[name] in recognise(net, IMAGE)
    assert isinstance(student_of(net, image=IMAGE), ModuleStudent)


CHANGES = {
    "a hook": lambda net: net.features[0].register_forward_hook(lambda *_: None),
    "another epsilon": lambda net: [setattr(net.features[i], "eps", 0.5) for i in (1,)],
    "a method": lambda net: setattr(net.features[2], "forward", lambda x: x),
    "a buffer": lambda net: net.register_buffer("more", torch.ones(1)),
    "train mode": lambda net: setattr(net.dropout, "p", 0.9),
    "a hook on a parameter": lambda net: net.classifier.bias.register_hook(lambda grad: None),
    "a tie": lambda net: setattr(net.features[5], "bias", net.features[5].weight),
    "a tensor": lambda net: setattr(net, "scale", torch.ones(1)),
    "what a list holds": lambda net: net.sizes.append(1),
    "a layer": lambda net: net.features.__setitem__(2, nn.Sigmoid()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_comparison_is_noticed(change):
    net = made(Field)
    assert isinstance(student_of(net, image=IMAGE), RecognisedStudent)
    known = len(recognised._known[net])
    CHANGES[change](net)
    if change == "what a list holds":  # which does nothing here: it is compared again
        assert isinstance(student_of(net, image=IMAGE), RecognisedStudent) and len(recognised._known[net]) == known + 1
    else:
        assert isinstance(student_of(net, image=IMAGE), ModuleStudent)


def test_a_network_that_changes_with_every_call_is_not_compared_again_and_again():
    net = made(lambda: Field("counts"))
    for _ in range(MOST_VERSIONS):
        net(torch.zeros(1, *IMAGE, dtype=torch.float64))
        recognise(net, IMAGE)
    net(torch.zeros(1, *IMAGE, dtype=torch.float64))
    assert "change from call to call" in recognise(net, IMAGE)


def test_large_images_are_not_compared():
    side = 4096
    net = nn.Sequential(nn.Conv2d(3, W, 3, padding=1), nn.GroupNorm(W, W), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    with torch.device("meta"):
        linear = nn.Linear(W * (side // 2) ** 2, 1)
    holders = [net[0], net[1], linear]
    whole = nn.Sequential(*net, linear)
    assert "too large" in recognised._structure(whole, holders, torch.Size((3, side, side)))


def test_images_of_another_size_and_broken_networks_are_refused():
    assert isinstance(recognise(made(Field), torch.Size((3, 16, 16))), str)
    assert isinstance(recognise(made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, K))), IMAGE), str)
    assert isinstance(student_of(ConvNet(3, K, W, 2, (SIDE, SIDE), norm="batchnorm"), image=IMAGE), ModuleStudent)


@pytest.mark.parametrize("stored", [0, 2, 3])
def test_a_module_keeps_the_graphs_of_stored_steps(stored):
    """The same gradient, also where one image is dropped at random and where a second backward comes."""
    net = made(lambda: Field("dropout"))
    (start, images, labels, lr), target = problem(net)
    results = []
    for count in (0, stored):
        torch.manual_seed(0)
        adjoint = CheckpointedUnroll(plan=ddfast.engine.planner.Plan(stored_steps=count))
        loss = ddfast.match_trajectory(net, start, target, images, labels, lr, syn_steps=3, adjoint=adjoint)
        first = torch.autograd.grad(loss, (start, images, labels, lr), retain_graph=True)
        again = torch.autograd.grad(loss, (start, images, labels, lr))
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(first, again, strict=True))
        results.append(first)
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-12


def test_what_a_module_needs_is_found_out_once(monkeypatch):
    net = made(lambda: Field("dropout"))
    calls = []
    monkeypatch.setattr(ModuleStudent, "_step_bytes_on_meta", lambda *_: calls.append(1))
    for _ in range(3):
        ModuleStudent(net).step_bytes(torch.Size((5, *IMAGE)), 1, torch.float64)
    assert calls == [1]
