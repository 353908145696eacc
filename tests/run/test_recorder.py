"""What a run writes while it goes, and where it goes on from."""

import pytest
import torch

from ddfast.run import recorder as recorder_module
from ddfast.run.folder import RunFolder
from ddfast.run.loop import Distillation
from ddfast.run.recorder import Recorder
from ddfast.run.resolve import resolve

JOB = {
    "method": "mtt", "iterations": 6, "num_experts": 1, "train_epochs": 2, "batch_train": 6, "syn_steps": 2,
    "expert_epochs": 1, "max_start_epoch": 1, "num_eval": 1, "eval_epochs": 1, "network": "mlp", "device": "cpu",
    "lr_teacher": 0.01, "lr_img": 1.0, "lr_lr": 1e-6, "checkpoint_every": 2, "eval_every": 3,
}  # fmt: skip


@pytest.fixture
def begin(pair, tmp_path):
    """A folder, its job, and a distillation at its start; the same ones each time."""
    import ddfast

    training = {"num_experts": 1, "train_epochs": 2, "batch_train": 6, "network": "mlp"}
    store = ddfast.train_experts(pair, output=tmp_path / "experts", dsa_strategy="none", **training)
    given = {name: value for name, value in JOB.items() if name not in training} | {"num_experts": 1}

    def made():
        job = resolve({"dataset": pair, "experts": store, **given})
        path = tmp_path / "run"
        run = RunFolder(path) if path.exists() else RunFolder.create(path, job.config)
        return run, job, Distillation(job, store)

    return made


def go(recorder: Recorder, distillation: Distillation, until: int) -> None:
    for record in distillation:
        recorder.after(record)
        if record["iteration"] == until:
            return


def test_records_checkpoints_and_evaluations_are_written_when_they_are_due(begin, monkeypatch):
    saved = []
    run, job, distillation = begin()
    write = run.write_state
    monkeypatch.setattr(run, "write_state", lambda state: saved.append(state["iteration"]) or write(state))
    recorder = Recorder(run, job, distillation)
    go(recorder, distillation, 6)
    assert saved == [2, 3, 4, 6]  # every second one, and before an evaluation
    assert [record["iteration"] for record in run.keep_until("metrics", 9)] == [1, 2, 3, 4, 5, 6]
    assert [record["iteration"] for record in run.keep_until("evaluations", 9)] == [3]  # the last one is not on the way
    assert {path.stem for path in (run.path / "checkpoints").iterdir()} == {"000003"}
    recorder.end()
    assert {"initial.png", "images.png", "curves.png", "initial.safetensors"} <= {
        path.name for path in run.path.iterdir()
    }


def test_it_goes_on_from_the_checkpoint_and_what_was_logged_after_it_goes(begin):
    run, job, distillation = begin()
    go(Recorder(run, job, distillation), distillation, 5)
    run, job, again = begin()
    recorder = Recorder(run, job, again)
    assert again.iteration == 4 and [record["iteration"] for record in recorder.history] == [1, 2, 3, 4]
    go(recorder, again, 5)
    assert torch.equal(again.synthetic.images, distillation.synthetic.images)


def test_an_evaluation_that_a_kill_left_out_is_made(begin, monkeypatch):
    run, job, distillation = begin()
    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "evaluate", lambda *given, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(Recorder(run, job, distillation), distillation, 3)
    run, job, again = begin()
    recorder = Recorder(run, job, again)
    assert again.iteration == 3 and run.keep_until("evaluations", 9) == []
    recorder.evaluate_if_due()
    assert [record["iteration"] for record in run.keep_until("evaluations", 9)] == [3]


def test_a_checkpoint_that_is_missing_or_of_another_run_is_refused(begin):
    run, job, distillation = begin()
    go(Recorder(run, job, distillation), distillation, 2)
    run.write_state({"iteration": 2, "skips": 0, "method": {}})
    run, job, again = begin()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: does not belong to this run"):
        Recorder(run, job, again)
    (run.path / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: is missing, so the run cannot be resumed"):
        Recorder(run, job, again)


def test_a_picture_that_cannot_be_drawn_costs_nothing_but_a_warning(begin, monkeypatch, caplog):
    monkeypatch.setattr(recorder_module, "save_images", lambda *given: 1 / 0)
    run, job, distillation = begin()
    recorder = Recorder(run, job, distillation)
    go(recorder, distillation, 2)
    assert "images.png: not drawn (ZeroDivisionError: division by zero)" in caplog.text
    assert (run.path / "synthetic.safetensors").is_file()
