"""What version 0.1 wrote is read: a run that was stopped goes on, its experts and sets serve."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ddfast

WRITTEN = (
    Path(__file__).parent / "run-0.1"
)  # by version 0.1: a run stopped after 3 of 6 iterations, and its whole result


@pytest.fixture
def data():
    """What it was distilled from."""
    tensors = load_file(WRITTEN / "data.safetensors")
    images, labels = tensors["images"], tensors["labels"]
    return (images, labels), (images[:9], labels[:9])


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(WRITTEN, tmp_path / "01")
    return tmp_path / "01"


def test_a_stopped_run_goes_on_to_the_same_result(folder, data):
    done = ddfast.distill(data, experts=folder / "experts", output=folder / "run", resume=True)
    whole = ddfast.SyntheticSet.load(folder / "whole")
    assert [record["iteration"] for record in done.history] == [1, 2, 3, 4, 5, 6]
    moved = (whole.images - ddfast.SyntheticSet.load(folder / "run" / "initial").images).norm()
    assert (done.synthetic.images - whole.images).norm() < 1e-3 * moved  # bit for bit on the machine that wrote it
    assert float(done.synthetic.lr) == pytest.approx(float(whole.lr), rel=1e-3)


def test_its_experts_and_sets_serve(folder, data):
    store = ddfast.TrajectoryStore(folder / "experts")
    assert (store.num_experts, store.epochs, store.settings["lr_teacher"]) == (2, 3, 0.05)
    synthetic = ddfast.SyntheticSet.load(folder / "whole")
    assert synthetic.canvas == 1 and synthetic.parameterisation == ddfast.data.Pixels()
    assert ddfast.evaluate(synthetic, data, num_eval=1, eval_epochs=1).n == 1
    given = {
        "experts": store,
        "iterations": 2,
        "num_eval": 1,
        "eval_epochs": 1,
        "max_start_epoch": 2,
        "expert_epochs": 1,
    }
    assert len(ddfast.distill(data, output=folder / "new", **given).history) == 2
