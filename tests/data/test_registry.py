"""Data sets by names of one's own, through whole runs."""

import json

import pytest
import torch
from click.testing import CliRunner

import ddfast
from ddfast.cli import cli
from ddfast.data import registry
from tests.conftest import SMALL


@pytest.fixture
def shapes(pair, monkeypatch):
    """A registered name; and with what it was called."""
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    monkeypatch.setattr("ddfast.data.datasets.REGISTERED", registry.REGISTERED)
    calls = []
    ddfast.register_dataset("my-shapes", lambda data_root=None: calls.append(data_root) or pair)
    return calls


def test_a_name_stands_for_what_its_function_returns(pair, shapes, tmp_path):
    data = ddfast.load_dataset("my-shapes", data_root=tmp_path)
    assert shapes == [tmp_path] and data.name == "my-shapes"
    assert data.fingerprint == ddfast.load_dataset(pair).fingerprint
    assert ddfast.load_dataset("my-shapes", zca=True).preprocessing.zca is not None
    assert ddfast.load_dataset("my-shapes", image_size=8).image_size == (8, 8)
    store = ddfast.train_experts("my-shapes", network="mlp", num_experts=1, train_epochs=1, output=tmp_path / "experts")
    assert store.settings["dataset"] == "my-shapes"


def test_a_run_on_it_is_evaluated_and_resumed_by_its_name(shapes, tmp_path):
    part = ddfast.distill("my-shapes", output=tmp_path / "run", **SMALL)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dataset"] == "my-shapes"
    assert ddfast.evaluate(part.synthetic, "my-shapes", num_eval=1, eval_epochs=1).n == 1
    longer = ddfast.distill(output=tmp_path / "run", resume=True, iterations=SMALL["iterations"] + 2)
    whole = ddfast.distill("my-shapes", output=tmp_path / "whole", **SMALL | {"iterations": SMALL["iterations"] + 2})
    assert torch.equal(longer.synthetic.images, whole.synthetic.images)
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run"), "--num-eval", "1", "--eval-epochs", "1"])
    assert done.exit_code == 0, done.output
    registry.REGISTERED.clear()
    with pytest.raises(ValueError, match=r"expected one of digits, .*, a name of register_dataset, .* got 'my-shapes'"):
        ddfast.distill(output=tmp_path / "run", resume=True, iterations=90)


@pytest.mark.parametrize(
    "name, load, error, sentence",
    [
        ("cifar10", list, ValueError, "name: 'cifar10' is a data set of ddfast"),
        ("cifar_10", list, ValueError, "name: 'cifar_10' is a data set of ddfast"),
        ("My Set", list, ValueError, "name: expected small letters"),
        ("mine", 3, TypeError, "load: expected a function that returns a data set, got int"),
    ],
)
def test_a_name_or_function_that_cannot_be_is_refused(name, load, error, sentence):
    with pytest.raises(error, match=sentence):
        ddfast.register_dataset(name, load)
