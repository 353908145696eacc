"""Importance of settings: how much of the variance between trials each one explains, as numbers and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddfast.runtime.files import replacing
from ddfast.tuning.clock import RUNGS

LEAST = 4  # trials
SHOWN = 3  # settings whose values are plotted


def importances(trials: Sequence[Any]) -> dict[str, float]:
    """Shares of the variance of held-out accuracy, largest first, by Optuna's functional ANOVA (Hutter et al. 2014).

    Uses accuracies after the first rung, where all trials are comparable. Empty if too few trials differ.
    """
    import optuna

    compared = first_rung(trials)
    if len(compared) < LEAST or len({value for _, value in compared}) < 2:
        return {}
    done = [
        optuna.create_trial(params=trial.params, distributions=trial.distributions, value=value)
        for trial, value in compared
    ]
    study = optuna.create_study(direction="maximize")
    study.add_trials(done)
    names = [name for name in done[0].params if len({trial.params[name] for trial in done}) > 1]
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=names) if names else {}


def first_rung(trials: Sequence[Any]) -> list[tuple[Any, float]]:
    """Trials with their accuracy after the first rung."""
    reached = [(trial, trial.intermediate_values.get(RUNGS[0])) for trial in trials]
    return [(trial, value) for trial, value in reached if value is not None]


def draw_importances(trials: Sequence[Any], shares: dict[str, float], path: Path) -> None:
    """Draw bars of all settings, and accuracies over the values of the most important ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    figure = Figure(figsize=(3 * (SHOWN + 1.4), 3.2), layout="constrained")
    bars, *others = figure.subplots(1, 1 + SHOWN, width_ratios=[1.4, *[1] * SHOWN])
    names = list(shares)[::-1]
    bars.barh(names, [shares[name] for name in names])
    bars.set(xlabel="share of the differences", xlim=(0, 1))
    for axes, name in zip(others, names[::-1][:SHOWN], strict=False):
        pairs = [(trial.params[name], value) for trial, value in first_rung(trials)]
        axes.scatter(*zip(*pairs, strict=True), s=10)
        is_rate = isinstance(pairs[0][0], float)
        axes.set(xlabel=name, xscale="log" if is_rate else "linear", ylabel="held-out accuracy in %")
        if is_rate:
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif isinstance(pairs[0][0], str):
            axes.tick_params("x", labelrotation=20, labelsize=7)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for axes in others[len(names) :]:
        axes.set_axis_off()
    figure.suptitle(f"{len(first_rung(trials))} trials after a ninth of their iterations")
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
