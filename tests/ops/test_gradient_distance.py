"""gradient_distance against its formula, its reference, and numerical derivatives."""

import pytest
import torch

from ddfast.ops import gradient_distance, reference_mode
from ddfast.ops.gradient_distance import KINDS
from tests.conftest import assert_close, normal, relative_error, uniform

LAYOUTS = {  # P, and its layers
    "one row": (7, [(0, 1, 7)]),
    "gaps": (40, [(1, 2, 5), (13, 4, 3), (30, 1, 9)]),
    "long rows": (9300, [(0, 1, 4097), (4100, 2, 2600)]),
    "many layers": (600, [(4 * n, 1, 3) for n in range(150)]),
}


def inputs(S, P, dtype=torch.float64, device="cpu", grad=False):
    return [normal(S, P, seed=seed, dtype=dtype, device=device).requires_grad_(grad) for seed in (1, 2)]


def formula(g, h, layers, kind):
    total = 0
    for offset, rows, length in layers:
        for first in range(offset, offset + rows * length, length):
            a, b = g[..., first : first + length], h[..., first : first + length]
            if kind == "cosine":
                total = total + 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)
            else:
                total = total + ((a - b) ** 2 if kind == "squared" else (a - b).abs()).sum(-1)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_match_the_formula(dtype, S, layout, kind, device):
    P, layers = LAYOUTS[layout]
    exact = inputs(S, P, grad=True)
    got = [t.detach().to(device, dtype).requires_grad_() for t in exact]
    value, expected = gradient_distance(*got, layers, kind), formula(*exact, layers, kind)
    assert_close(value.cpu(), expected)
    up = normal(S, seed=9)
    by_got = torch.autograd.grad(value, got, up.to(device, dtype))
    for g, e in zip(by_got, torch.autograd.grad(expected, exact, up), strict=True):
        assert_close(g.cpu(), e)
    alone = gradient_distance(got[0][0], got[1][0], layers, kind)
    assert alone.shape == () and relative_error(alone.detach(), value[0].detach()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_as_accurate_as_the_reference(kind, device):
    layers = [(0, 128, 27), (4000, 128, 1152), (160_000, 10, 2048)]
    exact = inputs(2, 181_000)
    low = [t.float().to(device) for t in exact]
    with reference_mode():
        reference = relative_error(gradient_distance(*low, layers, kind), formula(*exact, layers, kind))
    got = relative_error(gradient_distance(*low, layers, kind), formula(*exact, layers, kind))
    assert got <= max(4 * reference, 4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_match_finite_differences(kind, device):
    layers = [(0, 2, 3), (7, 1, 2)]
    both = inputs(2, 9, device=device, grad=True)
    assert torch.autograd.gradcheck(lambda *t: gradient_distance(*t, layers, kind), both)
    assert torch.autograd.gradgradcheck(lambda *t: gradient_distance(*t, layers, kind), both)
    for which in range(2):
        one = inputs(2, 9, device=device)
        one[which].requires_grad_()
        assert torch.autograd.gradgradcheck(lambda *t: gradient_distance(*t, layers, kind), one)


def test_third_derivatives_match_the_formula(device):
    layers, got, expected = [(0, 2, 3)], [], []
    for function, results in ((gradient_distance, got), (formula, expected)):
        tensors = inputs(2, 6, device=device, grad=True)
        value = function(*tensors, layers, "cosine").square().sum()
        for _ in range(3):
            results.extend(torch.autograd.grad(value, tensors, create_graph=True))
            value = sum(g.square().sum() for g in results[-2:])
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e)


@pytest.mark.parametrize("zero", ["g", "h", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_have_finite_gradients(kind, zero, device):
    g, h = inputs(1, 6, device=device)
    g, h = (g * (zero == "h")).requires_grad_(), (h * (zero == "g")).requires_grad_()
    gradients = torch.autograd.grad(gradient_distance(g, h, [(0, 2, 3)], kind).sum(), (g, h))
    assert all(x.isfinite().all() for x in gradients)
    with reference_mode():
        expected = torch.autograd.grad(gradient_distance(g, h, [(0, 2, 3)], kind).sum(), (g, h))
    for x, e in zip(gradients, expected, strict=True):
        assert_close(x, e)


def test_only_the_gradients_asked_for_are_computed():
    g, h = inputs(2, 9)
    g.requires_grad_()
    sums = uniform(2, 1, 3)
    for wanted in ([True, False], [False, True], [False, False]):
        found = torch.ops.ddfast.gradient_distance_backward(torch.ones(2).double(), g, h, sums, [0, 1, 9], 0, wanted)
        assert [x.shape for x in found] == [(2, 9) if want else (0,) for want in wanted]


def test_strided_slices_give_the_same_as_copies(device):
    big = normal(6, 40, device=device)
    g, h = big[::2, 1:30:3], big[1::2, 2:31:3]
    assert_close(gradient_distance(g, h, [(0, 2, 5)]), gradient_distance(g.contiguous(), h.contiguous(), [(0, 2, 5)]))


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, kind, device):
    g, h = inputs(3, 7, dtype=dtype, device=device, grad=True)
    torch.library.opcheck(torch.ops.ddfast.gradient_distance.default, (g, h, [0, 2, 3], kind))
    grad, sums = uniform(3, dtype=dtype, device=device), uniform(3, 2, 3, device=device)
    for wanted in ([True, True], [True, False]):
        given = (grad, g, h, sums, [0, 2, 3], kind, wanted)
        torch.library.opcheck(torch.ops.ddfast.gradient_distance_backward.default, given)


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        ({"g": torch.zeros(2, 3, 4)}, ValueError, r"g: expected \[S, P\] or \[P\], got \[2, 3, 4\]"),
        ({"h": torch.zeros(3)}, ValueError, r"h: expected \[P\] like g = \[4\], got \[3\]"),
        ({"g": torch.zeros(4, dtype=torch.float16)}, TypeError, r"g: expected float32 or float64, got float16"),
        ({"kind": "far"}, ValueError, r"kind: expected one of cosine, squared, absolute, got 'far'"),
        ({"layers": []}, ValueError, r"layers: expected offset, rows and length of each"),
        ({"layers": [(0, 2, 3)]}, ValueError, r"layers: expected parts of 4 parameters one after another"),
        ({"layers": [(0, 1, 2), (1, 1, 2)]}, ValueError, r"layers: expected parts"),
        ({"layers": [(0, 0, 2)]}, ValueError, r"layers: expected parts"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, error, sentence):
    arguments = {"g": torch.ones(4), "h": torch.zeros(4), "layers": [(0, 2, 2)], "kind": "cosine"} | change
    with pytest.raises(error, match=sentence):
        gradient_distance(**arguments)


@pytest.mark.parametrize("layers", [[], [0, 1], [0, 3, 2], [-1, 1, 2], [0, 2**62, 2**62], [0, 1, 2, 1, 1, 1]])
def test_the_op_itself_refuses_layers_that_are_no_parts(layers):
    g, h = inputs(1, 4)
    with pytest.raises((ValueError, RuntimeError), match=r"layers: expected"):
        torch.ops.ddfast.gradient_distance(g, h, layers, 0)
