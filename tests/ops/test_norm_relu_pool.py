"""norm_relu_pool's four faces against PyTorch's layers, its reference, and numerical derivatives."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, group_norm

from ddfast.ops import EXTENSION, norm_relu_pool, reference_mode
from tests.conftest import assert_close, normal, relative_error

BFLOAT16 = torch.bfloat16  # of maps; everything else is then float32
MAPS = ("z", "dz", "grad_y", "dgrad_y")
SHAPES = [(1, 1, 2, 2), (2, 3, 5, 4), (3, 35, 4, 7), (2, 16, 16, 16), (1, 64, 33, 32)]
FACES = ("norm_relu_pool", "norm_relu_pool_backward", "norm_relu_pool_jvp", "norm_relu_pool_backward_jvp")
EPS = 1e-5


def layers(z, weight, bias, eps=EPS):
    """The same in PyTorch's own layers: the oracle."""
    return avg_pool2d(group_norm(z, z.shape[1], weight, bias, eps).relu(), 2)


def inputs(shape, dtype=torch.float64, device="cpu", grad=False):
    C = shape[1]
    z = normal(*shape, dtype=dtype, device=device) * 2 + 0.5
    tensors = [z, normal(C, seed=1, dtype=dtype, device=device), normal(C, seed=2, dtype=dtype, device=device)]
    return [t.requires_grad_(grad) for t in tensors]


def directions(shape, dtype=torch.float64, device="cpu"):
    N, C, H, W = shape
    return {
        "grad_y": normal(N, C, H // 2, W // 2, seed=3, dtype=dtype, device=device),
        "dgrad_y": normal(N, C, H // 2, W // 2, seed=4, dtype=dtype, device=device),
        "dz": normal(*shape, seed=5, dtype=dtype, device=device),
        "dweight": normal(C, seed=6, dtype=dtype, device=device),
        "dbias": normal(C, seed=7, dtype=dtype, device=device),
    }


def face_arguments(shape, dtype=torch.float64, device="cpu"):
    """Consistent arguments of all four faces, by name; statistics rounded from float64, of maps as they are rounded."""
    z, weight, bias = inputs(shape)
    d = directions(shape)
    if dtype == BFLOAT16:
        z, d = z.to(dtype).double(), {name: t.to(dtype).double() if name in MAPS else t for name, t in d.items()}
    _, mean, rstd = torch.ops.ddfast.norm_relu_pool(z, weight, bias, EPS)
    _, dmean, dcov = torch.ops.ddfast.norm_relu_pool_jvp(d["dz"], d["dweight"], d["dbias"], z, mean, rstd, weight, bias)
    known = {"z": z, "weight": weight, "bias": bias, "mean": mean, "rstd": rstd, "dmean": dmean, "dcov": dcov, **d}
    other = torch.float32 if dtype == BFLOAT16 else dtype
    known = {name: t.to(device, dtype if name in MAPS else other) for name, t in known.items()}
    arguments = {}
    for face in FACES:
        names = [a.name for a in getattr(torch.ops.ddfast, face).default._schema.arguments]
        arguments[face] = tuple(EPS if name == "eps" else known[name] for name in names)
    return arguments


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_value_and_double_backward_match_pytorchs_layers(shape, dtype, layout, device):
    results = []
    for function, kind, where in ((norm_relu_pool, dtype, device), (layers, torch.float64, "cpu")):
        tensors = [t.to(where, kind).detach() for t in inputs(shape)]
        tensors[0] = tensors[0].contiguous(memory_format=layout)
        tensors = [t.requires_grad_() for t in tensors]
        d = directions(shape, kind, where)
        y = function(*tensors)
        first = torch.autograd.grad(y, tensors, d["grad_y"], create_graph=True)
        second = torch.autograd.grad(first, tensors, (d["dz"], d["dweight"], d["dbias"]))
        results.append([y, *first, *second])
    for got, expected in zip(*results, strict=True):
        if dtype == torch.float64:
            assert_close(got.detach().cpu(), expected.detach())
        else:  # sums of many terms of either sign: the norm's error is what the table bounds
            assert relative_error(got.detach(), expected.detach()) <= 1e-4


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_matches_the_reference_in_float64(face, shape, device):
    arguments = face_arguments(shape, device=device)[face]
    got = getattr(torch.ops.ddfast, face)(*arguments)
    with reference_mode():
        expected = getattr(torch.ops.ddfast, face)(*arguments)
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e)
        assert g.dim() < 4 or g.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("face", FACES)
def test_kernel_is_as_accurate_in_float32_as_the_reference(face, device):
    shape = (4, 32, 32, 32)
    exact = getattr(torch.ops.ddfast, face)(*face_arguments(shape)[face])
    low = face_arguments(shape, torch.float32, device)[face]
    got = getattr(torch.ops.ddfast, face)(*low)
    with reference_mode():
        reference = getattr(torch.ops.ddfast, face)(*low)
    for g, r, e in zip(got, reference, exact, strict=True):
        assert relative_error(g, e) <= min(1e-4, max(4 * relative_error(r, e), 1e-6))


def widened(arguments):
    return tuple(a.double() if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 40, 9, 7), (1, 150, 3, 5)])
def test_kernel_matches_the_reference_in_bfloat16(face, shape, device):
    arguments = face_arguments(shape, BFLOAT16, device)[face]
    got = getattr(torch.ops.ddfast, face)(*arguments)
    exact = getattr(torch.ops.ddfast, face)(*widened(arguments))
    with reference_mode():
        reference = getattr(torch.ops.ddfast, face)(*arguments)
    for g, r, e in zip(got, reference, exact, strict=True):
        assert g.dtype == r.dtype == (BFLOAT16 if g.dim() == 4 else torch.float32)
        assert_close(g, r)
        assert relative_error(g, e) <= max(4 * relative_error(r, e), 1e-6)
        assert g.dim() < 4 or g.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_maps_are_differentiated_twice(layout, device):
    shape = (2, 35, 8, 9)
    results = []
    for kind, function in ((BFLOAT16, norm_relu_pool), (torch.float64, layers)):
        z, *others = (t.to(device) for t in inputs(shape))
        z, others = z.to(BFLOAT16).to(kind, memory_format=layout), [t.float() for t in others]
        d = {
            name: t.to(BFLOAT16) if name in MAPS else t.float() for name, t in directions(shape, device=device).items()
        }
        if kind == torch.float64:
            others, d = [t.double() for t in others], {name: t.double() for name, t in d.items()}
        tensors = [t.requires_grad_() for t in (z, *others)]
        y = function(*tensors)
        first = torch.autograd.grad(y, tensors, d["grad_y"], create_graph=True)
        second = torch.autograd.grad(first, tensors, (d["dz"], d["dweight"], d["dbias"]))
        results.append([y, *first, *second])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == (BFLOAT16 if got.dim() == 4 else torch.float32)
        assert relative_error(got.detach(), expected.detach()) <= 1.6e-2


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 5, 3)])
def test_first_and_second_derivatives_match_finite_differences(shape, device):
    tensors = inputs(shape, device=device, grad=False)
    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: norm_relu_pool(*t, EPS), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: norm_relu_pool(*t, EPS), tensors)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_epsilon_is_an_argument(eps, device):
    tensors = inputs((2, 3, 4, 6), device=device)
    assert_close(norm_relu_pool(*tensors, eps), layers(*tensors, eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BFLOAT16])
@pytest.mark.parametrize("face", FACES)
def test_opcheck(face, dtype, device):
    arguments = face_arguments((2, 3, 5, 4), dtype, device)[face]
    torch.library.opcheck(getattr(torch.ops.ddfast, face).default, arguments)
    if face in FACES[:2]:  # the other two refuse a third derivative
        grad = tuple(a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments)
        torch.library.opcheck(getattr(torch.ops.ddfast, face).default, grad)


def test_backward_jvp_takes_no_tangent_for_a_zero_one(device):
    grad_y, dgrad_y, *rest = face_arguments((2, 3, 5, 4), device=device)["norm_relu_pool_backward_jvp"]
    with_zero = torch.ops.ddfast.norm_relu_pool_backward_jvp(grad_y, torch.zeros_like(dgrad_y), *rest)
    for g, e in zip(torch.ops.ddfast.norm_relu_pool_backward_jvp(grad_y, None, *rest), with_zero, strict=True):
        assert_close(g, e)


def test_strided_slices_give_the_same_as_copies(device):
    _, weight, bias = inputs((2, 6, 4, 4), device=device)
    big = normal(4, 12, 9, 16, device=device)
    z = big[::2, 1::2, 1::2, ::4]
    wide = torch.stack([weight, bias], 1)  # [C, 2]: its columns are strided
    assert_close(norm_relu_pool(z, wide[:, 0], wide[:, 1]), norm_relu_pool(z.contiguous(), weight, bias))


def test_an_expanded_gradient_is_accepted(device):
    z, weight, bias = (t.requires_grad_() for t in inputs((2, 3, 4, 4), device=device))
    got = torch.autograd.grad(norm_relu_pool(z, weight, bias).sum(), z)
    assert_close(got[0], torch.autograd.grad(layers(z, weight, bias).sum(), z)[0])


def test_a_nan_is_not_hidden_by_the_relu(device):
    z, weight, bias = inputs((2, 3, 4, 4), device=device)
    z[1, 2, 0, 0] = float("nan")
    y = norm_relu_pool(z, weight, bias)
    assert y[1, 2].isnan().all()
    assert y[0].isfinite().all() and y[1, :2].isfinite().all()


def test_a_constant_instance_stays_finite(device):
    z, weight, bias = inputs((1, 2, 4, 4), device=device)
    z = torch.full_like(z, 3.0).requires_grad_()
    (grad,) = torch.autograd.grad(norm_relu_pool(z, weight, bias).sum(), z)
    assert grad.isfinite().all()


def test_third_derivatives_are_refused():
    z, weight, bias = inputs((1, 2, 4, 4), grad=True)
    (first,) = torch.autograd.grad(norm_relu_pool(z, weight, bias).square().sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives are not available"):
        torch.autograd.grad(second.sum(), z)


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        ({"z": torch.zeros(3, 4, 4)}, ValueError, r"z: expected \[N, C, H, W\] .* got \[3, 4, 4\]"),
        ({"z": torch.zeros(2, 3, 1, 4)}, ValueError, "H and W at least 2"),
        ({"z": torch.zeros(0, 3, 4, 4)}, ValueError, "z: expected"),
        ({"weight": torch.zeros(4)}, ValueError, r"weight: expected \[C\] = \[3\], got \[4\]"),
        ({"bias": torch.zeros(1, 3)}, ValueError, r"bias: expected \[C\] = \[3\], got \[1, 3\]"),
        ({"z": torch.zeros(2, 3, 4, 4).half()}, TypeError, "z: expected float32, float64 or bfloat16, got float16"),
        (
            {"z": torch.zeros(2, 3, 4, 4).bfloat16(), "bias": torch.zeros(3).bfloat16()},
            TypeError,
            "bias: expected float32 with a bfloat16 z, got bfloat16",
        ),
        ({"bias": torch.zeros(3).double()}, TypeError, "bias: expected torch.float32 like z"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias: expected device cpu like z, got meta"),
        ({"eps": -1.0}, ValueError, "eps: expected at least 0"),
        ({"eps": float("nan")}, ValueError, "eps: expected at least 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, error, sentence):
    arguments = {"z": torch.zeros(2, 3, 4, 4), "weight": torch.ones(3), "bias": torch.zeros(3)} | change
    with pytest.raises(error, match=sentence):
        norm_relu_pool(**arguments)


@pytest.mark.skipif(EXTENSION is None, reason="the reference broadcasts; only a kernel could read past the end")
def test_direct_calls_with_wrong_sizes_raise_instead_of_reading_past_the_end():
    arguments = list(face_arguments((2, 3, 5, 4))["norm_relu_pool_backward"])
    arguments[2] = arguments[2][:1]  # mean
    with pytest.raises(ValueError, match=r"mean: expected \[2, 3\], got \[1, 3\]"):
        torch.ops.ddfast.norm_relu_pool_backward(*arguments)


@pytest.mark.skipif(EXTENSION is None, reason="the reference promotes; only a kernel could misread")
def test_direct_calls_with_other_dtypes_raise_instead_of_misreading(device):
    for which, dtype in ((0, torch.float32), (2, BFLOAT16), (4, BFLOAT16)):  # grad_y, mean, weight
        arguments = list(face_arguments((2, 3, 5, 4), BFLOAT16, device)["norm_relu_pool_backward"])
        arguments[which] = arguments[which].to(dtype)
        with pytest.raises(TypeError, match="expected"):
            torch.ops.ddfast.norm_relu_pool_backward(*arguments)
