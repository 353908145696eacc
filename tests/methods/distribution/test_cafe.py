"""CAFE: its loss against the formula on plain layers, its loops, its rate, whole jobs."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, cross_entropy

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.engine.students.taps import taps_of
from ddfast.methods import CAFE, Resources
from ddfast.methods.distribution.cafe import CAFESettings
from ddfast.networks import create
from tests.conftest import interrupt_after, normal, relative_error

SMALL = {"method": "cafe", "iterations": 3, "num_eval": 1, "eval_epochs": 2, "device": "cpu", "batch_real": 4}
SMALL |= {"network": "convnet:width=8", "most_steps": 2, "most_epochs": 2}


def method_on(pair, name="convnet:width=8:depth=2", iterations=10, **settings):
    data, generator = load_dataset(pair), torch.Generator().manual_seed(0)

    def build(drawn):
        return create(name, **data.network_arguments, generator=drawn).double()

    synthetic = SyntheticSet(
        normal(6, 1, 16, 16), torch.arange(6) % 3, None, data.class_names, data.preprocessing
    )  # fmt: skip
    resources = Resources(build(generator), generator, build, data=data, iterations=iterations)
    method = CAFE(CAFESettings(batch_real=5, **settings), synthetic, resources)
    take = method.real._batches.take
    method.real._batches.take = lambda indices: tuple(t.double() if t.is_floating_point() else t for t in take(indices))
    return method


def plain_taps(net, images):
    """Of the ConvNet, layer by layer."""
    taps, x = [], images
    layers = list(net.features)
    for convolution, norm in zip(layers[::4], layers[1::4], strict=True):
        z = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
        taps.append(torch.nn.functional.group_norm(z, z.shape[1], norm.weight, norm.bias, norm.eps).relu())
        x = avg_pool2d(taps[-1], 2)
    return [*taps, x.flatten(1)]


def test_taps_are_the_maps_after_activations_and_the_features(pair):
    method = method_on(pair)
    net, images = method.new_network(), normal(3, 1, 16, 16)
    for got, expected in zip(taps_of(net, images)[0], plain_taps(net, images), strict=True):
        assert relative_error(got.detach(), expected.detach()) < 1e-9


@pytest.mark.parametrize("name", ["convnet:width=8:depth=2", "convnet:width=8:depth=2:norm=batchnorm"])
def test_the_loss_is_that_of_the_paper(name, pair):
    method = method_on(pair, name, discrimination=0.25)
    net, images, labels = method.new_network().train(), normal(6, 1, 16, 16, seed=2), torch.arange(6) % 3
    before, leaf = method.generator.get_state(), images.clone().requires_grad_()
    loss = method.loss_in(net, leaf, labels)
    (gradient,) = torch.autograd.grad(loss, leaf)

    method.generator.set_state(before)
    reals = [method.real.of_class(k, 5) for k in range(3)]
    other, of_class = images.clone().requires_grad_(), [(labels == k).nonzero()[:, 0] for k in range(3)]
    taps, _ = taps_of(net, torch.cat([other[at] for at in of_class]))
    of_real = [t.detach() for t in taps_of(net, torch.cat(reals))[0]]
    total = 0
    for weight, synthetic, real in zip((0.1, 1.0, 2.0), taps, of_real, strict=True):
        for k in range(3):
            apart = real[5 * k : 5 * k + 5].mean(0) - synthetic[2 * k : 2 * k + 2].mean(0)
            total = total + weight * apart.square().sum()
    centres = torch.stack([taps[-1][2 * k : 2 * k + 2].mean(0) for k in range(3)])
    logits = of_real[-1] @ centres.T
    expected = total + 0.25 * cross_entropy(logits, torch.arange(3).repeat_interleave(5), reduction="sum")
    assert relative_error(loss.detach(), expected.detach()) < 1e-9
    assert relative_error(gradient, torch.autograd.grad(expected, other)[0]) < 1e-9


def test_loops_end_by_the_range_of_ten_accuracies_or_their_bounds(pair, monkeypatch):
    method = method_on(pair, "mlp", rounds=2, most_steps=30, most_epochs=25, settled=0.04, moved=0.03)
    net, answers = method.new_network(), []
    monkeypatch.setattr(method, "_accuracy", lambda net: answers.pop(0))
    answers[:] = [0.5] * 9 + [0.53] + [0.0, 1.0] * 30  # settled after 10 steps; moved after 10 epochs
    record = method._step()
    assert record["image_steps"] == 10 + 30 and record["epochs"] == 10 and len(answers) == 20
    answers[:] = [0.1, 0.9] * 15 + [0.5] * 25 + [0.5] * 10  # never settled; never moved
    record = method._step()
    assert record["image_steps"] == 30 + 10 and record["epochs"] == 25 and not answers
    assert net.training


def test_the_accuracy_is_of_one_test_alone(pair):
    """The published accumulator is never reset, so that a test's value depends on those before it."""
    method = method_on(pair, "mlp")
    net = method.new_network()
    assert method._accuracy(net) == method._accuracy(net)


def test_a_part_of_a_step_is_timed_in_its_place():
    settings, times = CAFESettings(rounds=3, most_steps=20).timed()
    assert (settings.rounds, settings.most_steps, times) == (1, 2, 30)


def test_the_rate_is_halved_at_three_places(pair):
    method = method_on(pair, "mlp", iterations=10, rounds=1, most_steps=1, lr_img=0.8)
    rates = []
    for _ in range(10):
        method._step()
        rates.append(method.learned.descent.learned[0].rate)
    assert rates == [0.8] * 6 + [0.4] * 2 + [0.2] + [0.1]


def test_it_distils_and_resumes(pair, tmp_path):
    whole = ddfast.distill(pair, output=tmp_path / "whole", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **SMALL)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)
    assert [r["image_steps"] for r in whole.history] == [4] * 3


def test_it_learns(tmp_path):
    options = {"num_eval": 2, "eval_epochs": 100, "network": "convnet:width=16", "batch_real": 64, "device": "cpu"}
    done = ddfast.distill("digits", method="cafe", output=tmp_path / "digits", **options)
    assert done.accuracy["distilled"]["mean"] > done.accuracy["random_real"]["mean"]
