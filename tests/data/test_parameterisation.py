"""Textures: crops of canvases, in an unroll and in evaluation."""

import importlib
from dataclasses import replace

import pytest
import torch

import ddfast
from ddfast import SyntheticSet
from ddfast.data import DSA, load_dataset
from ddfast.data.parameterisation import PIXELS, Seen, Texture, crop, draw_rolls
from ddfast.engine.adjoints import FullUnroll
from ddfast.evaluation import evaluate
from ddfast.runtime import seeds
from tests.conftest import assert_close, normal, uniform
from tests.networks_for_tests import SIDE, K, make

schedule = importlib.import_module("ddfast.evaluation.schedule")
SIZE = (3, 4)


def test_a_crop_is_the_top_left_of_the_rolled_canvas(device):
    canvases, rolls = uniform(40, 3, 6, 8, device=device), draw_rolls(40, (6, 8), seeds.generator(0)).to(device)
    for images, canvas, shifts in zip(crop(canvases, rolls, SIZE), canvases, rolls.tolist(), strict=True):
        assert torch.equal(images, torch.roll(canvas, shifts, (1, 2))[:, :3, :4])


def test_a_crop_has_its_derivative_and_takes_no_pixel_twice(device):
    rolls = torch.tensor([[0, 0], [5, 7], [2, 6]], device=device)
    canvases = normal(3, 2, 6, 8, device=device).requires_grad_()
    assert torch.autograd.gradcheck(lambda canvases: crop(canvases, rolls, SIZE), canvases)
    (taken,) = torch.autograd.grad(crop(canvases, rolls, SIZE).sum(), canvases)
    assert taken.sum() == 3 * 2 * 3 * 4 and set(taken.unique().tolist()) == {0.0, 1.0}


def test_rolls_reach_all_of_a_canvas_evenly_and_come_from_the_generator_alone():
    before = torch.get_rng_state()
    rolls = draw_rolls(4800, (6, 8), seeds.generator(0))
    counts = torch.bincount(rolls[:, 0] * 8 + rolls[:, 1], minlength=48)
    assert rolls.dtype == torch.int64 and len(counts) == 48 and 60 < counts.min() and counts.max() < 140
    assert torch.equal(rolls, draw_rolls(4800, (6, 8), seeds.generator(0)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"canvases": torch.zeros(2, 6, 8)}, r"canvases: expected \[B, C, cH, cW\], got \[2, 6, 8\]"),
        ({"rolls": torch.zeros(3, 2).long()}, r"rolls: expected int64 \[2, 2\], got torch.int64 \[3, 2\]"),
        ({"rolls": torch.zeros(2, 2)}, r"rolls: expected int64 \[2, 2\], got torch.float32"),
        ({"size": (3, 9)}, r"size: expected 1 to the sides of the canvas, \[6, 8\], got \[3, 9\]"),
    ],
)
def test_what_cannot_be_cropped_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        crop(**{"canvases": torch.zeros(2, 1, 6, 8), "rolls": torch.zeros(2, 2).long(), "size": SIZE} | change)


def test_an_unroll_crops_then_augments_and_its_gradient_reaches_the_canvases():
    """Against autograd through plain steps on the rolled, cut and augmented images."""
    student, T, B = make("convnet"), 3, 6
    canvases, labels = uniform(B, 3, 2 * SIDE, 2 * SIDE), torch.arange(B) % K
    generator = seeds.generator(0)
    rolls = torch.stack([draw_rolls(B, (2 * SIDE, 2 * SIDE), generator) for _ in range(T)])
    draws = DSA("crop_color").draw_steps(T, B, (SIDE, SIDE), generator)
    start = torch.nn.utils.parameters_to_vector(student.parameters()).detach()
    gradients = []
    for canvas, augment in (
        (canvases.clone(), Seen(Texture(2), rolls, draws)),
        (canvases.clone(), lambda images, n: draws(_rolled(images, rolls[n]), n)),
    ):
        adjoint = None if isinstance(augment, Seen) else FullUnroll()
        canvas.requires_grad_()
        end = ddfast.unroll(student, start, canvas, labels, 0.1, syn_steps=T, augment=augment, adjoint=adjoint)
        gradients.append(torch.autograd.grad(end.square().sum(), canvas)[0])
    assert_close(*gradients)
    assert gradients[0].abs().sum() > 0
    crops = Seen(Texture(2), rolls)
    assert torch.equal(crops(canvases, 1), crop(canvases, rolls[1], (SIDE, SIDE)))  # without draws: crops alone


def _rolled(canvases, rolls):
    pairs = zip(canvases, rolls.tolist(), strict=True)
    return torch.stack([torch.roll(canvas, shifts, (1, 2))[:, :SIDE, :SIDE] for canvas, shifts in pairs])


@pytest.fixture
def data(pair):
    return load_dataset(pair)


def tiled(data) -> SyntheticSet:
    images, labels = data.random_real(3, seeds.generator(0))
    images = images.repeat(1, 1, 2, 2)
    return SyntheticSet(
        images, labels, torch.tensor(0.01), data.class_names, data.preprocessing, parameterisation=Texture(2)
    )


def test_networks_are_trained_on_crops_of_canvases(pair, data):
    good = tiled(data)
    assert evaluate(good, data, num_eval=1, eval_epochs=60).mean > 90
    assert evaluate(good, pair, num_eval=1, eval_epochs=60, networks=("mlp",)).mean > 90  # resized to what networks see
    with pytest.raises(ValueError, match=r"expected images \[1, 16, 16\] as in custom, got \[1, 32, 32\]"):
        evaluate(replace(good, parameterisation=PIXELS), data)


def test_every_minibatch_is_cropped_anew_before_it_is_augmented(data, monkeypatch):
    """A canvas of distinct pixels: what DSA is given says where it was cut."""
    seen = []
    canvas = torch.arange(32.0 * 32).view(1, 1, 32, 32)
    synthetic = replace(tiled(data), images=canvas.repeat(9, 1, 1, 1) / 1024)

    def remember(self, images, generators):
        seen.append((images[0] * 1024).round())
        return images

    monkeypatch.setattr(DSA, "side_by_side", remember)
    evaluate(synthetic, data, num_eval=2, eval_epochs=10, eval_batch=9, networks=("mlp",))
    seen = seen[-20:]  # before them a step was timed
    corners = [int(image[0, 0, 0]) for images in seen for image in images]
    assert len(seen) == 20 and len(set(corners)) > 120  # of 180 draws from 1024 places about 165 differ
    assert all(images.shape == (9, 1, 16, 16) for images in seen)
    assert torch.equal(seen[0][0, 0], _rolled_to(canvas[0, 0], int(seen[0][0, 0, 0, 0])))
    first = {int(image[0, 0, 0]) for image in torch.cat(seen[:10])}
    assert first != {int(image[0, 0, 0]) for image in torch.cat(seen[10:])}  # from each network's own generator


def _rolled_to(canvas, corner):
    down, right = divmod(corner, 32)
    return torch.roll(canvas, (-down, -right), (0, 1))[:16, :16]


def test_networks_side_by_side_see_the_crops_that_each_alone_sees(data):
    options = {
        "num_eval": 3,
        "eval_epochs": 8,
        "dsa_strategy": "flip_scale",
        "eval_batch": 4,
        "networks": ("convnet:width=8",),
    }
    assert evaluate(tiled(data), data, at_once=1, **options) == evaluate(tiled(data), data, at_once=3, **options)


def test_memory_is_planned_for_the_images_that_networks_see(data, monkeypatch):
    sizes = []
    monkeypatch.setattr(schedule, "side_by_side", lambda net, count, size, *rest: sizes.append(size) or 1)
    evaluate(tiled(data), data, num_eval=1, eval_epochs=1, networks=("mlp",))
    assert sizes == [torch.Size((9, 1, 16, 16))]
