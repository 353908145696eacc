"""Architecture search: whether a distilled set ranks networks as real data do."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ddfast.data import SyntheticSet
from ddfast.evaluation import Evaluation, evaluate, evaluate_full_data
from ddfast.evaluation.scores import rank_correlation
from ddfast.run.transfer import set_and_data
from ddfast.runtime import seeds
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks
from ddfast.studies.tables import Table, save_picture, save_table, study_folder

STUDY = "architectures"

SPACE: dict[str, tuple[Any, ...]] = {  # DC's and FTD's 720 ConvNets
    "width": (32, 64, 128, 256),
    "depth": (1, 2, 3, 4),
    "norm": ("none", "batchnorm", "layernorm", "instancenorm", "groupnorm"),
    "activation": ("sigmoid", "relu", "leakyrelu"),
    "pooling": ("none", "maxpooling", "avgpooling"),
}
TOP = (5, 10, 20)
STAGES = ("networks on the set", "networks on real data")


def networks_of_space() -> list[str]:
    """The names of all networks of the space."""
    return ["convnet" + "".join(f":{key}={value}" for key, value in zip(SPACE, row, strict=True))
            for row in product(*SPACE.values())]  # fmt: skip


def architectures(
    synthetic: str | Path | SyntheticSet,
    dataset: Any,
    output: str | Path,
    *,
    count: int = 720,
    eval_epochs: int = 200,
    full_epochs: int = 20,
    eval_lr: Any = "learned",
    top: Sequence[int] = TOP,
    seed: int = 0,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    ranks: Ranks = ALONE,
) -> Table:
    """Train networks of FTD's search space on a set and on real data, and compare the rankings.

    Args:
        synthetic: the proxy: a set, the path of one, or of a run folder.
        dataset: real data, as load_dataset takes them; None for the run's.
        output: the folder; accuracies.jsonl there keeps every training.
        count: of the 720 networks so many, two or more, drawn by the seed.
        eval_epochs: epochs on the set; 200 in FTD.
        full_epochs: epochs on real data, at rate 0.01, a tenth of it after half of them.
        eval_lr: as `evaluate` takes it.
        top: Spearman's correlation is of the best 5, 10 and 20 networks, chosen by real data and by the proxy, for the
            paper does not say by which; and of all.

    Rows: network, proxy and real accuracy in percent. Findings: the correlations, the network that the proxy chooses
    and the best one, and the seconds that both took.
    Source: Du et al. 2023 (FTD), section 4.4: on CIFAR-10, ipc 50, MTT 0.41, 0.36, −0.04 and FTD 0.87, 0.68, 0.54 of
    the top 5, 10, 20.
    """
    expect_whole(count=count, eval_epochs=eval_epochs, full_epochs=full_epochs)
    if count < 2:
        raise ValueError("count: one network has no rank; give 2 or more")
    synthetic, data = ranks.in_turn(lambda: set_and_data(synthetic, dataset, data_root))
    of = {"set": synthetic.digest, "dataset": data.name}
    folder = study_folder(output, STUDY, of)
    every = networks_of_space()
    drawn = torch.randperm(len(every), generator=seeds.generator(seed, "architectures"))[:count].sort().values
    names = [every[n] for n in drawn.tolist()]
    how = {"networks": names, "num_eval": 1, "seed": seed, "device": device, "ranks": ranks}
    how |= {"output": folder / "accuracies.jsonl"}
    forecast = Forecast({stage: float(len(names)) for stage in STAGES})  # until some networks say how long they take
    how |= {"forecast": forecast}
    forecast.begin(STAGES[0], len(names))
    proxy = evaluate(synthetic, data, eval_epochs=eval_epochs, eval_lr=eval_lr, **how)
    forecast.begin(STAGES[1], len(names))
    real = evaluate_full_data(data, epochs=full_epochs, dsa_strategy=synthetic.dsa_strategy, **how)
    rows = [
        {"network": name, "proxy": proxy.of(name).mean, "real": real.of(name).mean, "lr": proxy.rates[name]}
        for name in names
    ]

    def correlation(chosen: list[dict[str, Any]]) -> float | None:
        return rank_correlation([row["proxy"] for row in chosen], [row["real"] for row in chosen])

    findings: dict[str, Any] = {"all": correlation(rows)}
    for by in ("real", "proxy"):
        ranked = sorted(rows, key=lambda row: -row[by])
        findings |= {f"top_{k}_by_{by}": correlation(ranked[:k]) for k in top if k <= len(rows)}
    findings["chosen_by_proxy"] = max(rows, key=lambda row: row["proxy"])
    findings["best"] = max(rows, key=lambda row: row["real"])
    findings |= {"seconds_of_proxy": _seconds(proxy), "seconds_of_real_data": _seconds(real)}
    settings = of | {"count": count, "eval_epochs": eval_epochs, "full_epochs": full_epochs, "seed": seed}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": findings}

    def draw(axes: Any) -> None:
        axes.scatter([row["proxy"] for row in rows], [row["real"] for row in rows], s=8)
        axes.set(xlabel="accuracy after the distilled set in %", ylabel="accuracy after real data in %")

    if ranks.is_first:
        save_table(table, folder)
        save_picture(draw, folder)
    return table


def _seconds(result: Evaluation) -> float:
    return sum(record["seconds"] for records in result.records.values() for record in records)
