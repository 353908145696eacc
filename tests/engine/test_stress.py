"""Extreme inputs: what comes out is finite and right, or one clear error, or a skip that is counted."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast import networks
from ddfast.data import DSA, Dataset, Preprocessing, SyntheticSet, load_dataset
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.students import GSAM, ModuleStudent, student_of
from ddfast.evaluation import evaluate_snapshots
from ddfast.experts import TrajectoryStore
from ddfast.ops import norm_relu_pool, param_distance, reference_mode
from ddfast.run.loop import DistillationDivergedError
from ddfast.runtime import seeds
from tests.conftest import SMALL, normal, relative_error, uniform

NAN, INF = float("nan"), float("inf")
NETWORK = "convnet:width=8:depth=1"
BATCH_NORM = f"{NETWORK}:norm=batchnorm"


def run_as(kind: str, call):
    """The compiled kernels where there are any, or the references."""
    if kind == "kernel":
        return call()
    with reference_mode():
        return call()


KINDS = pytest.mark.parametrize("kind", ["kernel", "reference"])

# start, target, weight -> whether the distance of a student, normal numbers, is finite
DISTANCES = {
    "start is target": (1.0, 1.0, None, False),
    "a weight of zeros": (0.0, 1.0, 0.0, False),
    "far beyond float32's squares": (0.0, 1e30, None, False),
    "too near for float32's squares": (1e-30, 0.0, None, False),
    "a NaN": (0.0, NAN, None, False),
    "large": (0.0, 1e15, None, True),
    "small": (1e-15, 0.0, None, True),
}


@KINDS
@pytest.mark.parametrize("case", DISTANCES)
def test_a_distance_is_right_or_says_that_it_is_not_finite(kind, case):
    start, target, weight, finite = DISTANCES[case]
    student, ones = normal(2, 300).float() * (start + target if finite else 1), torch.ones(2, 300)
    w = None if weight is None else torch.full((300,), weight)
    got = run_as(kind, lambda: param_distance(student, target * ones, start * ones, w))
    assert got.isfinite().all() == finite
    if finite:
        assert (
            relative_error(got, param_distance(student.double(), target * ones.double(), start * ones.double())) < 1e-5
        )


MAPS = {
    "constant": torch.full((3, 4, 8, 8), 0.5),
    "zero": torch.zeros(3, 4, 8, 8),
    "tiny": normal(3, 4, 8, 8).float() * 1e-30,
    "huge": normal(3, 4, 8, 8).float() * 1e15,
    "odd sides": normal(3, 4, 5, 3).float(),
    "some constant": normal(3, 4, 8, 8).float() * torch.tensor([0.0, 1.0, 1e-20, 1e10]).view(1, -1, 1, 1),
}


@KINDS
@pytest.mark.parametrize("case", MAPS)
def test_the_norm_of_maps_without_variance_is_finite_and_that_of_float64(kind, case):
    def both_orders(dtype):
        z, weight = MAPS[case].to(dtype).requires_grad_(), (1 + 0.1 * normal(4)).to(dtype).requires_grad_()
        bias = uniform(4, dtype=dtype).requires_grad_()  # positive: at 0 the ReLU's kink would be a matter of rounding
        y = norm_relu_pool(z, weight, bias)
        first = torch.autograd.grad((y * normal(*y.shape).to(y)).sum(), (z, weight, bias), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first[1:]), (weight, bias))
        return y, *first[1:], *second

    got = run_as(kind, lambda: both_orders(torch.float32))
    for mine, exact in zip(got, both_orders(torch.float64), strict=True):
        assert mine.isfinite().all()
        assert relative_error(mine, exact) < 1e-4 or (mine - exact).abs().max() < 1e-5


@KINDS
def test_bfloat16_maps_without_variance_are_finite(kind):
    z = MAPS["some constant"].bfloat16().requires_grad_()
    y = run_as(kind, lambda: norm_relu_pool(z, torch.ones(4), torch.ones(4)))
    (gradient,) = run_as(kind, lambda: torch.autograd.grad(y.sum(), z))
    assert y.isfinite().all() and gradient.isfinite().all()


@KINDS
@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "flip", "scale", "rotate"])
@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (2, 3, 2, 9), (1, 1, 64, 64)])
def test_augmentation_of_constant_and_huge_images_and_of_few_pixels_is_finite(kind, strategy, shape):
    draw = DSA(strategy).draw(shape[0], shape[2:], seeds.generator(0))
    for images in (torch.full(shape, 0.5), normal(*shape).float() * 1e30):
        assert run_as(kind, lambda images=images: draw(images)).isfinite().all()


# What differs from an ordinary unroll, and whether the result is finite.
SOFT = normal(6, 3).float().softmax(1)
UNROLLS = {
    "constant images": ({"images": torch.full((6, 1, 8, 8), 0.7)}, True),
    "one class only": ({"labels": torch.zeros(6, dtype=torch.int64)}, True),
    "soft labels of huge logits": ({"labels": (normal(6, 3).float() * 1e30).softmax(1)}, True),
    "soft labels of zeros": ({"labels": 0 * SOFT}, True),
    "soft labels of huge weights": ({"labels": 1e30 * SOFT}, False),
    "a NaN among the soft labels": ({"labels": SOFT * NAN}, False),
    "a NaN among the images": (
        {"images": torch.where(torch.arange(6).view(-1, 1, 1, 1) == 2, NAN, normal(6, 1, 8, 8).float())},
        False,
    ),
    "a rate of 0": ({"lr": torch.tensor(0.0)}, True),
    "a rate of 1e-30": ({"lr": torch.tensor(1e-30)}, True),
    "a rate of 1000": ({"lr": torch.tensor(1e3)}, True),
    "a rate of 1e30": ({"lr": torch.tensor(1e30)}, False),
    "an infinite rate": ({"lr": torch.tensor(INF)}, False),
    "a rate that is NaN": ({"lr": torch.tensor(NAN)}, False),
    "momentum next to 1": ({"momentum": 0.999999}, True),
}
STUDENTS = [(NETWORK, "fused"), (NETWORK, "module"), (BATCH_NORM, "module")]
ADJOINTS = [CheckpointedUnroll, DetachedUnroll, FullUnroll]


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("network, kind", STUDENTS, ids=["fused", "module", "batch norm"])
@pytest.mark.parametrize("case", UNROLLS)
def test_an_unroll_is_that_of_float64_or_not_finite_and_so_are_its_gradients(case, network, kind, adjoint):
    changes, finite = UNROLLS[case]

    def unrolled(dtype):
        given = {
            "images": normal(6, 1, 8, 8).float(),
            "labels": torch.arange(6) % 3,
            "lr": torch.tensor(0.05),
        } | changes
        momentum = given.pop("momentum", 0.0)
        tensors = {
            name: value.to(dtype).requires_grad_() if value.is_floating_point() else value
            for name, value in given.items()
        }
        net = networks.create(network, channels=1, num_classes=3, image_size=(8, 8), generator=seeds.generator(0)).to(
            dtype
        )
        start = parameters_to_vector(net.parameters()).detach()
        student = student_of(net) if kind == "fused" else ModuleStudent(net)
        end = ddfast.unroll(student, start, **tensors, syn_steps=3, momentum=momentum, adjoint=adjoint())
        learned = [tensor for tensor in tensors.values() if tensor.requires_grad]
        return end.detach(), *torch.autograd.grad((end - start - 0.1).square().sum(), learned)

    got = unrolled(torch.float32)
    assert got[0].isfinite().all() == finite
    if finite:
        for mine, exact in zip(got, unrolled(torch.float64), strict=True):
            assert relative_error(mine, exact) < 1e-3 or (mine - exact).abs().max() < 1e-6
    else:
        assert not all(gradient.isfinite().all() for gradient in got[1:])


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"lr": INF}, "lr: expected a finite number, got inf"),
        ({"lr": NAN}, "lr: expected a finite number, got nan"),
        ({"momentum": INF}, "momentum: expected at least 0, got inf"),
        ({"weight_decay": INF}, "weight_decay: expected at least 0, got inf"),
    ],
)
def test_plain_numbers_that_are_not_finite_are_refused_by_an_unroll(options, sentence):
    net = networks.create(NETWORK, channels=1, num_classes=3, image_size=(8, 8), generator=seeds.generator(0))
    given = {"lr": 0.1} | options
    with pytest.raises(ValueError, match=sentence):
        start = parameters_to_vector(net.parameters()).detach()
        ddfast.unroll(net, start, torch.ones(3, 1, 8, 8), torch.arange(3), syn_steps=1, **given)


def arrays(pair):
    return pair[0].tensors


DATA = {
    "a NaN pixel": (lambda x, y: (x.index_fill(0, torch.tensor(3), NAN), y), "hold values that are not finite"),
    "an infinite pixel": (lambda x, y: (x.index_fill(0, torch.tensor(3), INF), y), "hold values that are not finite"),
    "a pixel beyond float32": (
        lambda x, y: (x.double().index_fill(0, torch.tensor(3), 1e300), y),
        "hold values that are not finite",
    ),
    "a negative pixel": (lambda x, y: (x - 1, y), "expected float images of 0 to 1"),
    "a channel without variance": (
        lambda x, y: (torch.cat([x, torch.full_like(x, 0.5), x], 1), y),
        "expected pixels that differ in every channel",
    ),
    "constant images": (lambda x, y: (torch.full_like(x, 0.5), y), "expected pixels that differ in every channel"),
    "one class only": (lambda x, y: (x, 0 * y), "expected at least two classes"),
}


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_learned_from_is_refused(pair, case, zca):
    change, sentence = DATA[case]
    changed = change(*arrays(pair))
    with pytest.raises(ValueError, match=sentence):
        load_dataset((changed, changed), zca=zca)


@pytest.mark.parametrize("std", [0.0, NAN, INF, 1e-30, -1e30])
def test_statistics_that_are_no_scale_are_refused(std):
    with pytest.raises(ValueError, match=r"std: expected numbers from 1e-06 to 1e[+]06"):
        Preprocessing((0.5,), (std,))
    with pytest.raises(ValueError, match=r"mean: expected numbers up to 1e[+]06 in size"):
        Preprocessing((NAN,), (1.0,))


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("case", ["every image constant", "one image per class"])
def test_data_with_little_in_it_gives_a_finite_run(pair, tmp_path, case, zca):
    images, labels = arrays(pair)
    if case == "one image per class":
        images, labels = images[:3], labels[:3]
    else:
        images = images.mean((1, 2, 3), keepdim=True).expand_as(images).clone()
    result = ddfast.distill(
        ((images, labels), (images, labels)), output=tmp_path / "run", network=NETWORK, zca=zca, **SMALL
    )
    assert_finite_files(tmp_path / "run")
    assert len(result.history) == SMALL["iterations"]


@pytest.fixture
def synthetic(pair):
    data = load_dataset(pair)
    images, labels = data.random_real(1, seeds.generator(0))
    return SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing)


SETS = [
    ("images", lambda s: s.images * NAN, "images: expected finite values"),
    ("images", lambda s: s.images * INF, "images: expected finite values"),
    ("images", lambda s: s.images * 1e30, "images: expected values up to 1e[+]09"),
    ("labels", lambda s: torch.full((3, 3), NAN), "labels: expected finite values"),
    ("labels", lambda s: torch.full((3, 3), -INF), "labels: expected finite values"),
    ("lr", lambda s: torch.tensor(NAN), "lr: expected finite values"),
    ("lr", lambda s: torch.tensor(INF), "lr: expected finite values"),
]


@pytest.mark.parametrize("name, value, sentence", SETS)
def test_a_set_that_is_not_finite_is_neither_made_nor_written_nor_evaluated(
    pair, synthetic, tmp_path, name, value, sentence
):
    with pytest.raises(ValueError, match=sentence):
        replace(synthetic, **{name: value(synthetic)})
    setattr(synthetic, name, value(synthetic))
    for use in (lambda: synthetic.save(tmp_path / "set"), lambda: ddfast.evaluate(synthetic, pair, num_eval=1)):
        with pytest.raises(ValueError, match=sentence):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", [NETWORK, BATCH_NORM, f"{NETWORK}:norm=none", "mlp"])
@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_network_that_diverges_in_an_evaluation_is_named_with_its_rate(pair, synthetic, caplog, network, lr):
    with caplog.at_level("WARNING", "ddfast"):
        result = ddfast.evaluate(
            synthetic, pair, networks=(network,), num_eval=1, eval_epochs=20, eval_lr=lr, device="cpu"
        )
    assert 0 <= result.mean <= 100
    assert f"{network} trained at rate {lr:g}: training diverged" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "ddfast"):
        ddfast.evaluate(synthetic, pair, networks=(network,), num_eval=1, eval_epochs=5, eval_lr=1e-3, device="cpu")
    assert "diverged" not in caplog.text


def test_soft_labels_of_huge_logits_are_those_of_the_classes(pair, synthetic):
    soft = replace(synthetic, labels=torch.eye(3)[synthetic.labels] * 1e30)
    results = [ddfast.evaluate(s, pair, networks=(NETWORK,), num_eval=1, eval_epochs=20) for s in (soft, synthetic)]
    assert results[0] == results[1]


def test_a_snapshot_that_is_not_finite_is_named_or_refused(pair, tmp_path, caplog):
    data = load_dataset(pair)
    store = TrajectoryStore.create(tmp_path / "experts", {"network": NETWORK}, 2)
    P = sum(
        p.numel() for p in networks.create(NETWORK, generator=seeds.generator(0), **data.network_arguments).parameters()
    )
    store.add(0, torch.stack([torch.zeros(P), torch.full((P,), 1e-30), torch.full((P,), NAN)]))
    with pytest.raises(ValueError, match="the snapshot of epoch 2 holds values that are not finite"):
        store.snapshot(0, 2)
    with pytest.raises(ValueError, match="the snapshots of epochs 0 and 1 are equal"):
        store.segment(0, 0, 1)  # so near that their squared distance is 0
    with caplog.at_level("WARNING", "ddfast"):
        evaluate_snapshots(data, NETWORK, [torch.full((P,), NAN)], "cpu")
    assert f"a snapshot of {NETWORK}: training diverged" in caplog.text


def not_json(word):
    pytest.fail(f"{word} is not JSON")


def assert_finite_files(run):
    for name in ("synthetic", "initial"):
        assert SyntheticSet.load(run / name).images.isfinite().all()
    for file in [*run.glob("*.json"), *run.glob("*.jsonl")]:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(text, parse_constant=not_json)


FINISHES, DIVERGES = "finishes", "diverges"
RUNS = [
    ({"lr_img": 0.0}, FINISHES),
    ({"lr_img": 1e30}, DIVERGES),
    ({"lr_img": 1e30, "network": BATCH_NORM}, DIVERGES),
    ({"lr_img": 1e30, "batch_syn": 1, "syn_steps": 2}, DIVERGES),  # a part of the set visits
    ({"lr_lr": 1e3}, DIVERGES),
    ({"lr_teacher": 1e-30}, FINISHES),
    ({"lr_teacher": 1e3}, DIVERGES),
    ({"lr_teacher": 1e30}, DIVERGES),
    ({"syn_momentum": 0.999999}, FINISHES),
    ({"start_noise": 1e30}, DIVERGES),
    ({"mom": 0.999999}, FINISHES),
    ({"method": "datm", "lr_label": 1e30}, DIVERGES),
    ({"method": "pp", "pruning_threshold": 1 - 1e-12}, DIVERGES),  # of all parameters: 0/0
    ({"method": "pad", "drop_ratio": 0.999999}, FINISHES),
    ({"method": "simplified", "lr_img": 1e30}, DIVERGES),
    ({"method": "ftd", "lr_img": 1e30}, DIVERGES),
    ({"method": "tesla", "lr_teacher": 1e10}, DIVERGES),
    ({"method": "att", "lr_teacher": 1e10}, DIVERGES),
]


@pytest.mark.parametrize("options, outcome", RUNS, ids=[str(options) for options, _ in RUNS])
def test_a_run_of_extreme_settings_ends_finite_or_says_that_it_diverged(pair, tmp_path, options, outcome):
    job = SMALL | {"network": NETWORK, "iterations": 24, "device": "cpu"} | options
    if outcome == DIVERGES:
        with pytest.raises(DistillationDivergedError, match=r"20 updates in a row .* try a smaller lr_teacher"):
            ddfast.distill(pair, output=tmp_path / "run", **job)
    else:
        result = ddfast.distill(pair, output=tmp_path / "run", **job)
        assert result.synthetic.images.abs().max() <= 1e9
    assert_finite_files(tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["skipped"] == sum(not record["updated"] for record in records)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"train_lr": INF}, "expected a positive number"),
        ({"train_lr": 1e30}, "expert 0 diverged"),
        ({"train_lr": 1e-30}, "are equal: there is no trajectory to match"),
        ({"l2": INF}, "l2: expected a number of at least 0, got inf"),
        ({"l2": 1e30}, "expert 0 diverged"),
        ({"optimizer": "gsam", "rho": 1e30}, "rho: expected a positive number up to 1000"),
        ({"optimizer": "gsam", "alpha": 1e30}, "expert 0 diverged"),
        ({"lr_img": INF}, "lr_img: expected a number from 0 to 1e[+]30, got inf"),
        ({"lr_teacher": 0.0}, "lr_teacher: expected a number above 0"),
        ({"start_noise": NAN}, "start_noise: expected a number from 0 to 1e[+]30, got nan"),
        ({"threshold": NAN}, "threshold: expected a positive number, got nan"),
        ({"syn_momentum": 1.0}, "syn_momentum: expected a number from 0 to below 1"),
    ],
)
def test_a_run_that_cannot_be_is_one_sentence(pair, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **SMALL | {"network": NETWORK} | options)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_an_ascent_so_long_that_it_overflows_is_refused():
    with pytest.raises(ValueError, match=r"rho: expected a positive number up to 1000, got 1e[+]30"):
        GSAM(1e30, 0.0)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_images_of_few_pixels_run_on_a_network_that_takes_them_and_are_refused_by_others(pair, side):
    data = [tuple(t[:, :, :side, :side].clone() if t.dim() == 4 else t for t in part.tensors) for part in pair]
    loaded = load_dataset(tuple(data))
    assert isinstance(loaded, Dataset)
    if side == 1:
        with pytest.raises(ValueError, match="image_size: expected at least 2 pixels a side"):
            networks.create("convnet", generator=seeds.generator(0), **loaded.network_arguments)
    name = "mlp" if side == 1 else "convnet:width=4"
    net = networks.create(name, generator=seeds.generator(0), **loaded.network_arguments)
    start = parameters_to_vector(net.parameters()).detach()
    images = loaded.preprocessing.apply(loaded.train_images[:3]).requires_grad_()
    loss = ddfast.match_trajectory(net, start, start + 0.01, images, torch.arange(3), 0.1, syn_steps=2)
    (gradient,) = torch.autograd.grad(loss, images)
    assert loss.isfinite() and gradient.isfinite().all()
