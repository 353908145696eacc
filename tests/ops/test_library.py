"""How ops find their kernels, and how kernels are switched off, refused or missing."""

import os
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

import ddfast
from ddfast.ops import EXTENSION, has_kernel, norm_relu_pool, op_names, param_distance, reference_mode
from tests.conftest import normal
from tests.ops import test_dsa_augment as dsa
from tests.ops.test_conv3x3 import arguments as conv3x3_arguments
from tests.ops.test_convnet import CASES, op_arguments
from tests.ops.test_norm_relu_pool import FACES, face_arguments

ROWS = [normal(1, 3, seed=s) for s in (1, 2, 3)]
OPS = {  # a call of each
    "param_distance": partial(torch.ops.ddfast.param_distance, *ROWS, None),
    "param_distance_backward": partial(
        torch.ops.ddfast.param_distance_backward, normal(1), *ROWS, None, normal(1), normal(1), [True, True, True]
    ),
    "gradient_distance": partial(torch.ops.ddfast.gradient_distance, *ROWS[:2], [0, 1, 3], 0),
    "gradient_distance_backward": partial(
        torch.ops.ddfast.gradient_distance_backward, normal(1), *ROWS[:2], normal(1, 1, 3), [0, 1, 3], 1, [True, True]
    ),
    **{face: partial(getattr(torch.ops.ddfast, face), *face_arguments((1, 2, 4, 4))[face]) for face in FACES},
    **{name: partial(getattr(torch.ops.ddfast, name), *args) for name, args in op_arguments(CASES["grey"]).items()},
    **{name: partial(getattr(torch.ops.ddfast, name), dsa.images(), dsa.rows()) for name in dsa.FACES},
    **{
        name: partial(getattr(torch.ops.ddfast, name), *args)
        for name, args in conv3x3_arguments((2, 1, 16, 16, 4, 4), dtype=torch.float32).items()
    },
}
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="the extension is not loaded")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def computed_by(call) -> set[str]:
    """The names of the tensor operations that a call ran."""
    with torch.profiler.profile() as profile:
        call()
    return {event.name for event in profile.events() if event.name.startswith("aten::")}


@needs_extension
@pytest.mark.parametrize("name", OPS)
def test_the_kernel_is_what_runs_and_the_reference_is_what_reference_mode_runs(name):
    assert has_kernel(name, "cpu")
    # What the reference alone does: arithmetic, and in the composite ops cutting parameters up.
    tell_tale = {"aten::sub", "aten::mul", "aten::square"}
    tell_tale = {"aten::split_with_sizes"} if "convnet" in name else tell_tale
    tell_tale = {"aten::convolution", "aten::convolution_backward"} if "conv3x3" in name else tell_tale
    call = OPS[name]
    assert not computed_by(call) & tell_tale
    with reference_mode():
        assert computed_by(call) & tell_tale


@needs_extension
def test_every_op_has_a_cpu_kernel_and_a_cuda_kernel_where_they_were_built():
    kinds = ["cpu"] + (["cuda"] if EXTENSION.build_info()["cuda"] else [])
    assert [(name, kind) for name in op_names() for kind in kinds if not has_kernel(name, kind)] == []


def test_the_same_formulas_run_without_the_extension():
    code = """
        import torch, ddfast
        from ddfast.ops import has_kernel, norm_relu_pool, op_names
        assert not any(has_kernel(name, "cpu") for name in op_names())
        z = torch.arange(32.0).reshape(1, 2, 4, 4).requires_grad_()
        y = norm_relu_pool(z, torch.ones(2), torch.zeros(2))
        (g,) = torch.autograd.grad(y.square().sum(), z, create_graph=True)
        torch.autograd.grad(g.square().sum(), z)
        print(ddfast.build_info()["missing"][0])
    """
    done = run_python(code, DDFAST_EXTENSION="0")
    assert done.returncode == 0, done.stderr
    assert "DDFAST_EXTENSION=0" in done.stdout


def test_an_extension_for_another_torch_is_refused_with_the_way_to_rebuild(tmp_path):
    code = f"""
        import importlib.machinery, importlib.util, pathlib
        other = pathlib.Path({str(tmp_path)!r}, "_C.so")
        other.write_bytes(b"noise ddfast was built for torch 2.3.1+cu121 noise")
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: (
            importlib.machinery.ModuleSpec(name, None, origin=str(other)) if name == "ddfast._C" else find(name, *a))
        import ddfast
    """
    done = run_python(code, DDFAST_EXTENSION="1")
    assert done.returncode != 0
    assert "ImportError: ddfast._C was built for torch 2.3.1+cu121, but torch" in done.stderr
    assert "pip install --no-build-isolation" in done.stderr


def test_a_broken_extension_raises_instead_of_being_ignored(tmp_path):
    code = f"""
        import importlib.machinery, importlib.util, pathlib
        broken = pathlib.Path({str(tmp_path)!r}, "_C.so")
        broken.write_bytes(b"not a library")
        find = importlib.util.find_spec
        loader = importlib.machinery.ExtensionFileLoader("ddfast._C", str(broken))
        spec = importlib.util.spec_from_file_location("ddfast._C", broken, loader=loader)
        importlib.util.find_spec = lambda name, *a: spec if name == "ddfast._C" else find(name, *a)
        import sys
        sys.meta_path.insert(0, type("Finder", (), {{"find_spec": staticmethod(
            lambda name, path=None, target=None: spec if name == "ddfast._C" else None)}}))
        import ddfast
    """
    done = run_python(code, DDFAST_EXTENSION="1")
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "_C.so" in done.stderr


def test_importing_ddfast_needs_torch_and_numpy_only():
    done = run_python(
        """
        import sys, torch, numpy
        before = set(sys.modules)
        import ddfast
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(name for name in new - set(sys.stdlib_module_names) if name not in ("ddfast", "torch", "numpy")))
        """
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["param_distance", "norm_relu_pool"])
def test_forward_mode_and_functional_transforms_are_refused(name):
    function = {"param_distance": lambda z: param_distance(z, z + 1, z - 1), "norm_relu_pool": _pool}[name]
    z = normal(3) if name == "param_distance" else normal(1, 2, 4, 4)
    sentence = f"{name}: forward-mode and torch.func derivatives are not available"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=sentence):
        function(forward_ad.make_dual(z, torch.ones_like(z)))
    with pytest.raises(NotImplementedError, match=sentence):
        torch.func.grad(lambda z: function(z).sum())(z)
    with pytest.raises(NotImplementedError, match=sentence):
        torch.func.grad(lambda z: torch.vmap(function)(z[None]).sum())(z)
    with pytest.raises(NotImplementedError, match=sentence):
        torch.func.jvp(lambda z: function(z).sum(), (z,), (z,))


def _pool(z):
    return norm_relu_pool(z, torch.ones(2).double(), torch.zeros(2).double())


def test_build_info_names_versions_kernels_and_what_is_missing():
    info = ddfast.build_info()
    assert info["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(info["kernels"]) == set(op_names()) and "norm_relu_pool_backward_jvp" in info["kernels"]
    assert isinstance(info["missing"], list)
    if EXTENSION is not None:
        assert all("cpu" in devices for devices in info["kernels"].values())


@needs_extension
@pytest.mark.parametrize("limit, allowed", [("default", {"base"}), ("avx2", {"base", "avx2"})])
def test_pytorchs_limit_of_instructions_limits_the_kernels_too(limit, allowed):
    code = "import ddfast; print(ddfast.build_info()['extension']['instructions'])"
    assert run_python(code, ATEN_CPU_CAPABILITY=limit).stdout.strip() in allowed
