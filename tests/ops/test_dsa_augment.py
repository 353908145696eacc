"""dsa_augment's faces: the kernel against its reference, the derivatives against numerical ones."""

import pytest
import torch

from ddfast.ops import dsa_augment, reference_mode
from ddfast.ops.dsa_augment import IDENTITY
from tests.conftest import assert_close, normal

SIZE = (3, 7, 6)
CHANGES = [  # by image: nothing, each transform, all at once, a map out of the image, one that cannot be inverted
    {},
    {"flip": 1},
    {"down": 2, "right": -1},
    {"top": -2, "bottom": 3, "left": 1, "end": 9},
    {"xx": 1.1, "x0": -0.4, "yy": 0.87, "y0": 0.3},
    {"xx": 0.97, "xy": -0.25, "x0": 1.2, "yx": 0.25, "yy": 0.97, "y0": -0.9},
    {"brightness": 0.3, "saturation": 1.7, "contrast": 0.6},
    {"flip": 1, "down": -1, "top": 1, "bottom": 4, "left": 2, "end": 4, "xy": 0.2, "y0": 0.3, "contrast": 1.3},
    {"x0": 100},
    {"xx": 0, "x0": 2.3},
    {"xx": 0.2, "yy": 0.3},
]
FACES = ("dsa_augment", "dsa_augment_jvp", "dsa_augment_backward")


def rows(dtype=torch.float64, device="cpu"):
    return torch.tensor([list((IDENTITY | change).values()) for change in CHANGES], dtype=dtype, device=device)


def images(seed=0, dtype=torch.float64, device="cpu"):
    return normal(len(CHANGES), *SIZE, seed=seed, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernel_matches_the_reference(face, dtype, layout, device):
    op = getattr(torch.ops.ddfast, face)
    got = op(images(dtype=dtype, device=device).contiguous(memory_format=layout), rows(dtype, device))
    with reference_mode():
        expected = op(images(), rows())
    assert_close(got.cpu(), expected)


def test_identity_rows_change_nothing_a_flip_mirrors_and_a_shift_shifts(device):
    x = images(dtype=torch.float32, device=device)
    result = dsa_augment(x, rows(torch.float32, device))
    assert_close(result[0], x[0])
    assert_close(result[1], x[1].flip(2))
    assert_close(result[2][:, :5, 1:], x[2][:, 2:, :-1])
    assert result[2][:, 5:].abs().max() == 0 and result[2][:, :, 0].abs().max() == 0


@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
def test_derivatives(reference):
    def call(x):
        if not reference:
            return dsa_augment(x, rows())
        with reference_mode():
            return dsa_augment(x, rows())

    x = images().requires_grad_()
    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


def test_the_jvp_is_the_linear_part_and_the_backward_its_transpose(device):
    x, y, parameters = images(device=device), images(seed=1, device=device), rows(device=device)
    linear = torch.ops.ddfast.dsa_augment_jvp(x, parameters)
    zero = dsa_augment(torch.zeros_like(x), parameters)
    assert_close(linear, dsa_augment(x, parameters) - zero)
    back = torch.ops.ddfast.dsa_augment_backward(y, parameters)
    assert (linear * y).sum().item() == pytest.approx((x * back).sum().item(), rel=1e-9)


@pytest.mark.parametrize("face", FACES)
def test_opcheck(face):
    torch.library.opcheck(getattr(torch.ops.ddfast, face), (images().requires_grad_(), rows()))


def test_the_same_bits_twice(device):
    x, parameters = images(dtype=torch.float32, device=device), rows(torch.float32, device)
    for face in FACES:
        op = getattr(torch.ops.ddfast, face)
        assert torch.equal(op(x, parameters), op(x, parameters))


def test_what_does_not_fit_is_refused():
    x, parameters = images(), rows()
    with pytest.raises(ValueError, match=r"rows: expected \[B, 16\] = \[11, 16\], got \[11, 15\]"):
        dsa_augment(x, parameters[:, 1:])
    with pytest.raises(ValueError, match=r"images: expected \[B, C, H, W\] with H and W at least 2"):
        dsa_augment(x[..., :1], parameters)
    with pytest.raises(TypeError, match=r"rows: expected .*float64 like images"):
        dsa_augment(x, parameters.float())
    with pytest.raises(ValueError, match="rows: expected constants"):
        dsa_augment(x, parameters.requires_grad_())
