"""Values that are no plain ones: numpy scalars, members of enums, tensors of one number."""

import enum
import json
import subprocess
import sys

import numpy
import pytest
import torch

import ddfast
from ddfast import networks
from ddfast.data import Preprocessing, load_dataset
from ddfast.runtime.arguments import plain
from tests.conftest import SMALL


class Method(enum.Enum):
    MTT = "mtt"


class Resize(str, enum.Enum):
    CROP = "crop"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (numpy.int64(3), 3),
        (numpy.float32(0.5), 0.5),
        (numpy.bool_(True), True),
        (numpy.str_("a"), "a"),
        (Method.MTT, "mtt"),
        (Resize.CROP, "crop"),
        ([1], [1]),
        (None, None),
    ],
)
def test_plain_values_are_what_others_stand_for(value, expected):
    assert plain(value) == expected and type(plain(value)) is type(expected)


def test_a_job_takes_them_and_its_config_is_json(pair, tmp_path):
    as_numpy = {name: numpy.float32(v) if isinstance(v, float) else numpy.int32(v) for name, v in SMALL.items()}
    other = {"ipc": numpy.int64(1), "method": Method.MTT, "seed": torch.tensor(3), "deterministic": numpy.bool_(True)}
    other |= {"resize": Resize.CROP, "device": torch.device("cpu"), "zca": numpy.False_}
    result = ddfast.distill(pair, output=tmp_path / "run", **as_numpy, **other)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seed"] == 3 and config["resize"] == "crop" and config["iterations"] == SMALL["iterations"]
    same = ddfast.distill(pair, output=tmp_path / "plain", **SMALL | {"lr_lr": float(numpy.float32(1e-4))}, seed=3)
    assert torch.equal(result.synthetic.images, same.synthetic.images)


def test_experts_and_evaluations_take_them(pair):
    options = {"num_experts": 1, "train_epochs": 1, "batch_train": 6, "train_lr": 0.05}
    plainly = ddfast.train_experts(pair, **options)
    given = {name: numpy.asarray(value)[()] for name, value in options.items()}
    assert ddfast.train_experts(pair, **given).path == plainly.path
    data = load_dataset(pair, image_size=numpy.int64(8))
    images, labels = data.random_real(1, torch.Generator())
    synthetic = ddfast.SyntheticSet(images, labels, 0.01, data.class_names, data.preprocessing)
    once, twice = (
        ddfast.evaluate(synthetic, data, num_eval=n, eval_epochs=e, eval_lr=lr)
        for n, e, lr in ((1, 2, 0.02), (numpy.int16(1), torch.tensor(2), numpy.float64(0.02)))
    )
    assert once.accuracies == twice.accuracies


def test_the_engine_takes_them_and_keeps_tensors_differentiable():
    network = networks.ConvNet(channels=1, num_classes=2, width=4, image_size=(8, 8))
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    images, labels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    rate = torch.tensor(0.1, requires_grad=True)
    inputs = (network, start, start + 0.1, images, labels)
    loss = ddfast.match_trajectory(*inputs, rate, syn_steps=numpy.int64(2), momentum=numpy.float32(0.5))
    assert loss == ddfast.match_trajectory(*inputs, numpy.float32(0.1), syn_steps=2, momentum=0.5)
    assert torch.autograd.grad(loss, rate)[0] != 0


def test_target_weights_below_0_are_refused_with_what_to_do():
    network = networks.ConvNet(channels=1, num_classes=2, width=4, image_size=(8, 8))
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    images, logits = torch.zeros(2, 1, 8, 8), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match=r"labels: expected target weights of at least 0, .* give .softmax\(1\)"):
        ddfast.unroll(network, start, images, logits, 0.1, syn_steps=1)
    ddfast.unroll(network, start, images, logits.softmax(1), 0.1, syn_steps=1)


@pytest.mark.parametrize("labels", [numpy.array([0, 1]), [0, 1], torch.tensor([0, 1], dtype=torch.uint8)])
def test_a_synthetic_set_takes_arrays_numbers_and_other_whole_labels(labels, tmp_path):
    images = numpy.zeros((2, 1, 8, 8), "float32")
    made = ddfast.SyntheticSet(images, labels, 0.01, ["a", "b"], Preprocessing((0.5,), (0.5,)))
    assert made.lr.dtype == torch.float32 and made.lr == torch.tensor(0.01) and made.labels.dtype == torch.int64
    made.save(tmp_path / "set")
    assert ddfast.SyntheticSet.load(tmp_path / "set").class_names == ("a", "b")


def test_old_names_are_taken_with_a_warning(pair, tmp_path):
    with pytest.warns(FutureWarning, match="epochs is called train_epochs now"):
        store = ddfast.train_experts(pair, network="mlp", num_experts=1, epochs=1, output=tmp_path / "experts")
    with pytest.warns(FutureWarning, match="lr is called eval_lr now"):
        synthetic = ddfast.SyntheticSet(
            pair[0][0][0][None], [0], 0.01, ("0", "1", "2"), ddfast.load_dataset(pair).preprocessing
        )
        ddfast.evaluate(synthetic, pair, networks=("mlp",), num_eval=1, eval_epochs=1, lr=0.5)
    with pytest.warns(FutureWarning, match="canvas is called parameterisation now"):
        assert (
            ddfast.SyntheticSet(torch.zeros(1, 1, 4, 4), [0], 0.1, "ab", synthetic.preprocessing, canvas=2).canvas == 2
        )
    with pytest.raises(TypeError, match="epochs: is called train_epochs now, and both are given"):
        ddfast.train_experts(pair, epochs=1, train_epochs=1)
    with pytest.warns(FutureWarning, match="root is called data_root now"), pytest.raises(FileNotFoundError):
        ddfast.load_dataset("mnist", root=tmp_path)
    with pytest.warns(FutureWarning, match="MatchingSettings is called TrajectorySettings now"):
        assert ddfast.methods.MatchingSettings is ddfast.methods.TrajectorySettings
    assert store.epochs == 1


def test_old_options_of_the_command_line_are_taken_with_a_warning(tmp_path):
    command = ["experts", "--plan", "--epochs", "3", "--lr_teacher=0.5", "--network", "mlp", "--num-experts", "1"]
    done = subprocess.run([sys.executable, "-m", "ddfast", *command], capture_output=True, text=True, check=True)
    assert "1 experts of 3 epochs, mlp" in done.stdout
    assert "--epochs is called --train-epochs now" in done.stderr
    assert "--lr_teacher is called --train-lr now" in done.stderr
