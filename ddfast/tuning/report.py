"""Results of a study: the best trial's settings as a file, a table, and the importance of settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddfast.methods import INITS
from ddfast.run.config import config_file, read_config_file, run_options
from ddfast.run.folder import RunFolder
from ddfast.run.resolve import LOADED
from ddfast.runtime.files import replacing
from ddfast.studies.tables import Table, save_table
from ddfast.tuning.begin import MAY_DIFFER, OF_TRAINING, Begun
from ddfast.tuning.clock import RUNGS
from ddfast.tuning.importance import draw_importances, importances
from ddfast.tuning.storage import DEFAULTS, Trials, seconds_of
from ddfast.tuning.trial import ITERATIONS, REASON

CONFIG_FILE, PICTURE = "tuned.yaml", "importance.png"
UNTOUCHED = "The test images were removed before the search began and influenced no setting."


def rows_of(trials: Trials) -> list[dict[str, Any]]:
    """A row per trial, best first: by rungs completed, then by held-out accuracy."""
    rows = [_row(trial) for trial in trials.all()]
    return sorted(rows, key=lambda row: (-len(row["rungs"]), -(row["held_out"] or 0.0), row["trial"]))


def _row(trial: Any) -> dict[str, Any]:
    reached = [trial.intermediate_values[step] for step in RUNGS if step in trial.intermediate_values]
    reason, states = trial.user_attrs.get(REASON), {"COMPLETE": "done", "PRUNED": "stopped", "RUNNING": "unfinished"}
    return {
        "trial": trial.number,
        "defaults": DEFAULTS in trial.user_attrs,
        "state": states[trial.state.name] if reason is None else reason,
        "held_out": reached[-1] if reached and reason is None else None,
        "rungs": reached if reason is None else [],
        "iterations": trial.user_attrs.get(ITERATIONS),
        "seconds": round(sum(seconds_of(trial).values()), 1),
        "params": dict(trial.params),
    }


def tuned_config(begun: Begun, trials: Trials, best: Mapping[str, Any], dataset: Any) -> str:
    """The best trial's settings with all of its iterations and no held-out images, as text for `--config`."""
    config = RunFolder(trials.folder_of(best["trial"])).read_config()
    of_data = [name for name in LOADED if name != "hold_out"]
    given = {name: begun.given[name] for name in (*of_data, *MAY_DIFFER) if name in begun.given}
    training = {name: begun.config[name] for name in OF_TRAINING if name in begun.config}
    if begun.experts is not None:
        training["train_dsa_strategy"] = training.get("train_dsa_strategy") or begun.config["dsa_strategy"]
        training["train_epochs"] = _train_epochs(config, training)
    config |= dict.fromkeys(("dataset", "experts", "memory_budget", "device", "zca")) | training
    config |= {"iterations": best["iterations"], "hold_out": 0.0, "zca": begun.config["zca"], **given}
    config["dataset"] = str(dataset) if isinstance(dataset, str | Path) else "digits" if dataset is None else None
    config["networks"] = begun.config["networks"]
    if config["init"] not in INITS:
        config["lr_teacher"] = None
    return config_file(config)


def _train_epochs(config: Mapping[str, Any], training: Mapping[str, Any]) -> Any:
    """The epochs that the trial uses, if an expert's first epochs do not depend on its total; else all epochs."""
    return config["train_epochs"] if training.get("schedule", "constant") != "constant" else training["train_epochs"]


def save_report(
    begun: Begun, trials: Trials, rows: list[dict[str, Any]], config: str, settings: dict[str, Any]
) -> Table:
    """Write the settings, `study.json` and the picture; return the table."""
    folder, every = begun.folder, trials.all()
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(config, encoding="utf-8")
    shares = importances(every)
    findings = {
        "best": rows[0],
        "defaults": next((row for row in rows if row["defaults"]), None),
        "importance": shares,
        "test_images": UNTOUCHED,
    }
    table = {"study": "tune", "settings": settings, "rows": rows, "findings": findings}
    save_table(table, folder)
    if shares:
        draw_importances(every, shares, folder / PICTURE)
    return table


def read_settings(path: Path) -> dict[str, Any]:
    """Read the options of `distill` other than the data from the file."""
    return {name: value for name, value in read_config_file(path, run_options()).items() if name != "dataset"}
