"""IDC: a step of a class against plain double backpropagation, its bounds, CutMix, whole jobs."""

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate, one_hot

import ddfast
from ddfast.data import SyntheticSet, Tiles, load_dataset
from ddfast.data.cutmix import cutmix
from ddfast.methods import IDC, Resources
from ddfast.methods.gradient.idc import IDCSettings
from ddfast.networks import create
from tests.conftest import normal, relative_error

SMALL = {"method": "idc", "iterations": 2, "inner_loop": 2, "num_eval": 1, "eval_epochs": 2, "device": "cpu"}
SMALL |= {"network": "convnet:width=8", "net_images": 8, "batch_real": 4, "batch_net": 4, "lr_img": 1e-3}


def problem(pair, **settings):
    data, generator = load_dataset(pair), torch.Generator().manual_seed(0)

    def build(drawn):
        return create("convnet:width=8:depth=2", **data.network_arguments, generator=drawn).double()

    settings = IDCSettings(batch_real=5, dsa_strategy="none", net_images=8, inner_loop=2, **settings)
    synthetic = SyntheticSet(
        normal(3, 1, 16, 16), torch.arange(3).repeat_interleave(4), None, data.class_names, data.preprocessing,
        "none", Tiles(2),
    )  # fmt: skip
    method = IDC(settings, synthetic, Resources(build(generator), generator, build, data=data))
    take = method.real._batches.take
    method.real._batches.take = lambda indices: tuple(t.double() if t.is_floating_point() else t for t in take(indices))
    return method


def test_a_class_goes_down_the_distance_of_the_gradients_of_convolutions(pair):
    method = problem(pair, lr_img=0.25)
    net, stored = method.new_network().train(), method.learned.take().values[0]
    before = method.generator.get_state()
    method._class_step(net, method.distance_of(net), 1, torch.arange(4, 8))
    after = method.learned.take().values[0]

    method.generator.set_state(before)
    real = method.real.of_class(1, 5)
    leaf = stored.detach().clone().requires_grad_()
    tiles = torch.cat([leaf[1:2, :, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)])
    seen = interpolate(tiles, size=(16, 16), mode="bilinear", align_corners=False)
    weights = [m.weight for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    g, h = (
        torch.autograd.grad(cross_entropy(net(x), torch.full((len(x),), 1)), weights, create_graph=True)
        for x in (seen, real)
    )
    distance = sum((a - b.detach()).square().sum() for a, b in zip(g, h, strict=True))
    (gradient,) = torch.autograd.grad(distance, leaf)
    (std,) = method.learned.about.preprocessing.std
    assert relative_error(stored - after, 0.25 * gradient / std**2) < 1e-9
    assert torch.equal(after[::2], stored[::2])  # other classes, without momentum yet


def test_pixels_are_brought_back_to_what_pictures_show(pair):
    method = problem(pair, lr_img=0.0)
    method._step()
    about = method.learned.about.preprocessing
    pixels = about.invert(method.current().images)
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    assert (pixels < 1e-6).any() and (pixels > 1 - 1e-6).any()


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_takes_a_box_and_its_share_of_the_labels(seed):
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 8, 10).clone()
    targets = one_hot(torch.arange(6), 6).double()
    mixed, weights = cutmix(images, targets, torch.Generator().manual_seed(seed))
    for n in range(6):
        others = [int(v) for v in mixed[n].unique() if v != n]
        assert len(others) <= 1 and relative_error(weights[n].sum(), torch.tensor(1.0)) < 1e-12
        share = float((mixed[n] != n).double().mean())
        assert weights[n, n] == pytest.approx(1 - share) and all(weights[n, k] == pytest.approx(share) for k in others)


def test_it_matches_no_more_images_than_it_is_told(pair, monkeypatch):
    method, seen = problem(pair, most_matched=3), []
    matched = method.matched
    monkeypatch.setattr(method, "matched", lambda *given: seen.append(given[-1]) or matched(*given))
    method._step()
    assert [len(members) for [(_, members)] in seen] == [3] * 6 and [k for [(k, _)] in seen] == [0, 1, 2] * 2
    drawn = {tuple(members.tolist()) for [(k, members)] in seen if k == 0}
    assert all(set(chosen) < {0, 1, 2, 3} for chosen in drawn)


def test_a_part_of_a_step_is_timed_in_its_place(pair):
    settings, times = IDCSettings(inner_loop=100).timed()
    assert settings.inner_loop == 3 and times == pytest.approx(100 / 3)
    settings, times = IDCSettings(inner_loop=2).timed()
    assert settings.inner_loop == 2 and times == 1


def test_images_of_one_stored_one_are_that_of_plain_idc_i(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", parameterisation="pixels", **SMALL)
    assert result.synthetic.ipc == 1 and result.synthetic.images.shape == (3, 1, 16, 16)
    assert all(record["loss"] > 0 for record in result.history)


def test_a_network_may_begin_trained(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", pre_epochs=1, cutmix=1.0, **SMALL)
    assert result.synthetic.ipc == 4 and result.history[-1]["updated"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"network": "mlp"}, r"network: it has no convolution"),
        ({"net_strategy": "sparkle"}, r"dsa_strategy|sparkle"),
        ({"cutmix": 1.5}, r"cutmix: expected"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, sentence, pair, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **SMALL | options)
    assert not (tmp_path / "run").exists()
