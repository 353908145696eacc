"""Where else the records of a run go."""

import csv
import json
import logging
import sys
from types import SimpleNamespace

import pytest

import ddfast
from ddfast.run.folder import RunFolder
from ddfast.run.trackers import CSV
from tests.conftest import SMALL, interrupt_after

HOW = {**SMALL, "iterations": 5, "checkpoint_every": 2, "eval_every": 2, "network": "mlp"}


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_csv_file_has_a_line_per_iteration_and_the_accuracies(tmp_path):
    done = ddfast.distill(output=tmp_path / "run", log="csv", **HOW)
    rows = read(done.path / "log.csv")
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in metrics(done.path)]
    on_the_way = [json.loads(line) for line in (done.path / "evaluations.jsonl").read_text().splitlines()]
    assert float(rows[1]["accuracy/distilled"]) == on_the_way[0]["mean"]
    assert float(rows[4]["accuracy/distilled"]) == done.accuracy["distilled"]["mean"]
    assert float(rows[4]["accuracy/random_real"]) == done.accuracy["random_real"]["mean"]


def test_a_run_that_goes_on_has_each_iteration_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(output=tmp_path / "run", log="csv", progress=interrupt_after(3), **HOW)
    path = tmp_path / "run" / "log.csv"
    with open(path, "a") as file:
        file.write("4,0.5,")  # cut off
    ddfast.distill(output=tmp_path / "run", resume=True)
    assert [int(row["iteration"]) for row in read(path)] == [1, 2, 3, 4, 5]
    assert [float(row["loss"]) for row in read(path)] == [r["loss"] for r in metrics(tmp_path / "run")]


def test_a_csv_line_costs_the_same_however_many_there_are(tmp_path, monkeypatch):
    tracker = CSV(RunFolder(tmp_path))
    tracker.begin({}, 0)
    tracker.log({"iteration": 1, "loss": 1.0}, 1)

    class Untouched(dict):
        def __iter__(self):
            raise AssertionError("all lines were looked at")

        values = keys = items = __iter__

    monkeypatch.setattr(tracker, "_rows", Untouched(tracker._rows))
    tracker.log({"iteration": 2, "loss": 0.5}, 2)
    assert [row["loss"] for row in read(tmp_path / "log.csv")] == ["1.0", "0.5"]


def test_tensorboard_gets_numbers_and_images(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = ddfast.distill(output=tmp_path / "run", log="tensorboard", **HOW)
    events = accumulator.EventAccumulator(str(done.path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in metrics(done.path)])
    assert events.Scalars("accuracy/distilled")[-1].value == pytest.approx(done.accuracy["distilled"]["mean"])
    assert [e.step for e in events.Images("images")] == [2, 4, 5]


@pytest.fixture
def module(monkeypatch):
    """A module with wandb's functions, which keeps what it is told."""
    told = []
    fake = SimpleNamespace(
        told=told,
        init=lambda **how: told.append(("init", how)),
        log=lambda numbers, step: told.append((step, numbers)),
        Image=lambda picture: picture.size,
        finish=lambda: told.append(("finish", None)),
    )
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, fake)
    return fake


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_are_called_alike(tmp_path, module, name):
    done = ddfast.distill(output=tmp_path / "run", log=name, **HOW)
    (_, how), *logged, (last, _) = module.told
    assert how["project"] == "ddfast" and how["name"].startswith("run-") and how["config"]["method"] == "mtt"
    assert how.get("id") == (how["name"] if name == "wandb" else None) and last == "finish"
    losses = {step: numbers["loss"] for step, numbers in logged if "loss" in numbers}
    assert losses == {record["iteration"]: record["loss"] for record in metrics(done.path)}
    assert [step for step, numbers in logged if "images" in numbers] == [2, 4, 5]
    assert logged[-1][1]["accuracy/distilled"] == done.accuracy["distilled"]["mean"]


def test_a_resumed_run_keeps_its_name_and_another_of_the_same_folder_name_has_its_own(tmp_path, module):
    for folder in ("one", "two"):
        output = tmp_path / folder / "my run #1"
        with pytest.raises(KeyboardInterrupt):
            ddfast.distill(output=output, log="wandb", progress=interrupt_after(1), **{**HOW, "iterations": 2})
        ddfast.distill(output=output, resume=True)
    names = [how["name"] for what, how in module.told if what == "init"]
    assert names[0] == names[1] != names[2] == names[3] and names[0].startswith("my-run-1-")


def test_a_tracker_that_fails_ends_no_run(tmp_path, module, caplog):
    def log(numbers, step):
        if step == 2:
            raise ConnectionError("the server is down")

    module.log = log
    with caplog.at_level(logging.WARNING, "ddfast"):
        done = ddfast.distill(output=tmp_path / "run", log="wandb", **HOW)
    warned = [r.getMessage() for r in caplog.records if "server is down" in r.getMessage()]
    assert warned == ["log: wandb failed, nothing more goes there (ConnectionError: the server is down)"]
    assert len(done.history) == 5 and done.accuracy


def test_a_tracker_that_is_not_there_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"log: wandb is not installed .*; call pip install wandb"):
        ddfast.distill(output=tmp_path / "run", log="wandb", **HOW)
    with pytest.raises(ValueError, match="log: expected one of csv, tensorboard, wandb, trackio"):
        ddfast.distill(output=tmp_path / "run", log="mlflow", **HOW)
    assert not (tmp_path / "run").exists()


def test_results_show_themselves_in_notebooks(tmp_path):
    done = ddfast.distill(output=tmp_path / "run", **HOW)
    for value in (done, done.synthetic, ddfast.evaluate(done.synthetic, "digits", num_eval=1, eval_epochs=1)):
        page = value._repr_html_()
        assert page.count("<table>") == page.count("</table>") and page.count("<p>") == page.count("</p>")
    assert f"{done.accuracy['distilled']['mean']:.1f}%" in done._repr_html_()
    assert "data:image/webp;base64," in done.synthetic._repr_html_()
    assert "10 images of 10 classes" in done.synthetic._repr_html_()


def test_verbose_shows_the_log_on_stderr(capsys):
    logger = logging.getLogger("ddfast")
    before = logger.handlers, logger.propagate, logger.level
    try:
        ddfast.verbose()
        ddfast.verbose()
        logger.info("once")
        assert capsys.readouterr().err == "once\n"
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
