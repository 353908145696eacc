"""conv3x3's faces against PyTorch's convolution in float64, numerical derivatives, and the algorithm in fractions."""

import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from torch.nn.functional import conv2d

from ddfast.networks import Conv3x3
from ddfast.ops import EXTENSION, computing_in, conv3x3, conv3x3_is_faster, reference_mode
from tests.conftest import normal
from tests.conftest import relative_error as one_error

# B, groups, C, O, H, W: tiles whole and cut, panels whole and cut, few and many channels, threads with nothing to do
SHAPES = [
    (2, 1, 16, 16, 4, 4),
    (3, 2, 20, 40, 7, 5),
    (1, 1, 17, 33, 3, 13),
    (9, 5, 32, 32, 8, 8),
    (30, 1, 64, 64, 9, 12),
    (2, 1, 3, 48, 5, 6),
    (3, 2, 1, 32, 8, 3),
    (1, 3, 15, 17, 1, 2),
    (2, 1, 5, 7, 4, 4),
]
# of F(4 × 4), relative to the result, at most: the transforms lose half a digit
ROUNDED = 4e-6
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="the extension is not loaded")


def relative_error(got, expected) -> float:
    """The largest of several tensors."""
    return max(one_error(g, e) for g, e in zip(got, expected, strict=True))


def tensors(shape, dtype=torch.float64, device="cpu") -> dict[str, torch.Tensor]:
    """Arguments by their names in the schemas."""
    B, G, C, F, H, W = shape
    sizes = {"x": (B, G * C, H, W), "g": (B, G * F, H, W), "w": (G * F, C, 3, 3), "bias": (G * F,)}
    sizes |= {f"{name}2": size for name, size in sizes.items()}
    return {name: normal(*size, seed=seed).to(device, dtype) for seed, (name, size) in enumerate(sizes.items())}


def arguments(shape, tile=4, two=True, dtype=torch.float64, device="cpu") -> dict[str, tuple]:
    """Of the three ops, of one product or of two."""
    t, groups = tensors(shape, dtype, device), shape[1]
    second = (lambda *names: [t[f"{name}2"] for name in names]) if two else (lambda *names: [None for _ in names])
    return {
        "conv3x3": (t["x"], t["w"], t["bias"], *second("x", "w"), tile),
        "conv3x3_input": (t["g"], t["w"], *second("g", "w"), groups, tile),
        "conv3x3_weight": (t["g"], t["x"], *second("g", "x"), groups, tile),
    }


def by_autograd(shape, two) -> dict[str, torch.Tensor]:
    """The same from conv2d and its derivatives, in float64."""
    t, groups = tensors(shape), shape[1]

    def products(x, w):
        return conv2d(x, w, padding=1, groups=groups)

    expected = {"conv3x3": conv2d(t["x"], t["w"], t["bias"], padding=1, groups=groups)}
    for name, variable in (("conv3x3_input", "x"), ("conv3x3_weight", "w")):
        expected[name] = 0
        for number in ("", "2") if two else ("",):
            x, w = (t[letter + number].clone().requires_grad_() for letter in "xw")
            z = products(x, w)
            expected[name] += torch.autograd.grad(z, x if variable == "x" else w, t["g" + number])[0]
    if two:
        expected["conv3x3"] = expected["conv3x3"] + products(t["x2"], t["w2"])
    return expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("two", [False, True], ids=["one product", "two"])
@pytest.mark.parametrize("tile", [4, 2, 0])
def test_every_face_is_that_of_conv2d(shape, two, tile, device):
    expected = by_autograd(shape, two)
    for dtype, bound in ((torch.float32, ROUNDED), (torch.float64, 1e-13)):
        for name, given in arguments(shape, tile, two, dtype, device).items():
            result = getattr(torch.ops.ddfast, name)(*given)
            assert relative_error([result.cpu()], [expected[name]]) < bound, (name, dtype)
            with reference_mode():
                reference = getattr(torch.ops.ddfast, name)(*given)
            assert relative_error([reference.cpu()], [expected[name]]) < bound, (name, dtype)
            assert result.stride() == reference.stride() or 1 in result.shape


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[6]])
def test_results_are_the_same_bits_in_every_run(shape):
    for name, given in arguments(shape, dtype=torch.float32).items():
        first, *others = (getattr(torch.ops.ddfast, name)(*given) for _ in range(3))
        assert all(torch.equal(first, other) for other in others), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_function_keeps_the_layout_and_takes_slices(layout):
    whole = normal(3, 40, 9, 8).contiguous(memory_format=layout)
    x, weight, bias = whole[:, 3:35, 1:], normal(48, 16, 3, 3, seed=1), normal(48, seed=2)
    result = conv3x3(x.float(), weight.float(), bias.float())
    assert relative_error([result], [conv2d(x, weight, bias, padding=1, groups=2)]) < ROUNDED
    assert conv3x3(x.contiguous(memory_format=layout), weight).is_contiguous(memory_format=layout)


def test_derivatives_of_all_orders():
    x, weight, bias = (t.requires_grad_() for t in (normal(2, 4, 4, 3), normal(4, 2, 3, 3, seed=1), normal(4, seed=2)))
    assert torch.autograd.gradcheck(conv3x3, (x, weight, bias))
    assert torch.autograd.gradgradcheck(conv3x3, (x, weight, bias))
    three = [torch.autograd.grad(conv3x3(x, weight, bias).pow(4).sum(), weight, create_graph=True)[0]]
    three.append(torch.autograd.grad(three[-1].square().sum(), x, create_graph=True)[0])
    (third,) = torch.autograd.grad(three[-1].square().sum(), weight)
    plain = torch.autograd.grad(conv2d(x, weight, bias, padding=1, groups=2).pow(4).sum(), weight, create_graph=True)
    plain = torch.autograd.grad(plain[0].square().sum(), x, create_graph=True)
    assert relative_error([third], torch.autograd.grad(plain[0].square().sum(), [weight])) < 1e-12


@pytest.mark.parametrize("name", ["conv3x3", "conv3x3_input", "conv3x3_weight"])
@pytest.mark.parametrize("two", [False, True], ids=["one product", "two"])
def test_opcheck(name, two, device):
    given = arguments((2, 2, 16, 16, 4, 5), two=two, dtype=torch.float32, device=device)[name]
    given = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in given]
    torch.library.opcheck(getattr(torch.ops.ddfast, name).default, given, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("two", [False, True], ids=["one product", "two"])
def test_derivatives_of_every_face_are_those_of_the_reference(two):
    for name, given in arguments((2, 2, 3, 4, 5, 4), two=two).items():
        given = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in given]
        leaves = [t for t in given if isinstance(t, torch.Tensor)]
        op = getattr(torch.ops.ddfast, name)
        own = torch.autograd.grad(op(*given).square().sum(), leaves)
        plain = {  # from PyTorch's own derivatives
            "conv3x3": lambda x, w, bias, x2, w2, tile: (
                conv2d(x, w, bias, padding=1, groups=2) + (conv2d(x2, w2, padding=1, groups=2) if two else 0)
            ),
            "conv3x3_input": lambda g, w, g2, w2, *_: (
                torch.nn.grad.conv2d_input((2, 6, 5, 4), w, g, padding=1, groups=2)
                + (torch.nn.grad.conv2d_input((2, 6, 5, 4), w2, g2, padding=1, groups=2) if two else 0)
            ),
            "conv3x3_weight": lambda g, x, g2, x2, *_: (
                torch.nn.grad.conv2d_weight(x, (8, 3, 3, 3), g, padding=1, groups=2)
                + (torch.nn.grad.conv2d_weight(x2, (8, 3, 3, 3), g2, padding=1, groups=2) if two else 0)
            ),
        }[name]
        assert relative_error(own, torch.autograd.grad(plain(*given).square().sum(), leaves)) < 1e-12, name


BAD = {
    "x: expected \\[B, C, H, W\\]": lambda x, w: (x[0], w),
    "weight: expected \\[O, C, 3, 3\\]": lambda x, w: (x, w[..., :2]),
    "no number of groups": lambda x, w: (x, w[:, :3]),
    "bias: expected \\[O\\]": lambda x, w: (x, w, w[:3, 0, 0, 0]),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_shapes_are_refused_in_one_sentence(words):
    with pytest.raises(ValueError, match=words):
        conv3x3(*BAD[words](normal(2, 4, 5, 5), normal(8, 4, 3, 3)))


def test_other_tiles_and_dtypes_are_refused():
    x, w = normal(2, 4, 5, 5), normal(8, 4, 3, 3)
    with pytest.raises(ValueError, match="tile: expected 4, 2 or 0, got 3"):
        conv3x3(x, w, tile=3)
    with pytest.raises(TypeError, match="x: expected float32 or float64"):
        conv3x3(x.half(), w.half())


# The algorithm: matrices from their points, in fractions, against what the kernels compute.
POINTS = {2: [0, 1, -1], 4: [0, Fraction(5, 8), -Fraction(5, 8), Fraction(3, 2), -Fraction(3, 2)]}


def vandermonde(points, columns):  # a last row for infinity
    return [[Fraction(p) ** j for j in range(columns)] for p in points] + [[0] * (columns - 1) + [1]]


def inverse(matrix):
    n = len(matrix)
    rows = [list(map(Fraction, row)) + [Fraction(int(i == j)) for j in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(n):
            if r != i:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[n:] for row in rows]


@pytest.mark.parametrize("tile", POINTS)
def test_the_algorithm_is_exact_in_fractions(tile):
    n, points = tile + 2, POINTS[tile]
    A, G, B = (
        vandermonde(points, tile),
        vandermonde(points, 3),
        inverse(vandermonde(points, n)),
    )  # Bᵀ is this, transposed
    d, w = [Fraction(3 * i + 1, 7) for i in range(n)], [Fraction(2), Fraction(-5, 3), Fraction(1, 4)]
    products = [sum(G[p][k] * w[k] for k in range(3)) * sum(B[j][p] * d[j] for j in range(n)) for p in range(n)]
    for i in range(tile):
        assert sum(A[p][i] * products[p] for p in range(n)) == sum(d[i + k] * w[k] for k in range(3))


@needs_extension
@pytest.mark.parametrize("tile", POINTS)
def test_errors_are_those_of_the_chosen_points(tile):
    """Other points of the same algorithm give the same function; only their errors tell them apart: those of the kernel
    are within twice those of the matrices in float32."""
    A, G, B = (
        torch.tensor([[float(v) for v in row] for row in matrix], dtype=torch.float64)
        for matrix in (
            vandermonde(POINTS[tile], tile),
            vandermonde(POINTS[tile], 3),
            list(zip(*inverse(vandermonde(POINTS[tile], tile + 2)), strict=True)),
        )
    )
    x, w, n = normal(40, 64, tile + 2, tile + 2), normal(64, 64, 3, 3, seed=1), tile + 2
    single = [m.float() for m in (A, G, B)]
    u = torch.einsum("pi,ocij,qj->pqco", single[1], w.float(), single[1])
    v = torch.einsum("pi,bcij,qj->pqbc", single[2], x.float(), single[2])
    emulated = torch.einsum("pi,pqbo,qj->boij", single[0], v @ u, single[0])
    exact = conv2d(x, w)
    whole = conv3x3(x.float(), w.float(), tile=tile)  # tiles begin at the border; those inside agree with conv2d
    direct = conv2d(x, w, padding=1)
    assert relative_error([whole], [direct]) < 2 * relative_error([emulated], [exact])
    assert n == len(B)


def test_the_layer_is_nn_conv2d_and_its_derivatives():
    layer, x = Conv3x3(16, 32), normal(3, 16, 6, 6, dtype=torch.float32).requires_grad_()
    plain = torch.nn.Conv2d(16, 32, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    results = []
    for net in (layer, plain.double()):
        given = x.to(net.weight.dtype)
        (g,) = torch.autograd.grad(net(given).square().sum(), given, create_graph=True)
        results.append([net(given), g, *torch.autograd.grad(g.square().sum(), [given, *net.parameters()])])
    assert relative_error(*results) < ROUNDED


def test_the_layer_is_pytorchs_own_where_it_must_be():
    layer, x = Conv3x3(16, 32), normal(3, 16, 6, 6, dtype=torch.float32)
    assert conv3x3_is_faster(x, layer.weight) == (EXTENSION is not None)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with computing_in("float32"):
        assert not conv3x3_is_faster(x, layer.weight)
        assert torch.equal(layer(x), conv2d(x, layer.weight, layer.bias, padding=1))
    rows = torch.func.vmap(lambda image: layer(image[None])[0])(x)
    assert relative_error([rows], [layer(x).double()]) < ROUNDED
    _, tangent = torch.func.jvp(layer, (x,), (x,))
    assert relative_error([tangent], [(layer(x) - layer.bias[:, None, None]).double()]) < ROUNDED
    assert not conv3x3_is_faster(x.double(), layer.weight) and not conv3x3_is_faster(x.to("meta"), layer.weight)


@needs_extension
def test_any_number_of_threads_computes_the_same_but_for_rounding(tmp_path):
    code = """
import sys, torch
from tests.ops.test_conv3x3 import SHAPES, arguments
torch.set_num_threads(int(sys.argv[1]))
torch.save([getattr(torch.ops.ddfast, name)(*given) for shape in SHAPES
            for name, given in arguments(shape, dtype=torch.float32).items()], sys.argv[2])
"""
    results = []
    for threads in (1, 3, 16):
        path = tmp_path / f"{threads}.pt"
        subprocess.run([sys.executable, "-c", code, str(threads), str(path)], check=True)
        results.append([t.double() for t in torch.load(path)])
    for other in results[1:]:
        assert relative_error(other, results[0]) < ROUNDED
