"""Synthetic sets in the files of others: both ways, exactly where the format can hold it."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import ddfast
from ddfast import SyntheticSet, compat
from ddfast.cli import cli
from ddfast.compat.labels import read_labels
from ddfast.data.augment import FULL_STRATEGY
from tests.conftest import normal, uniform


@pytest.fixture(scope="module")
def digits():
    return ddfast.load_dataset("digits")


def synthetic(digits, soft: bool = False, **other) -> SyntheticSet:
    labels = normal(20, 10).float() if soft else torch.arange(10).repeat_interleave(2)
    lr = torch.tensor(0.0123)
    made = SyntheticSet(
        normal(20, 1, 16, 16).float(), labels, lr, digits.class_names, digits.preprocessing, FULL_STRATEGY
    )
    return replace(made, **other)


def same(one: SyntheticSet, other: SyntheticSet) -> bool:
    tensors = ((one.images, other.images), (one.labels, other.labels), (one.lr, other.lr))
    alike = all(a.equal(b) and a.dtype == b.dtype for a, b in tensors)
    return alike and replace(one, images=other.images, labels=other.labels, lr=other.lr) == other


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("name", "files"),
    [("mtt", ["images_best.pt", "labels_best.pt", "lr_best.pt"]), ("dd-ranking", ["images.pt", "labels.pt", "lr.pt"])],
)
def test_tensors_go_both_ways_exactly(name, files, soft, tmp_path, digits):
    made = synthetic(digits, soft)
    made.save(tmp_path / "set")
    compat.convert(tmp_path / "set", tmp_path / "theirs", name)
    loaded = [torch.load(tmp_path / "theirs" / file, weights_only=True) for file in files]
    assert sorted(contents(tmp_path / "theirs")) == files
    assert all(
        a.equal(b) and a.dtype == b.dtype for a, b in zip(loaded, (made.images, made.labels, made.lr), strict=True)
    )
    compat.convert(tmp_path / "theirs", tmp_path / "again", dataset="digits", zca=False)
    assert same(SyntheticSet.load(tmp_path / "again"), made)
    compat.convert(tmp_path / "again.json", tmp_path / "twice", name)
    assert contents(tmp_path / "twice") == contents(tmp_path / "theirs")
    # the same again is no error, another set is
    compat.convert(tmp_path / "theirs", tmp_path / "again", dataset="digits", zca=False)
    compat.convert(tmp_path / "again", tmp_path / "theirs", name)
    with pytest.raises(FileExistsError, match=r"again\.(json|safetensors): exists with different contents"):
        compat.convert(tmp_path / "theirs", tmp_path / "again", dataset="digits", zca=False, lr=0.5)
    synthetic(digits, soft, lr=torch.tensor(0.5)).save(tmp_path / "other")
    with pytest.raises(FileExistsError, match=r"lr.*\.pt: exists with different contents"):
        compat.convert(tmp_path / "other", tmp_path / "theirs", name)
    assert contents(tmp_path / "twice") == contents(tmp_path / "theirs")


def test_others_formats_become_each_other(tmp_path, digits):
    compat.write_mtt(synthetic(digits, soft=True), tmp_path / "mtt")
    compat.convert(tmp_path / "mtt", tmp_path / "ranking", "dd-ranking", dataset="digits", zca=False)
    assert same(compat.read_dd_ranking(tmp_path / "ranking", digits), synthetic(digits, soft=True))


def test_of_a_folder_the_best_is_read_else_the_last(tmp_path, digits):
    for value, tag in enumerate(("900", "1000", "zca_2000", "best")):
        torch.save(torch.full((10, 1, 16, 16), float(value)), tmp_path / f"images_{tag}.pt")
        torch.save(torch.arange(10), tmp_path / f"labels_{tag}.pt")
    torch.save(0.25, tmp_path / "lr_1000.pt")  # some write a number
    torch.save(torch.tensor([0.5]), tmp_path / "syn_lr_best.pt")

    def read(path: Path, **options) -> tuple[float, float]:
        made = compat.read_mtt(path, digits, **options)
        return made.images.mean().item(), made.lr.item()

    assert read(tmp_path) == (3.0, 0.5)
    assert read(tmp_path / "images_1000.pt") == (1.0, 0.25)
    (tmp_path / "images_best.pt").unlink()
    assert read(tmp_path) == (1.0, 0.25)
    assert read(tmp_path / "images_900.pt", lr=0.125) == (0.0, 0.125)
    with pytest.raises(ValueError, match=r"lr: no file beside .*images_900\.pt says the learning rate"):
        read(tmp_path / "images_900.pt")
    with pytest.raises(ValueError, match="holds images for viewing"):
        read(tmp_path / "images_zca_2000.pt")
    (tmp_path / "labels_1000.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels_1000\.pt: no such file; the labels of images_1000\.pt"):
        read(tmp_path)


def test_dd_ranking_without_labels_has_its_classes_in_a_row(tmp_path, digits):
    torch.save(normal(20, 1, 16, 16).float(), tmp_path / "images.pt")
    assert compat.read_dd_ranking(tmp_path, digits, lr=0.1).labels.equal(torch.arange(10).repeat_interleave(2))
    torch.save(normal(21, 1, 16, 16).float(), tmp_path / "images.pt")
    with pytest.raises(ValueError, match="21 images are not as many of 10 classes each"):
        compat.read_dd_ranking(tmp_path, digits, lr=0.1)


def test_probabilities_are_given_back_by_softmax(tmp_path, digits):
    wanted = normal(20, 10).softmax(1).float()
    wanted[0] = torch.eye(10)[3]
    wanted[1] = torch.tensor([0.5, 0, 0, 0.25, 0, 0, 0, 0, 0, 0.25])
    torch.save(wanted, tmp_path / "labels.pt")
    logits = read_labels(tmp_path / "labels.pt", "probabilities")
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), wanted, rtol=1e-6, atol=0)
    assert logits.softmax(1)[:2].equal(wanted[:2]) and logits.double().softmax(1)[0].equal(wanted[0].double())
    written = synthetic(digits, labels=logits)
    compat.write_mtt(written, tmp_path / "soft", labels="probabilities")
    torch.testing.assert_close(torch.load(tmp_path / "soft" / "labels_best.pt"), wanted, rtol=1e-6, atol=0)
    torch.save(normal(20, 10).float(), tmp_path / "labels.pt")
    with pytest.raises(ValueError, match="expected probabilities, of 0 or more with sum 1 per row"):
        read_labels(tmp_path / "labels.pt", "probabilities")


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (torch.arange(10.0), torch.arange(10)),
        (torch.arange(10, dtype=torch.int32), torch.arange(10)),
        (torch.zeros(10, 10, requires_grad=True), torch.zeros(10, 10)),
        (torch.zeros(10, 10).half(), torch.zeros(10, 10)),
    ],
)
def test_labels_of_other_types_are_read(labels, wanted, tmp_path):
    torch.save(labels, tmp_path / "labels.pt")
    read = read_labels(tmp_path / "labels.pt", "logits")
    assert read.equal(wanted) and read.dtype == wanted.dtype and not read.requires_grad


IMAGES, LABELS = torch.zeros(10, 1, 16, 16), torch.arange(10)


@pytest.mark.parametrize(
    ("images", "labels", "lr", "sentence"),
    [
        (IMAGES[0], LABELS, 0.1, r"images_\w+\.pt: expected images \[I, 1, 16, 16\] as of digits, got \[1, 16, 16\]"),
        (torch.zeros(10, 3, 32, 32), LABELS, 0.1, r"images_\w+\.pt: expected images .* got \[10, 3, 32, 32\]"),
        (IMAGES.byte(), LABELS, 0.1, r"images_best.pt: expected float32, or a narrower float, got torch.uint8"),
        (IMAGES.double(), LABELS, 0.1, r"images_best.pt: expected float32, .* got torch.float64"),
        (IMAGES / 0, LABELS, 0.1, r"images_best.pt: holds values that are not finite"),
        (torch.zeros(1).expand(10, 1, 16, 16), LABELS, 0.1, r"claims more values than the file holds"),
        ([IMAGES], LABELS, 0.1, r"images_best.pt: expected a tensor, got list"),
        (IMAGES, LABELS[:9], 0.1, r"labels: expected int64 \[10\] .* got torch.int64 \[9\]"),
        (IMAGES, LABELS + 1, 0.1, r"labels: expected classes 0 to 9"),
        (IMAGES, LABELS + 0.5, 0.1, r"labels_best.pt: expected whole numbers as classes"),
        (IMAGES, torch.zeros(10, 9), 0.1, r"labels: expected .* label logits \[10, 10\]"),
        (IMAGES, torch.zeros(10, 10, 2), 0.1, r"expected classes \[I\] or finite soft labels \[I, K\]"),
        (IMAGES, {}, 0.1, r"labels_best.pt: expected a tensor, got dict"),
        (IMAGES, LABELS, -0.1, r"lr_best.pt: expected one positive learning rate, got -0.1"),
        (IMAGES, LABELS, torch.ones(3), r"lr_best.pt: expected one positive learning rate, got a tensor"),
        (IMAGES, LABELS, "fast", r"lr_best.pt: expected one positive learning rate, got str"),
    ],
)
def test_what_is_no_set_is_refused_by_name(images, labels, lr, sentence, tmp_path, digits):
    for name, value in (("images", images), ("labels", labels), ("lr", lr)):
        torch.save(value, tmp_path / f"{name}_best.pt")
    with pytest.raises(ValueError, match=sentence):
        compat.read_mtt(tmp_path, digits)


def pictures(folder: Path, names, seed: int = 0) -> dict[str, numpy.ndarray]:
    """Two random pictures of 16 × 16 per class."""
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for n in range(2):
            pixels = (uniform(16, 16, seed=seed + 10 * k + n) * 230).byte().numpy()
            Image.fromarray(pixels).save(folder / name / f"{n:04d}.png")
    return pixels_of(folder)


def pixels_of(folder: Path) -> dict[str, numpy.ndarray]:
    return {str(p.relative_to(folder)): numpy.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("zca", [False, True])
def test_pictures_survive_a_set_to_the_byte(zca, tmp_path, digits):
    before = pictures(tmp_path / "png", digits.class_names)
    compat.convert(tmp_path / "png", tmp_path / "set", dataset="digits", zca=zca, lr=0.1)
    made = SyntheticSet.load(tmp_path / "set")
    assert made.labels.equal(torch.arange(10).repeat_interleave(2)) and (made.preprocessing.zca is not None) == zca
    assert made.images.shape == (20, 1, 16, 16) and not torch.equal(made.images, made.images.clamp(0, 1))
    compat.convert(tmp_path / "set", tmp_path / "again", "png")
    after = pixels_of(tmp_path / "again")
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)


def test_pictures_lose_what_the_documents_say(tmp_path, digits):
    labels = torch.eye(10)[torch.tensor([3, 3, 0])]
    inside: Tensor = digits.preprocessing.apply(uniform(3, 1, 16, 16).float() * 0.8)
    inside[0, 0, 0, 0] = 100.0
    made = SyntheticSet(inside, labels, torch.tensor(0.1), digits.class_names, digits.preprocessing)
    compat.write_png(made, tmp_path / "png")
    assert sorted(contents(tmp_path / "png")) == ["0/0000.png", "3/0000.png", "3/0001.png"]
    read = compat.read_png(tmp_path / "png", digits, lr=0.1)
    assert read.labels.tolist() == [0, 3, 3]
    error = (read.images[[1, 2, 0]] - inside).abs()
    assert error[0, 0, 0, 0] > 90
    error[0, 0, 0, 0] = 0
    assert error.max() <= 0.5001 / 255 / digits.preprocessing.std[0]


def test_pictures_of_unknown_classes_or_without_a_rate_are_refused(tmp_path, digits):
    pictures(tmp_path / "png", ["0", "frog"])
    with pytest.raises(ValueError, match=r"expected a folder of pictures per class of digits .*, got frog"):
        compat.read_png(tmp_path / "png", digits, lr=0.1)
    (tmp_path / "png" / "frog").rename(tmp_path / "png" / "1")
    with pytest.raises(ValueError, match="lr: no file"):
        compat.read_png(tmp_path / "png", digits)
    (tmp_path / "png" / "1" / "0000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 4 pictures cannot be read: .*1/0000\.png \([^)]*\)$"):
        compat.read_png(tmp_path / "png", digits, lr=0.1)


def test_a_converted_set_is_evaluated_and_a_run_folder_converted(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = digits.random_real(1, torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    options = "--dataset digits --no-zca --lr 0.02 --dsa_strategy none".split()
    done = command("convert", "images_best.pt", "mine", *options)
    assert (done.exit_code, done.stdout) == (0, "mine\n"), done.output
    evaluated = "--dataset digits --num-eval 1 --eval-epochs 2 --no-random-real".split()
    done = command("evaluate", "mine", *evaluated)
    assert done.exit_code == 0 and "\nconvnet  distilled images  " in done.stdout, done.output
    run = tmp_path / "run"
    run.mkdir()
    SyntheticSet.load(tmp_path / "mine").save(run / "synthetic")
    done = command("convert", "run", "png", "--format", "png")
    assert done.exit_code == 0 and len(list((tmp_path / "png").rglob("*.png"))) == 10, done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nothing out", "nothing: no such file or folder"),
        ("theirs theirs2 --dataset digits", "zca: expected True or False: whether this was made with whitened images"),
        ("theirs out --no-zca", "dataset: expected the data set that this was made from; no file records it"),
        (
            "theirs out --format mtt",
            "theirs is mtt, which can become ddfast, dc, idc, dd-ranking, npz, safetensors, tensors, png; got mtt",
        ),
        ("theirs out --format replay-buffer", "theirs is mtt, which can become ddfast, dc, idc, dd-ranking"),
        (
            "set out",
            "set is ddfast's synthetic set, which can become mtt, dc, idc, dd-ranking, npz, safetensors, tensors, png;",
        ),
        (
            "set out --format mtt --per-file 3",
            "per_file: has no meaning in a conversion of ddfast's synthetic set to mtt",
        ),
        (
            "theirs out --dataset digits --no-zca --labels odds",
            "labels: expected one of classes, onehot, probabilities, logits, got 'odds'",
        ),
        ("theirs out --dataset digits --preset mtt/x", "preset: expected one of mtt/"),
        ("theirs theirs --dataset digits --no-zca", "theirs: is a folder; name the set that is written"),
        ("set theirs --format png", "exists with different contents; choose another name"),
        ("set set.json --format png", "set.json: is a file; a folder is written"),
        ("empty out", "empty: expected files of one known format, got none"),
        ("both out", "both: expected files of one known format, got mtt and dd-ranking"),
        (
            "set.txt out",
            "set.txt: expected a folder, a file of torch.save, .npz or .safetensors, or a set of ddfast; known",
        ),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_sentence_and_nothing_is_written(
    arguments, sentence, tmp_path, digits, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    synthetic(digits).save("set")
    for folder in ("theirs", "both"):
        compat.write_mtt(synthetic(digits), folder)
    torch.save(IMAGES, "both/images.pt")
    Path("empty").mkdir()
    Path("set.txt").touch()
    before = contents(tmp_path)
    result = command("convert", *arguments.split())
    assert isinstance(result.exception, ValueError | OSError) and sentence in str(result.exception)
    assert contents(tmp_path) == before
