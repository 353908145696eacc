"""The whole job in small: the outer loop, the run folder, the evaluation."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

import ddfast
from ddfast import networks, ops
from ddfast.data import load_dataset
from ddfast.methods import MTT, Resources, TrajectorySettings, method_class
from ddfast.methods.descent import LR_FLOOR
from ddfast.run.loop import MOST_SKIPS, Distillation, DistillationDivergedError
from ddfast.run.resolve import resolve
from ddfast.runtime import seeds
from tests.conftest import SMALL, relative_error

SETTINGS = TrajectorySettings(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=10.0, lr_lr=1e-3, lr_teacher=0.05, dsa_strategy="none"
)


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def experts(pair):
    return ddfast.train_experts(pair, num_experts=2, train_epochs=2, batch_train=6, train_lr=0.05, dsa_strategy="none")


def distillation(data, experts, settings=SETTINGS, **options):
    given = {"dataset": data, "experts": experts, **vars(settings), "iterations": 3} | options
    return Distillation(resolve(given), experts)


def mtt(data, experts, settings, ipc=4):
    """The method alone, on real images."""
    synthetic = distillation(data, experts, replace(settings, lr_label=0.0, labels="hard"), ipc=ipc).synthetic
    if settings.labels == "soft":
        synthetic = replace(synthetic, labels=4 * one_hot(synthetic.labels).float())
    network = networks.create("convnet", generator=seeds.generator(0), **data.network_arguments)
    return MTT(settings, synthetic, Resources(network, seeds.generator(3), experts=experts))


def test_a_run_writes_its_folder_and_returns_what_is_in_it(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", **SMALL)
    names = {p.name for p in result.path.iterdir() if not p.name.endswith(".lock")}
    assert names == {
        "accuracies.jsonl", "checkpoint.pt", "config.json", "curves.png", "images.png", "initial.json", "initial.png",
        "initial.safetensors", "metrics.jsonl", "summary.json", "synthetic.json", "synthetic.safetensors", "thumbnails",
    }  # fmt: skip
    records = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert records == result.history and [r["iteration"] for r in records] == [1, 2, 3]
    saved = ddfast.SyntheticSet.load(result.path / "synthetic")
    assert torch.equal(saved.images, result.synthetic.images) and saved.lr.item() == records[-1]["lr"]
    config = json.loads((result.path / "config.json").read_text())
    assert (
        config["syn_steps"] == 3 and config["preset"] == "own data, else mtt/digits/ipc1" and config["iterations"] == 3
    )
    summary = json.loads((result.path / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"distilled", "random_real", "full_data"}
    assert summary["accuracy"]["distilled"]["n"] == 2 and summary["accuracy"]["full_data"]["epochs"] == 2
    assert summary["iterations"] == 3 and summary["peak_bytes"] > 0
    assert (
        config["versions"].items() >= ddfast.build_info()["versions"].items()
        and config["trained_experts"]["lr_teacher"] == 0.02
    )
    initial = ddfast.SyntheticSet.load(result.path / "initial")
    real = load_dataset(pair).random_real(1, seeds.generator(0, "init"))[0]
    assert torch.equal(initial.images, real) and not torch.equal(saved.images, real)


@pytest.mark.parametrize("how", [{}, {"ema_decay": 0.5}, {"method": "herding", "iterations": 0}, {"hold_out": 0.25}])
def test_without_networks_to_train_a_run_ends_with_its_images(pair, tmp_path, monkeypatch, how):
    """Until it is resumed with some; an evaluation that is there is kept."""
    options = {k: v for k, v in SMALL.items() if k not in ("num_eval", "eval_epochs")} | how
    options = options if "method" not in how else {"ipc": 1, **how}
    given = {"output": tmp_path / "run", "resume": True, **options}
    with monkeypatch.context() as patched:
        patched.setattr("ddfast.run.distill.evaluate", None)
        result = ddfast.distill(pair, num_eval=0, **given)
    assert result.accuracy == {} and result.useless is None and "<table" in result._repr_html_()
    assert json.loads((result.path / "summary.json").read_text())["accuracy"] == {}
    assert ddfast.report(result.path).is_file()
    evaluated = ddfast.distill(pair, num_eval=1, eval_epochs=2, **given)
    assert (
        torch.equal(evaluated.synthetic.images, result.synthetic.images) and evaluated.accuracy["distilled"]["n"] == 1
    )
    assert ddfast.distill(pair, num_eval=0, **given).accuracy == evaluated.accuracy


@pytest.mark.parametrize("name", ["eval_every", "full_epochs"])
def test_without_networks_to_train_none_is_tested(pair, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: trains networks to test them, of which num_eval 0 wants none"):
        ddfast.distill(pair, output=tmp_path / "run", **SMALL | {"num_eval": 0, name: 1})
    assert not (tmp_path / "run").exists()


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


def test_a_step_descends_with_momentum_on_the_loss_of_the_augmented_images(data, experts, monkeypatch):
    """The second step, against the formula: draws of every inner step, gradient, momentum 0.5 on images and α."""
    settings = replace(SETTINGS, dsa_strategy="flip_scale_crop", lr_lr=1e-6)
    method = mtt(data, experts, settings)
    drawn = []
    original = MTT._augmentations
    monkeypatch.setattr(
        MTT, "_augmentations", lambda self, count: drawn.append(original(self, count)[0]) or (drawn[-1], None)
    )
    states, gradients = [method.current()], []
    for _ in range(2):
        record = method.step()
        before = states[-1]
        x, lr = before.images.clone().requires_grad_(), before.lr.clone().requires_grad_()
        ends = experts.segment(record["expert"], record["start_epoch"], record["start_epoch"] + 1)
        augment = lambda images, n, rows=drawn[-1]: ops.dsa_augment(images, rows[n])  # noqa: E731
        loss = ddfast.match_trajectory(method.student, *ends, x, before.labels, lr, syn_steps=3, augment=augment)
        gradients.append(torch.autograd.grad(loss, (x, lr)))
        states.append(method.current())
    assert len({tuple(row[0].tolist()) for rows in drawn for row in rows}) > 1
    for index, (name, rate) in enumerate((("images", 10.0), ("lr", 1e-6))):
        moved = getattr(states[2], name) - getattr(states[1], name)
        expected = -rate * (gradients[1][index] + 0.5 * gradients[0][index])
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)  # a difference of float32 numbers


def test_several_segments_are_averaged(data, experts):
    """The images' update of S segments is the mean of those that each alone would have made."""
    method = mtt(data, experts, replace(SETTINGS, segments=3, lr_lr=0.0))
    before = method.current().images
    record = method.step()
    assert len(record["expert"]) == len(record["start_epoch"]) == 3
    moved, losses = method.current().images - before, []
    alone = []
    for expert, epoch in zip(record["expert"], record["start_epoch"], strict=True):
        one = mtt(data, experts, replace(SETTINGS, lr_lr=0.0))
        one.segments._draw = lambda drawn=(expert, epoch): [drawn]
        losses.append(one.step()["loss"])
        alone.append(one.current().images - before)
    assert record["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert relative_error(moved, sum(alone) / 3) < 1e-4  # float32


def test_a_network_that_is_not_the_fused_one_is_distilled_with_too(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", network="convnet:norm=batchnorm:width=8", **SMALL)
    plan = json.loads((result.path / "config.json").read_text())["memory_plan"]
    assert plan["stored_steps"] == SMALL["syn_steps"] and plan["predicted_bytes"] > 0


def test_soft_labels_are_learned_where_they_have_a_rate(data, experts):
    for rate in (0.0, 1.0):
        method = mtt(data, experts, replace(SETTINGS, labels="soft", lr_label=rate))
        before = method.current()
        assert method.step()["updated"]
        after = method.current()
        assert after.is_soft and not torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels) == (rate == 0)
    state = method.state_dict()
    other = mtt(data, experts, replace(SETTINGS, labels="soft", lr_label=1.0))
    other.load_state_dict(state)
    assert torch.equal(other.current().labels, after.labels)
    assert method.step()["loss"] == other.step()["loss"]


def test_images_can_start_from_noise(data, experts):
    noise = distillation(data, experts, replace(SETTINGS, init="noise"), ipc=4).synthetic.images
    assert noise.mean().abs() < 0.1 and abs(noise.std() - 1) < 0.1
    assert not torch.equal(noise, distillation(data, experts, ipc=4).synthetic.images)


def test_given_experts_decide_network_whitening_and_number(data, pair, tmp_path, caplog):
    options = {"train_epochs": 2, "batch_train": 6, "dsa_strategy": "none", "zca": True}
    store = ddfast.train_experts(pair, num_experts=1, network="convnet:width=8", **options)
    with caplog.at_level("INFO", logger="ddfast"):
        result = ddfast.distill(pair, output=tmp_path / "a", experts=store.path, **{**SMALL, "num_experts": None})
    config = json.loads((result.path / "config.json").read_text())
    assert (config["network"], config["zca"], config["num_experts"]) == ("convnet:width=8", True, 1)
    assert result.synthetic.preprocessing.zca is not None
    assert "network: convnet:width=8, as the experts were trained (the preset has convnet)" in caplog.messages
    with pytest.raises(ValueError, match=r"experts: .* preprocess images differently: .*zca on and off"):
        ddfast.distill(pair, output=tmp_path / "b", experts=store, zca=False, **{**SMALL, "num_experts": 1})
    with pytest.raises(ValueError, match="was trained with network 'convnet:width=8'"):
        ddfast.distill(pair, output=tmp_path / "b", experts=store, network="convnet", **{**SMALL, "num_experts": 1})
    assert not (tmp_path / "b").exists()


def test_experts_are_trained_for_no_more_epochs_than_needed_when_told_so(pair, tmp_path):
    needed = ddfast.distill(pair, output=tmp_path / "a", **(SMALL | {"train_epochs": "needed", "max_start_epoch": 1}))
    assert needed.accuracy["full_data"]["epochs"] == 1
    longer = ddfast.distill(pair, output=tmp_path / "b", **(SMALL | {"train_epochs": 1, "max_start_epoch": 3}))
    assert longer.accuracy["full_data"]["epochs"] == 3  # what a run needs is always trained


def test_full_data_and_several_networks_can_be_asked_for(pair, tmp_path):
    options = SMALL | {"full_epochs": 3, "networks": ("convnet:width=8", "mlp")}
    accuracy = ddfast.distill(pair, output=tmp_path / "run", **options).accuracy
    assert all(set(row["networks"]) == {"convnet:width=8", "mlp"} for row in accuracy.values())
    assert accuracy["full_data"]["epochs"] == 3 and accuracy["full_data"]["source"] == "trained again"
    assert accuracy["distilled"]["mean"] == accuracy["distilled"]["networks"]["convnet:width=8"]["mean"]


def test_evaluations_on_the_way_are_recorded_with_their_sets_and_change_nothing(pair, tmp_path):
    plain = ddfast.distill(pair, output=tmp_path / "plain", **(SMALL | {"iterations": 5}))
    result = ddfast.distill(pair, output=tmp_path / "run", eval_every=2, **(SMALL | {"iterations": 5}))
    lines = [json.loads(line) for line in (result.path / "evaluations.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4] and lines[0]["n"] == 2
    at_4 = ddfast.SyntheticSet.load(result.path / "checkpoints" / "000004")
    assert at_4.lr.item() == result.history[3]["lr"]
    assert torch.equal(plain.synthetic.images, result.synthetic.images)
    summary = json.loads((result.path / "summary.json").read_text())
    means = [line["mean"] for line in lines] + [summary["accuracy"]["distilled"]["mean"]]
    assert summary["best_on_test"]["mean"] == max(means)
    assert summary["accuracy"]["distilled"]["mean"] == plain.accuracy["distilled"]["mean"]  # the last, not the best


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


@pytest.mark.parametrize("method", ["dc", "idc", "dm", "ld"])
def test_a_run_takes_no_step_but_its_own_to_tell_how_long_it_takes(pair, tmp_path, monkeypatch, caplog, method):
    taken, kind = [], method_class(method)
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda self: taken.append(self) or step(self))
    options = {"iterations": 4, "ipc": 1, "num_eval": 1, "eval_epochs": 1, "output": tmp_path / "run"}
    options |= {"inner_loop": 1} if method in ("dc", "idc") else {}
    with caplog.at_level(logging.INFO, "ddfast"):
        ddfast.distill(pair, method=method, **options)
        assert len(taken) == 4 and caplog.text.count("time: about ") == 1
        ddfast.distill(pair, method=method, resume=True, **options | {"iterations": 6})
    assert len(taken) == 6 and caplog.text.count("time: about ") == 2


def test_the_default_output_is_the_next_number(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [ddfast.distill(pair, **SMALL).path.as_posix() for _ in range(2)] == ["runs/0001", "runs/0002"]


def test_minibatches_that_do_not_divide_the_set_use_all_images_alike(data, experts):
    batches = mtt(data, experts, replace(SETTINGS, syn_steps=12, batch_syn=5))._batches()  # 12 images
    assert batches.shape == (12, 5) and batches.flatten().bincount().tolist() == [5] * 12


def test_minibatches_are_permutations_cut_into_chunks(data, experts):
    settings = replace(SETTINGS, syn_steps=5, batch_syn=4)
    batches = mtt(data, experts, settings)._batches()  # 12 images: three chunks to a permutation
    assert batches.shape == (5, 4)
    assert sorted(batches[:3].flatten().tolist()) == list(range(12))
    assert len(set(batches[3:].flatten().tolist())) == 8


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(data, experts, monkeypatch):
    method = mtt(data, experts, SETTINGS)
    before = method.current()
    monkeypatch.setattr(method, "compare", lambda student, *_: student.sum(1) * float("nan"))
    record = method.step()
    assert record["skipped"] == 1 and not record["updated"]
    assert torch.equal(method.current().images, before.images) and method.current().lr == before.lr
    monkeypatch.undo()
    assert method.step()["updated"]


@pytest.mark.parametrize("what", ["the learning rate goes beyond all bounds", "losses are not finite"])
def test_too_many_such_updates_end_the_run_with_the_last_good_images_saved(pair, tmp_path, monkeypatch, what):
    options, losses, distance = SMALL | {"iterations": 100, "lr_teacher": 0.02}, [], MTT.distance
    if what.startswith("losses"):

        def distance_at_first(*arguments):
            losses.append(distance(*arguments))
            return losses[-1] * (1 if len(losses) < 4 else float("nan"))

        monkeypatch.setattr(MTT, "distance", distance_at_first)
    else:
        options |= {"lr_lr": 1e30}
    with pytest.raises(DistillationDivergedError, match=f"{MOST_SKIPS} updates in a row had no finite gradient"):
        ddfast.distill(pair, output=tmp_path / "run", **options)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in lines]
    good = [record for record in records if record["updated"]]
    assert len(records) == len(good) + MOST_SKIPS and not records[-1]["updated"]
    saved = ddfast.SyntheticSet.load(tmp_path / "run" / "synthetic")
    before = good[-2 if losses else -1]["lr"]  # what the last finite loss was computed with
    assert saved.images.isfinite().all() and saved.lr.item() == pytest.approx(before)
    assert (tmp_path / "run" / "images.png").exists()


def test_a_result_that_is_not_finite_is_taken_back(data, experts):
    method = mtt(data, experts, SETTINGS)
    method.learned.descent.learned[0] = method.learned.descent.learned[0]._replace(rate=float("inf"))
    before = method.current()
    assert not method.step()["updated"]
    assert torch.equal(method.current().images, before.images)


def test_an_overflow_does_not_spoil_the_momentum(data, experts):
    """Taken back are image, velocity and counts: the run goes on as if the step had not been."""
    method, other = (mtt(data, experts, SETTINGS) for _ in range(2))
    for run in (method, other):
        run.step()
    method.learned.descent.learned[0] = method.learned.descent.learned[0]._replace(rate=float("inf"))
    state, segments = method.generator.get_state(), method.segments.state()
    assert not method.step()["updated"]
    method.learned.descent.learned[0] = method.learned.descent.learned[0]._replace(rate=10.0)
    method.generator.set_state(state)
    method.segments.load_state(segments)
    assert method.step()["loss"] == other.step()["loss"]
    assert torch.equal(method.current().images, other.current().images)


def test_a_run_whose_last_updates_were_skipped_ends_with_the_images_before_them(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", **(SMALL | {"iterations": 8, "lr_lr": 1e30}))
    assert not result.history[-1]["updated"]
    assert result.synthetic.lr.item() < 1e10 and result.synthetic.images.isfinite().all()


def test_a_run_that_ends_while_experts_are_trained_leaves_no_claim(pair, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="expert 0 diverged"):
            ddfast.distill(pair, output=tmp_path / "run", **(SMALL | {"train_lr": 1e29}))
        assert not (tmp_path / "run").exists()


def test_the_learning_rate_is_projected_to_a_floor_and_projections_are_counted(data, experts):
    method = mtt(data, experts, replace(SETTINGS, lr_lr=1e-2))
    records = [method.step() for _ in range(4)]
    assert all(record["lr"] >= LR_FLOOR * 0.99 for record in records)
    assert records[-1]["floored"] >= 1


def test_more_experts_in_the_cache_do_not_change_a_run(pair, tmp_path):
    first = ddfast.distill(pair, output=tmp_path / "a", seed=5, **SMALL)
    ddfast.train_experts(pair, num_experts=4, train_epochs=2, batch_train=6, train_lr=0.02, seed=5, dsa_strategy="none")
    again = ddfast.distill(pair, output=tmp_path / "b", seed=5, **SMALL)
    assert torch.equal(first.synthetic.images, again.synthetic.images)
    assert first.accuracy == again.accuracy


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"method": "mttt"}, "method: expected one of mtt, ftd, .*, got 'mttt'"),
        ({"preset": "mtt/digits/ipc7"}, "preset: expected one of .*mtt/digits/ipc1.*, got 'mtt/digits/ipc7'"),
        ({"ipc": 9}, "ipc: expected at most the 8 training images of class '0', got 9"),
        ({"ipc": 0}, "ipc: expected a whole number of at least 1, got 0"),
        ({"syn_step": 3}, r"unknown option 'syn_step'; did you mean 'syn_steps'\?"),
        ({"syn_steps": 2.5}, "syn_steps: expected a whole number of at least 1, got 2.5"),
        ({"ipc": 1.5}, "ipc: expected a whole number of at least 1, got 1.5"),
        ({"syn_steps": 0}, "syn_steps: expected a whole number of at least 1, got 0"),
        ({"lr_teacher": -1.0}, "lr_teacher: expected a number above 0 up to 1e[+]30, got -1.0"),
        ({"lr_img": float("nan")}, "lr_img: expected a number from 0 to 1e[+]30, got nan"),
        ({"iterations": -1}, "iterations: expected a whole number of at least 0, got -1"),
        ({"lr_lr": 1e40}, "lr_lr: expected a number from 0 to 1e[+]30, got 1e[+]40"),
        ({"num_experts": 0}, "num_experts: expected a whole number of at least 1, got 0"),
        ({"batch_train": 0}, "batch_train: expected a whole number of at least 1, got 0"),
        ({"num_eval": -1}, "num_eval: expected a whole number of at least 0, got -1"),
        ({"network": "vgg"}, r"network: expected one of convnet, resnet18, .*, got 'vgg'"),
        (
            {"dataset": "cifar"},
            "dataset: expected one of digits, .*; did you mean cifar10",
        ),
        (
            {"init": "zeros"},
            "init: expected one of real, noise, .*, or a saved set or run, got 'zeros'",
        ),
        ({"dsa_strategy": "shear"}, "dsa_strategy: expected some of color"),
        ({"networks": ("convnet", "vgg")}, r"network: expected one of .*, got 'vgg'"),
        ({"networks": ("vgg11",)}, "image_size: expected at least 32 pixels a side for vgg11"),
        (
            {"protocol": "dm"},
            "protocol: expected one of ddfast, mtt, datm, dc, dsa, idc, ncfm, ddranking, bptt, fedd3, recipe",
        ),
        ({"eval_every": 0}, "eval_every: expected a whole number of at least 1, got 0"),
        ({"train_epochs": "all"}, "train_epochs: expected a whole number of at least 1 or needed, got 'all'"),
        ({"train_lr": 0.0}, "train_lr: expected a positive number, got 0.0"),
        ({"zca": True, "image_size": 160}, "zca: expected images of at most 20000 values"),
        ({"mom": 1.0}, "mom: expected a number from 0 to below 1, got 1.0"),
        ({"lr_label": 1.0}, "lr_label: hard labels are not learned; expected 0, got"),
        ({"networks": "convnet"}, "networks: expected a tuple of names, got 'convnet'"),
        ({"resume": True, "output": None}, "resume: expected the output folder"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(pair, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(**({"dataset": pair, "output": tmp_path / "run"} | SMALL | change))
    assert not (tmp_path / "run").exists()


def test_experts_that_do_not_fit_are_refused(pair, experts, tmp_path):
    with pytest.raises(ValueError, match="have 2 epochs, starts up to epoch 3 with targets 1 later need 4"):
        ddfast.distill(pair, output=tmp_path / "a", experts=experts, **(SMALL | {"max_start_epoch": 4}))
    with pytest.raises(ValueError, match=r"with training images '.*' of 'custom', this run has '.*' of 'digits'"):
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
