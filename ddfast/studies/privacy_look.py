"""A look at privacy: how near distilled images are to training images, and whether networks give members away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddfast.data import Batches, Dataset, SyntheticSet
from ddfast.data.synthetic import DEFAULT_LR
from ddfast.engine.students.features import features_of
from ddfast.evaluation import schedule_of
from ddfast.evaluation.judging import BATCH, logits_of
from ddfast.run.transfer import set_and_data
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole
from ddfast.studies.tables import Table, save_table, study_folder

STUDY = "privacy"
USUAL = 1000  # test images whose distances are the usual ones
CHUNK = 1024  # training images that are compared at a time


def privacy(
    synthetic: str | Path | SyntheticSet,
    dataset: Any,
    output: str | Path,
    *,
    network: str | None = None,
    eval_epochs: int = 300,
    most: int = 10000,
    seed: int = 0,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
) -> Table:
    """The nearest training image of every distilled one, in pixels and in features, and a membership-inference attack.

    Features are those of a network that was trained on the set. A distance is compared with what test images, which no
    one trained on, have to their nearest training image: a ratio far below 1 says that an image is a copy. The attack
    (Yeom et al. 2018) calls images of small loss members; 0.5 is guessing. The same is said of as many random real
    images, which are copies, and of a network that was trained on them.

    Args:
        synthetic: a set, the path of one, or of a run folder.
        dataset: what it was distilled from, as load_dataset takes it; None for the run's.
        output: the folder.
        network: None for the set's own.
        eval_epochs: of the networks.
        most: training and test images that the attack looks at, drawn by the seed. Nearest ones are those of all.

    Rows: an image each: index, class, the index of the nearest training image and the ratio, in pixels and in features.
    Findings: the median ratios, those of random real images, and the areas under the attack's ROC curve.
    A look, not a proof: no guarantee such as differential privacy follows from a good one.
    """
    expect_whole(eval_epochs=eval_epochs, most=most)
    synthetic, data = set_and_data(synthetic, dataset, data_root)
    subject = {"set": synthetic.digest, "dataset": data.name}
    folder = study_folder(output, STUDY, subject)
    decoded = synthetic.decoded()
    name = network or synthetic.network or "convnet"
    schedule = schedule_of("ddfast", eval_epochs, None, decoded.dsa_strategy, None, 1, device, None)
    lr = DEFAULT_LR if decoded.lr is None or name != synthetic.network else float(decoded.lr)
    members, others = _drawn(data, most, seed)
    real = data.random_real(data.available(decoded.ipc), seeds.generator(seed, "random_real"))
    findings: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for of, pair, rate in (("distilled", (decoded.images, decoded.targets), lr), ("random_real", real, DEFAULT_LR)):
        sets = [(pair[0].to(schedule.device), pair[1].to(schedule.device))]
        generators = [seeds.generator(seed, "privacy", of)]
        (net,) = schedule.networks(name, rate, data, sets, generators, decoded.parameterisation)
        found = _nearest(net, pair[0], data, others[:: -(-len(others) // USUAL)], schedule.device)
        for space, (nearest, ratio) in found.items():
            findings[f"median_ratio_in_{space}_of_{of}"] = float(ratio.median())
            if of == "distilled":
                rows = rows or [{"image": n, "class": int(k)} for n, k in enumerate(decoded.classes)]
                for n, row in enumerate(rows):
                    row |= {f"nearest_in_{space}": int(nearest[n]), f"ratio_in_{space}": float(ratio[n])}
        findings[f"attack_auc_of_{of}"] = _attack(net, data, members, others, schedule.device)
    settings = subject | {"network": name, "eval_epochs": eval_epochs, "most": most, "seed": seed}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": findings}
    save_table(table, folder)
    return table


def _drawn(data: Dataset, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of training and of test images that are looked at."""
    chosen = []
    for part, count in (("train", len(data.train_labels)), ("test", len(data.test_labels))):
        order = torch.randperm(count, generator=seeds.generator(seed, "privacy", part))
        chosen.append(order[:most].sort().values)
    return chosen[0], chosen[1]


def _nearest(
    net: nn.Module, images: Tensor, data: Dataset, some: Tensor, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """By space: the nearest training image of each image, and its distance over the median one of some test images."""
    train = data.train_batches(device)
    net.eval()

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, F]
        return features_of(net, x)[0]

    test = Batches(data.test_images[some], data.test_labels[some], data.preprocessing, device)
    found = {}
    for space, seen in (("pixels", lambda x: x.flatten(1)), ("features", features)):
        points = torch.cat([seen(images.to(device)), *(seen(x) for x, _ in test.in_order(BATCH))])
        distances, nearest = nearest_members(points, train, seen)
        usual = distances[len(images) :].median()
        found[space] = nearest[: len(images)], distances[: len(images)] / usual.clamp(min=1e-12)
    return found


def nearest_members(
    points: Tensor,  # [B, F]
    train: Batches,
    seen: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # [B], int64 [B]
    """The distance to the nearest training image, and its place."""
    least = points.new_full((len(points),), float("inf"))
    places, first = torch.zeros(len(points), dtype=torch.int64, device=points.device), 0
    for images, _ in train.in_order(CHUNK):
        distances, nearest = torch.cdist(points, seen(images)).min(1)
        places = torch.where(distances < least, nearest + first, places)
        least, first = torch.minimum(least, distances), first + len(images)
    nearest_images = torch.cat([seen(train.take(part)[0]) for part in places.split(CHUNK)])
    return (points - nearest_images).norm(dim=1).cpu(), places.cpu()  # `cdist` rounds what is nearly zero


def _attack(net: nn.Module, data: Dataset, members: Tensor, others: Tensor, device: torch.device) -> float:
    """The area under the ROC curve of "a small loss is a member's"."""
    from sklearn.metrics import roc_auc_score

    losses, labels = [], []
    for images, classes, is_member in (
        (data.train_images[members], data.train_labels[members], 1),
        (data.test_images[others], data.test_labels[others], 0),
    ):
        logits, targets = logits_of(net, Batches(images, classes, data.preprocessing, device))
        losses.append(cross_entropy(logits, targets, reduction="none").cpu())
        labels += len(targets) * [is_member]
    return float(roc_auc_score(labels, -torch.cat(losses).nan_to_num(posinf=1e9).numpy()))
