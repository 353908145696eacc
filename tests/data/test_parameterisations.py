"""Parameterisations: what they decode to, what they begin as, what they take, and whole jobs with each."""

import pytest
import torch

import ddfast
from ddfast.data import Bases, Frequencies, SyntheticSet, Tiles, load_dataset
from ddfast.data.parameterisation import PARAMETERISATIONS, PIXELS, described
from ddfast.data.parameterisation.frequencies import dct
from tests.conftest import SMALL, interrupt_after, normal, relative_error

KINDS = ("tiles", "bases", "frequencies")
SIZE = (1, 16, 16)
SMOOTH = {"network": "convnet:width=8", "num_eval": 1, "eval_epochs": 2, "device": "cpu", "dsa_strategy": "none"}


def made(name, stored=3, factor=2, size=SIZE):
    if name == "tiles":
        return Tiles(factor)
    return {"bases": Bases, "frequencies": Frequencies}[name].within(factor, size, stored)


def smooth(count, size=SIZE):
    """Images of low frequencies."""
    small = normal(count, size[0], 3, 3)
    return torch.nn.functional.interpolate(small, size=size[1:], mode="bicubic", align_corners=True)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_it_begins_near_its_images_and_takes_no_more_than_their_storage(name, factor):
    stored = 4
    how, images = made(name, stored, factor), smooth(stored * factor**2)
    parameters, others = how.encode(images, smooth(200))
    values = [others[key] for key in how.others]
    how.check(parameters, values, len(images))
    decoded = how.decode(parameters, None, values)
    assert decoded.shape == images.shape and how.image_size(tuple(parameters.shape[2:])) == SIZE[1:]
    assert relative_error(decoded, images) < (0.35 if factor < 3 else 0.5)
    taken = sum(tensor.numel() for tensor in (parameters, *values))
    assert taken <= stored * 256 and taken > 0.7 * stored * 256
    assert described(how.describe()) == how


@pytest.mark.parametrize("name", KINDS)
def test_decoding_is_differentiable_in_all_that_is_learned(name):
    how = made(name, 2, 2, (2, 6, 6))
    parameters, others = how.noise(8, (2, 6, 6), normal(20, 2, 6, 6), torch.Generator().manual_seed(0))
    learned = [parameters.double(), *(t.double() for t in others.values() if t.is_floating_point())]
    constant = [t for t in others.values() if not t.is_floating_point()]

    def decode(*values):
        return how.decode(values[0], None, [*values[1:], *constant])

    assert torch.autograd.gradcheck(decode, [value.requires_grad_() for value in learned])


@pytest.mark.parametrize("side", [9, 10])
def test_tiles_are_parts_of_their_image_enlarged(side):
    stored, h = normal(2, 3, side, side), -(-side // 3)
    padded = torch.zeros(2, 3, 3 * h, 3 * h, dtype=torch.float64)
    padded[:, :, :side, :side] = stored
    seen = Tiles(3).decode(stored).unflatten(0, (2, 3, 3))
    for row in range(3):
        for column in range(3):
            part = padded[1:, :, row * h : (row + 1) * h, column * h : (column + 1) * h]
            expected = torch.nn.functional.interpolate(part, size=(side, side), mode="bilinear", align_corners=False)
            assert torch.equal(seen[1, row, column], expected[0])


def test_bases_are_the_best_of_their_number():
    images = normal(12, *SIZE)
    how = Bases(1, 5, SIZE[1:])
    bases, others = how.encode(images, images)
    left, strength, right = torch.linalg.svd(images.flatten(1), full_matrices=False)
    best = (left[:, :5] * strength[:5]) @ right[:5]
    assert relative_error(how.decode(bases, None, [others["weights"]]).flatten(1), best) < 1e-9
    assert 0.5 < bases.square().mean().sqrt() / images.square().mean().sqrt() < 2


def test_the_cosine_transform_is_that_of_scipy_and_keeps_the_largest_variances():
    fft = pytest.importorskip("scipy.fft")
    vector = normal(7)
    assert relative_error(dct(7) @ vector, torch.from_numpy(fft.dct(vector.numpy(), norm="ortho"))) < 1e-12
    data, how = normal(50, 2, 4, 6), Frequencies(2, 5, (4, 6))
    spectrum = torch.from_numpy(fft.dctn(data.numpy(), axes=(2, 3), norm="ortho")).flatten(2)
    _, others = how.encode(data[:3], data)
    for channel in range(2):
        largest = spectrum[:, channel].var(0).argsort(descending=True)[:5].sort().values
        assert others["frequencies"][channel].tolist() == largest.tolist()


@pytest.mark.parametrize("init", ["real", "noise"])
@pytest.mark.parametrize("method", ["dc", "dm", "mtt"])
@pytest.mark.parametrize("name", KINDS)
def test_every_method_learns_it_resumes_and_evaluates(name, method, init, pair, tmp_path):
    options = SMOOTH | {"method": method, "parameterisation": name, "init": init, "ipc": 1, "iterations": 3}
    options |= {"batch_real": 4} if method != "mtt" else SMALL | {"batch_syn": 4, "lr_img": 1.0}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **options)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    begun = SyntheticSet.load(tmp_path / "whole" / "initial")
    saved = SyntheticSet.load(tmp_path / "whole" / "synthetic")
    for tensors in zip(*(_tensors(s) for s in (whole.synthetic, parts.synthetic, saved, begun)), strict=True):
        assert torch.equal(tensors[0], tensors[1]) and torch.equal(tensors[0], tensors[2])
        assert tensors[0].is_floating_point() != torch.equal(tensors[0], tensors[3])  # what is learned has changed
    assert (
        saved.ipc == 4
        and saved.stored_ipc == 1
        and len(saved) == 12
        and saved.image_size == (16, 16)
        and saved.bytes <= 3 * 256 * 4
    )
    assert saved.decoded().images.shape == (12, 1, 16, 16) and saved.decoded().parameterisation == PIXELS


def _tensors(synthetic):
    return [synthetic.images, *synthetic.other_tensors]


def test_a_run_goes_on_from_a_parameterised_set_as_it_is_or_as_pixels(pair, tmp_path):
    options = SMOOTH | {"method": "dm", "iterations": 1, "batch_real": 4}
    first = ddfast.distill(pair, output=tmp_path / "first", parameterisation="bases", **options)
    same = {"init": tmp_path / "first", "lr_img": 0.0}
    kept = ddfast.distill(pair, output=tmp_path / "kept", parameterisation="bases", **options | same)
    assert torch.equal(kept.synthetic.images, first.synthetic.images) and kept.synthetic.ipc == 4
    pixels = ddfast.distill(pair, output=tmp_path / "pixels", **options | same)
    assert pixels.synthetic.ipc == 4 and relative_error(pixels.synthetic.images, first.synthetic.decoded().images) == 0
    with pytest.raises(ValueError, match=r"init: expected a set of tiles"):
        ddfast.distill(pair, output=tmp_path / "none", parameterisation="tiles", **options | same)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"parameterisation": "tiles", "canvas": 2}, r"canvas: expected 1 with tiles"),
        ({"parameterisation": "tiles", "ipc": 3}, r"4 for each of 3 in storage"),
        ({"parameterisation": "bases", "ema_decay": 0.9}, r"ema_decay: bases"),
        ({"bases": 3}, r"bases: is of parameterisation bases"),
        ({"parameterisation": "bases", "bases": 999}, r"bases: expected up to"),
        ({"parameterisation": "wavelets"}, r"parameterisation: expected"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, sentence, pair, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **SMOOTH | {"method": "dm", "iterations": 1} | options)
    assert not (tmp_path / "run").exists()


def test_a_set_whose_tensors_do_not_fit_is_refused(pair):
    data = load_dataset(pair)
    about = (data.class_names, data.preprocessing)
    with pytest.raises(ValueError, match=r"others: expected weights for bases"):
        SyntheticSet(normal(5, 1, 8, 8), torch.arange(3), None, *about, parameterisation=Bases(2, 5, (16, 16)))
    with pytest.raises(ValueError, match=r"weights: expected \[3, 5\]"):
        SyntheticSet(
            normal(5, 1, 8, 8), torch.arange(3), None, *about, parameterisation=Bases(2, 5, (16, 16)),
            others={"weights": normal(4, 5)},
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"labels: expected one for each of 8 tiles"):
        SyntheticSet(normal(2, 1, 8, 8), torch.arange(3), None, *about, parameterisation=Tiles(2))
    assert set(PARAMETERISATIONS) == {"pixels", "texture", *KINDS}
