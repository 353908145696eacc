"""The methods of the family: what each does differently, against its formula."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import ddfast
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.methods import METHODS, Resources, TrajectorySettings
from ddfast.methods.descent import Adam, Descent, Learned, Momentum, Verdict
from ddfast.runtime import seeds
from tests.conftest import OF_TRAJECTORIES, normal, relative_error

COMMON = {"syn_steps": 4, "expert_epochs": 1, "max_start_epoch": 2, "lr_img": 10.0, "lr_lr": 1e-3, "lr_teacher": 0.05}
SETTINGS = TrajectorySettings(**COMMON, dsa_strategy="none")


NETWORK = "convnet:width=8"


@pytest.fixture
def make(pair):
    """A method on random real images of the pair, two of each class."""
    options = {"num_experts": 2, "train_epochs": 3, "batch_train": 6, "train_lr": 0.05, "dsa_strategy": "none"}
    experts = ddfast.train_experts(pair, network=NETWORK, **options)
    data = load_dataset(pair)

    def made(name="mtt", device=None, cuda_graph=False, **options):
        settings = METHODS[name].Settings(**{"dsa_strategy": "none"} | COMMON | {"init": "real"} | options)
        images, labels = data.random_real(2, seeds.generator(0))
        if settings.labels != "hard":
            labels = normal(len(images), 3).float()
        images, lr = images.repeat(1, 1, settings.canvas, settings.canvas), torch.tensor(settings.lr_teacher)
        about = data.class_names, data.preprocessing, settings.dsa_strategy, settings.canvas
        synthetic = ddfast.SyntheticSet(images, labels, lr, *about)
        network = networks.create(NETWORK, generator=seeds.generator(1), **data.network_arguments)
        how = {"experts": experts, "cuda_graph": cuda_graph}
        resources = Resources(network, seeds.generator(2), torch.device(device or "cpu"), **how)
        return METHODS[name](settings, synthetic, resources)

    return made


def another_network():
    return networks.create(NETWORK, generator=seeds.generator(5), channels=1, num_classes=3, image_size=(16, 16))


def ends(method, record):
    store, epoch = method.segments.store, record["start_epoch"]
    return store.segment(record["expert"], epoch, epoch + method.settings.expert_epochs)


def gradients(method, before, record, **options):
    """Of a plain unroll: the loss, and its gradients in images and learning rate."""
    x, lr = before.images.clone().requires_grad_(), before.lr.clone().requires_grad_()
    start, target = ends(method, record)
    loss = ddfast.match_trajectory(
        method.student, start, target, x, before.targets, lr, syn_steps=method.settings.syn_steps, **options
    )
    return loss, *torch.autograd.grad(loss, (x, lr))


def moved(method, before):
    return before.images - method.current().images


@pytest.mark.parametrize("name", OF_TRAJECTORIES)
def test_every_method_takes_steps_and_goes_on_bit_for_bit(make, name):
    method = make(name)
    for _ in range(2):
        assert method.step()["updated"]
    state = method.state_dict()
    other = make(name)
    other.load_state_dict(state)
    assert method.step() == other.step()
    assert torch.equal(method.current().images, other.current().images)
    assert torch.equal(method.current().labels, other.current().labels)


OTHERWISE = [
    ("tesla", {"labels": "target"}),
    ("mtt", {"threshold": 1.0, "ema_decay": 0.9, "distance": "layerwise", "segments": 2}),
    ("mtt", {"distance": "cosine", "img_optimizer": "adam"}),
    ("texture", {"dsa_strategy": "flip_color", "syn_momentum": 0.5}),
    ("pad", {"lr_label": 1.0, "segments": 2, "drop_ratio": 0.5}),
]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("name, options", [(name, {}) for name in OF_TRAJECTORIES] + OTHERWISE)
def test_every_method_is_the_same_on_a_gpu(make, name, options, cuda_graph, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = options | {"batch_syn": 2, "syn_steps": 2}
    runs = [make(name, device="cpu", **options), make(name, device="cuda", cuda_graph=cuda_graph, **options)]
    for _ in range(3):
        records = [run.step() for run in runs]
        assert records[1]["loss"] == pytest.approx(records[0]["loss"], rel=1e-2)
    assert relative_error(runs[1].current().images, runs[0].current().images) < 1e-2  # float32, three steps


def test_student_momentum_distance_and_noise_are_those_of_the_settings(make):
    method = make(syn_momentum=0.5, distance="l1", lr_lr=0.0)
    before = method.current()
    record = method.step()
    loss, by_images, _ = gradients(method, before, record, momentum=0.5, distance="l1")
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert relative_error(moved(method, before), 10 * by_images) < 1e-4
    quiet, noisy = make(), make(start_noise=0.1)
    assert quiet.step()["loss"] != noisy.step()["loss"]
    start = torch.zeros(1, 1000)
    assert noisy._noisy(start).std() == pytest.approx(0.1, rel=0.1) and quiet._noisy(start) is start


def test_adam_is_torchs():
    x = normal(7).float().requires_grad_()
    lr = torch.tensor(0.5, requires_grad=True)
    descent = Descent([x, lr], [Learned(0.1, Adam((0.5, 0.999))), Learned(0.0, Momentum(0.5))], at=1)
    plain = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([plain], lr=0.1, betas=(0.5, 0.999))
    for seed in range(4):
        g = normal(7, seed=seed).float()
        now = descent.now()
        numbers, slots = descent.propose(now, descent.point.slots, torch.tensor(1.0), [g, torch.tensor(0.0)])
        descent.commit(now, slots, Verdict.read(numbers.tolist()))
        plain.grad = g
        optimizer.step()
    torch.testing.assert_close(descent.now()[0], plain)


def test_the_average_follows_the_images_after_every_iteration(make):
    method = make("ftd", ema_decay=0.9)
    expected = method.current().images
    for _ in range(3):
        method.step()
        expected = 0.9 * expected + 0.1 * method.current().images
    torch.testing.assert_close(method.averaged().images, expected)
    assert not torch.equal(method.averaged().images, method.current().images)
    assert make("mtt").averaged() is None
    with pytest.raises(ValueError, match=r"ema_decay: expected more than 0 and less than 1, got 1\.0"):
        make("ftd", ema_decay=1.0)


def test_the_gate_leaves_out_updates_above_the_threshold_and_counts_them(make):
    open_, shut = make(threshold=1e9), make(threshold=1e-9)
    before = shut.current()
    record = shut.step()
    assert (record["updated"], record["gated"], record["skipped"]) == (False, 1, 0)
    assert torch.equal(shut.current().images, before.images)
    assert open_.step()["updated"] and "gated" not in make().step()


def test_label_logits_descend_with_momentum_on_the_loss(make):
    method = make("datm", lr_label=3.0, lr_img=0.0, lr_lr=0.0)
    labels, expected = [method.current().labels], []
    for _ in range(2):
        before = method.current()
        record = method.step()
        logits = before.labels.clone().requires_grad_()
        loss = ddfast.match_trajectory(
            method.student, *ends(method, record), before.images, logits.softmax(1), before.lr, syn_steps=4
        )
        expected.append(torch.autograd.grad(loss, logits)[0])
        labels.append(method.current().labels)
    torch.testing.assert_close(labels[1] - labels[0], -3 * expected[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(labels[2] - labels[1], -3 * (expected[1] + 0.9 * expected[0]), rtol=1e-3, atol=1e-6)


def test_the_range_of_starts_expands_as_its_formula_says():
    settings = replace(SETTINGS, min_start_epoch=2, current_max_start_epoch=10, max_start_epoch=20, expansion_end=1000)
    for iteration in (0, 99, 100, 550, 999, 1000, 5000):
        expected = min(10 + int((20 - 10) * iteration / 1000), 20)
        assert settings.start_epochs(iteration) == (2, expected)
    assert replace(SETTINGS, min_start_epoch=1).start_epochs(7) == (1, 2)


def test_starts_are_drawn_from_their_range_and_the_count_is_resumed(make):
    options = {"min_start_epoch": 0, "current_max_start_epoch": 1, "max_start_epoch": 2, "expansion_end": 4}
    method = make(**options)
    drawn = [method.step()["start_epoch"] for _ in range(4)]
    assert drawn == [0] * 4
    other = make(**options)
    other.load_state_dict(method.state_dict())
    assert {other.step()["start_epoch"] for _ in range(8)} == {0, 1}


def test_starts_can_be_taken_in_turn(make):
    method = make(starts="in_turn", min_start_epoch=1, max_start_epoch=3)
    records = [method.step() for _ in range(5)]
    assert [(r["expert"], r["start_epoch"]) for r in records] == [(0, 1), (0, 2), (1, 1), (1, 2), (0, 1)]


def test_att_matches_the_nearest_state(make):
    method = make("att", syn_steps=6, lr_teacher=0.2, lr_lr=0.0)
    before = method.current()
    record = method.step()
    start, target = ends(method, record)
    states = ddfast.unroll(
        method.student, start, before.images, before.labels, before.lr, syn_steps=6, return_states=True
    )
    nearest = int((states[1:] - target).abs().sum(1).argmin()) + 1
    assert record["matched_step"] == nearest
    x = before.images.clone().requires_grad_()
    loss = ddfast.match_trajectory(method.student, start, target, x, before.labels, before.lr, syn_steps=nearest)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert relative_error(moved(method, before), 10 * torch.autograd.grad(loss, x)[0]) < 1e-3  # float32


def test_att_chooses_for_each_segment_and_not_always_the_last(make):
    method = make("att", syn_steps=10, segments=4, lr_teacher=0.02)
    chosen = {step for _ in range(4) for step in method.step()["matched_step"]}
    assert len(chosen) > 1 and chosen <= set(range(1, 10))


def test_tesla_descends_on_the_detached_adjoint(make):
    method = make("tesla", lr_lr=0.0)
    before = method.current()
    record = method.step()
    detached = gradients(method, before, record, adjoint=ddfast.adjoints.DetachedUnroll())[1]
    exact = gradients(method, before, record)[1]
    assert relative_error(moved(method, before), 10 * detached) < 1e-4
    assert relative_error(moved(method, before), 10 * exact) > 1e-3
    assert METHODS["tesla"].gradient.startswith("approximate") and METHODS["mtt"].gradient == "exact"
    assert "twice that of the published code" in METHODS["tesla"].gradient


def test_tesla_takes_labels_from_the_target_network(make):
    method = make("tesla", labels="target", lr_lr=0.0)
    before = method.current()
    record = method.step()
    network = another_network()
    start, target = ends(method, record)
    torch.nn.utils.vector_to_parameters(target, network.parameters())
    logits = network(before.images).detach()
    torch.testing.assert_close(method.current().labels, logits, rtol=1e-4, atol=1e-5)
    loss = ddfast.match_trajectory(
        method.student, start, target, before.images, logits.softmax(1), before.lr, syn_steps=4
    )
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_labels_of_the_target_stay_where_nothing_is_updated(make):
    method = make("tesla", labels="target", threshold=1e-9)
    before = method.current()
    assert method.step()["gated"] == 1
    assert torch.equal(method.current().labels, before.labels)


def weighted_loss(method, record, before, kept):
    start, target = ends(method, record)
    student = ddfast.unroll(method.student, start, before.images, before.labels, before.lr, syn_steps=4)
    mask = kept(student, target)
    return (((student - target) ** 2)[mask].sum() / ((start - target) ** 2)[mask].sum()).item(), mask


def test_pp_leaves_out_parameters_whose_ratio_is_small(make):
    method = make("pp", pruning_threshold=0.9)
    before = method.current()
    record = method.step()
    loss, mask = weighted_loss(method, record, before, lambda a, b: torch.minimum(a / b, b / a) > 0.9)
    assert record["loss"] == pytest.approx(loss, rel=1e-4) and 0.05 < mask.float().mean() < 0.95


@pytest.mark.parametrize("name", ["pad", "edf"])
def test_pad_leaves_out_the_parameters_that_are_nearest(make, name):
    method = make(name, drop_ratio=0.6, labels="hard", lr_label=0.0)
    before = method.current()
    record = method.step()

    def farthest(a, b):
        squares = (a - b) ** 2
        return squares > squares.sort()[0][int(0.6 * len(squares)) - 1]

    loss, mask = weighted_loss(method, record, before, farthest)
    assert record["loss"] == pytest.approx(loss, rel=1e-4)
    assert mask.float().mean() == pytest.approx(0.4, abs=0.01)
    plain = make(name, drop_ratio=0.0, labels="hard", lr_label=0.0).step()["loss"]
    assert plain == pytest.approx(make("mtt").step()["loss"]) and plain != pytest.approx(loss)


def test_textures_are_learned_all_over_and_seen_in_parts(make):
    method = make("texture", syn_steps=8, lr_img=1e3)
    before = method.current()
    assert before.images.shape[2:] == (32, 32) and before.image_size == (16, 16)
    for _ in range(4):
        method.step()
    changed = (method.current().images != before.images).flatten(1).float().mean(1)
    assert (changed > 0.95).all()
    with pytest.raises(ValueError, match="canvas: expected at least 2 for textures, got 1"):
        make("texture", canvas=1)


def test_the_simplified_variant_is_as_described(make):
    method = make("simplified", max_start_epoch=3, lr_img=0.1, lr_lr=0.0, lr_teacher=0.01)
    before = method.current()
    record = method.step()
    assert record["start_epoch"] == 1 and record["lr"] == pytest.approx(0.01)
    start, target = ends(method, record)
    theta, velocity = start, torch.zeros_like(start)
    net = another_network()
    for _ in range(4):
        torch.nn.utils.vector_to_parameters(theta, net.parameters())
        loss = cross_entropy(net(before.images), before.labels)
        g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(net.parameters()))])
        velocity = 0.5 * velocity + g
        theta = theta - 0.01 * velocity
    assert record["loss"] == pytest.approx((theta - target).square().sum().item(), rel=1e-4)
    assert (moved(method, before).abs() <= 0.1 * 1.001).all()  # Adam's first step is the rate, or 0


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("mtt", {"labels": "target"}, "labels: expected hard or soft for this method, got 'target'"),
        ("simplified", {"labels": "soft"}, "labels: expected hard for this method, got 'soft'"),
        ("mtt", {"lr_label": 1.0}, "lr_label: hard labels are not learned; expected 0, got 1.0"),
        ("tesla", {"labels": "target", "lr_label": 1.0}, "lr_label: target labels are not learned"),
        ("tesla", {"labels": "target", "segments": 2}, "need segments 1 and canvas 1, got segments 2, canvas 1"),
        ("mtt", {"min_start_epoch": 2}, "min_start_epoch: expected 0 to below max_start_epoch, 2, got 2"),
        ("datm", {"current_max_start_epoch": 3, "expansion_end": 5}, "current_max_start_epoch: .* got 3"),
        ("datm", {"current_max_start_epoch": 1}, "the start epochs would never expand from 1 to 2"),
        ("datm", {"expansion_end": 5}, "the start epochs have nothing to expand from; .* below max_start_epoch, 2"),
        ("datm", {"threshold": 0.0}, "threshold: expected a positive number, got 0.0"),
        ("mtt", {"distance": "l3"}, "distance: expected one of squared, l1, .*, got 'l3'"),
        ("mtt", {"start_noise": -1.0}, "start_noise: expected a number from 0 to 1e[+]30, got -1.0"),
        ("mtt", {"syn_momentum": 1.0}, "syn_momentum: expected a number from 0 to below 1, got 1.0"),
        ("mtt", {"starts": "any"}, "starts: expected one of random, in_turn, got 'any'"),
        ("mtt", {"img_optimizer": "lion"}, "img_optimizer: expected one of sgd, adam, got 'lion'"),
        ("pp", {"pruning_threshold": 1.0}, "pruning_threshold: expected a number from 0 to below 1, got 1.0"),
        ("pad", {"drop_ratio": 1.0}, "drop_ratio: expected a number from 0 to below 1, got 1.0"),
        ("mtt", {"canvas": 0}, "canvas: expected a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(name, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        METHODS[name].Settings(**COMMON | change)
