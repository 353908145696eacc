"""Float32 without TF32: what is set inside, what is put back, and that every op computes inside."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import ConvNetStudent
from ddfast.engine.unroll import unroll
from ddfast.ops import PRECISIONS, ConvNetLayout, computing_in, convnet_forward, convnet_grad, convnet_grad_jvp
from tests.conftest import normal
from tests.networks_for_tests import SIDE, K, make

SETTINGS = {
    "all": ("generic", "all"),
    "cuda": ("cuda", "all"),
    "cuda matmul": ("cuda", "matmul"),
    "cudnn conv": ("cuda", "conv"),
    "cudnn rnn": ("cuda", "rnn"),
    "mkldnn": ("mkldnn", "all"),
    "mkldnn matmul": ("mkldnn", "matmul"),
    "mkldnn conv": ("mkldnn", "conv"),
    "mkldnn rnn": ("mkldnn", "rnn"),
}
BEFORE = {
    "nothing": {},
    "everything": {"all": "tf32"},
    "a backend": {"cuda": "tf32", "mkldnn": "bf16"},
    "a part": {"cuda matmul": "tf32", "mkldnn conv": "bf16"},
    "a part of a strict backend": {"cuda": "ieee", "cuda matmul": "tf32"},
}


def settings() -> dict[str, str]:
    return {name: torch._C._get_fp32_precision_getter(*key) for name, key in SETTINGS.items()}


def write(name: str, precision: str) -> None:
    torch._C._set_fp32_precision_setter(*SETTINGS[name], precision)


@pytest.fixture(params=BEFORE.values(), ids=BEFORE)
def before(request):
    """What is set outside, and put back after the test."""
    found = settings()
    for name, precision in request.param.items():
        write(name, precision)
    yield settings()
    for name in request.param:
        write(name, found[name])


def test_everything_is_strict_inside_and_as_it_was_outside(before):
    with computing_in("float32"):
        assert set(settings().values()) == {"ieee"}
        assert torch.backends.cudnn.conv.fp32_precision == torch.backends.mkldnn.conv.fp32_precision == "ieee"
        with computing_in("float32"):
            assert set(settings().values()) == {"ieee"}
        assert set(settings().values()) == {"ieee"}
    assert settings() == before


def test_settings_that_nobody_made_still_follow_those_above_them(before):
    def followers():
        write("all", "ieee")
        following = [name for name, precision in settings().items() if precision == "ieee"]
        write("all", before["all"])
        return following

    expected = followers()
    with computing_in("float32"):
        pass
    assert followers() == expected


def test_an_exception_passes_and_the_settings_are_put_back(before):
    with pytest.raises(KeyError, match="stop"), computing_in("float32"):
        raise KeyError("stop")
    assert settings() == before


def test_the_older_switches_read_the_same_after_as_before():
    older = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with computing_in("float32"):
        pass
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == older


@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "float32"])
def test_the_other_precisions_set_nothing(before, precision):
    with computing_in(precision):
        assert settings() == before


class Recorder(TorchDispatchMode):
    """Of every ddfast op that is called, the settings that it runs with."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ddfast":
            self.seen.setdefault(func._opname, set()).update(settings().values())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["default", "float32"])
def test_the_convnet_ops_compute_inside_also_in_their_backward(precision):
    layout, outside = ConvNetLayout(8, 2, K, precision=precision), settings()
    P = sum(torch.Size(shape).numel() for shape in layout.piece_shapes(3, (SIDE, SIDE)))
    parameters, images, labels = normal(1, P).requires_grad_(), normal(2, 3, SIDE, SIDE), torch.tensor([0, 1])
    with Recorder() as direct:
        convnet_forward(parameters.detach(), images, layout)
        convnet_grad_jvp(parameters.detach(), images, labels, parameters.detach(), layout)
    with Recorder() as forward:
        g = convnet_grad(parameters, images, labels, layout)[1]
    with Recorder() as backward:
        g.square().sum().backward()
    expected = {"ieee"} if precision == "float32" else set(outside.values())
    assert direct.seen == {"convnet_forward": expected, "convnet_grad_jvp": expected}
    assert forward.seen == {"convnet_grad": expected} and backward.seen == {"convnet_grad_jvp": expected}
    assert settings() == outside


@pytest.mark.parametrize(
    "plan, forward_op, backward_op",
    [(Plan(), "unroll", "unroll_backward"), (Plan(micro_batch=2), "convnet_grad", "convnet_grad_jvp")],
)
def test_the_unroll_computes_inside_also_in_its_backward(plan, forward_op, backward_op):
    student, outside = ConvNetStudent(make("convnet"), "float32"), settings()
    start, images = normal(student.num_parameters), normal(4, 3, SIDE, SIDE).requires_grad_()
    labels, adjoint = torch.arange(4) % K, CheckpointedUnroll(plan=plan)
    with Recorder() as forward:
        last = unroll(student, start, images, labels, 0.01, syn_steps=2, adjoint=adjoint)
    with Recorder() as backward:
        last.square().sum().backward()
    assert forward.seen[forward_op] == backward.seen[backward_op] == {"ieee"}
    assert settings() == outside
