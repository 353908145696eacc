"""A run that is stopped, by whatever means and at whatever moment, goes on as if it had not been."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import ddfast
from ddfast.cli import USELESS
from ddfast.methods.descent import Descent
from ddfast.run import recorder
from ddfast.runtime.files import locking
from tests.conftest import SMALL

distill_module = importlib.import_module("ddfast.run.distill")  # the function has its name

JOB = SMALL | {"iterations": 9, "checkpoint_every": 2, "batch_syn": 2, "dsa_strategy": "flip_scale_color_cutout"}


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """The run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ddfast.distill(pair, output=tmp_path_factory.mktemp("whole") / "run", eval_every=4, **JOB)


def assert_the_same_run(result, whole):
    assert torch.equal(result.synthetic.images, whole.synthetic.images)
    assert torch.equal(result.synthetic.lr, whole.synthetic.lr)
    keys = ("iteration", "loss", "lr", "expert", "start_epoch")
    assert [[r[k] for k in keys] for r in result.history] == [[r[k] for k in keys] for r in whole.history]
    assert result.accuracy == whole.accuracy
    evaluations = [(r.path / "evaluations.jsonl").read_text() for r in (result, whole)]
    assert evaluations[0] == evaluations[1]


@pytest.mark.parametrize("place", ["step", "metrics", "checkpoint", "evaluation", "end"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_a_stopped_run_goes_on_bit_for_bit(pair, whole, tmp_path, monkeypatch, place, stop):
    """Stopped in the middle of a step, after its images have moved; while a file is written; while it evaluates."""
    calls = []

    def stopping(original, at):
        def wrapped(*args, **kwargs):
            calls.append(1)
            result = original(*args, **kwargs)
            if len(calls) == at:
                raise stop
            return result

        return wrapped

    with monkeypatch.context() as patch:
        if place == "step":
            patch.setattr(Descent, "commit", stopping(Descent.commit, 6))
        elif place == "metrics":
            patch.setattr(distill_module.RunFolder, "append", stopping(distill_module.RunFolder.append, 5))
        elif place == "checkpoint":
            patch.setattr(distill_module.RunFolder, "write_state", stopping(distill_module.RunFolder.write_state, 2))
        elif place == "evaluation":
            patch.setattr(recorder, "evaluate", stopping(recorder.evaluate, 1))
        else:
            patch.setattr(distill_module, "evaluate_random_real", stopping(distill_module.evaluate_random_real, 1))
        with pytest.raises(stop):
            ddfast.distill(pair, output=tmp_path / "run", eval_every=4, **JOB)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert_the_same_run(ddfast.distill(pair, output=tmp_path / "run", resume=True), whole)


def test_a_run_killed_at_random_moments_goes_on_bit_for_bit(tmp_path):
    """SIGKILL, which nothing can catch, from the command line, until the run has ended."""
    options = "--iterations 60 --num-experts 1 --train-epochs 1 --batch-train 300 --syn-steps 4 --expert-epochs 1"
    options += " --max-start-epoch 1 --num-eval 1 --eval-epochs 3 --checkpoint-every 3 --eval-every 20 --ipc 2"
    options += " --batch-syn 10 --dsa-strategy scale_rotate_crop --network convnet:width=16"
    command = [sys.executable, "-m", "ddfast", "distill", *options.split(), "--resume", "--output"]

    def run(folder, killed_after=None):
        process = subprocess.Popen(
            [*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        try:
            _, errors = process.communicate(timeout=killed_after or 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        else:
            assert process.returncode in (0, USELESS), errors
        return process.returncode in (0, USELESS)

    began = time.monotonic()
    assert run(tmp_path / "whole")
    seconds = time.monotonic() - began
    moments, kills = random.Random(0), 0
    while kills == 0:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        while not run(tmp_path / "killed", None if kills == 6 else seconds * moments.uniform(0.3, 0.9)):
            kills += 1
        seconds /= 2  # a machine that has become faster ends a run before it is killed
    sets = [ddfast.SyntheticSet.load(tmp_path / name / "synthetic") for name in ("whole", "killed")]
    assert torch.equal(sets[0].images, sets[1].images) and torch.equal(sets[0].lr, sets[1].lr)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 60


def test_resuming_begins_where_nothing_is_there_and_returns_what_has_ended(pair, whole, tmp_path, monkeypatch):
    result = ddfast.distill(pair, output=tmp_path / "run", resume=True, eval_every=4, **JOB)
    assert_the_same_run(result, whole)
    monkeypatch.setattr(distill_module.Distillation, "__init__", lambda *a: pytest.fail("begun again"))
    again = ddfast.distill(pair, output=tmp_path / "run", resume=True)
    assert_the_same_run(again, whole)


def test_a_claim_that_was_killed_before_its_settings_were_written_is_begun(pair, whole, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert_the_same_run(ddfast.distill(pair, output=tmp_path / "run", resume=True, eval_every=4, **JOB), whole)


def test_a_run_can_be_made_longer(pair, whole, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", eval_every=4, **(JOB | {"iterations": 6}))
    longer = ddfast.distill(pair, output=tmp_path / "run", resume=True, iterations=9)
    assert torch.equal(longer.synthetic.images, whole.synthetic.images) and len(longer.history) == 9


def test_experts_whose_training_was_interrupted_are_trained_on(pair, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distill_module, "train_experts", interrupt)
        ddfast.distill(pair, output=tmp_path / "run", eval_every=4, **JOB)
    assert_the_same_run(ddfast.distill(pair, output=tmp_path / "run", resume=True), whole)


def test_a_folder_that_another_process_works_on_is_refused(pair, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", **SMALL)
    with locking(tmp_path / "run", wait=False), pytest.raises(BlockingIOError, match="run: another process is at work"):
        ddfast.distill(pair, output=tmp_path / "run", resume=True, iterations=5)


def test_a_run_is_resumed_with_its_own_settings_and_data(pair, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", **SMALL)

    def resume(data=pair, **options):
        return ddfast.distill(data, output=tmp_path / "run", resume=True, **options)

    assert resume(**SMALL).path == tmp_path / "run"  # saying the same again is no difference
    with pytest.raises(ValueError, match=r"syn_steps: the run in .* has 3, got 4; a run is resumed with its own"):
        resume(syn_steps=4)
    with pytest.raises(ValueError, match=r"iterations: the run in .* has done 3 already, got 2"):
        resume(iterations=2)
    other = ddfast.train_experts(pair, num_experts=2, train_epochs=2, batch_train=6, dsa_strategy="none", seed=9)
    with pytest.raises(ValueError, match=r"experts: the run in .* had others than .* \(.*seed"):
        resume(experts=other, iterations=4)
    (row,) = resume(num_eval=1).accuracy["distilled"]["networks"].values()
    assert len(row["accuracies"]) == 1  # evaluated anew
    with pytest.raises(ValueError, match="dataset: the training images of the run in"):
        resume("digits")
    with pytest.raises(ValueError, match=r"dataset: the run in .* had one that was given from Python; give it again"):
        resume(None)
    with pytest.raises(ValueError, match=r"unknown option 'syn_step'; did you mean 'syn_steps'\?"):
        resume(syn_step=4)
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"checkpoint.pt: damaged, the run cannot be resumed"):
        resume()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: not the settings of a run"):
        ddfast.distill(pair, output=tmp_path / "other", resume=True)
