"""The module student's two functions, one against the other."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from ddfast.engine.students import ConvNetStudent, ModuleStudent, Step, Wanted, student_of
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import NETWORKS, SIDE, K, make

SMALL = [name for name in NETWORKS if name != "resnet18"]


@pytest.mark.parametrize("name", SMALL)
def test_grad_jvp_is_the_derivative_of_grad_along_the_direction(name):
    network = make(name)
    student = ModuleStudent(network)
    theta = parameters_to_vector(network.parameters()).detach()[None]
    sigma = normal(*theta.shape, seed=2)
    images, labels, step = normal(4, 3, SIDE, SIDE), uniform(4, K), Step()
    _, g = student.grad(theta, images, labels, step=step)
    jvp = student.grad_jvp(theta, images, labels, sigma, step=step, wanted=Wanted())
    assert jvp.slope.item() == pytest.approx((g * sigma).sum().item(), rel=1e-9)
    h = 1e-8  # small: between the two ends no ReLU may switch
    ahead, behind = (student.grad(theta + e * sigma, images, labels, step=step)[1] for e in (h, -h))
    assert relative_error(jvp.parameters, (ahead - behind) / (2 * h)) < 1e-4

    def slope(images, labels):
        return (student.grad(theta, images, labels, step=step)[1] * sigma).sum()

    for along, got in ((normal(*images.shape, seed=4), jvp.images), (normal(*labels.shape, seed=5), jvp.labels)):
        d_images, d_labels = (along, 0) if got is jvp.images else (0, along)
        finite = (
            slope(images + h * d_images, labels + h * d_labels) - slope(images - h * d_images, labels - h * d_labels)
        ) / (2 * h)
        assert (got * along).sum().item() == pytest.approx(finite.item(), rel=1e-4, abs=1e-7)


def test_what_is_not_wanted_is_not_computed():
    network = make("convnet")
    theta = parameters_to_vector(network.parameters()).detach()[None]
    arguments = (theta, normal(2, 3, SIDE, SIDE), torch.tensor([0, 1]), theta)
    jvp = ModuleStudent(network).grad_jvp(*arguments, step=Step(), wanted=Wanted(False, False, False))
    assert jvp.parameters is None and jvp.images is None and jvp.labels is None
    assert jvp.slope.shape == (1,)


def test_parameters_that_the_loss_does_not_see_have_zero_gradients():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(4, 5)

        def forward(self, images):
            return self.used(images.mean((2, 3)))

    student = ModuleStudent(Unused().double())
    theta = normal(1, student.num_parameters)
    images, labels = normal(2, 3, 4, 4), torch.tensor([0, 1])
    _, g = student.grad(theta, images, labels, step=Step())
    jvp = student.grad_jvp(
        theta, images, labels, normal(*theta.shape, seed=1), step=Step(), wanted=Wanted(labels=False)
    )
    assert g[0, :8].abs().min() > 0 and g[0, 8:].abs().max() == 0
    assert jvp.parameters[0, 8:].abs().max() == 0 and jvp.parameters[0, :8].abs().max() > 0


def test_a_loss_that_is_linear_in_everything_has_a_slope_and_no_curvature():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, images):
            return self.scale.expand(len(images), 2) * 0 + 1

    student = ModuleStudent(Constant().double())
    theta = normal(1, 2)
    arguments = (theta, normal(2, 1, 4, 4), torch.tensor([0, 1]), normal(1, 2, seed=1))
    jvp = student.grad_jvp(*arguments, step=Step(), wanted=Wanted(labels=False))
    assert jvp.slope.item() == 0 and jvp.parameters.abs().max() == 0 and jvp.images.abs().max() == 0


def test_a_buffer_that_steers_the_forward_pass_is_replayed_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images):
            self.calls += 1
            return self.linear(images.mean((2, 3))) * self.calls

    network = Counting().double()
    student = ModuleStudent(network)
    theta, images, labels = normal(1, student.num_parameters), normal(2, 3, 4, 4), torch.tensor([0, 1])
    steps = [Step(), Step()]
    first = [student.grad(theta, images, labels, step=step)[1] for step in steps]
    assert int(network.calls) == 2 and not torch.equal(*first)
    again = [student.grad(theta, images, labels, step=step)[1] for step in reversed(steps)]
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])
    assert int(network.calls) == 2


def test_the_mode_is_replayed_as_it_was():
    network = make("convnet-batchnorm")
    student = ModuleStudent(network)
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, step = normal(4, 3, SIDE, SIDE), torch.arange(4) % K, Step()
    _, g = student.grad(theta, images, labels, step=step)
    network.eval()
    jvp = student.grad_jvp(theta, images, labels, g, step=step, wanted=Wanted(labels=False))
    assert jvp.slope.item() == pytest.approx(g.square().sum().item(), rel=1e-9)
    assert not network.training


def test_autocast_is_replayed_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, K))
    student = ModuleStudent(network)
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, step = normal(4, 3, 8, 8, dtype=torch.float32), torch.arange(4) % K, Step()
    with torch.autocast("cpu", torch.bfloat16):
        _, g = student.grad(theta, images, labels, step=step)
    jvp = student.grad_jvp(theta, images, labels, g, step=step, wanted=Wanted(labels=False))
    assert torch.equal(student.grad(theta, images, labels, step=step)[1], g)
    assert not torch.equal(student.grad(theta, images, labels, step=Step())[1], g)
    assert jvp.slope.item() == pytest.approx(g.square().sum().item(), rel=1e-2)  # bfloat16


def test_networks_that_give_no_logits_are_refused():
    student = ModuleStudent(nn.Conv2d(3, 4, 3).double())
    theta = normal(1, student.num_parameters)
    with pytest.raises(
        ValueError, match=r"student: expected logits \[B, K\] with B = 2 from the network, got \[2, 4, 6, 6\]"
    ):
        student.grad(theta, normal(2, 3, 8, 8), torch.tensor([0, 1]), step=Step())


PRECISIONS = r"precision: expected one of default, float32, bfloat16, got 'half'"


def test_an_unknown_precision_is_refused():
    network = make("convnet")
    for make_student in (student_of, ConvNetStudent, ModuleStudent):
        with pytest.raises(ValueError, match=PRECISIONS):
            make_student(network, "half")
    assert student_of(network, "bfloat16").layout.precision == "bfloat16"
    assert student_of(make("dropout"), precision="bfloat16").precision == "bfloat16"


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm"])
def test_float64_is_refused_in_bfloat16(name):
    student = student_of(make(name), "bfloat16")
    theta, images, labels = normal(1, student.num_parameters), normal(2, 3, SIDE, SIDE), torch.tensor([0, 1])
    sentence = "parameters: expected float32 with the precision bfloat16, got float64"
    with pytest.raises(TypeError, match=sentence):
        student.grad(theta, images, labels, step=Step())
    with pytest.raises(TypeError, match=sentence):
        student.grad_jvp(theta, images, labels, theta, step=Step(), wanted=Wanted(labels=False))


class _Spy(nn.Module):
    """A network that notes how PyTorch is set in its forward pass and in its backward passes."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(3, K), []

    def note(self, *_):
        self.seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))

    def forward(self, images):
        self.note()
        logits = self.linear(images.mean((2, 3)))
        logits.register_hook(self.note)
        return logits


@pytest.mark.parametrize("precision", ["default", "float32"])
def test_a_module_computes_strictly_where_asked(precision):
    network = _Spy()
    student, outside = ModuleStudent(network, precision), torch.backends.cudnn.conv.fp32_precision
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, step = normal(4, 3, 8, 8, dtype=torch.float32), torch.arange(4) % K, Step()
    _, g = student.grad(theta, images, labels, step=step)
    assert len(network.seen) == 2
    student.grad_jvp(theta, images, labels, g, step=step, wanted=Wanted(labels=False))
    assert len(network.seen) >= 4
    inside = ("ieee", "ieee") if precision == "float32" else (outside, torch.backends.mkldnn.matmul.fp32_precision)
    assert set(network.seen) == {inside}
    assert torch.backends.cudnn.conv.fp32_precision == outside


def test_a_module_in_bfloat16_is_the_module_under_autocast():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, K))
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, wanted = normal(4, 3, 8, 8, dtype=torch.float32), torch.arange(4) % K, Wanted(labels=False)
    results = []
    for student, ambient in ((ModuleStudent(network, "bfloat16"), False), (ModuleStudent(network), True)):
        step = Step()
        with torch.autocast("cpu", torch.bfloat16, enabled=ambient):
            _, g = student.grad(theta, images, labels, step=step)
        jvp = student.grad_jvp(theta, images, labels, theta, step=step, wanted=wanted)
        results.append([g, jvp.slope, jvp.parameters, jvp.images])
        assert g.dtype == jvp.parameters.dtype == jvp.images.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], ModuleStudent(network).grad(theta, images, labels, step=Step())[1])


def test_a_kept_step_in_bfloat16_takes_half_the_bytes():
    network = make("convnet").float()
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, kept = normal(4, 3, SIDE, SIDE, dtype=torch.float32), torch.arange(4) % K, {}
    for precision in ("float32", "bfloat16"):
        student, step = ConvNetStudent(network, precision), Step(keep=True)
        student.grad(theta, images, labels, step=step)
        kept[precision] = sum(t.nbytes for t in step.memory)
        predicted = student.step_bytes(images.shape, 1, torch.float32)
        assert predicted.kept == kept[precision] and predicted.grad < predicted.grad_jvp
    assert kept["bfloat16"] * 2 == kept["float32"]


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm"])
def test_a_step_is_sized_in_every_precision(name):
    def size(precision):
        return student_of(make(name), precision).step_bytes(torch.Size((64, 3, SIDE, SIDE)), 1, torch.float32)

    exact, low = size("float32"), size("bfloat16")
    assert exact == size("default")
    if name == "convnet":
        assert 0 < low.grad < 0.6 * exact.grad and 0 < low.grad_jvp < 0.6 * exact.grad_jvp
    else:  # what autocast chooses is not known beforehand
        assert low is None


@pytest.mark.parametrize("place", [0, 1, 2, 3, 6])
def test_a_convnet_is_fused_until_a_layer_of_its_blocks_is_replaced(place):
    network = make("convnet")
    assert isinstance(student_of(network), ConvNetStudent)
    network.features[place] = nn.Sequential(network.features[place], nn.Sigmoid())
    assert isinstance(student_of(network), ModuleStudent)
