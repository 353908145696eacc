"""No call of an op ends the interpreter: arguments damaged at random, each op's own schema the guide.

`DDFAST_FUZZ=1000` tries as many calls of each op, in a new random order.
"""

import itertools
import os
import random
import subprocess
import sys

import pytest
import torch

from ddfast.ops import EXTENSION, op_names
from tests.conftest import normal
from tests.ops.fuzz import PLAIN, arguments_of_all_ops

MANY = int(os.environ.get("DDFAST_FUZZ", 0))
HARDLY = 80  # calls of each op in continuous integration
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="the extension is not loaded")


def fuzz(tmp_path, seed: int, cases: int, *ops: str) -> None:
    """In another process, which may end as it likes."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tests.ops.fuzz", str(seed), str(cases), str(log), *ops]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 + 5 * cases)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else [done.stderr]
    wrong = "\n".join(f"{a}\n{b}" for a, b in itertools.pairwise(lines) if b.startswith(" "))
    assert not wrong, wrong
    assert lines[-1] == "done", f"ended with {done.returncode} in {lines[-1]}\n{done.stderr[-2000:]}"


@needs_extension
def test_damaged_arguments_of_every_op_are_computed_with_or_refused_in_one_sentence(tmp_path):
    seed = random.randrange(2**31) if MANY else 0
    fuzz(tmp_path, seed, MANY or HARDLY)


def test_every_op_is_tried():
    assert set(arguments_of_all_ops(PLAIN)) == set(op_names())


@needs_extension
@pytest.mark.parametrize("length", [1, 2, 4, 5, 7, 10, 12])
def test_a_list_of_kept_tensors_of_another_length_is_refused(length):
    arguments = list(arguments_of_all_ops(PLAIN)["unroll_backward"])
    at = next(i for i, argument in enumerate(arguments) if isinstance(argument, list))
    arguments[at] = (2 * arguments[at])[:length]
    with pytest.raises(ValueError, match="kept: expected 3 tensors for each of at most 3 steps"):
        torch.ops.ddfast.unroll_backward(*arguments)


def test_lists_of_another_length_than_the_schema_has_are_refused_on_meta_too():
    row = normal(2, 3).to("meta")
    rest = (row, row, row, None, row[:, 0], row[:, 0])
    with pytest.raises(ValueError, match="wanted: expected 3 values, got 6"):
        torch.ops.ddfast.param_distance_backward(row[:, 0], *rest, [True] * 6)


def test_tensors_on_meta_beside_others_are_refused():
    row = normal(2, 3)
    with pytest.raises(ValueError, match="param_distance: expected tensors on one device, got cpu and meta"):
        torch.ops.ddfast.param_distance(row, row + 1, row - 1, normal(3).to("meta"))
