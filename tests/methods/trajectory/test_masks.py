"""EDF's masks and SelMatch's real images: what is multiplied by what, and whole jobs."""

import pytest
import torch

import ddfast
from ddfast.data import load_dataset
from ddfast.experts import Judges
from ddfast.experts.grad_cam import grad_cam
from ddfast.methods import METHODS
from ddfast.networks import create
from ddfast.run.resolve import resolve
from tests.conftest import SMALL, interrupt_after, normal, relative_error

JOB = SMALL | {"network": "convnet:width=8", "batch_train": 6, "zca": False, "checkpoint_every": 1, "ipc": 2}
JOB |= {"current_max_start_epoch": None, "expansion_end": None, "min_start_epoch": 0, "device": "cpu"}


def distillation(pair, **options):
    job = resolve({"dataset": pair, **{n: v for n, v in (JOB | options).items() if v is not None}})
    how = {name: job.config[name] for name in ("network", "num_experts", "train_epochs", "batch_train", "train_lr")}
    how |= {name: job.config[name] for name in ("optimizer", "rho", "alpha", "dsa_strategy", "mom", "l2")}
    return ddfast.Distillation(job, ddfast.train_experts(job.data, **how))


def test_a_map_is_that_of_grad_cam_plus_plus_without_noise(monkeypatch):
    monkeypatch.setattr("ddfast.experts.grad_cam.NOISE", 0.0)
    net = create("convnet:width=6:depth=2", channels=1, num_classes=3, image_size=(16, 16),
                 generator=torch.Generator().manual_seed(0)).double()  # fmt: skip
    images, classes = normal(3, 1, 16, 16), torch.tensor([0, 2, 1])
    got = grad_cam(net, images, classes, torch.Generator())
    maps = net.features[:8](images)
    logits = net.classifier(maps.flatten(1))
    (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    for n in range(3):
        cam = 0
        for A, g in zip(maps[n].detach(), slope[n], strict=True):
            below = 2 * g**2 + (g**3 * A).sum()
            alpha = torch.where(below != 0, g**2 / below, 0.0)
            cam = cam + (alpha * g.relu()).sum() * A
        cam = cam.relu()
        cam = (cam - cam.min()) / (cam.max() - cam.min())
        size = {"size": (16, 16), "mode": "bilinear", "align_corners": False}
        expected = torch.nn.functional.interpolate(cam[None, None], **size)[0, 0]
        assert relative_error(got[n], expected) < 1e-9


def test_edf_multiplies_the_gradient_by_its_masks_and_looks_again_after_the_interval(pair):
    run = distillation(pair, method="edf", cam_interval=2, iterations=4, labels="hard", init="real", lr_label=0.0)
    method, masks = run.method, []
    for _ in range(3):
        method.step()
        masks.append(method.mask)
    assert masks[0] is masks[1] and masks[2] is not masks[1]
    data, net = (
        method.resources.data,
        create("convnet:width=8", generator=torch.Generator(), **load_dataset(pair).network_arguments),
    )
    judge = Judges(net, method.resources.experts, 1, data).network(0)
    images = method.current().images
    cam = grad_cam(judge, images, method.current().labels, torch.Generator().manual_seed(4))
    method._done = 4
    expected = torch.where(cam < cam.mean((1, 2), keepdim=True), 1.0, cam + 1.0)[:, None]
    assert torch.equal(method._masks(), expected) and expected.max() > 1.5 and expected.min() == 1


def test_the_mask_is_a_factor_of_the_update(pair):
    changes = []
    for factor in (None, 1.0, 3.0):
        run = distillation(pair, method="edf", cam_strength=0.0, labels="hard", init="real", lr_label=0.0, lr_img=1.0)
        before = run.method.current().images
        run.method.mask = None if factor is None else torch.full((len(before), 1, 16, 16), factor)
        run.method.step()
        changes.append(run.method.current().images - before)
    assert torch.equal(changes[0], changes[1]) and relative_error(changes[2], 3 * changes[0]) < 1e-4


@pytest.mark.parametrize("name", ["edf", "selmatch", "mct"])
def test_it_resumes_bit_for_bit_where_masks_change(name, pair, tmp_path):
    options = JOB | {"method": name, "iterations": 5} | ({"cam_interval": 3} if name == "edf" else {})
    options |= {} if name == "edf" else {"labels": "hard"}
    options = {key: value for key, value in options.items() if value is not None}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **options)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_selmatch_learns_the_first_share_of_each_class_and_keeps_the_rest_real(optimizer, pair):
    options = {"method": "selmatch", "ipc": 4, "distilled_share": 0.5, "img_optimizer": optimizer, "batch_syn": 5}
    run = distillation(pair, iterations=3, lr_img=0.1, **{k: v for k, v in options.items()})
    before = run.method.current()
    for _ in range(3):
        run.method.step()
    after = run.method.current()
    for k in range(3):
        members = (before.labels == k).nonzero()[:, 0]
        changed = [not torch.equal(before.images[n], after.images[n]) for n in members]
        assert changed == [True, True, False, False]
    data = load_dataset(pair)
    real = data.preprocessing.apply(data.train_images)
    assert all(any(torch.equal(image, other) for other in real) for image in before.images)


@pytest.mark.parametrize("start, ranks", [(0.0, range(3)), (0.5, range(4, 7)), (0.9, range(5, 8))])
def test_the_window_leaves_out_the_hardest(start, ranks, pair):
    run = distillation(pair, method="selmatch", ipc=3, window_start=start, iterations=1)
    data, experts = load_dataset(pair), run.method.resources.experts
    net = create("convnet:width=8", generator=torch.Generator(), **data.network_arguments)
    scores = Judges(net, experts, 2, data).difficulty("el2n")
    real, images = data.preprocessing.apply(data.train_images), run.method.current().images
    for k in range(3):
        hardest = sorted((n for n in range(24) if data.train_labels[n] == k), key=lambda n: -float(scores[n]))
        found = {n for image in images[3 * k : 3 * k + 3] for n in range(24) if torch.equal(real[n], image)}
        assert found == {hardest[rank] for rank in ranks}


@pytest.mark.parametrize("rule", ["parameters", "tensors", "depth"])
def test_pad_leaves_out_by_its_rule(rule, pair):
    options = {"labels": "hard", "init": "real", "lr_label": 0.0, "curriculum": "none", "drop_ratio": 0.5}
    method = distillation(pair, method="pad", drop_by=rule, **options).method
    sizes = [p.numel() for p in method.resources.network.parameters()]
    student, target, start = (normal(2, sum(sizes), seed=seed) for seed in (1, 2, 3))
    squares = (student - target).square()
    kept = torch.zeros_like(squares)
    for s in range(2):
        if rule == "parameters":
            kept[s][squares[s].argsort()[sum(sizes) // 2 :]] = 1
            continue
        pieces = squares[s].split(sizes)
        order = (
            range(len(sizes)) if rule == "depth" else sorted(range(len(sizes)), key=lambda n: float(pieces[n].sum()))
        )
        stays = set(list(order)[len(sizes) // 2 :])
        kept[s] = torch.cat([torch.full((size,), float(n in stays)) for n, size in enumerate(sizes)])
    expected = (kept * squares).sum(1) / (kept * (start - target).square()).sum(1)
    assert relative_error(method.compare(student, target, start), expected) < 1e-9


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"method": "edf", "canvas": 2}, r"cam_strength: areas are those of pixels"),
        ({"method": "edf", "parameterisation": "tiles"}, r"cam_strength: areas are those of pixels"),
        ({"method": "edf", "network": "mlp"}, r"network: .* shows no maps|network: .* no linear layer"),
        ({"method": "selmatch", "parameterisation": "bases"}, r"distilled_share: all images share their bases"),
        ({"method": "selmatch", "distilled_share": 0.0}, r"distilled_share: expected"),
        ({"method": "mct", "waypoints": 1}, r"waypoints: expected"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, sentence, pair, tmp_path):
    given = {key: value for key, value in (JOB | options).items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_cuda_graph_is_not_used_with_masks(pair, caplog):
    distillation(pair, method="selmatch", cuda_graph=True)
    assert "cuda_graph: not used" in caplog.text and METHODS["selmatch"].masks
