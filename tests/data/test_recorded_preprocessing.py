"""The preprocessing of an earlier run, kept for data that have grown since."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ddfast
from ddfast.cli import USELESS, cli
from ddfast.data import Preprocessing, load_dataset, recorded_preprocessing
from ddfast.runtime import seeds
from tests.conftest import SMALL

GIVEN = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def add_pictures(folder: Path, numbers: range, brightness: int) -> None:
    for k, name in enumerate(("dark", "light")):
        for part in ("train", "test"):
            for n in numbers:
                path = folder / part / name / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(60, (8, 8, 3), generator=seeds.generator(n, name, part)) + brightness + 90 * k
                Image.fromarray(pixels.byte().numpy()).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    add_pictures(tmp_path / "photos", range(6), 20)
    return tmp_path / "photos"


@pytest.mark.parametrize("zca", [False, True], ids=["normalised", "whitened"])
def test_a_run_begins_with_an_earlier_one_after_pictures_were_added(zca, photos, tmp_path):
    """It is refused without the option, which the sentence names; with it experts, images and evaluation use it, and
    it resumes when the earlier run is gone."""
    first = ddfast.distill(photos, ipc=2, zca=zca, output=tmp_path / "first", **SMALL)
    add_pictures(photos, range(6, 9), 60)
    options = {**SMALL, "ipc": 2, "init": str(tmp_path / "first")}
    with pytest.raises(ValueError, match=r"init: .*preprocessed differently: .* and .*--preprocessing"):
        ddfast.distill(photos, zca=zca, output=tmp_path / "refused", **options)
    options |= {"preprocessing": tmp_path / "first"}
    second = ddfast.distill(photos, output=tmp_path / "second", **options)
    assert second.synthetic.preprocessing == first.synthetic.preprocessing
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["preprocessing"] == first.synthetic.preprocessing.describe() and config["zca"] is zca
    assert config["trained_experts"]["preprocessing"] == config["preprocessing"]
    part = ddfast.distill(photos, output=tmp_path / "part", **options | {"iterations": 1})
    assert not part.synthetic.images.equal(second.synthetic.images)
    (tmp_path / "first").rename(tmp_path / "gone")
    went_on = ddfast.distill(photos, output=tmp_path / "part", resume=True, iterations=SMALL["iterations"])
    assert went_on.synthetic.images.equal(second.synthetic.images)
    evaluated = ddfast.evaluate(second.synthetic, photos, num_eval=1, eval_epochs=2)
    assert evaluated.n == 1


def test_a_run_is_not_resumed_with_another_preprocessing(photos, tmp_path):
    run = ddfast.distill(photos, output=tmp_path / "run", **SMALL)
    ddfast.distill(photos, output=run.path, resume=True, preprocessing=run.synthetic, **SMALL)
    other = replace(run.synthetic.preprocessing, mean=(0.5, 0.5, 0.25))
    with pytest.raises(ValueError, match=r"preprocessing: the run in .* differ: mean .* and \(0\.5, 0\.5, 0\.25\)"):
        ddfast.distill(photos, output=run.path, resume=True, preprocessing=other, **SMALL)


def test_it_is_read_from_runs_experts_sets_and_files(photos, tmp_path):
    run = ddfast.distill(photos, output=tmp_path / "run", **SMALL)
    expected = run.synthetic.preprocessing
    (tmp_path / "set").mkdir()
    run.synthetic.save(tmp_path / "set" / "synthetic")
    (tmp_path / "whole.json").write_text(json.dumps({"preprocessing": expected.describe()}))
    (tmp_path / "plain.json").write_text(json.dumps({"mean": list(expected.mean), "std": list(expected.std)}))
    how = {"network": "mlp", "num_experts": 1, "train_epochs": 1, "preprocessing": expected}
    experts = ddfast.train_experts(photos, output=tmp_path / "experts", **how)
    sources = [tmp_path / name for name in ("run", "set", "experts", "whole.json", "plain.json")]
    sources += [tmp_path / "set" / "synthetic", tmp_path / "run" / "synthetic.safetensors", expected.describe()]
    sources += [expected, run.synthetic, load_dataset(photos), experts.settings]
    assert all(recorded_preprocessing(source) == expected for source in sources)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"mean": [0.5]}', r"not\.json: not a description of a preprocessing: 'std' is missing"),
        ('{"mean": [0.5], "std": [0.1, 0.2]}', "expected a mean and a std per channel"),
        ('{"mean": [0.5, 0.5], "std": [0.1, 0.2]}', "expected 3 channels as in photos, got 2"),
        ('{"mean": "grey", "std": [1]}', "expected finite numbers"),
        ("[1, 2]", "expected a run, experts, a synthetic set, or a .json file"),
        ("{", r"not\.json"),
    ],
)
def test_what_says_no_preprocessing_is_refused(text, words, photos, tmp_path):
    (tmp_path / "not.json").write_text(text)
    with pytest.raises((ValueError, TypeError), match=words):
        load_dataset(photos, preprocessing=tmp_path / "not.json")


def test_what_is_not_there_is_refused(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="found none at"):
        load_dataset(photos, preprocessing=tmp_path / "none")
    with pytest.raises(TypeError, match="got int"):
        load_dataset(photos, preprocessing=3)


def test_it_contradicts_no_other_option(photos, tmp_path):
    plain = Preprocessing((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), resize="crop")
    with pytest.raises(ValueError, match="resize: the preprocessing that is given has crop, got stretch"):
        load_dataset(photos, image_size=4, resize="stretch", preprocessing=plain)
    with pytest.raises(ValueError, match="zca: the preprocessing that is given does not whiten"):
        load_dataset(photos, zca=True, preprocessing=plain)
    with pytest.raises(ValueError, match="zca: the preprocessing that is given does not whiten, got True"):
        ddfast.distill(photos, zca=True, preprocessing=plain, output=tmp_path / "run", **SMALL)
    whitened = load_dataset(photos, zca=True).preprocessing
    with pytest.raises(ValueError, match="zca: the preprocessing that is given whitens, got False"):
        ddfast.distill(photos, zca=False, preprocessing=whitened, output=tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match="whitening was fitted on the training images"):  # of images of another size
        load_dataset(photos, image_size=4, preprocessing=whitened)
    assert not (tmp_path / "run").exists()


def test_pictures_of_many_bits_keep_the_range_that_was_found(tmp_path):
    rng = numpy.random.default_rng(0)
    images, labels = rng.integers(0, 4000, (12, 8, 8)).astype(numpy.uint16), [0, 1] * 6
    first = load_dataset((images, labels))
    grown = numpy.concatenate([images, numpy.full((2, 8, 8), 4095, numpy.uint16)]), [*labels, 0, 1]
    second = load_dataset(grown, preprocessing=first)
    assert second.preprocessing == first.preprocessing and second.preprocessing.value_range == (0, 4095)
    brighter = numpy.concatenate([images, numpy.full((2, 8, 8), 9000, numpy.uint16)]), [*labels, 0, 1]
    assert "values reach from" in load_dataset(brighter, preprocessing=first).about["line"]


def test_experts_that_saw_another_preprocessing_are_refused_and_the_option_takes_it(photos, tmp_path):
    other = Preprocessing((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    ddfast.train_experts(photos, num_experts=2, train_epochs=2, output=tmp_path / "experts", preprocessing=other)
    options = {**SMALL, "experts": tmp_path / "experts", "output": tmp_path / "run"}
    options = {name: value for name, value in options.items() if name not in ("num_experts", "batch_train")}
    with pytest.raises(ValueError, match=r"experts: .* differently: mean \(0\.5, 0\.5, 0\.5\) and .*--preprocessing"):
        ddfast.distill(photos, **options)
    done = ddfast.distill(photos, preprocessing=tmp_path / "experts", **options)
    assert done.synthetic.preprocessing == other


def test_the_command_line_takes_a_run(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experts = ["experts", "--dataset", "./photos", "--num-experts=1", "--epochs=2", "--output", "experts"]
    assert CliRunner().invoke(cli, experts).exit_code == 0
    add_pictures(photos, range(6, 8), 60)
    command = ["distill", "--dataset", "./photos", *GIVEN, "--output", "run", "--preprocessing", "experts"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code in (0, USELESS), (done.output, done.exception)
    assert "preprocessing: that of experts" in done.output
    assert recorded_preprocessing("run") == recorded_preprocessing("experts")
    assert CliRunner().invoke(cli, [*command, "--resume"]).exit_code in (0, USELESS)
