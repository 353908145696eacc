"""The evaluation protocol: what is trained, on what, and what is refused."""

import importlib
from dataclasses import replace

import pytest
import torch

from ddfast import SyntheticSet, networks, train_experts
from ddfast.data import Preprocessing, load_dataset
from ddfast.engine.students import GSAM
from ddfast.evaluation import (
    PROTOCOLS,
    Evaluation,
    evaluate,
    evaluate_full_data,
    evaluate_random_real,
    evaluate_snapshots,
)
from ddfast.runtime import seeds
from tests.conftest import uniform

schedule, trainings = (importlib.import_module(f"ddfast.evaluation.{name}") for name in ("schedule", "trainings"))


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def good(data):
    images, labels = data.random_real(3, seeds.generator(0))
    return SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing)


def test_evaluation_trains_from_scratch_and_tells_a_good_set_from_a_bad_one(data, good):
    bad = replace(good, labels=good.labels.roll(3))
    by_good, by_bad = (evaluate(s, data, num_eval=2, eval_epochs=60) for s in (good, bad))
    assert by_good.mean > 90 and by_bad.mean < 40
    assert by_good.n == 2 and len(by_good.accuracies["convnet"]) == 2
    assert evaluate(good, data, num_eval=2, eval_epochs=60).accuracies == by_good.accuracies


@pytest.mark.parametrize("which", ["hard", "soft", "random real"])
def test_networks_side_by_side_are_those_trained_one_by_one(data, good, monkeypatch, which):
    """In float64: in eight epochs of float32, single ReLUs that switch come to more than rounding."""
    trained = []
    original = schedule.train_networks

    def remember(nets, epochs_of, *arguments, **options):
        def in_float64(epoch_of):
            return lambda generator: (
                (x.double(), y.double() if y.is_floating_point() else y) for x, y in epoch_of(generator)
            )

        original(
            [net.double() for net in nets], [in_float64(epoch_of) for epoch_of in epochs_of], *arguments, **options
        )
        trained.append([torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets])
        for net in nets:
            net.float()  # as it is tested

    monkeypatch.setattr(schedule, "train_networks", remember)
    if which == "soft":
        good = replace(good, labels=4 * torch.nn.functional.one_hot(good.labels).float())
    options = {"num_eval": 3, "eval_epochs": 8, "dsa_strategy": "flip_scale_color", "eval_batch": 4}
    for at_once in (1, 2):
        if which == "random real":
            evaluate_random_real(data, 2, at_once=at_once, **options)
        else:
            evaluate(good, data, at_once=at_once, **options)
    alone, together = trained[:3], trained[3:]
    assert [len(nets) for nets in together] == [2, 1]
    for (expected,), got in zip(alone, [net for nets in together for net in nets], strict=True):
        assert got.dtype == torch.float64 and torch.allclose(got, expected, rtol=0, atol=1e-10)


def test_soft_labels_are_aimed_at(data, good):
    soft = replace(good, labels=20 * torch.nn.functional.one_hot(good.labels).float())
    options = {"num_eval": 1, "eval_epochs": 20, "networks": ("mlp",)}
    as_hard, as_soft = (evaluate(s, data, **options) for s in (good, soft))
    assert as_soft.accuracies == as_hard.accuracies  # softmax of 20 is 1 but for 1e-9
    flat = replace(good, labels=torch.zeros(9, 3))
    assert evaluate(flat, data, **options).mean < as_soft.mean


@pytest.mark.parametrize(
    "name, drops, loses",
    [("ddfast", (4,), False), ("mtt", (5,), True), ("datm", (5,), True), ("simplified", (4, 6), False)],
)
@pytest.mark.parametrize("sam_rho", [None, 0.1])
def test_training_is_sgd_with_momentum_decay_and_drops(data, good, monkeypatch, name, drops, loses, sam_rho):
    """Against the formula: 0.9, 5e-4, a tenth from half of the epochs; MTT's code a little later, without momentum."""
    trained = []
    original = networks.create
    monkeypatch.setattr(networks, "create", lambda *a, **k: trained.append(original(*a, **k)) or trained[-1])
    options = {"eval_epochs": 7, "eval_lr": 0.05, "eval_batch": 4, "sam_rho": sam_rho}
    evaluate(good, data, networks=("mlp",), num_eval=1, protocol=name, **options)
    generator = seeds.generator(0, "evaluate", "mlp", 0)
    net = original("mlp", generator=generator, **data.network_arguments)
    velocities = [torch.zeros_like(p) for p in net.parameters()]
    for epoch in range(7):
        if epoch in drops and loses:
            velocities = [torch.zeros_like(p) for p in net.parameters()]
        lr = 0.05 * 0.1 ** sum(drop <= epoch for drop in drops)
        for chosen in torch.randperm(9, generator=generator).split(4):

            def gradients(chosen=chosen):
                loss = torch.nn.functional.cross_entropy(net(good.images[chosen]), good.labels[chosen])
                return torch.autograd.grad(loss, list(net.parameters()))

            grads = gradients()
            if sam_rho is not None:
                before = [p.data.clone() for p in net.parameters()]
                length = sum((w * g).square().sum() for w, g in zip(before, grads, strict=True)).sqrt()
                for p, g in zip(net.parameters(), grads, strict=True):
                    p.data += sam_rho * p.data**2 * g / length
                grads = gradients()
                for p, w in zip(net.parameters(), before, strict=True):
                    p.data = w
            for p, grad, velocity in zip(net.parameters(), grads, velocities, strict=True):
                velocity.mul_(0.9).add_(grad + 5e-4 * p.data)
                p.data -= lr * velocity
    for p, expected in zip(trained[-1].parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


def test_protocols_are_the_papers(data, good, monkeypatch):
    """Epochs, minibatch, rate for a set of rate 0.03 and for real images, and the epochs at which the rate drops."""
    used = []
    monkeypatch.setattr(schedule, "train_networks", lambda nets, e, a, chosen, *_, **o: used.append((chosen, o)))
    good = replace(good, lr=torch.tensor(0.03))
    for name, epochs, batch, lr, drops in (
        ("ddfast", 1000, 256, 0.03, (500,)),
        ("mtt", 1001, 256, 0.03, (502,)),
        ("datm", 1001, 128, 0.03, (502,)),
        ("simplified", 200, 100, 0.01, (100, 150)),
        ("bptt", 1000, 256, 0.001, ()),
        ("dc", 301, 256, 0.01, (152,)),
        ("dsa", 1001, 256, 0.01, (502,)),
        ("idc", 1000, 64, 0.01, (666, 833)),
        ("ncfm", 2000, 64, 0.001, ()),
        ("ddranking", 1000, 128, 0.03, (500,)),
    ):
        options = {"num_eval": 1, "networks": ("mlp",), "protocol": name}
        evaluate(good, data, **options)
        evaluate(good, data, eval_lr=0.02, eval_epochs=3, eval_batch=5, **options)
        evaluate_random_real(data, 1, **options)
        (chosen, _), (given, _), (baseline, _) = used[-3:]
        assert (chosen.epochs, chosen.batch, chosen.drops(epochs)) == (epochs, batch, drops)
        published = PROTOCOLS[name].lr
        assert chosen.lr == pytest.approx(lr) and baseline == replace(chosen, lr=published or 0.01)
        assert chosen.optimizer == {"bptt": "adam", "ncfm": "adamw"}.get(name, "sgd")
        assert given == replace(chosen, lr=0.02, epochs=3, batch=5)
    evaluate_random_real(data, 1, num_eval=1, networks=("mlp",), protocol="recipe")  # which real images have none
    assert used[-1][0] == replace(PROTOCOLS["ddfast"], lr=0.01)
    assert all(options["sharpness"] is None for _, options in used)
    evaluate_random_real(data, 1, num_eval=1, networks=("mlp",), sam_rho=0.05)
    assert used[-1][1]["sharpness"] == GSAM(0.05, 0.0)


@pytest.mark.parametrize(
    ("counts", "percent"), [((100, 100, 100), 35.9), ((100, 100, 100), 0.0), ((240, 30, 30), 82.2)]
)
def test_a_network_at_chance_level_is_told_with_what_to_try(pair, good, caplog, counts, percent):
    """Chance is the largest class: those within a standard error of it are told, better ones are not."""
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    data = load_dataset((pair[0], (uniform(300, 1, 16, 16).float() / 2, labels)))
    found = {"mlp": percent, "convnet": 100 * max(counts) / 300 + 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "Judge", lambda *_: lambda net, what: {"accuracy": found[what.split()[0]]})
        result = evaluate(good, data, num_eval=2, eval_epochs=1, networks=tuple(found), eval_lr=0.3)
    assert result.of("mlp").mean == percent
    told = [record.getMessage() for record in caplog.records if "chance" in record.getMessage()]
    assert len(told) == 1
    share = max(counts) / 300
    chance = 100 * (share + (share * (1 - share) / 300) ** 0.5)
    assert told[0].startswith(f"mlp: accuracy {percent:.1f}% is at chance level ({chance:.1f}%)")
    assert result.at_chance == ["mlp"] and result.summary()["networks"]["mlp"]["at_chance"]
    assert "with learning rate 0.3; try another rate, such as 0.01, or auto (ddfast evaluate --eval-lr" in told[0]


def test_dropout_follows_the_seed_and_leaves_the_global_state_alone(data, good):
    before, options = (
        torch.get_rng_state(),
        {"num_eval": 1, "eval_epochs": 5, "networks": ("smallvgg:width=4",), "eval_lr": 0.05},
    )
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "Judge", lambda *_: lambda net, what: trained.append(net) or {"accuracy": 0.0})
        for seed in (0, 0, 1):
            evaluate(good, data, seed=seed, **options)
            torch.rand(3)  # another global state the next time
    weights = [torch.nn.utils.parameters_to_vector(net.parameters()) for net in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    torch.set_rng_state(before)
    evaluate(good, data, **options)
    evaluate_snapshots(data, "smallvgg:width=4", [weights[0].detach()])
    assert torch.equal(before, torch.get_rng_state())


def test_the_sets_own_augmentation_is_used_unless_told_otherwise(data, good):
    options = {"num_eval": 1, "eval_epochs": 5, "networks": ("mlp",), "eval_lr": 0.001}
    augmented = replace(good, dsa_strategy="color_crop_cutout_flip_scale_rotate")
    nets = [evaluate(good, data, **options), evaluate(augmented, data, dsa_strategy="none", **options)]
    assert nets[0] == nets[1]


def test_the_baseline_draws_other_real_images_for_every_network(data):
    result = evaluate_random_real(data, 1, num_eval=3, eval_epochs=2)
    assert result.n == 3 and evaluate_random_real(data, 1, num_eval=3, eval_epochs=2) == result
    drawn = [data.random_real(1, seeds.generator(0, "random_real", repeat))[0] for repeat in range(3)]
    assert not torch.equal(drawn[0], drawn[1])


def test_full_data_is_trained_anew_on_all_images(data):
    assert evaluate_full_data(data, networks=("mlp", "convnet:width=8"), epochs=40).mean > 90


def test_snapshots_of_batch_norm_networks_get_their_statistics(pair, data):
    name = "convnet:norm=batchnorm:width=16"
    store = train_experts(pair, num_experts=1, train_epochs=30, network=name, batch_train=6, dsa_strategy="none")
    assert evaluate_snapshots(data, name, [store.snapshot(0, 30)]).mean > 90


def test_networks_are_reported_apart_and_together():
    result = Evaluation({"a": [90.0, 94.0], "b": [50.0]})
    assert result.mean == pytest.approx(78.0) and result.n == 3
    assert (result.of("a").mean, result.of("b").std) == (92.0, 0.0)
    summary = result.summary()
    assert (summary["mean"], summary["n"], summary["networks"]["b"]["mean"]) == (92.0, 2, 50.0)


def test_the_sets_preprocessing_and_size_are_applied_to_the_test_images(pair, good):
    """A set that lives in another space: its images are no good where test images are merely normalised."""
    data = load_dataset(pair)
    other = Preprocessing((0.6,), (-0.3,))  # darker is larger
    raw = good.preprocessing.invert(good.images)
    moved = replace(good, images=other.apply(raw), preprocessing=other)
    assert evaluate(moved, pair, num_eval=1, eval_epochs=60).mean > 90
    assert evaluate(replace(moved, preprocessing=data.preprocessing), pair, num_eval=1, eval_epochs=60).mean < 60
    small = replace(good, images=torch.nn.functional.avg_pool2d(good.images, 2))
    assert evaluate(small, pair, num_eval=1, eval_epochs=60, networks=("mlp",)).mean > 90


def test_what_does_not_fit_together_is_refused(data, pair, good):
    with pytest.raises(ValueError, match=r"synthetic: expected images \[1, 16, 16\] as in custom, got \[1, 8, 16\]"):
        evaluate(replace(good, images=good.images[:, :, :8]), data)
    with pytest.raises(ValueError, match="synthetic: expected the classes of custom, 0, 1, 2; got a, b, c"):
        evaluate(replace(good, class_names=("a", "b", "c")), data)
    colour = replace(good, images=uniform(9, 3, 16, 16).float(), preprocessing=Preprocessing((0.5,) * 3, (1.0,) * 3))
    with pytest.raises(ValueError, match=r"synthetic: expected images \[1, 16, 16\] as in custom, got \[3, 16, 16\]"):
        evaluate(colour, pair)
    broken = good.images.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="images: expected finite values"):
        evaluate(replace(good, images=broken), data)
    for chosen in ((), "convnet"):
        with pytest.raises(ValueError, match=r"networks: expected a tuple of names out of convnet, resnet18, .* got"):
            evaluate(good, data, networks=chosen)
    for change, sentence in (
        ({"networks": ("convnet", "vgg")}, "network: expected one of convnet"),
        ({"eval_epochs": 0}, "eval_epochs: expected a whole number of at least 1"),
        ({"eval_lr": -1.0}, "eval_lr: expected a positive number, got -1.0"),
        ({"protocol": "dm"}, f"protocol: expected one of {', '.join(PROTOCOLS)}, got 'dm'"),
        ({"eval_lr": "best"}, "eval_lr: expected learned, auto or a positive number, got 'best'"),
        ({"eval_batch": 0}, "eval_batch: expected a whole number of at least 1"),
        ({"sam_rho": 0.0}, "sam_rho: expected a positive number, got 0.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(good, data, **change)
