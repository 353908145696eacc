"""param_distance against its formula, its reference, and numerical derivatives."""

import pytest
import torch

from ddfast.ops import param_distance, reference_mode
from tests.conftest import assert_close, normal, relative_error, uniform


def inputs(*shape, dtype=torch.float64, device="cpu", grad=False):
    tensors = [normal(*shape, seed=seed, dtype=dtype, device=device) for seed in (1, 2, 3)]
    return [t.requires_grad_(grad) for t in tensors]


def formula(student, target, start, weight=None):
    w = 1.0 if weight is None else weight
    return (w * (student - target) ** 2).sum(-1) / (w * (start - target) ** 2).sum(-1)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1), (2, 3), (3, 4097), (2, 70001)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_match_the_formula(shape, weighted, dtype, device):
    exact = inputs(*shape, grad=True)
    weight = uniform(shape[-1]) if weighted else None
    got = [t.detach().to(device, dtype).requires_grad_() for t in exact]
    value = param_distance(*got, None if weight is None else weight.to(device, dtype))
    expected = formula(*exact, weight)
    assert value.shape == shape[:-1]
    assert_close(value.cpu(), expected)
    up = normal(*shape[:-1], seed=9)
    by_got = torch.autograd.grad(value, got, up.to(device, dtype))
    by_formula = torch.autograd.grad(expected, exact, up)
    for g, e in zip(by_got, by_formula, strict=True):
        assert_close(g.cpu(), e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_is_as_accurate_as_the_reference(dtype, device):
    exact = inputs(2, 320_010)
    low = [t.to(device, dtype) for t in exact]
    with reference_mode():
        reference = relative_error(param_distance(*low), formula(*exact))
    # 4 times the reference's own error, and never below a few rounding errors, where a lucky reference may be.
    assert relative_error(param_distance(*low), formula(*exact)) <= max(4 * reference, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("weighted", [False, True])
def test_first_and_second_derivatives_match_finite_differences(weighted, device):
    tensors = inputs(2, 5, grad=False, device=device)
    tensors = [t.requires_grad_() for t in tensors]
    weight = uniform(5, device=device) if weighted else None
    assert torch.autograd.gradcheck(lambda *t: param_distance(*t, weight), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: param_distance(*t, weight), tensors)


@pytest.mark.parametrize("which", range(3))
def test_second_derivatives_in_one_input_alone(which, device):
    tensors = inputs(2, 5, device=device)
    tensors[which].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *t: param_distance(*t), tensors)


def test_third_derivatives_match_the_formula(device):
    got, expected = [], []
    for function, results in ((param_distance, got), (formula, expected)):
        tensors = inputs(2, 5, device=device, grad=True)
        value = function(*tensors).square().sum()
        for _ in range(3):
            results.extend(torch.autograd.grad(value, tensors, create_graph=True))
            value = sum(g.square().sum() for g in results[-3:])
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e)


def test_only_the_gradients_asked_for_are_computed():
    student, target, start = inputs(2, 9)
    student.requires_grad_()
    grad, *rest = torch.ops.ddfast.param_distance_backward(
        torch.ones(2).double(), student, target, start, None, torch.ones(2).double(), torch.ones(2).double(), [1, 0, 0]
    )
    assert grad.shape == (2, 9)
    assert [g.shape for g in rest] == [(0,), (0,)]


def test_strided_slices_give_the_same_as_copies(device):
    big = normal(6, 40, device=device)
    student, target, start = big[::2, 1:30:3], big[1::2, 2:31:3], big[:3, 5:34:3]
    copies = [t.contiguous() for t in (student, target, start)]
    assert_close(param_distance(student, target, start), param_distance(*copies))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(weighted, dtype, device):
    tensors = inputs(3, 7, dtype=dtype, device=device, grad=True)
    weight = uniform(7, dtype=dtype, device=device) if weighted else None
    torch.library.opcheck(torch.ops.ddfast.param_distance.default, (*tensors, weight))
    grad, distance, denominator = (uniform(3, seed=s, dtype=dtype, device=device) for s in (5, 6, 7))
    for wanted in ([True, True, True], [True, False, False]):
        torch.library.opcheck(
            torch.ops.ddfast.param_distance_backward.default,
            (grad, *tensors, weight, distance, denominator, wanted),
        )


def test_equal_start_and_target_give_no_number():
    student, target, _ = inputs(4)
    assert not param_distance(student, target, target).isfinite()


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        ({"student": torch.zeros(2, 3, 4)}, ValueError, r"student: expected \[S, P\] or \[P\], got \[2, 3, 4\]"),
        ({"student": torch.zeros(0)}, ValueError, "student: expected at least one student and one parameter"),
        ({"target": torch.zeros(3)}, ValueError, r"target: expected \[P\] like student = \[4\], got \[3\]"),
        ({"start": torch.zeros(1, 4)}, ValueError, r"start: expected .* got \[1, 4\]"),
        ({"weight": torch.zeros(3)}, ValueError, r"weight: expected \[P\] = \[4\], got \[3\]"),
        ({"weight": torch.ones(4, requires_grad=True)}, ValueError, "weight: expected a constant"),
        (
            {"student": torch.zeros(4, dtype=torch.float16)},
            TypeError,
            "student: expected float32 or float64, got float16",
        ),
        ({"target": torch.zeros(4).double()}, TypeError, "target: expected torch.float32 like student"),
        ({"target": torch.zeros(4, device="meta")}, ValueError, "target: expected device cpu like student, got meta"),
        ({"student": [1.0]}, TypeError, "student: expected a tensor, got list"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, error, sentence):
    arguments = {"student": torch.ones(4), "target": torch.zeros(4), "start": -torch.ones(4)} | change
    with pytest.raises(error, match=sentence):
        param_distance(**arguments)
