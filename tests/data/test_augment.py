"""DSA: what each transform does, its two families, its randomness and its derivative."""

import math

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from ddfast.data import DSA
from ddfast.data.augment import FULL_STRATEGY, TRANSFORMS, Draw
from ddfast.ops.dsa_augment import IDENTITY
from ddfast.runtime import seeds
from tests.conftest import normal, uniform

SIZE = (16, 12)


def drawn(kind: str, count: int = 64, family: str = "mtt", seed: int = 0) -> Draw:
    return DSA(kind, family).draw(count, SIZE, seeds.generator(seed))


@pytest.mark.parametrize("kind", [*TRANSFORMS, "crop+flip", "color+cutout+flip+rotate"])
@pytest.mark.parametrize("family", ["mtt", "dsa"])
def test_a_draw_is_differentiable_affine_and_always_the_same(kind, family):
    draw = drawn(kind, 2, family)
    images = normal(2, 3, *SIZE).requires_grad_()
    assert draw(images).shape == images.shape and torch.equal(draw(images), draw(images))
    assert torch.autograd.gradcheck(draw, images)
    other, zero = normal(2, 3, *SIZE, seed=1), torch.zeros(2, 3, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(draw(images + other) + draw(zero), draw(images) + draw(other))


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_one_transform_a_batch_with_magnitudes_per_image_or_for_all(kind):
    image = uniform(1, 3, *SIZE).expand(64, 3, *SIZE)
    per_image, for_all = drawn(kind)(image), drawn(kind, family="dsa", seed=1)(image)
    assert (per_image[0] != per_image[1:]).flatten(1).any(1).any()
    assert all(torch.equal(for_all[0], other) for other in for_all)


def test_the_strategy_is_drawn_from_evenly_and_from_the_generator_alone():
    before = torch.get_rng_state()
    generator = seeds.generator(0)
    kinds = [DSA(FULL_STRATEGY).draw(2, SIZE, generator).kind for _ in range(600)]
    assert all(70 < kinds.count(kind) < 130 for kind in TRANSFORMS)
    assert torch.equal(before, torch.get_rng_state())
    again = [DSA(FULL_STRATEGY).draw(2, SIZE, seeds.generator(5)) for _ in range(2)]
    images = uniform(2, 3, *SIZE)
    assert torch.equal(again[0](images), again[1](images))


def test_flip_mirrors_about_half_of_the_images():
    images = uniform(200, 1, *SIZE)
    flipped = drawn("flip", 200)(images)
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    assert (is_flipped | (flipped == images).flatten(1).all(1)).all() and 70 < is_flipped.sum() < 130


def test_crop_shifts_by_up_to_an_eighth_of_each_side_and_fills_with_zero():
    draw = drawn("crop", 300)
    down, right = draw.values["down"], draw.values["right"]
    assert (down.min(), down.max(), right.min(), right.max()) == (-2, 2, -2, 2)  # int(12 · 0.125 + 0.5) = 2
    images = uniform(300, 1, *SIZE)
    shifted = draw(images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for n in range(0, 300, 17):
        top, left = 2 + int(down[n]), 2 + int(right[n])
        assert torch.equal(shifted[n], padded[n, :, top : top + SIZE[0], left : left + SIZE[1]])


def test_cutout_clears_a_box_of_half_the_side_cut_off_at_the_border():
    cut = drawn("cutout", 300)(torch.ones(300, 1, *SIZE))
    rows, columns = (cut[:, 0] == 0).any(2).sum(1), (cut[:, 0] == 0).any(1).sum(1)
    assert (rows.max(), columns.max()) == (8, 6) and rows.min() == 4 and columns.min() == 3
    assert torch.equal((cut == 0).sum((1, 2, 3)), rows * columns)


@pytest.mark.parametrize("family", ["mtt", "dsa"])
def test_scale_and_rotation_sample_as_their_matrices_say(family):
    images = normal(4, 2, *SIZE)
    for kind in ("scale", "rotate"):
        draw = drawn(kind, 4, family)
        if kind == "scale":
            x, y = draw.values["x"], draw.values["y"]
            assert (x >= 1 / 1.2).all() and (x <= 1.2).all() and not torch.equal(x, y)
            rows = [[x, 0 * x, 0 * x], [0 * x, y, 0 * x]]
        else:
            angle = draw.values["angle"]
            assert (angle.abs() <= math.radians(15)).all()
            rows = [[angle.cos(), -angle.sin(), 0 * angle], [angle.sin(), angle.cos(), 0 * angle]]
        matrices = torch.stack([torch.stack(row, 1) for row in rows], 1).double().expand(4, 2, 3)
        grid = affine_grid(matrices, [4, 2, *SIZE], align_corners=family == "mtt")
        expected = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=family == "mtt")
        torch.testing.assert_close(draw(images), expected)


def test_color_is_brightness_then_saturation_then_contrast():
    draw, x = drawn("color", 3), normal(3, 3, *SIZE)
    u = {name: value.view(3, 1, 1, 1).double() for name, value in draw.values.items()}
    bright = x + (u["brightness"] - 0.5)
    grey = bright.mean(1, keepdim=True)
    saturated = (bright - grey) * 2 * u["saturation"] + grey
    level = saturated.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(draw(x), (saturated - level) * (u["contrast"] + 0.5) + level)


@pytest.mark.parametrize("family", ["mtt", "dsa"])
@pytest.mark.parametrize("joined", ["crop+flip", "rotate+color+cutout", "scale+flip+crop"])
def test_a_join_is_its_transforms_one_after_another_in_the_ops_order(joined, family):
    """Drawn in the order of the name; TRANSFORMS has the op's."""
    images, generator = normal(4, 3, *SIZE), seeds.generator(0)
    draw = DSA(joined, family).draw(4, SIZE, generator)
    assert draw.kind == joined
    again = seeds.generator(0)
    torch.randint(1, (), generator=again)  # which of the alternatives: one
    alone = {}
    for kind in joined.split("+"):
        values = TRANSFORMS[kind].draw(4 if family == "mtt" else 1, SIZE, again)
        assert all(torch.equal(draw.values[name], value) for name, value in values.items())
        parameters = TRANSFORMS[kind].parameters(SIZE, family == "mtt", **values)
        columns = [parameters.get(name, torch.tensor(value)).double().expand(4) for name, value in IDENTITY.items()]
        alone[kind] = Draw(kind, values, torch.stack(columns, 1))
    assert torch.equal(generator.get_state(), again.get_state())
    expected = images
    for kind in (kind for kind in TRANSFORMS if kind in alone):
        expected = alone[kind](expected)
    torch.testing.assert_close(draw(images), expected)
    assert not torch.allclose(draw(images), images)


def test_joins_are_alternatives_beside_others():
    generator, strategy = seeds.generator(0), DSA("crop+flip_color")
    kinds = [strategy.draw(2, SIZE, generator).kind for _ in range(200)]
    assert set(kinds) == {"crop+flip", "color"} and 70 < kinds.count("color") < 130
    images = uniform(2, 4, 1, *SIZE)
    generators = [seeds.generator(seed) for seed in range(2)]
    together = DSA("crop+flip").side_by_side(images, generators)
    alone = [DSA("crop+flip").draw(4, SIZE, seeds.generator(seed))(images[seed]) for seed in range(2)]
    assert torch.equal(together, torch.stack(alone))


def test_strategies_draw_the_numbers_that_they_always_drew():
    """Of a strategy without joins: one number for the choice, then those of the transform."""
    generator, by_hand = seeds.generator(3), seeds.generator(3)
    for _ in range(20):
        draw = DSA(FULL_STRATEGY).draw(3, SIZE, generator)
        kind = FULL_STRATEGY.split("_")[int(torch.randint(6, (), generator=by_hand))]
        values = TRANSFORMS[kind].draw(3, SIZE, by_hand)
        assert draw.kind == kind and all(torch.equal(draw.values[name], values[name]) for name in values)
    assert torch.equal(generator.get_state(), by_hand.get_state())


def test_no_strategy_changes_nothing_and_an_unknown_one_is_refused():
    images = uniform(2, 1, *SIZE)
    assert drawn("none")(images) is images
    with pytest.raises(ValueError, match=r"dsa_strategy: expected some of color, crop, .* got 'flip_shear'"):
        DSA("flip_shear")
    for strategy in ("crop+shear", "crop+", "none+flip", "flip_none"):
        with pytest.raises(ValueError, match=r"dsa_strategy: expected some of color, .* got"):
            DSA(strategy)
    for strategy in ("flip+flip", "color_scale+rotate", "rotate+crop+scale"):
        with pytest.raises(ValueError, match=r"joined by \+ to be different, and not scale with rotate, got"):
            DSA(strategy)
    with pytest.raises(ValueError, match="family: expected one of mtt, dsa, got 'dc'"):
        DSA("flip", "dc")


def test_a_strategy_names_its_family_which_draws_as_the_argument_does():
    """In an unroll one magnitude for all; for networks that are trained one per image."""
    for strategy, family in (("dsa:scale_flip", "dsa"), ("MTT:scale_flip", "mtt"), ("scale_flip", "mtt")):
        named, by_argument = DSA(strategy), DSA("scale_flip", family)
        assert named.family == family
        draws = [augment.draw_steps(8, 4, SIZE, seeds.generator(0)) for augment in (named, by_argument)]
        assert draws[0].rows.equal(draws[1].rows)
        assert (draws[0].rows == draws[0].rows[:, :1]).all() == (family == "dsa")
    images = uniform(1, 1, 3, *SIZE).expand(1, 32, 3, *SIZE)
    trained_on = DSA("dsa:scale").side_by_side(images, [seeds.generator(0)])[0]
    assert (trained_on[0] != trained_on[1:]).flatten(1).any(1).all()
    with pytest.raises(ValueError, match="family: the strategy 'dsa:flip' says dsa, got 'mtt'"):
        DSA("dsa:flip", "mtt")
    with pytest.raises(ValueError, match="dsa_strategy: expected one of mtt, dsa, dc before the colon, got 'idc:flip'"):
        DSA("idc:flip")
    with pytest.raises(ValueError, match="dsa_strategy: dc: is for networks that are trained on a set"):
        DSA("dc:crop")
