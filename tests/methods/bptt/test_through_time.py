"""Back-propagation through time: a step's gradient against a plain loop, windows, labels, rates, whole jobs."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.data.recipe import Recipe
from ddfast.methods import METHODS, Resources
from ddfast.methods.bptt.labels import on_simplex
from ddfast.methods.bptt.ld import LDSettings
from ddfast.networks import create
from tests.conftest import normal, relative_error, uniform

EXACT = 1e-9
K, IMAGES = 3, 6
NETWORK = "convnet:width=8:depth=2"
SMALL = {"iterations": 2, "num_eval": 1, "eval_epochs": 2, "device": "cpu", "network": NETWORK, "batch_real": 6}


def method_on(pair, name, network=NETWORK, soft=False, **settings):
    """A method in float64 on six images of three classes."""
    data, generator = load_dataset(pair), torch.Generator().manual_seed(0)
    settings = {"batch_real": 7, "total_steps": 4, "dsa_strategy": "none", "init": "noise"} | settings
    settings |= {"labels": "soft", "lr_label": 0.1} if soft else {}
    settings = METHODS[name].Settings(**settings)

    def build(drawn):
        return create(network, **data.network_arguments, generator=drawn).double()

    labels = (
        settings.FIRST_LOGIT * torch.eye(K).double()[torch.arange(IMAGES) % K] if soft else torch.arange(IMAGES) % K
    )
    lr = torch.tensor(settings.lr_teacher, dtype=torch.float64)
    synthetic = SyntheticSet(normal(IMAGES, 1, 16, 16), labels, lr, data.class_names, data.preprocessing)
    method = METHODS[name](settings, synthetic, Resources(build(generator), generator, build, data=data, iterations=9))
    take = method.real._batches.take
    method.real._batches.take = lambda indices: tuple(t.double() if t.is_floating_point() else t for t in take(indices))
    return method


def caught_gradients(method):
    """What the method hands to its update, of a step."""
    caught, update = [], method.learned.update

    def catch(taken, loss, gradients, labels=None):
        caught.extend([loss, list(gradients)])
        return update(taken, loss, gradients, labels)

    method.learned.update = catch
    record = method.step()
    return caught[0], caught[1], record


def plain(net, parameters, images, labels):
    return cross_entropy(functional_call(net, parameters, (images,)), labels)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name, window", [("bptt", None), ("rat_bptt", 2)])
def test_the_gradient_is_that_of_a_plain_loop_of_adam(pair, name, window, soft):
    method = method_on(pair, name, soft=soft, window=window, lr_lr=0.1, clip=None, image_norm="none")
    before = method.generator.get_state()
    start = method.learned.take()
    leaves = [value.detach().clone().requires_grad_() for value in start.values]
    loss, gradients, record = caught_gradients(method)

    method.generator.set_state(before)
    net = method.network()
    window = method.window(net, None)
    assert record["window"] == window.end - window.begin and record["steps"] == window.end
    images, lr = leaves[0], leaves[method.learned.lr_at]
    labels = leaves[method.learned.labels_at] if soft else start.labels
    theta = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    m, v = {n: 0 for n in theta}, {n: 0 for n in theta}
    for k in range(1, window.end + 1):
        if k == window.begin + 1:
            theta = {n: p.detach().requires_grad_() for n, p in theta.items()}
            m, v = ({n: x if isinstance(x, int) else x.detach() for n, x in held.items()} for held in (m, v))
        slopes = torch.autograd.grad(plain(net, theta, images, labels), list(theta.values()), create_graph=True)
        for (n, p), g in zip(list(theta.items()), slopes, strict=True):
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.999 * v[n] + 0.001 * g * g
            root = torch.where(v[n] > 0, torch.where(v[n] > 0, v[n], 1.0).sqrt(), 0.0) / (1 - 0.999**k) ** 0.5
            theta[n] = p - lr * m[n] / (1 - 0.9**k) / (root + 1e-8)
    expected = plain(net, theta, *method.draw_real())
    assert relative_error(loss, expected.detach()) < EXACT
    for got, wanted in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        assert relative_error(got, wanted) < EXACT


def test_windows_are_drawn_within_their_bounds(pair):
    method = method_on(pair, "rat_bptt", total_steps=9, window=4, min_steps=2)
    drawn = {method.window(None, None) for _ in range(100)}
    assert {(w.begin, w.end) for w in drawn} == {(b, b + 4) for b in range(2, 6)}
    last = method_on(pair, "rat_bptt", total_steps=9, window=4, windows="last")
    assert (last.window(None, None).begin, last.window(None, None).end) == (5, 9)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_windows_of_at_bptt_follow_its_stage(pair, stage):
    method = method_on(pair, "at_bptt", total_steps=10, window=4, reach=2)
    method._stage = stage
    for _ in range(20):
        net = method.network()
        window = method.window(net, method.student_of(net))
        length = window.end - window.begin
        assert 0 <= window.begin < window.end <= 10
        assert length == (6 if stage == 1 else 2) if stage else 2 <= length <= 6


def test_stages_of_at_bptt_end_when_accuracy_no_longer_rises(pair, monkeypatch):
    method = method_on(pair, "at_bptt", total_steps=10, window=4, reach=2, batch_real=1000)
    reached = []
    for _ in range(12):
        net = method.network()
        last = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        reached.append(method.after(net, last * 0, method.draw_real())["stage"])  # the same accuracy every time
    assert reached[0] == 1 and sorted(reached) == reached and reached[-1] == 3


def test_the_policy_of_at_bptt_pp_is_where_gradients_are_large_while_they_are(pair):
    method = method_on(pair, "at_bptt_pp", soft=True, total_steps=8, window=3, reach=2, policy_temperature=0.01)
    rising = torch.arange(8.0).double()
    method.probe = lambda net, student, steps: rising + 1  # the first mean is as any other
    method.window(None, None)
    method.probe = lambda net, student, steps: 2 * rising + 2  # larger than any so far: b is 1
    assert {method.window(None, None).end for _ in range(5)} == {8}
    method.probe = lambda net, student, steps: 0.1 * rising  # smaller: b is −1
    assert {method.window(None, None).end for _ in range(5)} == {1}
    assert abs(float(method._reference.sum()) - 1) < EXACT


def test_the_probe_gives_the_norms_of_an_ordinary_training(pair):
    method = method_on(pair, "at_bptt", total_steps=3, window=2, reach=1, inner_optimizer="sgd", lr_teacher=0.1)
    net = method.network()
    norms = method.probe(net, method.student_of(net), 3)
    images, labels = method.learned.take().values[0], method.learned.take().labels
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for norm in norms:
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert relative_error(norm, gradients.norm()) < EXACT
        optimizer.step()


def test_long_gradients_are_cut_to_the_average_of_norms(pair):
    method = method_on(pair, "bptt", clip=2.0)
    long, short = [normal(2, 3)], [normal(2, 3)]
    first = float(short[0].norm())
    method._clip(short)
    assert abs(method._norm - first) < EXACT
    long = [100 * long[0]]
    method._clip(long)
    average = 0.9 * first + 0.1 * 100 * first
    assert abs(float(long[0].norm()) - 2 * average) < 1e-6 * average
    method._clip([torch.full((2, 3), float("nan"))])
    assert abs(method._norm - average) < EXACT


@pytest.mark.parametrize("norms", ["none", "start", "always"])
def test_images_have_norm_1_as_long_as_it_is_asked_for(pair, norms):
    method = method_on(pair, "bptt", image_norm=norms)

    def deviation():
        return (method.current().images.flatten(1).norm(dim=1) - 1).abs().max()

    assert (deviation() < EXACT) == (norms != "none")
    method.step()
    assert (deviation() < EXACT) == (norms == "always")


def test_learned_labels_stay_probabilities(pair):
    method = method_on(pair, "bptt", soft=True)
    first = method.current().targets
    method.step()
    targets, raw = method.current().targets, method.learned.take().values[method.learned.labels_at]
    assert (raw >= 0).all() and (raw.sum(1) - 1).abs().max() < EXACT
    assert relative_error(targets, raw) < 1e-7 and (targets - first).abs().max() > 1e-3
    weights = torch.tensor([[-1.0, 0.5, 3.0], [-1.0, -2.0, 0.0]])
    assert torch.allclose(on_simplex(weights), torch.tensor([[0, 1 / 3, 2 / 3], [1 / 3, 1 / 3, 1 / 3]]))


def test_real_images_go_through_in_passes_of_a_gibibyte(pair, monkeypatch):
    method = method_on(pair, "bptt")
    student = method.student_of(method.network())
    assert method.real_at_once(student) == 256
    one = student.step_bytes(torch.Size((16, 1, 16, 16)), 1, torch.float32).grad / 16
    monkeypatch.setattr("ddfast.methods.bptt.through_time.REAL_BYTES", int(3.5 * one))
    assert method.real_at_once(student) == 3


def test_minibatches_have_as_many_of_each_class_that_is_drawn(pair):
    method = method_on(pair, "bptt", per_class=1, classes_per_step=2)
    batches = method.draw_inner(50).batches
    assert batches.shape == (50, 2)
    classes = method.current().classes[batches]
    assert (classes[:, 0] != classes[:, 1]).all() and set(classes.flatten().tolist()) == {0, 1, 2}
    assert method_on(pair, "bptt").draw_inner(5).batches is None


def test_dd_parts_its_images_and_learns_a_rate_of_each_step(pair):
    method = method_on(pair, "dd", total_steps=4, distill_epochs=2, lr_teacher=0.05)
    recipe = method.current().recipe
    assert relative_error(recipe.rates, torch.full((4,), 0.05)) < 1e-6
    assert torch.equal(recipe.steps[:2], recipe.steps[2:])
    assert sorted(recipe.steps[:2].flatten().tolist()) == list(range(IMAGES))
    assert all(sorted(method.current().labels[row].tolist()) == [0, 1, 2] for row in recipe.steps)
    method.step()
    assert (method.current().recipe.rates != recipe.rates).all()


@pytest.mark.parametrize("start", ["random", "fixed"])
def test_a_set_of_dd_is_saved_with_its_recipe_and_evaluated_by_it(pair, tmp_path, start):
    options = {"total_steps": 6, "distill_epochs": 3, "network_start": start, "protocol": "recipe", "ipc": 2}
    result = ddfast.distill(pair, method="dd", **SMALL | options, output=tmp_path / "run")
    loaded = SyntheticSet.load(tmp_path / "run" / "synthetic")
    assert torch.equal(loaded.recipe.rates, result.synthetic.recipe.rates)
    assert (loaded.recipe.start is None) == (start == "random")
    assert result.accuracy["distilled"]["n"] == 1
    again = ddfast.evaluate(loaded, pair, protocol="recipe", num_eval=2)
    if start == "fixed":  # nothing is drawn
        assert len({*next(iter(again.accuracies.values()))}) == 1
    with pytest.raises(ValueError, match="protocol: the set has no recipe"):
        ddfast.evaluate(replace(loaded, recipe=None), pair, protocol="recipe", num_eval=1)
    if start == "fixed":
        with pytest.raises(ValueError, match="starts with another network's parameters"):
            ddfast.evaluate(loaded, pair, protocol="recipe", num_eval=1, networks=["mlp"])


@pytest.mark.parametrize(
    "recipe, sentence",
    [
        (Recipe(torch.zeros(2, 2), torch.ones(2)), "expected steps int64"),
        (Recipe(torch.full((2, 2), 9), torch.ones(2)), "expected steps with images 0 to 5, got 9"),
        (Recipe(torch.zeros(2, 2).long(), torch.ones(3)), "expected a finite rate for each of 2 steps"),
        (Recipe(torch.zeros(2, 2).long(), torch.ones(2), torch.ones(1, 2)), "expected a start"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(recipe, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe.check(IMAGES)


def test_a_step_of_sgd_is_what_labels_are_learned_through(pair):
    method = method_on(pair, "ld", soft=True, total_steps=1, init="real", lr_teacher=0.1, batch_base=4)
    before = method.generator.get_state()
    labels = method.learned.take().values[method.learned.labels_at].detach().clone().requires_grad_()
    loss, gradients, _ = caught_gradients(method)
    assert not gradients[0].any()

    method.generator.set_state(before)
    net = method.new_network().train()
    images = method.learned.take().values[0]
    chosen = torch.randperm(IMAGES, generator=method.generator)[:4]
    theta = dict(net.named_parameters())
    slopes = torch.autograd.grad(plain(net, theta, images[chosen], labels[chosen]), theta.values(), create_graph=True)
    after = {n: p - 0.1 * g for (n, p), g in zip(theta.items(), slopes, strict=True)}
    expected = plain(net, after, *method.draw_real())
    assert relative_error(loss, expected.detach()) < EXACT
    assert relative_error(gradients[method.learned.labels_at], torch.autograd.grad(expected, labels)[0]) < EXACT


def test_the_ridge_is_solved_for_and_its_loss_is_differentiated_in_the_labels(pair):
    method = method_on(pair, "ld", soft=True, total_steps=1, init="real", label_form="ridge")
    method._state = method._begun()
    net, labels = method.new_network(), uniform(4, K, seed=5).requires_grad_()
    images, classes = normal(5, 1, 16, 16, seed=2), torch.tensor([0, 1, 2, 0, 1])

    def loss(labels):
        return method._through_ridge(net, normal(4, 1, 16, 16), labels, images, classes)[0]

    scale = method._state["scale"]
    value = loss(labels)
    assert method._state["scale"] != scale  # the scale of logits learns
    (gradient,) = torch.autograd.grad(value, labels)
    direction, h = normal(4, K, seed=8), 1e-3
    ends = []
    for sign in (1, -1):
        method._state = method._state | {"scale": scale}
        ends.append(float(loss(labels.detach() + sign * h * direction).double()))
    assert abs((ends[0] - ends[1]) / (2 * h) - float((gradient * direction).sum())) < 1e-3


def test_a_network_of_ld_begins_anew_when_its_loss_no_longer_falls(pair):
    method = method_on(pair, "ld", soft=True, total_steps=1, init="real", patience=2)
    method._state = method._begun() | {"k": 7}
    assert [method._count(loss) for loss in (3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)][:6] == [0] * 6
    counts = [method._count(1.0) for _ in range(3)]
    assert 7 in counts and method._state["k"] == 0
    assert method.at_end(None) == {"steps_to_train": 7.0}


@pytest.mark.parametrize(
    "name, settings, sentence",
    [
        ("bptt", {"syn_momentum": 0.9}, "syn_momentum: is of inner_optimizer sgd"),
        ("rat_bptt", {"total_steps": 50}, "total_steps: expected at least 60"),
        ("at_bptt", {"window": 10, "reach": 10}, "reach: expected less than the window, 10, got 10"),
        ("bptt", {"parameterisation": "tiles"}, "image_norm: is of pixels"),
        ("dd", {"total_steps": 31}, "total_steps: expected a multiple of distill_epochs, 3, got 31"),
        ("ld", {"labels": "hard"}, "labels: expected soft"),
        ("ld", {"lr_img": 1.0}, "lr_img: images stay as they are"),
        ("ld", {"total_steps": 2}, "total_steps: expected 1, got 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        METHODS[name].Settings(**settings)
    assert LDSettings().labels == "soft"


def test_images_that_do_not_part_evenly_are_refused_before_any_work(pair, tmp_path):
    with pytest.raises(ValueError, match="part 6 images into 4 groups, which does not come out even"):
        ddfast.distill(pair, method="dd", ipc=2, total_steps=12, distill_epochs=3, output=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
