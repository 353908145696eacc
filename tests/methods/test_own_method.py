"""A method of one's own, of twenty lines, without experts and without a learning rate, through the whole of distill."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ddfast
from ddfast.cli import cli
from ddfast.methods import METHODS, Method, Needs, SetSettings, register
from ddfast.run.resolve import resolve
from ddfast.runtime.options import AtLeast1, Option
from tests.conftest import interrupt_after

SMALL = {"method": "means", "iterations": 6, "num_eval": 1, "eval_epochs": 2, "network": "mlp", "device": "cpu"}


@dataclass(frozen=True, kw_only=True)
class MeansSettings(SetSettings):
    """Those of every set, and how many real images a step sees."""

    lr_img: float = 0.5
    seen_real: Annotated[AtLeast1, Option("Outer step", "Real images of each class in a step.")] = 4


class Means(Method):
    """Synthetic images of a class get the mean of real ones, augmented alike: what DM does with pixels as features."""

    Settings, needs = MeansSettings, Needs(real_data=True)

    def loss(self, images, labels):
        """Squared distances of the means, over classes."""
        loss = images.new_zeros(())
        for k in labels.unique().tolist():
            real = self.real.of_class(k, self.settings.seen_real)
            loss = loss + (images[labels == k].mean(0) - real.mean(0)).square().sum()
        return loss


@pytest.fixture(autouse=True)
def means():
    register(Means)
    yield
    METHODS._known.pop("means")


def bits(run: ddfast.DistillResult):
    return run.synthetic.images


def test_it_learns_and_its_set_has_no_learning_rate(pair, tmp_path):
    done = ddfast.distill(
        pair, output=tmp_path / "run", init="noise", **SMALL | {"iterations": 200, "eval_epochs": 200}
    )
    losses = [record["loss"] for record in done.history]
    assert losses[-1] < 0.1 * losses[0] and "lr" not in done.history[0]
    assert done.synthetic.lr is None and done.accuracy.keys() == {"distilled", "random_real"}
    saved = ddfast.SyntheticSet.load(tmp_path / "run" / "synthetic")
    assert saved.lr is None and torch.equal(saved.images, done.synthetic.images)
    assert done.accuracy["distilled"]["mean"] > 60  # of three classes
    assert ddfast.evaluate(saved, pair, num_eval=1, eval_epochs=2, networks=("mlp",)).n == 1
    with_rate = replace(saved, lr=0.01)
    found = [ddfast.evaluate(one, pair, num_eval=1, eval_epochs=2, networks=("mlp",)) for one in (with_rate, saved)]
    assert found[0].accuracies == found[1].accuracies and found[0].rates["mlp"] == pytest.approx(found[1].rates["mlp"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == "means" and config["seen_real"] == 4
    assert not {"train_lr", "num_experts", "experts", "lr_teacher", "trained_experts"} & config.keys()
    for name in ("images.png", "initial.png", "curves.png"):
        assert Image.open(tmp_path / "run" / name).size[0] > 100


@pytest.mark.parametrize("how", [{}, {"labels": "hard", "img_optimizer": "adam", "ema_decay": 0.5}, {"canvas": 2}])
def test_a_stopped_run_goes_on_bit_for_bit(pair, tmp_path, how):
    whole = ddfast.distill(pair, output=tmp_path / "whole", dsa_strategy="none", **SMALL | how)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", dsa_strategy="none", progress=interrupt_after(3), **SMALL | how)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(bits(whole), bits(parts)) and whole.accuracy == parts.accuracy
    assert (whole.averaged is None) == ("ema_decay" not in how)


def test_an_interrupted_step_did_not_happen(pair, monkeypatch):
    run = ddfast.Distillation(resolve({"dataset": pair, **SMALL}))
    records = iter(run)
    next(records)
    before, loss = run.synthetic, Means.loss
    monkeypatch.setattr(Means, "loss", lambda self, *given: (loss(self, *given), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        next(records)
    monkeypatch.undo()
    assert torch.equal(run.synthetic.images, before.images)
    again = ddfast.Distillation(resolve({"dataset": pair, **SMALL}))
    assert torch.equal(list(again) and again.synthetic.images, list(run) and run.synthetic.images)


def test_the_command_line_has_its_options_and_runs_it(tmp_path):
    run = CliRunner().invoke(cli, ["distill", "--help"])
    assert "--seen-real" in run.output and "(means only)" in " ".join(run.output.split())
    given = ["--method", "means", "--iterations", "3", "--seen-real", "2", "--network", "mlp", "--num-eval", "1"]
    given += ["--eval-epochs", "1", "--output", str(tmp_path / "run"), "--device", "cpu"]
    done = CliRunner().invoke(cli, ["distill", *given])
    assert done.exit_code in (0, 3), done.output + repr(done.exception)
    assert "distilled images" in done.output and "full data" not in done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seen_real"] == 2 and config["dataset"] == "digits" and config["preset"] == "means/defaults"
    assert "means" in CliRunner().invoke(cli, ["info"]).output
    assert CliRunner().invoke(cli, ["presets", "means"]).output == "means: no presets, only defaults\n"


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"num_experts": 3}, r"num_experts: this run looks at no experts"),
        ({"syn_steps": 3}, "syn_steps: an option of mtt"),
        ({"seen_real": 0}, "seen_real: expected a whole number of at least 1, got 0"),
        ({"preset": "means/digits/ipc1"}, "preset: expected one of none, for means has no presets"),
    ],
)
def test_what_it_has_no_use_for_is_refused(pair, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **SMALL | change)
    assert not (tmp_path / "run").exists()


def test_options_of_an_unroll_are_ignored_with_a_warning(pair, caplog):
    ddfast.Distillation(resolve({"dataset": pair, **SMALL, "memory_budget": "1GiB", "cuda_graph": True}))
    assert "memory_budget: ignored, means does not plan memory" in caplog.text
    assert "cuda_graph: ignored, this method does not capture its steps" in caplog.text


def test_a_budget_says_how_many_iterations(pair):
    options = {name: value for name, value in SMALL.items() if name != "iterations"}
    job = resolve({"dataset": pair, **options, "budget": "20s"})
    assert job.config["iterations"] > 50 and "s each" in job.config["derived"]["iterations"]


def test_presets_of_its_own(pair, monkeypatch):
    text = '[mine]\nside = 16\nclasses = 3\nchannels = 1\n[mine.ipc1]\nnetwork = "mlp"\nzca = false\niterations = 7'
    monkeypatch.setattr(Means, "presets", text + "\nlr_img = 0.25\n")
    job = resolve({"dataset": pair, "method": "means", "preset": "means/mine/ipc1"})
    assert (job.config["iterations"], job.settings.lr_img) == (7, 0.25)


def test_a_package_brings_a_method_by_an_entry_point(tmp_path):
    """In a process of its own, with the metadata of an installed package."""
    (tmp_path / "brought.py").write_text(
        "from ddfast.methods import Method, Needs, SetSettings\n\n"
        "class Brought(Method):\n    needs = Needs()\n    def loss(self, images, labels):\n"
        "        return images.square().sum()\n"
    )
    about = tmp_path / "brought-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1\n")
    points = "[ddfast.methods]\nbrought = brought:Brought\nbroken = nowhere:Nothing\n"
    (about / "entry_points.txt").write_text(points)
    code = "from ddfast.methods import METHODS; print(METHODS['brought'].__module__, 'broken' in METHODS, len(METHODS))"
    root = Path(ddfast.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{root}:{tmp_path}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["brought", "False", str(len(METHODS))], done.stderr
    assert "method broken of nowhere:Nothing: not loaded" in done.stderr


def test_what_is_no_method_is_not_registered():
    with pytest.raises(TypeError, match=r"register: expected a subclass of ddfast.methods.Method, got <class 'int'>"):
        register(int)
    with pytest.raises(ValueError, match="method: mtt is registered already, by ddfast"):
        register(Means, name="mtt")
    with pytest.raises(ValueError, match="method: expected a name of small letters"):
        register(Means, name="My method")
    with pytest.raises(ValueError, match=r"expected one of mtt, .*, got 'mean'; did you mean 'means'\?"):
        resolve({"method": "mean"})
