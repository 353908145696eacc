"""DC's own augmentation: each transform against its description, one image and one draw at a time."""

import math

import numpy
import pytest
import torch

import ddfast
from ddfast.data import DCAugmentation, augmentation, load_dataset
from ddfast.evaluation import evaluate, evaluate_random_real
from ddfast.runtime import seeds
from tests.conftest import SMALL, uniform

SIZE = (12, 12)


def augmented(strategy: str, count: int = 200, seed: int = 0, image_size=SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, 2, H, W] of a minibatch, and what becomes of them."""
    images = uniform(1, count, 2, *image_size, seed=seed) + torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
    return images[0], augmentation(strategy).side_by_side(images, [seeds.generator(seed)])[0]


def test_a_crop_is_a_shift_of_minus_4_to_3_pixels_filled_with_the_mean_of_each_channel():
    images, moved = augmented("dc:crop")
    padded = images.mean((0, 2, 3)).view(1, 2, 1, 1).expand(len(images), 2, 20, 20).clone()
    padded[:, :, 4:16, 4:16] = images
    seen = set()
    for before, after in zip(padded, moved, strict=True):
        found = [(r, c) for r in range(8) for c in range(8) if before[:, r : r + 12, c : c + 12].allclose(after)]
        assert len(found) == 1
        seen.add(found[0])
    assert {r for r, _ in seen} == {c for _, c in seen} == set(range(8))


def test_scale_resizes_to_whole_pixels_about_the_middle_with_zeros_around():
    """A linear ramp stays one: bilinear sampling is exact on it, away from the edges."""
    x = torch.arange(24.0, dtype=torch.float64).expand(24, 24)
    images = torch.stack([x, x.T]).expand(1, 300, 2, 24, 24)
    scaled = augmentation("dc:scale").side_by_side(images, [seeds.generator(0)])[0]
    lengths = set()
    for image in scaled:
        for ramp in (image[0, 12], image[1, :, 12]):
            inside = ramp[6:18]
            step = inside.diff()
            assert torch.allclose(step, step[0].expand(11))
            length = round(24 / float(step[0]))
            assert math.isclose(24 / float(step[0]), length, rel_tol=1e-9)
            before = max(0, (24 - length) // 2)
            assert length >= 24 or (ramp[:before] == 0).all()
            lengths.add(length)
    assert lengths == set(range(19, 29))  # int(24 u) for u in [0.8, 1.2)


@pytest.mark.parametrize("image_size", [(25, 25), (25, 21)])
def test_a_rotation_is_by_whole_degrees_about_the_middle_and_fills_with_the_mean_of_all(image_size):
    """Of ramps, the direction of whose rise tells the angle."""
    H, W = image_size
    y, x = numpy.mgrid[:H, :W] - numpy.array([(H - 1) / 2, (W - 1) / 2]).reshape(2, 1, 1)
    images = torch.tensor(numpy.stack([x, y])).expand(1, 400, 2, H, W)
    turned = augmentation("dc:rotate").side_by_side(images, [seeds.generator(0)])[0]
    middle = turned[:, :, H // 2 - 4 : H // 2 + 5, W // 2 - 4 : W // 2 + 5]
    right, down = middle.diff(dim=3).mean((2, 3)), middle.diff(dim=2).mean((2, 3))
    degrees = torch.atan2(right[:, 1], right[:, 0]) * 180 / math.pi
    torch.testing.assert_close(degrees, degrees.round())
    torch.testing.assert_close(torch.stack([-down[:, 0], down[:, 1]], 1), right.flip(1))
    assert set(degrees.round().int().tolist()) <= set(range(-45, 45)) and len(degrees.round().unique()) > 80
    lit, out = augmented("dc:rotate", 50)
    far = out[(out[:, 0, 0, 0] - out[:, 1, 0, 0]).abs() < 1e-9]
    assert len(far) > 0 and torch.allclose(far[:, :, 0, 0], lit.mean().expand(len(far), 2))


def test_noise_is_a_thousandth():
    images, noisy = augmented("dc:noise")
    assert (noisy - images).std() == pytest.approx(1e-3, rel=0.02) and (noisy - images).mean().abs() < 1e-4


def test_each_image_has_a_transform_of_its_own_drawn_from_its_generator_alone():
    before = torch.get_rng_state()
    images, moved = augmented("dc:crop_noise", 400)
    noisy = ((moved - images).abs().amax((1, 2, 3)) < 0.01).float()
    assert 0.42 < noisy.mean() < 0.58
    pair = torch.stack([images, images])
    generators = [seeds.generator(0), seeds.generator(1)]
    together = augmentation("dc:crop_noise").side_by_side(pair, generators)
    assert together[0].allclose(moved) and not together[1].allclose(moved)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("strategy", ["dc:flip", "dc:", "dc:none", "dc:crop+scale"])
def test_what_it_has_not_is_refused(strategy):
    with pytest.raises(ValueError, match="dsa_strategy: expected some of crop, scale, rotate, noise joined by"):
        DCAugmentation(strategy)


def test_sets_are_evaluated_with_it_and_not_matched_with_it(pair, tmp_path):
    data = load_dataset(pair)
    plain, other = (
        evaluate_random_real(data, 2, num_eval=1, eval_epochs=5, networks=("mlp",), dsa_strategy=strategy)
        for strategy in ("none", "dc:crop_scale_rotate")
    )
    assert plain.n == other.n == 1
    experts = {"num_experts": 1, "train_epochs": 1, "network": "mlp", "batch_train": 6}
    store = ddfast.train_experts(data, dsa_strategy="dc:crop_noise", output=tmp_path / "experts", **experts)
    assert store.settings["dsa_strategy"] == "dc:crop_noise"
    with pytest.raises(ValueError, match="dsa_strategy: dc: is for networks that are trained on a set"):
        ddfast.distill(pair, dsa_strategy="dc:crop", output=tmp_path / "run", **SMALL)
    done = ddfast.distill(pair, dsa_strategy="dsa:color_crop", output=tmp_path / "run", **SMALL)
    assert done.synthetic.dsa_strategy == "dsa:color_crop"
    done.synthetic.dsa_strategy = "dc:crop_scale_rotate"
    done.synthetic.save(tmp_path / "set")
    assert ddfast.SyntheticSet.load(tmp_path / "set").dsa_strategy == "dc:crop_scale_rotate"
    assert evaluate(done.synthetic, data, num_eval=1, eval_epochs=2).n == 1
