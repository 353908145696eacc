"""Memory runs out in the middle of a run: planned again, once, and nothing is lost."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import ddfast
from ddfast.devices import is_out_of_memory
from ddfast.methods import mtt
from tests.conftest import SMALL, relative_error

OPTIONS = SMALL | {"iterations": 4}


@pytest.fixture
def failing(monkeypatch):
    """failing(n, …): the calls of these numbers, from 1, of an unroll run out of memory."""
    calls = []

    def arm(*numbers):
        def match_trajectory(*args, **options):
            calls.append(options["adjoint"].plan)
            if len(calls) in numbers:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 GiB")
            return original(*args, **options)

        original = mtt.match_trajectory
        monkeypatch.setattr(mtt, "match_trajectory", match_trajectory)
        return calls

    return arm


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_the_run_goes_on_with_half_of_the_memory_from_the_same_draws(pair, tmp_path, failing, caplog):
    whole = ddfast.distill(pair, output=tmp_path / "whole", **OPTIONS)
    plans = failing(3)
    with caplog.at_level("WARNING", "ddfast"):
        result = ddfast.distill(pair, output=tmp_path / "run", **OPTIONS)
    assert "memory ran out in iteration 3: going on with" in caplog.text
    before, after = config_of(tmp_path / "whole")["memory_plan"], config_of(tmp_path / "run")["memory_plan"]
    assert config_of(tmp_path / "run")["memory_ran_out"] == {"iteration": 3, "memory_plan": before}
    assert [plan.predicted_bytes for plan in plans] == 3 * [before["predicted_bytes"]] + 2 * [after["predicted_bytes"]]
    assert after["predicted_bytes"] < before["predicted_bytes"]  # half is less than anything needs
    for name in ("iteration", "expert", "start_epoch"):
        assert [r[name] for r in result.history] == [r[name] for r in whole.history]
    assert relative_error(result.synthetic.images, whole.synthetic.images) < 1e-4  # float32


def test_the_second_time_the_run_ends_and_can_be_resumed_with_a_smaller_budget(pair, tmp_path, failing):
    failing(2, 4)  # in iteration 2, and after it was done again, in iteration 3
    with pytest.raises(
        MemoryError, match=r"memory ran out in iteration 3 \(.* MiB .*\); resume the run with a smaller"
    ):
        ddfast.distill(pair, output=tmp_path / "run", **OPTIONS)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["iteration"] == 2
    budget = config_of(tmp_path / "run")["memory_plan"]["predicted_bytes"]
    result = ddfast.distill(pair, output=tmp_path / "run", resume=True, memory_budget=budget, **OPTIONS)
    assert [r["iteration"] for r in result.history] == [1, 2, 3, 4]
    assert "memory_ran_out" not in config_of(tmp_path / "run")


def test_other_errors_pass_through():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError())


LIMITED = """
    import json, resource, sys, torch, ddfast
    from torch.utils.data import TensorDataset

    torch.manual_seed(0)
    images, labels = torch.rand(100, 3, 32, 32), torch.arange(100) % 10
    pair = TensorDataset(images, labels), TensorDataset(images[:10], labels[:10])

    def limited(distillation):
        status = open("/proc/self/status").read().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        most = used + distillation._job.plan.predicted_bytes * 4 // 5
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
        for record in distillation:
            print("iteration", record["iteration"], flush=True)
            yield record

    options = dict(network="convnet:width=32", ipc=10, syn_steps=10, expert_epochs=1, max_start_epoch=1, iterations=2)
    options |= dict(num_experts=1, train_epochs=1, num_eval=1, eval_epochs=1, memory_budget="2GiB", zca=False)
    ddfast.distill(pair, output=sys.argv[1], progress=limited, seed=1, **options)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_that_really_runs_out(tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), run], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["iteration", "1", "iteration", "2"]
    config = config_of(run)
    assert config["memory_ran_out"]["iteration"] == 1 and config["memory_ran_out"]["memory_plan"]["stored_steps"] == 10
    assert config["memory_plan"]["stored_steps"] < 10
