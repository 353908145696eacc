"""Calls of every op at real sizes: what is checked against float64, and what is timed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from benchmarks.bench_gradient_distance import CONVNET, SMALL
from benchmarks.bench_meta_gradient import plain_convnet
from benchmarks.measure import DEVICE
from ddfast.data import DSA
from ddfast.ops import ConvNetLayout, reference_mode
from ddfast.runtime.seeds import generator

OPS = torch.ops.ddfast
EPS, WIDTH, K = 1e-5, 128, 10


class Case(NamedTuple):
    """An op, the size in words, and a function of a seed that returns its arguments, in float32 but bfloat16 maps."""

    op: str
    size: str
    arguments: Callable[[int], tuple]
    precision: str = "float32"  # strict; default: as PyTorch is set, TF32 on a GPU; bfloat16
    propagates: bool = False  # several layers: where a ReLU switches by rounding, all that follows is another number
    predicted: tuple[str, ...] = ()  # the kernels of `benchmarks.predicted` that it runs
    flops: float = 0.0

    def exact(self, arguments: tuple) -> tuple:
        """The same in float64, whatever precision was asked for."""
        return tuple("default" if a == "bfloat16" else _double(a) for a in arguments)

    def __call__(self, arguments: tuple):
        """The op's results."""
        return getattr(OPS, self.op)(*arguments)


def _double(value):
    if isinstance(value, list):
        return [_double(one) for one in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def tensors_of(values) -> list[Tensor]:
    """All tensors in arguments or results."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers; maps are channels-last."""
    numbers = torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def all_cases(small: bool) -> list[Case]:
    """Every op; `small`: in milliseconds on a CPU."""
    return [*_norm_relu_pool(small), *_distances(small), *_dsa_augment(small), *_conv3x3(small), *_convnet(small)]


def _norm_relu_pool(small: bool) -> list[Case]:
    sizes = [(2, 16, 8), (1, 8, 9)] if small else [(100, 128, 32), (100, 128, 16), (10, 128, 128), (10, 128, 31)]
    cases = []
    for N, C, side in sizes:
        for maps in (torch.float32, torch.bfloat16):
            for face in ("", "_backward", "_jvp", "_backward_jvp"):
                op, size = f"norm_relu_pool{face}", f"{N} × {C} × {side} × {side}"
                precision = "bfloat16" if maps == torch.bfloat16 else "float32"

                def arguments(seed, op=op, N=N, C=C, side=side, maps=maps):
                    return _face(op, seed, N, C, side, maps)

                cases.append(Case(op, size, arguments, precision, predicted=(op,) if precision == "float32" else ()))
    return cases


def _face(op: str, seed: int, N: int, C: int, side: int, maps: torch.dtype) -> tuple:
    """Arguments of one of the four faces; statistics are rounded from float64."""
    full, pooled = (N, C, side, side), (N, C, side // 2, side // 2)
    known = {name: draw(10 * seed + n, *full, dtype=maps) for n, name in enumerate(("z", "dz"))}
    known |= {name: draw(10 * seed + n, *pooled, dtype=maps) for n, name in enumerate(("grad_y", "dgrad_y"), 2)}
    known |= {name: draw(10 * seed + n, C) for n, name in enumerate(("weight", "bias", "dweight", "dbias"), 4)}
    with reference_mode():
        z, weight, bias, dz, dweight, dbias = (
            known[n].double() for n in ("z", "weight", "bias", "dz", "dweight", "dbias")
        )
        _, mean, rstd = OPS.norm_relu_pool(z, weight, bias, EPS)
        _, dmean, dcov = OPS.norm_relu_pool_jvp(dz, dweight, dbias, z, mean, rstd, weight, bias)
    known |= {"mean": mean.float(), "rstd": rstd.float(), "dmean": dmean.float(), "dcov": dcov.float()}
    names = [argument.name for argument in getattr(OPS, op).default._schema.arguments]
    return tuple(EPS if name == "eps" else known[name] for name in names)


def _distances(small: bool) -> list[Case]:
    cases = []
    for S, P in [(1, 60), (3, 17)] if small else [(1, 320_010), (8, 320_010), (1, 11_173_962)]:
        size = f"{S} × {P} parameters"

        def forward(seed, S=S, P=P):
            return (*(draw(10 * seed + n, S, P) for n in range(3)), None)

        def backward(seed, forward=forward, S=S):
            given = forward(seed)
            return draw(seed + 99, S), *given, *OPS.param_distance(*given), [True, False, False]

        cases.append(Case("param_distance", size, forward, predicted=("param_distance",)))
        cases.append(Case("param_distance_backward", size, backward, predicted=("param_distance_backward",)))
    P, layers = SMALL if small else CONVNET
    flat = [number for layer in layers for number in layer]
    for S in (1, 10):

        def pair(seed, S=S):
            return draw(10 * seed, S, P), draw(10 * seed + 1, S, P), flat, 0

        def slope(seed, pair=pair, S=S):
            g, h, *how = given = pair(seed)
            return draw(seed + 99, S), g, h, OPS.gradient_distance(*given)[1], *how, [True, False]

        cases.append(Case("gradient_distance", f"{S} × {P} parameters", pair))
        cases.append(Case("gradient_distance_backward", f"{S} × {P} parameters", slope))
    return cases


def _dsa_augment(small: bool) -> list[Case]:
    cases = []
    for B, side in [(3, 8)] if small else [(100, 32), (1000, 32), (20, 128)]:

        def arguments(seed, B=B, side=side):
            rows = DSA().draw_steps(1, B, (side, side), generator(seed)).rows[0]
            return draw(seed, B, 3, side, side), rows.to(DEVICE, torch.float32)

        for face, kernels in (
            ("", ("dsa_augment_sums", "dsa_augment")),
            ("_jvp", ("dsa_augment_sums", "dsa_augment")),
            ("_backward", ("dsa_augment_backward", "dsa_augment_color_backward")),
        ):
            cases.append(Case(f"dsa_augment{face}", f"{B} × 3 × {side} × {side}", arguments, predicted=kernels))
    return cases


def _conv3x3(small: bool) -> list[Case]:
    B, C, side = (2, 16, 4) if small else (100, 128, 16)
    size, flops, cases = f"{B} × {C} × {side} × {side}", 2.0 * B * C * C * 9 * side**2, []

    def maps(seed):
        return draw(10 * seed, B, C, side, side), draw(10 * seed + 1, B, C, side, side), draw(10 * seed + 2, C, C, 3, 3)

    def forward(seed):
        x, _, w = maps(seed)
        return x, w, None, None, None, 4

    def by_input(seed):
        _, g, w = maps(seed)
        return g, w, None, None, 1, 4

    def by_weight(seed):
        x, g, _ = maps(seed)
        return g, x, None, None, 1, 4

    for precision in ("float32", "default"):
        for op, arguments in (("conv3x3", forward), ("conv3x3_input", by_input), ("conv3x3_weight", by_weight)):
            cases.append(Case(op, size, arguments, precision, flops=flops))
    return cases


def _convnet(small: bool) -> list[Case]:
    """The ConvNet at CIFAR-10's size, 10 images per class; in a rehearsal few images, for its width is WIDTH."""
    B, T, cases = (2, 2, []) if small else (100, 10, [])
    size, unrolled = f"{B} images, 32 px", f"{B} images × {T} steps, 32 px"
    once = 2.0 * B * WIDTH * 9 * (3 * 32**2 + WIDTH * (16**2 + 8**2))  # of a forward pass's convolutions
    for precision in ("float32", "default", "bfloat16"):
        layout = ConvNetLayout(WIDTH, 3, K, precision="bfloat16" if precision == "bfloat16" else "default").sizes

        def network(seed):
            torch.manual_seed(seed)
            start = parameters_to_vector(plain_convnet(32).parameters()).detach().to(DEVICE)
            return (start + 0.03 * draw(seed, len(start)))[None], draw(seed, B, 3, 32, 32)

        def data(seed, network=network):
            return *network(seed), (torch.arange(B) % K).to(DEVICE)

        def forward(seed, network=network, layout=layout):
            return *network(seed), *layout

        def features_backward(seed, network=network, layout=layout):
            return draw(seed + 1, 1, B, 16 * WIDTH), *network(seed), *layout

        def gradient(seed, data=data, layout=layout):
            return *data(seed), True, *layout

        def jvp(seed, data=data, layout=layout):
            given = data(seed)
            kept = OPS.convnet_grad(*given, True, *layout)[2]
            return *given, draw(seed + 1, *given[0].shape), kept, [True, True, False], *layout

        def sgd(seed, data=data, layout=layout):
            start, images, labels = data(seed)
            rows = DSA().draw_steps(T, B, (32, 32), generator(seed)).rows.to(DEVICE, torch.float32)
            rate = torch.tensor(0.01, device=DEVICE)
            return start, images, labels, rate, None, rows, T, 0.0, 0.0, T, *layout

        def sgd_backward(seed, sgd=sgd, layout=layout):
            given = sgd(seed)
            _, states, kept = OPS.unroll(*given)
            steps = given[6:9]
            return (
                draw(seed + 1, *given[0].shape),
                states,
                *given[1:6],
                kept,
                [True, True, False, True],
                *steps,
                *layout,
            )

        def adam(seed, sgd=sgd, layout=layout):
            start, images, labels, rate, batches, rows, *_ = sgd(seed)
            moments = 0.1 * draw(seed + 2, *start.shape), 0.1 * draw(seed + 3, *start.shape).square() + 0.01
            how = (T, 2, T, 0.9, 0.999, 1e-8, 0.0, 0.0, T)
            return start, *moments, images, labels, rate, batches, rows, *how, *layout

        def adam_backward(seed, adam=adam, layout=layout):
            given = adam(seed)
            *_, gradients, begins, kept = OPS.unroll_adam(*given)
            cotangents = [draw(seed + n, *given[0].shape) for n in (4, 5, 6)]
            wanted = [True, True, True, True, False, True]
            return *cotangents, gradients, begins, *given[3:8], kept, wanted, *given[8:16], *layout

        cases += [
            Case(op, words, arguments, precision, propagates=True, flops=flops)
            for op, words, arguments, flops in (
                ("convnet_forward", size, forward, once),
                ("convnet_features", size, forward, once),
                ("convnet_features_backward", size, features_backward, 2 * once),
                ("convnet_grad", size, gradient, 3 * once),
                ("convnet_grad_jvp", size, jvp, 8 * once),
                ("unroll", unrolled, sgd, 3 * T * once),
                ("unroll_backward", unrolled, sgd_backward, 8 * T * once),
                ("unroll_adam", unrolled, adam, 3 * T * once),
                ("unroll_adam_backward", unrolled, adam_backward, 8 * T * once),
            )
        ]
    return cases
