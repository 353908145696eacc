"""Images per class: one number, or one for each class, and more of them than a class has."""

import json

import numpy
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import TensorDataset

import ddfast
from ddfast.cli import USELESS, cli
from ddfast.data import images_per_class, load_dataset
from ddfast.evaluation import evaluate_random_real
from ddfast.runtime import seeds
from tests.conftest import SMALL, uniform

NAMES = ("cat", "dog", "7")
UNEVEN = [1, 4, 2]


@pytest.fixture(scope="module")
def uneven():
    """Three classes that differ in brightness, of 3, 9 and 12 training images."""
    labels = torch.tensor(3 * [0] + 9 * [1] + 12 * [2])
    images = uniform(24, 1, 16, 16).float() * 0.3 + labels.view(-1, 1, 1, 1) * 0.3
    return TensorDataset(images, labels), TensorDataset(images, labels)


@pytest.mark.parametrize(
    ("ipc", "expected"),
    [
        (3, 3),
        (numpy.int32(3), 3),
        ([2, 2, 2], 2),
        ((1, 2, 3), [1, 2, 3]),
        (torch.tensor([1, 2, 3]), [1, 2, 3]),
        (numpy.array([1, 2, 3]), [1, 2, 3]),
        ({"cat": 5, "dog": 1, "7": 2}, [5, 1, 2]),
        ({"dog": 5, "default": 1}, [1, 5, 1]),
        ({0: 4, 1: 3, 7: 2}, [4, 3, 2]),  # 7 is a name
        ({numpy.int64(0): 4, "default": numpy.int64(3)}, [4, 3, 3]),
    ],
)
def test_a_number_or_one_for_each_class(ipc, expected):
    assert images_per_class(ipc, NAMES) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ipc.json", '{"cat": 3, "default": 2}', [3, 2, 2]),
        ("ipc.json", "[3, 4, 5]", [3, 4, 5]),
        ("ipc.toml", 'cat = 3\n"7" = 1\ndog = 2\n', [3, 2, 1]),
    ],
)
def test_a_file_holds_a_number_per_class(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    assert images_per_class(tmp_path / name, NAMES) == images_per_class(str(tmp_path / name), NAMES) == expected


@pytest.mark.parametrize(
    ("ipc", "words"),
    [
        ([1, 2], "expected a number for each of the 3 classes, got 2"),
        ([1, 2, 0], "expected a whole number of at least 1 for class '7', got 0"),
        ([1, 2, 1.5], "at least 1 for class '7', got 1.5"),
        ([1, True, 1], "for class 'dog', got True"),
        ({"cat": 1, "dgo": 2, "default": 1}, "got 'dgo'; did you mean 'dog'"),
        ({"cat": 1}, "no number for class dog, 7; name every class, or give a 'default'"),
        ({"cat": 1, 0: 2, "default": 1}, "'cat' and 0 are the same class, 'cat'"),
        ("many", "expected a whole number, or a .json or .toml file, got 'many'"),
        ("none.json", "no file none.json"),
    ],
)
def test_what_is_no_number_per_class_is_refused_by_name(ipc, words):
    with pytest.raises((ValueError, FileNotFoundError), match=f"ipc: .*{words}"):
        images_per_class(ipc, NAMES)


@pytest.mark.parametrize("text", ["{", "cat = [", '"ten"'])
def test_a_damaged_file_is_named(text, tmp_path):
    path = tmp_path / ("ipc.toml" if "=" in text else "ipc.json")
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path.name}: "):
        images_per_class(path, NAMES)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "mtt", "batch_syn": 2},
        {"method": "datm", "batch_syn": 3, "init": "real"},
        {"method": "tesla", "batch_syn": 2, "labels": "soft"},
        {"method": "texture", "canvas": 2, "init": "noise"},
        {"method": "att"},
        {"method": "simplified", "batch_syn": 3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_has_so_many_images_of_each_class_and_resumes(settings, uneven, tmp_path):
    """The same bits after an interruption; as many random real images beside it."""
    options = {**SMALL, **settings, "ipc": UNEVEN, "init": settings.get("init", "first"), "checkpoint_every": 1}
    options = {"output": tmp_path / "run", **options}
    done = ddfast.distill(uneven, **options)
    labels = done.synthetic.classes if done.synthetic.is_hard else torch.tensor([0, 1, 1, 1, 1, 2, 2])
    assert labels.bincount().tolist() == UNEVEN and len(done.synthetic) == sum(UNEVEN)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ipc"] == UNEVEN
    assert done.accuracy["random_real"]["ipc"] == UNEVEN
    options |= {"output": tmp_path / "parts", "iterations": 1}
    ddfast.distill(uneven, **options)
    went_on = ddfast.distill(**options | {"dataset": uneven, "iterations": 3, "resume": True})
    assert torch.equal(went_on.synthetic.images, done.synthetic.images)


def test_more_images_than_a_class_has_begin_as_noise(uneven, tmp_path, caplog):
    """Random real images beside them are all that there are, which is said."""
    with caplog.at_level("INFO", "ddfast"):
        done = ddfast.distill(uneven, ipc=10, init="noise", output=tmp_path / "run", **SMALL)
    assert done.synthetic.labels.bincount().tolist() == [10, 10, 10]
    assert done.accuracy["random_real"]["ipc"] == [3, 9, 10]
    assert "3 to 10 per class, 22 in all instead of 10 per class" in caplog.text
    with pytest.raises(ValueError, match=r"at most the 3 training images of class '0', got 10; .*init noise"):
        ddfast.distill(uneven, ipc=10, init="real", output=tmp_path / "other", **SMALL)
    assert not (tmp_path / "other").exists()


def test_label_logits_of_noise_are_of_real_images_taken_again_where_a_class_has_fewer(uneven, tmp_path):
    soft = {"method": "datm", "init": "noise", "ipc": [5, 2, 1], "output": tmp_path / "run"}
    done = ddfast.distill(uneven, **SMALL | {"iterations": 1, "lr_label": 0.0} | soft)
    logits = done.synthetic.labels
    assert logits.shape == (8, 3)
    assert logits[0].equal(logits[3]) and logits[1].equal(logits[4]) and not logits[0].equal(logits[1])


def test_a_run_that_begins_with_a_saved_set_has_its_images_per_class(uneven, tmp_path):
    first = ddfast.distill(uneven, ipc=UNEVEN, output=tmp_path / "first", **SMALL)
    assert first.synthetic.ipc == UNEVEN
    goes_on = ddfast.distill(uneven, init=str(tmp_path / "first"), output=tmp_path / "second", **SMALL)
    assert goes_on.synthetic.ipc == UNEVEN
    with pytest.raises(ValueError, match=r"ipc: .* has 1 images of class '0', got 2"):
        ddfast.distill(uneven, ipc=[2, 3, 2], init=str(tmp_path / "first"), output=tmp_path / "third", **SMALL)


def test_the_random_real_baseline_takes_a_number_per_class(uneven):
    data = load_dataset(uneven)
    images, labels = data.random_real(UNEVEN, seeds.generator(0))
    assert labels.tolist() == [0, 1, 1, 1, 1, 2, 2] and len(images) == 7
    by_index = evaluate_random_real(data, {0: 1, 1: 4, "default": 2}, num_eval=1, eval_epochs=2)
    assert by_index == evaluate_random_real(data, UNEVEN, num_eval=1, eval_epochs=2)


def test_the_command_line_takes_a_file_per_class(tmp_path, monkeypatch):
    """On a folder; resumed with the same file, refused with another."""
    for k, name in enumerate(("dark", "light")):
        for part, count in (("train", 4 + 2 * k), ("test", 3)):
            for n in range(count):
                path = tmp_path / "photos" / part / name / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(60, (16, 16), generator=seeds.generator(n, name, part)).byte() + 150 * k
                Image.fromarray(pixels.numpy()).save(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ipc.json").write_text('{"light": 3, "default": 1}')
    (tmp_path / "other.toml").write_text("light = 2\ndefault = 1\n")
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = ["distill", "--dataset", "./photos", *small, "--output", "run", "--ipc"]
    done = CliRunner().invoke(cli, [*command, "ipc.json"])
    assert done.exit_code in (0, USELESS), done.output
    assert "distilled images, 1 to 3 per class, 4 in all" in done.output
    again = CliRunner().invoke(cli, [*command, "ipc.json", "--resume"])
    assert again.exit_code in (0, USELESS), again.output
    other = CliRunner().invoke(cli, [*command, "other.toml", "--resume"])
    assert other.exit_code == 1 and "ipc: the run in run has [1, 3], got [1, 2]" in str(other.exception)
    evaluated = CliRunner().invoke(cli, ["evaluate", "run", "--num-eval", "1", "--eval-epochs", "2"])
    assert "  random real images, 1 to 3 per class, 4 in all  " in evaluated.output, evaluated.output
