"""The whole job in small: the outer loop, the run folder, the evaluation."""

import json
import shutil

import pytest
import torch
from torch.utils.data import TensorDataset

import ddfast
from ddfast import networks, seeds
from ddfast.data import load_dataset
from ddfast.distill import MOST_SKIPS, Distillation, DistillationDivergedError
from ddfast.evaluate import evaluate, evaluate_random_real
from ddfast.methods import MTT, MTTSettings
from ddfast.methods.mtt import LR_FLOOR
from tests.conftest import uniform

SETTINGS = MTTSettings(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=10.0, lr_lr=1e-3, lr_teacher=0.05, batch_syn=None
)
SMALL = {
    "iterations": 3,
    "num_experts": 2,
    "train_epochs": 2,
    "batch_train": 6,
    "syn_steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "num_eval": 2,
    "eval_epochs": 3,
}


@pytest.fixture(scope="module")
def pair():
    """Three classes that differ in brightness: easy to learn."""
    labels = torch.arange(24) % 3
    images = uniform(24, 1, 16, 16).float() * 0.3 + labels.view(-1, 1, 1, 1) * 0.3
    return TensorDataset(images, labels), TensorDataset(images[:9], labels[:9])


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def experts(pair):
    return ddfast.train_experts(pair, num_experts=2, epochs=2, batch_train=6, lr_teacher=0.05)


def distillation(data, experts, settings=SETTINGS, **options):
    options = {"method": "mtt", "settings": settings, "ipc": 1, "experts": experts, "iterations": 3} | options
    return Distillation(data, **options)


def mtt(data, experts, settings, ipc=4):
    """The method alone, on real images."""
    run = distillation(data, experts, settings, ipc=ipc)
    network = networks.create("convnet", generator=seeds.generator(0), **data.network_arguments)
    return MTT(settings, run.synthetic, experts, network, seeds.generator(3))


def test_a_run_writes_its_folder_and_returns_what_is_in_it(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", **SMALL)
    names = {p.name for p in result.path.iterdir()}
    assert names == {
        "config.json", "images.png", "metrics.jsonl", "summary.json", "synthetic.json", "synthetic.safetensors"
    }  # fmt: skip
    records = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert records == result.history and [r["iteration"] for r in records] == [1, 2, 3]
    saved = ddfast.SyntheticSet.load(result.path / "synthetic")
    assert torch.equal(saved.images, result.synthetic.images) and saved.lr.item() == records[-1]["lr"]
    config = json.loads((result.path / "config.json").read_text())
    assert config["syn_steps"] == 3 and config["preset"] == "mtt/digits/ipc1" and config["iterations"] == 3
    summary = json.loads((result.path / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"distilled", "random_real", "full_data"}
    assert summary["accuracy"]["distilled"]["n"] == 2 and summary["accuracy"]["full_data"]["epochs"] == 2


def test_images_and_learning_rate_change_and_the_loss_is_that_of_the_segment(data, experts):
    run = distillation(data, experts)
    before = run.synthetic
    (first, *_) = list(run)
    after = run.synthetic
    assert not torch.equal(before.images, after.images) and before.lr != after.lr
    start, target = experts.segment(first["expert"], first["start_epoch"], first["start_epoch"] + 1)
    network = networks.create("convnet", generator=seeds.generator(0), **data.network_arguments)
    loss = ddfast.match_trajectory(network, start, target, before.images, before.labels, before.lr, syn_steps=3)
    assert loss.item() == pytest.approx(first["loss"], rel=1e-5)


def test_the_same_seed_gives_the_same_bits(pair, tmp_path):
    runs = [
        ddfast.distill(pair, output=tmp_path / name, seed=seed, **SMALL)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert torch.equal(runs[0].synthetic.images, runs[1].synthetic.images)
    assert runs[0].accuracy == runs[1].accuracy
    assert not torch.equal(runs[0].synthetic.images, runs[2].synthetic.images)


def test_a_run_leaves_the_global_random_state_alone(pair, tmp_path):
    before = torch.get_rng_state()
    ddfast.distill(pair, output=tmp_path / "run", **SMALL)
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_that_holds_a_run_is_never_overwritten(pair, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", **SMALL)
    with pytest.raises(FileExistsError, match="holds a run already"):
        ddfast.distill(pair, output=tmp_path / "run", **SMALL)


def test_the_default_output_is_the_next_number(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [ddfast.distill(pair, **SMALL).path.as_posix() for _ in range(2)] == ["runs/0001", "runs/0002"]


def test_minibatches_are_permutations_cut_into_chunks(data, experts):
    settings = MTTSettings(**{**vars(SETTINGS), "syn_steps": 5, "batch_syn": 4})
    batches = mtt(data, experts, settings)._batches()  # 12 images: three chunks to a permutation
    assert batches.shape == (5, 4)
    assert sorted(batches[:3].flatten().tolist()) == list(range(12))
    assert len(set(batches[3:].flatten().tolist())) == 8


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(data, experts, monkeypatch):
    method = mtt(data, experts, SETTINGS)
    before = method.current()
    monkeypatch.setattr("ddfast.methods.mtt.match_trajectory", lambda *a, **k: (a[3].sum() + a[5]) * float("nan"))
    record = method.step()
    assert record["skipped"] == 1 and not record["updated"]
    assert torch.equal(method.current().images, before.images) and method.current().lr == before.lr
    monkeypatch.undo()
    assert method.step()["updated"]


def test_too_many_such_updates_end_the_run_with_the_last_good_images_saved(pair, tmp_path):
    with pytest.raises(DistillationDivergedError, match=f"{MOST_SKIPS} updates in a row had no finite gradient"):
        ddfast.distill(pair, output=tmp_path / "run", **(SMALL | {"iterations": 100, "lr_lr": 1e30}))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in lines]
    good = [record for record in records if record["updated"]]
    assert len(records) == len(good) + MOST_SKIPS and records[-1]["loss"] is None
    saved = ddfast.SyntheticSet.load(tmp_path / "run" / "synthetic")
    before = good[-2]["lr"] if len(good) > 1 else 0.02  # what the last finite loss was computed with
    assert saved.images.isfinite().all() and saved.lr.item() == pytest.approx(before)
    assert (tmp_path / "run" / "images.png").exists()


def test_a_result_that_is_not_finite_is_taken_back(data, experts):
    method = mtt(data, experts, SETTINGS)
    method.optimizers[0].param_groups[0]["lr"] = float("inf")
    before = method.current()
    assert not method.step()["updated"]
    assert torch.equal(method.current().images, before.images)


def test_a_run_whose_last_updates_were_skipped_ends_with_the_images_before_them(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", **(SMALL | {"iterations": 8, "lr_lr": 1e30}))
    assert not result.history[-1]["updated"]
    assert result.synthetic.lr.item() < 1e10 and result.synthetic.images.isfinite().all()


def test_a_run_that_ends_while_experts_are_trained_leaves_no_claim(pair, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="expert 0 diverged"):
            ddfast.distill(pair, output=tmp_path / "run", **(SMALL | {"lr_teacher": 1e29}))
        assert not (tmp_path / "run").exists()


def test_the_baseline_draws_other_real_images_for_every_network(data):
    result = evaluate_random_real(data, 1, num_eval=3, epochs=2)
    assert result.n == 3 and evaluate_random_real(data, 1, num_eval=3, epochs=2) == result
    drawn = [data.random_real(1, seeds.generator(0, "random_real", repeat))[0] for repeat in range(3)]
    assert not torch.equal(drawn[0], drawn[1])


def test_the_learning_rate_is_projected_to_a_floor_and_projections_are_counted(data, experts):
    settings = MTTSettings(**{**vars(SETTINGS), "lr_lr": 1e6})
    method = mtt(data, experts, settings)
    records = [method.step() for _ in range(4)]
    assert all(record["lr"] >= LR_FLOOR * 0.99 for record in records)
    assert records[-1]["floored"] >= 1


def test_more_experts_in_the_cache_do_not_change_a_run(pair, tmp_path):
    first = ddfast.distill(pair, output=tmp_path / "a", seed=5, **SMALL)
    ddfast.train_experts(pair, num_experts=4, epochs=2, batch_train=6, lr_teacher=0.02, seed=5)
    again = ddfast.distill(pair, output=tmp_path / "b", seed=5, **SMALL)
    assert torch.equal(first.synthetic.images, again.synthetic.images)
    assert first.accuracy == again.accuracy


def test_evaluation_trains_from_scratch_and_tells_a_good_set_from_a_bad_one(data):
    images, labels = data.random_real(3, seeds.generator(0))
    good = ddfast.SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing)
    bad = ddfast.SyntheticSet(images, labels.roll(3), torch.tensor(0.01), data.class_names, data.preprocessing)
    by_good, by_bad = (evaluate(s, data, num_eval=2, epochs=60) for s in (good, bad))
    assert by_good.mean > 90 and by_bad.mean < 40
    assert by_good.n == 2 and len(by_good.accuracies["convnet"]) == 2
    assert evaluate(good, data, num_eval=2, epochs=60).accuracies == by_good.accuracies


def test_images_with_many_channels_have_a_picture_too(tmp_path):
    labels = torch.arange(9) % 3
    images = uniform(9, 5, 16, 16).float() - 0.1
    pair = TensorDataset(images, labels), TensorDataset(images, labels)
    assert (ddfast.distill(pair, output=tmp_path / "run", **SMALL).path / "images.png").exists()


def test_evaluation_refuses_another_preprocessing_size_or_network(data):
    images, labels = data.random_real(1, seeds.generator(0))
    lr = torch.tensor(0.01)
    other = ddfast.data.Preprocessing((0.0,), (1.0,))
    with pytest.raises(ValueError, match="synthetic: its images were preprocessed with"):
        evaluate(ddfast.SyntheticSet(images, labels, lr, data.class_names, other), data)
    with pytest.raises(ValueError, match=r"synthetic: expected images \[1, 16, 16\] as in custom, got \[1, 8, 16\]"):
        evaluate(ddfast.SyntheticSet(images[:, :, :8], labels, lr, data.class_names, data.preprocessing), data)
    good = ddfast.SyntheticSet(images, labels, lr, data.class_names, data.preprocessing)
    renamed = ddfast.SyntheticSet(images, labels, lr, ("a", "b", "c"), data.preprocessing)
    with pytest.raises(ValueError, match="synthetic: expected the classes of custom, 0, 1, 2; got a, b, c"):
        evaluate(renamed, data)
    for networks_ in (("convnet", "lenet"), (), "convnet"):
        with pytest.raises(ValueError, match="networks: expected some of convnet, resnet18, got"):
            evaluate(good, data, networks=networks_)
    with pytest.raises(ValueError, match="epochs: expected a whole number of at least 1"):
        evaluate(good, data, epochs=0)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"method": "mttt"}, "method: expected one of mtt, got 'mttt'"),
        ({"preset": "mtt/digits/ipc7"}, "preset: expected one of .*mtt/digits/ipc1.*, got 'mtt/digits/ipc7'"),
        ({"ipc": 9}, "ipc: expected at most the 8 training images of class '0', got 9"),
        ({"ipc": 0}, "ipc: expected a whole number of at least 1, got 0"),
        ({"syn_step": 3}, "options: expected some of syn_steps, .* got syn_step"),
        ({"syn_steps": 2.5}, "syn_steps: expected a whole number of at least 1, got 2.5"),
        ({"ipc": 1.5}, "ipc: expected a whole number of at least 1, got 1.5"),
        ({"syn_steps": 0}, "syn_steps: expected a whole number of at least 1, got 0"),
        ({"lr_teacher": -1.0}, "lr_teacher: expected a positive number up to 1e[+]30, got -1.0"),
        ({"lr_img": float("nan")}, "lr_img: expected 0 to 1e[+]30, got nan"),
        ({"iterations": 0}, "iterations: expected a whole number of at least 1, got 0"),
        ({"lr_lr": 1e40}, "lr_lr: expected 0 to 1e[+]30, got 1e[+]40"),
        ({"num_experts": 0}, "num_experts: expected a whole number of at least 1, got 0"),
        ({"batch_train": 0}, "batch_train: expected a whole number of at least 1, got 0"),
        ({"num_eval": 0}, "num_eval: expected a whole number of at least 1, got 0"),
        ({"network": "vgg"}, "network: expected one of convnet, resnet18, got 'vgg'"),
        ({"dataset": "cifar"}, "dataset: expected one of digits, got 'cifar'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(pair, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(**({"dataset": pair, "output": tmp_path / "run"} | SMALL | change))
    assert not (tmp_path / "run").exists()


def test_experts_that_do_not_fit_are_refused(pair, experts, tmp_path):
    with pytest.raises(ValueError, match="has 2 epochs, max_start_epoch and expert_epochs need 4"):
        ddfast.distill(pair, output=tmp_path / "a", experts=experts, **(SMALL | {"max_start_epoch": 4}))
    with pytest.raises(ValueError, match="was trained with dataset 'custom', this run has 'digits'"):
        ddfast.distill("digits", output=tmp_path / "b", experts=experts.path, **SMALL)
    with pytest.raises(ValueError, match="device: expected cpu, cuda or cuda:<number>, got 'tpu'"):
        ddfast.distill(pair, output=tmp_path / "d", device="tpu", **SMALL)
    with pytest.raises(ValueError, match="num_experts: expected 1 to the 2 in"):
        ddfast.distill(pair, output=tmp_path / "e", experts=experts, **(SMALL | {"num_experts": 3}))
    truncated = tmp_path.parent / f"{tmp_path.name}-truncated"
    shutil.copytree(experts.path, truncated)
    file = truncated / "expert_0001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"expert_0001.safetensors: not a whole trajectory file"):
        ddfast.distill(pair, output=tmp_path / "f", experts=truncated, **SMALL)
    with pytest.raises(FileNotFoundError, match="no trained experts here"):
        ddfast.distill(pair, output=tmp_path / "c", experts=tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())
