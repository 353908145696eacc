"""What an outer step of a run may use: its plan, its precision, and what happens when memory runs out all the same."""

import importlib
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import ddfast
from ddfast.methods.trajectory import matching
from ddfast.runtime.devices import is_out_of_memory
from tests.conftest import SMALL, relative_error

distill_module = importlib.import_module("ddfast.run.distill")  # the function has its name
OPTIONS = SMALL | {"iterations": 4, "lr_teacher": 0.02}  # nothing is probed


def test_the_memory_plan_is_recorded_and_another_budget_gives_the_same_images(pair, tmp_path):
    rich = ddfast.distill(pair, output=tmp_path / "rich", **SMALL)
    needed = json.loads((rich.path / "config.json").read_text())["memory_plan"]["predicted_bytes"]
    poor = ddfast.distill(pair, output=tmp_path / "poor", memory_budget=needed - 1, **SMALL)
    plans = [json.loads((r.path / "config.json").read_text())["memory_plan"] for r in (rich, poor)]
    assert plans[0]["stored_steps"] == SMALL["syn_steps"] and plans[0]["micro_batch"] is None
    assert plans[1] != plans[0] and plans[1]["predicted_bytes"] < needed
    assert relative_error(poor.synthetic.images, rich.synthetic.images) < 1e-4  # float32
    again = ddfast.distill(pair, output=tmp_path / "rich", resume=True, **SMALL | {"iterations": 4})
    assert json.loads((again.path / "config.json").read_text())["memory_plan"] == plans[0]
    other = ddfast.distill(
        pair, output=tmp_path / "rich", resume=True, memory_budget=needed - 1, **SMALL | {"iterations": 5}
    )
    assert json.loads((other.path / "config.json").read_text())["memory_plan"] == plans[1]


def test_a_budget_that_is_too_small_names_the_smallest_before_anything_is_written(pair, tmp_path):
    with pytest.raises(ValueError, match=r"memory_budget: 0\.00954 MiB is too little .* smallest that does is \d+ MiB"):
        ddfast.distill(pair, output=tmp_path / "run", memory_budget="10kB", **SMALL)
    assert not (tmp_path / "run").exists()


def test_precision_is_an_option_that_is_recorded(pair, tmp_path):
    runs = {
        precision: ddfast.distill(pair, output=tmp_path / precision, precision=precision, device="cpu", **SMALL)
        for precision in ("default", "float32", "bfloat16")
    }
    images = {precision: run.synthetic.images for precision, run in runs.items()}
    moved = images["default"] - ddfast.SyntheticSet.load(tmp_path / "default" / "initial").images
    for precision in ("float32", "bfloat16"):  # on a CPU the default convolves on tiles
        assert 0 < (images[precision] - images["default"]).norm() < 0.1 * moved.norm()
    configs = {precision: json.loads((run.path / "config.json").read_text()) for precision, run in runs.items()}
    assert all(config["precision"] == precision for precision, config in configs.items())
    needed = {precision: config["memory_plan"]["predicted_bytes"] for precision, config in configs.items()}
    assert needed["bfloat16"] < needed["float32"] == needed["default"]
    with pytest.raises(ValueError, match="precision: expected one of default, float32, bfloat16, got 'half'"):
        ddfast.distill(pair, output=tmp_path / "half", precision="half", **SMALL)
    assert not (tmp_path / "half").exists()


@pytest.fixture
def failing(monkeypatch):
    """failing(n, …): from now on the calls of these numbers, from 1, of an unroll run out of memory."""
    calls, which, original = [], set(), matching.unroll

    def unroll(*args, **options):
        calls.append(options["adjoint"].plan)
        if len(calls) in which:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 GiB")
        return original(*args, **options)

    def arm(*numbers):
        calls.clear()
        which.clear()
        which.update(numbers)
        return calls

    monkeypatch.setattr(matching, "unroll", unroll)
    return arm


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_the_run_goes_on_with_half_of_the_memory_from_the_same_draws(pair, tmp_path, failing, caplog):
    whole = ddfast.distill(pair, output=tmp_path / "whole", **OPTIONS)
    plans = failing(3)
    with caplog.at_level("WARNING", "ddfast"):
        result = ddfast.distill(pair, output=tmp_path / "run", **OPTIONS)
    assert "memory ran out in iteration 3 (CUDA out of memory. Tried to allocate 60.00 GiB): retrying" in caplog.text
    before, after = config_of(tmp_path / "whole")["memory_plan"], config_of(tmp_path / "run")["memory_plan"]
    assert config_of(tmp_path / "run")["memory_ran_out"] == {"iteration": 3, "memory_plan": before}
    assert [plan.predicted_bytes for plan in plans] == 3 * [before["predicted_bytes"]] + 2 * [after["predicted_bytes"]]
    assert after["predicted_bytes"] < before["predicted_bytes"]  # half is less than anything needs
    for name in ("iteration", "expert", "start_epoch"):
        assert [r[name] for r in result.history] == [r[name] for r in whole.history]
    assert relative_error(result.synthetic.images, whole.synthetic.images) < 1e-4  # float32


def test_the_second_time_the_run_ends_and_can_be_resumed_with_a_smaller_budget(pair, tmp_path, failing):
    failing(2, 4)  # in iteration 2, and after it was done again, in iteration 3
    with pytest.raises(MemoryError, match=r"memory ran out in iteration 3 \(.* MiB .*\); resume the run with"):
        ddfast.distill(pair, output=tmp_path / "run", **OPTIONS)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["iteration"] == 2
    budget = config_of(tmp_path / "run")["memory_plan"]["predicted_bytes"]
    result = ddfast.distill(pair, output=tmp_path / "run", resume=True, memory_budget=budget, **OPTIONS)
    assert [r["iteration"] for r in result.history] == [1, 2, 3, 4]
    assert "memory_ran_out" not in config_of(tmp_path / "run")


def test_a_picture_that_fails_hides_no_error(pair, tmp_path, failing, monkeypatch, caplog):
    """Where memory is short, drawing fails too; the first picture of all is drawn before the loop."""

    def failing_picture(synthetic, path):
        if path.name == "images.png":
            raise ImportError("cannot map zero-fill pages")

    failing(1, 2)
    monkeypatch.setattr(sys.modules["ddfast.run.recorder"], "save_images", failing_picture)
    with pytest.raises(MemoryError, match="memory ran out in iteration 1"):
        ddfast.distill(pair, output=tmp_path / "run", **OPTIONS)
    assert "images.png: not drawn" in caplog.text
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_other_errors_pass_through():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    for words in ("could not create a primitive", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when"):
        assert is_out_of_memory(RuntimeError(words))
    for words in ("shapes do not match", "could not create a primitive descriptor for the convolution forward"):
        assert not is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_a_kill_after_it_was_planned_again_changes_no_bit(pair, tmp_path, failing):
    """The plan is another from iteration 3 on, whatever the last checkpoint was."""
    options = OPTIONS | {"checkpoint_every": 100}
    failing(3)
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    config, states = config_of(tmp_path / "whole"), []

    def killed(distillation):
        for record in distillation:
            if record["iteration"] == 3:
                states.append((tmp_path / "run" / "checkpoint.pt").read_bytes())
                states.append((tmp_path / "run" / "config.json").read_bytes())
            yield record

    failing(3)
    ddfast.distill(pair, output=tmp_path / "run", progress=killed, **options)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(states[0])
    (tmp_path / "run" / "config.json").write_bytes(states[1])
    (tmp_path / "run" / "summary.json").unlink()
    failing()
    again = ddfast.distill(pair, output=tmp_path / "run", resume=True)
    assert config_of(tmp_path / "run")["memory_plan"] == config["memory_plan"]
    assert torch.equal(again.synthetic.images, whole.synthetic.images)


LIMITED = """
    import json, resource, sys, torch, ddfast
    from torch.utils.data import TensorDataset

    torch.manual_seed(0)
    images, labels = torch.rand(100, 3, 32, 32), torch.arange(100) % 10
    pair = TensorDataset(images, labels), TensorDataset(images[:10], labels[:10])

    def limited(distillation):
        ddfast.ops.release_memory()  # of the experts' training
        status = open("/proc/self/status").read().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        most = used + distillation._job.plan.predicted_bytes * 4 // 5
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
        for record in distillation:
            print("iteration", record["iteration"], flush=True)
            yield record

    options = dict(network="convnet:width=32", ipc=10, syn_steps=10, expert_epochs=1, max_start_epoch=1, iterations=2)
    options |= dict(device="cpu", num_experts=1, train_epochs=1, num_eval=1, eval_epochs=1, memory_budget="2GiB")
    ddfast.distill(pair, output=sys.argv[1], progress=limited, zca=False, **options)
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
    before, after = config["memory_ran_out"]["memory_plan"], config["memory_plan"]
    assert after["stored_steps"] < 10 and after["predicted_bytes"] <= before["predicted_bytes"] / 2


def test_memory_that_runs_out_in_the_probe_is_planned_again_too(pair, tmp_path, monkeypatch):
    tries, original = [], distill_module.probe_rates

    def probe(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 GiB")
        return original(*arguments)

    monkeypatch.setattr(distill_module, "probe_rates", probe)
    ddfast.distill(pair, output=tmp_path / "run", **SMALL)
    assert len(tries) == 2 and config_of(tmp_path / "run")["memory_ran_out"]["iteration"] == 0
