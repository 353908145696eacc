"""DC and DSA: the image gradient against plain double backpropagation, the loops, batch norm, whole jobs."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.engine.students import student_of
from ddfast.methods import DC, DSA, Resources
from ddfast.methods.gradient.batch_norm import frozen_statistics
from ddfast.methods.gradient.dc import DCSettings, DSASettings, loops_of
from ddfast.methods.gradient.distance import DISTANCES, GradientDistance
from ddfast.networks import create
from tests.conftest import interrupt_after, normal, relative_error

SMALL = {"iterations": 3, "num_eval": 1, "eval_epochs": 2, "device": "cpu", "network": "mlp"}


def problem(name, settings, pair):
    """A method in float64 on a small network."""
    data = load_dataset(pair)
    generator = torch.Generator().manual_seed(0)

    def build(drawn):
        return create(name, **data.network_arguments, generator=drawn).double()

    images, labels = normal(6, 1, 16, 16), torch.arange(6) % 3
    synthetic = SyntheticSet(images, labels, None, data.class_names, data.preprocessing, settings.dsa_strategy)
    method = (DSA if isinstance(settings, DSASettings) else DC)(
        settings, synthetic, Resources(build(generator), generator, build, data=data)
    )
    take = method.real._batches.take
    method.real._batches.take = lambda indices: tuple(t.double() if t.is_floating_point() else t for t in take(indices))
    return method


def plain_distance(kind, g, h):
    """As the papers' code has it, layer by layer and row by row."""
    if kind == "mse":
        return sum(((a - b) ** 2).sum() for a, b in zip(g, h, strict=True))
    if kind == "l1":
        return sum((a - b).abs().sum() for a, b in zip(g, h, strict=True))
    if kind == "cosine":
        rows = [tuple(torch.cat([t.reshape(-1) for t in x]) for x in (g, h))]
    else:
        layers = [(a, b) for a, b in zip(g, h, strict=True) if a.dim() > 1]
        rows = [(x.reshape(-1), y.reshape(-1)) for a, b in layers for x, y in zip(a, b, strict=True)]
    return sum(1 - x @ y / (x.norm() * y.norm() + 1e-6) for x, y in rows)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("name", ["convnet:width=8:depth=2", "mlp", "convnet:width=8:depth=2:norm=batchnorm"])
@pytest.mark.parametrize("strategy", ["none", "dsa:flip_scale_color"])
def test_the_image_gradient_is_that_of_double_backpropagation(kind, name, strategy, pair, monkeypatch):
    settings = DSASettings(gradient_distance=kind, batch_real=5, dsa_strategy=strategy)
    method = problem(name, settings, pair)
    net, images = method.new_network().train(), method.learned.take().values[0]
    labels, seen = torch.arange(6) % 3, []
    monkeypatch.setattr("ddfast.methods.gradient.matching.siamese", recorded(seen))
    members = [(k, (labels == k).nonzero()[:, 0]) for k in range(3)]
    loss, gradient = method.matched(net, GradientDistance(net, kind), images, members)

    leaf, total = images.detach().requires_grad_(), 0
    for k, (real, draws) in enumerate(seen):
        with frozen_statistics_of(net):
            synthetic = draws(leaf[labels == k])
            g, h = (
                torch.autograd.grad(
                    cross_entropy(net(x), torch.full((len(x),), k)), list(net.parameters()), create_graph=True
                )
                for x in (synthetic, real)
            )
        total = total + plain_distance(kind, g, [t.detach() for t in h])
    (expected,) = torch.autograd.grad(total, leaf)
    assert len(seen) == 3 and relative_error(loss, total.detach()) < 1e-9
    assert relative_error(gradient, expected) < 1e-9


@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize("name", ["convnet:width=8:depth=2", "mlp"])
def test_classes_at_once_change_nothing(name, at_once, pair):
    members = [(0, torch.tensor([0, 3])), (1, torch.tensor([1, 4])), (2, torch.tensor([2]))]
    results = []
    for classes_at_once in (1, at_once):
        method = problem(name, DCSettings(batch_real=5, classes_at_once=classes_at_once), pair)
        net, images = method.new_network().train(), method.learned.take().values[0]
        results.append(method.matched(net, method.distance_of(net), images, members))
    (loss, gradient), (loss_, gradient_) = results
    assert relative_error(loss_, loss) < 1e-9 and relative_error(gradient_, gradient) < 1e-9
    assert (gradient[5] == 0).all() and gradient[:5].flatten(1).any(1).all()


def test_a_memory_budget_says_how_many_classes_go_at_once(pair, monkeypatch):
    method, sizes = problem("convnet:width=8:depth=2", DCSettings(batch_real=5), pair), []
    distances = method._distances
    monkeypatch.setattr(method, "_distances", lambda *given: sizes.append(len(given[-1])) or distances(*given))
    net, images = method.new_network().train(), method.learned.take().values[0]
    members = [(k, torch.tensor([k, k + 3])) for k in range(3)]
    student = student_of(net, "default", images.shape[1:])
    one = student.step_bytes(torch.Size((5, 1, 16, 16)), 1, torch.float32)
    needed = max(one.grad + one.kept, one.kept + one.grad_jvp_of_kept)
    for budget in (None, needed // 2, 2 * needed, 100 * needed):
        method.resources = replace(method.resources, memory_budget=budget)
        method.matched(net, method.distance_of(net), images, members)
    assert sizes == [1, 1, 1, 1, 1, 1, 2, 1, 3]


def recorded(seen):
    """siamese, which leaves the real minibatch and what happened to the synthetic one."""
    from ddfast.methods.siamese import siamese

    def both(augment, real, synthetic, generator):
        state = generator.get_state()
        real_, synthetic_ = siamese(augment, real, synthetic, generator)

        def again(x):
            drawn = torch.Generator()
            drawn.set_state(state)
            return siamese(augment, real, x, drawn)[1]

        seen.append((real_, again))
        return real_, synthetic_

    return both


def frozen_statistics_of(net):
    """Batch norm as the method left it after its look at real images."""
    layers = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.eval()
    return torch.enable_grad()


def test_a_distance_of_one_gradient_to_itself_is_nothing_and_its_slope_is_finite():
    net = create(
        "mlp", channels=1, num_classes=3, image_size=(8, 8), generator=torch.Generator().manual_seed(0)
    ).double()
    g = normal(sum(p.numel() for p in net.parameters()))
    for kind in DISTANCES:
        distance, slope = GradientDistance(net, kind)(g, g)
        assert distance.abs() < 1e-3 and slope.isfinite().all()
        _, slope = GradientDistance(net, kind)(torch.zeros_like(g), g)
        assert slope.isfinite().all()


def test_the_loops_are_the_published_ones_and_near_to_them_elsewhere():
    assert [loops_of(ipc) for ipc in (1, 10, 20, 30, 40, 50)] == [
        (1, 1),
        (10, 50),
        (20, 25),
        (30, 20),
        (40, 15),
        (50, 10),
    ]
    assert (
        loops_of(5) == (5, 50) and loops_of(25) == (25, 20) and loops_of(200) == (50, 10) and loops_of(0.3) == (1, 50)
    )


@pytest.mark.parametrize("outer, inner", [(1, 1), (3, 2)])
def test_an_iteration_makes_as_many_updates_and_trains_between_them(outer, inner, pair, monkeypatch):
    settings = DCSettings(outer_loop=outer, inner_loop=inner, batch_real=4, batch_net=4)
    method, trained, updates = problem("mlp", settings, pair), [], []
    train, update = method._train, method.learned.update
    monkeypatch.setattr(
        method, "_train", lambda net, epochs, image: trained.append(epochs) or train(net, epochs, image)
    )
    monkeypatch.setattr(method.learned, "update", lambda *given: updates.append(1) or update(*given))
    before = method.current().images
    record = method.step()
    assert len(updates) == outer and trained == [inner] * (outer - 1)
    assert record["updated"] and record["loss"] > 0 and not torch.equal(method.current().images, before)


def test_an_interrupted_iteration_of_several_updates_did_not_happen(pair, monkeypatch):
    method = problem("mlp", DCSettings(outer_loop=2, inner_loop=1, batch_real=4), pair)
    before, drawn = method.current().images, method.generator.get_state()

    def interrupt(*_):
        assert not torch.equal(method.current().images, before)  # the first update is made
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(method, "_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            method.step()
    assert torch.equal(method.current().images, before) and torch.equal(method.generator.get_state(), drawn)
    assert method.step()["updated"]


def test_batch_norm_is_frozen_by_statistics_of_all_classes():
    net = create(
        "convnet:width=8:depth=2:norm=batchnorm", channels=1, num_classes=3, image_size=(8, 8),
        generator=torch.Generator().manual_seed(0),
    ).train()  # fmt: skip
    layer = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = layer.running_mean.clone()
    with frozen_statistics(net, lambda: normal(6, 1, 8, 8).float()):
        assert not layer.training and not torch.equal(layer.running_mean, before)
    assert layer.training


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_it_distils_resumes_and_says_its_options(method, pair, tmp_path):
    options = {"method": method, "outer_loop": 2, "inner_loop": 1, "batch_real": 4, **SMALL}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **options)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)
    assert whole.synthetic.lr is None and whole.accuracy.keys() == {"distilled", "random_real"}


def test_it_learns(tmp_path):
    options = SMALL | {"iterations": 15, "num_eval": 2, "eval_epochs": 100, "network": "convnet:width=16"}
    done = ddfast.distill("digits", method="dc", init="real", output=tmp_path, batch_real=64, **options)
    losses = [record["loss"] for record in done.history]
    assert losses[-1] < 0.8 * losses[0]
    assert done.accuracy["distilled"]["mean"] > done.accuracy["random_real"]["mean"]


def test_soft_labels_are_refused_before_anything_starts(pair):
    with pytest.raises(ValueError, match="labels: expected hard for this method, got 'soft'"):
        ddfast.distill(pair, method="dc", labels="soft", **SMALL)
    with pytest.raises(ValueError, match="gradient_distance: "):
        ddfast.distill(pair, method="dc", gradient_distance="euclid", **SMALL)
    assert replace(DCSettings(), outer_loop=3).outer_loop == 3
