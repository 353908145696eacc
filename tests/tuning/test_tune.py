"""Tuning on small real data: what it chooses, what it chooses by, and that it goes on and is shared."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import TensorDataset

import ddfast
from ddfast.cli import cli
from ddfast.run.loop import DistillationDivergedError
from ddfast.tuning.clock import rung_seconds
from tests.conftest import uniform

SMALL = {
    "network": "mlp",
    "num_experts": 1,
    "train_epochs": 2,
    "batch_train": 5,
    "iterations": 9,
    "num_eval": 2,
    "eval_epochs": 4,
    "ipc": 1,
    "preset": "mtt/digits/ipc1",
    "batch_syn": "none",
}  # fmt: skip; with batch_syn given nothing is timed, and two studies draw the same trials
ENOUGH = "1h"


def arguments(options):
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def hard_pair():
    """Three classes that overlap, so that settings differ in what they reach."""
    labels = torch.arange(60) % 3
    images = (uniform(60, 1, 16, 16).float() * 0.6 + labels.view(-1, 1, 1, 1) * 0.1).clamp(0, 1)
    return TensorDataset(images, labels), TensorDataset(images[:9], labels[:9])


@pytest.fixture(scope="module")
def tuned(hard_pair, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "study"
    return ddfast.tune(hard_pair, time=ENOUGH, trials=5, hold_out=0.3, output=output, **SMALL)


def test_the_best_trial_is_no_worse_than_the_defaults_which_come_first(tuned):
    first = next(row for row in tuned.rows if row["trial"] == 0)
    assert first["defaults"] and first["state"] == "done" and first["held_out"] == tuned.defaults
    preset = {"lr_img": 100.0, "lr_teacher": 0.02, "lr_lr": 1e-4, "syn_steps": 20, "dsa_strategy": "none"}
    assert first["params"].items() >= preset.items() and first["iterations"] == 9
    whole = [row for row in tuned.rows if len(row["rungs"]) == 3]
    assert tuned.held_out == max(row["held_out"] for row in whole) >= tuned.defaults
    assert len(tuned.rows) == 5 and len({json.dumps(row["params"]) for row in tuned.rows}) == 5
    table = json.loads((tuned.path / "study.json").read_text())
    assert table["rows"] == tuned.rows and "test images were removed" in table["findings"]["test_images"]


def test_the_settings_are_those_of_the_best_trial_and_distil_takes_them(tuned, hard_pair, tmp_path):
    """With images held out again they reach the same, bit for bit; experts are then trained for this run alone."""
    assert tuned.settings["hold_out"] == 0 and "experts" not in tuned.settings and "dataset" not in tuned.settings
    again = ddfast.distill(hard_pair, output=tmp_path / "again", **tuned.settings | {"hold_out": 0.3})
    assert again.accuracy["distilled"]["held_out"] == tuned.held_out
    whole = ddfast.distill(hard_pair, output=tmp_path / "whole", **tuned.settings)
    config = json.loads((whole.path / "config.json").read_text())
    assert config["hold_out"] == 0 and config["lr_img"] == tuned.settings["lr_img"]


def test_a_trial_that_is_stopped_made_fewer_iterations(tuned):
    stopped = [row for row in tuned.rows if row["state"] == "stopped"]
    assert stopped  # of five trials not all are among the best third
    for row in tuned.rows:
        made = lines(tuned.path / "trials" / f"{row['trial']:04d}" / "metrics.jsonl")
        shares = {1: 9, 2: 3, 3: 1}
        assert [r["iteration"] for r in made] == list(range(1, -(-row["iterations"] // shares[len(row["rungs"])]) + 1))


def test_test_images_change_nothing_that_is_chosen(tuned, hard_pair, tmp_path):
    noise = TensorDataset(uniform(9, 1, 16, 16, seed=5).float().clamp(0, 1), torch.tensor([2, 1, 0] * 3))
    how = {"time": ENOUGH, "trials": 5, "hold_out": 0.3, "output": tmp_path / "study"}
    other = ddfast.tune((hard_pair[0], noise), **how, **SMALL)
    assert without_seconds(other.rows) == without_seconds(tuned.rows) and other.settings == tuned.settings
    assert other.config.read_text() == tuned.config.read_text()


def test_experts_are_trained_once_and_long_enough_for_every_trial(tuned):
    store = ddfast.TrajectoryStore(tuned.path / "experts")
    longest = max(row["params"]["max_start_epoch"] - 1 + row["params"]["expert_epochs"] for row in tuned.rows)
    assert store.num_experts == 1 and store.epochs >= longest
    for row in tuned.rows:
        config = json.loads((tuned.path / "trials" / f"{row['trial']:04d}" / "config.json").read_text())
        assert config["experts"] == str(store.path.resolve()) and config["hold_out"] == 0.3


def test_a_call_on_a_finished_study_goes_on_with_it(tuned, hard_pair, tmp_path):
    how = {"time": ENOUGH, "hold_out": 0.3, "output": tuned.path}
    again = ddfast.tune(hard_pair, trials=5, **how, **SMALL)
    assert again.rows == tuned.rows
    with pytest.raises(ValueError, match=r"iterations: the study in .* has 9, got 8; choose another output folder"):
        ddfast.tune(hard_pair, **how, **SMALL | {"iterations": 8})
    with pytest.raises(ValueError, match=r"dataset: the study in .* is of other training images"):
        ddfast.tune((hard_pair[1], hard_pair[1]), **how, **SMALL)


class FakeRuns:
    """In the place of `distill`: accuracies as the test has them, without any training."""

    def __init__(self, reached):
        self.reached, self.calls = reached, []

    def __call__(self, data, output, resume, iterations):
        number = int(Path(output).name)
        self.calls.append((number, iterations))
        value = self.reached(number, iterations)
        if isinstance(value, BaseException):
            raise value
        return SimpleNamespace(accuracy={"distilled": {"held_out": value, "mean": 100 - value}})


def test_the_best_third_goes_on_and_the_others_stop(hard_pair, tmp_path, monkeypatch):
    good = {0: 50.0, 1: 40.0, 2: 60.0, 3: 30.0, 4: 70.0, 5: 45.0, 6: 20.0}
    runs = FakeRuns(lambda number, iterations: good[number])
    monkeypatch.setattr("ddfast.tuning.trial.distill", runs)
    result = ddfast.tune(hard_pair, time=ENOUGH, trials=7, output=tmp_path / "study", lr_img=1.0, **SMALL)
    times = {number: [n for n, _ in runs.calls].count(number) for number in good}
    assert times == {0: 3, 1: 1, 2: 3, 3: 1, 4: 3, 5: 1, 6: 1}
    assert [row["trial"] for row in result.rows[:3]] == [4, 2, 0] and result.held_out == 70
    assert "lr_img" not in result.rows[0]["params"] and result.settings["lr_img"] == 1.0  # what is given stays


def test_runs_that_fail_are_left_out_and_those_of_the_defaults_are_told(hard_pair, tmp_path, monkeypatch):
    errors = {1: DistillationDivergedError("20 updates"), 2: MemoryError("no\nroom"), 3: ValueError("syn_steps: no")}
    runs = FakeRuns(lambda number, iterations: errors.get(number, 50.0))
    monkeypatch.setattr("ddfast.tuning.trial.distill", runs)
    result = ddfast.tune(hard_pair, time=ENOUGH, trials=5, output=tmp_path / "study", **SMALL)
    assert {row["trial"]: row["state"] for row in result.rows} | {4: ""} == {
        0: "done", 1: "diverged", 2: "no room", 3: "syn_steps: no", 4: "",
    }  # fmt: skip
    assert all(row["held_out"] is None for row in result.rows if row["trial"] in errors)
    errors[0] = ValueError("experts: learned nothing")
    with pytest.raises(ValueError, match="experts: learned nothing"):
        ddfast.tune(hard_pair, time=ENOUGH, trials=5, output=tmp_path / "other", **SMALL)
    del errors[0]  # mended: the same call takes the trial up
    assert ddfast.tune(hard_pair, time=ENOUGH, trials=1, output=tmp_path / "other", **SMALL).defaults == 50


def test_a_search_without_any_result_says_why(hard_pair, tmp_path, monkeypatch):
    monkeypatch.setattr("ddfast.tuning.trial.distill", FakeRuns(lambda number, n: DistillationDivergedError("20")))
    with pytest.raises(ValueError, match="tune: none of 3 trials came to a result; the first one: diverged"):
        ddfast.tune(hard_pair, time=ENOUGH, trials=3, output=tmp_path / "study", **SMALL)


def test_settings_that_cannot_work_are_left_out(hard_pair, tmp_path, monkeypatch):
    """An augmentation that there is not is refused before the run."""
    for name in ("MILD_STRATEGY", "GREY_STRATEGY"):
        monkeypatch.setattr(f"ddfast.tuning.space.{name}", "no_such_thing")
    runs = FakeRuns(lambda number, iterations: 50.0)
    monkeypatch.setattr("ddfast.tuning.trial.distill", runs)
    result = ddfast.tune(hard_pair, time=ENOUGH, trials=5, output=tmp_path / "study", **SMALL)
    wrong = [row for row in result.rows if row["params"]["dsa_strategy"] == "no_such_thing"]
    assert wrong and all(row["state"].startswith("dsa_strategy: expected some of") for row in wrong)


def test_no_rung_begins_that_does_not_fit(hard_pair, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ddfast.tuning.clock.time.monotonic", lambda: now[0])
    cost = {1: 20.0, 3: 40.0, 9: 90.0}

    def reached(number, iterations):
        now[0] += cost[iterations]
        return 50.0

    runs = FakeRuns(reached)
    monkeypatch.setattr("ddfast.tuning.trial.distill", runs)
    monkeypatch.setattr("ddfast.tuning.trial.rung_iterations", lambda iterations: [1, 3, 9])
    monkeypatch.setattr("ddfast.tuning.begin.forecast_of", lambda job, count: SimpleNamespace(left=lambda: 15.0))
    how = {"output": tmp_path / "study"} | SMALL
    with pytest.raises(ValueError, match="time: 10s is too short: the first 1 iterations of the defaults and their"):
        ddfast.tune(hard_pair, time="10s", **how)
    assert not (tmp_path / "study").exists()
    result = ddfast.tune(hard_pair, time="100s", **how)  # 20 + 40; 120 at most for the last rung
    assert runs.calls == [(0, 1), (0, 3)] and not result.is_whole and result.rows[0]["state"] == "unfinished"
    result = ddfast.tune(hard_pair, time="170s", **how)  # 90 for the rung that was left; then 20 and 40 of trial 1
    assert runs.calls[2:] == [(0, 9), (1, 1), (1, 3)] and result.is_whole
    assert result.settings["iterations"] == 9


def test_where_minibatches_are_searched_steps_are_timed_once(hard_pair, tmp_path, monkeypatch):
    monkeypatch.setattr("ddfast.tuning.trial.distill", FakeRuns(lambda number, iterations: 50.0))
    monkeypatch.setattr("ddfast.tuning.begin.time_unroll", lambda network, sizes, count, *how: 4.0 + 2.0 * count)
    how = {name: value for name, value in SMALL.items() if name != "batch_syn"} | {"ipc": 2, "iterations": 900}
    for trials in (1, 3):
        result = ddfast.tune(hard_pair, time=ENOUGH, trials=trials, output=tmp_path / "study", **how)
        monkeypatch.setattr("ddfast.tuning.begin.time_unroll", None)
    assert json.loads((tmp_path / "study" / "space.json").read_text())["fixed"] == 0.25  # 4 of 4 + 2 · 6
    for row in result.rows:
        steps, count = row["params"]["syn_steps"], row["params"]["batch_syn"]
        assert row["iterations"] == pytest.approx(900 * 20 * 16 / (steps * (4 + 2 * count)), abs=0.51)


def test_a_rung_takes_as_long_as_measured_ones():
    measured = [{0: 4.0, 1: 9.0}, {0: 6.0}, {0: 50.0}]
    assert rung_seconds(0, {}, measured, 99.0) == 6
    assert rung_seconds(1, {0: 6.0}, measured, 99.0) == 9
    assert rung_seconds(2, {0: 6.0, 1: 10.0}, measured, 99.0) == 30
    assert rung_seconds(0, {}, [], 99.0) == 99


@pytest.fixture(scope="module")
def file(hard_pair, tmp_path_factory):
    """The images as a file of arrays, for the command line."""
    path = tmp_path_factory.mktemp("data") / "three.npz"
    arrays = zip(("train", "test"), hard_pair, strict=True)
    parts = {f"{kind}_{part}": pair.tensors[n] for part, pair in arrays for n, kind in enumerate(("x", "y"))}
    numpy.savez(path, **{name: tensor.numpy() for name, tensor in parts.items()})
    return path


def start(file, output, *more):
    command = [
        sys.executable,
        "-m",
        "ddfast",
        "tune",
        "--dataset",
        str(file),
        "--time",
        ENOUGH,
        "--output",
        str(output),
    ]
    return subprocess.Popen(
        [*command, *arguments(SMALL), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_search_goes_on_as_if_it_had_not_been(file, tmp_path):
    process = start(file, tmp_path / "killed", "--trials", "3")
    for line in process.stderr:
        if line.startswith("trial 1:"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        how = {"time": ENOUGH, "trials": 3} | SMALL
        result = ddfast.tune(file, output=tmp_path / "killed", **how)
        whole = ddfast.tune(file, output=tmp_path / "whole", **how)
    finally:
        torch.set_num_threads(torch_threads)
    assert without_seconds(result.rows) == without_seconds(whole.rows) and len(result.rows) == 3
    assert all(row["state"] in ("done", "stopped") for row in result.rows)


def test_two_processes_share_a_study(file, tmp_path):
    both = [start(file, tmp_path / "study", "--trials", "5") for _ in range(2)]
    ended = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    worked = [
        {int(line.split()[1].rstrip(":")) for line in err.splitlines() if line.startswith("trial ")} for _, err in ended
    ]
    assert worked[0] | worked[1] == set(range(5)) and not worked[0] & worked[1] and all(worked)
    assert all("test images were removed" in out for out, _ in ended)
    rows = json.loads((tmp_path / "study" / "study.json").read_text())["rows"]
    assert sorted(row["trial"] for row in rows) == list(range(5)) and sum(row["defaults"] for row in rows) == 1
    for row in rows:
        made = lines(tmp_path / "study" / "trials" / f"{row['trial']:04d}" / "metrics.jsonl")
        assert [record["iteration"] for record in made] == list(range(1, len(made) + 1))


def test_the_command_prints_a_table_and_writes_a_file_that_distill_takes(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = arguments(SMALL | {"dataset": file, "iterations": 3, "memory": "1GiB", "trials": 2, "time": ENOUGH})
    done = CliRunner().invoke(cli, ["tune", *how])
    assert done.exit_code == 0, (done.output, done.exception)
    assert (
        "0 (defaults)" in done.output
        and "held-out" in done.output
        and "settings:      tuning/tuned.yaml" in done.output
    )
    config = json.loads((tmp_path / "tuning" / "trials" / "0000" / "config.json").read_text())
    assert config["memory_budget"] == "1GiB" and config["dataset"] == "custom"  # data without their test images
    shown = CliRunner().invoke(cli, ["distill", "--config", "tuning/tuned.yaml", "--print-config"])
    assert shown.exit_code == 0, shown.output
    text = (tmp_path / "tuning" / "tuned.yaml").read_text()
    assert f"dataset: {file}" in text and "hold_out: 0.0" in text and "memory_budget: 1GiB" in text
    picked = [line for line in text.splitlines() if line.startswith(("lr_", "syn_steps", "iterations", "dsa_strategy"))]
    assert picked and all(line in shown.output.splitlines() for line in picked)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"dataset": "cifar"}, "dataset: expected one of digits, mnist"),
        ({"time": "soon"}, "time: expected a time such as 90s, 20min or 2h, got 'soon'"),
        ({"hold_out": 0.0}, "hold_out: expected a number above 0 and below 1, got 0.0"),
        ({"trials": 0}, "trials: expected a whole number of at least 1, got 0"),
        ({"num_eval": 0}, "num_eval: expected a whole number of at least 1, got 0"),
        ({"eval_every": 3}, "eval_every: is not for tuning"),
        ({"experts": "folder"}, "experts: is not for tuning"),
        ({"method": "herding"}, "herding selects images and learns nothing"),
        ({"itertions": 3}, "unknown option 'itertions'; did you mean 'iterations'"),
        ({"time": "0.0001s"}, "time: 0.0001s is too short"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(options, sentence, tmp_path):
    how = {"dataset": "digits", "time": ENOUGH, "output": tmp_path / "study"} | options
    with pytest.raises(ValueError, match=sentence):
        ddfast.tune(**how)
    assert not (tmp_path / "study").exists()


def test_a_missing_optuna_is_told_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"tune: needs Optuna; `pip install optuna`, or"):
        ddfast.tune("digits", time="1h", output=tmp_path / "study")


def test_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds something else than a study"):
        ddfast.tune("digits", time="1h", output=tmp_path)
