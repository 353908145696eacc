"""The script for a GPU: rehearsed as a whole on a CPU, and what its parts are judged, limited and reported by."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks.gpu import runner
from benchmarks.gpu.cases import all_cases, tensors_of
from benchmarks.gpu.correctness import judged
from benchmarks.gpu.kernels import predicted, predictions
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.pack import pack
from benchmarks.gpu.report import problems, write
from benchmarks.gpu.runner import DONE, LIMIT, PARTS, limits, run_within
from benchmarks.lines import read_lines
from benchmarks.predicted import SPEEDS
from ddfast.ops import EXTENSION, op_names

ROOT = Path(__file__).parent.parent
NAMES = [part.name for part in PARTS]
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="the extension is not loaded")


def script(*arguments: str) -> subprocess.CompletedProcess:
    # threads that wait for each other take long where other processes want the cores, too
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_extension
def test_a_rehearsal_runs_every_part_with_small_errors_and_nothing_fails(tmp_path):
    """One test, for the rehearsal takes a minute."""
    done = script("--rehearse", "--output", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert done.returncode == 0 and not results["problems"], done.stdout
    parts = results["parts"]
    assert list(parts) == NAMES and {part["status"] for part in parts.values()} == {DONE}
    for name in NAMES:
        assert f"| {name} | done |" in done.stdout and parts[name]["lines"], name
    for file in ("table.md", "kernels.png", "meta_gradient.png", "cifar.png", "cifar-before-after.png"):
        assert (tmp_path / file).stat().st_size > 1000, file
    every_test_has_a_line(parts["suite"]["lines"])
    every_op_is_checked_and_errors_are_small(parts["correctness"]["lines"])
    every_op_is_timed(parts["kernels"]["lines"])
    meta_gradients_are_beside_eager_ones(parts["meta_gradient"]["lines"])
    for name in ("experts", "evaluation"):
        lines = [line for line in parts[name]["lines"] if "speed_up" in line]
        assert len(lines) > 1 and all(line["error"] < 5e-3 and line["ms"] > 0 for line in lines)
    accuracy_is_shown_over_time(parts["cifar"]["lines"])


def every_test_has_a_line(lines):
    assert sum(line.get("outcome") == "passed" for line in lines) > 1
    assert all(line["name"].startswith("tests/") for line in lines if "outcome" in line)


def every_op_is_checked_and_errors_are_small(lines):
    lines = [line for line in lines if "error" in line]
    assert {line["name"] for line in lines} == set(op_names())
    for line in lines:
        bound = 0.2 if line["precision"] == "bfloat16" else 1e-5
        assert line["ok"] and 0 <= line["rest"] <= line["error"] < bound, line


def every_op_is_timed(lines):
    timed = [line for line in lines if "us" in line]
    assert {line["name"] for line in timed} == set(op_names())
    assert all(line["us"] > 0 and line["bytes"] > 0 and 0 < line["of_copy"] for line in timed)


def meta_gradients_are_beside_eager_ones(lines):
    rows = [line for line in lines if "speed_up" in line]
    precisions = {(line["precision"], line["row"]) for line in rows}
    assert precisions == {(p, row) for p in ("default", "float32", "bfloat16") for row in ("store", "recompute")}
    for line in rows:
        bound = 0.3 if line["precision"] == "bfloat16" else 5e-3  # a ReLU may switch by rounding
        assert line["speed_up"] > 0 and line["mib"] > 0 and max(line["error"], line["apart"]) < bound, line


def accuracy_is_shown_over_time(lines):
    by_name = {line["name"]: line for line in lines}
    assert by_name["data"]["train"] == 40 and by_name["experts"]["count"] == 1
    assert by_name["evaluation"]["iteration"] == 2 and 0 <= by_name["evaluation"]["accuracy"] <= 100
    assert by_name["result"]["iterations"] == 3 and set(by_name["result"]["accuracy"]) >= {"distilled", "random_real"}
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    assert seconds == sorted(seconds)


STALLS = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(sys.argv[1], "w") as file:
        file.write('{"name": "setting", "row": "store", "precision": "default", "ms": 1.5, "baseline_ms": 6.0, '
                   '"speed_up": 4.0, "mib": 2.0}\\n{"name": "pid", "pid": %d}\\n{"name": "cut o' % child.pid)
    time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_part_is_killed_at_its_limit_with_all_its_processes_and_what_it_wrote_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.2)
    file = tmp_path / "meta_gradient.jsonl"
    began = time.monotonic()
    command = [sys.executable, "-c", textwrap.dedent(STALLS), str(file)]
    ended = run_within(8.0, command, tmp_path / "meta_gradient.log", dict(os.environ))
    assert ended["status"] == LIMIT and 8 <= ended["seconds"] and time.monotonic() - began < 60
    lines = read_lines(file)
    assert [line["name"] for line in lines] == ["setting", "pid"]
    deadline = time.monotonic() + 10
    while is_alive(lines[1]["pid"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(lines[1]["pid"])
    short, failed = write(tmp_path, {"meta_gradient": ended}, {})
    assert not failed and "| meta_gradient | stopped at its limit | 8 | 8 | speed-up 4.00× to 4.00× |" in short
    assert "| setting | default | store | 1.5 | 6 | 4.00× |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["meta_gradient"]["lines"] == lines


def test_a_part_that_ends_by_itself_is_done_or_failed(tmp_path):
    for code, status in ((0, DONE), (3, "failed, exit status 3")):
        command = [sys.executable, "-c", f"print('said'); raise SystemExit({code})"]
        assert run_within(60, command, tmp_path / "log", dict(os.environ))["status"] == status
        assert (tmp_path / "log").read_text() == "said\n"


def test_what_failed_is_said_in_words():
    wrong = {"name": "conv3x3", "size": "2 × 3", "precision": "float32", "ok": False, "why": "an error of 1"}
    right, passed = {"name": "unroll", "ok": True}, {"name": "tests/a.py::test_b", "outcome": "passed"}
    done = {"status": DONE, "lines": [right]}
    assert problems({"correctness": done, "suite": done | {"lines": [passed]}}) == []
    assert problems({"correctness": done | {"lines": [right, wrong]}}) == [
        "correctness: conv3x3 2 × 3 float32: an error of 1"
    ]
    assert problems({"kernels": {"status": "failed, exit status 1", "lines": []}}) == [
        "kernels: failed, exit status 1, see kernels.log"
    ]
    assert problems({"suite": {"status": LIMIT, "lines": []}}) == [
        "suite: nothing was checked (stopped at its limit), see suite.log"
    ]


@needs_extension
def test_a_failed_check_makes_the_exit_status_1_and_the_other_parts_run(tmp_path):
    """The part of the data fails on a file that is none, the one before it does not."""
    (tmp_path / "bad.npz").write_bytes(b"no arrays")
    arguments = ["--rehearse", "--output", str(tmp_path / "out"), "--data", str(tmp_path / "bad.npz")]
    done = script(*arguments, "--only", "cifar,build")
    assert done.returncode == 1 and "cifar: failed, exit status 1, see cifar.log" in done.stdout
    assert "| build | done |" in done.stdout and "bad.npz" in (tmp_path / "out" / "cifar.log").read_text()


def test_parts_share_the_time_that_others_leave():
    left, seconds, given = list(PARTS), 1500.0, {}
    while left:
        name = left[0].name
        given[name], left = limits(left, seconds)
        seconds -= given[name]
    assert seconds == pytest.approx(0) and given["build"] == pytest.approx(300)
    assert limits(list(PARTS[-1:]), 700)[0] == 700


@needs_extension
def test_a_kernel_that_is_wrong_in_few_places_fails(monkeypatch):
    case = next(case for case in all_cases(small=True) if case.op == "norm_relu_pool_backward")
    assert judged(case, 1)["ok"]
    call, calls = type(case).__call__, []

    def wrong(self, arguments):
        calls.append(arguments)
        results = tensors_of(call(self, arguments))
        if len(calls) == 1:  # the kernel; then come its reference and the exact result
            results[0][0, 0, 0, :2] += 0.02
        return results

    monkeypatch.setattr(type(case), "__call__", wrong)
    line = judged(case, 1)
    assert (
        len(calls) == 3 and not line["ok"] and line["error"] > 1e-4 > line["of_reference"] and "error of" in line["why"]
    )


def test_predictions_are_found_and_count_the_same_bytes():
    table, cases = predictions(), [case for case in all_cases(small=False) if case.predicted]
    found = {case: predicted(case, table, "H100") for case in cases}
    assert sum(time is not None for time in found.values()) == 17
    (case,) = [c for c in cases if c.op == "param_distance" and c.size == "1 × 320010 parameters"]
    moved = sum(tensor.nbytes for tensor in tensors_of(case.arguments(1)))
    assert found[case] == pytest.approx(1e6 * moved / SPEEDS["H100"], rel=0.1)
    assert predicted(case, table, None) is None


def test_the_first_images_of_each_class_are_packed_and_no_more_than_fit(tmp_path):
    import pickle

    folder, numbers = tmp_path / "cifar-10-batches-py", numpy.random.default_rng(0)
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        batch = {
            b"data": numbers.integers(0, 256, (40, 3072), dtype=numpy.uint8),
            b"labels": [n % 10 for n in range(40)],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    words = pack(tmp_path / "small.npz", 3, 2, tmp_path)
    assert words.startswith("30 training and 20 test images")
    with numpy.load(tmp_path / "small.npz") as file:
        assert file["x_train"].shape == (30, 32, 32, 3) and file["x_train"].dtype == numpy.uint8
        assert numpy.bincount(file["y_test"]).tolist() == [2] * 10
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("benchmarks.gpu.pack.MOST", 50_000)
        with pytest.raises(ValueError, match="more than"):
            pack(tmp_path / "large.npz", 3, 2, tmp_path)
    with pytest.raises(FileNotFoundError, match="DDFAST_DATA"):
        pack(tmp_path / "none.npz", 3, 2, tmp_path / "elsewhere")


def test_without_a_gpu_the_script_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = script("--output", str(tmp_path))
    assert done.returncode == 2 and "--rehearse" in done.stderr and not list(tmp_path.iterdir())


def test_lines_are_appended_and_a_torn_one_is_left_out(tmp_path):
    lines = Lines(tmp_path / "part.jsonl")
    lines.write("first", ok=True)
    lines.write("second", us=1.5)
    with open(tmp_path / "part.jsonl", "a") as file:
        file.write('{"name": "thi')
    assert read_lines(tmp_path / "part.jsonl") == [{"name": "first", "ok": True}, {"name": "second", "us": 1.5}]
