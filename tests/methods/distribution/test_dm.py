"""DM: its loss against the formula, networks side by side, batch norm, whole jobs."""

import pytest
import torch

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.methods import DM, Resources
from ddfast.methods.distribution.dm import DMSettings
from ddfast.networks import create
from ddfast.run.resolve import resolve
from tests.conftest import interrupt_after, normal, relative_error

GREY = "dsa:color_crop_cutout_scale_rotate"
SMALL = {"method": "dm", "iterations": 3, "num_eval": 1, "eval_epochs": 2, "device": "cpu", "network": "mlp"}


def method_on(pair, name, **settings):
    data, generator = load_dataset(pair), torch.Generator().manual_seed(0)

    def build(drawn):
        return create(name, **data.network_arguments, generator=drawn).double()

    settings = DMSettings(batch_real=5, **settings)
    labels = torch.arange(6) % 3
    synthetic = SyntheticSet(normal(6, 1, 16, 16), labels, None, data.class_names, data.preprocessing)
    method = DM(settings, synthetic, Resources(build(generator), generator, build, data=data))
    take = method.real._batches.take
    method.real._batches.take = lambda indices: tuple(t.double() if t.is_floating_point() else t for t in take(indices))
    return method


def body_of(net):
    """The network without its last layer."""
    names = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    parent, _, last = names[-1].rpartition(".")
    setattr(net.get_submodule(parent), last, torch.nn.Identity())
    return net.requires_grad_(False)


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("name", ["convnet:width=8:depth=2", "mlp", "convnet:width=8:depth=2:norm=batchnorm"])
def test_the_loss_is_the_sum_of_squared_distances_of_mean_features(name, networks, pair):
    method = method_on(pair, name, dsa_strategy="none", networks_per_step=networks)
    labels, before = torch.arange(6) % 3, method.generator.get_state()
    images = normal(6, 1, 16, 16, seed=3).requires_grad_()
    loss = method.loss(images, labels)
    (gradient,) = torch.autograd.grad(loss, images)

    method.generator.set_state(before)
    nets = [body_of(method.new_network().train()) for _ in range(networks)]
    reals = [method.real.of_class(k, 5) for k in range(3)]
    leaf, expected = images.detach().requires_grad_(), 0
    for net in nets:
        of_real, of_synthetic = net(torch.cat(reals)), net(torch.cat([leaf[labels == k] for k in range(3)]))
        for k in range(3):
            distance = of_real[5 * k : 5 * k + 5].mean(0) - of_synthetic[2 * k : 2 * k + 2].mean(0)
            expected = expected + distance.square().sum() / networks
    assert relative_error(loss.detach(), expected.detach()) < 1e-9
    assert relative_error(gradient, torch.autograd.grad(expected, leaf)[0]) < 1e-9


def test_real_and_synthetic_images_of_a_class_are_augmented_alike(pair, monkeypatch):
    seen = []
    method = method_on(pair, "mlp")
    draw = method.augment.draw_steps
    monkeypatch.setattr(method.augment, "draw_steps", lambda *given: seen.append(draw(*given)) or seen[-1])
    method.loss(normal(6, 1, 16, 16), torch.arange(6) % 3)
    assert len(seen) == 3
    for draws in seen:  # one transform and magnitude for all
        assert torch.equal(draws.rows[0], draws.rows[0, :1].expand_as(draws.rows[0]))


def test_it_distils_resumes_and_learns(pair, tmp_path):
    options = SMALL | {"batch_real": 4, "networks_per_step": 2}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **options)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images) and whole.synthetic.lr is None
    options = SMALL | {"iterations": 25, "num_eval": 2, "eval_epochs": 100, "network": "convnet:width=16"}
    done = ddfast.distill("digits", output=tmp_path / "digits", **options)
    losses = [record["loss"] for record in done.history]
    assert losses[-1] < 0.6 * losses[0]
    assert done.accuracy["distilled"]["mean"] > done.accuracy["random_real"]["mean"]


def test_a_network_without_features_is_refused_before_anything_starts(pair, tmp_path):
    class Without(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 3, 3)

        def forward(self, x):
            return self.convolution(x).mean((2, 3))

    with pytest.raises(ValueError, match="network: Without has no linear layer at its end"):
        ddfast.distill(pair, output=tmp_path / "run", **SMALL | {"network": Without})
    assert not (tmp_path / "run").exists()


def test_data_without_a_preset_get_iterations_by_timed_steps(pair, monkeypatch):
    """Those of the default budget, or of one that is given; grey images are not flipped."""
    monkeypatch.setattr("ddfast.run.costs.seconds_a_step", lambda job: 0.5)
    counts = {}
    for budget in (None, "5min", "20min"):
        given = {"dataset": pair, "method": "dm", "network": "mlp", "num_eval": 1, "eval_epochs": 1, "device": "cpu"}
        config = resolve(given | ({} if budget is None else {"budget": budget})).config
        assert config["preset"].startswith("own data, else dm/") and config["dsa_strategy"] == GREY
        assert "timed" not in config["derived"]["iterations"] and "0.5 s each" in config["derived"]["iterations"]
        assert not {"syn_steps", "train_lr", "lr_teacher"} & config.keys() and not config["zca"]
        counts[budget] = config["iterations"]
    assert counts["5min"] < counts[None] < counts["20min"] <= 20 * 60 / 0.5
    assert resolve(given | {"iterations": 7}).config["iterations"] == 7
