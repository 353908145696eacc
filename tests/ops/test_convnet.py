"""The fused ConvNet ops against the module under autograd, their reference, and numerical derivatives."""

import statistics
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddfast.engine.students import ModuleStudent, Step, Wanted
from ddfast.networks import ConvNet
from ddfast.ops import ConvNetLayout, convnet_forward, convnet_grad, convnet_grad_jvp, reference_mode
from tests.conftest import normal, relative_error, uniform

K = 5
EXACT = 1e-9  # float64
ROUNDED = 1e-4  # float32: 4 times the error of autograd on the same inputs is some 1e-5
COARSE = 1.6e-2  # bfloat16


@dataclass(frozen=True)
class Case:
    """A ConvNet, and how many students and images."""

    width: int = 8
    depth: int = 2
    size: tuple[int, int] = (16, 16)
    channels: int = 3
    border: int = 0
    students: int = 1
    images: int = 4
    precision: str = "default"

    @property
    def layout(self) -> ConvNetLayout:
        return ConvNetLayout(self.width, self.depth, K, self.border, precision=self.precision)

    def network(self) -> ConvNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first_padding = 1 + self.border
            return ConvNet(self.channels, K, self.width, self.depth, self.size, first_padding=first_padding).double()

    def cotangent(self, dtype=torch.float64):  # [S, B, F]
        H, W = self.layout.maps(self.size)[-1]
        return normal(self.students, self.images, self.width * H * W, seed=3).to(dtype)

    def inputs(self, *, soft=False, dtype=torch.float64, device="cpu"):
        """parameters [S, P], images, labels, direction."""
        start = parameters_to_vector(self.network().parameters()).detach()
        parameters = start + 0.1 * normal(self.students, len(start))
        images = normal(self.images, self.channels, *self.size, seed=1)
        labels = uniform(self.images, K) if soft else torch.arange(self.images, device=device) % K
        given = [parameters, images, labels, normal(*parameters.shape, seed=2)]
        return [t.to(device, dtype) if t.is_floating_point() else t for t in given]


CASES = {
    "grey": Case(width=4, depth=1, size=(4, 4), channels=1, images=2),
    "colour": Case(),
    "odd sizes, with a border": Case(size=(15, 12), border=2, depth=2),
    "deep and wide": Case(width=35, depth=4, size=(32, 32), images=2),
    "students": Case(students=3),
    "one image": Case(images=1, students=2),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
references = pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])


def op_arguments(case: Case) -> dict[str, tuple]:
    """Arguments of the raw ops, by name."""
    dtype = torch.float32 if case.precision == "bfloat16" else torch.float64
    parameters, images, labels, direction = case.inputs(dtype=dtype)
    sizes = case.layout.sizes
    return {
        "convnet_forward": (parameters, images, *sizes),
        "convnet_features": (parameters, images, *sizes),
        "convnet_features_backward": (case.cotangent(dtype), parameters, images, *sizes),
        "convnet_grad": (parameters, images, labels, True, *sizes),
        "convnet_grad_jvp": (parameters, images, labels, direction, [], [True, True, True], *sizes),
    }


def by_autograd(case: Case, parameters, images, labels, direction):
    """Losses, g, ⟨g, σ⟩, Hσ, ∂x, ∂y of the module of PyTorch's autograd, students one by one."""
    student, step, soft = ModuleStudent(case.network()), Step(), labels.is_floating_point()
    losses, g = student.grad(parameters, images, labels, step=step)
    jvp = student.grad_jvp(parameters, images, labels, direction, step=step, wanted=Wanted(labels=soft))
    return [losses, g, *(t for t in jvp if t is not None)]


def by_ops(case: Case, parameters, images, labels, direction, *, keep=False):
    wanted = (True, True, labels.is_floating_point())
    losses, g, kept = convnet_grad(parameters, images, labels, case.layout, keep=keep)
    jvp = convnet_grad_jvp(parameters, images, labels, direction, case.layout, kept=kept, wanted=wanted)
    return [losses, g, *(t for t, want in zip(jvp, (True, *wanted), strict=True) if want)]


def run(reference: bool, function, *args, **kwargs):
    if not reference:
        return function(*args, **kwargs)
    with reference_mode():
        return function(*args, **kwargs)


@references
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
@cases
def test_gradient_and_its_jvp_are_those_of_autograd(case, keep, soft, reference, device):
    inputs = case.inputs(soft=soft, device=device)
    expected = by_autograd(case, *case.inputs(soft=soft))
    for got, want in zip(run(reference, by_ops, case, *inputs, keep=keep), expected, strict=True):
        assert relative_error(got, want) < EXACT


@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
@cases
def test_bfloat16_is_as_close_as_the_reference(case, keep, device):
    inputs = case.inputs(soft=True, dtype=torch.float32, device=device)
    exact = by_autograd(case, *(t.double().cpu() for t in inputs))
    low = replace(case, precision="bfloat16")
    got, reference = (run(where, by_ops, low, *inputs, keep=keep) for where in (False, True))
    for g, r, e in zip(got, reference, exact, strict=True):
        assert g.dtype == r.dtype == torch.float32
        assert relative_error(g, r) < COARSE
        assert relative_error(g, e) <= 4 * relative_error(r, e)


@references
def test_maps_are_stored_in_the_precision_of_the_convolutions(reference, device):
    for precision, dtype in (("default", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        case = replace(CASES["students"], precision=precision)
        parameters, images, labels, _ = case.inputs(dtype=torch.float32, device=device)
        losses, g, kept = run(reference, convnet_grad, parameters, images, labels, case.layout, keep=True)
        assert losses.dtype == g.dtype == torch.float32 and {t.dtype for t in kept} == {dtype}
        assert run(reference, convnet_forward, parameters, images, case.layout).dtype == torch.float32


def test_the_precision_float32_changes_nothing_in_float64():
    case = CASES["colour"]
    inputs = case.inputs(soft=True)
    strict = by_ops(replace(case, precision="float32"), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(by_ops(case, *inputs), strict, strict=True))


@references
def test_autocast_does_not_reach_into_the_ops(reference):
    for precision in ("default", "bfloat16"):
        case = replace(CASES["colour"], precision=precision)
        inputs = case.inputs(soft=True, dtype=torch.float32)
        expected = run(reference, by_ops, case, *inputs)
        with torch.autocast("cpu", torch.bfloat16):
            got = run(reference, by_ops, case, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision: expected one of default, float32, bfloat16, got 'tf32'"):
        ConvNetLayout(8, 2, K, precision="tf32")
    case = replace(CASES["colour"], precision="bfloat16")
    with pytest.raises(ValueError, match="precision: expected one of default, float32, bfloat16, got 'tf32'"):
        torch.ops.ddfast.convnet_forward(*case.inputs()[:2], *case.layout.sizes[:-1], "tf32")
    sentence = "parameters: expected float32 with the precision bfloat16, got float64"
    with pytest.raises(TypeError, match=sentence):
        by_ops(case, *case.inputs())
    with pytest.raises(TypeError, match=sentence):
        convnet_forward(*case.inputs()[:2], case.layout)


FAST = {  # convolutions on tiles, and a first block image by image
    "one student": Case(width=32, depth=3, size=(16, 12), images=5),
    "students, images of their own or not": Case(width=32, depth=2, size=(9, 8), border=1, students=3, images=6),
    "students whose channels share panels": Case(width=20, depth=2, size=(8, 8), channels=1, students=2, images=4),
    "fewer images than threads": Case(width=16, depth=2, size=(12, 12), images=1),
}


@pytest.mark.parametrize("own", [False, True], ids=["shared images", "own images"])
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
@pytest.mark.parametrize("precision", ["default", "float32"])
@pytest.mark.parametrize("case", FAST.values(), ids=FAST)
def test_the_fast_kernels_are_as_close_as_rounding_allows(case, precision, keep, own):
    """The median over draws: a ReLU that switches moves some results by far more than rounding."""
    errors = []
    for seed in range(5):
        inputs = case.inputs(soft=True)
        parameters, images, labels, direction = (t + 0.01 * normal(*t.shape, seed=seed) for t in inputs)
        if own:
            images = images + 0.1 * normal(case.students, *images.shape, seed=seed)
        exact = by_ops(case, parameters, images, labels, direction, keep=keep)
        rounded = [t.float() for t in (parameters, images, labels, direction)]
        got = by_ops(replace(case, precision=precision), *rounded, keep=keep)
        errors.append(max(relative_error(g, e) for g, e in zip(got, exact, strict=True)))
    assert statistics.median(errors) < ROUNDED


@cases
def test_float32_is_as_close_as_rounding_allows(case, device):
    inputs = case.inputs(soft=True, dtype=torch.float32, device=device)
    expected = by_autograd(case, *(t.double().cpu() for t in inputs))
    for got, want in zip(by_ops(case, *inputs), expected, strict=True):
        assert relative_error(got, want) < ROUNDED


@references
@cases
def test_logits_are_the_modules(case, reference):
    parameters, images, *_ = case.inputs()
    logits = run(reference, convnet_forward, parameters, images, case.layout)
    network = case.network()
    for row, got in zip(parameters, logits, strict=True):
        torch.nn.utils.vector_to_parameters(row, network.parameters())
        assert relative_error(got, network(images).detach()) < EXACT


@references
def test_images_of_each_student_its_own(reference, device):
    case = CASES["students"]
    parameters, _, labels, direction = case.inputs(soft=True, device=device)
    images = normal(3, 4, 3, 16, 16, seed=7, device=device)
    together = run(reference, by_ops, case, parameters, images, labels, direction)
    alone = [by_ops(case, p[None], x, labels, d[None]) for p, x, d in zip(parameters, images, direction, strict=True)]
    losses, g, slopes, h, by_images, by_labels = zip(*alone, strict=True)
    expected = [*(torch.cat(rows) for rows in (losses, g, slopes, h)), torch.stack(by_images), sum(by_labels)]
    for got, want in zip(together, expected, strict=True):
        assert relative_error(got, want) < EXACT


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_images_does_not_matter(layout):
    case = CASES["colour"]
    parameters, images, *rest = case.inputs()
    expected = by_ops(case, parameters, images, *rest)
    got = by_ops(case, parameters, images.contiguous(memory_format=layout), *rest)
    assert all(relative_error(a, b) < EXACT for a, b in zip(got, expected, strict=True))


def test_what_is_not_wanted_comes_back_empty_and_changes_nothing_else():
    case = CASES["colour"]
    parameters, images, labels, direction = case.inputs(soft=True)
    everything = convnet_grad_jvp(parameters, images, labels, direction, case.layout)
    for missing in range(3):
        wanted = tuple(i != missing for i in range(3))
        got = convnet_grad_jvp(parameters, images, labels, direction, case.layout, wanted=wanted)
        assert got[1 + missing].shape == (0,)
        assert all(torch.equal(got[i], everything[i]) for i in range(4) if i != 1 + missing)


def test_the_gradient_is_differentiable_once():
    case = CASES["grey"]
    parameters, images, labels, _ = case.inputs(soft=True)
    leaves = [t.requires_grad_() for t in (parameters, images, labels)]
    assert torch.autograd.gradcheck(lambda *given: convnet_grad(*given, case.layout)[1], leaves, fast_mode=True)
    losses, g, _ = convnet_grad(*leaves, case.layout)
    assert not losses.requires_grad
    (second,) = torch.autograd.grad(g.square().sum(), images, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives are not available"):
        torch.autograd.grad(second.sum(), images)


def test_logits_are_not_differentiable_and_say_what_is():
    case = CASES["grey"]
    parameters, images, *_ = case.inputs()
    with pytest.raises(NotImplementedError, match=r"use convnet_grad, or the module networks\.ConvNet"):
        convnet_forward(parameters.requires_grad_(), images, case.layout).sum().backward()


@pytest.mark.parametrize("name", ["convnet_forward", "convnet_grad", "convnet_grad_jvp"])
def test_opcheck(name):
    for case in (CASES["grey"], CASES["students"], replace(CASES["students"], precision="bfloat16")):
        torch.library.opcheck(getattr(torch.ops.ddfast, name), op_arguments(case)[name])


def test_what_does_not_fit_together_is_refused():
    case = CASES["colour"]
    parameters, images, labels, direction = case.inputs()
    P = parameters.shape[1]
    for given, message in (
        (
            (parameters[:, 1:], images, labels),
            rf"images of 3 × 16 × 16 take a ConvNet of \[S, {P}\] parameters, got \[1, {P - 1}\]",
        ),
        ((parameters, images[:, :1], labels), r"images of 1 × 16 × 16 take a ConvNet of"),
        ((parameters, images[..., :3], labels), r"expected at least 4 pixels a side"),
        ((parameters, images[:2], labels), r"labels: expected \[B\] = \[2\], got \[4\]"),
        ((parameters, images, torch.rand(4, 3).double()), r"labels: expected \[B, K\] = \[4, 5\], got \[4, 3\]"),
        ((parameters, images.expand(2, *images.shape), labels), r"images: expected \[1, B, C, H, W\]"),
    ):
        with pytest.raises(ValueError, match=message):
            convnet_grad(*given, case.layout)
    with pytest.raises(ValueError, match="direction: expected"):
        convnet_grad_jvp(parameters, images, labels, direction[:, 1:], case.layout)
    with pytest.raises(TypeError, match="labels: expected int64 or target weights"):
        convnet_grad(parameters, images, labels.int(), case.layout)
    with pytest.raises(TypeError, match=r"images: expected .*float64 like parameters"):
        convnet_grad(parameters, images.float(), labels, case.layout)


@pytest.mark.parametrize("keep", [False, True])
def test_the_same_bits_twice(keep, device):
    case = CASES["students"]
    inputs = case.inputs(soft=True, dtype=torch.float32, device=device)
    first, second = (by_ops(case, *inputs, keep=keep) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
