"""Studies on small real data, from Python and from the command line: what they say, and that they go on."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner

import ddfast
from ddfast import SyntheticSet
from ddfast.cli import cli
from ddfast.data import load_dataset
from ddfast.run.loop import DistillationDivergedError
from ddfast.runtime import seeds
from ddfast.studies import (
    architectures,
    continual,
    federated,
    gradient_approximation,
    gradient_error,
    loss_correlation,
    privacy,
    range_study,
    trajectory_error,
)
from ddfast.studies.architecture_search import networks_of_space
from ddfast.studies.federated_learning import split


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def real(digits):
    images, labels = digits.random_real(2, seeds.generator(0))
    return SyntheticSet(images, labels, torch.tensor(0.02), digits.class_names, digits.preprocessing, network="mlp")


def study(folder):
    return json.loads((folder / "study.json").read_text())


def test_the_space_has_720_different_networks():
    names = networks_of_space()
    assert len(set(names)) == 720
    sizes = {"channels": 3, "num_classes": 10, "image_size": (32, 32)}
    for name in names[:: 720 // 9]:
        ddfast.networks.create(name, generator=seeds.generator(0), **sizes)


def test_architecture_search_ranks_networks_and_goes_on(digits, real, tmp_path, monkeypatch):
    from scipy.stats import spearmanr

    how = {"count": 4, "eval_epochs": 8, "full_epochs": 1, "top": (3,), "seed": 1}
    monkeypatch.setattr("ddfast.studies.architecture_search.SPACE", {
        "width": (8, 16), "depth": (1,), "norm": ("none", "instancenorm"), "activation": ("relu",),
        "pooling": ("avgpooling",),
    })  # fmt: skip
    table = architectures(real, digits, tmp_path, **how)
    rows, found = table["rows"], table["findings"]
    assert len(rows) == 4 and len({row["network"] for row in rows}) == 4
    assert found["all"] == pytest.approx(spearmanr([r["proxy"] for r in rows], [r["real"] for r in rows]).statistic)
    best = sorted(rows, key=lambda row: -row["real"])[:3]
    expected = spearmanr([r["proxy"] for r in best], [r["real"] for r in best]).statistic
    assert found["top_3_by_real"] == pytest.approx(expected) and found["best"] == best[0]
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG") and study(tmp_path)["rows"] == rows
    monkeypatch.setattr("ddfast.evaluation.schedule.train_networks", None)  # nothing is trained again
    monkeypatch.setattr("ddfast.evaluation.baselines.train_networks", None)
    assert architectures(real, digits, tmp_path, **how)["rows"] == rows


def test_continual_learning_keeps_what_a_memory_keeps(digits, tmp_path):
    """Random images of all classes so far: about what they reach when they are drawn at once."""
    how = {"method": "random", "steps": 5, "ipc": 5, "orders": 1, "network": "mlp", "num_eval": 1, "eval_epochs": 60}
    table = continual(digits, tmp_path, **how)
    assert [row["classes"] for row in table["rows"]] == [2, 4, 6, 8, 10]
    assert [row["images"] for row in table["rows"]] == [10, 20, 30, 40, 50]
    accuracies = [row["accuracy"] for row in table["rows"]]
    assert accuracies[0] > 80 and accuracies[-1] > 40
    assert len(list((tmp_path / "runs").iterdir())) == 5
    before = (tmp_path / "accuracies.jsonl").read_text()
    assert continual(digits, tmp_path, **how)["rows"] == table["rows"]
    assert (tmp_path / "accuracies.jsonl").read_text() == before
    with pytest.raises(
        ValueError, match="steps: expected a number that divides the 10 classes, two or more each, got 3"
    ):
        continual(digits, tmp_path / "other", steps=3)


def test_clients_hold_what_fedd3_gives_them():
    labels = torch.arange(4).repeat_interleave(torch.tensor([9, 8, 7, 6]))
    parts = split(labels, 4, 4, 2, seed=0)
    assert [classes for classes, _ in parts] == [[0, 1], [1, 2], [2, 3], [0, 3]]
    together = torch.cat([indices for _, indices in parts]).sort().values
    assert torch.equal(together, torch.arange(30))  # each image once
    for classes, indices in parts:
        assert sorted(labels[indices].unique().tolist()) == classes
    iid = split(labels, 4, 3, None, seed=0)
    sizes = [labels[indices].bincount(minlength=4).tolist() for _, indices in iid]
    assert all(max(column) - min(column) <= 1 for column in zip(*sizes, strict=True))
    with pytest.raises(ValueError, match="clients: class 3 has 6 images for 7 clients"):
        split(labels, 4, 7, None, seed=0)
    with pytest.raises(ValueError, match="clients: none of 2 holds class 3; give more clients"):
        split(labels, 4, 2, 2, seed=0)
    with pytest.raises(ValueError, match="classes_per_client: expected 2 to 4, got 1"):
        split(labels, 4, 4, 1, seed=0)


def test_a_server_learns_from_what_clients_send(digits, tmp_path):
    """No client has all classes, the server knows them all; and clients that are done are not run again."""
    how = {"method": "random", "clients": 5, "classes_per_client": 6, "ipc": 4, "networks": ("mlp",), "num_eval": 1}
    table = federated(digits, tmp_path, eval_epochs=80, workers=2, **how)
    (row,) = table["rows"]
    assert row["last"] > 40 and row["best"] >= row["last"]
    files = sorted(tmp_path.glob("client-*/synthetic.safetensors"))
    assert not list(tmp_path.glob("client-*/accuracies.jsonl"))  # a client tests nothing
    assert len(files) == 5 and table["findings"]["images_sent"] == 5 * 6 * 4
    assert table["findings"]["bytes_sent"] == sum(file.stat().st_size for file in files)
    times = [file.stat().st_mtime_ns for file in files]
    assert federated(digits, tmp_path, eval_epochs=80, **how)["rows"] == table["rows"]
    assert [file.stat().st_mtime_ns for file in files] == times


def test_clients_of_kip_have_fedd3s_settings_unless_told_otherwise(digits, tmp_path):
    how = {"clients": 2, "networks": ("mlp",), "num_eval": 1, "eval_epochs": 1, "iterations": 2, "kernel_depth": 2}
    federated(digits, tmp_path, **how)
    for client in range(2):
        config = json.loads((tmp_path / f"client-00{client}" / "config.json").read_text())
        assert (config["method"], config["lr_img"], config["batch_real"]) == ("kip", 0.004, 10)
        assert (config["kernel_depth"], config["iterations"], config["ipc"]) == (2, 2, 1)


def test_copies_are_found_and_noise_is_not(digits, real, experts, tmp_path):
    """Among all training images, of which the attack looks at some; and no table takes another's place."""
    table = privacy(real, digits, tmp_path / "real", eval_epochs=40, most=200)
    found = table["findings"]
    for n, row in enumerate(table["rows"]):
        copied = digits.preprocessing.apply(digits.train_images[[row["nearest_in_pixels"]]])
        assert row["ratio_in_pixels"] < 1e-3 and torch.allclose(copied[0], real.images[n], atol=1e-5)
    assert (
        found["median_ratio_in_pixels_of_distilled"] < 1e-3 and found["median_ratio_in_features_of_random_real"] < 1e-3
    )
    assert 0.4 < found["attack_auc_of_distilled"] < 0.7
    noise = replace(real, images=3 * torch.randn(real.images.shape, generator=seeds.generator(3)))
    found = privacy(noise, digits, tmp_path / "noise", eval_epochs=2, most=200)["findings"]
    assert found["median_ratio_in_pixels_of_distilled"] > 1
    before = (tmp_path / "real" / "study.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"real: has the study privacy of set \w+, not \w+; choose"):
        privacy(noise, digits, tmp_path / "real", eval_epochs=2, most=200)
    with pytest.raises(FileExistsError, match=r"real: has the study privacy; choose another output folder"):
        gradient_error(digits, experts, tmp_path / "real")
    assert (tmp_path / "real" / "study.json").read_bytes() == before
    for text, error in (("[1]", FileExistsError), ("{", ValueError)):
        (tmp_path / "real" / "study.json").write_text(text)
        with pytest.raises(error, match=r"real(: has the study of another program|/study\.json: not a JSON file)"):
            privacy(noise, digits, tmp_path / "real", eval_epochs=2, most=200)
        assert (tmp_path / "real" / "study.json").read_text() == text


@pytest.fixture(scope="module")
def experts(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "store"
    return ddfast.train_experts(digits, num_experts=1, train_epochs=4, network="mlp", dsa_strategy="none", output=path)


def test_experts_of_other_data_or_networks_are_refused_and_their_preprocessing_is_kept(digits, real, experts, tmp_path):
    few = {"num_experts": 1, "train_epochs": 3, "network": "mlp", "dsa_strategy": "none"}
    whitened = ddfast.train_experts("digits", zca=True, output=tmp_path / "whitened", **few)
    other = replace(real, network="convnet")
    with pytest.raises(ValueError, match=r"experts: .* was trained with network 'mlp' of .*, this run has 'convnet'"):
        trajectory_error({"other": other}, digits, experts, tmp_path / "a", syn_steps=1)
    with pytest.raises(ValueError, match=r"experts: .* and this run preprocess images differently"):
        trajectory_error({"real": replace(real, network=None)}, digits, whitened, tmp_path / "b", syn_steps=1)
    small = ddfast.train_experts("digits", image_size=8, output=tmp_path / "small", **few)
    with pytest.raises(ValueError, match=r"experts: .* was trained with training images .* of 'digits'"):
        gradient_error(digits, small, tmp_path / "c", steps=(1,), draws=1)
    table = gradient_error("digits", small.path, tmp_path / "c", steps=(1,), draws=1, image_size=8)
    assert table["settings"]["experts"] == str(small.path)
    seen = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gradient_approximation, "_compared", lambda data, *_: seen.append(data) or (1.0, 1.0, 1.0))
        gradient_error("digits", whitened, tmp_path / "d", steps=(1,), draws=1)
    assert seen[0].preprocessing.zca is not None and not any(tmp_path.joinpath(name).exists() for name in "ab")


def test_what_cannot_be_joined_or_trained_is_said_before_anything_is_distilled(digits, tmp_path):
    for how, sentence in (
        ({"networks": ("foo",)}, "network: expected one of"),
        ({"protocol": "recipe"}, "protocol: recipe is a single set's steps"),
        ({"zca": True}, "zca: each part would have a whitening of its own"),
    ):
        with pytest.raises(ValueError, match=sentence):
            federated(digits, tmp_path, clients=2, method="random", **how)
    for how, sentence in (
        ({"protocol": "foo"}, "protocol: expected one of"),
        ({"zca": True}, "zca: each part would have a whitening of its own"),
    ):
        with pytest.raises(ValueError, match=sentence):
            continual(digits, tmp_path, method="random", **how)
    assert not list(tmp_path.iterdir())


def test_an_error_accumulates_from_an_experts_start_and_is_small_from_its_epochs(digits, real, experts, tmp_path):
    """Against a student by hand, in plain PyTorch."""
    table = trajectory_error({"real": real}, digits, experts, tmp_path / "study", syn_steps=5, expert_epochs=2)
    rows = table["rows"]
    assert [row["epoch"] for row in rows] == [2, 4]
    net = ddfast.networks.create("mlp", generator=seeds.generator(0), **digits.network_arguments)
    test = digits.preprocessing.apply(digits.test_images)

    def loss():
        return float(torch.nn.functional.cross_entropy(net(test), digits.test_labels))

    def walk(parameters):
        torch.nn.utils.vector_to_parameters(parameters.clone(), net.parameters())
        optimizer = torch.optim.SGD(net.parameters(), lr=float(real.lr))
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(real.images), real.labels).backward()
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(net.parameters()).detach()

    student = experts.snapshot(0, 0)
    for row, (start, end) in zip(rows, pairwise((0, 2, 4)), strict=True):
        target = experts.snapshot(0, end)
        torch.nn.utils.vector_to_parameters(target.clone(), net.parameters())
        own = loss()
        student = walk(student)
        assert row["expert_loss"] == pytest.approx(own, rel=1e-4)
        assert row["evaluation"] == pytest.approx(loss() - own, rel=1e-3, abs=1e-5)
        near, first = walk(experts.snapshot(0, start)), experts.snapshot(0, start)
        assert row["distillation"] == pytest.approx(loss() - own, rel=1e-3, abs=1e-5)
        share = (near - target).square().sum() / (first - target).square().sum()
        assert row["matching_loss"] == pytest.approx(float(share), rel=1e-3)
    assert rows[0]["evaluation"] == rows[0]["distillation"]  # they begin alike
    with pytest.raises(
        ValueError, match=r"experts: .* has 1 of 4 epochs; expected 1, and a last epoch from 2 to 4, got 9"
    ):
        trajectory_error({"real": real}, digits, experts, tmp_path, last_epoch=9)
    with pytest.raises(ValueError, match="sets: expected at least one"):
        trajectory_error({}, digits, experts, tmp_path)


SHORT = {
    "network": "mlp", "num_experts": 1, "train_epochs": 3, "batch_train": 256, "max_start_epoch": 1, "lr_img": 1.0,
    "num_eval": 1, "eval_epochs": 5, "preset": "mtt/digits/ipc1", "ipc": 1,
}  # fmt: skip


def test_a_range_study_runs_every_cell_once(tmp_path):
    how = SHORT | {"iterations": 2}
    table = range_study("digits", tmp_path, syn_steps=(1, 2), expert_epochs=(1, 2), **how)
    assert [(row["syn_steps"], row["expert_epochs"]) for row in table["rows"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    reached = [row["accuracy"] for row in table["rows"]]
    assert table["findings"]["best"]["accuracy"] == max(reached) and all(row["loss"] > 0 for row in table["rows"])
    times = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("runs/*/metrics.jsonl"))]
    assert range_study("digits", tmp_path, syn_steps=(1, 2), expert_epochs=(1, 2), **how)["rows"] == table["rows"]
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("runs/*/metrics.jsonl"))] == times
    with pytest.raises(ValueError, match="num_eval: expected a whole number of at least 1, got 0"):
        range_study("digits", tmp_path, num_eval=0)
    with pytest.raises(ValueError, match="syn_steps: expected a whole number of at least 1, got 0"):
        range_study("digits", tmp_path, syn_steps=(0, 2))


@pytest.mark.filterwarnings("error")
def test_a_range_study_whose_runs_all_diverge_says_so_in_its_rows(tmp_path, monkeypatch):
    def diverge(*_given, **_options):
        raise DistillationDivergedError

    monkeypatch.setattr("ddfast.studies.ranges.distill", diverge)
    table = range_study("digits", tmp_path, syn_steps=(2,), expert_epochs=(1,))
    assert table["rows"][0]["accuracy"] is None and table["findings"] == {}


def test_studies_take_paths_of_sets_and_the_data_of_runs(tmp_path, real):
    """As the command line gives them."""
    run = ddfast.distill("digits", output=tmp_path / "run", **SHORT | {"iterations": 1})
    of_run = privacy(run.path, None, tmp_path / "a", eval_epochs=1, most=50)
    assert of_run["rows"] == privacy(run.synthetic, "digits", tmp_path / "b", eval_epochs=1, most=50)["rows"]
    assert trajectory_error({"run": run.path}, None, None, tmp_path / "c", syn_steps=1)["rows"][0]["set"] == "run"
    real.save(tmp_path / "set")
    with pytest.raises(ValueError, match=r"experts: .*set comes with none; give a folder of experts"):
        trajectory_error({"set": tmp_path / "set"}, "digits", None, tmp_path / "d")
    with pytest.raises(ValueError, match="say what to test the set on"):
        privacy(real, None, tmp_path / "d")
    with pytest.raises(ValueError, match="count: one network has no rank; give 2 or more"):
        architectures(run.path, None, tmp_path / "d", count=1)
    assert not (tmp_path / "d").exists()


def test_the_approximation_is_exact_for_one_step_and_not_for_more(digits, experts, tmp_path):
    rows = gradient_error(digits, experts, tmp_path, steps=(1, 8), draws=2)["rows"]
    assert rows[0]["cosine"] == pytest.approx(1, abs=1e-5) and rows[0]["rates"] == pytest.approx(1, abs=1e-5)
    assert (
        rows[1]["least_cosine"] < 0.9999 and rows[1]["least_cosine"] <= rows[1]["cosine"] <= rows[1]["largest_cosine"]
    )
    with pytest.raises(ValueError, match=r"experts: .* has 4 epochs, expected more than 4"):
        gradient_error(digits, experts, tmp_path, expert_epochs=4)


def test_numbers_that_are_not_finite_are_null_in_the_table(digits, experts, tmp_path):
    table = gradient_error(digits, experts, tmp_path, steps=(8,), draws=1, lr=1e12)
    assert not math.isfinite(table["rows"][0]["cosine"])
    saved = json.loads((tmp_path / "study.json").read_text(), parse_constant=pytest.fail)
    assert saved["rows"][0]["cosine"] is None and saved["rows"][0]["steps"] == 8


def test_the_correlation_is_that_of_loss_and_error(tmp_path):
    from scipy.stats import spearmanr

    run = tmp_path / "run"
    ddfast.distill("digits", output=run, iterations=8, eval_every=2, syn_steps=1, expert_epochs=1, **SHORT)
    table = loss_correlation([run], tmp_path, smooth=2)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [100 - json.loads(line)["mean"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    means = [(losses[n - 2] + losses[n - 1]) / 2 for n in (2, 4, 6)]
    assert [row["loss"] for row in table["rows"]] == pytest.approx(means)
    assert [row["error"] for row in table["rows"]] == pytest.approx(errors)
    expected = float(spearmanr(means, errors).statistic)
    assert table["findings"][str(run)] == (pytest.approx(expected) if expected == expected else None)
    ddfast.distill("digits", output=tmp_path / "short", iterations=2, syn_steps=1, expert_epochs=1, **SHORT)
    with pytest.raises(ValueError, match="has 0 evaluations, expected at least 3; distil with a smaller"):
        loss_correlation([tmp_path / "short"], tmp_path / "other")
    with pytest.raises(FileExistsError, match=r"has the study loss-correlation of runs .*; choose another"):
        loss_correlation([tmp_path / "short"], tmp_path)


def test_studies_from_the_command_line(real, experts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real.save("set")

    def run(*arguments, expected=0):
        done = CliRunner().invoke(cli, ["study", *map(str, arguments)])
        assert done.exit_code == expected, (done.output, done.exception)
        return done

    said = run("trajectory-error", "set", "--dataset", "digits", "--experts", experts.path, "--syn-steps", 3).output
    assert "matching_loss" in said and "table: studies/trajectory-error/study.json" in said
    said = run("privacy", "set", "--dataset", "digits", "--eval-epochs", 3, "--most", 100).output
    assert "attack auc of distilled: 0." in said
    short = ("--network", "mlp", "--num-eval", 1, "--eval-epochs", 2, "--ipc", 1, "--set", "select_on=pixels")
    said = run("continual", "--method", "random", "--orders", 1, *short).output
    assert "last: " in said and study(tmp_path / "studies" / "continual")["settings"]["method"] == "random"
    said = run(
        "federated", "--method", "random", "--clients", 2, "--networks", "mlp", "--num-eval", 1, "--eval-epochs", 2
    )
    assert "bytes sent: " in said.output
    said = run(
        "architectures", "set", "--dataset", "digits", "--count", 2, "--eval-epochs", 1, "--full-epochs", 1
    ).output
    assert "chosen by proxy: network convnet:" in said
    said = run("gradient-error", "--experts", experts.path, "--steps", "1,3", "--draws", 1).output
    assert "least_cosine" in said
    few = [text for name, value in SHORT.items() if name != "ipc" for text in ("--set", f"{name}={value}")]
    said = run("range", "--syn-steps", 1, "--expert-epochs", "1,2", "--set", "iterations=1", *few).output
    assert "best: syn_steps 1" in said
    wrong = run("gradient-error", "--experts", experts.path, "--steps", "few", expected=1)
    assert "steps: expected whole numbers separated by commas, got 'few'" in str(wrong.exception)
    (tmp_path / "file").write_text("")
    for command in (["privacy", "set", "--dataset", "digits"], ["loss-correlation", "set"], ["range"], ["continual"]):
        wrong = run(*command, "--output", "file", expected=1)
        assert str(wrong.exception) == "file: cannot be written (File exists)"
    wrong = run("continual", "--set", "method=dm", expected=1)
    assert str(wrong.exception) == "--set method: expected as an option of the study, --method dm"
    wrong = run("range", "--set", "syn_steps=3", expected=1)
    assert "--set syn_steps: expected as an option of the study" in str(wrong.exception)
    wrong = run("range", "--set", "iterations=0", expected=1)
    assert "iterations: expected 1 or more" in str(wrong.exception)
    wrong = run("continual", "--set", "iterations=-3", expected=1)
    assert str(wrong.exception).startswith("--set iterations: expected a whole number")
    wrong = run("continual", "--set", "colour=red", expected=1)
    assert "expected an option of ddfast distill as NAME=VALUE, got 'colour=red'" in str(wrong.exception)
