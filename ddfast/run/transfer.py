"""A transfer table: a saved set, or the set of a run, tested on networks beside its baselines, with scores."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ddfast.data import READING, Dataset, SyntheticSet
from ddfast.data.augment import NO_STRATEGY
from ddfast.data.ipc import in_words
from ddfast.evaluation import (
    Evaluation,
    asked_rates,
    begin_forecast,
    check_evaluation,
    data_for,
    evaluate,
    evaluate_full_data,
    evaluate_random_real,
    more_baselines,
    names_of,
    networks_of,
    protocol_named,
    schedule_of,
)
from ddfast.evaluation.costs import cost_of
from ddfast.evaluation.protocols import strategy_of_dsa
from ddfast.evaluation.scores import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    recalls,
)
from ddfast.experts import Judges, TrajectoryStore
from ddfast.networks import create
from ddfast.run.folder import RunFolder
from ddfast.run.resume import test_folder_of
from ddfast.runtime import seeds
from ddfast.runtime.devices import resolve_device
from ddfast.runtime.files import replacing
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

DISTILLED = "distilled images"
RANDOM_REAL = "random real images"


def transfer_table(
    synthetic: str | Path | SyntheticSet,
    dataset: Any = None,
    *,
    networks: Sequence[Any] | None = None,
    num_eval: int = 5,
    eval_lr: Any = None,
    protocol: str = "ddfast",
    random_real: bool = True,
    baselines: str = "labelled",
    scores: bool = False,
    full_epochs: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dsa_strategy: str | None = None,
    eval_epochs: int | None = None,
    eval_batch: int | None = None,
    sam_rho: float | None = None,
    output: str | Path | None = None,
    ranks: Ranks = ALONE,
    **data_options: Any,
) -> dict[str, Any]:
    """Networks trained on a set, and on as many random real images: accuracies, rates, seconds, sizes and scores.

    Args:
        synthetic: a set, the path of one, or of a run folder, whose data, networks and experts are then taken.
        dataset: what to test on, as load_dataset takes it; None for the run's.
        networks: as `evaluate` takes them; None for those of the run, or the one that the set was distilled for.
        random_real, baselines: which random real images stand beside it: none; trained on as the set is; also "plain"
            (without augmentation), "labelled" (softly, by the run's experts), or "all" of them.
        scores: also class-wise accuracy, calibration, robustness, compression and those of DD-Ranking, by the first
            network; with `full_epochs` those that compare with full data too.
        full_epochs: also train each network on the whole training set for so many epochs.

    The other arguments are those of `ddfast.evaluate`.
    Returns "rows" (network, trained_on, mean, std, n, accuracies, lr, seconds, parameters, flops, and at_chance where a
    network learned nothing), "own" (the network that the set was distilled for), "others" (mean and best of the other
    networks, trained on the set), "scores", and "protocol".

    Errors: as those of `evaluate`; ValueError where no data set is known.
    """
    loaded, config = _loaded(synthetic)
    data = ranks.in_turn(lambda: _data(loaded, dataset, config, data_options, synthetic))
    names = names_of(networks or config.get("networks") or networks_of(loaded))
    check_evaluation(names, protocol, data)
    strategy = loaded.dsa_strategy if dsa_strategy is None else dsa_strategy
    asked = asked_rates(eval_lr, names, loaded.network, protocol_named(protocol))
    more = more_baselines(baselines, loaded.is_soft, strategy != NO_STRATEGY) if random_real else []
    schedule = schedule_of(protocol, eval_epochs, eval_batch, strategy, sam_rho, num_eval, device, None)
    sets = 1 + random_real + len(more)
    forecast = begin_forecast(data, len(loaded), asked, num_eval, schedule, ranks, sets)
    how: dict[str, Any] = {
        "networks": names,
        "num_eval": num_eval,
        "eval_lr": asked,
        "protocol": protocol,
        "seed": seed,
    }
    how |= {"device": device, "dsa_strategy": strategy, "eval_epochs": eval_epochs, "eval_batch": eval_batch}
    how |= {"sam_rho": sam_rho, "output": output, "ranks": ranks, "forecast": forecast}
    found = {DISTILLED: evaluate(loaded, data, scores=scores, **how)}
    count = in_words(data.available(loaded.stored_ipc))
    ways: dict[str, dict[str, Any]] = {f"{RANDOM_REAL}, {count}": {}} if random_real else {}
    if "plain" in more:
        ways[f"{RANDOM_REAL}, {count}, not augmented"] = {"augmented": False}
    if "labelled" in more and (labels := _labels(config, data, device)) is not None:
        ways[f"{RANDOM_REAL}, {count}, labelled by experts"] = {"labels": labels}
    for words, way in ways.items():
        found[words] = evaluate_random_real(data, loaded.stored_ipc, **way, **how)
    if full_epochs is not None:
        of_full = {name: how[name] for name in ("networks", "seed", "device", "output", "ranks")}
        of_full["eval_lr"] = None if isinstance(eval_lr, Mapping) else eval_lr
        found["full data"] = evaluate_full_data(data, epochs=full_epochs, dsa_strategy=strategy, **of_full)
    table: dict[str, Any] = {"own": loaded.network, "protocol": protocol, "rows": _rows(found, data)}
    others = None if loaded.network is None else found[DISTILLED].others(loaded.network)
    if others is not None:
        best = max(others.accuracies, key=lambda name: others.of(name).mean)
        table["others"] = {"mean": others.mean, "best": {"network": best, "mean": others.of(best).mean}}
    if scores:
        table["scores"] = _scores(loaded, data, found, how)
    return table


def save_transfer(table: dict[str, Any], path: str | Path) -> None:
    """Write a table as JSON, in place of one that is there."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n")


def set_and_data(
    synthetic: str | Path | SyntheticSet, dataset: Any = None, data_root: Any = None
) -> tuple[SyntheticSet, Dataset]:
    """A set, a saved one, or a run's, and the data to test it on, read as the run read them."""
    loaded, config = _loaded(synthetic)
    return loaded, _data(loaded, dataset, config, {"data_root": data_root}, synthetic)


def experts_of(synthetic: str | Path | SyntheticSet) -> TrajectoryStore:
    """Those of the run that made a set; ValueError where they are not there."""
    path = _experts_path(_loaded(synthetic)[1])
    if path is None:
        raise ValueError(f"experts: {_words(synthetic)} comes with none; give a folder of experts")
    return TrajectoryStore(path)


def _experts_path(config: dict[str, Any]) -> str | None:
    """Where the experts of a run are, given or trained."""
    return config.get("experts") or config.get("trained_experts", {}).get("path")


def _loaded(synthetic: str | Path | SyntheticSet) -> tuple[SyntheticSet, dict[str, Any]]:
    """The set, and the settings of its run where it is in a run folder."""
    if isinstance(synthetic, SyntheticSet):
        return synthetic, {}
    path = Path(synthetic)
    folder = path if path.is_dir() else path.parent
    config = RunFolder(folder).read_config() if path.is_dir() or RunFolder(folder).has_config else {}
    return SyntheticSet.load(path / "synthetic" if path.is_dir() else path), config


def _words(synthetic: str | Path | SyntheticSet) -> str:
    return "the set" if isinstance(synthetic, SyntheticSet) else str(synthetic)


def _data(
    loaded: SyntheticSet,
    dataset: Any,
    config: dict[str, Any],
    options: dict[str, Any],
    given: str | Path | SyntheticSet,
) -> Dataset:
    """What to test on, read as the run read it."""
    dataset = config.get("dataset") if dataset is None else dataset
    if dataset is None or (isinstance(dataset, str) and dataset == "custom"):
        raise ValueError(f"--dataset: say what to test {_words(given)} on (in Python, dataset)")
    if isinstance(dataset, Dataset):
        return data_for(loaded, dataset)
    reading = {name: options.get(name) for name in READING}
    if isinstance(dataset, str) and dataset == config.get("dataset"):
        had = config | {"test_folder": test_folder_of(config, dataset)}
        reading = {name: had.get(name) if value is None else value for name, value in reading.items()}
        reading["hold_out"] = config.get("hold_out")
    reading |= {"data_root": options.get("data_root") or config.get("data_root"), "download": options.get("download")}
    return data_for(loaded, dataset, **{name: value for name, value in reading.items() if value is not None})


def _labels(
    config: dict[str, Any], data: Dataset, device: str | torch.device | None
) -> Callable[[int, Tensor], Tensor] | None:
    """Soft labels of real images, by the experts of the run; None, and a line of the log, where they are not there."""
    try:
        store = TrajectoryStore(_experts_path(config) or "")
    except (ValueError, OSError):
        log.info("random real images labelled by experts: left out, for the experts of the run are not there")
        return None
    network = create(config["network"], generator=seeds.generator(0), **data.network_arguments)
    return Judges(network.to(resolve_device(device)), store, config.get("num_experts"), data).in_turn


def _rows(found: dict[str, Evaluation], data: Dataset) -> list[dict[str, Any]]:
    """A row per network and what it was trained on."""
    rows = []
    for name in found[DISTILLED].accuracies:
        cost = cost_of(name, data)._asdict()
        for trained_on, result in found.items():
            row = {"n": result.of(name).n, "seconds": fmean(record["seconds"] for record in result.records[name])}
            rows.append(
                {"network": name, "trained_on": trained_on, **row, **cost, **result.summary()["networks"][name]}
            )
    return rows


def _scores(loaded: SyntheticSet, data: Dataset, found: dict[str, Evaluation], how: dict[str, Any]) -> dict[str, Any]:
    """What the first network says of a set, beside its accuracy."""
    first = next(iter(found[DISTILLED].accuracies))
    records, reached = found[DISTILLED].records[first], found[DISTILLED].of(first).mean
    classes = torch.tensor([recalls(record["confusion"]) for record in records]).mean(0).tolist()
    confusion = torch.tensor([record["confusion"] for record in records]).sum(0)
    scores: dict[str, Any] = {
        "confusion": confusion.tolist(),  # rows: the class of an image; columns: what it was taken for
        "accuracy_of_classes": dict(zip(data.class_names, classes, strict=True)),
        "expected_calibration_error": fmean(record["calibration_error"] for record in records),
        "log_loss": fmean(record["log_loss"] for record in records),
        "accuracy_on_corrupted_images": {
            name: fmean(record["robust"][name] for record in records) for name in records[0]["robust"]
        },
        "compression": data.train_images.numel() / loaded.bytes,
    }
    return scores | _of_dd_ranking(loaded, data, found, first, reached, how)


def _of_dd_ranking(
    loaded: SyntheticSet,
    data: Dataset,
    found: dict[str, Evaluation],
    first: str,
    reached: float,
    how: dict[str, Any],
) -> dict[str, Any]:
    """DD-Ranking's scores in fractions; those that need full data or random real images only where these are there."""
    once = how | {"networks": (first,), "forecast": Forecast()}
    asked = {"networks": (first,), "eval_lr": {first: how["eval_lr"][first]}}
    scores: dict[str, Any] = {}
    random_real = next((result for words, result in found.items() if words.startswith(RANDOM_REAL)), None)
    ior = None

    def over_random(**augmentation: Any) -> float:
        on_set = evaluate(loaded, data, **(once | asked | augmentation)).mean
        on_real = evaluate_random_real(data, loaded.stored_ipc, **(once | asked | augmentation)).mean
        return improvement_over_random(on_set / 100, on_real / 100)

    if random_real is not None:
        ior = improvement_over_random(reached / 100, random_real.of(first).mean / 100)
        scores["improvement_over_random"] = ior
        own = protocol_named(how["protocol"]).strategy
        network = create(first, generator=seeds.generator(0), **data.network_arguments)
        if (how["dsa_strategy"] if own is None else own(data, network)) != NO_STRATEGY:
            scores["augmentation_robust_score"] = augmentation_robust_score(ior, over_random(augmented=False))
        elif own is None:  # a protocol that would augment, and a set that asks for nothing: with what DSA does
            with_it = over_random(dsa_strategy=strategy_of_dsa(data))
            scores["augmentation_robust_score"] = augmentation_robust_score(with_it, ior)
    if "full data" in found:
        full, hard = found["full data"].of(first).mean, reached
        if loaded.is_soft:
            hard = evaluate(replace(loaded, labels=loaded.classes), data, **(once | asked)).mean
        hlr = hard_label_recovery(full / 100, hard / 100)
        scores |= {"hard_label_recovery": hlr, "share_of_full_accuracy": reached / full}
        if ior is not None:
            scores["label_robust_score"] = label_robust_score(hlr, ior)
    return scores
