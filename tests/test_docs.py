"""The code in the documentation runs, and what it shows as a change changes nothing."""

import re
from pathlib import Path

import pytest
import torch

from tests.conftest import relative_error

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXACT = 1e-9  # float64, sums in another order


@pytest.fixture
def float64():
    """Random numbers and networks are float64, and the global state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def run(code: str, names: dict) -> dict[str, torch.Tensor]:
    """Run it; the gradients that it leaves in the leaves that were there before."""
    tensors = {key: value for key, value in names.items() if isinstance(value, torch.Tensor)}
    leaves = {key: tensor for key, tensor in tensors.items() if tensor.is_leaf and tensor.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    torch.manual_seed(0)
    exec(code, names)
    return {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def side(diff: str, sign: str) -> str:
    """The code before, "-", or after, "+"."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in (" ", sign))


def test_what_drop_in_shows_runs_and_the_gradients_before_and_after_are_the_same(float64):
    names: dict = {}
    blocks = BLOCK.findall((DOCS / "drop-in.md").read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("diff") == 10
    for kind, code in blocks:
        if kind == "python":
            run(code, names)
            continue
        before, after = (run(side(code, sign), dict(names)) for sign in "-+")
        assert before and before.keys() == after.keys()
        for key, gradient in before.items():
            assert gradient.abs().max() > 0 and relative_error(after[key], gradient) < EXACT, f"{key}:\n{code}"
